//! HTTP/1.1 with connections kept alive: a real wrk in the client pod, the real nginx of the server pod.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::stage::Pair;

/// Whether this machine has wrk.
pub(crate) fn available() -> bool {
    // It prints its version and calls that a failure; being there is all that is asked.
    let probe = Command::new("wrk")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok()
}

/// What wrk got done.
#[derive(Debug, PartialEq)]
pub(crate) struct Requests {
    /// All of them.
    pub(crate) total: u64,
    /// In a second.
    pub(crate) per_second: f64,
}

/// Asks for a small page over this many connections, again and again.
pub(crate) fn run(pair: &Pair, connections: u32, seconds: u64) -> Result<Requests> {
    let mut wrk = pair.client.command("wrk");
    wrk.args(["-t", "1", "-c", &connections.to_string()]);
    wrk.args(["-d", &format!("{seconds}s"), "--timeout", "10s", &pair.url()]);
    let output = wrk.stdin(Stdio::null()).output().context("run wrk")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "wrk: {}{said}",
        String::from_utf8_lossy(&output.stderr)
    );
    requests(&said)
}

/// Reads what wrk says. A request that failed makes the figures worthless.
fn requests(said: &str) -> Result<Requests> {
    let bad = ["Socket errors:", "Non-2xx or 3xx responses:"];
    let mut lines = said.lines().map(str::trim);
    if let Some(line) = lines.find(|line| bad.iter().any(|bad| line.starts_with(bad))) {
        bail!("wrk: {line}");
    }
    let total = said.lines().find_map(|line| line.split_once(" requests in "));
    let total = total.and_then(|(total, _)| total.trim().parse().ok());
    let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    let per_second = rate.and_then(|rate| rate.trim().parse().ok());
    total
        .zip(per_second)
        .map(|(total, per_second)| Requests { total, per_second })
        .with_context(|| format!("wrk does not say how many requests there were:\n{said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let good = "Running 1s test\n  1 threads and 1 connections\n  9000 requests in 1.00s, 2MB read\n\
                    Requests/sec:   8999.50\nTransfer/sec:      2.01MB\n";
        let requests_of = |total, per_second| Requests { total, per_second };
        assert_eq!(requests(good).unwrap(), requests_of(9000, 8999.5));
        for bad in [
            "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 9\n",
            "  Non-2xx or 3xx responses: 12\nRequests/sec: 9\n",
            "",
        ] {
            assert!(requests(bad).is_err(), "{bad}");
        }
    }
}
