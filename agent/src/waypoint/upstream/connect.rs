//! Opening a connection to an endpoint: a stream of a tunnel, or plain TCP.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use crate::{
    hbone::{
        Authority, Baggage, ConnectError, ConnectRequest, Dialled, Forwarded, Io, TraceParent, TunnelKey,
    },
    limits::Place,
    mesh::{NextHop, SpiffeId, Workload},
    net::{
        socket::{Other, dial},
        tls,
    },
};

use super::super::listen::Worker;

/// How long a connection may take where nothing is said: as in Istio.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How an endpoint is reached: all that has to be the same for a connection to be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in super::super) enum Hop {
    /// Plain TCP.
    Direct(SocketAddr),
    /// A stream of a tunnel.
    Tunnel {
        /// Where the tunnel is dialled.
        gateway: SocketAddr,
        /// What the CONNECT asks for.
        authority: SocketAddr,
        /// Who must answer there.
        identities: Arc<[SpiffeId]>,
    },
}

impl Hop {
    /// How it is reached; none for what is refused.
    pub(in super::super) fn of(next: &NextHop) -> Option<Self> {
        match next {
            NextHop::Refuse(_) => None,
            NextHop::Direct { addr, .. } => Some(Self::Direct(*addr)),
            NextHop::Tunnel(tunnel) => Some(Self::Tunnel {
                gateway: tunnel.addr,
                authority: tunnel.authority,
                identities: Arc::clone(&tunnel.identities),
            }),
        }
    }
}

/// Opens one. `client` is told to the other end of a tunnel, where the connection is one client's alone.
///
/// # Errors
/// When it cannot be reached, is somebody else, or refuses us.
pub(in super::super) async fn open(
    worker: &Arc<Worker>,
    hop: &Hop,
    client: Option<SocketAddr>,
    wait_ms: Option<u64>,
) -> Result<Leg, ConnectError> {
    let wait = wait_ms.map_or(CONNECT_TIMEOUT, Duration::from_millis);
    let peer = match hop {
        Hop::Direct(addr) => *addr,
        Hop::Tunnel { gateway, .. } => *gateway,
    };
    let opening = async {
        match hop {
            Hop::Direct(addr) => direct(worker, *addr).await.map_err(|source| ConnectError::Dial {
                peer,
                source: source.into(),
            }),
            Hop::Tunnel {
                gateway,
                authority,
                identities,
            } => through_tunnel(worker, (*gateway, *authority), identities, client).await,
        }
    };
    let opened = timeout(wait, opening).await;
    opened.unwrap_or_else(|_| {
        Err(ConnectError::Dial {
            peer,
            source: Arc::new(io::ErrorKind::TimedOut.into()),
        })
    })
}

async fn direct(worker: &Worker, addr: SocketAddr) -> io::Result<Leg> {
    let place = worker.shared.places.socket().map_err(io::Error::other)?;
    let tcp = dial(addr, Other::Network).await?;
    Ok(Leg::Tcp(tcp, place))
}

async fn through_tunnel(
    worker: &Arc<Worker>,
    (gateway, authority): (SocketAddr, SocketAddr),
    identities: &Arc<[SpiffeId]>,
    client: Option<SocketAddr>,
) -> Result<Leg, ConnectError> {
    let svids = &worker.shared.svids;
    let seen = worker.shared.seen.load_full();
    let svid = seen.as_ref().and_then(|seen| svids.current(&seen.identity));
    let (Some(seen), Some(svid)) = (seen, svid) else {
        return Err(ConnectError::Closed { peer: gateway });
    };
    let key = TunnelKey {
        source: seen.identity.clone(),
        generation: svid.generation,
        accept: Arc::clone(identities),
        netns: 0,
        source_ip: own_address(&seen.own, gateway.ip()),
        gateway,
    };
    let request = ConnectRequest {
        authority: Authority::Addr(authority),
        baggage: Some(Baggage::of(&seen.own).header()),
        forwarded: client.map(|client| Forwarded { client, host: None }),
        traceparent: tls::random().ok().map(|random| TraceParent::new(random, false)),
        first: Bytes::new(),
    };
    let side = || tls::client(svids.sessions(), Arc::clone(&svid.cert), Arc::clone(identities));
    let places = Arc::clone(&worker.shared.places);
    let dial = move || async move {
        let place = places.socket().map_err(io::Error::other)?;
        let tcp = dial(gateway, Other::Network).await?;
        let held = Box::new(place);
        Ok(Dialled { tcp, held })
    };
    let stream = worker.tunnels.connect(key, side, dial, request).await?;
    Ok(Leg::Tunnel(Io::from(stream)))
}

/// The pod's own address of the family that is dialled; tunnels are told apart by it.
fn own_address(own: &Workload, like: IpAddr) -> IpAddr {
    let of_family = own.addresses.iter().find(|own| own.is_ipv4() == like.is_ipv4());
    of_family.or(own.addresses.first()).copied().unwrap_or(like)
}

/// An open connection to an endpoint.
pub(in super::super) enum Leg {
    Tunnel(Io),
    /// And the place that its socket has.
    Tcp(
        TcpStream,
        #[allow(dead_code, reason = "it is held for as long as the socket is")] Place,
    ),
}

impl AsyncRead for Leg {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tcp(tcp, _) => Pin::new(tcp).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tcp(tcp, _) => Pin::new(tcp).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, slices),
            Self::Tcp(tcp, _) => Pin::new(tcp).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
            Self::Tcp(tcp, _) => Pin::new(tcp).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tcp(tcp, _) => Pin::new(tcp).poll_shutdown(cx),
        }
    }
}
