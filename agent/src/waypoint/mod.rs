//! The role of a waypoint: layer 7 of a namespace.

pub mod grpc;
pub mod headers;
pub mod jwt;
