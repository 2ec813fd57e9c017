//! PURE. What Kubernetes' objects mean: `compile(resources)` is a mesh and what is wrong with single objects.
//!
//! Each namespace is compiled by itself (`namespace`), with what it needs of others in `shared`: nodes, waypoints, the root
//! namespace's policies. [`Compiler`] keeps what it compiled, is told of changes, and compiles only the namespaces
//! concerned; [`compile`] is the same from nothing. No I/O, no clock, no panic: what cannot be read is a [`Diagnostic`],
//! and what is in doubt is closed. Called by the controller's watches and by `weft analyze`.

mod authentications;
mod bound;
mod bounded;
mod changes;
mod claims;
mod compiler;
mod destination_rules;
mod drafts;
mod endpoints;
mod gateways;
mod kept_pod;
mod namespace;
mod peer_authentications;
mod pods;
mod resources;
mod routing;
mod seen;
mod service_entries;
mod services;
mod shared;
mod unit;
mod waypoint_gateway;
mod waypoint_only;
mod waypoints;
mod workload_entries;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ipnet::IpNet;

pub use compiler::{Compiler, compile};
pub use kept_pod::KeptPod;
pub use resources::{Change, Named, Resources};
pub use waypoint_gateway::{Fault, Listener, WaypointWishes};

pub use crate::manifests::{Diagnostic, ObjectRef, Severity};

use crate::mesh::{
    MeshParts, PeerAuthentications, Policy, PolicyKey, SameNode, SameNodes, Service, ServiceKey, TrustDomain,
    Workload,
    http::{RequestAuthentication, Routes},
};

/// What the objects do not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// What services' hostnames end in, in lower case.
    pub cluster_domain: Arc<str>,
    /// The namespace whose policies cover the whole mesh.
    pub root_namespace: Arc<str>,
    /// The namespace that weft runs in: never captured.
    pub own_namespace: Arc<str>,
    /// Where pods and services have their addresses.
    pub cluster_cidrs: Vec<IpNet>,
    /// How connections inside a node go, where nothing else is said.
    pub same_node: SameNode,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::default(),
            cluster: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            own_namespace: "weft-system".into(),
            cluster_cidrs: Vec::new(),
            same_node: SameNode::default(),
        }
    }
}

/// What a set of objects means.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The mesh, each list in the order of its keys.
    pub parts: MeshParts,
    /// What is wrong, in the order of the objects.
    pub diagnostics: Vec<Diagnostic>,
    /// The waypoints that are to be deployed, by namespace and name.
    pub waypoints: Vec<WaypointGateway>,
}

/// A Gateway that is a waypoint of ours: what is to be deployed for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaypointGateway {
    /// The Gateway.
    pub gateway: ObjectRef,
    /// The name of its class.
    pub class: Arc<str>,
    /// What goes through it.
    pub waypoint_for: WaypointFor,
    /// The port on which it speaks HBONE.
    pub hbone_port: u16,
    /// How it is to be deployed.
    pub wishes: WaypointWishes,
}

/// What goes through a waypoint, by what was dialled (`istio.io/waypoint-for`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaypointFor {
    /// Addresses of services.
    #[default]
    Service,
    /// Pods' own addresses.
    Workload,
    /// Both.
    All,
    /// Neither.
    None,
}

/// What one [`Compiler::compile`] changed. Each list is in the order of its keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// New or changed; also where only their own peer authentication changed.
    pub workloads: Vec<Arc<Workload>>,
    /// The uids of those that are gone.
    pub removed_workloads: Vec<Arc<str>>,
    /// New or changed.
    pub services: Vec<Arc<Service>>,
    /// Gone.
    pub removed_services: Vec<ServiceKey>,
    /// New or changed.
    pub policies: Vec<Arc<Policy>>,
    /// Gone.
    pub removed_policies: Vec<PolicyKey>,
    /// What waypoints do with what is sent to services: new or changed.
    pub routes: Vec<Arc<Routes>>,
    /// Gone.
    pub removed_routes: Vec<ServiceKey>,
    /// New or changed.
    pub authentications: Vec<Arc<RequestAuthentication>>,
    /// Gone.
    pub removed_authentications: Vec<PolicyKey>,
    /// All of them, where any changed.
    pub peer_authentications: Option<PeerAuthentications>,
    /// All of them, where any changed.
    pub same_nodes: Option<SameNodes>,
    /// Whether those of the mesh or of a namespace did, so that they are others for workloads that are not in `workloads`.
    pub scopes_changed: bool,
    /// All of them, where any changed.
    pub diagnostics: Option<Vec<Diagnostic>>,
    /// All of them, where any changed.
    pub waypoints: Option<Vec<WaypointGateway>>,
}
