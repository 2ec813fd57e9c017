//! DNS over UDP: what a captured pod sends to port 53 goes to the agent, and what comes back seems to come from the
//! server that was asked.
//!
//! 1. `connect4`, `connect6`, `sendmsg4`, `sendmsg6`: the destination becomes a port of the pod's own address, one port
//!    for each server (a *slot*). The kernel then takes that address as the source too, whatever the socket is bound to.
//! 2. `sk_lookup`: such a datagram gets the agent's socket of that slot. No agent: no answer, and the server is not asked.
//! 3. `recvmsg4`, `recvmsg6`: an answer's source becomes the server again. (For connected sockets `getpeername` does it.)
//!
//! A pod that asks more servers at once than there are slots asks the others itself: that is one that resolves names
//! from the root, not one that looks for services.

use agent_common::{
    Address, DNS_PORT, DNS_SERVER_PORT, DNS_SLOTS, DnsServer, DnsSlot, ListenerKey, ListenerKind, Pod,
    pod_flags,
};
use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_NOEXIST,
        sk_action::{SK_DROP, SK_PASS},
    },
    helpers::{bpf_get_netns_cookie, bpf_ktime_get_ns},
    macros::cgroup_sock_addr,
    programs::{SkLookupContext, SockAddrContext},
};

use crate::{
    PROCEED, REFUSE, is_local,
    maps::{DNS_SERVERS, LISTENERS, PODS},
    pending,
    socket::{Lookup, SockAddr, address, is_own},
};

/// A slot whose server was not asked for so long may be given to another: about a minute, in units of 2^30 ns.
const IDLE: u32 = 56;

/// What happens to a datagram for a DNS server.
pub enum Ask {
    /// It is none of ours.
    Leave,
    /// It goes to the agent, at this address and port of the pod.
    Steer(Address, u16),
    /// It is not sent: the pod is to be captured, and is not yet.
    Refuse,
}

#[cgroup_sock_addr(sendmsg4)]
pub fn weft_sendmsg4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    if sock.port() != DNS_SERVER_PORT {
        return PROCEED;
    }
    match send(sock, &sock.address4(), || sock.source4()) {
        Ask::Leave => PROCEED,
        Ask::Refuse => REFUSE,
        Ask::Steer(pod, port) => {
            sock.set4(&pod, port);
            PROCEED
        }
    }
}

#[cgroup_sock_addr(sendmsg6)]
pub fn weft_sendmsg6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    if sock.port() != DNS_SERVER_PORT {
        return PROCEED;
    }
    match send(sock, &sock.address6(), || sock.source6()) {
        Ask::Leave => PROCEED,
        Ask::Refuse => REFUSE,
        Ask::Steer(pod, port) => {
            sock.set6(&pod, port);
            PROCEED
        }
    }
}

/// A datagram of a socket that is not connected.
#[inline(always)]
fn send(sock: SockAddr, server: &Address, source: impl FnOnce() -> Address) -> Ask {
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(sock.ctx()) };
    // SAFETY: a map value may be changed under us by the agent; each word is a value by itself.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return if pending::is_held(cookie, server) {
            Ask::Refuse
        } else {
            Ask::Leave
        };
    };
    if is_own(sock.sk().cast()) || is_local(pod, server) {
        return Ask::Leave;
    }
    ask(pod, server, &source())
}

/// Where a datagram for a server goes that leaves the pod, from a socket that is bound to `source`.
#[inline(always)]
pub fn ask(pod: &Pod, server: &Address, source: &Address) -> Ask {
    let own = address(if server.is_v4() { &pod.v4 } else { &pod.v6 });
    if pod.v4.is_unspecified() && pod.v6.is_unspecified() {
        return Ask::Refuse;
    }
    if pod.flags & pod_flags::DNS == 0 || server.is_multicast() || own.is_unspecified() {
        return Ask::Leave;
    }
    // The destination is the address that the socket has as its source: `lookup` knows the pod by it.
    let at = if source.is_unspecified() {
        own
    } else {
        address(source)
    };
    if at.is_v4() != server.is_v4() || at.is_loopback() || at.is_v6_link_local() {
        return Ask::Leave;
    }
    match slot(&at, server) {
        Some(slot) => Ask::Steer(at, DNS_PORT + slot as u16),
        None => Ask::Leave,
    }
}

/// The slot of a server: the one that it has, or one that is free. Each looks in another order, so that two servers that
/// are asked for the first time in the same moment hardly ever want the same one.
#[inline(always)]
fn slot(pod: &Address, server: &Address) -> Option<u32> {
    let (now, first) = (now(), server.mix(0));
    let mut free = None;
    for turn in 0..u32::from(DNS_SLOTS) {
        let slot = first.wrapping_add(turn) % u32::from(DNS_SLOTS);
        match entry(pod, slot) {
            Some(entry) if is(entry, server) => {
                entry.asked = now;
                return Some(slot);
            }
            Some(entry) if free.is_none() && now.wrapping_sub(entry.asked) > IDLE => {
                free = Some((slot, BPF_ANY));
            }
            None if free.is_none() => free = Some((slot, BPF_NOEXIST)),
            _ => {}
        }
    }
    let (slot, flags) = free?;
    let key = DnsSlot {
        pod: address(pod),
        slot,
    };
    let value = DnsServer {
        addr: address(server),
        asked: now,
    };
    if DNS_SERVERS.insert(&key, &value, flags.into()).is_err() {
        // Another socket of the pod took it just now; most likely for the same server.
        entry(pod, slot).filter(|entry| is(entry, server))?;
    }
    Some(slot)
}

/// Whether it is this server that stands behind a slot. One branch: each more makes the verifier walk twice as far.
#[inline(always)]
fn is(entry: &DnsServer, server: &Address) -> bool {
    let addr = address(&entry.addr);
    (addr.w0 ^ server.w0) | (addr.w1 ^ server.w1) | (addr.w2 ^ server.w2) | (addr.w3 ^ server.w3) == 0
}

/// Who stands behind a slot.
#[inline(always)]
fn entry(pod: &Address, slot: u32) -> Option<&'static mut DnsServer> {
    let key = DnsSlot {
        pod: address(pod),
        slot,
    };
    let entry = DNS_SERVERS.get_ptr_mut(&key)?;
    // SAFETY: the map's values live as long as the program runs; others write whole words.
    Some(unsafe { &mut *entry })
}

/// Does what `bpf_sk_assign` is told although another program has chosen a socket already, and gives the datagram to that
/// very socket, not to one that shares its port (linux/bpf.h: BPF_SK_LOOKUP_F_REPLACE, BPF_SK_LOOKUP_F_NO_REUSEPORT).
const THIS_ONE: u64 = 1 | 2;

/// A datagram that arrives in a captured pod. Only what was steered comes from and goes to the same address, at a port
/// of a slot that has a server.
#[inline(always)]
pub fn lookup(ctx: &SkLookupContext, lookup: Lookup) -> u32 {
    let datagram = lookup.tuple();
    let Some(slot) = slot_of(datagram.remote_port) else {
        return SK_PASS;
    };
    if datagram.local != datagram.remote {
        return SK_PASS;
    }
    let Some(entry) = entry(&datagram.remote, slot) else {
        return SK_PASS;
    };
    // A socket that is connected to the server sends without `slot` being asked.
    entry.asked = now();
    let key = ListenerKey {
        pod: datagram.remote,
        kind: ListenerKind::Dns as u16,
        worker: slot as u16,
    };
    match LISTENERS.redirect_sk_lookup(ctx, &key, THIS_ONE) {
        Ok(()) => SK_PASS,
        Err(_) => SK_DROP,
    }
}

#[cgroup_sock_addr(recvmsg4)]
pub fn weft_recvmsg4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    if let Some(slot) = slot_of(sock.port())
        && let Some(entry) = entry(&sock.address4(), slot)
    {
        sock.set4(&address(&entry.addr), DNS_SERVER_PORT);
    }
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn weft_recvmsg6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    if let Some(slot) = slot_of(sock.port())
        && let Some(entry) = entry(&sock.address6(), slot)
    {
        sock.set6(&address(&entry.addr), DNS_SERVER_PORT);
    }
    PROCEED
}

#[inline(always)]
fn slot_of(port: u16) -> Option<u32> {
    let slot = port.wrapping_sub(DNS_PORT);
    (slot < DNS_SLOTS).then_some(slot.into())
}

/// The kernel's monotonic clock, in units of 2^30 ns.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper takes nothing.
    (unsafe { bpf_ktime_get_ns() } >> 30) as u32
}
