//! How deep a cgroup lies in the whole tree. Its programs know cgroups by their levels, and a node that is a container (kind, k3d)
//! has a cgroup namespace, in which the tree begins with the node: the kernel is asked.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use aya::{
    EbpfError, EbpfLoader,
    programs::{ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun as _},
};
use thiserror::Error;

/// The id of the root of cgroup2 in every kernel.
const ROOT: u64 = 1;

/// The program, which has no maps.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-depth.o"));
const PROGRAM: &str = "weft_depth";

#[derive(Debug, Error)]
enum DepthError {
    #[error("load it")]
    Load(#[from] EbpfError),
    #[error("run it")]
    Run(#[from] ProgramError),
    #[error("{PROGRAM} is not in the object")]
    Missing,
}

/// The level of the cgroup that a folder is, counted from the root of the whole tree. `None` where the root cannot be seen and this
/// process is not in that cgroup, nor in one below it.
pub fn of(folder: &Path) -> Option<u32> {
    let id = fs::metadata(folder).ok()?.ino();
    if id == ROOT {
        return Some(0);
    }
    let asked = ask(id);
    asked
        .inspect_err(|error| tracing::debug!(%error, folder = %folder.display(), "the kernel does not say how deep a cgroup lies"))
        .ok()?
}

fn ask(id: u64) -> Result<Option<u32>, DepthError> {
    let mut object = EbpfLoader::new().load(OBJECT)?;
    let program = object.program_mut(PROGRAM).ok_or(DepthError::Missing)?;
    let program: &mut RawTracePoint = program.try_into()?;
    program.load()?;
    let mut options = RawTracePointRunOptions::new();
    options.args[0] = id;
    let level = program.test_run(options)?.return_value.cast_signed();
    Ok(u32::try_from(level).ok())
}
