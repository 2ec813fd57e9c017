//! Pods that start: what the kernel is told of them, so that it holds back what they dial until they are captured, or known to
//! be no pods of the mesh's.

use std::{collections::BTreeSet, time::Duration};

use super::Enrolment;
use crate::{
    kernel::{
        load::LoadError,
        maps::{Hold, PodCgroups},
    },
    net::chain,
    node::pods::{Awaited, Holds, Newest},
    telemetry::status::{StartingState, StartingStatus},
};

/// How long the kernel holds pods that nobody has seen yet, after the last look at the node's pods: an agent looks about once a
/// second, and one that is gone must not stop pods that are not the mesh's.
const HOLD: Duration = Duration::from_secs(10);

impl Enrolment {
    /// Refuses what pods dial until they are captured, and says whether that holds for all of them. Where nobody has named the
    /// folder of the node's pods (`finds_pods`), the kernel is told of the one that was found.
    pub(in crate::node) fn hold_starting(
        &mut self,
        newest: Option<&Newest>,
        finds_pods: bool,
    ) -> StartingStatus {
        let mut told = self.set_holds(newest);
        // Where pods are held before they are seen, that has said it.
        let unsaid = newest.filter(|newest| finds_pods && !newest.view.holds.unseen);
        if let (Ok(()), Some(pods)) = (&told, unsaid.and_then(|newest| newest.view.pods_cgroup)) {
            told = self.set_pods_cgroup(pods);
        }
        let told = told.map_err(|error| chain(&error));
        if let Err(error) = &told {
            tracing::error!(
                error,
                "not all pods that start are held back until they are captured (are there more than 4,096 cgroups among the node's pods?)"
            );
        }
        status(newest, &told)
    }

    /// Refuses what pods dial until they are captured: those of a view, and for a while those that are newer than it. Without
    /// one nobody is refused.
    ///
    /// # Errors
    /// Those of bpf(2), and when there are too many cgroups (4,096).
    pub(in crate::node) fn set_holds(&mut self, newest: Option<&Newest>) -> Result<(), LoadError> {
        let (cgroups, hold) = match newest {
            Some(newest) => (self.pod_cgroups(&newest.view.holds), hold(newest)),
            None => (PodCgroups::default(), None),
        };
        let written = self.maps.set_pod_cgroups(&cgroups, hold);
        written.map_err(|source| self.kernel.map_error(source))
    }

    fn pod_cgroups(&self, holds: &Holds) -> PodCgroups {
        let is_captured = |awaited: &Awaited| self.is_captured_at(&awaited.uid, &awaited.netns);
        let waits = |awaited: &Option<Awaited>| !awaited.as_ref().is_some_and(is_captured);
        let (held, arrived) = holds
            .cgroups
            .iter()
            .partition::<Vec<_>, _>(|(_, awaited)| waits(awaited));
        let ids = |cgroups: Vec<(&u64, _)>| cgroups.into_iter().map(|(id, _)| *id).collect::<BTreeSet<_>>();
        PodCgroups {
            held: ids(held),
            released: &ids(arrived) | &holds.released,
            levels: holds.levels,
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

/// What people are told of it.
fn status(newest: Option<&Newest>, told: &Result<(), String>) -> StartingStatus {
    let (state, message) = match (told, newest) {
        (Err(error), _) => (StartingState::Failed, Some(error.as_str())),
        (Ok(()), None) => (
            StartingState::Failed,
            Some("the node's pods, or its own network namespace, are not known"),
        ),
        (Ok(()), Some(newest)) if hold(newest).is_some() => (StartingState::Unseen, None),
        (Ok(()), Some(_)) => (
            StartingState::Seen,
            Some("not all of the node's pods are found where a kubelet makes them (--pods-cgroup)"),
        ),
    };
    StartingStatus {
        state,
        message: message.map(str::to_owned),
    }
}

/// For how long pods that are newer than a view are held.
fn hold(newest: &Newest) -> Option<Hold> {
    let pods = newest.view.pods_cgroup.filter(|_| newest.view.holds.unseen)?;
    let until = newest.looked + HOLD;
    Some(Hold { pods, until })
}
