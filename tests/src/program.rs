//! Small programs of other languages that run in pods, from `tests/apps`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{host::Host, process::Process, wait::wait_until};

/// Python as Debian packages it, not another one that may come first in PATH.
pub const PYTHON: &str = "/usr/bin/python3";

/// How long a program may take to start on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The source of a program.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps").join(name)
}

/// Runs a command to its end and hands back what it printed; an error with all that it said unless it succeeds.
pub fn run(command: &mut Command, what: &str) -> Result<String> {
    command.stdin(Stdio::null());
    succeeded(command.output().with_context(|| format!("start {what}"))?, what)
}

/// What a program that has ended printed; an error with all that it said unless it succeeded.
pub fn succeeded(output: Output, what: &str) -> Result<String> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (status, said, complained) = (output.status, text(output.stdout), text(output.stderr));
    ensure!(status.success(), "{what}: {status}\n{said}{complained}");
    Ok(said)
}

/// Starts a server in a pod and waits until it listens on `port`. It ends when it is dropped.
pub fn serve(command: &mut Command, pod: &Host, port: u16, what: &str) -> Result<Process> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process = Mutex::new(Process::spawn(command, what)?);
    let ended = || {
        let mut process = process.lock().unwrap_or_else(PoisonError::into_inner);
        process.exited()
    };
    let listens = || {
        let listens = pod.netns().listens_on(port).then_some(Ok(()));
        listens.or_else(|| ended().map(|status| Err(format!("{what} ended: {status}"))))
    };
    wait_until(&format!("{what} to listen on {port}"), START_LIMIT, listens)?.map_err(anyhow::Error::msg)?;
    Ok(process.into_inner().unwrap_or_else(PoisonError::into_inner))
}
