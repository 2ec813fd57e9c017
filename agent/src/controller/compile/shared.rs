//! What namespaces need of each other: the root namespace's policies, and waypoints.

use std::collections::BTreeSet;

use super::{Resources, Settings};

/// It, compiled.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shared {}

impl Shared {
    pub(super) fn new(_: &Resources, _: &Settings) -> Self {
        Self {}
    }

    /// Whether what the root namespace says of all namespaces differs.
    pub(super) fn root_differs(&self, _: &Self) -> bool {
        false
    }

    /// The waypoints that are not as they were, by namespace and name.
    pub(super) fn changed_waypoints(&self, _: &Self) -> BTreeSet<(String, String)> {
        BTreeSet::new()
    }
}
