//! Who holds how much of what the agent has: sockets, and TLS handshakes under way. Each is a budget of all pods together,
//! of which one pod may have a part, and one peer of that pod a part of that. What is refused here has cost one `accept`.
//!
//! Each pod has a few whatever the others have, so that no pod, and no peer of a pod, can keep others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::{Limits, OWN_HANDSHAKES, OWN_SOCKETS};
use crate::mesh::{Limit, Refusal};

/// What the agent has. Clones share it.
#[derive(Clone, Debug)]
pub struct Places(Arc<OfAgent>);

#[derive(Debug)]
struct OfAgent {
    limits: Limits,
    pods: AtomicUsize,
    /// What pods hold beyond the few of their own.
    shared: Used,
}

/// What one pod has.
#[derive(Debug)]
pub struct PodPlaces {
    agent: Places,
    used: Used,
    peers: Mutex<HashMap<(IpAddr, OfPeer), usize>>,
}

#[derive(Debug, Default)]
struct Used {
    sockets: AtomicUsize,
    handshakes: AtomicUsize,
}

/// What is counted by peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum OfPeer {
    Connections,
    Handshakes,
    Tunnels,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Socket,
    Handshake,
    Peer(IpAddr, OfPeer),
}

/// One of something, until it is dropped.
#[derive(Debug)]
pub struct Place {
    pod: Arc<PodPlaces>,
    kind: Kind,
}

/// A budget of which a pod takes one.
struct Budget<'a> {
    of_pod: (&'a AtomicUsize, usize, Limit),
    shared: (&'a AtomicUsize, usize, Limit),
    /// What the pod has for itself.
    own: usize,
}

impl Places {
    /// As many as these.
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(OfAgent {
            limits,
            pods: AtomicUsize::new(0),
            shared: Used::default(),
        }))
    }

    /// The numbers in force.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The places of a pod that is about to be captured.
    pub fn of_pod(&self) -> Arc<PodPlaces> {
        self.0.pods.fetch_add(1, Relaxed);
        Arc::new(PodPlaces {
            agent: self.clone(),
            used: Used::default(),
            peers: Mutex::default(),
        })
    }

    /// Sockets that all pods share: each pod takes off what it has for itself.
    fn sockets(&self) -> usize {
        let reserved = self.0.pods.load(Relaxed).saturating_mul(Limits::POD_RESERVE);
        self.0.limits.sockets.saturating_sub(reserved)
    }
}

impl PodPlaces {
    /// A socket of the pod's connections.
    ///
    /// # Errors
    /// When the pod, or all pods together, have too many.
    pub fn socket(self: &Arc<Self>) -> Result<Place, Refusal> {
        self.hold(Kind::Socket)
    }

    /// A connection of `peer`'s. Its sockets are counted apart.
    ///
    /// # Errors
    /// When it has too many.
    pub fn connection(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Refusal> {
        self.hold(Kind::Peer(peer, OfPeer::Connections))
    }

    /// A TLS handshake that `peer` begins.
    ///
    /// # Errors
    /// When it, the pod, or all pods together have too many under way.
    pub fn handshake(self: &Arc<Self>, peer: IpAddr) -> Result<[Place; 2], Refusal> {
        let of_peer = self.hold(Kind::Peer(peer, OfPeer::Handshakes))?;
        Ok([of_peer, self.hold(Kind::Handshake)?])
    }

    /// A tunnel of `peer`'s.
    ///
    /// # Errors
    /// When it has too many.
    pub fn tunnel(self: &Arc<Self>, peer: IpAddr) -> Result<Place, Refusal> {
        self.hold(Kind::Peer(peer, OfPeer::Tunnels))
    }

    fn hold(self: &Arc<Self>, kind: Kind) -> Result<Place, Refusal> {
        let taken = match kind {
            Kind::Socket => self.sockets().take(),
            Kind::Handshake => self.handshakes().take(),
            Kind::Peer(peer, what) => self.take_of_peer(peer, what),
        };
        let pod = Arc::clone(self);
        taken.map(|()| Place { pod, kind }).map_err(Refusal::OverLimit)
    }

    fn sockets(&self) -> Budget<'_> {
        let (limits, shared) = (self.agent.limits(), &self.agent.0.shared);
        Budget {
            of_pod: (&self.used.sockets, limits.sockets_of_pod, Limit::PodSockets),
            shared: (&shared.sockets, self.agent.sockets(), Limit::Sockets),
            own: OWN_SOCKETS,
        }
    }

    fn handshakes(&self) -> Budget<'_> {
        let (limits, shared) = (self.agent.limits(), &self.agent.0.shared);
        Budget {
            of_pod: (
                &self.used.handshakes,
                limits.handshakes_of_pod,
                Limit::PodHandshakes,
            ),
            shared: (&shared.handshakes, limits.handshakes, Limit::Handshakes),
            own: OWN_HANDSHAKES,
        }
    }

    fn take_of_peer(&self, peer: IpAddr, what: OfPeer) -> Result<(), Limit> {
        let limits = self.agent.limits();
        let (most, limit) = match what {
            OfPeer::Connections => (limits.connections_of_peer, Limit::PeerConnections),
            OfPeer::Handshakes => (limits.handshakes_of_peer, Limit::PeerHandshakes),
            OfPeer::Tunnels => (limits.tunnels_of_peer, Limit::PeerTunnels),
        };
        let mut peers = self.peers();
        let held = peers.entry((peer, what)).or_default();
        if *held >= most {
            return Err(limit);
        }
        *held += 1;
        Ok(())
    }

    fn give_back_of_peer(&self, peer: IpAddr, what: OfPeer) {
        let mut peers = self.peers();
        if let Some(held) = peers.get_mut(&(peer, what)) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                peers.remove(&(peer, what));
            }
        }
    }

    fn peers(&self) -> MutexGuard<'_, HashMap<(IpAddr, OfPeer), usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PodPlaces {
    fn drop(&mut self) {
        self.agent.0.pods.fetch_sub(1, Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match self.kind {
            Kind::Socket => self.pod.sockets().give_back(),
            Kind::Handshake => self.pod.handshakes().give_back(),
            Kind::Peer(peer, what) => self.pod.give_back_of_peer(peer, what),
        }
    }
}

impl Budget<'_> {
    /// The pod's count goes from n to n + 1, and where n is not below `own` so does the shared one. Giving back is the
    /// same backwards, so that the shared count is always the sum of what pods have beyond their own.
    fn take(&self) -> Result<(), Limit> {
        let (of_pod, most, limit) = self.of_pod;
        let before = of_pod.fetch_add(1, Relaxed);
        if before < self.own {
            return Ok(());
        }
        if before >= most {
            of_pod.fetch_sub(1, Relaxed);
            return Err(limit);
        }
        let (shared, most, limit) = self.shared;
        if shared.fetch_add(1, Relaxed) >= most {
            self.give_back();
            return Err(limit);
        }
        Ok(())
    }

    fn give_back(&self) {
        let before = self.of_pod.0.fetch_sub(1, Relaxed);
        if before > self.own {
            self.shared.0.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::LimitSettings, *};

    fn places(sockets: usize) -> Places {
        let settings = LimitSettings {
            max_sockets: Some(sockets),
            max_handshakes: 40,
            max_handshakes_per_peer: 3,
            ..LimitSettings::default()
        };
        Places::new(Limits::new(&settings, 20_000).0)
    }

    fn peer(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    /// As many as there are, and the limit that ended it.
    fn take_all<T>(take: impl Fn() -> Result<T, Refusal>) -> (Vec<T>, Refusal) {
        let mut taken = Vec::new();
        loop {
            match take() {
                Ok(one) => taken.push(one),
                Err(refusal) => return (taken, refusal),
            }
        }
    }

    #[test]
    fn one_peer_keeps_no_other_out_and_leaves_nothing_behind() {
        let pod = places(1000).of_pod();
        let (taken, refusal) = take_all(|| pod.handshake(peer(1)));
        assert_eq!(
            (taken.len(), refusal),
            (3, Refusal::OverLimit(Limit::PeerHandshakes))
        );
        assert!(pod.handshake(peer(2)).is_ok());
        drop(taken);
        assert!(pod.peers().is_empty());
        assert_eq!(pod.used.handshakes.load(Relaxed), 0);
    }

    #[test]
    fn one_pod_has_a_part_and_all_pods_leave_each_some() {
        let places = places(1000);
        let pods: Vec<_> = (0..4).map(|_| places.of_pod()).collect();
        let shared = 1000 - 4 * Limits::POD_RESERVE;
        let mut held = Vec::new();
        let mut counts = Vec::new();
        for pod in &pods {
            let (taken, refusal) = take_all(|| pod.socket());
            counts.push((taken.len(), refusal));
            held.extend(taken);
        }
        let pod_full = Refusal::OverLimit(Limit::PodSockets);
        let all_full = Refusal::OverLimit(Limit::Sockets);
        assert_eq!(counts[0], (500, pod_full));
        assert_eq!(
            counts[1],
            (shared - (500 - OWN_SOCKETS) + OWN_SOCKETS, all_full.clone())
        );
        assert_eq!(
            counts[2..],
            [(OWN_SOCKETS, all_full.clone()), (OWN_SOCKETS, all_full)]
        );
        drop(held);
        assert_eq!(places.0.shared.sockets.load(Relaxed), 0);
        assert!(pods.iter().all(|pod| pod.used.sockets.load(Relaxed) == 0));
        drop(pods);
        assert_eq!(places.0.pods.load(Relaxed), 0);
    }

    #[test]
    fn handshakes_of_many_peers_with_one_pod_leave_others_theirs() {
        let places = places(1000);
        let (flooded, other) = (places.of_pod(), places.of_pod());
        let held: Vec<_> = (0..20)
            .flat_map(|n| take_all(|| flooded.handshake(peer(n))).0)
            .collect();
        assert_eq!(held.len(), 20);
        assert!(other.handshake(peer(1)).is_ok());
    }
}
