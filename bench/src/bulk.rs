//! Throughput: streams from the client to the server, each as fast as it goes. What the bytes are is not looked at,
//! here: the tests do that.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::stage::Pair;

/// How much is written or read at a time.
const CHUNK: usize = 256 * 1024;

/// Gbit/s that reached the server, over all streams.
pub(crate) fn run(pair: &Pair, streams: usize, duration: Duration) -> Result<f64> {
    let (listener, to) = pair.listen()?;
    let connections: Result<Vec<_>> = (0..streams).map(|_| pair.connection(&listener, to)).collect();
    let connections = connections?;
    let started = Instant::now();
    let bytes = thread::scope(|scope| {
        let ends: Vec<_> = connections
            .into_iter()
            .map(|(client, server)| {
                let source = scope.spawn(move || send(client, started, duration));
                (source, scope.spawn(move || receive(server)))
            })
            .collect();
        let mut bytes = 0;
        for (source, sink) in ends {
            ended(source).context("a client")?;
            bytes += ended(sink).context("a server")?;
        }
        anyhow::Ok(bytes)
    })?;
    // The last byte has arrived: what is on its way when time is up counts, and so does the time it takes.
    Ok(bytes as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e9)
}

fn ended<T>(end: ScopedJoinHandle<'_, io::Result<T>>) -> Result<T> {
    Ok(end.join().map_err(|_| anyhow!("a stream's thread panicked"))??)
}

fn send(mut stream: TcpStream, started: Instant, duration: Duration) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while started.elapsed() < duration {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            size => bytes += size as u64,
        }
    }
}
