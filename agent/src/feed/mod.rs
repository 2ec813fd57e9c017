//! Where the mesh comes from. Each feed ends in a [`crate::mesh::Mesh`]; nobody else knows which one it was.
//!
//! Two feeds: a file, which needs no cluster, and a controller's discovery service (`client`), whose other end is `server`. Called by
//! `node` and by `controller`.

pub mod client;
pub mod file;
mod on_demand;
mod push;
pub mod server;
pub mod store;
pub mod wds;

pub use file::{FeedError, FileWatch, LocalPod, MeshFile, MeshFileError, Problem, load, parse};
pub use on_demand::{Answer, Lookup, Lookups, OnDemand, on_demand};
