//! The server's side: TLS with a certificate that is replaced while it runs, HTTP/2, and one handler for all calls. A client may
//! have a certificate of the mesh; whether that is enough the handler says.
//!
//! Anybody in the cluster reaches it. So one address has a part of the places only, and a connection that has not made a call that
//! was accepted is ended soon.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustc_hash::FxHashMap;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::NoServerSessionStorage,
};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Status;

use crate::{
    mesh::{SpiffeId, TrustDomain},
    net::tls::{CLOCK_SKEW, TrustBundle, crypto_provider, expires, optional_clients, peer_identity},
};

/// What all clients may have together.
const LIMITS: Limits = Limits {
    connections: 10_000,
    of_address: 128,
    unproven: Duration::from_secs(15),
};
/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often it is asked whether a client is still there, and how long the answer may take.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Calls of one connection at once.
const CALLS: u32 = 128;
/// How long calls may go on once the server is to end.
const DRAIN: Duration = Duration::from_secs(2);

/// What answers calls.
pub trait Handler: Send + Sync + 'static {
    /// Answers one call.
    fn call(self: Arc<Self>, request: http::Request<Incoming>) -> Answer;
}

/// The answer to come.
pub type Answer = Pin<Box<dyn Future<Output = http::Response<tonic::body::Body>> + Send>>;

/// Who the client of a connection has proved to be by a certificate of the mesh: an extension of each of its calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified(pub SpiffeId);

/// Where a connection comes from: an extension of each of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// Whose certificates are believed, where clients may have any.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// The roots that they end in.
    pub trust: TrustBundle,
    /// The trust domain that they are of.
    pub trust_domain: TrustDomain,
}

/// The server's certificate, and which of clients are believed. Clones share it.
#[derive(Clone)]
pub struct ServerTls(Arc<ArcSwap<Terms>>);

/// What new connections meet.
struct Terms {
    config: Arc<ServerConfig>,
    clients: Option<Clients>,
    /// Other certificates are believed now: whoever was let in by one comes again.
    over: CancellationToken,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

/// Why it cannot serve.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The certificate cannot be used.
    #[error("the server's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
}

impl ServerTls {
    /// Serves with this certificate, and asks clients for one where some are believed.
    ///
    /// # Errors
    /// When rustls does not take it.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        clients: Option<Clients>,
    ) -> Result<Self, ServeError> {
        let terms = Terms {
            config: config(chain, key, clients.as_ref())?,
            clients,
            over: CancellationToken::new(),
        };
        Ok(Self(Arc::new(ArcSwap::from_pointee(terms))))
    }

    /// Serves new connections with this one. Where other clients are believed from now on, those that were let in by their
    /// certificate come again.
    ///
    /// # Errors
    /// When rustls does not take it; the one before stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        clients: Option<Clients>,
    ) -> Result<(), ServeError> {
        let config = config(chain, key, clients.as_ref())?;
        let before = self.0.load_full();
        let is_same = before.clients == clients;
        let over = match is_same {
            true => before.over.clone(),
            false => CancellationToken::new(),
        };
        self.0.store(Arc::new(Terms {
            config,
            clients,
            over,
        }));
        if !is_same {
            before.over.cancel();
        }
        Ok(())
    }
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<&Clients>,
) -> Result<Arc<ServerConfig>, ServeError> {
    let builder = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ServeError::Certificate)?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(Clients { trust, trust_domain }) => {
            builder.with_client_cert_verifier(optional_clients(trust.clone(), trust_domain))
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(ServeError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A ticket would keep a client known that is not believed any more, and connections are few and long.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// How much of the server clients may have.
#[derive(Clone, Copy)]
struct Limits {
    /// Connections at once: each agent has two.
    connections: usize,
    /// And those of one address, once half of all places are taken: where a node hides its pods' addresses behind its own, its
    /// agent's and its waypoints' are all one.
    of_address: usize,
    /// How long a connection may be open before a call of it is accepted.
    unproven: Duration,
}

/// Serves until `shutdown`, and then what is open for a few seconds more.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: ServerTls,
    handler: Arc<H>,
    shutdown: CancellationToken,
) {
    serve_within(LIMITS, listener, tls, handler, shutdown).await;
}

async fn serve_within<H: Handler>(
    limits: Limits,
    listener: TcpListener,
    tls: ServerTls,
    handler: Arc<H>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let addresses = Addresses::default();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((tcp, peer, place)) => {
                let is_scarce = places.available_permits() < limits.connections / 2;
                let most = if is_scarce {
                    limits.of_address
                } else {
                    limits.connections
                };
                let Some(of_address) = addresses.enter(peer.ip().to_canonical(), most) else {
                    tracing::debug!(%peer, "its address has {most} connections already");
                    continue;
                };
                let connection = Connection {
                    unproven: limits.unproven,
                    tls: tls.clone(),
                    handler: Arc::clone(&handler),
                    shutdown: shutdown.clone(),
                    of_address,
                    _place: place,
                };
                connections.spawn(connection.serve(tcp));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of an agent");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

/// With no place free it waits: the kernel's queue says to clients that we are busy.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (tcp, peer) = listener.accept().await?;
    Ok((tcp, peer, place))
}

/// How many connections each address has. Clones share it.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<FxHashMap<IpAddr, usize>>>);

/// One connection of an address.
struct OfAddress {
    address: IpAddr,
    all: Addresses,
}

impl Addresses {
    fn enter(&self, address: IpAddr, most: usize) -> Option<OfAddress> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(OfAddress {
            address,
            all: self.clone(),
        })
    }
}

impl Drop for OfAddress {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.address);
            }
        }
    }
}

/// Whether a call was accepted: a refusal has its status among the headers, with nothing behind them.
fn is_accepted(answer: &http::Response<tonic::body::Body>) -> bool {
    !answer.headers().contains_key(Status::GRPC_STATUS)
}

/// Resolves when no call was accepted in time.
async fn is_unproven(proven: &CancellationToken, limit: Duration) {
    if timeout(limit, proven.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Who has a chain that was verified, and when it runs out.
fn certified(chain: Option<&[CertificateDer<'_>]>) -> (Option<Certified>, Option<SystemTime>) {
    match chain {
        Some(chain) => (peer_identity(chain).ok().map(Certified), expires(chain)),
        None => (None, None),
    }
}

/// Resolves when a connection has to end: with the server, or when its client's certificate is not believed any more.
async fn is_over(shutdown: &CancellationToken, over: Option<&CancellationToken>, until: Option<SystemTime>) {
    let over = async {
        match over {
            Some(over) => over.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let expired = async {
        match until {
            Some(until) => {
                sleep(until.duration_since(SystemTime::now()).unwrap_or_default() + CLOCK_SKEW).await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = over => {}
        () = expired => {}
    }
}

struct Connection<H> {
    tls: ServerTls,
    handler: Arc<H>,
    shutdown: CancellationToken,
    unproven: Duration,
    of_address: OfAddress,
    _place: OwnedSemaphorePermit,
}

impl<H: Handler> Connection<H> {
    async fn serve(self, tcp: TcpStream) {
        let peer = Peer(self.of_address.address);
        let _ = tcp.set_nodelay(true);
        let terms = self.tls.0.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&terms.config));
        let handshake = tokio::select! {
            () = self.shutdown.cancelled() => return,
            handshake = timeout(HANDSHAKE, acceptor.accept(tcp)) => handshake,
        };
        let stream = match handshake {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(?peer, %error, "a handshake failed");
                return;
            }
            Err(_) => return,
        };
        let (certified, until) = certified(stream.get_ref().1.peer_certificates());
        let handler = Arc::clone(&self.handler);
        let is_certified = certified.is_some();
        let proven = CancellationToken::new();
        let proof = proven.clone();
        let service = service_fn(move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            if let Some(certified) = &certified {
                request.extensions_mut().insert(certified.clone());
            }
            let (answer, proof) = (Arc::clone(&handler).call(request), proof.clone());
            async move {
                let answer = answer.await;
                if is_accepted(&answer) {
                    proof.cancel();
                }
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .max_concurrent_streams(CALLS)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let over = async {
            tokio::select! {
                () = is_over(&self.shutdown, is_certified.then_some(&terms.over), until) => {}
                () = is_unproven(&proven, self.unproven) => {}
            }
        };
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = over => {
                connection.as_mut().graceful_shutdown();
                // Streams have no end of their own.
                match timeout(DRAIN, connection).await {
                    Ok(served) => served,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = served {
            tracing::debug!(?peer, %error, "a connection broke");
        }
    }
}

#[cfg(test)]
mod tests;
