//! The mesh file: a whole mesh written down by hand or by a program, in YAML (or JSON, which is YAML).
//!
//! Reading it is three steps: `schema` says what may be written, `compile` and the sections' modules say what it means, `watch`
//! looks for changes. Manifests that it names are found by `manifests`, and mean what they mean in a cluster (`objects`). Everything that is wrong with a file is found in one go, each with its line, column and field;
//! a file with anything wrong gives no mesh at all. Not here: what is done with the mesh, and with the error (`node`).

mod balancing;
mod compile;
mod guards;
mod manifests;
mod objects;
mod peer_authentications;
mod policies;
mod position;
mod problem;
mod routes;
mod rules;
mod schema;
mod targets;
mod watch;
mod workloads;

#[cfg(test)]
mod tests;

use std::{net::IpAddr, path::Path, sync::Arc};

pub use problem::{MeshFileError, Problem};
pub use watch::{FeedError, FileWatch, load};

use self::{manifests::ManifestFile, schema::Document};
use crate::{
    mesh::{Mesh, values},
    net::netns::NetnsSource,
};

/// The largest mesh file that is read, in bytes. Some tens of thousands of workloads.
pub const LARGEST_FILE: usize = 16 << 20;

/// What a mesh file says, as one node sees it.
#[derive(Clone, Debug)]
pub struct MeshFile {
    /// The mesh: the same on every node.
    pub mesh: Mesh,
    /// The pods of this node that weft captures.
    pub local_pods: Vec<LocalPod>,
    /// What is legal, but may not be what was meant.
    pub warnings: Vec<Problem>,
}

/// A pod that this node captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The uid of its workload.
    pub uid: Arc<str>,
    /// Its network namespace, for example `/run/netns/curl-1`.
    pub netns: NetnsSource,
    /// The addresses that were found in it, where it was looked into: the API, and so the mesh, may learn them later.
    pub addresses: Vec<IpAddr>,
    /// Whether its DNS queries are captured; where the file does not say, the agent's own setting holds.
    pub dns_capture: Option<bool>,
}

/// Reads the text of a mesh file, as the node of this name sees it. `source` is what errors call the file, and where the manifests
/// are looked for that it names.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, source: &Path, node: &str) -> Result<MeshFile, MeshFileError> {
    let document = schema::read(text);
    let named = document.as_ref().map(|it| manifests::named(it, source));
    let files = manifests::read(&named.unwrap_or_default());
    parse_document(document, &files, source, node)
}

/// The same, of what has been read.
fn parse_document(
    document: Result<Document, Problem>,
    files: &[ManifestFile],
    source: &Path,
    node: &str,
) -> Result<MeshFile, MeshFileError> {
    let problems = match document {
        Ok(document) => match compile::compile(&document, files, node) {
            Ok(file) => return Ok(file),
            Err(problems) => problems,
        },
        Err(problem) => vec![problem],
    };
    Err(MeshFileError {
        source: source.to_owned(),
        problems,
    })
}
