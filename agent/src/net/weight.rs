//! Which connections carry bulk. They are kept from the others: a new stream is not put into their tunnel (`hbone::pool`), and
//! their tasks go on on a thread of their own ([`super::lanes`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use super::lanes::{self, Lane};

/// Pieces below this are not bulk's, and cost nothing to look at.
const PIECE: usize = 4096;
/// So many bytes in a span make a connection bulk: 40 MB/s. A page of a web site is none.
const BULK: usize = 4 << 20;
const SPAN_MS: u64 = 100;
/// For how long it counts as bulk without going on.
const HEAVY_MS: u64 = 1000;

/// Whether something carries bulk: a tunnel, by any of its streams. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Load(Arc<Gauge>);

#[derive(Debug)]
struct Gauge {
    born: Instant,
    /// Until when it counts as heavy, in ms of its life; 0 when it never was.
    heavy_until: AtomicU64,
}

impl Load {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Gauge::new()))
    }

    /// Whether bulk goes on: what is small would wait behind what it has under way.
    pub(crate) fn is_heavy(&self) -> bool {
        self.0.is_heavy()
    }

    /// Says where the task that is being polled belongs, if it is this one's.
    pub(crate) fn choose_lane(&self) {
        self.0.choose_lane();
    }
}

impl Gauge {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            heavy_until: 0.into(),
        }
    }

    fn is_heavy(&self) -> bool {
        match self.heavy_until.load(Relaxed) {
            0 => false,
            until => self.age_ms() < until,
        }
    }

    fn choose_lane(&self) {
        lanes::want(if self.is_heavy() { Lane::Bulk } else { Lane::Talk });
    }

    fn age_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }

    fn carries_bulk(&self) {
        self.heavy_until.store(self.age_ms() + HEAVY_MS, Relaxed);
    }
}

/// What one connection carries: alone, or as a stream of a tunnel.
#[derive(Debug)]
pub(crate) struct Weight {
    own: Gauge,
    tunnel: Option<Load>,
    /// When the span began that bytes are counted over, in ms of its life, and those bytes.
    span: AtomicU64,
    carried: AtomicUsize,
}

impl Weight {
    /// Of a stream of `tunnel`, or of a connection that is in none.
    pub(crate) fn new(tunnel: Option<Load>) -> Self {
        Self {
            own: Gauge::new(),
            tunnel,
            span: 0.into(),
            carried: 0.into(),
        }
    }

    /// It has carried a piece, either way. Only its own task says so.
    pub(crate) fn add(&self, piece: usize) {
        if piece < PIECE {
            return;
        }
        let now = self.own.age_ms();
        if now - self.span.load(Relaxed) > SPAN_MS {
            self.span.store(now, Relaxed);
            self.carried.store(0, Relaxed);
        }
        if self.carried.fetch_add(piece, Relaxed) + piece >= BULK {
            self.own.carries_bulk();
            self.tunnel.iter().for_each(|tunnel| tunnel.0.carries_bulk());
        }
    }

    /// See [`Load::choose_lane`].
    pub(crate) fn choose_lane(&self) {
        self.own.choose_lane();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_in_large_pieces_is_bulk_for_the_stream_and_its_tunnel() {
        let tunnel = Load::new();
        let (bulk, small) = (
            Weight::new(Some(tunnel.clone())),
            Weight::new(Some(tunnel.clone())),
        );
        for _ in 0..BULK {
            small.add(PIECE - 1);
        }
        bulk.add(BULK - 1);
        assert!(!small.own.is_heavy() && !bulk.own.is_heavy() && !tunnel.is_heavy());
        bulk.add(PIECE);
        assert!(!small.own.is_heavy() && bulk.own.is_heavy() && tunnel.is_heavy());
    }
}
