//! One connection inside a tunnel, and copying an app's bytes through it.
//!
//! Made by `pool` (the side that dialled) and `server` (the side that was dialled); copied by the roles. What a reset
//! and a half-close mean is in `net::copy`.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::{net::TcpStream, task::yield_now};

use super::{
    pool::Slot,
    window::{Part, Unread},
};
use crate::net::{
    copy::{Closing, CopyError, Count, Inlet, Outlet, both, shutdown_write},
    tls::Session,
    turn,
    weight::{Load, Weight},
};

/// An open stream: both ways, after the CONNECT was answered with 200.
///
/// Dropping it before both ways have ended resets it (RST_STREAM CANCEL).
#[derive(Debug)]
pub struct Stream {
    pub(super) send: SendStream<Bytes>,
    pub(super) recv: RecvStream,
    /// The tunnel's; known to the side that dialled.
    pub(super) session: Option<Arc<Session>>,
    /// The place on the tunnel that the stream holds; given back when it is dropped.
    pub(super) slot: Option<Slot>,
    /// Where what is not acknowledged yet is counted.
    pub(super) unread: Unread,
    /// What the tunnel carries.
    pub(super) load: Load,
    /// On the side that was dialled: tells the connection that a stream is still there.
    pub(super) served: Option<Arc<()>>,
    /// Whether the app's first bytes went out with the CONNECT.
    pub(super) has_first: bool,
}

impl Stream {
    /// The tunnel's TLS session: who proved to be at the other end, and whether that still holds. `None` on the side
    /// that was dialled, where the handshake (`net::tls::accept`) gives it.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }
}

/// Turns that the tunnel's task gets to flush what is queued before a stream is reset.
const FLUSH_TURNS: usize = 2;

/// Which way the app's bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppSide {
    /// The app dialled: what it sends counts as up.
    Dialled,
    /// The app was dialled: what it sends counts as down.
    Answered,
}

/// Copies between an app and a stream until both ways have ended. `first` is what was read of the app before the stream was there
/// ([`super::ConnectRequest::first`]).
///
/// Dropping the future resets both: a connection that is cut short must not look finished.
///
/// # Errors
/// When the app's socket or the stream breaks; the other one has been reset then.
pub fn copy(
    app: TcpStream,
    (stream, first): (Stream, Bytes),
    side: AppSide,
    counters: &impl Count,
) -> impl Future<Output = Result<(), CopyError>> {
    // Outside of the future, which may be dropped before it was polled; and what is made here is kept once, not twice.
    let mut app = Closing::new(app);
    let mut ways = Ways::of(stream, first);
    async move {
        // The future takes those fields alone that are named in it.
        let _until_the_end = (&ways.slot, &ways.served);
        let count = |n, is_ours: bool| {
            ways.weight.add(n as usize);
            match is_ours == (side == AppSide::Dialled) {
                true => counters.up(n),
                false => counters.down(n),
            }
        };
        let (sent, received) = (|n| count(n, true), |n| count(n, false));
        sent(ways.sent_before);
        let copied = loop {
            let here = app.follow();
            let mut broken = pin!(here.broken());
            let stage = poll_fn(|cx| {
                if here.is_left() {
                    return Poll::Ready(None);
                }
                // Both ways before anything is called broken: what arrived before a reset is passed on before the reset.
                let up = ways.to_stream.poll(cx, &here.socket, &mut ways.send, sent);
                let down = ways.to_app.poll(cx, &here.socket, received);
                ways.weight.choose_lane();
                if let Poll::Ready(copied) = both(up, down) {
                    return Poll::Ready(Some(copied));
                }
                let broken = broken.as_mut().poll(cx);
                broken.map(|error| Some(Err(CopyError::App(error))))
            });
            if let Some(copied) = stage.await {
                break copied;
            }
        };
        match copied {
            Ok(()) => app.finish(),
            Err(CopyError::App(_)) if !ways.to_stream.done => reset_flushed(&mut ways.send).await,
            Err(_) => {}
        }
        copied
    }
}

/// A stream, as it is copied.
struct Ways {
    send: SendStream<Bytes>,
    to_stream: ToStream,
    to_app: ToApp,
    weight: Weight,
    /// How many of the app's bytes have gone out already.
    sent_before: u64,
    /// Given back when both ways have ended.
    slot: Option<Slot>,
    served: Option<Arc<()>>,
}

impl Ways {
    fn of(stream: Stream, first: Bytes) -> Self {
        let (sent, waiting) = match stream.has_first {
            true => (first.len(), Bytes::new()),
            false => (0, first),
        };
        Self {
            send: stream.send,
            to_stream: ToStream {
                waiting,
                ..ToStream::default()
            },
            to_app: ToApp {
                recv: stream.recv,
                unread: stream.unread.part(),
                outlet: Outlet::default(),
                total: 0,
                ended: false,
                done: false,
            },
            weight: Weight::new(Some(stream.load)),
            sent_before: sent as u64,
            slot: stream.slot,
            served: stream.served,
        }
    }
}

/// A reset would discard what is queued. An end that was queued is flushed by h2 when the stream is dropped; for anything else
/// the tunnel's own task, which has been woken, gets its turn first.
async fn reset_flushed(send: &mut SendStream<Bytes>) {
    for _ in 0..FLUSH_TURNS {
        yield_now().await;
    }
    send.send_reset(Reason::CANCEL);
}

/// From the app into the stream.
#[derive(Default)]
struct ToStream {
    inlet: Inlet,
    /// Read, and waiting for the window. Never more than one read; capacity is asked for these bytes alone, because
    /// capacity that an idle stream holds is taken from every other stream of the tunnel.
    waiting: Bytes,
    done: bool,
}

impl ToStream {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        app: &TcpStream,
        send: &mut SendStream<Bytes>,
        count: impl Fn(u64),
    ) -> Poll<Result<(), CopyError>> {
        while !self.done {
            if !self.waiting.is_empty() {
                match ready!(poll_room(cx, send, self.waiting.len())) {
                    Ok(room) => {
                        let chunk = self.waiting.split_to(room.min(self.waiting.len()));
                        let sent = chunk.len() as u64;
                        match send.send_data(chunk, false) {
                            Ok(()) => count(sent),
                            Err(err) => self.stopped(cx, send, err)?,
                        }
                    }
                    Err(err) => self.stopped(cx, send, err)?,
                }
                continue;
            }
            match self.inlet.poll_read(cx, app).map_err(CopyError::App)? {
                Poll::Ready(Some(chunk)) => self.waiting = chunk,
                Poll::Ready(None) => {
                    if let Err(err) = send.send_data(Bytes::new(), true) {
                        self.stopped(cx, send, err)?;
                    }
                    self.done = true;
                }
                Poll::Pending => match ready!(send.poll_reset(cx)).map_err(CopyError::Stream)? {
                    // RFC 9113 8.1: the peer has sent all of its answer and wants no more of the question.
                    Reason::NO_ERROR => self.done = true,
                    reason => return Poll::Ready(Err(CopyError::Stream(reason.into()))),
                },
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl ToStream {
    /// RFC 9113 8.1: with NO_ERROR the peer, whose answer is complete, wants no more of the question.
    fn stopped(
        &mut self,
        cx: &mut Context<'_>,
        send: &mut SendStream<Bytes>,
        err: h2::Error,
    ) -> Result<(), CopyError> {
        if !matches!(send.poll_reset(cx), Poll::Ready(Ok(Reason::NO_ERROR))) {
            return Err(CopyError::Stream(err));
        }
        self.waiting = Bytes::new();
        self.done = true;
        Ok(())
    }
}

/// How many of `wanted` bytes the flow control lets through now.
pub(super) fn poll_room(
    cx: &mut Context<'_>,
    send: &mut SendStream<Bytes>,
    wanted: usize,
) -> Poll<Result<usize, h2::Error>> {
    send.reserve_capacity(wanted);
    loop {
        let room = send.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(send.poll_capacity(cx)) {
            Some(room) => _ = room?,
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        }
    }
}

/// From the stream into the app.
struct ToApp {
    recv: RecvStream,
    unread: Part,
    outlet: Outlet,
    /// Bytes that have arrived.
    total: u64,
    ended: bool,
    done: bool,
}

impl ToApp {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        app: &TcpStream,
        count: impl Fn(u64),
    ) -> Poll<Result<(), CopyError>> {
        while !self.done {
            if let Err(err) = self.take_arrived(cx) {
                // What arrived before the reset goes to the app before it, as far as the app takes it.
                while let Poll::Ready(Ok(written @ 1..)) = self.outlet.poll_flush(cx, app) {
                    count(written as u64);
                }
                return Poll::Ready(Err(CopyError::Stream(err)));
            }
            if !self.outlet.is_empty() {
                let written = ready!(self.outlet.poll_flush(cx, app)).map_err(CopyError::App)?;
                count(written as u64);
                self.unread.acknowledged(written);
                // Only now: the window is what bounds the bytes that wait for a slow app. It fails on a stream that
                // has ended, which needs no window.
                let _ = self.recv.flow_control().release_capacity(written);
            } else if self.ended {
                shutdown_write(app).map_err(CopyError::App)?;
                self.done = true;
            } else {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes everything that has arrived, also when the app cannot take it: the stream's window bounds it, and small
    /// frames left inside h2 would count against the whole tunnel (see `settings`).
    fn take_arrived(&mut self, cx: &mut Context<'_>) -> Result<(), h2::Error> {
        while !self.ended {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    self.total += chunk.len() as u64;
                    turn::arrived(chunk.len(), self.total);
                    self.unread.taken(chunk.len());
                    self.outlet.push(chunk);
                }
                Poll::Ready(Some(Err(err))) => return Err(err),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }
}
