//! The commands for people. Each asks a running agent, reads files or cleans up, and prints; none of them carries
//! traffic.

mod ask;
pub mod ca;
pub mod explain;
mod page;
pub mod release;
pub mod status;
