//! Map keys and values that weft's eBPF programs and its agent share.
//!
//! Everything is `repr(C)` without padding, so that both sides see the same bytes and a map key has no undefined
//! ones; the sizes are asserted at compile time. Addresses are always 16 bytes: IPv4 is kept in its IPv4-mapped form
//! (`::ffff:a.b.c.d`), so that IPv4, IPv6 and IPv4-mapped sockets meet in one key. Ports are in host order.

#![no_std]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port that connect4/6 steers an app's socket to. Nobody listens on it: `sk_lookup` hands the SYN to the agent.
pub const OUTBOUND_PORT: u16 = 15001;
/// The port that tunnels (HBONE) arrive at.
pub const HBONE_PORT: u16 = 15008;

/// The third word of an IPv4-mapped address, as it lies in memory.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();
/// `127` in the first byte of an IPv4 address, as it lies in memory.
const LOOPBACK4: u32 = 0x7f00_0000_u32.to_be();
const LOOPBACK4_MASK: u32 = 0xff00_0000_u32.to_be();

/// An IPv4-mapped or IPv6 address: four words in network order. Single fields, because copying an array between map
/// values makes the compiler call `memmove`, which an eBPF program does not have.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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

    /// A loopback address for connections to this destination: IPv4 has 2^22 of them, so that each destination has
    /// its own range of source ports, as without a mesh; IPv6 has one.
    #[inline(always)]
    pub const fn loopback_for(&self, port: u16) -> Self {
        if self.is_v4() {
            // Odd and below 127.128.0.0: never 127.0.0.0 nor 127.255.255.255, which are not for hosts.
            Self::v4((0x7f00_0001 | (self.mix(port) & 0x007f_fffe)).to_be())
        } else {
            Self::LOCALHOST_V6
        }
    }

    /// A spread-out value of the address and a port, for choosing a worker.
    #[inline(always)]
    pub const fn mix(&self, port: u16) -> u32 {
        let words = self.w0 ^ self.w1.rotate_left(7) ^ self.w2.rotate_left(13) ^ self.w3.rotate_left(19);
        let mixed = (words ^ port as u32).wrapping_mul(0x9e37_79b1);
        mixed ^ (mixed >> 15)
    }
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

/// Value of `PODS`, keyed by the netns cookie (`SO_NETNS_COOKIE`): a pod whose sockets are captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// The pod's IPv4 address; unspecified when it has none.
    pub v4: Address,
    /// The pod's IPv6 address; unspecified when it has none.
    pub v6: Address,
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
}

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
}

/// Key of `HANDSHAKES`: both ends of a connection that begins, seen from the socket that dials. One end is always the
/// pod's own address, which is unique on a node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// Value of `HANDSHAKES`: what the accepted socket must know of the one that dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// See [`SocketState::addr`].
    pub addr: Address,
    /// See [`SocketState::port`].
    pub port: u32,
    /// [`flags::STEERED`] or [`flags::ON_BEHALF`].
    pub flags: u32,
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

/// The one value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How many workers have listeners, at least 1.
    pub workers: u32,
}

const _: () = {
    assert!(size_of::<Address>() == 16);
    assert!(size_of::<Pod>() == 32);
    assert!(size_of::<SocketState>() == 24);
    assert!(size_of::<Tuple>() == 36);
    assert!(size_of::<Handshake>() == 24);
    assert!(size_of::<ListenerKey>() == 20);
    assert!(size_of::<PortKey>() == 20);
    assert!(size_of::<Config>() == 4);
};

#[cfg(feature = "user")]
mod user {
    use super::{Address, Config, Handshake, ListenerKey, Pod, PortKey, SocketState, Tuple};

    macro_rules! plain_old_data {
        ($($name:ty),*) => { $(
            // SAFETY: repr(C), no padding (asserted above), every bit pattern is a value.
            unsafe impl aya::Pod for $name {}
        )* };
    }
    plain_old_data!(
        Address,
        Config,
        Handshake,
        ListenerKey,
        Pod,
        PortKey,
        SocketState,
        Tuple
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_know_their_family() {
        for (text, v4, loopback) in [
            ("10.1.2.3", true, false),
            ("127.0.0.1", true, true),
            ("127.9.8.7", true, true),
            ("::1", false, true),
            ("fd00::1", false, false),
            ("::ffff:10.1.2.3", true, false),
        ] {
            let ip: IpAddr = text.parse().expect("an address");
            let address = Address::from(ip);
            assert_eq!(IpAddr::from(address), ip.to_canonical(), "{text}");
            assert_eq!((address.is_v4(), address.is_loopback()), (v4, loopback), "{text}");
        }
        assert!(Address::from(IpAddr::from([0, 0, 0, 0])).is_unspecified());
        assert!(Address::default().is_unspecified());
        assert!(Address::from("fe80::1".parse::<IpAddr>().expect("an address")).is_v6_link_local());
    }

    #[test]
    fn each_destination_has_a_loopback_address_that_a_host_may_have() {
        for last in 0..=255_u8 {
            let destination = Address::from(IpAddr::from([10, 96, last, 255 - last]));
            for port in [1, 80, 443, 8080, u16::MAX] {
                let IpAddr::V4(hop) = destination.loopback_for(port).into() else {
                    panic!("not IPv4")
                };
                assert!(
                    hop.is_loopback() && hop.octets()[1] < 128 && hop.octets()[3] % 2 == 1,
                    "{hop}"
                );
            }
        }
    }
}
