//! Asking DNS over sockets of one's own, and servers that answer.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use socket2::{Domain, Protocol, Type};
use weft_tests::{LIMIT, Pod, PodSpec, World, pause::SocketSpec};

use super::{scripted::Scripted, wire};

/// The hostname of the service `web`.
pub(crate) const WEB: &str = "web.demo.svc.cluster.local";

/// A DNS server on a pod of node b that the mesh does not know, which says 192.0.2.`last` to everything.
pub(crate) fn says(world: &mut World, last: u8) -> Result<(Pod, Scripted)> {
    let pod = world.pod("b", PodSpec::new(&format!("says-{last}")).unlisted())?;
    let socket = pod.udp((Ipv6Addr::UNSPECIFIED, 53).into())?;
    let server = Scripted::start(socket, move |query| {
        vec![wire::response(query, 0, Some([192, 0, 2, last]))]
    })?;
    Ok((pod, server))
}

/// An IPv4 address as an IPv6 socket has it.
pub(crate) fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}

/// A UDP socket of the pod that is not bound.
pub(crate) fn unbound(pod: &Pod, like: SocketAddr) -> Result<UdpSocket> {
    let spec = SocketSpec::new(Domain::for_address(like), Type::DGRAM, Some(Protocol::UDP));
    let socket = UdpSocket::from(pod.socket(spec)?);
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// Asks over a connected socket for a name that the mesh knows and for one that the server says `last` to.
pub(crate) fn ask_connected(socket: &UdpSocket, last: u8) -> Result<()> {
    for (name, tail) in [(WEB, [10, 96, 0, 10]), ("some.test", [192, 0, 2, last])] {
        socket.send(&wire::query(1, name, wire::A))?;
        let (answer, from) = wire::receive(socket)?;
        let seen = wire::seen(&answer)?;
        ensure!(seen.tail == tail, "{name}: {seen:?}");
        ensure!(from == socket.peer_addr()?, "{name}: recvfrom says {from}");
        socket.send(&wire::query(2, name, wire::A))?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        ensure!(wire::seen(&buffer[..length])?.id == 2, "{name}");
    }
    Ok(())
}

/// Sends back what comes, on a UDP port of both families.
pub(crate) fn echo_at(pod: &Pod, port: u16) -> Result<Scripted> {
    let socket = pod.udp((Ipv6Addr::UNSPECIFIED, port).into())?;
    Scripted::start(socket, |datagram| vec![datagram.to_vec()])
}
