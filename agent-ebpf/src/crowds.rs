//! Which worker takes a connection. A pair of a pod and what it dials has one, so that one warm tunnel carries it and much goes
//! into each of its writes. While a pair opens thousands of short connections a second, as many workers take turns as that needs,
//! each with a tunnel of its own: one alone would make both nodes wait for each other.

use agent_common::{Address, Crowd};
use aya_ebpf::helpers::bpf_ktime_get_ns;

use crate::maps::CROWDS;

/// Connections are counted in windows of so many ns, as a power of two: 134 ms.
const WINDOW: u32 = 27;
/// Connections of one window, some 10,000 a second, that are enough for another worker: about half of what one can do. With
/// fewer, a second one buys little and costs a third more (`bench/NOTES.md`).
const ENOUGH: u32 = 1_342;
/// Workers of one pair.
const MOST: u32 = 8;

/// The worker, before it is taken modulo their number, of a connection that a pod dials from a port: `pair` is what it dials. It
/// is asked again for the ACK where the kernel sends SYN cookies, and must answer the same: so who takes it is a matter of the port.
#[inline(always)]
pub fn of_pair(pod: &Address, port: u16, pair: u32) -> u32 {
    let key = (pod.mix(0) as u64) << 32 | pair as u64;
    let Some(crowd) = CROWDS.get_ptr_mut(&key) else {
        let _ = CROWDS.insert(&key, &Crowd::default(), 0);
        return pair;
    };
    // SAFETY: the entry is one of the map's, which are never given back. Values are words, and counting wrong by a few is no harm.
    let crowd = unsafe { &mut *crowd };
    // SAFETY: it only asks for the time.
    let window = (unsafe { bpf_ktime_get_ns() } >> WINDOW) as u32;
    if crowd.window != window {
        let is_next = crowd.window.wrapping_add(1) == window;
        crowd.before = if is_next { crowd.count } else { 0 };
        crowd.count = 0;
        crowd.window = window;
    }
    crowd.count += 1;
    let workers = 1 + crowd.before / ENOUGH;
    let turns = if workers > MOST { MOST } else { workers };
    pair.wrapping_add(pod.mix(port) % turns)
}

/// The same of a tunnel that somebody opens: the client's, or the next one, so that two of one client are not always one worker's.
#[inline(always)]
pub fn of_tunnel(client: &Address, port: u16) -> u32 {
    client.mix(0).wrapping_add(client.mix(port) & 1)
}
