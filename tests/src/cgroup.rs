//! A cgroup of the world's own, in the unified hierarchy. eBPF programs are attached to these, never to the machine's.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::wait::wait_until;

/// How long the processes of a cgroup may take to be gone once they were killed.
const EMPTY_LIMIT: Duration = Duration::from_secs(10);

/// A directory of the unified hierarchy, and the open file by which processes join it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    procs: File,
}

impl Cgroup {
    /// Makes the cgroup; its parent must exist.
    pub fn create(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create cgroup {}", path.display()))?;
        Self::open(path)
    }

    /// One that is there.
    pub fn open(path: PathBuf) -> Result<Self> {
        let procs = OpenOptions::new()
            .write(true)
            .open(path.join("cgroup.procs"))
            .with_context(|| format!("open cgroup.procs of {}", path.display()))?;
        Ok(Self { path, procs })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the calling process in. Makes one system call and allocates nothing: it is called between fork and exec.
    pub fn join(&self) -> io::Result<()> {
        rustix::io::write(&self.procs, b"0")?;
        Ok(())
    }
}

/// Ends what still runs under `path` and removes it with everything below. A cgroup that is gone already is fine.
///
/// Only processes that were started into one of our cgroups can be in there, so `cgroup.kill` ends nobody else's.
pub fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("kill what runs in {}", path.display()))?;
    wait_until(
        &format!("cgroup {} to be empty", path.display()),
        EMPTY_LIMIT,
        || is_empty(path),
    )?;
    remove_empty(path).with_context(|| format!("remove cgroup {}", path.display()))
}

fn is_empty(path: &Path) -> bool {
    match fs::read_to_string(path.join("cgroup.events")) {
        Ok(events) => events.lines().any(|line| line == "populated 0"),
        Err(_) => true,
    }
}

/// Removes the directories bottom-up. The files in them are the kernel's and go with their directory.
fn remove_empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    remove_dir_patiently(path)
}

/// A cgroup stays busy for a moment after its last process was reaped.
fn remove_dir_patiently(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match fs::remove_dir(path) {
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy && tries < 100 => tries += 1,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
        thread::sleep(Duration::from_millis(10));
    }
}
