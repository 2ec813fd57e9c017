//! Why the programs could not be brought to work.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

use super::super::{preflight::PreflightError, takeover::ClaimError};

/// Why the programs could not be brought to work.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The machine does not offer what is needed.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// Another agent owns the pins.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The object or its maps.
    #[error(
        "load the eBPF object with its maps pinned in {pin_dir}; to begin anew, end the agent and run `weft release`"
    )]
    Object {
        /// Where the maps are pinned.
        pin_dir: PathBuf,
        /// Why.
        source: Box<EbpfError>,
    },
    /// One program.
    #[error("load or attach program {program}")]
    Program {
        /// Which.
        program: &'static str,
        /// Why; the verifier's log is in it.
        source: Box<ProgramError>,
    },
    /// A link's pin.
    #[error("open, pin or replace {0}")]
    Link(PathBuf, #[source] io::Error),
    /// A map that does not fit.
    #[error("open the maps pinned in {pin_dir}; to begin anew, end the agent and run `weft release`")]
    Maps {
        /// Where the maps are pinned.
        pin_dir: PathBuf,
        /// Why.
        source: Box<MapError>,
    },
    /// The cgroup to attach at.
    #[error("open the cgroup {0}")]
    Cgroup(PathBuf, #[source] io::Error),
}
