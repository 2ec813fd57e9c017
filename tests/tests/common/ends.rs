//! What both ends of a connection say of it: the client by its socket, the server by the line that
//! [`weft_tests::app::witness`] begins with.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use weft_tests::{Agent, Host, app::round_trip, pause::SocketSpec};

use super::{MARKER, line_of};

/// The longest line that a witness begins with.
const LINE: usize = 120;

/// The two addresses of a connection, as one of its ends has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub own: SocketAddr,
    pub peer: SocketAddr,
}

/// An unconnected TCP socket of a pod for dialling `to`.
pub fn socket_for(pod: &Host, to: SocketAddr) -> Result<Socket> {
    stream_socket(pod, Domain::for_address(to), Protocol::TCP)
}

/// An unconnected stream socket of a pod.
pub fn stream_socket(pod: &Host, domain: Domain, protocol: Protocol) -> Result<Socket> {
    let socket = pod.socket(SocketSpec::new(domain, Type::STREAM, Some(protocol)))?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

/// Connects a socket that may be connected already.
pub fn dial(socket: &Socket, to: SocketAddr) -> Result<()> {
    socket
        .connect(&to.into())
        .with_context(|| format!("connect to {to}"))
}

/// What the socket itself says.
pub fn client_ends(socket: &Socket) -> Result<Ends> {
    let own = socket.local_addr()?.as_socket();
    let peer = socket.peer_addr()?.as_socket();
    Ok(Ends {
        own: own.context("getsockname gives no IP address")?,
        peer: peer.context("getpeername gives no IP address")?,
    })
}

/// What the witness at the other end says. It is the first thing that may be read from a connection.
pub fn server_ends(stream: &mut impl Read) -> Result<Ends> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < LINE && line.last() != Some(&b'\n') {
        stream.read_exact(&mut byte).context("read the witness's line")?;
        line.push(byte[0]);
    }
    parse(std::str::from_utf8(&line)?)
}

/// `peer own`, as a witness writes it.
pub fn parse(line: &str) -> Result<Ends> {
    let (peer, own) = line
        .trim()
        .split_once(' ')
        .with_context(|| format!("{line:?} is no witness"))?;
    Ok(Ends {
        own: own.parse().with_context(|| format!("own address in {line:?}"))?,
        peer: peer.parse().with_context(|| format!("peer in {line:?}"))?,
    })
}

/// IPv4 as IPv4, however a socket shows it.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// IPv4 as a socket of IPv6 shows it.
pub fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// The address, of the family of `to`, that a connection from `pod` comes from without a mesh.
pub fn own_address(pod: &Host, to: SocketAddr) -> SocketAddr {
    let mut own = if canonical(to).is_ipv4() {
        pod.addr(0)
    } else {
        pod.addr6(0)
    };
    if to.is_ipv6() {
        own = mapped(own);
    }
    own
}

/// Fails unless a connected socket of `client` shows both ends as they would be without a mesh when it dials `to` and
/// the witness in `server` listens on 8080; and the witness shows them too; and it echoes. The client's own address.
pub fn check_ends(socket: &Socket, client: &Host, to: SocketAddr, server: &Host) -> Result<SocketAddr> {
    let mut stream = TcpStream::from(socket.try_clone()?);
    let seen = client_ends(socket)?;
    ensure!(seen.peer == to, "getpeername says {} instead of {to}", seen.peer);
    let own = own_address(client, to);
    ensure!(
        seen.own.ip() == own.ip() && seen.own.port() != 0,
        "getsockname says {} instead of {own}",
        seen.own
    );
    let told = server_ends(&mut stream)?;
    let (peer, at) = (canonical(told.peer), canonical(told.own));
    ensure!(
        peer == canonical(seen.own),
        "the server sees {peer} instead of {}",
        seen.own
    );
    let own = own_address(server, canonical(to));
    ensure!(
        at == SocketAddr::new(own.ip(), 8080),
        "the server's own address is {at} instead of {own}"
    );
    round_trip(&mut stream, MARKER).with_context(|| format!("speak to {to}"))?;
    Ok(canonical(seen.own))
}

/// As [`check_ends`], and closes; both agents must say that the connection came through the tunnel and ended well.
pub fn check_to_the_end(
    socket: Socket,
    client: &Host,
    to: SocketAddr,
    server: &Host,
    agents: &[Agent; 2],
) -> Result<()> {
    let own = check_ends(&socket, client, to, server).with_context(|| format!("by {to}"))?;
    drop(socket);
    for (agent, direction) in agents.iter().zip(["outbound", "inbound"]) {
        let line = line_of(agent, direction, own)?;
        ensure!(
            line.is_ok() && line.has("src.identity") && line.has("dst.identity"),
            "{line}"
        );
    }
    Ok(())
}
