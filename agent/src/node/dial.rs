//! Dialling from inside a pod: to other nodes' tunnels, to plain destinations, and to the pod's own app.

use std::{
    io,
    iter::repeat_n,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::Socket;
use tokio::{net::TcpStream, time::timeout};

use super::pod::Pod;
use crate::{
    kernel::maps::{SocketStates, behalf_source},
    net::socket::{
        Other, abort_on_close, acknowledge_with_data, bind_source, is_connected, pick_few_ports, unconnected,
    },
};

/// How long a TCP connect may take: as in Istio's ambient mode.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Loopback addresses that are tried, from that of the client on, when one has no port left.
const LOOPBACK_SOURCES: u8 = 16;
/// How long an app has for its answer to ::1, which may be lost: see [`sources`].
const LOOPBACK_ANSWER: Duration = Duration::from_millis(200);
/// Ranges of ports of the pod's own IPv6 address that are tried before `::1`.
const OWN_RANGES: usize = 3;

/// Dials `remote` as the agent, from the address that the app dialled from where that is of the same family: a pod may
/// have several.
pub(super) async fn dial(
    sockets: &SocketStates,
    pod: &Pod,
    source: IpAddr,
    remote: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = pod.netns.enter(|| unconnected(remote, Other::Network))?;
    sockets.mark_own(&socket).map_err(io::Error::other)?;
    if source.is_ipv4() == remote.is_ipv4() && pod.addresses.contains(&source) {
        bind_source(&socket, source)?;
    }
    connect(socket, remote).await
}

/// Who dials an app.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Whom the app sees as its peer.
    pub(super) client: SocketAddr,
    /// Whether it has spoken already: its bytes follow at once.
    pub(super) has_spoken: bool,
}

/// Dials an app in the pod. The source is an address that cannot come from outside the pod: see [`sources`].
pub(super) async fn dial_app(
    sockets: &SocketStates,
    pod: &Pod,
    app: SocketAddr,
    caller: Caller,
) -> io::Result<TcpStream> {
    for source in sources(app.ip(), caller.client.ip()) {
        let connecting = connect_app(sockets, pod, app, caller, source);
        let connected = if source == IpAddr::V6(Ipv6Addr::LOCALHOST) {
            match timeout(LOOPBACK_ANSWER, connecting).await {
                Ok(connected) => connected,
                Err(_) => continue,
            }
        } else {
            connecting.await
        };
        match connected {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            result => return result,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        "every port of every address to dial the app from is in use",
    ))
}

async fn connect_app(
    sockets: &SocketStates,
    pod: &Pod,
    app: SocketAddr,
    caller: Caller,
    source: IpAddr,
) -> io::Result<TcpStream> {
    let socket = pod.netns.enter(|| unconnected(app, Other::App))?;
    if caller.has_spoken {
        acknowledge_with_data(&socket);
    }
    sockets
        .mark_on_behalf(&socket, caller.client)
        .map_err(io::Error::other)?;
    bind_source(&socket, source)?;
    if source == app.ip() {
        // Ports in TIME-WAIT are not used again there, and the kernel would look through all of them.
        pick_few_ports(&socket)?;
    }
    let connecting = begin(socket, app)?;
    // Asked before anybody can be there: such a SYN is refused, but over IPv6 the refusal may be lost.
    if let Err(unnoted) = sockets.noted(&connecting) {
        abort_on_close(&connecting);
        return Err(io::Error::new(io::ErrorKind::OutOfMemory, unnoted));
    }
    finish(connecting, app).await
}

/// Where an app may be dialled from.
///
/// Over IPv4 from loopback, where the kernel reuses ports in TIME-WAIT. Clients have an address each, as far as there are
/// enough, and so a range of ports of their own, as without a mesh.
///
/// Over IPv6 there is one loopback address, and what the kernel answers to it without a socket is lost, such as a RST: it
/// goes out of the device that has the pod's address (net/ipv6/tcp_ipv6.c: tcp_v6_send_response). So the pod's own
/// address comes first, and `::1` when that has no port left.
fn sources(app: IpAddr, client: IpAddr) -> impl Iterator<Item = IpAddr> {
    let (first, is_v4) = (spread(client), app.is_ipv4());
    let v4 = (0..LOOPBACK_SOURCES).map(move |nth| behalf_source(first.wrapping_add(nth)));
    let loopback = IpAddr::from(Ipv6Addr::LOCALHOST);
    let v6 = repeat_n(app, OWN_RANGES).chain([loopback, app]);
    v4.filter(move |_| is_v4).chain(v6.filter(move |_| !is_v4))
}

/// A number by which clients differ, neighbours above all.
fn spread(client: IpAddr) -> u8 {
    let sum = |octets: &[u8]| {
        octets
            .iter()
            .fold(0_u8, |sum, octet| sum.wrapping_mul(31).wrapping_add(*octet))
    };
    match client {
        IpAddr::V4(ip) => sum(&ip.octets()),
        IpAddr::V6(ip) => sum(&ip.octets()),
    }
}

async fn connect(socket: Socket, remote: SocketAddr) -> io::Result<TcpStream> {
    finish(begin(socket, remote)?, remote).await
}

/// Sends the SYN.
fn begin(socket: Socket, remote: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&remote.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => TcpStream::from_std(socket.into()),
    }
}

/// Waits for the answer. An app of the pod has given it by now: its own kernel did, while the SYN was being sent.
async fn finish(connecting: TcpStream, remote: SocketAddr) -> io::Result<TcpStream> {
    if is_connected(&connecting) {
        return Ok(connecting);
    }
    let answered = async {
        connecting.writable().await?;
        connecting.take_error()?.map_or(Ok(()), Err)
    };
    match timeout(CONNECT_TIMEOUT, answered).await {
        Ok(answered) => answered.map(|()| connecting),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "no answer from {remote} in {} s; does a NetworkPolicy block it?",
                CONNECT_TIMEOUT.as_secs()
            ),
        )),
    }
}
