//! Pods: where they run, as whom, at which addresses and ports, and whether they are ready.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{or_default, resource, trim_metadata};
use crate::cluster::{enrolment, labels};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "fields of every object")]
pub struct Pod {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub spec: PodSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub status: PodStatus,
}

/// What a pod is to be. Names as in the Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct PodSpec {
    pub node_name: Option<String>,
    pub service_account_name: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub host_network: bool,
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    /// Of these, those that go on running beside the others count.
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
}

/// A container: the ports that it names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct Container {
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ContainerPort>,
    pub restart_policy: Option<String>,
}

/// A port that a container names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct ContainerPort {
    pub name: Option<String>,
    pub container_port: i32,
    pub protocol: Option<String>,
}

/// What a pod is. Names as in the Kubernetes API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct PodStatus {
    pub phase: Option<String>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// An address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct PodIp {
    #[serde(deserialize_with = "or_default")]
    pub ip: String,
}

/// A condition: its type and its status, `True`, `False` or `Unknown`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are the Kubernetes API's")]
pub struct Condition {
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub type_: String,
    #[serde(deserialize_with = "or_default")]
    pub status: String,
}

resource!(Pod, "", "v1", "pods", NamespaceResourceScope);

/// The annotations that are read of a pod.
const ANNOTATIONS: [&str; 5] = [
    labels::SAME_NODE,
    enrolment::SIDECAR_STATUS,
    enrolment::REDIRECTION,
    enrolment::DNS_CAPTURE,
    labels::BYPASS_INBOUND,
];

impl Pod {
    /// Whether it is ready, readiness gates included, and not about to go.
    pub fn is_ready(&self) -> bool {
        let ready = |it: &Condition| it.type_ == "Ready" && it.status == "True";
        self.status.conditions.iter().any(ready) && self.metadata.deletion_timestamp.is_none()
    }

    /// Whether it has come to its end: it will never run again, and others may have its addresses.
    pub fn is_over(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// The TCP ports that its running containers name.
    pub fn named_ports(&self) -> impl Iterator<Item = (&str, u16)> {
        let goes_on = |it: &&Container| it.restart_policy.as_deref() == Some("Always");
        let beside = self.spec.init_containers.iter().filter(goes_on);
        let ports = self.spec.containers.iter().chain(beside).flat_map(|it| &it.ports);
        ports
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| Some((port.name.as_deref()?, u16::try_from(port.container_port).ok()?)))
    }

    /// Drops what nobody reads.
    pub fn trim(&mut self) {
        let owners = self.metadata.owner_references.take();
        trim_metadata(&mut self.metadata, &ANNOTATIONS);
        let controller = owners
            .into_iter()
            .flatten()
            .find(|it| it.controller == Some(true));
        self.metadata.owner_references = controller.map(|it| {
            vec![OwnerReference {
                kind: it.kind,
                name: it.name,
                controller: it.controller,
                ..OwnerReference::default()
            }]
        });
        self.metadata.generation = None;
        self.metadata.creation_timestamp = None;
        for containers in [&mut self.spec.containers, &mut self.spec.init_containers] {
            for container in containers.iter_mut() {
                container.ports.retain(|port| port.name.is_some());
            }
            containers.retain(|container| !container.ports.is_empty());
            containers.shrink_to_fit();
        }
        if !self.status.pod_ips.is_empty() {
            self.status.pod_ip = None;
        }
        self.status.conditions.retain(|it| it.type_ == "Ready");
        self.status.conditions.shrink_to_fit();
    }
}
