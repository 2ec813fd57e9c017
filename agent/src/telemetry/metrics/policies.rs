//! The metric of policies on trial: how often each matched.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::labels::UNKNOWN;
use crate::mesh::Policy;

/// More policies than this share one series for each action, of which the policy is not known.
const MOST_SERIES: usize = 1_000;

/// What a match is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    namespace: Arc<str>,
    policy: Arc<str>,
    action: &'static str,
}

/// The counters. They stay when a policy goes: so many do not come and go in the life of an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct DryRuns {
    matches: Family<PolicyLabels, Counter>,
    series: Arc<AtomicUsize>,
}

impl DryRuns {
    /// In the registry of weft's own names.
    pub(super) fn register(&self, weft: &mut Registry) {
        weft.register(
            "dry_run_matches",
            "Connections that a dry-run policy matched: what its action would have been done to",
            self.matches.clone(),
        );
    }

    pub(super) fn matched(&self, policy: &Policy) {
        let labels = PolicyLabels {
            namespace: policy.key.namespace.clone(),
            policy: policy.key.name.clone(),
            action: policy.action.as_str(),
        };
        if let Some(counter) = self.matches.get(&labels) {
            counter.inc();
        } else if self.series.fetch_add(1, Relaxed) < MOST_SERIES {
            self.matches.get_or_create(&labels).inc();
        } else {
            let anonymous = PolicyLabels {
                namespace: UNKNOWN.into(),
                policy: UNKNOWN.into(),
                ..labels
            };
            self.matches.get_or_create(&anonymous).inc();
        }
    }
}
