//! A client's HTTP connection: what is read of it, how long it lives, how it ends. Its requests are `request`'s.
//!
//! hyper parses. What it does not bound is bound here: a head that does not come to its end, a connection that nobody uses, and
//! the age at which a client is told to go elsewhere, so that replicas that are new get their share.

use std::{
    convert::Infallible,
    future::pending,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, Version, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};

use super::{Settings, body::Body, client::Client, draw, request};
use crate::{hbone::Io, telemetry::chain};

/// Headers of a request.
const MOST_HEADERS: usize = 100;
/// Bytes of a request's head.
pub(super) const LONGEST_HEAD: usize = 64 * 1024;
/// Requests that a client may have under way on one HTTP/2 connection.
const MOST_STREAMS: u32 = 250;
/// Streams that a client opened and reset before we looked at them: a burst that gives up together is less.
const PENDING_RESETS: usize = 100;
/// Bytes in flight on one stream, and on a connection: not the same, or one reader that stops would stop all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Bytes of a response that may wait for a client.
const SEND_BUFFER: usize = 256 * 1024;
const MAX_FRAME: u32 = 64 * 1024;
/// How often a PING asks whether the client is there, and how long it may take.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);
/// How long an HTTP/1.1 connection that is to end is given for a request that is on its way, at most: then it closes while nothing
/// is under way. Its responses say `Connection: close`.
const FAREWELL: Duration = Duration::from_secs(5);
/// In how many looks a silence is found out.
const LOOKS: u32 = 4;

/// When a connection is told to end: its age, less up to a tenth.
pub(super) fn age(settings: &Settings, draw: u64) -> Duration {
    let most = settings.max_connection_age;
    most - most.mul_f64((draw % 1000) as f64 / 10_000.0)
}

/// Serves a client's connection to its end.
pub(super) async fn serve(client: Arc<Client>, io: Io, version: Version) {
    let activity = Arc::new(Activity::default());
    let io = TokioIo::new(Watched {
        io,
        activity: Arc::clone(&activity),
    });
    let ended = match version {
        Version::HTTP_2 => serve_http2(&client, io, &activity).await,
        _ => serve_http1(&client, io, &activity).await,
    };
    if let Err(error) = ended {
        let (peer, identity) = (client.addr, client.identity());
        tracing::debug!(%peer, %identity, error = chain(&error), "a client's connection ended before its time");
    }
}

async fn serve_http1(
    client: &Arc<Client>,
    io: TokioIo<Watched>,
    activity: &Arc<Activity>,
) -> Result<(), hyper::Error> {
    let service = service_fn(|request| answer(Arc::clone(client), request, activity));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(MOST_HEADERS)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(io, service)
        .with_upgrades();
    let retired = async {
        retired(client).await;
        activity.closing.store(true, Relaxed);
        sleep(FAREWELL.min(client.worker().shared.settings.drain_timeout / 2)).await;
    };
    let settings = &client.worker().shared.settings;
    let quiet = quiet(activity, settings, Some(settings.header_timeout));
    drive(connection, retired, quiet, |it| it.graceful_shutdown()).await
}

async fn serve_http2(
    client: &Arc<Client>,
    io: TokioIo<Watched>,
    activity: &Arc<Activity>,
) -> Result<(), hyper::Error> {
    let (of_requests, count) = (Arc::clone(client), Arc::clone(activity));
    let service = service_fn(move |request| {
        let (client, activity) = (Arc::clone(&of_requests), Arc::clone(&count));
        async move { answer(client, request, &activity).await }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LONGEST_HEAD as u32)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_frame_size(MAX_FRAME)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .serve_connection(io, service);
    let quiet = quiet(activity, &client.worker().shared.settings, None);
    drive(connection, retired(client), quiet, |it| it.graceful_shutdown()).await
}

async fn answer(
    client: Arc<Client>,
    request: Request<Incoming>,
    activity: &Arc<Activity>,
) -> Result<Response<Body>, Infallible> {
    let busy = activity.begin();
    let is_http1 = request.version() < Version::HTTP_2;
    let mut response = request::serve(&client, request, busy).await;
    if is_http1
        && activity.closing.load(Relaxed)
        && response.status() != http::StatusCode::SWITCHING_PROTOCOLS
    {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response)
}

/// Resolves when the client is to go elsewhere.
async fn retired(client: &Client) {
    let worker = client.worker();
    tokio::select! {
        () = worker.drain.cancelled() => {}
        () = sleep(age(&worker.shared.settings, draw())) => {}
    }
}

/// Resolves when a connection on which nothing was asked yet is to end: nobody waits for anything there.
pub(super) async fn unused(client: &Client) {
    let worker = client.worker();
    let settings = &worker.shared.settings;
    tokio::select! {
        () = worker.drain.cancelled() => sleep(FAREWELL.min(settings.drain_timeout / 2)).await,
        () = sleep(settings.idle_timeout) => {}
    }
}

/// Runs a connection to its end, or until it is quiet for too long.
async fn drive<C: Future<Output = Result<(), hyper::Error>>>(
    connection: C,
    retired: impl Future<Output = ()>,
    quiet: impl Future<Output = Quiet>,
    retire: impl Fn(Pin<&mut C>),
) -> Result<(), hyper::Error> {
    tokio::pin!(connection, retired, quiet);
    let (mut is_retired, mut is_quiet) = (false, false);
    loop {
        tokio::select! {
            ended = &mut connection => return ended,
            () = &mut retired, if !is_retired => {
                is_retired = true;
                retire(connection.as_mut());
            }
            how = &mut quiet, if !is_quiet => match how {
                Quiet::Idle => {
                    is_quiet = true;
                    retire(connection.as_mut());
                }
                Quiet::Stalled => return Ok(()),
            }
        }
    }
}

/// What a connection does.
#[derive(Debug, Default)]
pub(super) struct Activity {
    under_way: AtomicUsize,
    begun: AtomicU64,
    reads: AtomicU64,
    /// Reads up to the end of the last request: what comes after them is the next one's.
    settled: AtomicU64,
    /// Whether responses say that the connection ends.
    closing: AtomicBool,
    /// Whether a request was given up before its response had ended.
    is_cut: AtomicBool,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, AcqRel);
        self.begun.fetch_add(1, Relaxed);
        Busy {
            of: Arc::clone(self),
            is_finished: false,
        }
    }
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Busy {
    of: Arc<Activity>,
    is_finished: bool,
}

impl Busy {
    /// Its response has ended.
    pub(super) fn finish(mut self) {
        self.is_finished = true;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if !self.is_finished {
            self.of.is_cut.store(true, Relaxed);
        }
        let reads = self.of.reads.load(Relaxed);
        self.of.settled.store(reads, Relaxed);
        self.of.under_way.fetch_sub(1, AcqRel);
    }
}

/// How a connection is quiet.
enum Quiet {
    /// Nobody uses it.
    Idle,
    /// A head was begun and does not end.
    Stalled,
}

/// Resolves when a connection has been quiet for too long. Looked at now and then rather than told by each request: it costs the
/// data path nothing.
async fn quiet(activity: &Activity, settings: &Settings, head: Option<Duration>) -> Quiet {
    let span = head.unwrap_or(settings.idle_timeout).min(settings.idle_timeout) / LOOKS;
    if span.is_zero() {
        return pending().await;
    }
    let idle_looks = settings.idle_timeout.as_nanos().div_ceil(span.as_nanos());
    let (mut begun, mut still, mut stalled) = (0, 0_u128, 0);
    loop {
        sleep(span).await;
        let now = activity.begun.load(Relaxed);
        let is_unused = activity.under_way.load(Acquire) == 0 && now == begun;
        begun = now;
        let has_more = activity.reads.load(Relaxed) != activity.settled.load(Relaxed);
        still = if is_unused { still + 1 } else { 0 };
        stalled = if is_unused && has_more { stalled + 1 } else { 0 };
        if head.is_some() && stalled > LOOKS {
            return Quiet::Stalled;
        }
        if still >= idle_looks {
            return Quiet::Idle;
        }
    }
}

/// A stream whose reads are counted.
struct Watched {
    io: Io,
    activity: Arc<Activity>,
}

/// hyper drops a stream without a word where a client asked for another protocol and did not get it. A stream that is dropped is
/// reset, and with it goes the answer that waits to be sent; so what is whole is ended here.
impl Drop for Watched {
    fn drop(&mut self) {
        if !self.activity.is_cut.load(Relaxed) && self.activity.under_way.load(Acquire) == 0 {
            self.io.end();
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if read.is_ready() {
            this.activity.reads.fetch_add(1, Relaxed);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
