//! What processes cost, by /proc: processor time, memory, sockets.

use std::{collections::HashSet, fs};

use anyhow::{Context, Result};

use crate::stage::Carriers;

/// Ticks in a second, as /proc shows them: the same on all machines (linux: USER_HZ).
const TICKS: f64 = 100.0;

/// Seconds of one core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// Since boot: all cores, everything that was not idle.
    machine: f64,
    /// Of those who carry the traffic: the client's side, the server's, the waypoint between them. `None` where nobody does.
    carriers: [Option<f64>; 3],
}

impl Cpu {
    /// Until now.
    pub(crate) fn used(carriers: &Carriers) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let machine = of_machine(&stat).context("/proc/stat has no line for all cores")?;
        Ok(Self {
            machine: machine as f64 / TICKS,
            carriers: [
                used(&carriers.client)?,
                used(&carriers.server)?,
                used(&carriers.waypoint)?,
            ],
        })
    }

    /// Whether all that carry have done something.
    pub(crate) fn has_worked_since(self, before: Self) -> bool {
        let [_, _, carriers @ ..] = self.since(before, 1.0);
        carriers.iter().flatten().all(|used| *used >= WORK)
    }

    /// What was used since `before`, times `share`: of the machine, of all who carry, and of each of them.
    pub(crate) fn since(self, before: Self, share: f64) -> [Option<f64>; 5] {
        let used = |now: Option<f64>, before: Option<f64>| Some((now? - before?) * share);
        let carriers = [0, 1, 2].map(|at| used(self.carriers[at], before.carriers[at]));
        let all = carriers.iter().flatten().copied().reduce(|a, b| a + b);
        let [client, server, waypoint] = carriers;
        let machine = (self.machine - before.machine) * share;
        [Some(machine), all, client, server, waypoint]
    }
}

/// What carrying a single connection takes at the least, in seconds; much more than a proxy that idles.
const WORK: f64 = 20e-6;

/// Seconds of all processes; to the nanosecond, since a short load is a few ticks only.
fn used(pids: &[u32]) -> Result<Option<f64>> {
    if pids.is_empty() {
        return Ok(None);
    }
    let nanos: Result<Vec<u64>> = pids.iter().map(|pid| nanos(*pid)).collect();
    Ok(Some(nanos?.iter().sum::<u64>() as f64 / 1e9))
}

/// Of all threads that a process has now.
fn nanos(pid: u32) -> Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid}, which carries the traffic, has ended"))?;
    let of_task = |task: std::io::Result<fs::DirEntry>| {
        let path = task.ok()?.path().join("schedstat");
        // A thread may end while we look.
        let text = fs::read_to_string(path).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Ok(tasks.filter_map(of_task).sum())
}

/// Ticks of all cores: user, nice, system, irq and softirq of the line `cpu`; not idle, iowait, nor what the hypervisor
/// gave to others (proc(5)).
fn of_machine(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect();
    [0, 1, 2, 5, 6].iter().map(|field| ticks.get(*field)).sum()
}

/// What is resident in memory (RSS) of all of them, in MiB. `None` where there are none.
pub(crate) fn resident(pids: &[u32]) -> Result<Option<f64>> {
    if pids.is_empty() {
        return Ok(None);
    }
    let mut kib = 0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid}, which carries the traffic, has ended"))?;
        kib += rss_kib(&status).unwrap_or_default();
    }
    Ok(Some(kib as f64 / 1024.0))
}

/// From a line such as `VmRSS:     12345 kB`.
fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How many sockets all of them have open.
pub(crate) fn sockets(pids: &[u32]) -> usize {
    let of = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        targets
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count()
    };
    pids.iter().map(of).sum()
}

/// A process and all that come from it.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids
        .filter_map(|pid| {
            Some((
                pid,
                parent(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?,
            ))
        })
        .collect();
    let mut found = HashSet::from([root]);
    loop {
        let before = found.len();
        let children = parents.iter().filter(|(_, parent)| found.contains(parent));
        let children: Vec<u32> = children.map(|(pid, _)| *pid).collect();
        found.extend(children);
        if found.len() == before {
            break;
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_unstable();
    found
}

/// Field 4 of its `stat`. The second field is its name in parentheses and may hold anything, so counting starts after
/// the last one.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let stat = "cpu  10 1 20 1000 50 3 4 99 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        assert_eq!(of_machine(stat), Some(38));
        assert_eq!(of_machine("intr 5\n"), None);
        assert_eq!(parent("7 (a ) b) S 1 7 7 0"), Some(1));
        assert_eq!(parent("7 (weft"), None);
    }

    #[test]
    fn what_was_used_is_told_by_process() {
        let cpu = |machine, client, server| Cpu {
            machine,
            carriers: [client, server, None],
        };
        let used = cpu(14.0, Some(3.0), Some(2.5)).since(cpu(10.0, Some(1.0), Some(2.0)), 0.5);
        assert_eq!(used, [Some(2.0), Some(1.25), Some(1.0), Some(0.25), None]);
        let alone = cpu(14.0, Some(3.0), None).since(cpu(10.0, Some(1.0), None), 1.0);
        assert_eq!(alone, [Some(4.0), Some(2.0), Some(2.0), None, None]);
        assert_eq!(cpu(2.0, None, None).since(cpu(1.0, None, None), 1.0)[1], None);
        let idle = cpu(1.0, Some(1.0), Some(1.0));
        assert!(cpu(1.0, Some(1.1), Some(1.1)).has_worked_since(idle));
        assert!(!cpu(9.0, Some(1.1), Some(1.0)).has_worked_since(idle));
        assert!(cpu(1.0, None, None).has_worked_since(cpu(1.0, None, None)));
    }

    #[test]
    fn this_process_is_seen() {
        let own = std::process::id();
        assert!(tree(own).contains(&own));
        assert!(nanos(own).unwrap() > 0);
        assert!(resident(&[own]).unwrap().unwrap() > 0.5);
        assert_eq!(resident(&[]).unwrap(), None);
        let before = sockets(&[own]);
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(sockets(&[own]) > before);
        assert_eq!(
            rss_kib("Name:\tweft\nVmHWM:\t  9 kB\nVmRSS:\t   12345 kB\n"),
            Some(12_345)
        );
    }
}
