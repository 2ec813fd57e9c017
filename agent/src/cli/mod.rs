//! The commands for people. Each asks a running agent, or reads files, and prints; none of them carries traffic.

pub mod ca;
pub mod status;
