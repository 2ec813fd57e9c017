//! Recordings of a real API server, and how they are replayed.

pub(crate) mod client;
pub(crate) mod compare;
pub(crate) mod parse;
pub(crate) mod replay;
pub(crate) mod setup;

use std::path::Path;

use anyhow::{Context, Result};

/// A recording, by the name of its file.
pub(crate) fn read(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("kube-transcripts")
        .join(file);
    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}
