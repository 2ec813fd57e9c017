//! Map keys and values that weft's eBPF programs and its agent share.
//!
//! Everything is `repr(C)` without padding, so that both sides see the same bytes and a map key has no undefined
//! ones; the sizes are asserted at compile time. Addresses are always 16 bytes: IPv4 is kept in its IPv4-mapped form
//! (`::ffff:a.b.c.d`), so that IPv4, IPv6 and IPv4-mapped sockets meet in one key. Ports are in host order.

#![no_std]

pub mod layout;
pub mod same_node;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port that connect4/6 steers an app's socket to. Nobody listens on it: `sk_lookup` hands the SYN to the agent.
pub const OUTBOUND_PORT: u16 = 15001;
/// The first of the ports that sockets are steered to at the pod's own address, where all destinations share one: the
/// last 64. The kernel gives out lower ones by itself.
pub const SHARED_PORTS: u16 = 0xffc0;
/// The port that tunnels (HBONE) arrive at.
pub const HBONE_PORT: u16 = 15008;
/// The port of DNS servers: what is sent there over UDP, the agent answers or passes on.
pub const DNS_SERVER_PORT: u16 = 53;
/// The first of the ports that such datagrams are steered to, at the pod's own address.
pub const DNS_PORT: u16 = 15053;
/// How many of those ports there are: one for each DNS server that a pod asks.
pub const DNS_SLOTS: u16 = 8;

/// The third word of an IPv4-mapped address, as it lies in memory.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();
/// `127` in the first byte of an IPv4 address, as it lies in memory.
const LOOPBACK4: u32 = 0x7f00_0000_u32.to_be();
const LOOPBACK4_MASK: u32 = 0xff00_0000_u32.to_be();
/// `127.64.0.0/10`: what sockets are steered to, each destination at an address of its own.
const STEERED4: u32 = 0x7f40_0001;
const STEERED4_MASK: u32 = 0xffc0_0000_u32.to_be();
/// A /24 of `127.128.0.0/9`, which depends on the layout: where the agent dials apps from, and nobody else by habit. Two agents
/// of different layouts, of which one replaces the other, do not refuse each other's.
const BEHALF4: u32 = 0x7f80_0000 | (layout::HASH & 0x7fff) << 8;
const BEHALF4_MASK: u32 = 0xffff_ff00_u32.to_be();

/// An IPv4-mapped or IPv6 address: four words in network order. Single fields, because copying an array between map
/// values makes the compiler call `memmove`, which an eBPF program does not have.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Bytes 0 to 3.
    pub w0: u32,
    /// Bytes 4 to 7.
    pub w1: u32,
    /// Bytes 8 to 11.
    pub w2: u32,
    /// Bytes 12 to 15; the whole address of IPv4.
    pub w3: u32,
}

impl Address {
    /// `127.0.0.1`.
    pub const LOCALHOST_V4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOCALHOST_V6: Self = Self {
        w0: 0,
        w1: 0,
        w2: 0,
        w3: 1_u32.to_be(),
    };

    /// An IPv4 address given as the word the kernel has (network order).
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self {
            w0: 0,
            w1: 0,
            w2: MAPPED,
            w3: word,
        }
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.w0 == 0 && self.w1 == 0 && self.w2 == MAPPED
    }

    /// `0.0.0.0` (mapped) or `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        (self.w0 | self.w1 | self.w3) == 0 && (self.w2 == MAPPED || self.w2 == 0)
    }

    /// `127.0.0.0/8` (mapped) or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            self.w3 & LOOPBACK4_MASK == LOOPBACK4
        } else {
            (self.w0 | self.w1 | self.w2) == 0 && self.w3 == 1_u32.to_be()
        }
    }

    /// `fe80::/10`: meaningful on one link only, so it is never steered.
    #[inline(always)]
    pub const fn is_v6_link_local(&self) -> bool {
        self.w0 & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// `224.0.0.0/4`, broadcast, or `ff00::/8`: not one server.
    #[inline(always)]
    pub const fn is_multicast(&self) -> bool {
        let first = if self.is_v4() { self.w3 } else { self.w0 };
        let prefix = if self.is_v4() {
            0xe000_0000_u32
        } else {
            0xff00_0000
        };
        first & prefix.to_be() == prefix.to_be()
    }

    /// A loopback address for connections to this destination: IPv4 has 2^21 of them, so that each destination has
    /// its own range of source ports, as without a mesh; IPv6 has only one for all.
    #[inline(always)]
    pub const fn loopback_for(&self, port: u16) -> Self {
        if self.is_v4() {
            // Odd: never the address of a network or its broadcast, which are not for hosts.
            Self::v4((STEERED4 | (self.mix(port) & 0x003f_fffe)).to_be())
        } else {
            Self::LOCALHOST_V6
        }
    }

    /// Whether only steered sockets come here.
    #[inline(always)]
    pub const fn is_steered_to(&self) -> bool {
        self.is_v4() && self.w3 & STEERED4_MASK == STEERED4.to_be() & STEERED4_MASK
    }

    /// One of 254 loopback addresses from which the agent dials apps over IPv4.
    pub const fn behalf_source(number: u8) -> Self {
        let number = if number == 0 || number == u8::MAX {
            1
        } else {
            number
        };
        Self::v4((BEHALF4 | number as u32).to_be())
    }

    /// Whether this is a [`Self::behalf_source`] of this layout.
    #[inline(always)]
    pub const fn is_behalf_source(&self) -> bool {
        self.is_v4() && self.w3 & BEHALF4_MASK == BEHALF4.to_be()
    }

    /// A spread-out value of the address and a port, for choosing a worker or a place to be steered to.
    #[inline(always)]
    pub const fn mix(&self, port: u16) -> u32 {
        stir(stir(stir(stir(self.w0, self.w1), self.w2), self.w3), port as u32)
    }
}

/// Every bit of both has its part in every bit of the answer, or nearly.
#[inline(always)]
const fn stir(mixed: u32, word: u32) -> u32 {
    let mixed = mixed.wrapping_mul(0x9e37_79b1) ^ word;
    let mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed ^ (mixed >> 13)
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self {
            w0: word(0),
            w1: word(4),
            w2: word(8),
            w3: word(12),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let words = [address.w0, address.w1, address.w2, address.w3];
        let mut octets = [0_u8; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        let ip = Ipv6Addr::from(octets);
        ip.to_ipv4_mapped()
            .map_or(IpAddr::V6(ip), |v4: Ipv4Addr| IpAddr::V4(v4))
    }
}

/// Whether sockets are steered to this port.
#[inline(always)]
pub const fn is_steered_port(port: u16) -> bool {
    port == OUTBOUND_PORT || port >= SHARED_PORTS
}

/// Value of `PODS`, keyed by the netns cookie (`SO_NETNS_COOKIE`): a pod whose sockets are captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The pod's IPv4 address; unspecified when it has none.
    pub v4: Address,
    /// The pod's IPv6 address; unspecified when it has none.
    pub v6: Address,
    /// See [`pod_flags`].
    pub flags: u32,
}

/// Bits of [`Pod::flags`].
pub mod pod_flags {
    /// What the pod sends to DNS servers is steered to the agent.
    pub const DNS: u32 = 1;
}

/// Bits of [`SocketState::flags`] and [`Handshake::flags`].
pub mod flags {
    /// The agent's own socket: never steered. Set through the socket's storage, which an app cannot reach.
    pub const AGENT: u32 = 1;
    /// An app's outbound socket that was steered to the agent; the address is the one the app dialled.
    pub const STEERED: u32 = 2;
    /// The address is the peer that the app must see: the agent dialled the app on that client's behalf.
    pub const ON_BEHALF: u32 = 4;
    /// The agent's end of a steered connection. Not [`AGENT`]: what a program grants, an app that accepts in the
    /// agent's place could get; only userspace may say that a socket is the agent's own.
    pub const ACCEPTED: u32 = 8;
    /// What the accepted socket must know could not be noted: the connection must not be used.
    pub const UNNOTED: u32 = 16;
    /// A program bound the socket to the pod's address when it was steered, not the app.
    pub const BOUND: u32 = 32;
    /// An app's outbound socket that goes straight to an app of this node; the address is the one the app dialled.
    pub const DIRECT: u32 = 64;
    /// The state's `draw` is what the endpoint is to be picked by.
    pub const DRAWN: u32 = 128;
}

/// Words that only builds of another layout have (the feature `next-layout`), so that an upgrade across a change of
/// layout can be tested before there is one.
const RESERVED_WORDS: usize = if cfg!(feature = "next-layout") { 2 } else { 0 };
/// See [`RESERVED_WORDS`].
type Reserved = [u32; RESERVED_WORDS];

/// Value of `SOCKETS`, the storage that belongs to one socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// The address that `getpeername` shows: the original destination, or the client.
    pub addr: Address,
    /// Its port, host order.
    pub port: u32,
    /// See [`flags`].
    pub flags: u32,
    /// What the endpoint of the dialled service is to be picked by, with [`flags::DRAWN`].
    pub draw: u32,
    /// Nothing, but in builds of another layout.
    pub reserved: Reserved,
}

/// Key of `HANDSHAKES` and `BEHALF`: both ends of a connection that begins, seen from the socket that dials. One end is
/// always the pod's own address, which is unique on a node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// The dialling socket's address.
    pub local: Address,
    /// The dialled address.
    pub remote: Address,
    /// The dialling socket's port.
    pub local_port: u16,
    /// The dialled port.
    pub remote_port: u16,
}

/// Value of `HANDSHAKES` and `BEHALF`: what the accepted socket must know of the one that dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// See [`SocketState::addr`].
    pub addr: Address,
    /// See [`SocketState::port`].
    pub port: u32,
    /// [`flags::STEERED`], [`flags::ON_BEHALF`] or [`flags::UNNOTED`]; and [`flags::DRAWN`].
    pub flags: u32,
    /// See [`SocketState::draw`].
    pub draw: u32,
    /// Nothing, but in builds of another layout.
    pub reserved: Reserved,
}

/// Value of `CROWDS`: how many connections a pod has dialled of late, by what it dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// The window of time that is counted.
    pub window: u32,
    /// Those of this window.
    pub count: u32,
    /// Those of the window before it.
    pub before: u32,
}

/// What a listener of the agent takes.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// Sockets of the pod's apps that were steered.
    Outbound = 0,
    /// Tunnels from other agents, on port 15008.
    Hbone = 1,
    /// Anything else that arrives at the pod.
    Plaintext = 2,
    /// Datagrams to DNS servers that were steered; [`ListenerKey::worker`] is the slot of the server.
    Dns = 3,
}

/// Key of `LISTENERS`, the agent's listening sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerKey {
    /// The pod's address.
    pub pod: Address,
    /// A [`ListenerKind`].
    pub kind: u16,
    /// The worker that owns the socket, from 0.
    pub worker: u16,
}

/// Key of `DNS_SERVERS`: one of the ports that a pod's datagrams are steered to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsSlot {
    /// The pod's address, which the datagram has as source and as destination.
    pub pod: Address,
    /// From 0 to [`DNS_SLOTS`].
    pub slot: u32,
}

/// Value of `DNS_SERVERS`: the server that stands behind a slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsServer {
    /// Its address; its port is [`DNS_SERVER_PORT`].
    pub addr: Address,
    /// When it was last asked, by the kernel's monotonic clock, in units of 2^30 ns.
    pub asked: u32,
}

/// Key of `PORT_MODES`: a port of a pod, or port 0 for all that are not listed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortKey {
    /// The pod's address.
    pub pod: Address,
    /// The port, host order.
    pub port: u32,
}

/// Values of `PORT_MODES`.
pub mod port_mode {
    /// Plaintext is handed to the agent, which authorizes it.
    pub const PERMISSIVE: u32 = 0;
    /// Plaintext is refused at the SYN.
    pub const STRICT: u32 = 1;
}

/// Values of `POD_CGROUPS`: what becomes of what a process of the cgroup dials that is in no captured pod.
pub mod pod_cgroup {
    /// It is refused: the pod is to be captured and is not yet, or nobody knows yet whether it is to be.
    pub const HELD: u32 = 1;
    /// It goes out: the pod is captured, or is not the mesh's.
    pub const RELEASED: u32 = 2;
}

/// The one value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How many workers have listeners, at least 1.
    pub workers: u32,
    /// How deep the cgroup `pods` lies; the root is 0.
    pub pods_level: u32,
    /// The id of the cgroup under which all pods are; 0 when none is known, and then no process of the node reaches pods
    /// past their policies.
    pub pods: u64,
    /// The netns cookie of the node itself; 0 when it is not known.
    pub node: u64,
    /// Until when connections may go from app to app, by the kernel's monotonic clock, in ns. Its agent goes on renewing it.
    pub lease: u64,
    /// Until when a pod under `pods` that is not in `POD_CGROUPS` is held, by the kernel's monotonic clock, in ns. Renewed by an
    /// agent that goes on looking at the node's pods; 0 when there is none.
    pub hold_until: u64,
    /// How deep the cgroups in `POD_CGROUPS` lie: a depth of the kubelet's pods, and another one or 0. Both are 0 while no
    /// agent looks for pods, so that nobody's `connect` is asked about them.
    pub pod_level: u32,
    /// See above.
    pub pod_level_too: u32,
}

const _: () = {
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<Pod>() == 36);
    assert!(size_of::<DnsSlot>() == 20);
    assert!(size_of::<DnsServer>() == 20);
    assert!(size_of::<SocketState>() == 28 + size_of::<Reserved>());
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<Handshake>() == 28 + size_of::<Reserved>());
    assert!(size_of::<ListenerKey>() == 20);
    assert!(size_of::<PortKey>() == 20);
    assert!(size_of::<Config>() == 48);
};

#[cfg(feature = "user")]
mod user {
    use super::{
        Address, Config, DnsServer, DnsSlot, Handshake, ListenerKey, Pod, PortKey, SocketState, Tuple,
        same_node::{Choice, ChoiceKey, Direct, Pair},
    };

    macro_rules! plain_old_data {
        ($($name:ty),*) => { $(
            // SAFETY: repr(C), no padding (asserted above), every bit pattern is a value.
            unsafe impl aya::Pod for $name {}
        )* };
    }
    plain_old_data!(
        Address,
        Choice,
        ChoiceKey,
        Config,
        Direct,
        DnsServer,
        DnsSlot,
        Handshake,
        ListenerKey,
        Pair,
        Pod,
        PortKey,
        SocketState,
        Tuple
    );
}

#[cfg(test)]
mod tests;
