//! The server's side: TLS with a certificate that is replaced while it runs, HTTP/2, and one handler for all calls.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::net::tls::crypto_provider;

/// Connections at once: each agent has two.
const CONNECTIONS: usize = 10_000;
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

/// The server's certificate. Clones share it.
#[derive(Clone)]
pub struct ServerTls(Arc<ArcSwap<ServerConfig>>);

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
    /// Serves with this certificate.
    ///
    /// # Errors
    /// When rustls does not take it.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, ServeError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(config(chain, key)?))))
    }

    /// Serves new connections with this one.
    ///
    /// # Errors
    /// When rustls does not take it; the one before stays.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), ServeError> {
        self.0.store(Arc::new(config(chain, key)?));
        Ok(())
    }
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, ServeError> {
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(ServeError::Certificate)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(ServeError::Certificate)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Serves until `shutdown`, and then what is open for a few seconds more.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    tls: ServerTls,
    handler: Arc<H>,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((tcp, place)) => {
                let connection = Connection {
                    tls: tls.clone(),
                    handler: Arc::clone(&handler),
                    shutdown: shutdown.clone(),
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
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (tcp, _) = listener.accept().await?;
    Ok((tcp, place))
}

struct Connection<H> {
    tls: ServerTls,
    handler: Arc<H>,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl<H: Handler> Connection<H> {
    async fn serve(self, tcp: TcpStream) {
        let peer = tcp.peer_addr().ok();
        let _ = tcp.set_nodelay(true);
        let acceptor = TlsAcceptor::from(self.tls.0.load_full());
        let stream = match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(?peer, %error, "a handshake failed");
                return;
            }
            Err(_) => return,
        };
        let handler = Arc::clone(&self.handler);
        let service = service_fn(move |request| {
            let answer = Arc::clone(&handler).call(request);
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .max_concurrent_streams(CALLS)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.shutdown.cancelled() => {
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
