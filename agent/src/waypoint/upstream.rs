//! The connections to endpoints: over tunnels with the waypoint's own identity, or plain TCP to what is not in the mesh. Kept
//! and shared, each by one worker.
//!
//! An endpoint's HTTP/1.1 connections carry one request at a time, its HTTP/2 connections many. What breaks while it is idle is
//! noticed when it is used next, and another one is taken if nothing was sent.

mod connect;
mod pool;

use std::sync::{
    Arc, Weak,
    atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
};

use http::{Request, Response};
use hyper::body::Incoming;
use thiserror::Error;

use self::pool::{Connection, Pool, Way};
pub(super) use self::{
    connect::{Hop, Leg, open},
    pool::Upstreams,
};
use super::{body::Outgoing, listen::Worker, outliers::Health};
use crate::{
    hbone::ConnectError,
    mesh::http::{Attempt, TrafficPolicy},
    telemetry::chain,
};

/// One endpoint as it is reached, to one worker.
pub(super) struct Upstream {
    pub(super) hop: Hop,
    in_flight: AtomicUsize,
    /// 0 is the default.
    idle_timeout_ms: AtomicU64,
    pub(super) health: Health,
    pool: Pool,
}

/// Why there is no response.
#[derive(Debug, Error)]
pub(super) enum SendError {
    /// There is no connection.
    #[error("no connection to the endpoint")]
    Connect(#[source] ConnectError),
    /// HTTP was not agreed on.
    #[error("the endpoint does not speak HTTP")]
    Handshake(#[source] hyper::Error),
    /// The connection broke, or the other end refused to look at the request.
    #[error("the endpoint did not answer")]
    Broken {
        /// How.
        #[source]
        source: hyper::Error,
        /// Whether it was one that had been used before: it may have been closed before the request came.
        reused: bool,
        /// Whether nothing was sent.
        unsent: bool,
    },
    /// Too many wait for a connection.
    #[error("too many requests wait for a connection")]
    Overflow,
}

impl SendError {
    /// What it means to whoever may try again.
    pub(super) fn attempt(&self) -> Attempt {
        match self {
            Self::Connect(_) | Self::Overflow => Attempt::ConnectFailed,
            Self::Handshake(_) => Attempt::Reset,
            Self::Broken { source, unsent, .. } if *unsent || was_refused(source) => Attempt::Refused,
            Self::Broken { .. } => Attempt::Reset,
        }
    }

    /// Whether another try can be of use.
    pub(super) fn may_retry(&self) -> bool {
        match self {
            Self::Connect(error) => error.may_retry(),
            Self::Overflow => false,
            Self::Handshake(_) | Self::Broken { .. } => true,
        }
    }

    /// Whether a connection that had been used before may have been closed before the request came.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Broken { source, reused: true, .. } if source.is_incomplete_message() || source.is_closed() || source.is_canceled())
    }

    pub(super) fn text(&self) -> String {
        chain(self)
    }
}

/// RFC 9113 8.7: a stream that was refused, or was above the last one of a GOAWAY, was not looked at.
fn was_refused(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let h2 = source.and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| {
        error.reason() == Some(h2::Reason::REFUSED_STREAM) || (error.is_go_away() && error.is_remote())
    })
}

impl Upstream {
    fn new(hop: Hop) -> Self {
        Self {
            hop,
            in_flight: AtomicUsize::new(0),
            idle_timeout_ms: AtomicU64::new(0),
            health: Health::default(),
            pool: Pool::default(),
        }
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Acquire)
    }

    /// Sends a request, over a connection that is there or over a new one.
    ///
    /// # Errors
    /// When there is no response.
    pub(super) async fn send(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        http2: bool,
        policy: &TrafficPolicy,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Lease), SendError> {
        self.in_flight.fetch_add(1, AcqRel);
        self.idle_timeout_ms
            .store(policy.idle_timeout_ms.unwrap_or(0), Relaxed);
        let mut lease = Lease {
            upstream: Arc::clone(self),
            connection: None,
            most: policy.max_requests_per_connection,
        };
        loop {
            let (mut connection, reused) = match self.pool.take(http2) {
                Some(connection) => (connection, true),
                None => (self.open(worker, http2, policy).await?, false),
            };
            match connection.send(request).await {
                Ok(response) => {
                    lease.connection = Some(connection);
                    return Ok((response, lease));
                }
                // Nothing was sent: another connection has it.
                Err((_, Some(unsent))) if reused => request = unsent,
                Err((source, unsent)) => {
                    let unsent = unsent.is_some();
                    return Err(SendError::Broken {
                        source,
                        reused,
                        unsent,
                    });
                }
            }
        }
    }

    async fn open(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        http2: bool,
        policy: &TrafficPolicy,
    ) -> Result<Connection, SendError> {
        let way = Way {
            worker,
            hop: &self.hop,
            policy,
        };
        match http2 {
            true => self.pool.open_http2(&way).await,
            false => self.pool.open_http1(&way).await,
        }
    }
}

/// An upstream's connection while a response comes over it.
pub(super) struct Lease {
    upstream: Arc<Upstream>,
    connection: Option<Connection>,
    most: u32,
}

impl Lease {
    /// The response has ended: the next request may have the connection.
    pub(super) fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            self.upstream.pool.give_back(connection, self.most);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.in_flight.fetch_sub(1, AcqRel);
    }
}

/// Those of a worker that are still used by anybody.
type Known = rustc_hash::FxHashMap<Hop, Weak<Upstream>>;
