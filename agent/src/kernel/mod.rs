//! weft's side of the kernel: loading the eBPF programs, attaching and pinning them, and writing their maps.
//!
//! What is pinned outlives the agent: the programs go on and, without listeners to hand connections to, refuse. The
//! next agent adopts the pins. Called by the node role only.

pub mod depth;
pub mod dns;
pub mod events;
pub mod folders;
pub mod link;
pub mod load;
pub mod maps;
pub mod memory;
pub mod pins;
pub mod preflight;
pub mod privileges;
pub mod selftest;
pub mod takeover;
pub mod verdicts;
pub mod verify;

/// The programs without logging: release builds load these.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-ebpf.o"));

/// The programs with logging of each decision through aya-log.
#[cfg(debug_assertions)]
pub static OBJECT_WITH_LOG: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-ebpf-log.o"));

/// The object that this build loads.
pub fn object() -> &'static [u8] {
    #[cfg(debug_assertions)]
    return OBJECT_WITH_LOG;
    #[cfg(not(debug_assertions))]
    OBJECT
}
