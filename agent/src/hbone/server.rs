//! The side that takes tunnels: one HTTP/2 connection, each CONNECT handed to the role as a [`Request`].
//!
//! It answers nothing by itself and knows no policy. Called by the roles, once per accepted TLS connection.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::Connection, server::SendResponse};
use http::{HeaderValue, StatusCode};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Authority, Forwarded, Pair, Settings, Stream, TraceParent,
    buffers::Growth,
    head::Head,
    headers, keepalive,
    window::{Unread, Window},
};
use crate::{mesh::Refusal, net::weight::Load};

/// A request on a tunnel, to be answered through `respond`.
#[derive(Debug)]
pub struct Request {
    /// Where it wants to go; or that it is not a CONNECT, or to no address and port.
    pub target: Result<Authority, Refusal>,
    /// What the other agent says about its workload ([`super::Baggage`]), unread.
    pub baggage: Option<HeaderValue>,
    /// Who it says the connection is for.
    pub forwarded: Option<Forwarded>,
    /// The trace it is part of.
    pub traceparent: Option<TraceParent>,
    /// How it is answered.
    pub respond: Responder,
}

impl Request {
    /// What is left of it once it has been read.
    pub fn into_responder(self: Box<Self>) -> Responder {
        self.respond
    }
}

/// Answers one request. Dropped without an answer, it resets the stream.
#[derive(Debug)]
pub struct Responder {
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    tunnel: Part,
}

/// What requests and streams hold of their tunnel.
#[derive(Clone, Debug)]
struct Part {
    unread: Unread,
    load: Load,
    /// Tells that somebody is still there.
    served: Arc<()>,
}

impl Part {
    fn new() -> Self {
        Self {
            unread: Unread::default(),
            load: Load::new(),
            served: Arc::new(()),
        }
    }

    /// Whether this is the only one: the tunnel's own.
    fn is_last(&self) -> bool {
        Arc::strong_count(&self.served) == 1
    }
}

impl Responder {
    /// 200, with what we say about our workload; the stream is open.
    ///
    /// # Errors
    /// When the client has gone meanwhile.
    pub fn accept(mut self, baggage: Option<&HeaderValue>) -> Result<Stream, h2::Error> {
        let mut answer = http::Response::new(());
        answer
            .headers_mut()
            .insert(headers::EARLY_DATA, HeaderValue::from_static("1"));
        if let Some(baggage) = baggage {
            answer.headers_mut().insert(headers::BAGGAGE, baggage.clone());
        }
        let send = self.respond.send_response(answer, false)?;
        Ok(Stream {
            send,
            recv: self.recv,
            session: None,
            unread: self.tunnel.unread,
            load: self.tunnel.load,
            slot: None,
            served: Some(self.tunnel.served),
            has_first: false,
        })
    }

    /// Whether the app's first bytes have come with the CONNECT.
    pub fn has_first_bytes(&mut self) -> bool {
        self.recv.flow_control().used_capacity() > 0
    }

    /// A status that is not 200, and the stream's end.
    pub fn refuse(mut self, status: u16) {
        let mut answer = http::Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        // Fails when the client has gone, which then needs no answer.
        let _ = self.respond.send_response(answer, true);
    }

    /// Resolves when the client has given the request up, so that a dial for it can be given up too.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

/// Why a tunnel ended before its time. The caller logs it, once, with the peer's name.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The peer sent no HTTP/2 preface in time.
    #[error("the HTTP/2 preface did not come within {0:?}")]
    TimedOut(Duration),
    /// The peer does not speak HTTP/2, or broke its rules, or sent too much of what costs us more than it.
    #[error("the peer broke the rules of HTTP/2, or flooded us")]
    Protocol(#[source] h2::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] h2::Error),
    /// The peer did not answer a PING, and nothing was open any more: so ends a tunnel of a pod that has ended, whose network is
    /// gone before a good-bye could leave it.
    #[error("the peer is gone: it did not answer a PING within {0:?}, and no stream was open")]
    Gone(Duration),
    /// The peer did not answer a PING, and streams were open.
    #[error("the peer did not answer a PING within {0:?}")]
    Silent(Duration),
    /// Streams went on after the drain's deadline and were cut.
    #[error("streams were still open {0:?} after the drain began")]
    DrainTimedOut(Duration),
}

impl ServeError {
    /// Whether it is an end that ending pods give their tunnels every day, and nobody has lost anything by it.
    pub fn is_usual(&self) -> bool {
        matches!(self, Self::Gone(_))
    }
}

/// When a tunnel comes to its end by our own wish.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Tells the peer to open new streams elsewhere (GOAWAY); open ones go on.
    pub goaway: CancellationToken,
    /// The same, and open streams may go on for [`Settings::drain_timeout`] only.
    pub begins: CancellationToken,
}

/// How long a peer that is cut off may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one tunnel of `pair` to its end. `on_request` gets each request and must not wait: it spawns.
///
/// # Errors
/// When the tunnel ends other than by the peer's or our own wish; its streams have been reset then.
pub async fn serve<S, F>(
    io: S,
    settings: &Settings,
    pair: Pair,
    drain: Drain,
    on_request: F,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Request),
{
    let growth = settings.buffers.tunnel(pair);
    let builder = settings.server(growth.window(settings));
    let handshake = timeout(settings.handshake_timeout, builder.handshake(io));
    let handshake = handshake
        .await
        .map_err(|_| ServeError::TimedOut(settings.handshake_timeout))?;
    let mut connection = handshake.map_err(name_error)?;
    requests(&mut connection, settings, growth, drain, on_request).await
}

async fn requests<S, F>(
    connection: &mut Connection<S, Bytes>,
    settings: &Settings,
    growth: Growth,
    drain: Drain,
    mut on_request: F,
) -> Result<(), ServeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: FnMut(Request),
{
    let deadline = async {
        drain.begins.cancelled().await;
        sleep(settings.drain_timeout).await;
    };
    let silence = keepalive::silence(connection.ping_pong(), settings);
    tokio::pin!(deadline, silence);
    let mut draining = false;
    let tunnel = Part::new();
    let mut window = Window::new(tunnel.unread.clone(), growth, settings);
    let taken = AtomicUsize::new(0);
    // The side that dialled goes first, where it is one of ours.
    let idle = settings.idle_timeout + settings.idle_timeout / 5;
    let look = || (tunnel.is_last(), taken.load(Relaxed));
    let unused = keepalive::idle(idle, look);
    // Polled, and so begun, with the GOAWAY. A span without a stream, and not a moment: what the last one sent has yet to leave.
    let unanswered = keepalive::idle(settings.goaway_timeout, look);
    tokio::pin!(unused, unanswered);
    loop {
        tokio::select! {
            request = accept(connection, &mut window, &tunnel.load) => match request {
                Some(Ok((request, respond))) => {
                    taken.fetch_add(1, Relaxed);
                    on_request(read(request, respond, tunnel.clone()));
                }
                // A client that is done with us need not say good-bye.
                Some(Err(err)) if err.is_io() && tunnel.is_last() => return Ok(()),
                Some(Err(err)) => return Err(name_error(err)),
                None => return Ok(()),
            },
            () = go_away(&mut unused, &drain), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            // With the answer, the connection would have ended by itself.
            () = &mut unanswered, if draining => {
                bid_farewell(connection).await;
                return Ok(());
            }
            after = &mut silence => return Err(match tunnel.is_last() {
                true => ServeError::Gone(after),
                false => ServeError::Silent(after),
            }),
            () = &mut deadline => {
                bid_farewell(connection).await;
                return Err(ServeError::DrainTimedOut(settings.drain_timeout));
            }
        }
    }
}

/// Sends the last GOAWAY, resets of what is open, and the end of TLS, if the peer still reads.
async fn bid_farewell<S>(connection: &mut Connection<S, Bytes>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    connection.abrupt_shutdown(Reason::NO_ERROR);
    let flushed = poll_fn(|cx| connection.poll_closed(cx));
    let _ = timeout(FAREWELL, flushed).await;
}

/// Resolves when the peer is to open new streams elsewhere.
async fn go_away(unused: impl Future<Output = ()>, drain: &Drain) {
    tokio::select! {
        () = unused => {}
        () = drain.goaway.cancelled() => {}
        () = drain.begins.cancelled() => {}
    }
}

/// h2 keeps of an I/O error its kind and its text: broken TLS is InvalidData, a peer that is no HTTP/2 at all is not.
fn name_error(err: h2::Error) -> ServeError {
    if err.is_io() || (err.is_go_away() && err.is_remote()) {
        ServeError::Broken(err)
    } else {
        ServeError::Protocol(err)
    }
}

/// The next request; meanwhile the connection is driven.
async fn accept<S>(
    connection: &mut Connection<S, Bytes>,
    window: &mut Window,
    load: &Load,
) -> Option<Accepted>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| {
        if let Some(size) = window.change() {
            connection.set_target_window_size(size);
        }
        load.choose_lane();
        connection.poll_accept(cx)
    })
    .await
}

type Accepted = Result<(http::Request<RecvStream>, SendResponse<Bytes>), h2::Error>;

fn read(request: http::Request<RecvStream>, respond: SendResponse<Bytes>, tunnel: Part) -> Request {
    let (parts, recv) = request.into_parts();
    let head = Head::read(&parts);
    Request {
        target: head.target,
        baggage: head.baggage,
        forwarded: head.forwarded,
        traceparent: head.traceparent,
        respond: Responder {
            respond,
            recv,
            tunnel,
        },
    }
}
