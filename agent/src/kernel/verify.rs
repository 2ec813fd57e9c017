//! Whether the kernel accepts the programs: each is loaded, nothing is attached or pinned. Called by tests.

use aya::{
    EbpfError, EbpfLoader,
    programs::{Program, ProgramError, ProgramInfo},
};

use super::{load::load_program, preflight};

/// What the verifier said of one program.
#[derive(Debug)]
pub struct Verified {
    /// The program's name.
    pub name: String,
    /// How many instructions the verifier walked through, or why it refused.
    pub result: Result<ProgramInfo, ProgramError>,
}

/// Loads every program of `object` under the verifier, attaches nothing and pins nothing.
///
/// # Errors
/// When the object itself cannot be read or its maps cannot be made.
pub fn verify(object: &[u8]) -> Result<Vec<Verified>, EbpfError> {
    let multipath = preflight::multipath();
    let mut ebpf = EbpfLoader::new()
        .override_global("MULTIPATH", &multipath, true)
        .load(object)?;
    let verify = |(name, program): (&str, &mut Program)| Verified {
        name: name.to_owned(),
        result: load_program(program).and_then(|()| program.info()),
    };
    Ok(ebpf.programs_mut().map(verify).collect())
}
