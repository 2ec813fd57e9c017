//! Namespaces: their labels and annotations are defaults for what is in them.

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Condition, or_default, resource, trim_metadata};
use crate::cluster::labels;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Everything that is read of it.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Of it, our own condition.
    #[serde(default, deserialize_with = "or_default")]
    pub status: NamespaceStatus,
}

/// What became of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct NamespaceStatus {
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

resource!(Namespace, "", "v1", "namespaces", ClusterResourceScope);

impl Namespace {
    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        trim_metadata(
            &mut self.metadata,
            &[labels::SAME_NODE, labels::TRAFFIC_DISTRIBUTION],
        );
        let conditions = &mut self.status.conditions;
        conditions.retain(|it| it.type_ == labels::PODS_CAPTURED);
    }

    /// Whether it is said on it whether its pods are captured.
    pub fn says_captured(&self) -> bool {
        !self.status.conditions.is_empty()
    }
}
