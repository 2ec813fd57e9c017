//! Two agents without a kernel: a pool on one side, a server on the other, apps beyond both.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use rustls::sign::CertifiedKey;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    hbone::{
        AppSide, Authority, Baggage, ConnectError, ConnectRequest, Drain, Pair, Pool, Request, ServeError,
        Settings, Stream, TunnelKey, copy, serve,
    },
    net::{
        copy::{CopyError, Counters},
        lanes::Lanes,
        tls::{self, Sessions, sample::Ca},
    },
};

pub(super) const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub(super) const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/stock";

const HERE: Pair = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST));

/// Nothing in these tests takes longer unless it hangs.
pub(super) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(5), future).await.expect("it hangs")
}

/// Waits until `condition` holds.
pub(super) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(super) struct World {
    pub(super) ca: Ca,
    /// Of both ends.
    pub(super) sessions: Sessions,
    pub(super) server_cert: Arc<CertifiedKey>,
    /// What the client presented last.
    pub(super) presented: Mutex<Option<Arc<CertifiedKey>>>,
    pub(super) pool: Pool,
    lanes: Lanes,
    pub(super) server: Server,
    pub(super) dials: Arc<AtomicUsize>,
}

/// The side that takes tunnels.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    pub(super) tunnels: Arc<Mutex<Vec<Tunnel>>>,
    pub(super) ended: mpsc::Receiver<Result<(), ServeError>>,
}

/// One tunnel as the server sees it.
pub(super) struct Tunnel {
    pub(super) drain: CancellationToken,
    pub(super) kill: CancellationToken,
}

impl World {
    /// A server that dials what it is asked for.
    pub(super) async fn new() -> Self {
        Self::with(Settings::default(), relay).await
    }

    pub(super) async fn with(
        settings: Settings,
        on_request: impl Fn(Request) + Clone + Send + 'static,
    ) -> Self {
        Self::among([Lanes::default(), Lanes::default()], settings, on_request).await
    }

    /// With a worker's two threads, as an agent has them, on the side that dials and on the other one.
    pub(super) async fn among(
        [near, far]: [Lanes; 2],
        settings: Settings,
        on_request: impl Fn(Request) + Clone + Send + 'static,
    ) -> Self {
        let ca = Ca::new();
        let sessions = ca.sessions();
        let server_cert = ca.svid(SERVER);
        let domains = ["cluster.local".parse().unwrap()];
        let side = tls::server(&sessions, server_cert.clone(), &domains).unwrap();
        let server = Server::start(far, side, settings.clone(), on_request).await;
        Self {
            ca,
            sessions,
            server_cert,
            presented: Mutex::default(),
            server,
            pool: Pool::new(settings, near.clone()),
            lanes: near,
            dials: Arc::default(),
        }
    }

    pub(super) fn key(&self) -> TunnelKey {
        TunnelKey {
            netns: 0,
            source: CLIENT.parse().unwrap(),
            generation: 1,
            accept: [SERVER.parse().unwrap()].into(),
            source_ip: [127, 0, 0, 1].into(),
            gateway: self.server.addr,
        }
    }

    pub(super) fn client(&self) -> tls::Client {
        let accept = [SERVER.parse().unwrap()].into();
        let cert = self.ca.svid(CLIENT);
        *self.presented.lock().unwrap() = Some(cert.clone());
        tls::client(&self.sessions, cert, accept).unwrap()
    }

    /// A stream to `target`.
    pub(super) async fn connect(&self, target: SocketAddr) -> Result<Stream, ConnectError> {
        let (dials, gateway) = (self.dials.clone(), self.server.addr);
        let dial = move || {
            dials.fetch_add(1, SeqCst);
            dial(gateway)
        };
        soon(
            self.pool
                .connect(self.key(), || Ok(self.client()), dial, request(target)),
        )
        .await
    }

    /// An app's socket whose other end is copied through a stream to `target`.
    pub(super) async fn app(&self, target: SocketAddr) -> (TcpStream, Copy) {
        let stream = self.connect(target).await.unwrap();
        let (app, agent) = pair().await;
        let counters = Arc::new(Counters::default());
        let task = tokio::spawn({
            let counters = counters.clone();
            async move { copy(agent, (stream, Bytes::new()), AppSide::Dialled, &*counters).await }
        });
        (app, Copy { counters, task })
    }

    /// The same, of which nothing is asked but that it goes on where it belongs.
    pub(super) async fn roaming_app(&self, target: SocketAddr) -> TcpStream {
        let stream = self.connect(target).await.unwrap();
        let (app, agent) = pair().await;
        self.lanes.spawn(async move {
            copy(
                agent,
                (stream, Bytes::new()),
                AppSide::Dialled,
                &Counters::default(),
            )
            .await
            .unwrap();
        });
        app
    }

    /// A TLS connection to the server with nothing on it, to write frames by hand.
    pub(super) async fn raw(&self) -> tls::ClientStream {
        let tcp = dial(self.server.addr).await.unwrap();
        let (stream, _) = tls::connect(tcp, self.client(), self.server.addr.ip(), Duration::from_secs(5))
            .await
            .unwrap();
        stream
    }

    pub(super) fn tunnels(&self) -> usize {
        self.server.tunnels.lock().unwrap().len()
    }
}

/// A copy that runs on the dialling side.
pub(super) struct Copy {
    pub(super) counters: Arc<Counters>,
    pub(super) task: tokio::task::JoinHandle<Result<(), CopyError>>,
}

impl Server {
    async fn start(
        lanes: Lanes,
        side: tls::Server,
        settings: Settings,
        on_request: impl Fn(Request) + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tunnels = Arc::new(Mutex::new(Vec::new()));
        let (ends, ended) = mpsc::channel(64);
        let accepted = tunnels.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                let (side, settings, on_request) = (side.clone(), settings.clone(), on_request.clone());
                let (ends, drain) = (ends.clone(), CancellationToken::new());
                let token = Drain {
                    begins: drain.clone(),
                    ..Drain::default()
                };
                let kill = CancellationToken::new();
                let serving = kill.clone().run_until_cancelled_owned(async move {
                    let Ok((stream, _)) = tls::accept(tcp, side, Duration::from_secs(5)).await else {
                        return;
                    };
                    let _ = ends.try_send(serve(stream, &settings, HERE, token, on_request).await);
                });
                lanes.spawn(async move { _ = serving.await });
                accepted.lock().unwrap().push(Tunnel { drain, kill });
            }
        });
        Self { addr, tunnels, ended }
    }
}

/// Dials what a request asks for and copies.
pub(super) fn relay(request: Request) {
    relay_among(&Lanes::default(), request);
}

/// The same, where connections go on where they belong.
pub(super) fn relay_among(lanes: &Lanes, mut request: Request) {
    lanes.spawn(async move {
        let Ok(Authority::Addr(target)) = request.target else {
            return request.respond.refuse(400);
        };
        let dialled = tokio::select! {
            dialled = dial(target) => dialled,
            () = request.respond.cancelled() => return,
        };
        let Ok(app) = dialled else {
            return request.respond.refuse(503);
        };
        let Ok(stream) = request.respond.accept(Some(&baggage("stock").header())) else {
            return;
        };
        let _ = copy(
            app,
            (stream, Bytes::new()),
            AppSide::Answered,
            &Counters::default(),
        )
        .await;
    });
}

pub(super) fn baggage(name: &str) -> Baggage {
    Baggage {
        workload_name: name.into(),
        ..Baggage::default()
    }
}

pub(super) fn request(target: impl Into<Authority>) -> ConnectRequest {
    ConnectRequest {
        authority: target.into(),
        baggage: Some(baggage("cart").header()),
        forwarded: None,
        traceparent: None,
        first: Bytes::new(),
    }
}

pub(super) async fn dial(addr: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(addr).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// Two ends of a TCP connection.
pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (dialled, accepted) = tokio::join!(dial(addr), listener.accept());
    (dialled.unwrap(), accepted.unwrap().0)
}

/// Where an app listens, for tests that play the app themselves.
pub(super) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An app that sends back what it gets, to its end.
pub(super) async fn echo() -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut app, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = app.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}
