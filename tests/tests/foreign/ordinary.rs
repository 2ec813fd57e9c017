//! A connection that goes on while something happens to others.

use std::{
    io,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use weft_tests::app::round_trip;

/// An ordinary connection between two pods of the mesh, in use all the time.
pub(crate) struct Ordinary {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Duration>>,
}

impl Ordinary {
    pub(crate) fn start(mut stream: TcpStream) -> Result<Self> {
        round_trip(&mut stream, b"before")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::SeqCst) {
                let began = Instant::now();
                round_trip(&mut stream, &[7; 1000])?;
                longest = longest.max(began.elapsed());
            }
            Ok(longest)
        });
        Ok(Self { stop, thread })
    }

    /// The longest round trip.
    pub(crate) fn stop(self) -> Result<Duration> {
        self.stop.store(true, Ordering::SeqCst);
        let longest = self
            .thread
            .join()
            .map_err(|_| anyhow!("the ordinary connection's thread panicked"))?;
        longest.context("the ordinary connection")
    }
}
