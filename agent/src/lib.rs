//! weft: a sidecarless service mesh.
//!
//! The module list is the reading guide. Imports go down only: each line uses what stands on lower lines.

pub mod args;
pub mod cli;
pub mod controller;
pub mod node;
pub mod waypoint;

pub mod limits;
pub mod source;

pub mod admin;
pub mod dns;
pub mod feed;
pub mod hbone;
pub mod kernel;
pub mod svid;
pub mod telemetry;

pub mod manifests;

pub mod cluster;

pub mod rpc;

pub mod net;

pub mod mesh;
