//! Workloads: the pods (and other machines) of the mesh, as every node knows them.

use std::{collections::BTreeMap, net::IpAddr, ops::Deref, sync::Arc};

use super::{GatewayAddress, Interned, PolicyKey, SameNode, ServiceKey, Shared, SpiffeId};

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
    pub services: BackedServices,
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

    /// Puts what others have in common with it in place of its own.
    pub fn intern(&mut self, interned: &mut Interned) {
        let Locality {
            region,
            zone,
            subzone,
        } = &mut self.locality;
        let texts = [
            &mut self.namespace,
            &mut self.node,
            &mut self.workload_name,
            &mut self.canonical_name,
            &mut self.canonical_revision,
            &mut self.cluster,
            &mut self.network,
            region,
            zone,
            subzone,
        ];
        texts.into_iter().for_each(|text| interned.replace_text(text));
        interned.replace_identity(&mut self.identity);
        interned.replace_backed(&mut self.services);
        for key in self.policies.iter_mut().chain(&mut self.authentications) {
            interned.replace_key(key);
        }
        self.addresses.shrink_to_fit();
        self.policies.shrink_to_fit();
        self.subsets.shrink_to_fit();
        self.authentications.shrink_to_fit();
    }
}

/// Services, each with the ports that are mapped: shared by all that back the same ones, which are most pods of a Deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BackedServices(Arc<BTreeMap<ServiceKey, Vec<PortMapping>>>);

impl BackedServices {
    /// Adds a service, or replaces what is said of it.
    pub fn insert(&mut self, key: ServiceKey, ports: Vec<PortMapping>) -> Option<Vec<PortMapping>> {
        Arc::make_mut(&mut self.0).insert(key, ports)
    }

    /// What is said of a service, to change it.
    pub fn get_mut(&mut self, key: &ServiceKey) -> Option<&mut Vec<PortMapping>> {
        Arc::make_mut(&mut self.0).get_mut(key)
    }
}

impl Shared for BackedServices {
    fn is_the_only_one(&self) -> bool {
        self.0.is_the_only_one()
    }
}

impl Deref for BackedServices {
    type Target = BTreeMap<ServiceKey, Vec<PortMapping>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<(ServiceKey, Vec<PortMapping>)> for BackedServices {
    fn from_iter<I: IntoIterator<Item = (ServiceKey, Vec<PortMapping>)>>(all: I) -> Self {
        Self(Arc::new(all.into_iter().collect()))
    }
}

impl<const N: usize> From<[(ServiceKey, Vec<PortMapping>); N]> for BackedServices {
    fn from(all: [(ServiceKey, Vec<PortMapping>); N]) -> Self {
        all.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a BackedServices {
    type Item = (&'a ServiceKey, &'a Vec<PortMapping>);
    type IntoIter = std::collections::btree_map::Iter<'a, ServiceKey, Vec<PortMapping>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl IntoIterator for BackedServices {
    type Item = (ServiceKey, Vec<PortMapping>);
    type IntoIter = std::collections::btree_map::IntoIter<ServiceKey, Vec<PortMapping>>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.0).into_iter()
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMapping {
    /// The port that clients dial.
    pub service_port: u16,
    /// The port that the pod listens on.
    pub target_port: u16,
}
