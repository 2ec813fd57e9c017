//! Namespaces: their labels and annotations are defaults for what is in them.

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{resource, trim_metadata};
use crate::cluster::labels;

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Everything that is read of it.
    #[serde(default)]
    pub metadata: ObjectMeta,
}

resource!(Namespace, "", "v1", "namespaces", ClusterResourceScope);

impl Namespace {
    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        trim_metadata(
            &mut self.metadata,
            &[labels::SAME_NODE, labels::TRAFFIC_DISTRIBUTION],
        );
    }
}
