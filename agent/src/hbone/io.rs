//! A stream as a reader and a writer, for what is spoken inside of it. Called by the waypoint.
//!
//! Bytes that have arrived are taken off the tunnel whenever the stream is polled, also by a flush: what nobody reads yet must
//! not close the window of the other streams (see `window`), and small frames left inside h2 would count against the whole
//! tunnel (see `settings`). They are acknowledged when they are read, so that a stream never holds more than its window.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

use super::{
    Stream,
    pool::Slot,
    stream::poll_room,
    window::{Part, Unread},
};
use crate::net::{tls::Session, turn, weight::Weight};

/// What one write may carry: a frame that nobody waits long behind.
const LONGEST_WRITE: usize = 64 * 1024;

/// How long the other side may take to end, once ours has ended and nobody reads on.
const LINGER: Duration = Duration::from_secs(1);
/// What it may still say until then.
const MOST_DROPPED: usize = 256 * 1024;

/// An open stream. Dropping it before our way has ended resets it (RST_STREAM CANCEL). Once that has ended, the other way gets a
/// moment to end as well (RFC 9112 9.6): it is about to, and what it sends to a stream that was reset costs the whole tunnel, as
/// h2 counts such frames against the peer.
#[derive(Debug)]
pub struct Io {
    send: SendStream<Bytes>,
    /// There until it is dropped.
    recv: Option<RecvStream>,
    /// Taken, and not read yet.
    arrived: VecDeque<Bytes>,
    buffered: usize,
    unread: Part,
    total: u64,
    ended: bool,
    failed: Option<io::Error>,
    shut: bool,
    session: Option<Arc<Session>>,
    slot: Option<Slot>,
    weight: Weight,
    _unread: Unread,
    _served: Option<Arc<()>>,
}

impl From<Stream> for Io {
    /// Of a stream that was asked for without first bytes.
    fn from(stream: Stream) -> Self {
        Self {
            send: stream.send,
            recv: Some(stream.recv),
            arrived: VecDeque::new(),
            buffered: 0,
            unread: stream.unread.part(),
            total: 0,
            ended: false,
            failed: None,
            shut: false,
            session: stream.session,
            slot: stream.slot,
            weight: Weight::new(Some(stream.load)),
            _unread: stream.unread,
            _served: stream.served,
        }
    }
}

impl Io {
    /// The tunnel's TLS session, on the side that dialled.
    pub fn session(&self) -> Option<&Arc<Session>> {
        self.session.as_ref()
    }

    /// Waits until there are so many bytes to look at, or no more will come, and gives as many as there are of them. Nothing is
    /// taken away. May be dropped and called again.
    ///
    /// # Errors
    /// When the stream broke before.
    pub async fn peek(&mut self, bytes: usize) -> io::Result<Bytes> {
        poll_fn(|cx| {
            self.take_arrived(cx);
            if self.buffered >= bytes || self.ended {
                return Poll::Ready(Ok(()));
            }
            match self.failed.take() {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            }
        })
        .await?;
        Ok(self.first(bytes))
    }

    /// Ends our side, if it has not ended.
    pub fn end(&mut self) {
        // It fails where the stream is gone, which needs no end.
        let _ = self.shut();
    }

    fn shut(&mut self) -> io::Result<()> {
        if self.shut {
            return Ok(());
        }
        self.shut = true;
        self.send.send_data(Bytes::new(), true).map_err(broken)
    }

    /// At most so many of the bytes that can be read at once.
    pub fn first(&self, most: usize) -> Bytes {
        let mut found = BytesMut::with_capacity(most.min(self.buffered));
        for chunk in &self.arrived {
            let room = most - found.len();
            found.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        }
        found.freeze()
    }

    fn take_arrived(&mut self, cx: &mut Context<'_>) {
        while !self.ended && self.failed.is_none() {
            let Some(recv) = &mut self.recv else { return };
            match recv.poll_data(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    self.total += chunk.len() as u64;
                    self.weight.add(chunk.len());
                    self.unread.taken(chunk.len());
                    self.buffered += chunk.len();
                    if turn::arrived(chunk.len(), self.total) {
                        turn::took(cx, chunk.len());
                    }
                    self.arrived.push_back(chunk);
                }
                Poll::Ready(Some(Err(error))) => self.failed = Some(broken(error)),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    /// Hands out as much of what has arrived as there is room for.
    fn read_arrived(&mut self, buf: &mut ReadBuf<'_>) {
        let mut read = 0;
        while buf.remaining() > 0
            && let Some(chunk) = self.arrived.front_mut()
        {
            let part = chunk.len().min(buf.remaining());
            buf.put_slice(chunk.get(..part).unwrap_or_default());
            chunk.advance(part);
            read += part;
            if chunk.is_empty() {
                self.arrived.pop_front();
            }
        }
        self.buffered -= read;
        self.unread.acknowledged(read);
        // It fails on a stream that has ended, which needs no window.
        if let Some(recv) = &mut self.recv {
            let _ = recv.flow_control().release_capacity(read);
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let wanted = offered.min(LONGEST_WRITE);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        if self.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = ready!(poll_room(cx, &mut self.send, wanted)).map_err(broken)?;
        let mut chunk = BytesMut::with_capacity(room.min(wanted));
        for slice in slices {
            let part = slice.len().min(room.min(wanted) - chunk.len());
            chunk.extend_from_slice(slice.get(..part).unwrap_or_default());
        }
        let sent = chunk.len();
        self.send.send_data(chunk.freeze(), false).map_err(broken)?;
        self.weight.add(sent);
        Poll::Ready(Ok(sent))
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if !self.shut || self.ended || self.failed.is_some() {
            return;
        }
        if let (Some(recv), Ok(runtime)) = (self.recv.take(), Handle::try_current()) {
            let held = (self.slot.take(), self._served.take());
            runtime.spawn(async move {
                // It may also take too long, or say too much.
                let _ = timeout(LINGER, drain(recv)).await;
                drop(held);
            });
        }
    }
}

/// Drops what still comes, until the other side ends.
async fn drain(mut recv: RecvStream) {
    let mut left = MOST_DROPPED;
    while let Some(Ok(chunk)) = recv.data().await
        && chunk.len() <= left
    {
        left -= chunk.len();
        let _ = recv.flow_control().release_capacity(chunk.len());
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.take_arrived(cx);
        if !this.arrived.is_empty() {
            this.read_arrived(buf);
            return Poll::Ready(Ok(()));
        }
        match this.failed.take() {
            Some(error) => {
                // What reads on after the error reads no end.
                this.failed = Some(error.kind().into());
                Poll::Ready(Err(error))
            }
            None if this.ended => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().take_arrived(cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().shut())
    }
}

/// Anything but an end is a reset.
fn broken(error: h2::Error) -> io::Error {
    let kind = error
        .get_io()
        .map_or(io::ErrorKind::ConnectionReset, io::Error::kind);
    io::Error::new(kind, error)
}
