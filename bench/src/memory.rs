//! The agents' memory: just started, after the rounds, and with many connections open.

use std::{fmt, fs};

use anyhow::{Context, Result};
use serde::Serialize;
use weft_tests::{Server, app};

use crate::{figures::WIDTH, stage::Stage};

/// Connections that are open at once.
const CONNECTIONS: usize = 1000;

/// What is resident in memory (RSS), in KiB, of node a's agent and of node b's.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Memory {
    /// After one connection.
    idle_kib: [u64; 2],
    /// When all loads have ended.
    after_rounds_kib: [u64; 2],
    /// While that many connections are open, each of which has carried a message.
    connected_kib: [u64; 2],
    connections: usize,
}

impl Memory {
    /// Before the loads.
    pub(crate) fn idle(stage: &Stage) -> Result<Self> {
        Ok(Self {
            idle_kib: resident(stage)?,
            after_rounds_kib: [0; 2],
            connected_kib: [0; 2],
            connections: CONNECTIONS,
        })
    }

    /// After the loads.
    pub(crate) fn measure(&mut self, stage: &Stage) -> Result<()> {
        println!("\nopening {CONNECTIONS} connections, to see what they cost in memory");
        self.after_rounds_kib = resident(stage)?;
        let (listener, to) = stage.weft.listen()?;
        let _server = Server::start(listener, app::echo)?;
        let mut open = Vec::with_capacity(CONNECTIONS);
        for made in 0..CONNECTIONS {
            let mut stream = stage
                .weft
                .client
                .connect(to)
                .with_context(|| format!("connect while {made} connections are open"))?;
            app::round_trip(&mut stream, &[0x5a; 64])
                .with_context(|| format!("talk on connection {made}"))?;
            open.push(stream);
        }
        self.connected_kib = resident(stage)?;
        Ok(())
    }
}

impl Memory {
    /// What was looked at, and the agents' memory then, as people read it.
    pub(crate) fn rows(&self) -> [(String, [String; 2]); 3] {
        let mib = |kib: [u64; 2]| kib.map(|kib| format!("{:.1} MiB", kib as f64 / 1024.0));
        [
            ("idle".to_owned(), mib(self.idle_kib)),
            ("after the rounds".to_owned(), mib(self.after_rounds_kib)),
            (
                format!("with {} connections open", self.connections),
                mib(self.connected_kib),
            ),
        ]
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = ["agent a (outbound)", "agent b (inbound)"];
        writeln!(f, "{:<WIDTH$} {a:>20} {b:>20}", "memory (RSS)")?;
        for (when, [a, b]) in self.rows() {
            writeln!(f, "  {when:<rest$} {a:>20} {b:>20}", rest = WIDTH - 2)?;
        }
        Ok(())
    }
}

fn resident(stage: &Stage) -> Result<[u64; 2]> {
    let [a, b] = stage.agents.each_ref().map(|agent| {
        let pid = agent
            .pid()
            .with_context(|| format!("agent {} has ended", agent.node()))?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("read an agent's status")?;
        rss_kib(&status).context("an agent's status has no VmRSS")
    });
    Ok([a?, b?])
}

/// From a line such as `VmRSS:     12345 kB`.
fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_size_is_read() {
        assert_eq!(
            rss_kib("Name:\tweft\nVmHWM:\t  9 kB\nVmRSS:\t   12345 kB\n"),
            Some(12_345)
        );
        assert_eq!(rss_kib("Name:\tweft\n"), None);
    }
}
