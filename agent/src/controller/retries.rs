//! What failed, and when it is tried again: later each time, so that one object that the API does not take, or that a webhook
//! refuses, holds up none of those behind it.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, sleep_until};

/// How long it is waited after the first failure; twice as long after each further one.
pub(super) const FIRST: Duration = Duration::from_secs(5);
/// And no longer than this.
const LONGEST: Duration = Duration::from_secs(160);

/// Those that failed last, by what they are.
#[derive(Debug)]
pub(super) struct Retries<K>(BTreeMap<K, Failed>);

#[derive(Clone, Copy, Debug)]
struct Failed {
    pause: Duration,
    until: Instant,
}

impl<K> Default for Retries<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord> Retries<K> {
    /// Whether it is too early for it.
    pub(super) fn waits(&self, key: &K, now: Instant) -> bool {
        self.0.get(key).is_some_and(|it| now < it.until)
    }

    /// It failed now.
    pub(super) fn failed(&mut self, key: K, now: Instant) {
        let before = self.0.get(&key).map(|it| it.pause * 2);
        let pause = before.unwrap_or(FIRST).min(LONGEST);
        let until = now + pause;
        self.0.insert(key, Failed { pause, until });
    }

    /// It is done, or another thing is to be done about it.
    pub(super) fn forget(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Forgets all but these.
    pub(super) fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.0.retain(|key, _| keep(key));
    }

    /// When the first of them is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.values().map(|it| it.until).min()
    }
}

/// Resolves then; never where nothing is due.
pub(super) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_waits_for_itself_and_longer_each_time() {
        let start = Instant::now();
        let mut retries = Retries::default();
        retries.failed("a", start);
        assert!(retries.waits(&"a", start) && !retries.waits(&"b", start));
        assert_eq!(retries.next(), Some(start + FIRST));
        assert!(!retries.waits(&"a", start + FIRST));
        for _ in 0..20 {
            retries.failed("a", start);
        }
        assert_eq!(retries.next(), Some(start + LONGEST));
        retries.failed("b", start);
        assert_eq!(retries.next(), Some(start + FIRST), "the first that is due");
        retries.retain(|key| *key == "a");
        retries.forget(&"a");
        assert!(!retries.waits(&"a", start));
        assert_eq!(retries.next(), None);
        retries.failed("a", start);
        assert_eq!(retries.next(), Some(start + FIRST), "from the beginning");
    }
}
