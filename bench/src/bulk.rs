//! Throughput: a real iperf3 in the client pod sends to one in the server pod, as fast as it goes.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_tests::{LIMIT, process::Process, wait_until};

use crate::stage::Pair;

/// Where its server listens.
pub(crate) const PORT: u16 = 5201;

/// What arrived at the server, over all streams.
#[derive(Debug, PartialEq)]
pub(crate) struct Received {
    pub(crate) gbits_per_second: f64,
    pub(crate) gigabytes: f64,
}

/// Sends over so many connections at once.
pub(crate) fn run(pair: &Pair, streams: usize, seconds: u64) -> Result<Received> {
    let _server = serve(pair)?;
    let mut iperf = pair.client.command("iperf3");
    iperf.args(["--json", "--client", &pair.server.v4().to_string()]);
    iperf.args(["--port", &PORT.to_string(), "--time", &seconds.to_string()]);
    iperf.args(["--parallel", &streams.to_string()]);
    let output = iperf.stdin(Stdio::null()).output().context("run iperf3")?;
    received(&String::from_utf8_lossy(&output.stdout))
}

/// A server for one run: the next one never meets what this one has not put away yet.
fn serve(pair: &Pair) -> Result<Process> {
    let mut iperf = pair.server.command("iperf3");
    iperf.args(["--server", "--one-off", "--port", &PORT.to_string()]);
    iperf
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let server = Process::spawn(&mut iperf, "iperf3")?;
    wait_until("iperf3 to listen", LIMIT, || pair.server.netns().listens_on(PORT))?;
    Ok(server)
}

/// Reads how much the server says that it has got.
fn received(said: &str) -> Result<Received> {
    let said: Value = serde_json::from_str(said).context("iperf3 does not answer in JSON")?;
    if let Some(error) = said.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    let number = |what: &str| said.pointer(&format!("/end/sum_received/{what}"))?.as_f64();
    let (bits, bytes) = number("bits_per_second")
        .zip(number("bytes"))
        .context("iperf3 does not say how much was received")?;
    Ok(Received {
        gbits_per_second: bits / 1e9,
        gigabytes: bytes / 1e9,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iperf3_says_is_read() {
        let good = r#"{"end": {"sum_sent": {"bytes": 9}, "sum_received": {"bytes": 2e9, "bits_per_second": 8.5e9}}}"#;
        let expected = Received {
            gbits_per_second: 8.5,
            gigabytes: 2.0,
        };
        assert_eq!(received(good).unwrap(), expected);
        for bad in [
            r#"{"start": {}, "error": "unable to connect to server: Connection refused"}"#,
            r#"{"end": {}}"#,
            "",
        ] {
            assert!(received(bad).is_err(), "{bad}");
        }
    }
}
