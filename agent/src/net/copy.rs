//! Copying between sockets: the reading side that a tunnel and a plain connection share, and plain TCP to TCP.
//!
//! The rules are the same everywhere. A FIN is passed on as a half-close, each way by itself. Anything that is not a
//! clean end is passed on as a reset: an app must never take half an answer for a whole one. Called by the roles, and
//! by `hbone::stream` for the tunnel's form of it.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{pending, poll_fn},
    io::{self, ErrorKind, IoSlice},
    net::Shutdown,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use socket2::SockRef;
use thiserror::Error;
use tokio::{io::Interest, net::TcpStream};

use super::{lanes::Berth, turn, weight::Weight};

/// Counts bytes while they are copied.
pub trait Count {
    /// Bytes from the side that dialled to the side that was dialled.
    fn up(&self, bytes: u64);
    /// Bytes on the way back.
    fn down(&self, bytes: u64);
}

/// The plainest [`Count`]; read at any time, from anywhere.
#[derive(Debug, Default)]
pub struct Counters {
    up: AtomicU64,
    down: AtomicU64,
}

impl Counters {
    /// Both counts: up, down.
    pub fn read(&self) -> (u64, u64) {
        (self.up.load(Relaxed), self.down.load(Relaxed))
    }
}

impl Count for Counters {
    fn up(&self, bytes: u64) {
        self.up.fetch_add(bytes, Relaxed);
    }

    fn down(&self, bytes: u64) {
        self.down.fetch_add(bytes, Relaxed);
    }
}

/// Why a copy did not come to a clean end. Whichever side broke, the other has been reset.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The app's socket, or the downstream one: mostly a reset.
    #[error("the app's connection broke")]
    App(#[source] io::Error),
    /// The plain upstream socket.
    #[error("the upstream connection broke")]
    Upstream(#[source] io::Error),
    /// The other agent reset the stream, or the whole tunnel died.
    #[error("the tunnel's stream broke")]
    Stream(#[source] h2::Error),
}

/// Copies between two sockets until both have ended. `first` is what was read of the app before.
///
/// Dropping the future resets both: a connection that is cut short must not look finished.
///
/// # Errors
/// When either side breaks; both have been reset then.
pub fn copy_tcp(
    app: TcpStream,
    upstream: TcpStream,
    first: Bytes,
    counters: &impl Count,
) -> impl Future<Output = Result<(), CopyError>> {
    // Outside of the future, which may be dropped before it was polled.
    run(Closing::new(app), Closing::new(upstream), first, counters)
}

async fn run(
    mut app: Closing,
    mut upstream: Closing,
    first: Bytes,
    counters: &impl Count,
) -> Result<(), CopyError> {
    let (mut up, mut down) = (Leg::default(), Leg::default());
    up.outlet.push(first);
    let (of_app, of_upstream): (Name, Name) = (CopyError::App, CopyError::Upstream);
    let weight = Weight::new(None);
    let weigh = |n: u64| {
        weight.add(n as usize);
        n
    };
    let copied = loop {
        let (near, far) = (app.follow(), upstream.follow());
        let (mut near_broke, mut far_broke) = (pin!(near.broken()), pin!(far.broken()));
        let stage = poll_fn(|cx| {
            if near.is_left() {
                return Poll::Ready(None);
            }
            // Both ways before anything is called broken: what arrived before a reset is passed on before the reset.
            let (app, upstream) = (&near.socket, &far.socket);
            let up = up.poll(
                cx,
                app,
                upstream,
                |n| counters.up(weigh(n)),
                (of_app, of_upstream),
            );
            let down = down.poll(
                cx,
                upstream,
                app,
                |n| counters.down(weigh(n)),
                (of_upstream, of_app),
            );
            weight.choose_lane();
            if let Poll::Ready(copied) = both(up, down) {
                return Poll::Ready(Some(copied));
            }
            if let Poll::Ready(err) = near_broke.as_mut().poll(cx) {
                return Poll::Ready(Some(Err(of_app(err))));
            }
            far_broke.as_mut().poll(cx).map(|err| Some(Err(of_upstream(err))))
        });
        if let Some(copied) = stage.await {
            break copied;
        }
    };
    copied?;
    app.finish();
    upstream.finish();
    Ok(())
}

/// Both ways of a copy: it is over when they are, or when one has broken.
pub(crate) fn both(
    up: Poll<Result<(), CopyError>>,
    down: Poll<Result<(), CopyError>>,
) -> Poll<Result<(), CopyError>> {
    if up?.is_ready() & down?.is_ready() {
        return Poll::Ready(Ok(()));
    }
    Poll::Pending
}

/// How an error of one end is named.
type Name = fn(io::Error) -> CopyError;

/// One direction of a plain copy.
#[derive(Default)]
struct Leg {
    inlet: Inlet,
    outlet: Outlet,
    ended: bool,
    done: bool,
}

impl Leg {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        count: impl Fn(u64),
        (from_error, to_error): (Name, Name),
    ) -> Poll<Result<(), CopyError>> {
        while !self.done {
            let written = ready!(self.outlet.poll_flush(cx, to)).map_err(to_error)?;
            count(written as u64);
            if !self.outlet.is_empty() {
                continue;
            }
            if self.ended {
                shutdown_write(to).map_err(to_error)?;
                self.done = true;
            } else {
                match ready!(self.inlet.poll_read(cx, from)).map_err(from_error)? {
                    Some(chunk) => self.outlet.push(chunk),
                    None => self.ended = true,
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A socket that is reset when it is closed, until it is told that it came to a clean end. The kernel knows from the
/// start: it closes our sockets for us when the process is killed, and that is no clean end either.
pub(crate) struct Closing {
    pub(crate) socket: TcpStream,
    berth: Berth,
}

impl Closing {
    pub(crate) fn new(socket: TcpStream) -> Self {
        // Fails only on a socket that is gone already.
        let _ = socket.set_zero_linger();
        Self {
            socket,
            berth: Berth::new(),
        }
    }

    /// Goes with the task, if that has moved to another thread ([`super::lanes`]).
    pub(crate) fn follow(&mut self) -> &Self {
        self.berth.follow(&mut self.socket);
        self
    }

    /// Whether the task has moved since.
    pub(crate) fn is_left(&self) -> bool {
        self.berth.is_left()
    }

    /// Both directions have ended: from here on a drop is an ordinary close.
    pub(crate) fn finish(self) {
        let _ = SockRef::from(&self.socket).set_linger(None);
    }

    /// Resolves when the socket has been reset. Reading alone would not see it while the copy waits for room, and
    /// the connection would be held until there is some.
    pub(crate) async fn broken(&self) -> io::Error {
        loop {
            if let Err(err) = self.socket.ready(Interest::ERROR).await {
                return err;
            }
            match self.socket.take_error() {
                Ok(Some(err)) | Err(err) => return err,
                // Something else took the error off the socket: it will say so.
                Ok(None) => pending().await,
            }
        }
    }
}

/// Passes a FIN on. A socket that the other end has already taken down is as closed as can be.
pub(crate) fn shutdown_write(socket: &TcpStream) -> io::Result<()> {
    match SockRef::from(socket).shutdown(Shutdown::Write) {
        Err(err) if err.kind() == ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

/// Reading from a socket: at most 16 KiB at a time, into a buffer that all connections of the thread share; after 10 MiB 512 KiB,
/// or 64 KiB while others talk (see `turn`), into one of its own. What a large read costs (wake-ups, packets that are not full)
/// is paid once for all of its bytes. A connection that waits for data holds nothing.
#[derive(Default)]
pub(crate) struct Inlet {
    /// For bulk.
    own: BytesMut,
    total: u64,
}

thread_local! {
    /// What was read last keeps its part of it until it has been passed on: a connection whose bytes wait may keep all of it
    /// alive, as one with a buffer of its own would.
    static SHARED: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// The size of the shared buffer.
const SMALL: usize = 16 * 1024;
/// The largest read; nothing larger is ever passed on at once.
pub(crate) const LARGE: usize = 512 * 1024;

impl Inlet {
    /// The next bytes; `None` at the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        socket: &TcpStream,
    ) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if socket.poll_read_ready(cx)?.is_pending() {
                self.own = BytesMut::new();
                return Poll::Pending;
            }
            let read = if self.total < turn::BULK {
                SHARED.with_borrow_mut(|shared| read_chunk(socket, shared, SMALL))
            } else {
                read_chunk(socket, &mut self.own, turn::piece(LARGE))
            };
            match read {
                Ok(chunk) if chunk.is_empty() => return Poll::Ready(Ok(None)),
                Ok(chunk) => {
                    self.total += chunk.len() as u64;
                    if turn::arrived(chunk.len(), self.total) {
                        turn::took(cx, chunk.len());
                    }
                    return Poll::Ready(Ok(Some(chunk)));
                }
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
    }
}

/// What an app that has just dialled has sent already, in a single look; nothing where it has sent nothing yet or has ended, which
/// the copy will see again.
///
/// # Errors
/// The connection's: it is over.
pub(crate) fn first_bytes(socket: &std::net::TcpStream) -> io::Result<Bytes> {
    SHARED.with_borrow_mut(|shared| {
        make_room(shared, SMALL);
        let read = match SockRef::from(socket).recv(shared.spare_capacity_mut()) {
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
            read => read?,
        };
        if read == 0 {
            return Ok(Bytes::new());
        }
        // SAFETY: `recv` has initialised the first `read` bytes of the spare room.
        unsafe { shared.set_len(shared.len() + read) };
        Ok(shared.split().freeze())
    })
}

/// One read; nothing at the end. Uses what is left of the buffer up to its last quarter; `reserve` takes the same memory again
/// once the chunks that were split off have been sent.
fn read_chunk(socket: &TcpStream, buffer: &mut BytesMut, size: usize) -> io::Result<Bytes> {
    make_room(buffer, size);
    read_once(socket, buffer)?;
    Ok(buffer.split().freeze())
}

fn make_room(buffer: &mut BytesMut, size: usize) {
    if buffer.capacity() < size / 4 {
        buffer.reserve(size);
    }
}

/// One `recv` into the spare room of `buffer`. A short read means that the socket is empty: saying so to tokio saves
/// the second `recv`, which would only answer EAGAIN.
fn read_once(socket: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    let mut short = None;
    let full = socket.try_io(Interest::READABLE, || {
        let spare = buffer.spare_capacity_mut();
        let room = spare.len();
        let read = SockRef::from(socket).recv(spare)?;
        if read > 0 && read < room {
            short = Some(read);
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(read)
    });
    let read = match short {
        Some(read) => read,
        None => full?,
    };
    // SAFETY: `recv` has initialised the first `read` bytes of the spare room.
    unsafe { buffer.set_len(buffer.len() + read) };
    Ok(read)
}

/// Chunks on their way into a socket.
///
/// Small ones are joined, so that a peer that sends a byte at a time to a reader that has stopped costs no more
/// memory than the bytes it sent.
#[derive(Default)]
pub(crate) struct Outlet {
    chunks: VecDeque<Bytes>,
    /// Bytes after `chunks`, in a buffer of their own.
    joined: BytesMut,
    /// Whether the runtime has been asked if the socket takes bytes. A new one does: its first bytes go at once, in the turn that
    /// connected it, and not in the one in which epoll tells of it.
    asked: bool,
}

/// Chunks below this size are joined once `VECTORS` of them wait.
const JOIN_BELOW: usize = 4096;
/// How many chunks go into one write.
const VECTORS: usize = 32;

impl Outlet {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.joined.is_empty()
    }

    pub(crate) fn push(&mut self, chunk: Bytes) {
        let join = chunk.len() < JOIN_BELOW && self.chunks.len() >= VECTORS;
        if join || (!self.joined.is_empty() && chunk.len() < JOIN_BELOW) {
            self.joined.extend_from_slice(&chunk);
            return;
        }
        if !self.joined.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.joined).freeze());
        }
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// One write of what waits: how many bytes the socket took. Zero when nothing waits.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, socket: &TcpStream) -> Poll<io::Result<usize>> {
        if self.chunks.is_empty() && !self.joined.is_empty() {
            self.chunks.push_back(std::mem::take(&mut self.joined).freeze());
        }
        while !self.chunks.is_empty() {
            let write = if std::mem::replace(&mut self.asked, true) {
                ready!(socket.poll_write_ready(cx))?;
                self.write_once(socket)
            } else {
                self.write_unasked(socket)
            };
            match write {
                Ok(written) => {
                    self.advance(written);
                    return Poll::Ready(Ok(written));
                }
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(err) => return Poll::Ready(Err(err)),
            }
        }
        Poll::Ready(Ok(0))
    }

    fn write_unasked(&self, socket: &TcpStream) -> io::Result<usize> {
        let first = self.chunks.front().map_or(&[][..], |chunk| chunk);
        SockRef::from(socket).send(first)
    }

    fn write_once(&self, socket: &TcpStream) -> io::Result<usize> {
        if let [chunk] = self.chunks.as_slices().0
            && self.chunks.len() == 1
        {
            return socket.try_write(chunk);
        }
        let mut slices = [IoSlice::new(&[]); VECTORS];
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        socket.try_write_vectored(slices.get(..count).unwrap_or_default())
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.chunks.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.chunks.pop_front();
        }
    }
}
