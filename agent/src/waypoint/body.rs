//! Bodies: a request's, which may be sent more than once, and a response's, whose end is the request's end.

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Incoming;
use hyper::body::{Frame, SizeHint};
use thiserror::Error;
use tokio::time::Sleep;

use super::{balance::Place, downstream::Busy, grpc::MessageCounter, record::Exchange, upstream::Lease};
use crate::mesh::http::ResponseFlag;

/// What is kept of a request's body to be sent again. A body that is longer is sent once.
pub(super) const KEPT: usize = 64 * 1024;

/// Why a body came to no end.
#[derive(Debug, Error)]
pub(super) enum BodyError {
    /// The other side broke.
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
    /// What was allowed for the whole request is over.
    #[error("the request took too long")]
    TimedOut,
    /// Another attempt has begun.
    #[error("another attempt sends it")]
    Superseded,
}

/// A request's body as the client sends it.
#[derive(Clone)]
pub(super) enum Sent {
    /// There is none.
    Nothing,
    /// Read as it is sent on, and kept as far as there is room.
    Kept(Arc<Mutex<Kept>>),
}

/// A body of which the beginning is kept.
pub(super) struct Kept {
    source: Incoming,
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    hint: SizeHint,
    bytes: u64,
    messages: MessageCounter,
    /// Whether they are counted.
    is_grpc: bool,
    kept: usize,
    /// Whether there is more than is kept.
    is_over: bool,
    is_ended: bool,
    is_broken: bool,
    /// The attempt that may read.
    attempt: u32,
}

impl Sent {
    pub(super) fn new(source: Incoming, is_grpc: bool) -> Self {
        use hyper::body::Body as _;
        if source.is_end_stream() {
            return Self::Nothing;
        }
        Self::Kept(Arc::new(Mutex::new(Kept {
            hint: source.size_hint(),
            source,
            chunks: VecDeque::new(),
            trailers: None,
            bytes: 0,
            messages: MessageCounter::default(),
            is_grpc,
            kept: 0,
            is_over: false,
            is_ended: false,
            is_broken: false,
            attempt: 0,
        })))
    }

    /// The body for another attempt, from its beginning. The attempt before gets no more of it.
    pub(super) fn attempt(&self) -> Outgoing {
        match self {
            Self::Nothing => Outgoing::Nothing,
            Self::Kept(kept) => {
                let mut of_all = lock(kept);
                of_all.attempt += 1;
                Outgoing::Kept {
                    kept: Arc::clone(kept),
                    attempt: of_all.attempt,
                    next: 0,
                    told: false,
                }
            }
        }
    }

    /// Whether it can be sent from its beginning again.
    pub(super) fn may_repeat(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Kept(kept) => {
                let kept = lock(kept);
                !kept.is_over && !kept.is_broken
            }
        }
    }

    /// All of it, where it has come to its end and was kept.
    pub(super) fn whole(&self) -> Option<Bytes> {
        let Self::Kept(kept) = self else {
            return Some(Bytes::new());
        };
        let kept = lock(kept);
        let is_whole = kept.is_ended && !kept.is_over && !kept.is_broken;
        is_whole.then(|| kept.chunks.iter().flatten().copied().collect())
    }

    /// Whether there is none.
    pub(super) fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    /// Whether the client broke off.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Kept(kept) if lock(kept).is_broken)
    }

    /// gRPC messages that came.
    pub(super) fn messages(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Kept(kept) => lock(kept).messages.messages(),
        }
    }

    /// Bytes that came.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Kept(kept) => lock(kept).bytes,
        }
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    /// The next frame from the client.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        use hyper::body::Body as _;
        match std::task::ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(chunk) = frame.data_ref() {
                    self.keep(chunk.clone());
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                }
                // Nobody may ask once more.
                self.is_ended = self.source.is_end_stream();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.is_broken = true;
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            None => {
                self.is_ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn keep(&mut self, chunk: Bytes) {
        self.bytes += chunk.len() as u64;
        if self.is_grpc {
            self.messages.data(&chunk);
        }
        if self.is_over {
            return;
        }
        self.kept += chunk.len();
        if self.kept > KEPT {
            self.is_over = true;
            // The attempt that reads has had all of them.
            self.chunks.clear();
        } else {
            self.chunks.push_back(chunk);
        }
    }
}

/// A request's body for one attempt.
pub(super) enum Outgoing {
    /// There is none.
    Nothing,
    /// What is kept, and then what comes.
    Kept {
        kept: Arc<Mutex<Kept>>,
        attempt: u32,
        /// The next of the kept chunks.
        next: usize,
        /// Whether the trailers have been told.
        told: bool,
    },
    /// A copy for somebody else.
    Copy(Option<Bytes>),
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (kept, attempt, next, told) = match self.get_mut() {
            Self::Nothing => return Poll::Ready(None),
            Self::Copy(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Kept {
                kept,
                attempt,
                next,
                told,
            } => (lock(kept), attempt, next, told),
        };
        let mut kept = kept;
        if kept.attempt != *attempt {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(chunk) = kept.chunks.get(*next) {
            *next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        if let Some(trailers) = kept.trailers.clone().filter(|_| !*told) {
            *told = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if kept.is_ended || *told {
            return Poll::Ready(None);
        }
        let frame = kept.poll_source(cx);
        *next = kept.chunks.len();
        *told = kept.trailers.is_some();
        frame
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing | Self::Copy(None) => true,
            Self::Copy(Some(_)) => false,
            Self::Kept { kept, next, told, .. } => {
                let kept = lock(kept);
                kept.is_ended && *next >= kept.chunks.len() && (*told || kept.trailers.is_none())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing | Self::Copy(None) => SizeHint::with_exact(0),
            Self::Copy(Some(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Self::Kept { kept, next: 0, .. } => lock(kept).hint,
            Self::Kept { .. } => SizeHint::default(),
        }
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}

/// A response's body on its way to the client. With its end the request is recorded.
pub(super) struct Body {
    from: From,
    exchange: Option<Exchange>,
    /// The connection to the endpoint; given back at the end.
    lease: Option<Lease>,
    _places: Vec<Place>,
    /// When the whole request must be over.
    deadline: Option<Pin<Box<Sleep>>>,
    busy: Option<Busy>,
    /// Whether all of it was given out.
    is_over: bool,
}

/// Where a response's body comes from.
pub(super) enum From {
    /// The waypoint.
    Own(Option<Bytes>),
    /// An endpoint.
    Endpoint(Incoming),
}

impl Body {
    /// A body that is recorded at its end as `exchange`.
    pub(super) fn new(from: From, exchange: Exchange, busy: Option<Busy>) -> Self {
        Self {
            from,
            exchange: Some(exchange),
            lease: None,
            _places: Vec::new(),
            deadline: None,
            busy,
            is_over: false,
        }
    }

    /// None, and no record with its end.
    pub(super) fn nothing() -> Self {
        Self {
            from: From::Own(None),
            exchange: None,
            lease: None,
            _places: Vec::new(),
            deadline: None,
            busy: None,
            is_over: false,
        }
    }

    /// Holds the connection that it comes over, and must be over at a time.
    pub(super) fn held(
        mut self,
        lease: Lease,
        places: Vec<Place>,
        deadline: Option<Pin<Box<Sleep>>>,
    ) -> Self {
        (self.lease, self._places, self.deadline) = (Some(lease), places, deadline);
        self.end_if_empty();
        self
    }

    fn end_if_empty(&mut self) {
        use hyper::body::Body as _;
        if matches!(&self.from, From::Endpoint(incoming) if incoming.is_end_stream()) {
            self.give_back();
        }
    }

    fn give_back(&mut self) {
        self.is_over = true;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if let Some(exchange) = &mut self.exchange {
            exchange.is_complete = true;
        }
    }

    fn count(&mut self, frame: &Frame<Bytes>) {
        let Some(exchange) = &mut self.exchange else {
            return;
        };
        if let Some(chunk) = frame.data_ref() {
            exchange.answered(chunk);
        } else if let Some(trailers) = frame.trailers_ref() {
            exchange.trailers(trailers);
        }
    }

    fn fail(&mut self, flag: ResponseFlag) {
        if let Some(exchange) = &mut self.exchange {
            exchange.flag(flag);
            exchange.is_complete = true;
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.fail(ResponseFlag::UpstreamTimeout);
            return Poll::Ready(Some(Err(BodyError::TimedOut)));
        }
        let frame = match &mut this.from {
            From::Own(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            From::Endpoint(incoming) => std::task::ready!(Pin::new(incoming).poll_frame(cx)),
        };
        match frame {
            Some(Ok(frame)) => {
                this.count(&frame);
                this.end_if_empty();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.fail(ResponseFlag::UpstreamConnectionTermination);
                Poll::Ready(Some(Err(BodyError::Broken(error))))
            }
            None => {
                this.give_back();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.from {
            From::Own(bytes) => bytes.is_none(),
            From::Endpoint(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.from {
            From::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            From::Endpoint(incoming) => incoming.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        use hyper::body::Body as _;
        let is_over = self.is_over || self.is_end_stream();
        if let Some(exchange) = &mut self.exchange {
            exchange.is_complete |= is_over;
        }
        if let Some(busy) = self.busy.take()
            && is_over
        {
            busy.finish();
        }
    }
}
