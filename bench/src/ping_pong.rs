//! Latency: a message there and back over one connection, again and again.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::{
    figures::{SHARES, quantile},
    stage::Pair,
};

/// Round trips before the clock is looked at: buffers grow, caches fill.
const WARM_UP: usize = 500;
/// More than fit into any duration of a plan; reserved at the start, so that the loop allocates nothing.
const TRIPS: usize = 1 << 20;

/// The times of round trips with so many bytes each way, in µs: of each of [`SHARES`].
pub(crate) fn run(pair: &Pair, bytes: usize, duration: Duration) -> Result<Vec<(f64, f64)>> {
    let (listener, to) = pair.listen()?;
    let (client, server) = pair.connection(&listener, to)?;
    let mut nanos = thread::scope(|scope| {
        let echo = scope.spawn(|| echo(server, bytes));
        let nanos = ask(client, bytes, duration).context("the client");
        let echoed = echo.join().map_err(|_| anyhow!("the server panicked"))?;
        // The client's failure is told first: the server's follows from it.
        let nanos = nanos?;
        echoed.context("the server")?;
        anyhow::Ok(nanos)
    })?;
    nanos.sort_unstable();
    let micros = |share| quantile(&nanos, share).map(|nanos| (share, f64::from(nanos) / 1e3));
    SHARES
        .map(micros)
        .into_iter()
        .collect::<Option<_>>()
        .context("there was no time for a single round trip")
}

fn ask(mut stream: TcpStream, bytes: usize, duration: Duration) -> io::Result<Vec<u32>> {
    let mut message = vec![0; bytes];
    let mut trip = || -> io::Result<()> {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    };
    for _ in 0..WARM_UP {
        trip()?;
    }
    let mut nanos = Vec::with_capacity(TRIPS);
    let started = Instant::now();
    let mut before = started;
    while nanos.len() < TRIPS {
        trip()?;
        let now = Instant::now();
        nanos.push(u32::try_from((now - before).as_nanos()).unwrap_or(u32::MAX));
        before = now;
        if now - started >= duration {
            break;
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(nanos)
}

fn echo(mut stream: TcpStream, bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; bytes];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            size => stream.write_all(&buffer[..size])?,
        }
    }
}
