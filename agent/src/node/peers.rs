//! Bounds per peer: what one address may have under way at one pod, so that it cannot keep others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::mesh::Refusal;

/// A peer's address and the pod's.
type Pair = (IpAddr, IpAddr);

/// How many of something each peer has at each pod, and how many it may have.
pub(super) struct PerPeer {
    what: &'static str,
    of_one: usize,
    counts: Mutex<HashMap<Pair, usize>>,
}

/// One of a peer's, until it is dropped.
pub(super) struct Held<'a> {
    of: &'a PerPeer,
    pair: Pair,
}

impl PerPeer {
    /// TLS handshakes under way, each some 30 KiB until its deadline. Tunnels are shared, so a pod has a few at most.
    pub(super) fn handshakes() -> Self {
        Self::new("TLS handshakes under way", 64)
    }

    /// Open tunnels of one worker, each up to 64 MiB when its streams are not read. A pod needs one for a hundred
    /// streams to another.
    pub(super) fn tunnels() -> Self {
        Self::new("open tunnels", 32)
    }

    fn new(what: &'static str, of_one: usize) -> Self {
        Self {
            what,
            of_one,
            counts: Mutex::default(),
        }
    }

    /// One more of `peer`'s at `pod`, or a refusal.
    pub(super) fn hold(&self, peer: IpAddr, pod: IpAddr) -> Result<Held<'_>, Refusal> {
        let mut counts = self.lock();
        let pair = (peer, pod);
        let held = counts.get(&pair).copied().unwrap_or(0);
        if held >= self.of_one {
            return Err(Refusal::TooMany(self.what, peer));
        }
        counts.insert(pair, held + 1);
        Ok(Held { of: self, pair })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut counts = self.of.lock();
        if let Some(held) = counts.get_mut(&self.pair) {
            *held -= 1;
            if *held == 0 {
                counts.remove(&self.pair);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_does_not_keep_others_out() {
        let handshakes = PerPeer::new("handshakes", 3);
        let (greedy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let pod = IpAddr::from([10, 0, 1, 1]);
        let mut held: Vec<_> = (0..3).filter_map(|_| handshakes.hold(greedy, pod).ok()).collect();
        assert_eq!(held.len(), 3);
        let refusal = handshakes.hold(greedy, pod).err();
        assert_eq!(refusal, Some(Refusal::TooMany("handshakes", greedy)));
        assert!(handshakes.hold(other, pod).is_ok());
        held.pop();
        assert!(handshakes.hold(greedy, pod).is_ok());
        held.clear();
        assert!(handshakes.lock().is_empty());
    }
}
