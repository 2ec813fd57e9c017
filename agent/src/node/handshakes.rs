//! A bound on TLS handshakes that are under way: one peer that stalls its own must not keep others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::mesh::Refusal;

/// Handshakes of one address. Tunnels are shared, so that a pod has a few under way at most.
const OF_ONE_PEER: usize = 64;
/// Handshakes of one worker, each some 30 KiB until its deadline.
const IN_ALL: usize = 8192;

/// The handshakes that one worker has under way.
#[derive(Default)]
pub(super) struct Handshakes(Mutex<HashMap<IpAddr, usize>>);

/// One of them, until it is dropped.
pub(super) struct Underway<'a> {
    handshakes: &'a Handshakes,
    peer: IpAddr,
}

impl Handshakes {
    /// Begins a handshake with `peer`, or refuses it.
    pub(super) fn begin(&self, peer: IpAddr) -> Result<Underway<'_>, Refusal> {
        let mut underway = self.lock();
        let in_all: usize = underway.values().sum();
        let of_peer = underway.get(&peer).copied().unwrap_or(0);
        if of_peer >= OF_ONE_PEER || in_all >= IN_ALL {
            return Err(Refusal::TooManyHandshakes(peer));
        }
        underway.insert(peer, of_peer + 1);
        Ok(Underway {
            handshakes: self,
            peer,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        let mut underway = self.handshakes.lock();
        if let Some(of_peer) = underway.get_mut(&self.peer) {
            *of_peer -= 1;
            if *of_peer == 0 {
                underway.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_does_not_keep_others_out() {
        let handshakes = Handshakes::default();
        let (greedy, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut underway: Vec<_> = (0..OF_ONE_PEER)
            .filter_map(|_| handshakes.begin(greedy).ok())
            .collect();
        assert_eq!(underway.len(), OF_ONE_PEER);
        assert_eq!(
            handshakes.begin(greedy).err(),
            Some(Refusal::TooManyHandshakes(greedy))
        );
        assert!(handshakes.begin(other).is_ok());
        underway.pop();
        assert!(handshakes.begin(greedy).is_ok());
        underway.clear();
        assert!(handshakes.lock().is_empty());
    }
}
