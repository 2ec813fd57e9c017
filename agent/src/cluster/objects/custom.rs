//! Objects of the Gateway API and of Istio: `spec` and `status` as they came, in any version.

use std::borrow::Cow;

use kube::core::{ApiResource, DynamicResourceScope, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Kind, trim_metadata};
use crate::cluster::labels;

/// An object of a kind that a CustomResourceDefinition defines. Which kind and version, its [`ApiResource`] says:
/// [`Kind::api_resource`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields of every object")]
pub struct Custom {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Value,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub status: Value,
}

/// The annotations that are read of any of them.
const ANNOTATIONS: [&str; 7] = [
    labels::DRY_RUN,
    labels::TRAFFIC_DISTRIBUTION,
    labels::WAYPOINT_REPLICAS,
    labels::WAYPOINT_MIN_REPLICAS,
    labels::WAYPOINT_MAX_REPLICAS,
    labels::WAYPOINT_CPU,
    labels::WAYPOINT_MEMORY,
];

impl kube::Resource for Custom {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Custom {
    /// Drops what nobody reads: of `status`, all but what others than weft write.
    pub fn trim(&mut self, kind: Kind) {
        trim_metadata(&mut self.metadata, &ANNOTATIONS);
        let keeps = match kind {
            Kind::Gateway | Kind::WorkloadEntry => "conditions",
            Kind::ServiceEntry => "addresses",
            _ => "",
        };
        match &mut self.status {
            Value::Object(status) if !keeps.is_empty() => status.retain(|field, _| field == keeps),
            status => *status = Value::Null,
        }
    }
}
