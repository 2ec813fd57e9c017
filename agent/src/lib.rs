//! weft: a sidecarless service mesh.
//!
//! The module list is the reading guide; each layer uses only those above it in this list.

pub mod hbone;
pub mod kernel;
pub mod feed;
pub mod mesh;
pub mod net;
pub mod svid;
pub mod admin;
pub mod cli;
pub mod telemetry;
pub mod args;
pub mod node;
