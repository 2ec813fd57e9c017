//! `weft mount-bpffs`: mounts bpffs where a node has none. Not for people: the chart's init container runs it where the value
//! `agent.node.mountBpffs` asks for it, in a privileged container whose mounts are the node's.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use rustix::mount::{MountFlags, mount};

use crate::kernel::link::is_bpffs;

/// Arguments of `weft mount-bpffs`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Where the kernel expects it: the node's /sys/fs/bpf
    pub dir: PathBuf,
}

/// Runs `weft mount-bpffs`.
///
/// # Errors
/// When the folder is not there, or the kernel refuses.
pub fn run(args: &MountArgs) -> anyhow::Result<ExitCode> {
    let place = args.dir.display();
    if is_bpffs(&args.dir).with_context(|| format!("look at {place}"))? {
        println!("{place} is bpffs");
        return Ok(ExitCode::SUCCESS);
    }
    let private = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", &args.dir, "bpf", private, c"mode=0700")
        .with_context(|| format!("mount bpffs on {place}"))?;
    println!("mounted bpffs on {place}");
    Ok(ExitCode::SUCCESS)
}
