//! Nodes: where they are.

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{resource, trim_metadata};

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Everything that is read of it.
    #[serde(default)]
    pub metadata: ObjectMeta,
}

resource!(Node, "", "v1", "nodes", ClusterResourceScope);

impl Node {
    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
    }
}
