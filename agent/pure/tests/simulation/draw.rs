//! The draws of a simulation: everything random in it comes from one seed, and a seed means the same for ever, whatever
//! libraries are in use. SplitMix64.

use std::ops::Range;

/// A sequence of draws.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of a range that is not empty.
    pub(crate) fn of(&mut self, range: Range<usize>) -> usize {
        range.start + (self.any() % (range.end - range.start) as u64) as usize
    }

    /// Whether something of this chance, in percent, is so.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.any() % 100 < chance
    }

    /// One of several, which must not be none.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let at = self.of(0..of.len());
        &of[at]
    }

    /// Mostly nothing, as people leave most fields out; else one or two of several.
    pub(crate) fn some<T: Clone>(&mut self, chance: u64, of: &[T]) -> Vec<T> {
        if !self.percent(chance) {
            return Vec::new();
        }
        (0..self.of(1..3)).map(|_| self.pick(of).clone()).collect()
    }
}
