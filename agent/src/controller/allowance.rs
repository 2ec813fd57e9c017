//! How much each of many may have: some at once, and more as time goes on.

use std::{
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use rustc_hash::FxHashMap;

/// How much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// At once.
    pub(super) burst: f64,
    /// And then, in the long run.
    pub(super) per_second: f64,
    /// How many are counted; beyond them it begins anew for all.
    pub(super) most: usize,
}

/// What each has left.
#[derive(Debug)]
pub(super) struct Allowances<K> {
    rate: Rate,
    left: Mutex<FxHashMap<K, Allowance>>,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl<K: Clone + Eq + Hash> Allowances<K> {
    /// So much for each.
    pub(super) fn new(rate: Rate) -> Self {
        Self {
            rate,
            left: Mutex::default(),
        }
    }

    /// Whether one has something left.
    pub(super) fn has(&self, key: &K, now: Instant) -> bool {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.get(key).is_none_or(|it| it.at(now, self.rate) >= 1.0)
    }

    /// Takes one of it. Whether there was one.
    pub(super) fn spend(&self, key: &K, now: Instant) -> bool {
        let Rate { burst, most, .. } = self.rate;
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= most {
            // Those that are full again are as good as new.
            all.retain(|_, it| it.at(now, self.rate) < burst);
        }
        if all.len() >= most {
            all.clear();
        }
        let fresh = Allowance { left: burst, at: now };
        let allowance = all.entry(key.clone()).or_insert(fresh);
        let left = allowance.at(now, self.rate);
        *allowance = Allowance {
            left: (left - 1.0).max(0.0),
            at: now,
        };
        left >= 1.0
    }
}

impl Allowance {
    fn at(&self, now: Instant, rate: Rate) -> f64 {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        rate.burst.min(self.left + gained)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_has_its_own_and_it_comes_back() {
        let allowances = Allowances::new(Rate {
            burst: 2.0,
            per_second: 1.0,
            most: 3,
        });
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert!(allowances.spend(&1, start) && allowances.spend(&1, start));
        assert!(!allowances.has(&1, start) && !allowances.spend(&1, start));
        assert!(allowances.has(&2, start), "another one's");
        assert!(allowances.has(&1, after(1)) && allowances.spend(&1, after(1)));
        assert!(!allowances.has(&1, after(1)));
        // However many there are, no more are counted.
        for key in 0..100 {
            allowances.spend(&key, after(1));
            assert!(allowances.left.lock().expect("no panic").len() <= 3);
        }
    }
}
