//! Where the mesh comes from. Each feed ends in a [`crate::mesh::Mesh`]; nobody else knows which one it was.
//!
//! Here today: a file, which needs no cluster. Called by `node`.

pub mod file;

pub use file::{FeedError, FileWatch, LocalPod, MeshFile, MeshFileError, Problem, load, parse};
