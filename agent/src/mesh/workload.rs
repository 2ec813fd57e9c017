//! Workloads: the pods (and other machines) of the mesh, as every node knows them.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{GatewayAddress, PolicyKey, SameNode, ServiceKey, SpiffeId};

/// A pod, or a machine that acts as one. Field names follow Istio's `istio.workload.Workload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique over all clusters, for example `Kubernetes//Pod/shop/cart-7f9c`.
    pub uid: Arc<str>,
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The identity that its certificate carries.
    pub identity: SpiffeId,
    /// Every address that the pod answers at; may be empty while it is being made.
    pub addresses: Vec<IpAddr>,
    /// The node it runs on.
    pub node: Arc<str>,
    /// How traffic reaches it.
    pub tunnel_protocol: TunnelProtocol,
    /// The workload (Deployment, Job...) that the pod belongs to, for telemetry.
    pub workload_name: Arc<str>,
    /// What kind of workload that is.
    pub workload_type: WorkloadType,
    /// `service.istio.io/canonical-name`.
    pub canonical_name: Arc<str>,
    /// `service.istio.io/canonical-revision`.
    pub canonical_revision: Arc<str>,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The network in which its addresses can be reached; empty is the only one.
    pub network: Arc<str>,
    /// Where it runs, for endpoint choice and telemetry.
    pub locality: Locality,
    /// How much it can take, against the other endpoints of a service; with 0 it is given no new connections.
    pub capacity: u32,
    /// Whether it may be chosen as an endpoint.
    pub healthy: bool,
    /// hostNetwork pods share the node's address: never looked up by address, never captured.
    pub host_network: bool,
    /// Whether it speaks HBONE itself, as a waypoint's pod does, so that no agent captures it.
    pub native_tunnel: bool,
    /// The waypoint that traffic addressed to the pod itself goes through.
    pub waypoint: Option<GatewayAddress>,
    /// How its connections with pods of its own node go, where that is set for the workload itself.
    pub same_node: Option<SameNode>,
    /// The selector policies that apply to it. One that has not arrived denies.
    pub policies: Vec<PolicyKey>,
    /// The services it backs, and the ports they map.
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// The subsets of those services that it is of, in order (DestinationRule; only waypoints ask).
    pub subsets: Vec<(ServiceKey, Arc<str>)>,
    /// The [`super::http::RequestAuthentication`]s that select it or cover its namespace or the mesh, in order, where it is behind
    /// a waypoint itself (only waypoints ask).
    pub authentications: Vec<PolicyKey>,
}

impl Workload {
    /// `namespace/name`, as people write it.
    pub fn namespaced_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Region, zone and subzone; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// For example `eu-west-1`.
    pub region: Arc<str>,
    /// For example `eu-west-1a`.
    pub zone: Arc<str>,
    /// A rack, for example.
    pub subzone: Arc<str>,
}

/// How a workload is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TunnelProtocol {
    /// Plain TCP: the workload is not in the mesh.
    #[default]
    None,
    /// HTTP/2 CONNECT over mutual TLS, on port 15008 of the pod's address.
    Hbone,
}

/// The kind of object that made a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WorkloadType {
    /// A Deployment (the default of Istio's API).
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

/// One port of a service and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// The port that clients dial.
    pub service_port: u16,
    /// The port that the pod listens on.
    pub target_port: u16,
}
