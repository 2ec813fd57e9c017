//! weft's eBPF programs, in the order of a connection's life:
//!
//! 1. `connect4`, `connect6`: an app dials; its socket is steered to the agent's listener in the pod.
//! 2. `sockops`: before the SYN leaves, what the accepted socket must know is noted; once accepted, it is told.
//! 3. `sk_lookup`: a SYN arrives at a pod and gets the agent's listener, or a refusal.
//! 4. `getpeername4`, `getpeername6`: apps see whom they dialled and who dialled them, not the agent.
//!
//! DNS over UDP goes another way, which is in `dns`; connections between pods of one node do as well, once the agent has
//! allowed them, which is in `same_node`.
//!
//! Program names carry the prefix `weft_`: a name equal to its section's would clash in the object file.
//!
//! The agent writes `PODS`, `POD_CGROUPS`, `LISTENERS`, `PORT_MODES`, `CONFIG` and the verdicts. When it is gone its listeners
//! are gone, and the programs, which stay, refuse: closed, not open.

#![no_std]
#![no_main]
// For one atomic addition, see `same_node`; the build sets RUSTC_BOOTSTRAP for `build-std` in any case.
#![feature(asm_experimental_arch)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied once more, and the stack has 512 bytes"
)]

mod crowds;
mod dns;
mod handshake;
mod hop;
mod log;
mod maps;
mod pending;
mod same_node;
mod socket;

use agent_common::{
    Address, DNS_SERVER_PORT, HBONE_PORT, ListenerKey, ListenerKind, Pod, PortKey, Tuple, flags,
    is_steered_port, port_mode,
};
use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::bpf_get_netns_cookie,
    macros::{cgroup_sock_addr, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext},
};

use crate::{
    dns::Ask,
    log::decision,
    maps::{CONFIG, HANDSHAKES, LISTENERS, PODS, PORT_MODES},
    socket::{
        IPPROTO_TCP, IPPROTO_UDP, Lookup, SockAddr, SockOps, address, is_own, set_state, state, state_or_new,
    },
};

/// connect(2) goes on, with the address that is now in the context.
const PROCEED: i32 = 1;
/// connect(2) fails with EPERM.
const REFUSE: i32 = 0;
/// The port that nobody can listen on.
const NOBODY: u16 = 0;

/// What a socket that dials is to do.
enum Connect {
    /// Untouched: not a pod of the mesh, not TCP, local to the pod, or the agent's own.
    Leave,
    /// The same, for a socket that was steered once: it is still bound to the pod's address, which the app never asked.
    Unbind,
    /// To the agent's listener in the pod with this address; or straight to an app of this node.
    Steer(Address),
    /// A datagram socket that asks a DNS server: to the agent, at this address and port of the pod.
    Ask(Address, u16),
    /// A pod of the mesh dials in an address family for which weft knows no address of it.
    Refuse,
    /// The pod is not captured yet: to a port of its own loopback device that nobody can listen on, so that its app is
    /// told what every app has an answer to, "connection refused".
    Hold,
}

#[cgroup_sock_addr(connect4)]
pub fn weft_connect4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    let destination = sock.address4();
    match connect(sock, &destination, || sock.source4()) {
        Connect::Leave => return PROCEED,
        Connect::Refuse => return REFUSE,
        Connect::Hold => {
            if sock.device() != 0 {
                return REFUSE;
            }
            sock.set4(&Address::LOCALHOST_V4, NOBODY);
            return PROCEED;
        }
        Connect::Ask(pod, port) => {
            sock.set4(&pod, port);
            return PROCEED;
        }
        Connect::Unbind => {
            sock.unbind4();
            return PROCEED;
        }
        Connect::Steer(pod) => {
            let (to, port) = steer(sock, &destination, &sock.source4(), &pod, |pod| sock.bind4(pod));
            sock.set4(&to, port);
        }
    }
    decision!(
        &ctx,
        "connect4 {:i}:{} steered",
        u32::from_be(destination.w3),
        sock.port()
    );
    PROCEED
}

#[cgroup_sock_addr(connect6)]
pub fn weft_connect6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    let destination = sock.address6();
    match connect(sock, &destination, || sock.source6()) {
        Connect::Leave => return PROCEED,
        Connect::Refuse => return REFUSE,
        Connect::Hold => {
            if sock.device() != 0 {
                return REFUSE;
            }
            let to = if destination.is_v4() {
                &Address::LOCALHOST_V4
            } else {
                &Address::LOCALHOST_V6
            };
            sock.set6(to, NOBODY);
            return PROCEED;
        }
        Connect::Ask(pod, port) => {
            sock.set6(&pod, port);
            return PROCEED;
        }
        Connect::Unbind => {
            sock.unbind6();
            return PROCEED;
        }
        Connect::Steer(pod) => {
            let (to, port) = steer(sock, &destination, &sock.source6(), &pod, |pod| sock.bind6(pod));
            sock.set6(&to, port);
        }
    }
    decision!(&ctx, "connect6 to port {} steered", sock.port());
    PROCEED
}

/// Where a socket of a captured pod goes: to an app of this node, or to the agent.
#[inline(always)]
fn steer(
    sock: SockAddr,
    destination: &Address,
    source: &Address,
    pod: &Address,
    bind: impl FnOnce(&Address) -> bool,
) -> (Address, u16) {
    let has_pod_source = has_pod_source(sock, source, pod, bind);
    if has_pod_source && let Some(app) = same_node::choose(sock, destination) {
        return app;
    }
    hop::to(sock, destination, source, pod, has_pod_source)
}

/// Decides, and notes the original destination in the socket's storage when it is steered.
#[inline(always)]
fn connect(sock: SockAddr, destination: &Address, bound_to: impl FnOnce() -> Address) -> Connect {
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_netns_cookie(sock.ctx()) };
    // SAFETY: a map value may be changed under us by the agent; a pod's addresses are written once.
    let Some(pod) = (unsafe { PODS.get(&cookie) }) else {
        return uncaptured(sock, cookie, destination);
    };
    let sk = sock.sk().cast();
    if is_own(sk) {
        return Connect::Leave;
    }
    let mut bound = 0;
    if let Some(state) = state(sk) {
        if state.flags & flags::AGENT != 0 {
            return Connect::Leave;
        }
        // A socket may be connected again: what was noted of its first connection is void.
        bound = state.flags & flags::BOUND;
        state.flags = bound;
    }
    if sock.protocol() != IPPROTO_TCP {
        return ask(sock, pod, destination, bound_to);
    }
    if is_local(pod, destination) {
        return if bound == 0 {
            Connect::Leave
        } else {
            Connect::Unbind
        };
    }
    let source = address(if destination.is_v4() { &pod.v4 } else { &pod.v6 });
    if source.is_unspecified() {
        return Connect::Refuse;
    }
    match state_or_new(sk) {
        Some(state) => set_state(state, destination, sock.port().into(), flags::STEERED | bound),
        None => return Connect::Refuse,
    }
    Connect::Steer(source)
}

/// A process dials that is in no captured pod.
#[inline(always)]
fn uncaptured(sock: SockAddr, cookie: u64, destination: &Address) -> Connect {
    if sock.protocol() == IPPROTO_TCP {
        if pending::is_held(cookie, destination) {
            return Connect::Hold;
        }
        same_node::probe(sock, cookie, destination);
    } else if sock.protocol() == IPPROTO_UDP
        && sock.port() == DNS_SERVER_PORT
        && pending::is_held(cookie, destination)
    {
        return Connect::Refuse;
    }
    Connect::Leave
}

/// A datagram socket that is connected: ours when it asks a DNS server, whose address it goes on to show.
#[inline(always)]
fn ask(sock: SockAddr, pod: &Pod, server: &Address, bound_to: impl FnOnce() -> Address) -> Connect {
    if sock.protocol() != IPPROTO_UDP || sock.port() != DNS_SERVER_PORT || is_local(pod, server) {
        return Connect::Leave;
    }
    match dns::ask(pod, server, &bound_to()) {
        Ask::Leave => Connect::Leave,
        Ask::Refuse => Connect::Refuse,
        Ask::Steer(pod, port) => match state_or_new(sock.sk().cast()) {
            Some(state) => {
                set_state(state, server, DNS_SERVER_PORT.into(), flags::STEERED);
                Connect::Ask(pod, port)
            }
            None => Connect::Refuse,
        },
    }
}

/// Traffic that stays in the pod, or on its link, is not the mesh's.
#[inline(always)]
fn is_local(pod: &Pod, destination: &Address) -> bool {
    destination.is_loopback()
        || destination.is_unspecified()
        || destination.is_v6_link_local()
        || *destination == address(&pod.v4)
        || *destination == address(&pod.v6)
}

/// Whether the SYN can go to loopback with the pod's address as its source (see `hop`). A socket bound to a device or to
/// another address cannot.
#[inline(always)]
fn has_pod_source(
    sock: SockAddr,
    source: &Address,
    pod: &Address,
    bind: impl FnOnce(&Address) -> bool,
) -> bool {
    if sock.device() != 0 {
        return false;
    }
    if source == pod {
        return true;
    }
    let Some(state) = state(sock.sk().cast()) else {
        return false;
    };
    let free = source.is_unspecified() || state.flags & flags::BOUND != 0;
    if !free || !bind(pod) {
        return false;
    }
    state.flags |= flags::BOUND;
    true
}

/// Runs before the SYN leaves, also for TCP Fast Open (linux/bpf.h: BPF_SOCK_OPS_TCP_CONNECT_CB).
const TCP_CONNECT: u32 = 3;
/// The client has its answer (BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB).
const ACTIVE_ESTABLISHED: u32 = 4;
/// The accepted socket exists, and accept(2) has not returned it yet (BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB).
const PASSIVE_ESTABLISHED: u32 = 5;
/// A socket that asked for it sends something again (BPF_SOCK_OPS_RETRANS_CB).
const RETRANSMIT: u32 = 9;
/// A socket that asked for it changes its state (BPF_SOCK_OPS_STATE_CB).
const STATE: u32 = 10;

#[sock_ops]
pub fn weft_sockops(ctx: SockOpsContext) -> u32 {
    let sock = SockOps(ctx.ops);
    match sock.op() {
        TCP_CONNECT => handshake::note(sock),
        ACTIVE_ESTABLISHED => same_node::confirm(sock),
        PASSIVE_ESTABLISHED => handshake::tell_accepted(sock),
        RETRANSMIT => same_node::retransmitted(sock),
        STATE => handshake::forget(sock),
        _ => {}
    }
    0
}

#[sk_lookup]
pub fn weft_sk_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = Lookup(ctx.lookup);
    if lookup.protocol() == IPPROTO_UDP {
        return dns::lookup(&ctx, lookup);
    }
    if lookup.protocol() != IPPROTO_TCP {
        return SK_PASS;
    }
    let syn = lookup.tuple();
    let (client, pod, port) = (&syn.local, &syn.remote, syn.remote_port);
    // Before anything else: no listener of an app may accept a steered connection.
    if is_steered_port(port)
        && let Some(answer) = outbound(&ctx, &syn)
    {
        return answer;
    }
    // Inside the pod: apps among themselves, and the agent that dials an app. Such a packet cannot come from outside:
    // the kernel drops sources that are loopback or our own as martians.
    if client.is_loopback() || pod.is_loopback() || client == pod {
        return if handshake::is_lost(&syn) {
            SK_DROP
        } else {
            SK_PASS
        };
    }
    if same_node::admit(&syn) {
        return SK_PASS;
    }
    if port == HBONE_PORT {
        return assign(
            &ctx,
            pod,
            ListenerKind::Hbone,
            crowds::of_tunnel(client, syn.local_port),
        );
    }
    if plaintext_refused(pod, port) {
        decision!(&ctx, "plaintext to STRICT port {} refused", port);
        return SK_DROP;
    }
    assign(&ctx, pod, ListenerKind::Plaintext, client.mix(syn.local_port))
}

/// A SYN to a port that sockets are steered to: the agent's when its socket was steered, and only then.
#[inline(always)]
fn outbound(ctx: &SkLookupContext, syn: &Tuple) -> Option<u32> {
    // SAFETY: the entry was written before the SYN was sent.
    let noted = unsafe { HANDSHAKES.get(syn) }?;
    if noted.flags & flags::STEERED == 0 {
        return None;
    }
    let pair = address(&noted.addr).mix(noted.port as u16);
    let pod = if syn.remote.is_loopback() {
        &syn.local
    } else {
        &syn.remote
    };
    let worker = crowds::of_pair(pod, syn.local_port, pair);
    Some(assign(ctx, pod, ListenerKind::Outbound, worker))
}

#[inline(always)]
fn plaintext_refused(pod: &Address, port: u16) -> bool {
    let of_port = PortKey {
        pod: address(pod),
        port: port.into(),
    };
    let of_pod = PortKey {
        pod: address(pod),
        port: 0,
    };
    // SAFETY: values are single words.
    let mode = unsafe { PORT_MODES.get(&of_port).or_else(|| PORT_MODES.get(&of_pod)) };
    mode.is_some_and(|mode| *mode == port_mode::STRICT)
}

/// While one agent replaces another of a different layout, the programs of both are asked: the newer has the last word
/// (linux/bpf.h: BPF_SK_LOOKUP_F_REPLACE).
const REPLACE: u64 = 1;

/// Hands the SYN to the agent's listener. Without one the client is refused, at once and by RST.
#[inline(always)]
fn assign(ctx: &SkLookupContext, pod: &Address, kind: ListenerKind, hash: u32) -> u32 {
    let workers = CONFIG.get(0).map_or(1, |config| config.workers).max(1);
    let key = ListenerKey {
        pod: address(pod),
        kind: kind as u16,
        worker: (hash % workers) as u16,
    };
    match LISTENERS.redirect_sk_lookup(ctx, &key, REPLACE) {
        Ok(()) => SK_PASS,
        Err(error) => {
            decision!(ctx, "no listener of kind {}: refused ({})", kind as u16, error);
            let _ = error;
            SK_DROP
        }
    }
}

#[cgroup_sock_addr(getpeername4)]
pub fn weft_getpeername4(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    if let Some((addr, port)) = shown_peer(sock) {
        // An IPv6 client cannot be shown here; its last four bytes must not be taken for an address.
        let shown = if addr.is_v4() { addr } else { Address::default() };
        sock.set4(&shown, port);
    } else if sock.address4().is_behalf_source() {
        sock.set4(&Address::default(), 0);
    }
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn weft_getpeername6(ctx: SockAddrContext) -> i32 {
    let sock = SockAddr(ctx.sock_addr);
    if let Some((addr, port)) = shown_peer(sock) {
        sock.set6(&addr, port);
    } else if sock.address6().is_behalf_source() {
        sock.set6(&Address::default(), 0);
    }
    PROCEED
}

/// The peer that an app is to see. The agent's own sockets show the truth. Where there is none, the agent's loopback
/// address is not shown either: nobody is.
#[inline(always)]
fn shown_peer(sock: SockAddr) -> Option<(Address, u16)> {
    let state = state(sock.sk().cast())?;
    // The agent's own sockets show the truth: those that it made, and its ends of steered connections.
    let accepted_steered = flags::STEERED | flags::ACCEPTED;
    let ours = state.flags & flags::AGENT != 0 || state.flags & accepted_steered == accepted_steered;
    if ours || state.flags & (flags::STEERED | flags::ON_BEHALF | flags::DIRECT) == 0 {
        return None;
    }
    Some((address(&state.addr), state.port as u16))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier accepts no program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
