//! Applications: small TCP servers on threads, over sockets that belong to a pod.
//!
//! A [`Server`] runs one of the functions below, or any closure, for every connection it accepts. They are written as
//! real programs behave: they read until the end, answer, and close.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::net as sys;
use socket2::SockRef;

use crate::pattern;

/// Enough for these servers, of which a test may have a thousand.
const STACK: usize = 128 * 1024;

/// A server that runs until it is dropped; then it stops listening and shuts down the connections it still has.
pub struct Server {
    addr: SocketAddr,
    listener: Arc<TcpListener>,
    accepting: Option<JoinHandle<()>>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    accepted: AtomicU64,
    finished: AtomicU64,
    /// Connections being served, to shut down at the end.
    open: Mutex<HashMap<u64, TcpStream>>,
    /// What `accept` said of each peer, and how serving it went.
    peers: Mutex<Vec<SocketAddr>>,
    errors: Mutex<Vec<String>>,
}

impl Server {
    /// Serves every connection of `listener` on a thread of its own.
    pub fn start(
        listener: TcpListener,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let (listener, state) = (Arc::new(listener), Arc::new(State::default()));
        let (accepting, shared) = (Arc::clone(&listener), Arc::clone(&state));
        let accepting = thread::spawn(move || accept_all(&accepting, &shared, &Arc::new(serve)));
        Ok(Self {
            addr,
            listener,
            accepting: Some(accepting),
            state,
        })
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// How many of them it is done with.
    pub fn finished(&self) -> u64 {
        self.state.finished.load(Ordering::SeqCst)
    }

    /// The peer of every connection, as `accept` reported it, in order; v4-mapped addresses as IPv4.
    pub fn peers(&self) -> Vec<SocketAddr> {
        lock(&self.state.peers).clone()
    }

    /// What went wrong with connections, in the order they ended.
    pub fn errors(&self) -> Vec<String> {
        lock(&self.state.errors).clone()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "server on {} ({} accepted, {} finished)",
            self.addr,
            self.accepted(),
            self.finished()
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // This wakes the thread in accept; closing the file descriptor would not.
        let _ = sys::shutdown(&*self.listener, sys::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in lock(&self.state.open).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept_all<S>(listener: &TcpListener, state: &Arc<State>, serve: &Arc<S>)
where
    S: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    while let Ok((stream, peer)) = listener.accept() {
        let id = state.accepted.fetch_add(1, Ordering::SeqCst);
        lock(&state.peers).push(SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        if let Ok(copy) = stream.try_clone() {
            lock(&state.open).insert(id, copy);
        }
        let (state, serve) = (Arc::clone(state), Arc::clone(serve));
        let work = move || {
            let outcome = serve(stream);
            lock(&state.open).remove(&id);
            lock(&state.errors).extend(outcome.err().map(|err| err.to_string()));
            state.finished.fetch_add(1, Ordering::SeqCst);
        };
        if thread::Builder::new().stack_size(STACK).spawn(work).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends back what comes, until the client ends its side.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            size => stream.write_all(&buffer[..size])?,
        }
    }
}

/// First says in a line whom it sees at the other end and what its own address is, as its socket has them; then echoes.
pub fn witness(mut stream: TcpStream) -> io::Result<()> {
    let ends = format!("{} {}\n", stream.peer_addr()?, stream.local_addr()?);
    stream.write_all(ends.as_bytes())?;
    echo(stream)
}

/// Speaks first, as mail and database servers do, then echoes.
pub fn banner(text: &'static [u8]) -> impl Fn(TcpStream) -> io::Result<()> {
    move |mut stream| {
        stream.write_all(text)?;
        echo(stream)
    }
}

/// Reads to the end, then answers with the number of bytes in decimal: works only if the client's half-close arrives
/// while its other side stays open.
pub fn count(mut stream: TcpStream) -> io::Result<()> {
    let size = io::copy(&mut stream, &mut io::sink())?;
    stream.write_all(size.to_string().as_bytes())
}

/// Sends `text`, ends its own side, and only then reads to the end: works only if its half-close leaves the other
/// direction open.
pub fn finish_first(text: &'static [u8]) -> impl Fn(TcpStream) -> io::Result<()> {
    move |mut stream| {
        stream.write_all(text)?;
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    }
}

/// Reads a stream made by [`pattern::send`] to its end, checks it, and answers with the number of bytes in decimal.
pub fn sink(seed: u64) -> impl Fn(TcpStream) -> io::Result<()> {
    move |mut stream| {
        let size = pattern::check(&mut stream, seed)?;
        stream.write_all(size.to_string().as_bytes())
    }
}

/// Sends a stream that [`pattern::check`] can check, and closes.
pub fn source(seed: u64, length: u64) -> impl Fn(TcpStream) -> io::Result<()> {
    move |mut stream| pattern::send(&mut stream, seed, length)
}

/// Closes with a reset after the first byte from the client.
pub fn reset_after_first_byte(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    reset(stream)
}

/// Closes a connection with a reset instead of an orderly end. It goes out when the last copy of the socket is closed.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))
}

/// Sends `request`, ends the sending side, and reads the whole answer. A server that resets is always a reset to the
/// caller, however early it does.
pub fn ask(mut stream: TcpStream, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    match stream.shutdown(Shutdown::Write) {
        // A reset was there first; the read says so.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
        ended => ended?,
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Sends `text` and reads as many bytes back; an error unless they are the same.
pub fn round_trip(stream: &mut TcpStream, text: &[u8]) -> io::Result<()> {
    stream.write_all(text)?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    if answer == text {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the echo differs"))
    }
}
