//! Where everybody runs: what the CA asks before it signs for somebody else than the caller.

use std::sync::{Arc, RwLock};

use rustc_hash::FxHashMap;

use crate::mesh::{SpiffeId, Workload};

/// Workloads by node, kept up to date by whoever compiles. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Placement(Arc<RwLock<Placed>>);

#[derive(Debug, Default)]
struct Placed {
    by_uid: FxHashMap<Arc<str>, (Arc<str>, SpiffeId)>,
    counts: FxHashMap<(Arc<str>, SpiffeId), usize>,
}

impl Placement {
    /// Takes changes in.
    pub(super) fn update<'a>(
        &self,
        changed: impl IntoIterator<Item = &'a Workload>,
        removed: impl IntoIterator<Item = &'a Arc<str>>,
    ) {
        let mut placed = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        for uid in removed {
            placed.remove(uid);
        }
        for workload in changed {
            placed.remove(&workload.uid);
            placed.insert(workload);
        }
    }

    /// Whether a workload of this identity runs on the node, or is about to.
    pub(super) fn runs(&self, node: &str, identity: &SpiffeId) -> bool {
        let placed = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        placed.counts.contains_key(&(node.into(), identity.clone()))
    }

    /// The node of a workload.
    pub(super) fn node(&self, uid: &str) -> Option<Arc<str>> {
        let placed = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        placed.by_uid.get(uid).map(|(node, _)| node.clone())
    }
}

impl Placed {
    fn insert(&mut self, workload: &Workload) {
        if workload.node.is_empty() {
            return;
        }
        let at = (workload.node.clone(), workload.identity.clone());
        *self.counts.entry(at.clone()).or_default() += 1;
        self.by_uid.insert(workload.uid.clone(), at);
    }

    fn remove(&mut self, uid: &Arc<str>) {
        let Some(at) = self.by_uid.remove(uid) else { return };
        if let Some(count) = self.counts.get_mut(&at) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&at);
            }
        }
    }
}
