//! TCP sockets as weft makes them: listeners in a pod, and sockets that dial.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::AsRawFd,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that wait for accept. The kernel caps it at net.core.somaxconn of the pod.
const BACKLOG: i32 = 4096;
/// Keep-alive of every leg, as in Istio's ambient mode: 180 s, 180 s, 9 probes.
const KEEPALIVE: Duration = Duration::from_secs(180);
const KEEPALIVE_PROBES: u32 = 9;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// An app of the pod: same kernel, so that it cannot vanish silently.
    App,
    /// Somebody over the network.
    Network,
}

/// A listener on any port of the loopback address of `family`'s kind. SYNs reach it through `sk_lookup` whatever they
/// are addressed to; nobody outside the pod can dial it. Call inside the pod's namespace.
///
/// Accepted sockets inherit its options (net/core/sock.c: sk_clone), so that accepting needs no call but accept.
/// With `reset`, closing one is a reset until it is told otherwise, also when the agent is killed.
///
/// # Errors
/// Those of the kernel: too many files, or the family is switched off.
pub fn listen(family: Family, from: Other, reset: bool) -> io::Result<TcpListener> {
    let (domain, address) = match family {
        Family::V4 => (Domain::IPV4, SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
        Family::V6 => (Domain::IPV6, SocketAddr::from((Ipv6Addr::LOCALHOST, 0))),
    };
    let socket = Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    if family == Family::V6 {
        socket.set_only_v6(true)?;
    }
    tune(&socket, from)?;
    if reset {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket that may dial `remote`, not yet bound or connected. Call inside the pod's namespace.
///
/// # Errors
/// Those of the kernel.
pub fn unconnected(remote: SocketAddr, to: Other) -> io::Result<Socket> {
    let domain = Domain::for_address(remote);
    let socket = Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    tune(&socket, to)?;
    Ok(socket)
}

/// Binds to an address and leaves the port to connect, so that one port serves many destinations
/// (`IP_BIND_ADDRESS_NO_PORT`).
///
/// # Errors
/// When the namespace does not have the address.
pub fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is a c_int and lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SocketAddr::from((source, 0)).into())
}

/// What every TCP leg has: no delay for small writes, and keep-alive where the other end may vanish.
fn tune(socket: &Socket, other: Other) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if other == Other::App {
        return Ok(());
    }
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// Makes closing the socket send RST: the app must not take a failure for a clean end.
pub fn abort_on_close(stream: &impl std::os::fd::AsFd) {
    // A socket that is already dead has nothing to reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The two families that a pod may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address; an IPv4-mapped one is IPv4.
    pub fn of(ip: IpAddr) -> Self {
        if ip.to_canonical().is_ipv4() {
            Self::V4
        } else {
            Self::V6
        }
    }
}
