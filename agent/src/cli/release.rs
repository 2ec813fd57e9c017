//! `weft release`: takes weft out of this node's kernel. What an uninstall ends with.

use std::{io, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Args;

use crate::kernel::{
    link::is_bpffs,
    pins::Pins,
    takeover::{Claim, ClaimError},
};

/// Flags of `weft release`.
#[derive(Debug, Args)]
#[command(after_help = "\
From then on the pods' connections are plain TCP, as without weft. Ending an agent does not do this: without an agent
captured pods are refused. Exit codes: 0 nothing of weft is left, 1 an agent still runs or it failed, 2 wrong usage.")]
pub struct ReleaseArgs {
    /// Where the agent had its programs and maps pinned
    #[arg(
        long,
        env = "WEFT_PIN_DIR",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/weft"
    )]
    pub pin_dir: PathBuf,
}

/// Runs `weft release`.
///
/// # Errors
/// When an agent runs, and when bpffs refuses.
pub fn run(args: &ReleaseArgs) -> anyhow::Result<ExitCode> {
    let pins = Pins::new(args.pin_dir.clone());
    let place = args.pin_dir.display();
    if !pins.exists() {
        println!("nothing to release: {place} is not there");
        return Ok(ExitCode::SUCCESS);
    }
    if !is_bpffs(pins.path()).with_context(|| format!("look at {place}"))? {
        bail!("{place} is not on bpffs, so it is none of weft's: is --pin-dir right?");
    }
    if pins
        .is_mount_point()
        .with_context(|| format!("look at {place}"))?
    {
        bail!("{place} is a mount point, in which other programs pin too: is --pin-dir right?");
    }
    let _claim = match Claim::take(&pins) {
        Err(ClaimError::Busy { pid, .. }) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            bail!(
                "a weft agent{pid} runs with the pins in {place}: end it first, or its pods would be captured again"
            )
        }
        claim => claim?,
    };
    let (pods, links) = pins.attached();
    match pins.remove() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(
            "an agent that another one has replaced still has connections, which need the pins in {place}: end it first"
        ),
        removed => removed.with_context(|| format!("remove the pins in {place}"))?,
    }
    println!("released: {pods} pods and {links} programs; nothing of weft is left in {place}");
    Ok(ExitCode::SUCCESS)
}
