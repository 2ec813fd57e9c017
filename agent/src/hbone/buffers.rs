//! What tunnels may hold in memory for readers that are slow: of one peer at one pod, and of all together.
//!
//! A tunnel has a window of its own, whatever the others hold, and grows beyond it by what its streams have not read yet
//! (`window`). That growth is taken from here first, so that it is bounded also over many tunnels.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

use super::Settings;
use crate::mesh::Limit;

/// The peer's address and the pod's.
pub type Pair = (IpAddr, IpAddr);

/// The budget of an agent. Clones share it.
#[derive(Clone, Debug)]
pub struct Buffers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    most_of_pair: usize,
    used: AtomicUsize,
    pairs: Mutex<HashMap<Pair, Arc<OfPair>>>,
    refused: AtomicU64,
    refused_of_pair: AtomicU64,
}

#[derive(Debug, Default)]
struct OfPair {
    used: AtomicUsize,
    tunnels: AtomicUsize,
}

/// Tunnels of a pair that have the whole window. There is one where few streams are, and some for bulk streams; on each
/// worker.
const WIDE_TUNNELS: usize = 8;

/// One tunnel's part; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Growth {
    shared: Arc<Shared>,
    pair: Pair,
    of_pair: Arc<OfPair>,
    taken: usize,
    /// How many tunnels the pair had before this one.
    before: usize,
    /// Whether it has less than it asked for, which is counted once.
    short: bool,
}

impl Buffers {
    /// At most `most` bytes for all tunnels, and `most_of_pair` for those of one pair.
    pub fn new(most: usize, most_of_pair: usize) -> Self {
        Self(Arc::new(Shared {
            most,
            most_of_pair,
            used: AtomicUsize::new(0),
            pairs: Mutex::default(),
            refused: AtomicU64::new(0),
            refused_of_pair: AtomicU64::new(0),
        }))
    }

    /// How often a tunnel could not grow because all of them, or those of its pair, hold too much.
    pub fn refused(&self) -> [(Limit, u64); 2] {
        let of = |limit| (limit, self.0.refused(limit).load(Relaxed));
        [of(Limit::BufferedBytes), of(Limit::PeerBufferedBytes)]
    }

    /// Bytes that are held now, beyond the tunnels' own windows.
    pub fn used(&self) -> usize {
        self.0.used.load(Acquire)
    }

    /// A tunnel of `pair`, which has not grown yet.
    pub(super) fn tunnel(&self, pair: Pair) -> Growth {
        let of_pair = Arc::clone(self.0.pairs().entry(pair).or_default());
        Growth {
            before: of_pair.tunnels.fetch_add(1, AcqRel),
            shared: Arc::clone(&self.0),
            pair,
            of_pair,
            taken: 0,
            short: false,
        }
    }
}

impl Growth {
    /// The window that the tunnel has in any case.
    pub(super) fn window(&self, settings: &Settings) -> u32 {
        if self.before < WIDE_TUNNELS {
            settings.connection_window
        } else {
            settings.connection_window_narrow
        }
    }

    /// Asks for `wanted` bytes in all: what it has from now on, which may be less.
    pub(super) fn resize(&mut self, wanted: usize) -> usize {
        if wanted <= self.taken {
            self.give_back(self.taken - wanted);
            self.short = false;
            return self.taken;
        }
        match self.take(wanted - self.taken) {
            Ok(()) => self.short = false,
            Err(limit) if !self.short => {
                self.short = true;
                self.shared.refused(limit).fetch_add(1, Relaxed);
                let (peer, pod) = self.pair;
                tracing::warn!(%peer, %pod, %limit, "a tunnel waits for apps that do not read");
            }
            Err(_) => {}
        }
        self.taken
    }

    /// All or nothing.
    fn take(&mut self, more: usize) -> Result<(), Limit> {
        let add = |used: &AtomicUsize, most: usize| {
            let grown = |now: usize| now.checked_add(more).filter(|sum| *sum <= most);
            used.fetch_update(AcqRel, Acquire, grown).is_ok()
        };
        if !add(&self.of_pair.used, self.shared.most_of_pair) {
            return Err(Limit::PeerBufferedBytes);
        }
        if !add(&self.shared.used, self.shared.most) {
            self.of_pair.used.fetch_sub(more, AcqRel);
            return Err(Limit::BufferedBytes);
        }
        self.taken += more;
        Ok(())
    }

    fn give_back(&mut self, bytes: usize) {
        self.taken -= bytes;
        self.of_pair.used.fetch_sub(bytes, AcqRel);
        self.shared.used.fetch_sub(bytes, AcqRel);
    }
}

impl Drop for Growth {
    fn drop(&mut self) {
        self.give_back(self.taken);
        let mut pairs = self.shared.pairs();
        // Under the lock, under which a new tunnel of the pair would be added.
        if self.of_pair.tunnels.fetch_sub(1, AcqRel) == 1 {
            pairs.remove(&self.pair);
        }
    }
}

impl Shared {
    fn refused(&self, limit: Limit) -> &AtomicU64 {
        match limit {
            Limit::PeerBufferedBytes => &self.refused_of_pair,
            _ => &self.refused,
        }
    }

    fn pairs(&self) -> MutexGuard<'_, HashMap<Pair, Arc<OfPair>>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(n: u8) -> Pair {
        ([10, 0, 0, n].into(), [10, 0, 1, 1].into())
    }

    #[test]
    fn tunnels_of_a_pair_and_of_all_grow_within_their_budgets() {
        let buffers = Buffers::new(100, 60);
        let (mut one, mut two) = (buffers.tunnel(pair(1)), buffers.tunnel(pair(1)));
        assert_eq!((one.resize(40), two.resize(30)), (40, 0));
        assert_eq!((two.resize(20), two.resize(21)), (20, 20));
        assert_eq!(two.resize(22), 20);
        let mut other = buffers.tunnel(pair(2));
        assert_eq!((other.resize(41), other.resize(40)), (0, 40));
        assert_eq!(
            buffers.refused(),
            [(Limit::BufferedBytes, 1), (Limit::PeerBufferedBytes, 2)]
        );
        assert_eq!(buffers.used(), 100);
        assert_eq!(one.resize(0), 0);
        assert_eq!(two.resize(50), 50);
        drop((one, two, other));
        assert_eq!(buffers.used(), 0);
        assert!(buffers.0.pairs().is_empty());
    }

    #[test]
    fn a_pair_with_many_tunnels_has_narrow_ones() {
        let (buffers, settings) = (Buffers::new(0, 0), Settings::default());
        let tunnels: Vec<_> = (0..WIDE_TUNNELS).map(|_| buffers.tunnel(pair(1))).collect();
        assert!(
            tunnels
                .iter()
                .all(|it| it.window(&settings) == settings.connection_window)
        );
        let narrow = settings.connection_window_narrow;
        assert_eq!(buffers.tunnel(pair(1)).window(&settings), narrow);
        assert_eq!(
            buffers.tunnel(pair(2)).window(&settings),
            settings.connection_window
        );
    }
}
