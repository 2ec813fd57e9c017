//! Processor time: of the whole machine, which both ways can be compared by, and of each agent.

use std::fs;

use anyhow::{Context, Result};

use crate::stage::Stage;

/// Ticks in a second, as /proc shows them: the same on all machines (linux: USER_HZ).
const TICKS: f64 = 100.0;

/// Seconds of one core, since boot for the machine and since its start for an agent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    /// All cores, everything that was not idle.
    pub(crate) machine: f64,
    /// Node a's agent and node b's.
    pub(crate) agents: [f64; 2],
}

impl Cpu {
    /// Until now.
    pub(crate) fn used(stage: &Stage) -> Result<Self> {
        let seconds = |ticks: u64| ticks as f64 / TICKS;
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let machine = of_machine(&stat).context("/proc/stat has no line for all cores")?;
        let [a, b] = stage.agents.each_ref().map(|agent| {
            let pid = agent
                .pid()
                .with_context(|| format!("agent {} has ended", agent.node()))?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("read an agent's times")?;
            of_process(&stat).context("an agent's times cannot be read")
        });
        Ok(Self {
            machine: seconds(machine),
            agents: [seconds(a?), seconds(b?)],
        })
    }

    /// What was used since `before`, for each 100,000 of `count`: of the machine, of agent a, of agent b.
    pub(crate) fn per_100_000(self, before: Self, count: u64) -> [f64; 3] {
        let share = 1e5 / count.max(1) as f64;
        let [a, b] = self.agents;
        [
            (self.machine - before.machine) * share,
            (a - before.agents[0]) * share,
            (b - before.agents[1]) * share,
        ]
    }
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

/// Ticks of a process in user and kernel mode: fields 14 and 15 of its `stat`. The second field is its name in
/// parentheses and may hold anything, so counting starts after the last one.
fn of_process(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let stat = "cpu  10 1 20 1000 50 3 4 99 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\nintr 5\n";
        assert_eq!(of_machine(stat), Some(38));
        assert_eq!(of_machine("intr 5\n"), None);
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 5 0 1 2 3";
        assert_eq!(of_process(stat), Some(200));
        assert_eq!(of_process("7 (weft) S 1 7"), None);
    }

    #[test]
    fn what_was_used_is_told_for_each_hundred_thousand() {
        let cpu = |machine, a, b| Cpu {
            machine,
            agents: [a, b],
        };
        let used = cpu(14.0, 3.0, 2.5).per_100_000(cpu(10.0, 1.0, 2.0), 200_000);
        assert_eq!(used, [2.0, 1.0, 0.25]);
    }
}
