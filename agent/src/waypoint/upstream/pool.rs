//! The connections of one endpoint to one worker, and the worker's endpoints.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::{Duration, Instant},
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::{Hop, Known, SendError, Upstream, open};
use crate::{mesh::http::TrafficPolicy, telemetry::chain};

use super::super::{balance::Clusters, body::Outgoing, downstream::LONGEST_HEAD, listen::Worker};

/// Requests on one HTTP/2 connection; the next one goes onto another.
const MOST_STREAMS: usize = 100;
/// Idle HTTP/1.1 connections that are kept to one endpoint.
const MOST_IDLE: usize = 256;
/// Headers of a response.
const MOST_HEADERS: usize = 200;
/// Bytes in flight on one stream, and on a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Bytes of a request that may wait for an endpoint.
const SEND_BUFFER: usize = 256 * 1024;
const MAX_FRAME: u32 = 64 * 1024;
/// How often a PING asks whether the endpoint is there while requests are under way, and how long it may take.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// After how long without a request a connection is closed where nothing is said.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// How often connections are looked at that nobody uses.
const SWEEP: Duration = Duration::from_secs(10);

/// How a connection is opened.
pub(super) struct Way<'a> {
    pub(super) worker: &'a Arc<Worker>,
    pub(super) hop: &'a Hop,
    pub(super) policy: &'a TrafficPolicy,
}

/// A connection that a request may have.
pub(super) enum Connection {
    Http1(Single),
    Http2(Shared),
}

/// One that carries a request at a time.
pub(super) struct Single {
    sender: http1::SendRequest<Outgoing>,
    carried: u32,
    idle_since: Instant,
}

/// A place on one that carries many.
pub(super) struct Shared {
    of: Arc<Multiplexed>,
    sender: http2::SendRequest<Outgoing>,
}

struct Multiplexed {
    sender: Mutex<http2::SendRequest<Outgoing>>,
    streams: AtomicUsize,
    carried: AtomicU64,
    idle_since: Mutex<Instant>,
}

type Sent = Result<Response<Incoming>, (hyper::Error, Option<Request<Outgoing>>)>;

impl Connection {
    /// Sends a request. What was not sent comes back.
    pub(super) async fn send(&mut self, request: Request<Outgoing>) -> Sent {
        let sent = match self {
            Self::Http1(single) => {
                single.carried += 1;
                single.sender.try_send_request(request).await
            }
            Self::Http2(shared) => shared.sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message();
            (error.into_error(), unsent)
        })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        *lock(&self.of.idle_since) = Instant::now();
        self.of.streams.fetch_sub(1, AcqRel);
    }
}

/// The connections of one endpoint.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Single>>,
    shared: Mutex<Vec<Arc<Multiplexed>>>,
    /// Held while an HTTP/2 connection is opened, so that those who come meanwhile share it.
    opening: tokio::sync::Mutex<()>,
    open: Arc<Open>,
    waiting: AtomicUsize,
}

/// Connections that are open.
#[derive(Default)]
struct Open {
    count: AtomicUsize,
    freed: Notify,
}

/// One of them, until it has ended.
struct Counted(Arc<Open>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, AcqRel);
        self.0.freed.notify_one();
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A connection that is there.
    pub(super) fn take(&self, http2: bool) -> Option<Connection> {
        match http2 {
            true => self.take_shared().map(Connection::Http2),
            false => self.take_idle().map(Connection::Http1),
        }
    }

    /// The one that was used last: the others may become idle enough to be closed.
    fn take_idle(&self) -> Option<Single> {
        let mut idle = lock(&self.idle);
        idle.retain(|single| !single.sender.is_closed());
        let ready = idle.iter().rposition(|single| single.sender.is_ready())?;
        Some(idle.remove(ready))
    }

    fn take_shared(&self) -> Option<Shared> {
        let mut all = lock(&self.shared);
        all.retain(|it| !lock(&it.sender).is_closed());
        let of = all.iter().find(|it| it.streams.load(Acquire) < MOST_STREAMS)?;
        Some(share(of))
    }

    /// A new connection, or one that has become free while no more may be opened.
    pub(super) async fn open_http1(&self, way: &Way<'_>) -> Result<Connection, SendError> {
        if let Some(freed) = self.wait(way.policy, || self.take_idle()).await? {
            return Ok(Connection::Http1(freed));
        }
        let counted = self.count();
        let leg = open(way.worker, way.hop, None, way.policy.connect_timeout_ms).await;
        let (sender, connection) = http1::Builder::new()
            .max_headers(MOST_HEADERS)
            .max_buf_size(LONGEST_HEAD)
            .handshake(TokioIo::new(leg.map_err(SendError::Connect)?))
            .await
            .map_err(SendError::Handshake)?;
        tokio::spawn(async move {
            let _counted = counted;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(error = chain(&error), "a connection to an endpoint ended");
            }
        });
        Ok(Connection::Http1(Single {
            sender,
            carried: 0,
            idle_since: Instant::now(),
        }))
    }

    /// A new connection, or the one that somebody else has opened meanwhile.
    pub(super) async fn open_http2(&self, way: &Way<'_>) -> Result<Connection, SendError> {
        let _opening = self.opening.lock().await;
        if let Some(shared) = self.take_shared() {
            return Ok(Connection::Http2(shared));
        }
        if let Some(freed) = self.wait(way.policy, || self.take_shared()).await? {
            return Ok(Connection::Http2(freed));
        }
        let counted = self.count();
        let leg = open(way.worker, way.hop, None, way.policy.connect_timeout_ms).await;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(LONGEST_HEAD as u32)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .handshake(TokioIo::new(leg.map_err(SendError::Connect)?))
            .await
            .map_err(SendError::Handshake)?;
        tokio::spawn(async move {
            let _counted = counted;
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "a connection to an endpoint ended");
            }
        });
        let of = Arc::new(Multiplexed {
            sender: Mutex::new(sender),
            streams: AtomicUsize::new(0),
            carried: AtomicU64::new(0),
            idle_since: Mutex::new(Instant::now()),
        });
        let shared = share(&of);
        lock(&self.shared).push(of);
        Ok(Connection::Http2(shared))
    }

    fn count(&self) -> Counted {
        self.open.count.fetch_add(1, AcqRel);
        Counted(Arc::clone(&self.open))
    }

    /// Waits while there are as many connections as may be. The answer is one that has become free, or nothing where another may
    /// be opened.
    async fn wait<T>(
        &self,
        policy: &TrafficPolicy,
        take: impl Fn() -> Option<T>,
    ) -> Result<Option<T>, SendError> {
        let most = policy.max_connections as usize;
        let may_open = || most == 0 || self.open.count.load(Acquire) < most;
        if may_open() {
            return Ok(None);
        }
        let waiting = Waiting::begin(&self.waiting);
        if policy.max_pending > 0 && waiting.0.load(Acquire) > policy.max_pending as usize {
            return Err(SendError::Overflow);
        }
        loop {
            let freed = self.open.freed.notified();
            if let Some(taken) = take() {
                return Ok(Some(taken));
            }
            if may_open() {
                return Ok(None);
            }
            freed.await;
        }
    }

    /// Takes a connection back whose response has ended.
    pub(super) fn give_back(&self, connection: Connection, most: u32) {
        match connection {
            Connection::Http1(mut single) => {
                let mut idle = lock(&self.idle);
                let is_spent = most > 0 && single.carried >= most;
                if !is_spent && !single.sender.is_closed() && idle.len() < MOST_IDLE {
                    single.idle_since = Instant::now();
                    idle.push(single);
                    drop(idle);
                    self.open.freed.notify_one();
                }
            }
            Connection::Http2(shared) => {
                if most > 0 && shared.of.carried.load(Relaxed) >= u64::from(most) {
                    lock(&self.shared).retain(|it| !Arc::ptr_eq(it, &shared.of));
                }
                drop(shared);
                self.open.freed.notify_one();
            }
        }
    }

    /// Closes what has been idle for too long.
    fn sweep(&self, idle_for: Duration) {
        lock(&self.idle)
            .retain(|single| !single.sender.is_closed() && single.idle_since.elapsed() < idle_for);
        lock(&self.shared).retain(|it| {
            let is_idle = it.streams.load(Acquire) == 0 && lock(&it.idle_since).elapsed() >= idle_for;
            !is_idle && !lock(&it.sender).is_closed()
        });
    }
}

/// One who waits for a connection.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, AcqRel);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, AcqRel);
    }
}

fn share(of: &Arc<Multiplexed>) -> Shared {
    of.streams.fetch_add(1, AcqRel);
    of.carried.fetch_add(1, Relaxed);
    Shared {
        sender: lock(&of.sender).clone(),
        of: Arc::clone(of),
    }
}

/// The endpoints that a worker has connections to, and how they are balanced.
#[derive(Default)]
pub(in super::super) struct Upstreams {
    known: Mutex<Known>,
    pub(in super::super) clusters: Clusters,
}

impl Upstreams {
    /// The endpoint that is reached so: the same for everybody who knows it.
    pub(in super::super) fn of(&self, hop: &Hop) -> Arc<Upstream> {
        let mut known = lock(&self.known);
        if let Some(upstream) = known.get(hop).and_then(Weak::upgrade) {
            return upstream;
        }
        let upstream = Arc::new(Upstream::new(hop.clone()));
        known.insert(hop.clone(), Arc::downgrade(&upstream));
        upstream
    }

    /// Closes connections that nobody uses, for as long as the worker lives. Endpoints that have left the mesh are forgotten, and
    /// their connections end with their last response.
    pub(in super::super) async fn sweep(worker: Weak<Worker>) {
        let mut turns = interval(SWEEP);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let Some(worker) = worker.upgrade() else { return };
            let upstreams = &worker.upstreams;
            upstreams.clusters.forget(worker.shared.seen.load_full().as_ref());
            let all: VecDeque<_> = {
                let mut known = lock(&upstreams.known);
                known.retain(|_, upstream| upstream.strong_count() > 0);
                known.values().filter_map(Weak::upgrade).collect()
            };
            for upstream in all {
                let idle_for = upstream.idle_timeout_ms.load(Relaxed);
                upstream.pool.sweep(match idle_for {
                    0 => IDLE_TIMEOUT,
                    ms => Duration::from_millis(ms),
                });
            }
        }
    }
}
