//! The draws of a worker: numbers that endpoints are picked by, so that each endpoint of a service has its turn.
//!
//! What is asked for has a series of its own, as far as there are enough. With one for all, a pod that dials two services
//! by turns would meet every other endpoint of each, and never the rest.

use std::{
    array,
    hash::{BuildHasher, Hash, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// How many series there are.
const SERIES: usize = 256;

/// The series. They begin anywhere, so that not every agent's first connection goes to the same endpoint.
pub(super) struct Draws {
    hasher: RandomState,
    series: [AtomicU64; SERIES],
}

impl Draws {
    pub(super) fn new() -> Self {
        let hasher = RandomState::new();
        let series = array::from_fn(|nth| AtomicU64::new(hasher.hash_one(nth)));
        Self { hasher, series }
    }

    /// The next number for this question: one more than for the one before.
    pub(super) fn next(&self, question: impl Hash) -> u64 {
        // The remainder is less than SERIES.
        let nth = (self.hasher.hash_one(question) % SERIES as u64) as usize;
        self.series[nth].fetch_add(1, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_by_turns_has_every_number() {
        let draws = Draws::new();
        let first: Vec<_> = (0..64).map(|question| draws.next(question)).collect();
        let second: Vec<_> = (0..64).map(|question| draws.next(question)).collect();
        let in_turn = first
            .iter()
            .zip(&second)
            .filter(|(one, two)| one.wrapping_add(1) == **two);
        // Some share a series; most do not.
        assert!(in_turn.count() >= 16, "{first:?} {second:?}");
    }
}
