//! UDP sockets as weft makes them: those that datagrams are steered to, and those that ask a server.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use socket2::{Domain, MsgHdr, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::socket::Family;

/// `IP_PKTINFO` (linux/in.h), `IPV6_PKTINFO` (linux/in6.h).
const IP_PKTINFO: i32 = 8;
const IPV6_PKTINFO: i32 = 50;
/// A loopback address that apps do not use by habit: only what is steered reaches it.
const STEERED_V4: Ipv4Addr = Ipv4Addr::new(127, 53, 0, 1);

/// A socket on a loopback port, for datagrams that `sk_lookup` hands to it whatever they are addressed to. Another agent
/// may have one on the same port. Call inside the pod's namespace.
///
/// # Errors
/// Those of the kernel: too many files, or an app of the pod has taken the port.
pub fn steered(family: Family, port: u16) -> io::Result<std::net::UdpSocket> {
    let address = match family {
        Family::V4 => SocketAddr::from((STEERED_V4, port)),
        Family::V6 => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    };
    let socket = new(address)?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A socket for one server, neither bound nor connected. Call inside the pod's namespace.
///
/// # Errors
/// Those of the kernel.
pub fn for_server(server: SocketAddr) -> io::Result<std::net::UdpSocket> {
    new(server).map(Into::into)
}

fn new(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    Socket::new(domain, Type::DGRAM.cloexec().nonblocking(), Some(Protocol::UDP))
}

/// Sends a datagram to a socket of the pod that has the address `to.ip()`, from that same address.
///
/// # Errors
/// WouldBlock when the socket has no room, and those of the kernel.
pub fn try_reply(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
    let control = source(to.ip());
    let (name, buffers) = (SockAddr::from(to), [IoSlice::new(datagram)]);
    let message = MsgHdr::new()
        .with_addr(&name)
        .with_buffers(&buffers)
        .with_control(&control);
    socket.try_io(Interest::WRITABLE, || SockRef::from(socket).sendmsg(&message, 0))
}

/// A control message (cmsg(3)) that chooses the source of a datagram: `in_pktinfo` has the device, the source and the
/// destination, `in6_pktinfo` the source and the device.
fn source(ip: IpAddr) -> Vec<u8> {
    let (level, kind, value) = match ip {
        IpAddr::V4(ip) => (
            libc::IPPROTO_IP,
            IP_PKTINFO,
            [[0; 4], ip.octets(), [0; 4]].concat(),
        ),
        IpAddr::V6(ip) => (
            libc::IPPROTO_IPV6,
            IPV6_PKTINFO,
            [&ip.octets()[..], &[0; 4]].concat(),
        ),
    };
    let length = size_of::<usize>() + 2 * size_of::<i32>() + value.len();
    let mut control = length.to_ne_bytes().to_vec();
    control.extend(level.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(value);
    control.resize(control.len().next_multiple_of(align_of::<usize>()), 0);
    control
}
