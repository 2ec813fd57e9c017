//! Where a steered socket goes: an address and a port of the pod, chosen so that source ports do not run out before they
//! would without a mesh. Called by `connect4` and `connect6`.

use core::{mem::size_of, ptr::addr_of_mut};

use agent_common::{Address, OUTBOUND_PORT, SHARED_PORTS};
use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::{bpf_get_prandom_u32, bpf_sk_release, bpf_skc_lookup_tcp},
};

use crate::socket::SockAddr;

/// Ports that are tried for a socket that has a port of its own already.
const TRIES: u32 = 6;

/// The address and the port that stand for `destination`. Over IPv4 a socket that `loops`, which has the pod's address as
/// its source, goes to a loopback address of the destination's own: the kernel reuses ports in TIME-WAIT there, and there
/// only (net.ipv4.tcp_tw_reuse = 2). Every other goes to the pod's own address: over IPv6 there is one loopback address,
/// and what the kernel answers to it without a socket, such as the last ACK of a connection or a RST, is lost
/// (net/ipv6/tcp_ipv6.c: tcp_v6_send_response).
#[inline(always)]
pub fn to(
    sock: SockAddr,
    destination: &Address,
    source: &Address,
    pod: &Address,
    loops: bool,
) -> (Address, u16) {
    if loops && destination.is_v4() {
        (destination.loopback_for(sock.port()), OUTBOUND_PORT)
    } else {
        (*pod, at_own_address(sock, source, pod))
    }
}

/// All destinations share the pod's address, so each connection goes to a port of its own: any, where the kernel is to
/// choose the source port; one that this source port has no connection to yet, where it is given.
#[inline(always)]
fn at_own_address(sock: SockAddr, source: &Address, pod: &Address) -> u16 {
    let own = sock.source_port();
    // SAFETY: the helper takes nothing.
    let mut port = SHARED_PORTS | unsafe { bpf_get_prandom_u32() } as u16;
    if own == 0 {
        return port;
    }
    let source = if source.is_unspecified() { pod } else { source };
    for _ in 0..TRIES {
        if port != own && !is_taken(sock, source, own, pod, port) {
            break;
        }
        port = SHARED_PORTS | port.wrapping_add(1);
    }
    port
}

/// Whether the pod has this connection, or had it less than a minute ago.
#[inline(always)]
fn is_taken(sock: SockAddr, local: &Address, local_port: u16, remote: &Address, remote_port: u16) -> bool {
    // As in a packet that comes in.
    let (sport, dport) = (remote_port.to_be(), local_port.to_be());
    if remote.is_v4() {
        let mut tuple = Tuple4 {
            saddr: remote.w3,
            daddr: local.w3,
            sport,
            dport,
        };
        is_connected(sock, addr_of_mut!(tuple).cast(), size_of::<Tuple4>())
    } else {
        let mut tuple = Tuple6 {
            saddr: [remote.w0, remote.w1, remote.w2, remote.w3],
            daddr: [local.w0, local.w1, local.w2, local.w3],
            sport,
            dport,
        };
        is_connected(sock, addr_of_mut!(tuple).cast(), size_of::<Tuple6>())
    }
}

#[inline(always)]
fn is_connected(sock: SockAddr, tuple: *mut aya_ebpf::bindings::bpf_sock_tuple, size: usize) -> bool {
    // SAFETY: the helper takes the program's own context and a tuple of this size.
    let found = unsafe { bpf_skc_lookup_tcp(sock.ctx(), tuple, size as u32, BPF_F_CURRENT_NETNS as u64, 0) };
    if found.is_null() {
        return false;
    }
    // SAFETY: the helper has found it, and holds it until it is released.
    unsafe {
        let state = core::ptr::read_volatile(&raw const (*found).state);
        bpf_sk_release(found.cast());
        state != BPF_TCP_LISTEN
    }
}
