//! The commands for people. Each asks a running agent, reads files or cleans up, and prints; none of them carries
//! traffic.

pub mod ca;
pub mod release;
pub mod status;
