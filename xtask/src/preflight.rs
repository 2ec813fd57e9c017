//! What the machine must offer before the demo and the tests can run: checked first, so that what is missing is one
//! clear line with its mend and not a failure deep in a test. It mounts bpffs if nobody has; it changes nothing else.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::shell;

/// The answer to one check: what was found, or what is wrong and how to mend it.
type Answer = std::result::Result<String, String>;
/// A check and its name.
type Check = (&'static str, fn() -> Answer);

/// The oldest kernel with all that the programs use (the netns cookie in sockops).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Capabilities by number. CAP_SYS_RESOURCE is not among them: maps are charged to the cgroup since Linux 5.11.
const CAPABILITIES: [(&str, u32); 4] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_PTRACE", 19),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_BPF", 39),
];

/// Checks everything and prints a line for each.
///
/// # Errors
/// Something is missing; its line with the mend is already printed.
pub(crate) fn run() -> Result<()> {
    let checks: [Check; 6] = [
        ("root", root),
        ("kernel", kernel),
        ("BTF", btf),
        ("capabilities", capabilities),
        ("cgroup2", cgroup2),
        ("bpffs", bpffs),
    ];
    let mut missing = 0;
    for (name, check) in checks {
        match check() {
            Ok(found) => println!("✓ {name}: {found}"),
            Err(mend) => {
                missing += 1;
                println!("✗ {name}: {mend}");
            }
        }
    }
    if missing > 0 {
        bail!("this machine cannot run it yet: {missing} of the checks above failed");
    }
    Ok(())
}

fn root() -> Answer {
    if rustix::process::geteuid().is_root() {
        return Ok("yes".into());
    }
    Err(
        "network namespaces and eBPF programs need root: run it again as root (`sudo -E env PATH=$PATH …`)"
            .into(),
    )
}

fn kernel() -> Answer {
    judge_kernel(&read("/proc/sys/kernel/osrelease"))
}

fn judge_kernel(release: &str) -> Answer {
    let release = release.trim();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(format!(
            "cannot read the version in `{release}`: weft needs Linux 5.15 or newer"
        ));
    };
    if (major, minor) >= OLDEST_KERNEL {
        return Ok(release.to_owned());
    }
    let (major, minor) = OLDEST_KERNEL;
    Err(format!(
        "Linux {release} is too old: boot {major}.{minor} or newer (Debian 12 has 6.1)"
    ))
}

fn btf() -> Answer {
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        return Ok(path.into());
    }
    Err(format!(
        "{path} is missing: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (distribution kernels are)"
    ))
}

fn capabilities() -> Answer {
    judge_capabilities(&read("/proc/self/status"))
}

fn judge_capabilities(status: &str) -> Answer {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Err("cannot read CapEff in /proc/self/status: is /proc mounted?".into());
    };
    let names = |present| {
        let wanted = move |bit: u32| (effective >> bit & 1 == 1) == present;
        let names: Vec<_> = CAPABILITIES
            .iter()
            .filter(|(_, bit)| wanted(*bit))
            .map(|(name, _)| *name)
            .collect();
        names.join(", ")
    };
    let missing = names(false);
    if missing.is_empty() {
        return Ok(names(true));
    }
    Err(format!(
        "missing {missing}: run as root outside of a container, or start the container with these added"
    ))
}

fn cgroup2() -> Answer {
    judge_cgroup2(&read("/proc/self/mounts"))
}

fn judge_cgroup2(mounts: &str) -> Answer {
    let mut mounted = mounts_of(mounts, "cgroup2");
    let known = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    mounted
        .find(|path| known.contains(path))
        .map(str::to_owned)
        .ok_or_else(|| {
            "not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified: mend it with \
         `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`"
                .into()
        })
}

fn bpffs() -> Answer {
    let path = "/sys/fs/bpf";
    if mounts_of(&read("/proc/self/mounts"), "bpf").any(|mounted| mounted == path) {
        return Ok(path.into());
    }
    let mut mount = Command::new("mount");
    mount.args(["-t", "bpf", "bpf", path]);
    match shell::run(&mut mount) {
        Ok(()) => Ok(format!("mounted now with `{}`", shell::show(&mount))),
        Err(err) => Err(format!("not mounted, and {err:#}: mount it as root")),
    }
}

/// Where file systems of a type are mounted, from the text of /proc/self/mounts.
fn mounts_of<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(move |line| {
        let mut words = line.split(' ').skip(1);
        let path = words.next()?;
        (words.next() == Some(kind)).then_some(path)
    })
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_number() {
        for good in ["5.15.0-91-generic", "6.1.0-18-amd64\n", "6.18.44-fc-v657", "10.0"] {
            assert!(judge_kernel(good).is_ok(), "{good}");
        }
        for bad in ["5.14.21", "5.9.0-5-amd64", "4.19.0", "", "six"] {
            assert!(judge_kernel(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cap_sys_resource_is_not_asked_for() {
        let without_resource = "Name:\tx\nCapEff:\t000001fffeffffff\n";
        assert!(judge_capabilities(without_resource).is_ok());
        let without_bpf = judge_capabilities("CapEff:\t0000007fffffffff\n").unwrap_err();
        assert!(without_bpf.starts_with("missing CAP_BPF:"), "{without_bpf}");
        let none = judge_capabilities("CapEff:\t0000000000000000\n").unwrap_err();
        assert!(
            none.contains("CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_BPF"),
            "{none}"
        );
        assert!(judge_capabilities("").is_err());
    }

    #[test]
    fn cgroup2_is_found_in_both_layouts() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(judge_cgroup2(unified), Ok("/sys/fs/cgroup".into()));
        assert_eq!(judge_cgroup2(hybrid), Ok("/sys/fs/cgroup/unified".into()));
        for missing in [
            "",
            "cgroup /sys/fs/cgroup cgroup rw 0 0\n",
            "cgroup2 /mnt/elsewhere cgroup2 rw 0 0\n",
        ] {
            assert!(
                judge_cgroup2(missing).unwrap_err().contains("mount -t cgroup2"),
                "{missing}"
            );
        }
    }
}
