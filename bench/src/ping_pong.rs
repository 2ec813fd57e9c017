//! Latency: 64 bytes there and back over one connection, again and again.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::{figures::quantile, stage::Pair};

/// The size of a message, each way.
pub(crate) const MESSAGE: usize = 64;
/// Round trips before the clock is looked at: buffers grow, caches fill.
const WARM_UP: usize = 500;
/// More than fit into any duration of a plan; reserved at the start, so that the loop allocates nothing.
const TRIPS: usize = 1 << 20;

/// The median and the 99th percentile of the round trip, in microseconds.
pub(crate) fn run(pair: &Pair, duration: Duration) -> Result<Vec<f64>> {
    let (listener, to) = pair.listen()?;
    let (client, server) = pair.connection(&listener, to)?;
    let mut nanos = thread::scope(|scope| {
        let echo = scope.spawn(|| echo(server));
        let nanos = ask(client, duration).context("the client");
        let echoed = echo.join().map_err(|_| anyhow!("the server panicked"))?;
        // The client's failure is told first: the server's follows from it.
        let nanos = nanos?;
        echoed.context("the server")?;
        anyhow::Ok(nanos)
    })?;
    nanos.sort_unstable();
    let micros = |share| quantile(&nanos, share).map(|nanos| f64::from(nanos) / 1e3);
    [0.5, 0.99]
        .map(micros)
        .into_iter()
        .collect::<Option<_>>()
        .context("there was no time for a single round trip")
}

fn ask(mut stream: TcpStream, duration: Duration) -> io::Result<Vec<u32>> {
    let mut message = [0; MESSAGE];
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

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; MESSAGE];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            size => stream.write_all(&buffer[..size])?,
        }
    }
}
