//! Pinning everything that takes part in a load to one core: what it costs when nothing runs in parallel, without the
//! noise of threads that move.

use std::fs;

use anyhow::{Context, Result};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use crate::stage::Carriers;

/// The first core that this process may use.
pub(crate) fn first() -> Result<usize> {
    let allowed = allowed()?;
    (0..CpuSet::MAX_CPU)
        .find(|core| allowed.is_set(*core))
        .context("no core may be used")
}

fn allowed() -> Result<CpuSet> {
    sched_getaffinity(None).context("ask which cores may be used")
}

/// Does `work` with this thread, those that it starts, and every thread of those who carry the traffic on one core.
pub(crate) fn pinned<T>(core: usize, carriers: &Carriers, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = allowed()?;
    let mut one = CpuSet::new();
    one.set(core);
    let outcome = confine(carriers, &one).and_then(|()| work());
    // In any case: a failed load must not slow the others down.
    confine(carriers, &before)?;
    outcome
}

fn confine(carriers: &Carriers, cores: &CpuSet) -> Result<()> {
    sched_setaffinity(None, cores).context("pin this thread")?;
    for pid in carriers.all() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .with_context(|| format!("list the threads of process {pid}"))?;
        for task in tasks {
            let task = task?.file_name();
            let task = task.to_str().and_then(|task| task.parse().ok());
            let task = task.and_then(Pid::from_raw);
            // A thread may have ended since.
            let _ = task.map(|task| sched_setaffinity(Some(task), cores));
        }
    }
    Ok(())
}
