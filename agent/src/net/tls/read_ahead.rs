//! The socket under a tunnel's TLS, read ahead of it while much arrives.
//!
//! rustls asks for a record at most, which is a system call for each 16 KiB or less. As long as it gets less than it asks
//! for, this hands its calls on and holds nothing; once a call is answered in full, it takes from the socket as much
//! as there is, up to [`MOST`], and serves rustls from that. Writes go straight through. Used by `net::tls` alone.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

use crate::net::{lanes::Berth, turn};

/// The first read ahead; each that is answered in full doubles the next.
const FIRST: usize = 64 * 1024;
/// The longest one, and so what a busy tunnel holds.
pub(super) const MOST: usize = 512 * 1024;
/// When the socket is empty and the last read was shorter than this, the tunnel is not busy any more. A tunnel that falls
/// silent at once keeps its buffer until the next PING.
const QUIET: usize = 16 * 1024;

/// A socket that is read ahead.
#[derive(Debug)]
pub struct ReadAhead {
    tcp: TcpStream,
    berth: Berth,
    buffer: BytesMut,
    /// How long the next read ahead is; 0 while calls are handed on.
    next: usize,
    /// What the last read brought.
    last: usize,
}

impl ReadAhead {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            berth: Berth::new(),
            buffer: BytesMut::new(),
            next: 0,
            last: 0,
        }
    }

    /// The socket, on the thread that the tunnel's task is on now.
    fn tcp(&mut self) -> Pin<&mut TcpStream> {
        self.berth.follow(&mut self.tcp);
        Pin::new(&mut self.tcp)
    }

    /// Hands one call on.
    fn poll_through(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.remaining();
        ready!(self.tcp().poll_read(cx, buf))?;
        self.last = room - buf.remaining();
        if self.last > 0 && self.last == room {
            self.next = FIRST;
        }
        Poll::Ready(Ok(()))
    }

    /// Fills the empty buffer; it stays empty at the end of the connection.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.clear();
        let piece = turn::piece(self.next);
        self.buffer.reserve(piece);
        self.berth.follow(&mut self.tcp);
        let mut room = (&mut self.buffer).limit(piece);
        match poll_read_buf(Pin::new(&mut self.tcp), cx, &mut room) {
            Poll::Ready(read) => {
                self.last = read?;
                turn::took(cx, self.last);
                if self.last == piece {
                    self.next = MOST.min(self.next * 2);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Pending => {
                if self.last < QUIET {
                    self.buffer = BytesMut::new();
                    self.next = 0;
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for ReadAhead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.buffer.is_empty() {
            if this.next == 0 {
                return this.poll_through(cx, buf);
            }
            ready!(this.poll_fill(cx))?;
        }
        let chunk = this.buffer.len().min(buf.remaining());
        let (now, _) = this.buffer.split_at(chunk);
        buf.put_slice(now);
        this.buffer.advance(chunk);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ReadAhead {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.tcp().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tcp().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::timeout,
    };

    use super::*;

    async fn pair() -> (TcpStream, ReadAhead) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (dialled.unwrap(), ReadAhead::new(accepted.unwrap().0))
    }

    #[tokio::test]
    async fn bytes_keep_their_order_whatever_is_asked_for() {
        let (mut write, mut read) = pair().await;
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let expect = sent.clone();
        let writer = tokio::spawn(async move { write.write_all(&sent).await.unwrap() });
        let (mut got, mut ask) = (Vec::new(), 1);
        while got.len() < expect.len() {
            let mut piece = vec![0; ask];
            let size = timeout(Duration::from_secs(5), read.read(&mut piece)).await;
            let size = size.expect("it hangs").unwrap();
            assert!(size > 0, "the end came early");
            got.extend_from_slice(&piece[..size]);
            ask = ask % 20_000 + 977;
        }
        assert!(got == expect);
        writer.await.unwrap();
        assert_eq!(read.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_tunnel_that_is_not_busy_holds_no_buffer() {
        let (mut write, mut read) = pair().await;
        let mut piece = vec![0; 4096];
        write.write_all(b"ping").await.unwrap();
        assert_eq!(read.read(&mut piece).await.unwrap(), 4);
        assert_eq!(read.buffer.capacity(), 0);
        write.write_all(&vec![7; 300_000]).await.unwrap();
        let (mut left, mut held) = (300_000, 0);
        while left > 0 {
            left -= read.read(&mut piece).await.unwrap();
            held = held.max(read.buffer.capacity());
        }
        assert!(held >= FIRST / 2, "it was busy");
        write.write_all(b"pong").await.unwrap();
        assert_eq!(read.read(&mut piece).await.unwrap(), 4);
        let nothing = timeout(Duration::from_millis(10), read.read(&mut piece)).await;
        assert!(nothing.is_err());
        assert_eq!(read.buffer.capacity(), 0);
    }

    #[tokio::test]
    async fn one_turn_takes_a_bounded_part_of_what_is_there() {
        let (mut write, mut read) = pair().await;
        let writer = tokio::spawn(async move { write.write_all(&vec![7; 16 << 20]).await });
        let mut piece = vec![0; 16 * 1024];
        let (mut most, mut total) = (0, 0);
        let read = std::future::poll_fn(|cx| {
            // tokio-rustls asks again when it has something else to give.
            let (mut turn, mut refused) = (0, 0);
            while refused < 2 {
                let mut buf = ReadBuf::new(&mut piece);
                match Pin::new(&mut read).poll_read(cx, &mut buf) {
                    Poll::Ready(done) => done.unwrap(),
                    Poll::Pending => refused += 1,
                }
                turn += buf.filled().len();
            }
            most = most.max(turn);
            total += turn;
            if total < 8 << 20 {
                return Poll::Pending;
            }
            Poll::Ready(most)
        });
        let most = timeout(Duration::from_secs(5), read).await.expect("it hangs");
        assert!((MOST..=2 * MOST).contains(&most), "{most} bytes in one turn");
        writer.abort();
    }
}
