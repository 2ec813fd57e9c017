//! Removing what worlds left: one world's things when it ends, and those of dead processes before and after a test run.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cgroup, machine, netns,
    run::{NETNS_DIR, RunId, TEMP_DIR},
};

/// Removes everything that worlds of processes that no longer live have left behind, and says what that was. Worlds of
/// living processes, and files kept after a failure, stay.
pub fn sweep() -> Result<Vec<String>> {
    let cgroups = machine::cgroup2_root()?;
    let mut removed = Vec::new();
    for run in dead_runs(&cgroups) {
        for outcome in remove_run(&run, &cgroups.join(run.to_string())) {
            removed.push(outcome?);
        }
    }
    Ok(removed)
}

/// The runs of dead processes of which something is left anywhere.
fn dead_runs(cgroups: &Path) -> Vec<RunId> {
    let places = [
        cgroups,
        Path::new(machine::BPFFS),
        Path::new(NETNS_DIR),
        Path::new(TEMP_DIR),
    ];
    let mut runs: Vec<RunId> = Vec::new();
    for (run, _) in places.into_iter().flat_map(entries) {
        if !run.alive() && !runs.contains(&run) {
            runs.push(run);
        }
    }
    runs
}

/// Removes what carries the run's name. Processes go first, so that nothing is in use; each outcome names what it
/// removed.
pub(crate) fn remove_run(run: &RunId, cgroup: &Path) -> Vec<Result<String>> {
    let mut outcomes = Vec::new();
    if cgroup.exists() {
        outcomes.push(cgroup::remove_tree(cgroup).map(|()| format!("cgroup {}", cgroup.display())));
    }
    // Those of nodes that have theirs beside one another.
    let beside = cgroup.parent().into_iter().flat_map(entries);
    for (_, path) in beside.filter(|(owner, _)| owner == run) {
        if path.exists() {
            outcomes.push(cgroup::remove_tree(&path).map(|()| format!("cgroup {}", path.display())));
        }
    }
    for path in entries_of(run, machine::BPFFS) {
        outcomes.push(remove_dir(&path).map(|()| format!("pins {}", path.display())));
    }
    for path in entries_of(run, NETNS_DIR) {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        outcomes.push(netns::delete(&name).map(|()| format!("namespace {name}")));
    }
    for path in entries_of(run, TEMP_DIR) {
        outcomes.push(remove_dir(&path).map(|()| format!("files {}", path.display())));
    }
    outcomes
}

fn entries_of(run: &RunId, dir: &str) -> Vec<PathBuf> {
    entries(Path::new(dir))
        .into_iter()
        .filter(|(owner, _)| owner == run)
        .map(|(_, path)| path)
        .collect()
}

/// What of ours is in a directory, and whose it is. A directory that cannot be read has nothing of ours.
fn entries(dir: &Path) -> Vec<(RunId, PathBuf)> {
    let Ok(listing) = fs::read_dir(dir) else {
        return Vec::new();
    };
    listing
        .flatten()
        .filter_map(|entry| Some((RunId::parse(entry.file_name().to_str()?)?, entry.path())))
        .collect()
}

/// Removes a directory of our own. In bpffs that unpins: a link whose last reference this was is detached.
fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
