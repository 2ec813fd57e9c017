//! How deep a cgroup lies in the whole tree, which nobody can see who is in a cgroup namespace: a node that is a container itself.
//! Run once by the agent in its own process (`BPF_PROG_TEST_RUN`), and attached nowhere. In an object of its
//! own, because it has no use for the others' maps.

#![no_std]
#![no_main]

use core::ffi::c_void;

use aya_ebpf::{helpers::bpf_get_current_ancestor_cgroup_id, programs::RawTracePointContext};

/// Levels that are looked at; kubelets and runtimes nest some eight.
const MOST: i32 = 64;

/// The level of the cgroup whose id is the first argument, where it is one that this process is in or under; -1 where it is not.
/// Not by aya's macro, whose programs answer 0 whatever they say.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub fn weft_depth(ctx: *mut c_void) -> i32 {
    let wanted: u64 = RawTracePointContext::new(ctx).arg(0);
    let mut level = 0;
    while level < MOST {
        // SAFETY: it takes any level, and answers 0 where there is none.
        if unsafe { bpf_get_current_ancestor_cgroup_id(level) } == wanted {
            return level;
        }
        level += 1;
    }
    -1
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier accepts no program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
