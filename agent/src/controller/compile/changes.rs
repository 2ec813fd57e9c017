//! What came out differently when something was compiled again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Delta,
    unit::{Emitted, Unit},
};

/// What came out differently.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) delta: Delta,
    pub(super) modes: bool,
    /// The uids of workloads whose own mTLS modes did.
    pub(super) modes_of: BTreeSet<Arc<str>>,
    pub(super) same_nodes: bool,
    pub(super) diagnostics: bool,
    pub(super) waypoints: bool,
}

impl Changes {
    /// Notes what a namespace means by itself.
    pub(super) fn unit(&mut self, old: &Unit, new: Option<&Unit>) {
        let none = Unit::default();
        let new = new.unwrap_or(&none);
        let (before, after) = (
            &old.workload_peer_authentications,
            &new.workload_peer_authentications,
        );
        for uid in before.keys().chain(after.keys()) {
            if before.get(uid) != after.get(uid) {
                self.modes_of.insert(uid.clone());
            }
        }
        let of_namespace = old.peer_authentication != new.peer_authentication;
        self.modes |= !self.modes_of.is_empty() || of_namespace;
        self.same_nodes |= old.same_node != new.same_node;
        self.delta.scopes_changed |= of_namespace || old.same_node != new.same_node;
        self.diagnostics |= old.diagnostics != new.diagnostics;
        self.waypoints |= old.waypoints != new.waypoints;
    }

    /// Notes what it brings into the mesh.
    pub(super) fn emitted(&mut self, old: &Emitted, new: &Emitted) {
        let delta = &mut self.delta;
        differences(
            &old.workloads,
            &new.workloads,
            &mut delta.workloads,
            &mut delta.removed_workloads,
        );
        differences(
            &old.services,
            &new.services,
            &mut delta.services,
            &mut delta.removed_services,
        );
        differences(
            &old.policies,
            &new.policies,
            &mut delta.policies,
            &mut delta.removed_policies,
        );
        differences(
            &old.authentications,
            &new.authentications,
            &mut delta.authentications,
            &mut delta.removed_authentications,
        );
        self.diagnostics |= old.diagnostics != new.diagnostics;
    }
}

/// Whether what routes are put together with is another: the services, and what is said of them.
pub(super) fn routed_differs(old: &Unit, new: Option<&Unit>) -> bool {
    let none = Unit::default();
    let new = new.unwrap_or(&none);
    old.services != new.services || old.bound != new.bound
}

/// What is new or another, and what is gone.
pub(super) fn differences<K: Ord + Clone, V: PartialEq>(
    old: &BTreeMap<K, Arc<V>>,
    new: &BTreeMap<K, Arc<V>>,
    changed: &mut Vec<Arc<V>>,
    removed: &mut Vec<K>,
) {
    let differs = |(key, value): &(&K, &Arc<V>)| old.get(key) != Some(value);
    changed.extend(new.iter().filter(differs).map(|(_, value)| value.clone()));
    removed.extend(old.keys().filter(|key| !new.contains_key(key)).cloned());
}
