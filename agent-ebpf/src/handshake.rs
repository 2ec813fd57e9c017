//! What an accepted socket must know of the one that dialled, carried from the one to the other through a map while the
//! handshake lasts. Called by `sockops`, and by `sk_lookup` for what only a noted connection may do.

use core::{ffi::c_void, ptr::read_volatile};

use agent_common::{Handshake, OUTBOUND_PORT, SHARED_PORTS, SocketState, Tuple, flags, is_steered_port};
use aya_ebpf::helpers::bpf_skc_to_mptcp_sock;

use crate::{
    maps::{BEHALF, HANDSHAKES},
    same_node,
    socket::{SockOps, address, handshake, set_state, state, state_or_new},
};

/// Not 0 where the kernel lets a program find the connection of multipath TCP that a subflow belongs to (Linux 5.19).
/// The agent sets it before the programs are loaded, so that the verifier never sees what the kernel does not have.
#[unsafe(no_mangle)]
static MULTIPATH: u32 = 0;

/// A steered or on-behalf socket sends its SYN: note what the accepted socket must know.
#[inline(always)]
pub fn note(sock: SockOps) {
    let sk = sock.sk();
    if sk.is_null() {
        return;
    }
    let state = state(sk);
    tell_multipath(sk, state.as_deref());
    let Some(state) = state else { return };
    // Only agents' sockets have both: no app can fill the map.
    let on_behalf = flags::AGENT | flags::ON_BEHALF;
    if state.flags & on_behalf == on_behalf {
        note_behalf(sock, state);
    } else if state.flags & flags::STEERED != 0 {
        sock.unpace();
        // A full map evicts its oldest; a lost entry is a refused connection.
        let noted = flags::STEERED | state.flags & flags::DRAWN;
        let _ = HANDSHAKES.insert(&sock.tuple(), &handshake(state, noted), 0);
    } else if state.flags & flags::DIRECT != 0 {
        same_node::note(sock, state);
    }
}

/// An agent dials an app. If that cannot be noted the app would be shown a loopback address: the SYN is refused
/// instead, and the agent told why.
#[inline(always)]
fn note_behalf(sock: SockOps, state: &mut SocketState) {
    let tuple = sock.tuple();
    sock.watch_state();
    if BEHALF
        .insert(&tuple, &handshake(state, flags::ON_BEHALF), 0)
        .is_err()
    {
        state.flags |= flags::UNNOTED;
        let _ = HANDSHAKES.insert(&tuple, &handshake(state, flags::UNNOTED), 0);
    }
}

/// An agent's connection to an app is closed, or one from app to app, whether or not it ever came about.
#[inline(always)]
pub fn forget(sock: SockOps) {
    if sock.is_closed() {
        let tuple = sock.tuple();
        if BEHALF.remove(&tuple).is_err() {
            same_node::close(sock, &tuple);
        }
    }
}

/// A connection was accepted: tell the socket what its dialler noted.
#[inline(always)]
pub fn tell_accepted(sock: SockOps) {
    let key = sock.peer_tuple();
    if is_steered_port(key.remote_port) {
        // SAFETY: the entry is written once, before the SYN was sent.
        if let Some(noted) = unsafe { HANDSHAKES.get(&key) } {
            tell(sock, noted);
            let _ = HANDSHAKES.remove(&key);
            return;
        }
        // Apps are never dialled at this port.
        if key.remote_port == OUTBOUND_PORT {
            return;
        }
    }
    // SAFETY: as above.
    if let Some(noted) = unsafe { BEHALF.get(&key) } {
        tell(sock, noted);
        sock.unpace();
        let _ = BEHALF.remove(&key);
        return;
    }
    same_node::open(sock, &key);
}

#[inline(always)]
fn tell(sock: SockOps, noted: &Handshake) {
    if let Some(state) = state_or_new(sock.sk()) {
        set_state(state, &noted.addr, noted.port, noted.flags | flags::ACCEPTED);
        state.draw = noted.draw;
    }
}

/// Multipath TCP dials with a subflow; what the app asks for its peer is the connection above, so that is told too.
#[inline(always)]
fn tell_multipath(subflow: *mut c_void, dialled: Option<&SocketState>) {
    // SAFETY: a constant, but one that the compiler must not know.
    if unsafe { read_volatile(&raw const MULTIPATH) } == 0 {
        return;
    }
    // SAFETY: the kernel answers null for a socket that is no subflow.
    let above = unsafe { bpf_skc_to_mptcp_sock(subflow) }.cast();
    match dialled {
        Some(dialled) if dialled.flags & (flags::STEERED | flags::DIRECT) != 0 => {
            if let Some(shown) = state_or_new(above) {
                let addr = address(&dialled.addr);
                set_state(shown, &addr, dialled.port, flags::STEERED);
            }
        }
        // It may be connected again.
        _ => {
            if let Some(shown) = state(above) {
                shown.flags = 0;
            }
        }
    }
}

/// Whether a SYN inside the pod is one that nobody may take: it claims to be the agent's, or steered, and is not noted.
#[inline(always)]
pub fn is_lost(syn: &Tuple) -> bool {
    if syn.local.is_behalf_source() {
        // SAFETY: only whether there is one.
        return unsafe { BEHALF.get(syn) }.is_none();
    }
    if syn.remote.is_steered_to() && syn.remote_port == OUTBOUND_PORT {
        // One that is noted does not come here.
        return true;
    }
    if syn.remote_port >= SHARED_PORTS && syn.local == syn.remote && !syn.local.is_loopback() {
        // Nor here, so that it is lost, unless it is an agent's that dials an app there.
        // SAFETY: as above.
        return unsafe { BEHALF.get(syn) }.is_none();
    }
    // IPv6 has one loopback address for the agent and for apps.
    // SAFETY: flags are one word.
    !syn.local.is_v4()
        && unsafe { HANDSHAKES.get(syn) }.is_some_and(|noted| noted.flags & flags::UNNOTED != 0)
}
