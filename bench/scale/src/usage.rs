//! What a process takes, from /proc.

use anyhow::{Context, Result};

/// Memory and processor time of a process so far.
pub(crate) struct Usage {
    /// Resident, in MiB.
    pub(crate) resident_mib: f64,
    /// The most that was resident, in MiB.
    pub(crate) peak_mib: f64,
    /// Seconds of processor time, user and system.
    pub(crate) cpu: f64,
}

impl Usage {
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
            number.with_context(|| format!("{name} in /proc/{pid}/status"))
        };
        let mut cpu = 0.0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            // A thread may end meanwhile.
            let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else {
                continue;
            };
            let ns = text
                .split_whitespace()
                .next()
                .and_then(|it| it.parse::<f64>().ok());
            cpu += ns.unwrap_or_default() / 1e9;
        }
        Ok(Self {
            resident_mib: kib("VmRSS:")? / 1024.0,
            peak_mib: kib("VmHWM:")? / 1024.0,
            cpu,
        })
    }
}

/// Begins the peak anew: what a process has resident now.
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    let file = format!("/proc/{pid}/clear_refs");
    std::fs::write(&file, "5").with_context(|| format!("write {file}"))
}
