//! Processes that the world starts: where they run, and how they end. A process is only ever ended by its own id.

use std::{
    ffi::OsStr,
    io,
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    process::{Gid, Pid, Signal, Uid, kill_process},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::{cgroup::Cgroup, netns::Netns};

/// Where a process runs: its network namespace, its cgroup, and the user it runs as.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace whose network it sees.
    pub netns: Arc<Netns>,
    /// The cgroup whose eBPF programs see it.
    pub cgroup: Arc<Cgroup>,
    /// The user and group id; 0 stays root.
    pub uid: u32,
}

impl Place {
    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let place = self.clone();
        // SAFETY: between fork and exec `settle` makes system calls only: it neither allocates nor takes a lock.
        unsafe { command.pre_exec(move || place.settle()) };
        command
    }

    /// Moves the calling process here. The user comes last, since the rest needs root.
    fn settle(&self) -> io::Result<()> {
        self.cgroup.join()?;
        self.netns.enter()?;
        become_user(self.uid)
    }
}

/// Turns the calling thread, the only one of its process, into this user and group. 0 changes nothing.
pub fn become_user(uid: u32) -> io::Result<()> {
    if uid == 0 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    Ok(())
}

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
}

impl Process {
    /// Starts `command`; `what` names it in errors.
    pub fn spawn(command: &mut Command, what: &str) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("start {what}"))?;
        Ok(Self {
            child,
            what: what.to_owned(),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input and output, where the command pipes them and nobody has them yet.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        self.child.stdin.take().zip(self.child.stdout.take())
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.exited().is_none() {
            // Not yet reaped, so the id is still this child's.
            kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)
            .with_context(|| format!("kill {}", self.what))?;
        self.child
            .wait()
            .with_context(|| format!("wait for {}", self.what))
    }

    /// SIGTERM, and SIGKILL when it is still there after `limit`. `true` if it ended by itself.
    pub fn terminate(&mut self, limit: Duration) -> Result<bool> {
        self.signal(Signal::TERM)
            .with_context(|| format!("terminate {}", self.what))?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.exited().is_some() {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(2));
        }
        self.kill()?;
        Ok(false)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(err) = self.terminate(Duration::from_secs(2)) {
            eprintln!("{err:#}");
        }
    }
}
