//! EndpointSlices: which addresses are behind a service, and how they are.

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{or_default, resource, trim_metadata};
use crate::cluster::labels;

/// Some of the endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct EndpointSlice {
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(deserialize_with = "or_default")]
    pub address_type: String,
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<EndpointPort>,
}

/// An endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct Endpoint {
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: EndpointConditions,
    pub target_ref: Option<TargetRef>,
}

/// How an endpoint is; where nothing is said, it is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct EndpointConditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

impl EndpointConditions {
    /// Whether it takes new connections, whatever the service publishes.
    pub fn is_well(self) -> bool {
        self.serving.or(self.ready).unwrap_or(true) && !self.terminating.unwrap_or(false)
    }
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct TargetRef {
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
}

/// A port that all endpoints of a slice have.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct EndpointPort {
    /// The service port's name.
    pub name: Option<String>,
    pub port: Option<i32>,
    pub protocol: Option<String>,
}

resource!(
    EndpointSlice,
    "discovery.k8s.io",
    "v1",
    "endpointslices",
    NamespaceResourceScope
);

impl EndpointSlice {
    /// The name of its service.
    pub fn service_name(&self) -> Option<&str> {
        let labels = self.metadata.labels.as_ref()?;
        labels.get(labels::SERVICE_NAME).map(String::as_str)
    }

    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[]);
        self.metadata.generation = None;
        self.metadata.creation_timestamp = None;
        if let Some(labels) = &mut self.metadata.labels {
            labels.retain(|key, _| key == labels::SERVICE_NAME);
        }
        let own = self.metadata.namespace.as_deref();
        for endpoint in &mut self.endpoints {
            endpoint.addresses.shrink_to_fit();
            if let Some(target) = &mut endpoint.target_ref {
                // Where it names none, the slice's own is meant.
                target.namespace.take_if(|it| own == Some(it));
            }
        }
        self.endpoints.shrink_to_fit();
    }
}
