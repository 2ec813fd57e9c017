//! Ports of tunnels that are closed, and since when: a connection waits for one that has just closed, and not for one that stays
//! closed, as a dead agent's.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

/// How long an app waits for a port that is closed. A pod that enters the mesh or leaves it is captured, or let go, a moment before or
/// after the meshes of other nodes say so; and an agent that starts again needs about as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// A port that nobody has found closed for so long is waited for anew.
const FORGOTTEN: Duration = Duration::from_secs(5);
/// Ports that are remembered.
const MOST: usize = 1_024;

/// When a port was found closed first, and last.
struct Closed {
    first: Instant,
    last: Instant,
}

/// The ports that a worker has found closed.
#[derive(Default)]
pub(in crate::node) struct ClosedPorts(Mutex<FxHashMap<SocketAddr, Closed>>);

impl ClosedPorts {
    /// Notes that a port is closed. Whether it may open in a moment.
    pub(super) fn may_open(&self, port: SocketAddr, now: Instant) -> bool {
        let mut ports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ports.len() >= MOST && !ports.contains_key(&port) {
            ports.clear();
        }
        let closed = ports.entry(port).or_insert(Closed {
            first: now,
            last: now,
        });
        if now.saturating_duration_since(closed.last) > FORGOTTEN {
            closed.first = now;
        }
        closed.last = now;
        now.saturating_duration_since(closed.first) < PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_stays_closed_is_waited_for_once() {
        let (ports, start) = (ClosedPorts::default(), Instant::now());
        let port = |last: u8| SocketAddr::from(([10, 0, 0, last], 15008));
        let may = |last, seconds| ports.may_open(port(last), start + Duration::from_secs(seconds));
        assert!(may(1, 0) && may(1, 1) && !may(1, 2) && !may(1, 3));
        assert!(may(2, 3), "another");
        assert!(!may(1, 8) && may(1, 14), "it was open meanwhile, or nobody asked");
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (ports, now) = (ClosedPorts::default(), Instant::now());
        for port in 0..2 * MOST as u16 {
            assert!(ports.may_open(([10, 0, 0, 1], port).into(), now));
        }
        assert!(ports.0.lock().unwrap().len() <= MOST);
    }
}
