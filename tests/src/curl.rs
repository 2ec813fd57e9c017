//! A real curl in a pod.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::host::Host;

/// What curl did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curled {
    /// curl's exit code: 0, 7 for a refused connection, 28 for a timeout, 52 for an empty reply, 56 for a reset.
    pub exit: i32,
    /// The HTTP status; 0 where there was none.
    pub status: u16,
    /// The body.
    pub body: String,
    /// What curl complained about.
    pub stderr: String,
}

/// Runs curl in a pod, or on a node, with these arguments; it gives up after 10 s.
pub fn curl(host: &Host, args: &[&str]) -> Result<Curled> {
    let mut command = host.command("curl");
    command
        .args([
            "-sS",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "-w",
            "\n%{http_code}",
        ])
        .args(args);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("run curl: is it installed?")?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let (body, status) = stdout.rsplit_once('\n').unwrap_or((&stdout, "0"));
    Ok(Curled {
        exit: output.status.code().unwrap_or(-1),
        status: status.parse().unwrap_or(0),
        body: body.to_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
