//! The commands for people. Each asks a running agent, reads files or cleans up, and prints; none of them carries
//! traffic.

use std::{io, process::ExitCode};

use anyhow::Context;

pub mod analyze;
mod ask;
pub mod ca;
pub mod enroll;
pub mod explain;
pub mod mount_bpffs;
mod page;
pub mod release;
pub mod status;
pub mod test_app;
pub mod uninstall;
pub mod waypoints;

/// What a command that has printed exits with. Nothing to print to any more is no error: `weft status | head`.
///
/// # Errors
/// When printing failed in any other way.
fn exit_code(printed: io::Result<impl Into<ExitCode>>, failed: &'static str) -> anyhow::Result<ExitCode> {
    match printed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        printed => printed.map(Into::into).context(failed),
    }
}
