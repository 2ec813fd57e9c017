//! How many diagnostics are kept.
//!
//! A condition says that an object is in force where nothing is said of it, so that nothing may be left out of what is said of
//! objects that have conditions: of each of them a bounded number is kept (`manifests::Reader`). Pods and what comes with them are
//! there by the ten thousand, have no condition of ours, and are mostly wrong all in the same way: of those some are enough.

use crate::{cluster::objects::Kind, manifests::Diagnostic};

/// What is kept of one namespace's pods.
const OF_NAMESPACE: usize = 500;
/// What is kept of all pods.
const OF_ALL: usize = 10_000;

/// Those of one namespace, in order.
pub(super) fn of_namespace(diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    bounded(diagnostics, OF_NAMESPACE)
}

/// All of them, in order.
pub(super) fn of_all(diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    bounded(diagnostics, OF_ALL)
}

fn bounded(mut diagnostics: Vec<Diagnostic>, most: usize) -> Vec<Diagnostic> {
    diagnostics.sort();
    diagnostics.dedup();
    let mut left = most;
    diagnostics.retain(|it| {
        if !matches!(it.object.kind, Kind::Node | Kind::Pod | Kind::EndpointSlice) {
            return true;
        }
        let keeps = left > 0;
        left = left.saturating_sub(1);
        keeps
    });
    diagnostics
}
