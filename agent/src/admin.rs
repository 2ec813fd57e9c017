//! A role's own HTTP ports: admin (15000, loopback), metrics (15020) and readiness (15021).
//!
//! Who calls it: a role, with something that knows its status. Everything is bounded: connections, headers, time; one
//! request a connection; bodies are never read. Traffic of pods never comes here.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::telemetry::{ExplainError, Explanation, LogFilter, Metrics, Status};

mod answer;
#[cfg(test)]
mod tests;

pub use answer::respond;

use answer::answer;

/// What is answered.
pub type Page = Response<Full<Bytes>>;

/// Connections of one port that are served at a time; others wait in the listen queue.
const MOST_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's header.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection may last in all.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(30);
/// How long requests in flight may take once the ports close.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// The most bytes of a request's header.
const LONGEST_HEADER: usize = 16 * 1024;

/// What the ports tell about, asked on every request.
pub trait StatusSource: Send + Sync {
    /// The whole status.
    fn status(&self) -> Status;

    /// Whether new pods may count on the agent.
    ///
    /// # Errors
    /// Why not, in one line.
    fn ready(&self) -> Result<(), String>;

    /// What becomes of a connection, and why; see [`explain`](fn@crate::telemetry::explain).
    ///
    /// # Errors
    /// When the question makes no sense to this mesh.
    fn explain(&self, from: &str, to: &str) -> Result<Explanation, ExplainError>;

    /// What it is called at `/`.
    fn role(&self) -> &'static str {
        "agent"
    }

    /// What `/config_dump` shows besides the status: the running configuration.
    fn config(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

/// Where the ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminAddrs {
    /// For people on the node; keep it on loopback.
    pub admin: SocketAddr,
    /// For Prometheus.
    pub metrics: SocketAddr,
    /// For the kubelet.
    pub ready: SocketAddr,
}

/// Why the ports could not be opened.
#[derive(Debug, Error)]
pub enum AdminError {
    /// An address is taken, or is not one of ours.
    #[error(
        "cannot listen on {addr} for {port}: free the port (`ss -ltnp` names its owner), or choose another address"
    )]
    Bind {
        /// What the address is for.
        port: Port,
        /// The address.
        addr: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Which of the ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// For people on the node.
    Admin,
    /// For Prometheus.
    Metrics,
    /// For the kubelet.
    Ready,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin",
            Self::Metrics => "metrics",
            Self::Ready => "readiness",
        })
    }
}

/// What the answers are made from. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    /// The role.
    pub source: Arc<dyn StatusSource>,
    /// The role's metrics.
    pub metrics: Metrics,
    /// The log's filter; `None` where the log is not ours to change.
    pub filter: Option<LogFilter>,
    /// Cancelled by `POST /quitquitquit`.
    pub quit: CancellationToken,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

/// The ports, open but not served yet: a role opens them first, so that a port that is taken stops it early.
#[derive(Debug)]
pub struct Listeners {
    admin: TcpListener,
    metrics: TcpListener,
    ready: TcpListener,
}

impl Listeners {
    /// Opens the ports.
    ///
    /// # Errors
    /// When one of them cannot be opened.
    pub async fn bind(addrs: &AdminAddrs) -> Result<Self, AdminError> {
        Ok(Self {
            admin: bind(Port::Admin, addrs.admin).await?,
            metrics: bind(Port::Metrics, addrs.metrics).await?,
            ready: bind(Port::Ready, addrs.ready).await?,
        })
    }

    /// Where the ports are; what was asked as port 0 has its number here.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn addrs(&self) -> io::Result<AdminAddrs> {
        Ok(AdminAddrs {
            admin: self.admin.local_addr()?,
            metrics: self.metrics.local_addr()?,
            ready: self.ready.local_addr()?,
        })
    }

    /// Answers until `shutdown`, then lets requests in flight end, for at most a second.
    pub async fn serve(self, admin: Admin, shutdown: CancellationToken) {
        let requests = TaskTracker::new();
        let of = |port: Port| {
            let admin = admin.clone();
            move |request: &Request<Incoming>| answer(port, request, &admin)
        };
        tokio::join!(
            serve_pages(self.admin, Port::Admin, of(Port::Admin), &requests, &shutdown),
            serve_pages(
                self.metrics,
                Port::Metrics,
                of(Port::Metrics),
                &requests,
                &shutdown
            ),
            serve_pages(self.ready, Port::Ready, of(Port::Ready), &requests, &shutdown),
        );
        requests.close();
        if timeout(DRAIN_DEADLINE, requests.wait()).await.is_err() {
            debug!("admin requests were cut off by the shutdown");
        }
    }
}

async fn bind(port: Port, addr: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(addr)
        .await
        .map_err(|source| AdminError::Bind { port, addr, source })
}

/// Answers requests on one port until `shutdown`; those in flight are in `requests`.
pub async fn serve_pages<F>(
    listener: TcpListener,
    port: Port,
    answer: F,
    requests: &TaskTracker,
    shutdown: &CancellationToken,
) where
    F: Fn(&Request<Incoming>) -> Page + Clone + Send + Sync + 'static,
{
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let next = async {
            // The semaphore is never closed.
            let slot = slots.clone().acquire_owned().await.ok();
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            () = shutdown.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((client, _)) => {
                let answer = answer.clone();
                requests.spawn(async move {
                    serve_client(client, port, answer).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; to try again at once would only burn a core.
                warn!("the {port} port cannot accept: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_client<F>(client: TcpStream, port: Port, answer: F)
where
    F: Fn(&Request<Incoming>) -> Page,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(LONGEST_HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service);
    match timeout(CONNECTION_DEADLINE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("a client of the {port} port: {error}"),
        Err(_) => debug!("a client of the {port} port was too slow"),
    }
}
