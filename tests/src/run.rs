//! The name of one world, from which the name of everything it makes is derived.
//!
//! It carries the process that made it (id and start time), so that anyone can tell later whether that process still
//! lives, even when its id has been given to another.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process, str,
};

use anyhow::{Context, Result};

/// What every name starts with.
pub const PREFIX: &str = "weft-";

/// Where named network namespaces live; `ip netns` makes it.
pub const NETNS_DIR: &str = "/run/netns";

/// Where worlds keep their files: mesh, certificates, logs.
pub const TEMP_DIR: &str = "/tmp";

/// One world of one process. Prints as `weft-<pid>-<start time>-<serial>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId {
    pid: u32,
    /// Clock ticks from boot to the start of the process.
    started: u64,
    serial: u32,
}

impl RunId {
    /// Claims the next free name of this process by creating its directory for temporary files.
    pub fn claim() -> Result<Self> {
        let pid = process::id();
        let started = start_time(pid).context("read this process's start time from /proc")?;
        for serial in 1.. {
            let id = Self { pid, started, serial };
            // The name of a world whose files are kept is not used again.
            if id.kept_dir().exists() {
                continue;
            }
            match fs::create_dir(id.temp_dir()) {
                Ok(()) => return Ok(id),
                Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
                Err(err) => return Err(err).with_context(|| format!("create {}", id.temp_dir().display())),
            }
        }
        unreachable!("more worlds than numbers")
    }

    /// The run that a name belongs to; `None` where the name is not one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.split('-');
        let id = Self {
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.parse().ok()?,
            serial: parts.next()?.parse().ok()?,
        };
        Some(id)
    }

    /// Whether the process that made the world still lives.
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// The name of a network namespace of this world.
    pub fn netns_name(&self, name: &str) -> String {
        format!("{self}-{name}")
    }

    /// The directory of a node's pinned programs and maps.
    pub fn pin_dir(&self, bpffs: &Path, node: &str) -> PathBuf {
        bpffs.join(format!("{self}-{node}"))
    }

    /// Where this world keeps its files.
    pub fn temp_dir(&self) -> PathBuf {
        Path::new(TEMP_DIR).join(self.to_string())
    }

    /// Where those files go when a test failed. The name is not a run's, so no sweep takes it.
    pub fn kept_dir(&self) -> PathBuf {
        Path::new(TEMP_DIR).join(format!(
            "{PREFIX}kept-{}-{}-{}",
            self.pid, self.started, self.serial
        ))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}-{}", self.pid, self.started, self.serial)
    }
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat`. The second field is the command
/// in parentheses and may hold anything, so counting starts after the last one.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = str::from_utf8(stat.get(end + 1..)?).ok()?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_the_run() {
        let id = RunId {
            pid: 12,
            started: 345,
            serial: 6,
        };
        assert_eq!(id.to_string(), "weft-12-345-6");
        assert_eq!(RunId::parse("weft-12-345-6"), Some(id.clone()));
        assert_eq!(RunId::parse(&id.netns_name("web-1")), Some(id.clone()));
        for foreign in [
            "weft",
            "weft-",
            "weft-12",
            "weft-a-b-c",
            "cni-12-345-6",
            "weft-kept-12-345-6",
        ] {
            assert_eq!(RunId::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_recycled_process_id_is_not_the_same_run() {
        let pid = process::id();
        let started = start_time(pid).expect("own start time");
        assert!(
            RunId {
                pid,
                started,
                serial: 1
            }
            .alive()
        );
        assert!(
            !RunId {
                pid,
                started: started + 1,
                serial: 1
            }
            .alive()
        );
    }
}
