//! Services: their addresses, their ports and whom they select.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{Condition, or_default, resource, trim_metadata};
use crate::cluster::labels;

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields of every object")]
pub struct Service {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// What a service is to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub type_: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    #[serde(deserialize_with = "or_default")]
    pub publish_not_ready_addresses: bool,
    pub traffic_distribution: Option<String>,
    pub internal_traffic_policy: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<String>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct ServicePort {
    pub name: Option<String>,
    pub port: i32,
    pub protocol: Option<String>,
    pub target_port: Option<TargetPort>,
    pub app_protocol: Option<String>,
}

/// Where a port of a service leads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// To this port; 0 is the service's own.
    Number(i32),
    /// To the port to which each pod gives this name.
    Name(String),
}

/// What became of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct ServiceStatus {
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerStatus,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// The addresses that load balancers gave it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct LoadBalancerStatus {
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<Ingress>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct Ingress {
    pub ip: Option<String>,
    /// `Proxy` where packets for it must leave the cluster.
    pub ip_mode: Option<String>,
}

resource!(Service, "", "v1", "services", NamespaceResourceScope);

impl Service {
    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        trim_metadata(&mut self.metadata, &[labels::TRAFFIC_DISTRIBUTION]);
        self.metadata.creation_timestamp = None;
        self.status.load_balancer.ingress.retain(|it| it.ip.is_some());
        self.status
            .conditions
            .retain(|it| it.type_ == labels::WAYPOINT_BOUND);
    }
}
