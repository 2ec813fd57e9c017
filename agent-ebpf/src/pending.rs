//! Pods on their way into the mesh: they run, and are not captured yet. What their apps dial is refused until they are.
//!
//! A pod is known by its cgroup here, which is there before any of its processes: its network namespace is made later, and
//! its address later still. The agent says of each whether it is held (`POD_CGROUPS`), and at which depths of the tree they lie.
//! One that the agent has not seen yet is held too, where it lies under the node's pods: an app may be faster than the agent.
//! That lasts no longer than a lease, which an agent renews that looks: one that is gone holds nobody.

use core::ptr::{addr_of, read_volatile};

use agent_common::{Address, Config, pod_cgroup};
use aya_ebpf::helpers::{bpf_get_current_ancestor_cgroup_id, bpf_ktime_get_ns};

use crate::maps::{CONFIG, POD_CGROUPS};

/// Whether the calling process belongs to such a pod, and what it dials lies outside of it. A pod that shares the node's
/// network namespace (`cookie`) is never captured, so nothing of it is refused.
#[inline(always)]
pub fn is_held(cookie: u64, destination: &Address) -> bool {
    let Some(config) = CONFIG.get(0) else {
        return false;
    };
    if config.pod_level == 0 || cookie == config.node {
        return false;
    }
    if destination.is_loopback() || destination.is_unspecified() || destination.is_v6_link_local() {
        return false;
    }
    // A pod of one depth has containers at the other, and nobody says anything of those.
    let (one, other) = (standing(config.pod_level), standing(config.pod_level_too));
    if one == pod_cgroup::HELD || other == pod_cgroup::HELD {
        return true;
    }
    one != pod_cgroup::RELEASED && other != pod_cgroup::RELEASED && is_unseen(config)
}

/// What the agent says of the cgroup of this depth that the process is in; 0 for nothing.
#[inline(always)]
fn standing(level: u32) -> u32 {
    if level == 0 {
        return 0;
    }
    // SAFETY: values are single words.
    unsafe { POD_CGROUPS.get(&ancestor(level)) }.copied().unwrap_or(0)
}

/// Whether a process of which the agent says nothing is one of a pod that it will see in a moment. One that is in the folder
/// of all pods itself is in no pod.
#[inline(always)]
fn is_unseen(config: &Config) -> bool {
    // SAFETY: the agent writes it while programs read it: one word.
    let until = unsafe { read_volatile(addr_of!(config.hold_until)) };
    // SAFETY: the helper takes nothing.
    until != 0
        && config.pods != 0
        && ancestor(config.pods_level) == config.pods
        && ancestor(config.pods_level.wrapping_add(1)) != 0
        && unsafe { bpf_ktime_get_ns() } < until
}

/// The cgroup of this depth that the process is in; 0 where it lies less deep.
#[inline(always)]
fn ancestor(level: u32) -> u64 {
    // SAFETY: the helper takes a number.
    unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) }
}
