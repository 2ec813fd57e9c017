//! Workloads and services, as they are sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::{AUTHENTICATIONS, SAME_NODE, SUBSETS, addresses, service_name};
use crate::{
    mesh::{
        AppProtocol, BalancingMode, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies,
        LoadBalancing, PolicyKey, PortMapping, RoutingScope, SameNode, Service, TunnelProtocol, Workload,
        WorkloadType,
    },
    rpc::{discovery::Any, workload as wire},
};

/// The workload, with the policies that cover it besides those that it names.
pub fn encode_workload(it: &Workload, more_policies: &[PolicyKey]) -> Bytes {
    let services = it.services.iter().map(|(key, mapped)| {
        let ports = wire::PortList {
            ports: ports(mapped, &BTreeMap::new()),
        };
        (service_name(key), ports)
    });
    let policies = it.policies.iter().chain(more_policies).map(PolicyKey::to_string);
    let workload = wire::Workload {
        uid: it.uid.to_string(),
        name: it.name.to_string(),
        namespace: it.namespace.to_string(),
        addresses: it.addresses.iter().map(|ip| addresses::bytes(*ip)).collect(),
        network: it.network.to_string(),
        tunnel_protocol: match it.tunnel_protocol {
            TunnelProtocol::None => wire::TunnelProtocol::None as i32,
            TunnelProtocol::Hbone => wire::TunnelProtocol::Hbone as i32,
        },
        trust_domain: it.identity.trust_domain().to_owned(),
        service_account: it.identity.service_account().to_owned(),
        waypoint: it.waypoint.as_ref().map(gateway),
        node: it.node.to_string(),
        canonical_name: it.canonical_name.to_string(),
        canonical_revision: it.canonical_revision.to_string(),
        workload_type: match it.workload_type {
            WorkloadType::Deployment => wire::WorkloadType::Deployment as i32,
            WorkloadType::CronJob => wire::WorkloadType::CronJob as i32,
            WorkloadType::Pod => wire::WorkloadType::Pod as i32,
            WorkloadType::Job => wire::WorkloadType::Job as i32,
        },
        workload_name: it.workload_name.to_string(),
        services: services.collect(),
        authorization_policies: policies.collect(),
        status: if it.healthy {
            wire::WorkloadStatus::Healthy as i32
        } else {
            wire::WorkloadStatus::Unhealthy as i32
        },
        cluster_id: it.cluster.to_string(),
        locality: Some(wire::Locality {
            region: it.locality.region.to_string(),
            zone: it.locality.zone.to_string(),
            subzone: it.locality.subzone.to_string(),
        }),
        network_mode: if it.host_network {
            wire::NetworkMode::HostNetwork as i32
        } else {
            wire::NetworkMode::Standard as i32
        },
        native_tunnel: it.native_tunnel,
        extensions: extensions(it),
        // One is what a workload has that does not say it.
        capacity: (it.capacity != 1).then_some(it.capacity),
        ..wire::Workload::default()
    };
    encode(wire::AddressType::Workload(Box::new(workload)))
}

/// The service.
pub fn encode_service(it: &Service) -> Bytes {
    let vips = it.vips.iter().map(|ip| network_address(*ip, None));
    let networks = it
        .vip_networks
        .iter()
        .map(|net| network_address(net.addr(), Some(u32::from(net.prefix_len()))));
    let service = wire::Service {
        name: it.name.to_string(),
        namespace: it.key.namespace.to_string(),
        hostname: it.key.hostname.to_string(),
        addresses: vips.chain(networks).collect(),
        ports: ports(&it.ports, &it.app_protocols),
        subject_alt_names: it
            .subject_alt_names
            .iter()
            .map(|id| id.as_str().to_owned())
            .collect(),
        waypoint: it.waypoint.as_ref().map(gateway),
        load_balancing: (it.load_balancing != LoadBalancing::default())
            .then(|| load_balancing(&it.load_balancing)),
        ip_families: match it.ip_families {
            IpFamilies::Automatic => wire::IpFamilies::Automatic as i32,
            IpFamilies::Ipv4Only => wire::IpFamilies::Ipv4Only as i32,
            IpFamilies::Ipv6Only => wire::IpFamilies::Ipv6Only as i32,
            IpFamilies::Dual => wire::IpFamilies::Dual as i32,
        },
        extensions: Vec::new(),
    };
    encode(wire::AddressType::Service(Box::new(service)))
}

fn encode(address: wire::AddressType) -> Bytes {
    let address = wire::Address {
        r#type: Some(address),
    };
    address.encode_to_vec().into()
}

fn network_address(address: std::net::IpAddr, length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress {
        network: String::new(),
        address: addresses::bytes(address),
        length,
    }
}

fn ports(ports: &[PortMapping], spoken: &BTreeMap<u16, AppProtocol>) -> Vec<wire::Port> {
    let each = ports.iter().map(|port| wire::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: spoken.get(&port.service_port).map_or(0, |it| match it {
            AppProtocol::Http11 => 1,
            AppProtocol::Http2 => 2,
            AppProtocol::Grpc => 3,
            AppProtocol::Tcp => 4,
            AppProtocol::Tls => 5,
        }),
    });
    each.collect()
}

fn gateway(it: &GatewayAddress) -> wire::GatewayAddress {
    let destination = match &it.destination {
        GatewayDestination::Service(key) => wire::Destination::Hostname(wire::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayDestination::Address(address) => wire::Destination::Address(network_address(*address, None)),
    };
    wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: it.hbone_port.into(),
    }
}

fn load_balancing(it: &LoadBalancing) -> wire::LoadBalancing {
    let scope = |scope: &RoutingScope| match scope {
        RoutingScope::Network => wire::RoutingScope::Network as i32,
        RoutingScope::Region => wire::RoutingScope::Region as i32,
        RoutingScope::Zone => wire::RoutingScope::Zone as i32,
        RoutingScope::Subzone => wire::RoutingScope::Subzone as i32,
        RoutingScope::Node => wire::RoutingScope::Node as i32,
        RoutingScope::Cluster => wire::RoutingScope::Cluster as i32,
    };
    wire::LoadBalancing {
        routing_preference: it.routing_preference.iter().map(scope).collect(),
        mode: match it.mode {
            BalancingMode::Any => wire::BalancingMode::Unspecified as i32,
            BalancingMode::Failover => wire::BalancingMode::Failover as i32,
            BalancingMode::Strict => wire::BalancingMode::Strict as i32,
            BalancingMode::Passthrough => wire::BalancingMode::Passthrough as i32,
        },
        health_policy: match it.health {
            HealthPolicy::OnlyHealthy => wire::HealthPolicy::OnlyHealthy as i32,
            HealthPolicy::AllowAll => wire::HealthPolicy::AllowAll as i32,
        },
    }
}

fn extensions(it: &Workload) -> Vec<wire::Extension> {
    let subsets = it.subsets.iter().map(|(key, subset)| (service_name(key), subset));
    let authentications = it.authentications.iter().map(PolicyKey::to_string);
    let lists = [
        list(SUBSETS, &subsets.collect::<Vec<_>>()),
        list(AUTHENTICATIONS, &authentications.collect::<Vec<_>>()),
    ];
    let same_node = it.same_node.map(same_node);
    same_node.into_iter().chain(lists.into_iter().flatten()).collect()
}

/// A list in JSON, where there is anything in it. What cannot be written, which is no text, is sent as what cannot be read.
fn list<T: serde::Serialize>(name: &str, items: &[T]) -> Option<wire::Extension> {
    let value = serde_json::to_vec(items).unwrap_or_default();
    (!items.is_empty()).then(|| extension(name, value))
}

fn same_node(it: SameNode) -> wire::Extension {
    let value = match it {
        SameNode::Kernel => "kernel",
        SameNode::Tunnel => "tunnel",
    };
    extension(SAME_NODE, value.as_bytes().to_vec())
}

pub(super) fn extension(name: &str, value: Vec<u8>) -> wire::Extension {
    let config = Any {
        type_url: name.to_owned(),
        value: value.into(),
    };
    wire::Extension {
        name: name.to_owned(),
        config: Some(config),
    }
}
