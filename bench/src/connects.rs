//! Connections per second: connect, a message there and back, close, several clients at a time.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::net::{Shutdown, shutdown};
use socket2::{Domain, Protocol, Socket, Type};
use weft_tests::pause::SocketSpec;

use crate::stage::Pair;

/// The size of a message, each way.
const MESSAGE: usize = 64;

/// Connections that are open at a time.
pub(crate) const CLIENTS: usize = 16;
/// More than the clients: a server is busy until the client's close has reached it.
const SERVERS: usize = 64;
/// Enough for a server, which keeps one message.
const STACK: usize = 64 * 1024;
/// How long any step of a connection may take.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Makes `total` connections; how many that was in a second.
pub(crate) fn run(pair: &Pair, total: usize) -> Result<f64> {
    let (listener, to) = pair.listen()?;
    let shares = sockets(pair, total).context("make the sockets")?;
    let made: usize = shares.iter().map(Vec::len).sum();
    let seconds = thread::scope(|scope| {
        for _ in 0..SERVERS {
            let server = thread::Builder::new().stack_size(STACK);
            server.spawn_scoped(scope, || serve(&listener))?;
        }
        let seconds = ask_all(shares, to);
        // This wakes the servers, whether it went well or not.
        shutdown(&listener, Shutdown::Both)?;
        seconds
    })?;
    Ok(made as f64 / seconds)
}

/// The sockets of each client. Only a process of the pod can make them, and it makes one at a time: so that this is not
/// what is measured, they are made before.
fn sockets(pair: &Pair, total: usize) -> io::Result<Vec<Vec<Socket>>> {
    let spec = SocketSpec::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
    let socket = || -> io::Result<Socket> {
        let socket = pair.client.socket(spec)?;
        // Of sending, and so of connecting.
        socket.set_write_timeout(Some(STEP_LIMIT))?;
        socket.set_read_timeout(Some(STEP_LIMIT))?;
        Ok(socket)
    };
    let share = || (0..total / CLIENTS).map(|_| socket()).collect();
    (0..CLIENTS).map(|_| share()).collect()
}

/// Lets the clients begin together; the seconds until the last is done.
fn ask_all(shares: Vec<Vec<Socket>>, to: SocketAddr) -> Result<f64> {
    let start = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        let client = |sockets: Vec<Socket>| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                sockets.into_iter().try_for_each(|socket| ask(socket, to))
            })
        };
        let clients: Vec<_> = shares.into_iter().map(client).collect();
        start.wait();
        let started = Instant::now();
        for client in clients {
            let outcome = client.join().map_err(|_| anyhow!("a client panicked"))?;
            outcome.context("a connection failed")?;
        }
        Ok(started.elapsed().as_secs_f64())
    })
}

fn ask(mut socket: Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect(&to.into())?;
    let mut message = [0; MESSAGE];
    socket.write_all(&message)?;
    socket.read_exact(&mut message)
}

/// Serves one connection after the other until the listener is shut down.
fn serve(listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        // A failure is the client's to tell: it misses its answer.
        let _ = answer(stream);
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message)?;
    stream.write_all(&message)?;
    // Until the client closes.
    stream.read(&mut message).map(drop)
}
