//! Pods that start: what the kernel is told of them, so that it holds back what they dial until they are captured, or known to
//! be no pods of the mesh's.

use std::{collections::BTreeSet, time::Duration};

use super::Enrolment;
use crate::{
    kernel::{
        load::LoadError,
        maps::{Hold, PodCgroups},
    },
    node::pods::{Awaited, Newest, Pending},
};

/// How long the kernel holds pods that nobody has seen yet, after the last look at the node's pods: an agent looks about once a
/// second, and one that is gone must not stop pods that are not the mesh's.
const HOLD: Duration = Duration::from_secs(10);

impl Enrolment {
    /// Refuses what pods dial until they are captured: those of a view, and for a while those that are newer than it. Without
    /// one nobody is refused.
    ///
    /// # Errors
    /// Those of bpf(2), and when there are too many cgroups (4,096).
    pub(in crate::node) fn set_pending(&mut self, newest: Option<&Newest>) -> Result<(), LoadError> {
        let (cgroups, hold) = match newest {
            Some(newest) => (self.pod_cgroups(&newest.view.pending), hold(newest)),
            None => (PodCgroups::default(), None),
        };
        let written = self.maps.set_pod_cgroups(&cgroups, hold);
        written.map_err(|source| self.kernel.map_error(source))
    }

    fn pod_cgroups(&self, pending: &Pending) -> PodCgroups {
        let is_captured = |awaited: &Awaited| self.is_captured_at(&awaited.uid, &awaited.netns);
        let waits = |awaited: &Option<Awaited>| !awaited.as_ref().is_some_and(is_captured);
        let (held, arrived) = pending
            .cgroups
            .iter()
            .partition::<Vec<_>, _>(|(_, awaited)| waits(awaited));
        let ids = |cgroups: Vec<(&u64, _)>| cgroups.into_iter().map(|(id, _)| *id).collect::<BTreeSet<_>>();
        PodCgroups {
            held: ids(held),
            released: &ids(arrived) | &pending.released,
            levels: pending.levels,
        }
    }

    /// Holds no pod any more that is not known: nobody will look whose it is.
    ///
    /// # Errors
    /// Those of bpf(2).
    pub(in crate::node) fn end_hold(&mut self) -> Result<(), LoadError> {
        let written = self.maps.end_hold();
        written.map_err(|source| self.kernel.map_error(source))
    }
}

/// For how long pods that are newer than a view are held.
fn hold(newest: &Newest) -> Option<Hold> {
    let pods = newest
        .view
        .pods_cgroup
        .filter(|_| newest.view.pending.holds_unseen)?;
    let until = newest.looked + HOLD;
    Some(Hold { pods, until })
}
