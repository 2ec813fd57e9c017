//! What the agent may do: no more than it needs, from its first line on. Called by `main`, before any thread is started,
//! since capabilities belong to threads and new ones inherit them.

use std::io;

use rustix::{
    fs::Mode,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
    },
};

use super::preflight::CAPABILITIES;

/// Gives up every capability but those that `preflight` asks for, for good: nothing that this process starts, not even a
/// program that is set-user-ID, has more.
///
/// It is not an error when some of those are missing: `preflight` says that in words.
///
/// # Errors
/// Those of the kernel.
pub fn keep_needed() -> io::Result<()> {
    let needed = CAPABILITIES.map(|(bit, ..)| CapabilitySet::from_bits_retain(1 << bit));
    keep(needed.into_iter().collect())
}

/// Gives up every capability, for good: a waypoint needs none.
///
/// # Errors
/// Those of the kernel.
pub fn keep_none() -> io::Result<()> {
    keep(CapabilitySet::empty())
}

fn keep(needed: CapabilitySet) -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    let held = capabilities(None)?;
    // Where it may not be changed (without CAP_SETPCAP) it grants nothing either: no_new_privs is set.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << bit);
            if needed.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                // The kernel's last one was before this.
                Err(rustix::io::Errno::INVAL) => break,
                removed => removed?,
            }
        }
    }
    let kept = held.permitted & needed;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    Ok(())
}

/// Lets nobody else read what this process writes: files, folders, pins on bpffs.
pub fn write_private_files() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}
