//! HTTP at a fixed rate, as people's services have it: a real oha in the client pod asks for 1 KB a thousand times a second,
//! whether or not the answers come in time, and counts each request's time from the moment at which it was due (corrected
//! for coordinated omission).

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    figures::SHARES,
    http,
    stage::{HTTP_PORT, HTTP2_PORT, Pair},
};

/// Requests a second.
pub(crate) const RATE: u32 = 1000;
/// A rate that is missed by more is no fixed rate any more: the mode cannot carry it.
const MISSED: f64 = 0.05;

/// The times of requests in µs: of each of [`SHARES`], as far as oha tells.
pub(crate) fn run(pair: &Pair, connections: u32, http2: bool, seconds: u64) -> Result<Vec<(f64, f64)>> {
    let mut oha = pair.client.command("oha");
    oha.args(["--no-tui", "--output-format", "json", "--latency-correction"]);
    oha.args(["-q", &RATE.to_string(), "-z", &format!("{seconds}s")]);
    oha.args(["-c", &connections.to_string(), "--disable-compression"]);
    // No proxy of the machine has a say.
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        oha.env_remove(name);
    }
    if http2 {
        oha.arg("--http2");
    }
    oha.arg(pair.url(if http2 { HTTP2_PORT } else { HTTP_PORT }, "1k"));
    times(&http::output(&mut oha, "oha")?)
}

fn times(said: &str) -> Result<Vec<(f64, f64)>> {
    let said: Value = serde_json::from_str(said).context("oha does not answer in JSON")?;
    let number = |at: &str| said.pointer(at).and_then(Value::as_f64);
    let rate = number("/summary/requestsPerSec").context("oha does not say how many requests there were")?;
    let success = number("/summary/successRate").unwrap_or(0.0);
    ensure!(
        success >= 0.999,
        "oha: {:.1} % of the requests failed",
        (1.0 - success) * 100.0
    );
    ensure!(
        rate > f64::from(RATE) * (1.0 - MISSED),
        "{rate:.0} requests a second were carried, of {RATE}"
    );
    let names = [
        "/summary/fastest",
        "p10",
        "p25",
        "p50",
        "",
        "",
        "",
        "p90",
        "p95",
        "p99",
        "",
        "p99.9",
        "/summary/slowest",
    ];
    let time = |(share, name): (f64, &str)| {
        let at = if name.starts_with('/') {
            name.to_owned()
        } else {
            format!("/latencyPercentiles/{name}")
        };
        Some((share, number(&at)? * 1e6))
    };
    Ok(SHARES.into_iter().zip(names).filter_map(time).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_oha_says_is_read() {
        let said = |success: f64, rate: f64| {
            format!(
                r#"{{"summary": {{"successRate": {success}, "slowest": 0.01, "fastest": 0.0001, "requestsPerSec": {rate}}},
                "latencyPercentiles": {{"p10": 0.0002, "p50": 0.0005, "p99": 0.002, "p99.9": 0.003, "p99.99": 0.01}}}}"#
            )
        };
        let times_of = times(&said(1.0, 999.0)).unwrap();
        let at = |share: f64| times_of.iter().find(|(s, _)| *s == share).map(|(_, t)| t.round());
        assert_eq!(
            (at(0.5), at(0.999), at(1.0)),
            (Some(500.0), Some(3000.0), Some(10_000.0))
        );
        assert_eq!(at(0.9), None);
        assert!(times(&said(0.5, 999.0)).is_err() && times(&said(1.0, 500.0)).is_err());
        assert!(times("no").is_err());
    }
}
