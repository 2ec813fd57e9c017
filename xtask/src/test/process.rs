//! A process in a group of its own, its lines given out as they come, with an end in every case: it exits, it is out of
//! time, or somebody asked us to stop. In the last two cases the whole group is killed, and with it the agents that the
//! tests started.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::Interrupt;
use crate::shell;

/// How often the loop looks at the clock and the interrupt.
const TURN: Duration = Duration::from_millis(50);
/// How long a process has to end by itself, and how long output may come after it has ended.
const GRACE: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself.
    Exited(ExitStatus),
    /// Killed after this time.
    TimedOut(Duration),
    /// Killed because we were asked to stop.
    Interrupted,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "ended with {status}, which its result line does not tell"),
            Self::TimedOut(limit) => write!(f, "killed after {} s: its last test hangs", limit.as_secs()),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// Runs a process to its end; returns its id and its ending.
///
/// # Errors
/// It could not be started or waited for.
pub(crate) fn stream(
    command: &mut Command,
    limit: Duration,
    interrupt: &Interrupt,
    mut on_line: impl FnMut(&str),
) -> Result<(u32, Ending)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run `{}`", shell::show(command)))?;
    let lines = lines(child.stdout.take().context("a child without its pipe")?);
    let started = Instant::now();
    let ending = loop {
        match lines.recv_timeout(TURN) {
            Ok(line) => on_line(&line),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait()? {
                    break Ending::Exited(status);
                }
            }
        }
        if interrupt.came() {
            break Ending::Interrupted;
        }
        if started.elapsed() > limit {
            break Ending::TimedOut(limit);
        }
    };
    end(&mut child)?;
    rest(&lines, on_line);
    Ok((child.id(), ending))
}

/// Ends what is left of the group: politely, then not.
fn end(child: &mut Child) -> Result<()> {
    let group = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a child without an id")?;
    // The group may be gone already.
    let _ = kill_process_group(group, Signal::TERM);
    let asked = Instant::now();
    while child.try_wait()?.is_none() && asked.elapsed() < GRACE {
        thread::park_timeout(TURN);
    }
    let _ = kill_process_group(group, Signal::KILL);
    child.wait()?;
    Ok(())
}

/// Lines that were still in the pipe. A stray process may hold it open for ever, so this has an end too.
fn rest(lines: &Receiver<String>, mut on_line: impl FnMut(&str)) {
    let started = Instant::now();
    while let Ok(line) = lines.recv_timeout(TURN * 4) {
        on_line(&line);
        if started.elapsed() > GRACE {
            break;
        }
    }
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            if send.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration, came: bool) -> (Vec<String>, Ending) {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let (_, ending) = stream(&mut command, limit, &Interrupt::fixed(came), |line| {
            lines.push(line.to_owned());
        })
        .unwrap();
        (lines, ending)
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn lines_and_status_are_given() {
        let (lines, ending) = sh("echo a; printf 'b\\377'; exit 3", LONG, false);
        assert_eq!(lines, ["a", "b\u{fffd}"]);
        assert!(matches!(ending, Ending::Exited(status) if status.code() == Some(3)));
    }

    #[test]
    fn a_hang_ends_and_takes_its_children_along() {
        let script = "echo begun; sleep 1000 & echo $!; wait";
        let (lines, ending) = sh(script, Duration::from_millis(300), false);
        assert_eq!(ending, Ending::TimedOut(Duration::from_millis(300)));
        assert_eq!(lines[0], "begun");
        assert!(ended(&lines[1]), "the child lives on");
    }

    #[test]
    fn a_child_that_outlives_the_process_does_not_hold_us() {
        let started = Instant::now();
        let (lines, ending) = sh("sleep 1000 & echo $!", LONG, false);
        assert!(matches!(ending, Ending::Exited(status) if status.success()));
        assert!(started.elapsed() < Duration::from_secs(30) && ended(&lines[0]));
    }

    #[test]
    fn an_interrupt_ends_it() {
        assert_eq!(sh("sleep 1000", LONG, true).1, Ending::Interrupted);
    }

    /// Gone, or dead and waiting for whoever inherited it.
    fn ended(pid: &str) -> bool {
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        (0..200).any(|_| {
            thread::park_timeout(TURN / 5);
            gone()
        })
    }
}
