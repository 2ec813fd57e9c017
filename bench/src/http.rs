//! HTTP under load that does not wait: a real wrk (HTTP/1.1) or h2load (HTTP/2) in the client pod, the real nginx of the
//! server pod.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::stage::{HTTP_PORT, HTTP2_PORT, Pair};

/// Whether this machine has a program.
pub(crate) fn available(program: &str) -> bool {
    // Some print their version and call that a failure; being there is all that is asked.
    let probe = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok()
}

/// What a program got done.
#[derive(Debug, PartialEq)]
pub(crate) struct Requests {
    /// All of them.
    pub(crate) total: u64,
    /// In a second.
    pub(crate) per_second: f64,
    /// The 99th percentile of their times, in µs; where the program tells.
    pub(crate) p99: Option<f64>,
}

/// Asks for a small page over this many connections, again and again. They are kept alive, or each serves one request.
pub(crate) fn wrk(pair: &Pair, connections: u32, kept_alive: bool, seconds: u64) -> Result<Requests> {
    let mut wrk = pair.client.command("wrk");
    wrk.args(["-t", "1", "-c", &connections.to_string(), "--latency"]);
    if !kept_alive {
        wrk.args(["-H", "Connection: close"]);
    }
    let url = pair.url(HTTP_PORT, "");
    wrk.args(["-d", &format!("{seconds}s"), "--timeout", "10s", &url]);
    wrk_said(&output(&mut wrk, "wrk")?)
}

/// The same over HTTP/2: this many connections, each with as many requests at a time.
pub(crate) fn h2load(pair: &Pair, connections: u32, seconds: u64) -> Result<Requests> {
    let mut h2load = pair.client.command("h2load");
    let connections = connections.to_string();
    h2load.args(["-t", "1", "-c", &connections, "-m", &connections]);
    h2load.args(["-D", &seconds.to_string(), "-p", "h2c", &pair.url(HTTP2_PORT, "")]);
    h2load_said(&output(&mut h2load, "h2load")?)
}

/// What a program prints; an error with all that it said unless it succeeds.
pub(crate) fn output(command: &mut Command, program: &str) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{program}: {}{said}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// Reads what wrk says. A request that failed makes the figures worthless.
fn wrk_said(said: &str) -> Result<Requests> {
    let bad = ["Socket errors:", "Non-2xx or 3xx responses:"];
    let mut lines = said.lines().map(str::trim);
    if let Some(line) = lines.find(|line| bad.iter().any(|bad| line.starts_with(bad))) {
        bail!("wrk: {line}");
    }
    let total = said.lines().find_map(|line| line.split_once(" requests in "));
    let rate = said.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    let p99 = said.lines().find_map(|line| line.trim().strip_prefix("99%"));
    requests(
        total.and_then(|(total, _)| total.trim().parse().ok()),
        rate.and_then(|rate| rate.trim().parse().ok()),
        p99.and_then(micros),
    )
    .with_context(|| format!("wrk does not say how many requests there were:\n{said}"))
}

/// Reads what h2load says; the same holds.
fn h2load_said(said: &str) -> Result<Requests> {
    let line = |start: &str| said.lines().find_map(|line| line.strip_prefix(start));
    let counts = line("requests: ").context("h2load counts no requests")?;
    let count = |what: &str| -> Option<u64> {
        let found = counts.split(", ").find_map(|part| part.strip_suffix(what));
        found?.trim().parse().ok()
    };
    // What is under way when time is up is told as begun and not done, not as failed.
    for bad in [" failed", " errored", " timeout"] {
        ensure!(count(bad) == Some(0), "h2load: {counts}");
    }
    let rate = line("finished in ").and_then(|line| line.split(", ").nth(1));
    requests(
        count(" succeeded"),
        rate.and_then(|rate| rate.strip_suffix(" req/s")?.parse().ok()),
        None,
    )
    .with_context(|| format!("h2load does not say how many requests there were:\n{said}"))
}

fn requests(total: Option<u64>, per_second: Option<f64>, p99: Option<f64>) -> Option<Requests> {
    let (total, per_second) = total.zip(per_second)?;
    Some(Requests {
        total,
        per_second,
        p99,
    })
}

/// A time as wrk prints it.
fn micros(text: &str) -> Option<f64> {
    let text = text.trim();
    [("us", 1.0), ("ms", 1e3), ("s", 1e6)]
        .into_iter()
        .find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.trim().parse::<f64>().ok()? * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let good = "Running 1s test\n  1 threads and 1 connections\n  Latency Distribution\n     50%  110.00us\n\
                         99%    1.53ms\n  9000 requests in 1.00s, 2MB read\n\
                    Requests/sec:   8999.50\nTransfer/sec:      2.01MB\n";
        assert_eq!(
            wrk_said(good).unwrap(),
            requests(Some(9000), Some(8999.5), Some(1530.0)).unwrap()
        );
        for bad in [
            "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec: 9\n",
            "  Non-2xx or 3xx responses: 12\nRequests/sec: 9\n",
            "",
        ] {
            assert!(wrk_said(bad).is_err(), "{bad}");
        }
        assert_eq!(
            (micros(" 12.5us"), micros("2s"), micros("x")),
            (Some(12.5), Some(2e6), None)
        );
    }

    #[test]
    fn what_h2load_says_is_read() {
        let good = "finished in 1.00s, 12345.00 req/s, 1.2MB/s\n\
                    requests: 12345 total, 12409 started, 12345 done, 12345 succeeded, 0 failed, 0 errored, 0 timeout\n";
        assert_eq!(
            h2load_said(good).unwrap(),
            requests(Some(12_345), Some(12_345.0), None).unwrap()
        );
        assert!(h2load_said(&good.replace("0 failed", "3 failed")).is_err());
        assert!(h2load_said("").is_err());
    }
}
