//! A bulk stream that goes on while something else is measured: what a small message waits for when somebody else of
//! the same pod is busy.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use weft_tests::{LIMIT, wait_until};

use crate::stage::Pair;

/// How much is written or read at a time.
const CHUNK: usize = 256 * 1024;
/// The stream is under way once so much of it has arrived: buffers are full, windows are open.
const UNDER_WAY: u64 = 8 << 20;

/// Does `work` while a stream of the same pair goes as fast as it can; also the Gbit/s that the stream had meanwhile.
pub(crate) fn bulk<T>(pair: &Pair, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let (listener, to) = pair.listen()?;
    let (client, server) = pair.connection(&listener, to)?;
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let source = scope.spawn(|| send(client, &stop));
        let sink = scope.spawn(|| receive(server, &received));
        let arrived = || received.load(Ordering::Relaxed);
        let under_way = wait_until("the bulk stream to flow", LIMIT, || arrived() >= UNDER_WAY);
        let (before, since) = (arrived(), Instant::now());
        let worked = under_way.and_then(|()| work());
        let bits = (arrived() - before) as f64 * 8.0;
        let gbits = bits / since.elapsed().as_secs_f64() / 1e9;
        // In any case: the scope waits for the threads.
        stop.store(true, Ordering::Relaxed);
        let streamed = ended(source).and_then(|()| ended(sink));
        let worked = worked?;
        streamed.context("the bulk stream")?;
        Ok((worked, gbits))
    })
}

fn ended(end: ScopedJoinHandle<'_, io::Result<()>>) -> Result<()> {
    Ok(end.join().map_err(|_| anyhow!("a stream's thread panicked"))??)
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            size => received.fetch_add(size as u64, Ordering::Relaxed),
        };
    }
}
