//! A waypoint's worker with real sockets, on loopback.

mod http1;
mod world;
