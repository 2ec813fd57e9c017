//! What the world needs of the machine: root, a cgroup2 mount, a bpffs mount, and our own binaries.

use std::{
    env,
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    mount::{MountFlags, mount},
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
};

/// Where bpffs is expected.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Where the unified hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside the old ones.
pub fn cgroup2_root() -> Result<PathBuf> {
    mounts_of("cgroup2")?.into_iter().next().context(
        "no cgroup2 is mounted: \
             mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
    )
}

/// Makes sure that bpffs is mounted where agents pin, and says so when it had to mount it.
pub fn mount_bpffs() -> Result<PathBuf> {
    let at = PathBuf::from(BPFFS);
    if mounts_of("bpf")?.contains(&at) {
        return Ok(at);
    }
    // Another process may be about to do the same, and a second mount would hide the pins of the first.
    let lock = File::open(&at).with_context(|| format!("open {BPFFS}: has the kernel BPF?"))?;
    flock(lock.as_fd(), FlockOperation::LockExclusive).with_context(|| format!("lock {BPFFS}"))?;
    if !mounts_of("bpf")?.contains(&at) {
        mount("bpf", &at, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("mount bpffs on {BPFFS}"))?;
        eprintln!("mounted bpffs on {BPFFS}");
    }
    Ok(at)
}

/// Fails with one clear line unless this process is root.
pub fn require_root() -> Result<()> {
    ensure!(
        geteuid().is_root(),
        "the test world makes network namespaces and cgroups: run this as root"
    );
    Ok(())
}

/// Raises the soft limit on open files to the hard one: tests hold thousands of sockets.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, a test that needs more says so itself.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

/// How many files a process may have open at the most, once it has raised its limit.
pub fn file_limit() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// One of our binaries: what `override_env` names, else the file beside the running test or tool.
pub fn binary(name: &str, override_env: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(override_env) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{override_env} names {}, which is not a file",
            path.display()
        );
        return Ok(path);
    }
    let exe = env::current_exe().context("find the running executable")?;
    // Tests run from target/debug/deps, xtask from target/debug; what only tests start is in target/debug/examples.
    let beside = exe
        .ancestors()
        .skip(1)
        .take(2)
        .flat_map(|dir| [dir.join(name), dir.join("examples").join(name)])
        .find(|path| path.is_file());
    match beside {
        Some(path) => Ok(path),
        None => bail!(
            "no {name} beside {}: build it first: cargo xtask test",
            exe.display()
        ),
    }
}

/// The mount points of one file system type, in the order they were mounted.
fn mounts_of(kind: &str) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| mount_point(line, kind))
        .collect())
}

fn mount_point(line: &str, kind: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(1);
    let at = fields.next()?;
    (fields.next()? == kind).then(|| Path::new(at).to_path_buf())
}
