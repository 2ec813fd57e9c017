//! A profile of those who carry the traffic while a load plays: `perf record` of all their threads, with call stacks.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use weft_tests::process::Process;

use crate::stage::Carriers;

/// Samples a second and thread, by the clock: a virtual machine may have no counters. Odd, so that it keeps no step with what
/// happens every millisecond.
const RATE: &str = "997";
/// Until perf has attached itself.
const SETTLE: Duration = Duration::from_millis(500);
/// How long perf may take to write its file.
const WRITE: Duration = Duration::from_secs(60);

/// Where the profile goes, if there is to be one.
#[derive(Clone, Debug)]
pub(crate) struct Perf(pub(crate) PathBuf);

impl Perf {
    /// Does `work` while perf looks at the carriers.
    pub(crate) fn during<T>(&self, carriers: &Carriers, work: impl FnOnce() -> T) -> Result<T> {
        let mut perf = record(&self.0, carriers)?;
        thread::sleep(SETTLE);
        let outcome = work();
        perf.signal(Signal::INT).context("end perf")?;
        let ended = weft_tests::wait_until("perf to write its file", WRITE, || perf.exited());
        ended.with_context(|| format!("perf record into {}", self.0.display()))?;
        Ok(outcome)
    }
}

fn record(file: &Path, carriers: &Carriers) -> Result<Process> {
    let pids: Vec<String> = carriers.all().map(|pid| pid.to_string()).collect();
    ensure!(
        !pids.is_empty(),
        "nobody carries this traffic: there is nothing to profile"
    );
    let mut perf = Command::new("perf");
    perf.args([
        "record",
        "--quiet",
        "-e",
        "cpu-clock",
        "-F",
        RATE,
        "--call-graph",
        "dwarf,16384",
    ]);
    perf.arg("-o").arg(file).args(["-p", &pids.join(",")]);
    perf.stdin(Stdio::null());
    Process::spawn(&mut perf, "perf (Debian: linux-perf)")
}
