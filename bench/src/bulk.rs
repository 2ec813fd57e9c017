//! Throughput: a real iperf3 in the client pod sends to one in the server pod, as fast as it goes.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_tests::{LIMIT, process::Process, wait_until};

use crate::stage::Pair;

/// Where its server listens.
pub(crate) const PORT: u16 = 5201;

/// Whether this machine has iperf3.
pub(crate) fn available() -> bool {
    let probe = Command::new("iperf3")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok()
}

/// Gbit/s that reached the server, over all streams.
pub(crate) fn run(pair: &Pair, streams: usize, seconds: u64) -> Result<f64> {
    let _server = serve(pair)?;
    let mut iperf = pair.client.command("iperf3");
    iperf.args(["--json", "--client", &pair.server.v4().to_string()]);
    iperf.args(["--port", &PORT.to_string(), "--time", &seconds.to_string()]);
    iperf.args(["--parallel", &streams.to_string()]);
    let output = iperf.stdin(Stdio::null()).output().context("run iperf3")?;
    received(&String::from_utf8_lossy(&output.stdout)).map(|bits| bits / 1e9)
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

/// Reads how many bits per second the server says that it has got.
fn received(said: &str) -> Result<f64> {
    let said: Value = serde_json::from_str(said).context("iperf3 does not answer in JSON")?;
    if let Some(error) = said.get("error").and_then(Value::as_str) {
        bail!("iperf3: {error}");
    }
    let bits = said.pointer("/end/sum_received/bits_per_second");
    bits.and_then(Value::as_f64)
        .context("iperf3 does not say how much was received")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_iperf3_says_is_read() {
        let good =
            r#"{"end": {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 8.5e9}}}"#;
        assert!((received(good).unwrap() - 8.5e9).abs() < 1.0);
        for bad in [
            r#"{"start": {}, "error": "unable to connect to server: Connection refused"}"#,
            r#"{"end": {}}"#,
            "",
        ] {
            assert!(received(bad).is_err(), "{bad}");
        }
    }
}
