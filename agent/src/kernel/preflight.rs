//! What the machine must offer, asked before anything is loaded. Each answer is one line with the mend.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use thiserror::Error;

use super::{depth, link::is_bpffs, maps::PodsCgroup, pins::Pins};

/// The first kernel with netns cookies in sockops (5.15 also has SO_NETNS_COOKIE, sk_lookup and getpeername hooks).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Capabilities by their bit (linux/capability.h). CAP_SYS_RESOURCE is not among them: since 5.11 the kernel charges
/// maps to the memory cgroup and no RLIMIT_MEMLOCK has to be raised. All others are given up (`privileges`).
pub(super) const CAPABILITIES: [(u32, &str, &str); 4] = [
    (12, "CAP_NET_ADMIN", "attaches programs to network namespaces"),
    (
        19,
        "CAP_SYS_PTRACE",
        "opens the namespaces of pods that run as other users",
    ),
    (21, "CAP_SYS_ADMIN", "enters network namespaces"),
    (39, "CAP_BPF", "loads eBPF programs"),
];

/// Why weft cannot run here.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message says it
pub enum PreflightError {
    #[error("the kernel is {found}, weft needs 5.15 or later: update the node's kernel")]
    Kernel { found: String },
    #[error(
        "{name} is missing, it {purpose}: run as root, or add {name} to the container's \
         securityContext.capabilities.add"
    )]
    Capability {
        name: &'static str,
        purpose: &'static str,
    },
    #[error(
        "no cgroup2 is mounted: mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`, or boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    #[error(
        "--cgroup-root {path} is not a folder of a cgroup2 file system: give one below the mount point of cgroup2"
    )]
    NotCgroup2 { path: PathBuf },
    #[error(
        "--pin-dir {path} is not on bpffs: mount it with `mount -t bpf bpf /sys/fs/bpf`, and give a folder below"
    )]
    NotBpffs { path: PathBuf },
    #[error(
        "--pin-dir {path} is a mount point, in which other programs pin too: give a folder of its own below"
    )]
    SharedPins { path: PathBuf },
    #[error("cannot read {path}: is /proc mounted?")]
    Read { path: &'static str, source: io::Error },
}

/// Checks the kernel's version and the process's capabilities.
///
/// # Errors
/// The first thing that is missing.
pub fn check() -> Result<(), PreflightError> {
    check_kernel(&read("/proc/sys/kernel/osrelease")?)?;
    check_capabilities(&read("/proc/self/status")?)
}

fn read(path: &'static str) -> Result<String, PreflightError> {
    fs::read_to_string(path).map_err(|source| PreflightError::Read { path, source })
}

fn check_kernel(release: &str) -> Result<(), PreflightError> {
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.trim().parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_KERNEL {
        return Err(PreflightError::Kernel {
            found: release.trim().to_owned(),
        });
    }
    Ok(())
}

fn check_capabilities(status: &str) -> Result<(), PreflightError> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .unwrap_or(0);
    match CAPABILITIES
        .into_iter()
        .find(|(bit, ..)| effective >> bit & 1 == 0)
    {
        Some((_, name, purpose)) => Err(PreflightError::Capability { name, purpose }),
        None => Ok(()),
    }
}

/// The cgroup to attach at: the one given, or the root of cgroup2, wherever it is mounted.
///
/// # Errors
/// When there is no cgroup2, or `given` is not in one.
pub fn cgroup_root(given: Option<&Path>) -> Result<PathBuf, PreflightError> {
    match given {
        Some(path) if path.join("cgroup.procs").exists() && is_cgroup2(path) => Ok(path.to_owned()),
        Some(path) => Err(PreflightError::NotCgroup2 {
            path: path.to_owned(),
        }),
        None => mounted_cgroup2(&read("/proc/self/mounts")?).ok_or(PreflightError::NoCgroup2),
    }
}

/// Where the kubelet puts its pods below the root of cgroup2, by its cgroup drivers and by kind.
const KUBEPODS: [&str; 4] = [
    "kubepods.slice",
    "kubepods",
    "kubelet.slice/kubelet-kubepods.slice",
    "kubelet/kubepods",
];

/// The cgroup under which all pods of the node are: the one given, or the kubelet's below `root`. `None` where there is none,
/// as with cgroup v1, and where it is not known how deep it lies: then nobody can tell the node's own processes from those of
/// its pods.
///
/// # Errors
/// When `given` is not in cgroup2, or its place in the whole tree is hidden.
pub fn pods_cgroup(given: Option<&Path>, root: &Path) -> Result<Option<PodsCgroup>, PreflightError> {
    let found = KUBEPODS
        .iter()
        .map(|path| root.join(path))
        .find(|path| path.join("cgroup.procs").exists());
    let Some(path) = given.map(Path::to_owned).or(found) else {
        return Ok(None);
    };
    let refused = || PreflightError::NotCgroup2 { path: path.clone() };
    let id = fs::metadata(&path).map_err(|_| refused())?.ino();
    let above: Vec<&Path> = path
        .ancestors()
        .skip(1)
        .take_while(|path| is_cgroup2(path))
        .collect();
    let top = above.last().filter(|_| is_cgroup2(&path));
    let Some(depth) = top.and_then(|top| depth::of(top)) else {
        // Nobody asked for it.
        return given.map_or(Ok(None), |_| Err(refused()));
    };
    let level = depth + u32::try_from(above.len()).map_err(|_| refused())?;
    Ok(Some(PodsCgroup { id, level }))
}

fn is_cgroup2(path: &Path) -> bool {
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

fn mounted_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| path.into())
    })
}

/// 1 where a program can find the connection of multipath TCP that a subflow belongs to, 0 where it cannot: before Linux
/// 5.19, and in a kernel without multipath TCP.
pub fn multipath() -> u32 {
    let helper = is_helper_supported(ProgramType::SockOps, BpfHelper::BPF_FUNC_skc_to_mptcp_sock);
    let there = Path::new("/proc/sys/net/mptcp").exists() && helper.unwrap_or(false);
    there.into()
}

/// Makes the folder for pins, which must be on bpffs.
///
/// # Errors
/// When its parent is not on bpffs, or the folder cannot be made.
pub fn pin_dir(path: &Path) -> Result<(), PreflightError> {
    // Asked before anything is made: a mistyped path leaves no folder behind.
    let there = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(path);
    // Also one that an earlier version made: pins are nobody else's to read.
    let private =
        || fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)));
    if is_bpffs(there).unwrap_or(false) && private().is_ok() {
        return if Pins::new(path.to_owned()).is_mount_point().unwrap_or(true) {
            Err(PreflightError::SharedPins {
                path: path.to_owned(),
            })
        } else {
            Ok(())
        };
    }
    Err(PreflightError::NotBpffs {
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_5_15_are_refused() {
        for (release, accepted) in [
            ("6.18.44-fc", true),
            ("5.15.0-91-generic", true),
            ("5.14.21", false),
            ("4.19", false),
            ("what", false),
        ] {
            assert_eq!(check_kernel(release).is_ok(), accepted, "{release}");
        }
    }

    #[test]
    fn a_missing_capability_is_named_and_sys_resource_is_not_needed() {
        // Everything but CAP_SYS_RESOURCE (bit 24).
        assert!(check_capabilities("Name:\tweft\nCapEff:\t000001fffeffffff\n").is_ok());
        let without_bpf = format!("CapEff:\t{:016x}\n", 0x1ff_ffff_ffff_u64 & !(1 << 39));
        let error = check_capabilities(&without_bpf)
            .expect_err("CAP_BPF is missing")
            .to_string();
        assert!(
            error.contains("CAP_BPF") && error.contains("securityContext"),
            "{error}"
        );
        assert!(check_capabilities("garbage").is_err());
    }

    #[test]
    fn cgroup2_is_found_where_it_is_mounted() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mounted_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            mounted_cgroup2("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"),
            Some("/sys/fs/cgroup".into())
        );
        assert_eq!(mounted_cgroup2("proc /proc proc rw 0 0\n"), None);
    }
}
