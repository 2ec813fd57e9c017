//! `test`: the README's test command. It makes the machine ready, builds everything once, runs every test binary under a
//! time limit, sweeps, and ends in one line, `N passed, N failed`, with which the exit code agrees. After a failure or
//! Ctrl-C it sweeps all the same, and a run that left something behind has failed.

mod interrupt;
pub(crate) mod kube;
mod libtest;
mod process;
pub(crate) mod rehearse;

use std::{
    fmt,
    io::Write,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
pub(crate) use interrupt::Interrupt;
use libtest::Tally;
pub(crate) use process::{Ending, stream};

use crate::{
    build::{self, TestBinary},
    preflight, setup, shell,
};

/// How long one test binary may take.
pub(crate) const LIMIT: Duration = Duration::from_mins(10);
const BUILD: &str = "building weft, its eBPF programs and the tests";
/// Integration tests wait more than they compute, but each brings up nodes of its own.
const INTEGRATION_THREADS: &str = "--test-threads=2";

/// Those that play beside the others.
const ASIDE: [&str; 1] = ["controller"];

/// One test binary's outcome.
struct Row {
    title: String,
    tally: Tally,
    took: Duration,
}

impl Row {
    /// Something that has no tests.
    fn of((title, took): (&str, Duration)) -> Self {
        Self {
            title: title.to_owned(),
            tally: Tally::default(),
            took,
        }
    }
}

/// What was done before the tests, and how long it took: the table at the end has it, too.
pub(crate) type Before = Vec<(&'static str, Duration)>;

/// Runs the tests whose name contains the filter.
///
/// # Errors
/// A test failed, something was left behind, or the tests could not be run.
pub(crate) fn run(filter: Option<&str>, install: bool, before: Before) -> Result<()> {
    setup::run(setup::Options {
        install,
        tests: true,
        dev: false,
    })?;
    preflight::run()?;
    step(BUILD);
    let since = Instant::now();
    let artifacts = build::everything(&shell::root(), None)?;
    build::next_layout()?;
    let built = (BUILD, since.elapsed());
    for gone in weft_tests::sweep()? {
        println!("swept {gone}, which a run that died had left");
    }
    let interrupt = Interrupt::listen()?;
    let mut run = Run {
        rows: before.into_iter().chain([built]).map(Row::of).collect(),
        pids: Vec::new(),
    };
    let of_binary = |binary: &TestBinary| {
        let mut command = command(binary, filter);
        if let Some(weft) = &artifacts.weft {
            command.env("WEFT_BIN", weft);
        }
        (binary.title(), command)
    };
    let (aside, others): (Vec<_>, Vec<_>) = artifacts.tests.iter().partition(|binary| waits(binary));
    thread::scope(|scope| {
        let aside = scope.spawn(|| {
            let played = aside.into_iter().map(of_binary);
            let played = played.map(|(title, mut command)| Aside::play(title, &mut command, &interrupt));
            played.collect::<Result<Vec<_>>>()
        });
        for (title, mut command) in others.into_iter().map(of_binary) {
            if !interrupt.came() {
                run.row(title, &mut command, &interrupt)?;
            }
        }
        let aside = aside
            .join()
            .map_err(|_| anyhow!("the tests beside the others panicked"))??;
        aside.into_iter().for_each(|played| run.take(played));
        anyhow::Ok(())
    })?;
    if !interrupt.came() {
        let mut cargo = shell::cargo();
        cargo
            .args(["test", "--quiet", "--workspace", "--doc", "--"])
            .args(filter);
        run.row("examples in the documentation".into(), &mut cargo, &interrupt)?;
    }
    run.leftovers()?;
    run.report(interrupt.came())
}

/// Announces what takes time.
pub(crate) fn step(what: &str) {
    println!("\n== {what}");
    // The next line is another program's: ours must be out before it.
    let _ = std::io::stdout().flush();
}

/// What cargo would run for a test binary.
pub(crate) fn command(binary: &TestBinary, filter: Option<&str>) -> Command {
    let mut command = Command::new(&binary.executable);
    command
        .current_dir(&binary.package_dir)
        .env("CARGO_MANIFEST_DIR", &binary.package_dir)
        .args(filter);
    if binary.integration() {
        command.arg(INTEGRATION_THREADS);
    }
    command
}

/// Runs one binary. Answers with its number, if it has ended by itself.
fn play(
    title: String,
    command: &mut Command,
    interrupt: &Interrupt,
    mut on_line: impl FnMut(&str),
) -> Result<(Row, Option<u32>)> {
    let started = Instant::now();
    let mut tally = Tally::default();
    let (pid, ending) = stream(command, LIMIT, interrupt, |line| {
        on_line(line);
        tally.line(line);
    })?;
    tally.end(&ending);
    let pid = match ending {
        Ending::Exited(_) => Some(pid),
        // Killed: it had no chance to clean up.
        _ => {
            on_line(&format!("{title}: {ending}"));
            None
        }
    };
    let took = started.elapsed();
    Ok((Row { title, tally, took }, pid))
}

/// Whether a binary waits for clocks of minutes, and needs little of the machine meanwhile.
fn waits(binary: &TestBinary) -> bool {
    binary.integration() && ASIDE.contains(&binary.target.as_str())
}

/// What was played beside the others; it is printed when they have ended.
struct Aside {
    row: Row,
    pid: Option<u32>,
    lines: Vec<String>,
}

impl Aside {
    fn play(title: String, command: &mut Command, interrupt: &Interrupt) -> Result<Self> {
        let mut lines = Vec::new();
        let (row, pid) = play(title, command, interrupt, |line| lines.push(line.to_owned()))?;
        Ok(Self { row, pid, lines })
    }
}

struct Run {
    rows: Vec<Row>,
    /// The test processes that ended by themselves: what they made carries their number.
    pids: Vec<u32>,
}

impl Run {
    fn row(&mut self, title: String, command: &mut Command, interrupt: &Interrupt) -> Result<()> {
        step(&title);
        let (row, pid) = play(title, command, interrupt, |line| println!("{line}"))?;
        self.pids.extend(pid);
        self.rows.push(row);
        Ok(())
    }

    /// Takes what was played beside the others.
    fn take(&mut self, Aside { row, pid, lines }: Aside) {
        step(&row.title);
        println!("{}", lines.join("\n"));
        self.pids.extend(pid);
        self.rows.push(row);
    }

    /// Sweeps. What a process of this run made and did not remove is a failure of this run.
    fn leftovers(&mut self) -> Result<()> {
        let started = Instant::now();
        let swept = weft_tests::sweep()?;
        let ours: Vec<_> = swept.iter().filter(|name| made_by(name, &self.pids)).collect();
        for name in &swept {
            println!("left behind, swept now: {name}");
        }
        if !ours.is_empty() {
            let tally = Tally::failure(format!("{} things were left behind: see above", ours.len()));
            self.rows.push(Row {
                title: "cleanup".into(),
                tally,
                took: started.elapsed(),
            });
        }
        Ok(())
    }

    fn report(&self, interrupted: bool) -> Result<()> {
        let width = self.rows.iter().map(|row| row.title.len()).max().unwrap_or(0);
        println!("\n{:width$}  passed  failed  skipped     time", "");
        let mut all = Tally::default();
        for Row { title, tally, took } in &self.rows {
            let (passed, failed, skipped) = (tally.passed, tally.failed, tally.skipped);
            println!(
                "{title:width$}  {passed:6}  {failed:6}  {skipped:7}  {:6.1}s",
                took.as_secs_f32()
            );
            all.add(title, tally);
        }
        for skip in &all.skips {
            println!("SKIPPED {skip}");
        }
        for name in &all.failures {
            println!("FAILED {name}");
        }
        if interrupted {
            println!("interrupted: not everything ran");
        } else if all.passed + all.failed == 0 {
            println!("no test ran: is there one with this in its name?");
        }
        println!("\n{all}");
        if interrupted || all.failed > 0 || all.passed == 0 {
            return Err(Failed.into());
        }
        Ok(())
    }
}

/// The count line, which is the last, has said it already.
#[derive(Debug)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the tests failed")
    }
}

impl std::error::Error for Failed {}

/// Whether a name like `weft-<pid>-<start>-<serial>` in a text carries one of these processes.
fn made_by(text: &str, pids: &[u32]) -> bool {
    text.split(weft_tests::run::PREFIX).skip(1).any(|after| {
        let pid = after.split('-').next().and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_told_by_the_process_that_made_them() {
        assert!(made_by("namespace weft-12-34567-1-node-a", &[11, 12]));
        assert!(made_by("pins /sys/fs/bpf/weft-12-34567-1-a", &[12]));
        assert!(!made_by("cgroup /sys/fs/cgroup/weft-123-34567-1", &[12, 34567]));
        assert!(!made_by("something else", &[12]));
    }
}
