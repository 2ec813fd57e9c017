//! Small meshes for tests.

use std::{net::IpAddr, sync::Arc};

use super::{
    Action, GatewayAddress, GatewayDestination, HBONE_PORT, IpFamilies, LoadBalancing, Locality, Match,
    MeshParts, PeerAuthentications, Policy, PolicyKey, PortMapping, Rule, SameNodes, Scope, Service,
    ServiceKey, SpiffeId, TrustDomain, TunnelProtocol, Workload, WorkloadType,
};

/// An empty mesh in which 10.0.0.0/8 and fd00::/8 are the cluster's.
pub(crate) fn parts() -> MeshParts {
    MeshParts {
        trust_domain: TrustDomain::default(),
        cluster: "Kubernetes".into(),
        cluster_domain: "cluster.local".into(),
        root_namespace: "root".into(),
        cluster_cidrs: ["10.0.0.0/8", "fd00::/8"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
        workloads: Vec::new(),
        services: Vec::new(),
        policies: Vec::new(),
        peer_authentications: PeerAuthentications::default(),
        same_nodes: SameNodes::default(),
        http: Default::default(),
    }
}

/// A healthy pod of the mesh; its namespace is `demo` and its service account has its name without `-1`.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    let service_account = name
        .split_once('-')
        .map_or(name, |(service_account, _)| service_account);
    Workload {
        uid: uid(name),
        name: name.into(),
        namespace: "demo".into(),
        identity: identity("demo", service_account),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        node: "node-a".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        workload_name: name.into(),
        workload_type: WorkloadType::Pod,
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        locality: Locality::default(),
        capacity: 1,
        healthy: true,
        host_network: false,
        waypoint: None,
        native_tunnel: false,
        same_node: None,
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    }
}

/// The uid of a pod that [`pod`] makes.
pub(super) fn uid(name: &str) -> Arc<str> {
    format!("Kubernetes//Pod/demo/{name}").into()
}

pub(super) fn identity(namespace: &str, service_account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), namespace, service_account).unwrap()
}

/// A service of namespace `demo` with ports 80 -> 8080 and 443 -> 443.
pub(crate) fn service(name: &str, vips: &[&str]) -> Service {
    Service {
        key: service_key(name),
        name: name.into(),
        vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        vip_networks: Vec::new(),
        ports: vec![mapping(80, 8080), mapping(443, 443)],
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        app_protocols: Default::default(),
        ip_families: IpFamilies::default(),
    }
}

pub(crate) fn service_key(name: &str) -> ServiceKey {
    ServiceKey {
        namespace: "demo".into(),
        hostname: format!("{name}.demo.svc.cluster.local").into(),
    }
}

pub(super) fn mapping(service_port: u16, target_port: u16) -> PortMapping {
    PortMapping {
        service_port,
        target_port,
    }
}

/// Puts a pod behind a service, with no ports of its own.
pub(super) fn backs(mut pod: Workload, service: &str) -> Workload {
    pod.services.insert(service_key(service), Vec::new());
    pod
}

pub(crate) fn waypoint_service(name: &str) -> Option<GatewayAddress> {
    Some(GatewayAddress {
        destination: GatewayDestination::Service(service_key(name)),
        hbone_port: HBONE_PORT,
    })
}

pub(super) fn waypoint_address(address: &str, hbone_port: u16) -> Option<GatewayAddress> {
    let address: IpAddr = address.parse().unwrap();
    Some(GatewayAddress {
        destination: GatewayDestination::Address(address),
        hbone_port,
    })
}

pub(super) fn policy_key(key: &str) -> PolicyKey {
    let (namespace, name) = key.split_once('/').unwrap();
    PolicyKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// A policy named `namespace/name`.
pub(super) fn policy(key: &str, scope: Scope, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: policy_key(key),
        scope,
        action,
        rules,
        dry_run: false,
    }
}

/// A rule with one clause of these matches.
pub(super) fn any_of(matches: impl IntoIterator<Item = Match>) -> Rule {
    Rule {
        clauses: vec![super::Clause {
            matches: matches.into_iter().collect(),
        }],
    }
}
