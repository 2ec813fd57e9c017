//! The kernel path: connections between two pods of this node go from app to app, once the agent has said that they may.
//!
//! 1. `connect4`, `connect6`: [`choose`] finds a verdict, and the destination becomes the pod itself.
//! 2. `sockops`, before the SYN leaves: [`note`] puts the connection into `DIRECTS`.
//! 3. `sk_lookup` of the dialled pod: [`admit`] asks for the verdict again, and lets the SYN through to the app. So a
//!    verdict that was taken back in between is no verdict.
//! 4. `sockops`, when the client has its answer: [`confirm`] finds that it was the pod's `sk_lookup` that let the SYN
//!    through, or else that somebody else has the address by now; such a socket sends nothing.
//! 5. `sockops`: [`open`] and [`close`] tell the agent, which logs and counts.
//!
//! Processes of the node that belong to no pod, such as the kubelet, reach pods in the same way ([`probe`]).

use core::{
    arch::asm,
    ptr::{addr_of, read_volatile, write_volatile},
};

use agent_common::{
    Address, Config, PortKey, SocketState, Tuple, flags,
    same_node::{ChoiceKey, Direct, Event, MANY_DIRECTS, Pair, event, stage},
};
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns,
};

use crate::{
    maps::{CHOICES, CONFIG, DIRECTS, DIRECTS_OPEN, EVENTS, PORT_MODES, SERVICES, VERDICTS},
    socket::{SockAddr, SockOps, address, is_own, set_state, state, state_or_new},
};

/// Where a socket of a captured pod goes that may go directly; none when the agent must carry it. Its state, which says
/// that it was steered, is changed to what it will be.
#[inline(always)]
pub fn choose(sock: SockAddr, destination: &Address) -> Option<(Address, u16)> {
    if !is_leased(config()?) || is_crowded() {
        return None;
    }
    let state = state(sock.sk().cast())?;
    // SAFETY: the helper takes the program's own context.
    let source = unsafe { bpf_get_netns_cookie(sock.ctx()) };
    let port = sock.port();
    let dialled = pair(source, destination, port);
    // SAFETY: a single word.
    let (to, port) = match unsafe { SERVICES.get(&dialled) } {
        Some(endpoints) => pick(&dialled, *endpoints, state)?,
        None => (address(destination), port),
    };
    // SAFETY: only whether there is one.
    unsafe { VERDICTS.get(&pair(source, &to, port)) }?;
    state.flags = state.flags & flags::BOUND | flags::DIRECT;
    Some((to, port))
}

/// Draws one of a service's endpoints. One that is not for us is the agent's, which is told the draw: together they
/// balance as the agent alone would.
#[inline(always)]
fn pick(service: &Pair, endpoints: u32, state: &mut SocketState) -> Option<(Address, u16)> {
    if endpoints == 0 {
        return None;
    }
    // SAFETY: the helper takes nothing.
    let number = unsafe { bpf_get_prandom_u32() } % endpoints;
    state.draw = number;
    state.flags |= flags::DRAWN;
    let key = ChoiceKey {
        source: service.source,
        addr: address(&service.addr),
        port: service.port,
        number,
    };
    // SAFETY: the agent replaces a choice whole; one that is half new has no verdict, or is as good as both.
    let choice = unsafe { CHOICES.get(&key) }?;
    Some((address(&choice.addr), choice.port as u16))
}

#[inline(always)]
fn pair(source: u64, addr: &Address, port: u16) -> Pair {
    Pair {
        source,
        addr: address(addr),
        port: port.into(),
        reserved: 0,
    }
}

/// A process of the node dials. If it belongs to no pod, and what it dials is a captured pod of this node, the pod's app
/// will get the connection whatever its policies say: it is the kubelet, or the like. A pod that shares the node's network
/// namespace is none of those: its cgroup is a pod's.
#[inline(always)]
pub fn probe(sock: SockAddr, cookie: u64, destination: &Address) {
    let Some(config) = config() else { return };
    let sk = sock.sk().cast();
    if is_own(sk) {
        return;
    }
    if let Some(state) = state(sk) {
        if state.flags & flags::AGENT != 0 {
            return;
        }
        // It may have been connected before.
        state.flags = 0;
    }
    if config.node != cookie || config.pods == 0 {
        return;
    }
    let all_ports = PortKey {
        pod: address(destination),
        port: 0,
    };
    // SAFETY: only whether there is one: each captured pod has it.
    if unsafe { PORT_MODES.get(&all_ports) }.is_none() {
        return;
    }
    // SAFETY: the helper takes a number.
    if unsafe { bpf_get_current_ancestor_cgroup_id(config.pods_level as i32) } == config.pods {
        return;
    }
    if let Some(state) = state_or_new(sk) {
        set_state(state, destination, sock.port().into(), flags::DIRECT);
    }
}

/// A socket that goes directly sends its SYN. If that cannot be noted, the SYN is judged as plaintext.
#[inline(always)]
pub fn note(sock: SockOps, state: &SocketState) {
    let direct = begun(sock, state);
    if DIRECTS.insert(&sock.tuple(), &direct, 0).is_ok() {
        count(1);
        sock.watch_state_and_retransmissions();
    }
}

/// Whether a SYN, or the ACK of one that the kernel has forgotten (SYN cookies), may pass to the app: its socket was
/// noted, the app does not have the connection yet, and the verdict still stands.
#[inline(always)]
pub fn admit(syn: &Tuple) -> bool {
    let Some(direct) = DIRECTS.get_ptr_mut(syn) else {
        return false;
    };
    let Some(config) = config() else { return false };
    // SAFETY: an entry is not freed while a program runs; its words are written whole.
    unsafe {
        let source = read_volatile(addr_of!((*direct).source));
        if read_volatile(addr_of!((*direct).stage)) >= stage::OPEN {
            return false;
        }
        if source != config.node {
            let verdict = pair(source, &syn.remote, syn.remote_port);
            if !is_leased(config) || VERDICTS.get(&verdict).is_none() {
                // It has come to the right pod all the same, which is what `confirm` asks.
                write_volatile(&raw mut (*direct).stage, stage::PLAINTEXT);
                return false;
            }
        }
        write_volatile(&raw mut (*direct).stage, stage::ADMITTED);
    }
    true
}

/// The client has its answer. If it was not the dialled pod's `sk_lookup` that let the SYN through, it comes from whoever
/// has the address now, here or on another node: the socket is bound to loopback, so that no byte leaves, and the agent
/// ends it.
#[inline(always)]
pub fn confirm(sock: SockOps) {
    let Some(state) = state(sock.sk()) else { return };
    if state.flags & flags::DIRECT == 0 {
        return;
    }
    let tuple = sock.tuple();
    let unnoted;
    let direct = match DIRECTS.get_ptr_mut(&tuple) {
        // SAFETY: as in `admit`.
        Some(direct) => unsafe {
            if read_volatile(addr_of!((*direct).stage)) != stage::SYN {
                return;
            }
            write_volatile(&raw mut (*direct).stage, stage::STRANGER);
            &*direct
        },
        None => {
            unnoted = begun(sock, state);
            &unnoted
        }
    };
    sock.confine();
    report(event::STRANGER, &tuple, direct, (0, 0));
}

#[inline(always)]
fn begun(sock: SockOps, state: &SocketState) -> Direct {
    Direct {
        source: sock.netns_cookie(),
        since: now(),
        dialled: address(&state.addr),
        port: state.port,
        stage: stage::SYN,
        client: sock.cookie(),
        app: 0,
    }
}

/// A SYN is sent again. The dialled pod may be slow to take it; but if it has not even seen it, something on the way, such
/// as a NetworkPolicy, lets only tunnels through.
#[inline(always)]
pub fn retransmitted(sock: SockOps) {
    let tuple = sock.tuple();
    // SAFETY: as in `admit`.
    if let Some(direct) = unsafe { DIRECTS.get(&tuple) }
        && direct.stage == stage::SYN
    {
        report(event::BLOCKED, &tuple, direct, (0, 0));
    }
}

/// The app that was dialled has the connection.
#[inline(always)]
pub fn open(sock: SockOps, key: &Tuple) {
    let Some(direct) = DIRECTS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: as in `admit`.
    let direct = unsafe {
        if read_volatile(addr_of!((*direct).stage)) == stage::PLAINTEXT {
            return;
        }
        write_volatile(&raw mut (*direct).app, sock.cookie());
        write_volatile(&raw mut (*direct).stage, stage::OPEN);
        &*direct
    };
    report(event::OPENED, key, direct, (0, 0));
}

/// The dialling socket is closed.
#[inline(always)]
pub fn close(sock: SockOps, tuple: &Tuple) {
    // SAFETY: as in `admit`.
    if let Some(direct) = unsafe { DIRECTS.get(tuple) } {
        if direct.stage != stage::PLAINTEXT {
            report(event::CLOSED, tuple, direct, sock.bytes());
        }
        if DIRECTS.remove(tuple).is_ok() {
            count(-1);
        }
    }
}

/// Tells the agent; of processes of the node nothing is told.
#[inline(always)]
fn report(kind: u32, tuple: &Tuple, direct: &Direct, (sent, received): (u64, u64)) {
    if config().is_some_and(|config| config.node == direct.source) {
        return;
    }
    let Some(mut event) = EVENTS.reserve::<Event>(0) else {
        return;
    };
    let to: *mut Event = event.as_mut_ptr();
    // SAFETY: the reserved memory has the size of an event; every field is written.
    unsafe {
        copy_address(&raw mut (*to).tuple.local, &tuple.local);
        copy_address(&raw mut (*to).tuple.remote, &tuple.remote);
        write_volatile(&raw mut (*to).tuple.local_port, tuple.local_port);
        write_volatile(&raw mut (*to).tuple.remote_port, tuple.remote_port);
        write_volatile(&raw mut (*to).kind, kind);
        write_volatile(&raw mut (*to).direct.source, direct.source);
        write_volatile(&raw mut (*to).direct.since, direct.since);
        copy_address(&raw mut (*to).direct.dialled, &direct.dialled);
        write_volatile(&raw mut (*to).direct.port, direct.port);
        write_volatile(&raw mut (*to).direct.stage, direct.stage);
        write_volatile(&raw mut (*to).direct.client, direct.client);
        write_volatile(&raw mut (*to).direct.app, direct.app);
        write_volatile(&raw mut (*to).at, now());
        write_volatile(&raw mut (*to).sent, sent);
        write_volatile(&raw mut (*to).received, received);
    }
    event.submit(0);
}

/// # Safety
/// `to` must be writable.
#[inline(always)]
unsafe fn copy_address(to: *mut Address, from: &Address) {
    // SAFETY: the caller's.
    unsafe {
        write_volatile(&raw mut (*to).w0, from.w0);
        write_volatile(&raw mut (*to).w1, from.w1);
        write_volatile(&raw mut (*to).w2, from.w2);
        write_volatile(&raw mut (*to).w3, from.w3);
    }
}

#[inline(always)]
fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Whether an agent has been there lately: verdicts of one that is gone end.
#[inline(always)]
fn is_leased(config: &Config) -> bool {
    // SAFETY: the agent writes it while programs read it: one word.
    now() < unsafe { read_volatile(addr_of!(config.lease)) }
}

#[inline(always)]
fn is_crowded() -> bool {
    DIRECTS_OPEN.get(0).is_none_or(|open| *open > MANY_DIRECTS)
}

#[inline(always)]
fn count(change: i64) {
    if let Some(open) = DIRECTS_OPEN.get_ptr_mut(0) {
        // SAFETY: the map's value is one aligned word. The target has no compare-and-swap before Linux 5.12, so that
        // `core` offers no atomics for it; this is the one instruction that every kernel has.
        unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) open, in(reg) change) };
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
