//! Pods on their way into the mesh: they run, and are not captured yet. What their apps dial is refused until they are.
//!
//! A pod is known by its cgroup here, which is there before any of its processes: its network namespace is made later, and
//! its address later still. The agent says which ones (`PENDING`), and at which depth of the tree they lie.

use agent_common::Address;
use aya_ebpf::helpers::bpf_get_current_ancestor_cgroup_id;

use crate::maps::{CONFIG, PENDING};

/// Whether the calling process belongs to such a pod, and what it dials lies outside of it. A pod that shares the node's
/// network namespace (`cookie`) is never captured, so nothing of it is refused.
#[inline(always)]
pub fn is_held(cookie: u64, destination: &Address) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return false;
    };
    if config.pending_level == 0 || cookie == config.node {
        return false;
    }
    if destination.is_loopback() || destination.is_unspecified() || destination.is_v6_link_local() {
        return false;
    }
    is_pending(config.pending_level) || is_pending(config.pending_level_too)
}

#[inline(always)]
fn is_pending(level: u32) -> bool {
    if level == 0 {
        return false;
    }
    // SAFETY: the helper takes a number.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    // SAFETY: only whether there is one.
    cgroup != 0 && unsafe { PENDING.get(&cgroup) }.is_some()
}
