//! Where the mesh comes from. Each feed ends in a [`crate::mesh::Mesh`]; nobody else knows which one it was.
//!
//! Here today: a file, which needs no cluster. Called by `node`.

pub mod file;
mod on_demand;

pub use file::{FeedError, FileWatch, LocalPod, MeshFile, MeshFileError, Problem, load, parse};
pub use on_demand::{Answer, Lookup, Lookups, OnDemand, on_demand};
