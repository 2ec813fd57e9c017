//! TCP sockets as weft makes them: listeners in a pod, and sockets that dial.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketFlags, acceptfrom_with},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpStream,
};

use super::tls::random;

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

/// A listener on an address that nobody has (`IP_FREEBIND`): SYNs reach it through `sk_lookup`, whatever they are
/// addressed to, and in no other way. Call inside the pod's namespace.
///
/// Accepted sockets inherit its options (net/core/sock.c: sk_clone), so that accepting needs no call but accept.
/// With `reset`, closing one is a reset until it is told otherwise, also when the agent is killed.
///
/// # Errors
/// Those of the kernel: too many files, or the family is switched off.
pub fn listen(family: Family, from: Other, reset: bool) -> io::Result<TcpListener> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    match family {
        Family::V4 => socket.set_freebind_v4(true)?,
        Family::V6 => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    tune(&socket, from)?;
    if reset {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    bind_apart(&socket, family)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// One of several listeners on an address of this namespace: each worker has its own, and the kernel spreads connections over
/// them (`SO_REUSEPORT`). On an unspecified IPv6 address it takes IPv4 as well.
///
/// # Errors
/// Those of the kernel: the address is taken, or not one of ours.
pub fn listen_shared(addr: SocketAddr) -> io::Result<TcpListener> {
    let domain = Domain::for_address(addr);
    let socket = Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    tune(&socket, Other::Network)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A listener whose connections the runtime does not know of until they are given to it: what is there of them by then can be read
/// before, and it will not tell of that again.
pub struct Listener(AsyncFd<TcpListener>);

impl Listener {
    /// Of a listener that does not block.
    ///
    /// # Errors
    /// Those of epoll(7), and outside of a runtime.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        // SAFETY: a listener has one file descriptor, and keeps it open for as long as it lives.
        unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) }
            .map(Self)
            .map_err(Into::into)
    }

    /// The next connection, which does not block. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<(std::net::TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accept = |listener: &TcpListener| Ok(acceptfrom_with(listener, flags)?);
        let (socket, peer) = self.0.async_io(Interest::READABLE, accept).await?;
        let peer = peer.and_then(|peer| peer.try_into().ok());
        Ok((socket.into(), peer.ok_or(io::ErrorKind::NotConnected)?))
    }
}

/// The port of all listeners. Not one that the kernel gives out: it would be missing among those that apps dial from, and
/// an app that wants to listen on it would be refused.
const LISTEN_PORT: u16 = 15009;
/// Addresses that are tried before a listener takes any port.
const LISTEN_TRIES: usize = 8;

/// Binds a listener to [`LISTEN_PORT`] of an address that no other listener has.
fn bind_apart(socket: &Socket, family: Family) -> io::Result<()> {
    for _ in 0..LISTEN_TRIES {
        let drawn = random::<2>().map_err(io::Error::other)?;
        match socket.bind(&SocketAddr::new(nowhere(family, drawn), LISTEN_PORT).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    // An app listens on that port itself.
    socket.bind(&SocketAddr::new(nowhere(family, [0, 1]), 0).into())
}

/// An address of a range that is set aside for what is never sent: 198.18.0.0/15 (RFC 2544), 100::/64 (RFC 6666).
fn nowhere(family: Family, [high, low]: [u8; 2]) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, high, low).into(),
        Family::V6 => Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low])).into(),
    }
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

/// Dials `remote` from this namespace, for as long as the caller waits.
///
/// # Errors
/// Those of the kernel and of the network.
pub async fn dial(remote: SocketAddr, to: Other) -> io::Result<TcpStream> {
    let socket = unconnected(remote, to)?;
    let connecting = match socket.connect(&remote.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => TcpStream::from_std(socket.into())?,
    };
    connecting.writable().await?;
    connecting.take_error()?.map_or(Ok(connecting), Err)
}

/// Binds to an address and leaves the port to connect, so that one port serves many destinations
/// (`IP_BIND_ADDRESS_NO_PORT`). An app that comes later may listen on that port, as long as it too says that addresses
/// may be reused, which servers do.
///
/// # Errors
/// When the namespace does not have the address.
pub fn bind_source(socket: &Socket, source: IpAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    set_ip_option(socket, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::from((source, 0)).into())
}

/// Leaves connect a few ports at random to choose from, instead of all that the pod has: where many are taken it would
/// look at each of them (`IP_LOCAL_PORT_RANGE`, Linux 6.3; older kernels go on to look). A pod whose own range is another
/// one is not restricted.
///
/// # Errors
/// Those of the kernel.
pub fn pick_few_ports(socket: &Socket) -> io::Result<()> {
    /// Not in libc yet (linux/in.h).
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    // The kernel's default range (net.ipv4.ip_local_port_range), and how much of it.
    const FIRST: u32 = 32_768;
    const LAST: u32 = 60_999;
    const FEW: u32 = 128;
    let drawn = random::<2>().map_err(io::Error::other)?;
    let from = FIRST + u32::from(u16::from_be_bytes(drawn)) % (LAST - FIRST - FEW);
    let range = from | (from + FEW - 1) << 16;
    match set_ip_option(socket, IP_LOCAL_PORT_RANGE, range) {
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(()),
        set => set,
    }
}

/// Leaves the handshake's last ACK to the first bytes, which the caller writes as soon as the socket is connected. The app is woken
/// once, for a connection with something to read, and not twice. Where the bytes stay away the ACK goes out after 0.2 s at the
/// latest (net/ipv4/tcp_input.c: tcp_rcv_synsent_state_process). A matter of speed alone, so it cannot fail.
pub fn acknowledge_with_data(unconnected: &Socket) {
    let _ = unconnected.set_tcp_quickack(false);
}

/// Whether a socket that dials has had its answer, and it was a yes.
pub fn is_connected(dialling: &impl AsFd) -> bool {
    let mut sockets = [PollFd::new(dialling, PollFlags::OUT)];
    matches!(poll(&mut sockets, Some(&Timespec::default())), Ok(1)) && sockets[0].revents() == PollFlags::OUT
}

fn set_ip_option(socket: &Socket, option: libc::c_int, value: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_IP, option, value)
}

/// Sets an option that is a number.
fn set_option(socket: &Socket, level: libc::c_int, option: libc::c_int, value: u32) -> io::Result<()> {
    // SAFETY: the value is four bytes and lives through the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What every TCP leg has: no delay for small writes, and keep-alive where the other end may vanish.
fn tune(socket: &Socket, other: Other) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if other == Other::App {
        // Inside a pod nothing is ever congested, and every kernel has this one. The host's choice, if it paces (BBR),
        // costs a timer for each packet. The app's own end is seen to by the programs. A matter of speed alone.
        let _ = socket.set_tcp_congestion(b"reno");
        return Ok(());
    }
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// What a tunnel's socket holds that was not sent yet. It takes no more before, so that a small message does not wait
/// behind megabytes of another stream.
const UNSENT: u32 = 256 * 1024;
/// Up to here a tunnel's peer is near: the same zone, or the next one.
const NEAR: Duration = Duration::from_millis(2);
/// What a near peer may have under way. The kernel would let it grow until it is full whenever this end is the slower one
/// (6 MiB and more); over a way of 2 ms this is 4 Gbit/s, and over one of 0.1 ms no limit.
const UNDER_WAY: u32 = 1024 * 1024;

/// What a tunnel's socket has beyond others, once it is connected. A matter of speed alone, so it cannot fail.
///
/// When its peer is near, the host's BBR is taken off. BBR is made for long ways: it paces, which in a pod means a timer
/// for each packet (a third of a tunnel's cost), and every 10 s it stops for 200 ms to measure the way, with all streams
/// of the tunnel. Any other choice of the host's is kept.
pub fn tune_tunnel(tunnel: &impl AsFd) {
    let socket = SockRef::from(tunnel);
    let set = |level, option, value| set_option(&socket, level, option, value).is_ok();
    set(libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, UNSENT);
    if round_trip(&socket).is_none_or(|time| time >= NEAR) {
        return;
    }
    // Both: a fixed buffer stops the kernel from growing the window as well. No system's limit is meant for this one.
    if set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, UNDER_WAY) {
        set(libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, UNDER_WAY);
    }
    let paced = socket.tcp_congestion().is_ok_and(|name| name.starts_with(b"bbr"));
    if paced && socket.set_tcp_congestion(b"cubic").is_err() {
        let _ = socket.set_tcp_congestion(b"reno");
    }
}

/// The kernel's estimate; after a handshake, what that took.
fn round_trip(socket: &Socket) -> Option<Duration> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than `length` bytes to `info`, which lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: any bytes are a `tcp_info`, and it was zeroed.
    let micros = unsafe { info.assume_init() }.tcpi_rtt;
    (result == 0 && micros > 0).then(|| Duration::from_micros(micros.into()))
}

/// Makes closing the socket send RST: the app must not take a failure for a clean end.
pub fn abort_on_close(stream: &impl AsFd) {
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Write as _, stdout},
        net::TcpStream,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (dialled, listener.accept().unwrap().0)
    }

    #[test]
    fn a_near_tunnel_is_not_paced_and_any_other_choice_of_the_host_is_kept() {
        let (dialled, accepted) = pair();
        for (end, host, tuned) in [(&dialled, "bbr", "cubic"), (&accepted, "reno", "reno")] {
            let socket = SockRef::from(end);
            if socket.set_tcp_congestion(host.as_bytes()).is_err() {
                // Past libtest, which hides what a test prints that does not fail (as `weft_tests::skip`).
                let _ = writeln!(stdout(), "\nSKIPPED a tunnel's pace: this kernel has no {host}");
                continue;
            }
            tune_tunnel(end);
            let name = socket.tcp_congestion().unwrap();
            let name = String::from_utf8_lossy(&name);
            let name = name.trim_end_matches('\0');
            // A kernel may come without cubic.
            assert!(
                name == tuned || (host != tuned && name == "reno"),
                "{host} became {name}"
            );
        }
    }

    #[test]
    fn a_socket_that_dials_tells_when_it_has_its_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let dialling = unconnected(addr, Other::App).unwrap();
        assert!(!is_connected(&dialling));
        let _ = dialling.connect(&addr.into());
        assert!(is_connected(&dialling));
        let refused = unconnected(addr, Other::App).unwrap();
        drop(listener);
        let _ = refused.connect(&addr.into());
        assert!(!is_connected(&refused));
    }

    #[test]
    fn an_app_is_woken_once_for_a_connection_and_its_first_bytes_or_soon_without_them() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let dial = || {
            let socket = unconnected(addr, Other::App).unwrap();
            acknowledge_with_data(&socket);
            let _ = socket.connect(&addr.into());
            assert!(is_connected(&socket));
            socket
        };
        let speaks = dial();
        assert!(listener.accept().is_err(), "accepted before its bytes were there");
        speaks.send(b"hello").unwrap();
        let (accepted, _) = listener.accept().unwrap();
        accepted.set_nonblocking(true).unwrap();
        let mut got = [MaybeUninit::uninit(); 8];
        assert_eq!(SockRef::from(&accepted).recv(&mut got).unwrap(), 5);
        let _silent = dial();
        listener.set_nonblocking(false).unwrap();
        listener.accept().unwrap();
    }

    #[test]
    fn a_peer_that_vanishes_from_the_network_is_noticed() {
        let dialled = unconnected(([127, 0, 0, 1], 1).into(), Other::Network).unwrap();
        let listener = Socket::from(listen(Family::V4, Other::Network, true).unwrap());
        for socket in [&dialled, &listener] {
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        }
    }

    #[test]
    fn what_an_app_is_dialled_with_is_not_paced() {
        let socket = unconnected(([127, 0, 0, 1], 1).into(), Other::App).unwrap();
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
    }
}
