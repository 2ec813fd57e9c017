//! The demo: two nodes, real programs, and the evidence that the mesh does what it says.

use anyhow::{Result, bail};

/// Runs the demo.
///
/// # Errors
/// The demo is not built yet.
pub(crate) fn run(_keep: bool, _install: bool) -> Result<()> {
    bail!("the demo is not built yet")
}
