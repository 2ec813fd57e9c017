//! A waypoint's worker with real sockets, on loopback.

mod drain;
mod floods;
mod hbone;
mod http1;
mod http2;
mod policies;
mod retries;
mod rules;
mod tcp;
mod world;
