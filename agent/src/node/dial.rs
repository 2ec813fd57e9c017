//! Dialling from inside a pod: to other nodes' tunnels, to plain destinations, and to the pod's own app.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use socket2::Socket;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::pod::Pod;
use crate::{
    kernel::maps::SocketStates,
    net::socket::{Other, bind_source, unconnected},
};

/// How long a TCP connect may take: as in Istio's ambient mode.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Loopback addresses that connections to an app are spread over when one has no port left.
const LOOPBACK_SOURCES: u8 = 16;
/// How long to wait for an app's answer to ::1. Inside a pod it comes at once or not at all; on a busy node a little
/// later, and giving up on one that is on its way would show the app a connection that nobody uses.
const LOOPBACK_ANSWER: Duration = Duration::from_millis(200);

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

/// Dials an app in the pod; the app sees `client` as its peer. The source is a loopback address, which cannot come
/// from outside the pod, and whose ports the kernel reuses while they are in TIME-WAIT.
pub(super) async fn dial_app(
    sockets: &SocketStates,
    pod: &Pod,
    app: SocketAddr,
    client: SocketAddr,
) -> io::Result<TcpStream> {
    let from = |source| connect_app(sockets, pod, app, client, source);
    for source in loopback_sources(app.ip()) {
        let connected = if app.is_ipv4() {
            from(source).await
        } else {
            // A RST to ::1 is lost: the kernel sends it out of the device that has the pod's address
            // (net/ipv6/tcp_ipv6.c: tcp_v6_send_response). To that address itself it comes back.
            match timeout(LOOPBACK_ANSWER, from(source)).await {
                Ok(connected) => connected,
                Err(_) => from(app.ip()).await,
            }
        };
        match connected {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            result => return result,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::AddrNotAvailable,
        "every port of every loopback address is in use",
    ))
}

async fn connect_app(
    sockets: &SocketStates,
    pod: &Pod,
    app: SocketAddr,
    client: SocketAddr,
    source: IpAddr,
) -> io::Result<TcpStream> {
    let socket = pod.netns.enter(|| unconnected(app, Other::App))?;
    sockets
        .mark_on_behalf(&socket, client)
        .map_err(io::Error::other)?;
    bind_source(&socket, source)?;
    connect(socket, app).await
}

fn loopback_sources(app: IpAddr) -> impl Iterator<Item = IpAddr> {
    let v4 = (1..=LOOPBACK_SOURCES).map(|last| IpAddr::from(Ipv4Addr::new(127, 0, 0, last)));
    let v6 = [IpAddr::from(Ipv6Addr::LOCALHOST)];
    let is_v4 = app.is_ipv4();
    v4.filter(move |_| is_v4)
        .chain(v6.into_iter().filter(move |_| !is_v4))
}

async fn connect(socket: Socket, remote: SocketAddr) -> io::Result<TcpStream> {
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(remote);
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "no answer from {remote} in {} s; does a NetworkPolicy block it?",
                CONNECT_TIMEOUT.as_secs()
            ),
        )),
    }
}
