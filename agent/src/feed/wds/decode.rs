//! Workloads and services, as they arrive.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    AUTHENTICATIONS, Defaults, SAME_NODE, SUBSETS, Sees, Unreadable, addresses, bad, policy_key, service_key,
};
use crate::{
    mesh::{
        AppProtocol, BackedServices, BalancingMode, GatewayAddress, GatewayDestination, HBONE_PORT,
        HealthPolicy, IpFamilies, LoadBalancing, Locality, PolicyKey, PortMapping, RoutingScope, SameNode,
        Service, ServiceKey, SpiffeId, TrustDomain, TunnelProtocol, Workload, WorkloadType,
    },
    rpc::workload as wire,
};

/// What a workload says.
///
/// # Errors
/// When a field says what cannot be.
pub fn workload(it: wire::Workload, defaults: &Defaults) -> Result<Workload, Unreadable> {
    if it.uid.is_empty() {
        return Err(bad("uid", "it is empty"));
    }
    let (subsets, authentications) = match defaults.sees {
        Sees::Connections => Default::default(),
        Sees::Requests => (subsets(&it.extensions)?, authentications(&it.extensions)?),
    };
    let addresses = it.addresses.iter().map(|bytes| addresses::ip(bytes, "addresses"));
    let cluster = if it.cluster_id.is_empty() {
        defaults.cluster.clone()
    } else {
        it.cluster_id.as_str().into()
    };
    Ok(Workload {
        identity: identity(&it, defaults)?,
        addresses: addresses.collect::<Result<_, _>>()?,
        tunnel_protocol: tunnel_protocol(it.tunnel_protocol)?,
        workload_type: workload_type(it.workload_type),
        locality: it.locality.map(locality).unwrap_or_default(),
        capacity: it.capacity.unwrap_or(1),
        healthy: it.status == wire::WorkloadStatus::Healthy as i32,
        host_network: it.network_mode == wire::NetworkMode::HostNetwork as i32,
        native_tunnel: it.native_tunnel,
        waypoint: it.waypoint.map(gateway).transpose()?,
        same_node: same_node(&it.extensions)?,
        policies: it
            .authorization_policies
            .iter()
            .map(|name| policy_key(name))
            .collect(),
        services: services(&it.services)?,
        subsets,
        authentications,
        uid: it.uid.into(),
        name: it.name.into(),
        namespace: it.namespace.into(),
        node: it.node.into(),
        workload_name: it.workload_name.into(),
        canonical_name: it.canonical_name.into(),
        canonical_revision: it.canonical_revision.into(),
        cluster,
        network: it.network.into(),
    })
}

/// What a service says.
///
/// # Errors
/// When a field says what cannot be.
pub fn service(it: wire::Service) -> Result<Service, Unreadable> {
    if it.hostname.is_empty() {
        return Err(bad("hostname", "it is empty"));
    }
    let (mut vips, mut vip_networks) = (Vec::new(), Vec::new());
    for address in &it.addresses {
        let ip = addresses::ip(&address.address, "addresses")?;
        match address.length {
            None => vips.push(ip),
            Some(length) => {
                let network = addresses::network(&address.address, length, "addresses")?;
                if network.prefix_len() == network.max_prefix_len() {
                    vips.push(ip);
                } else {
                    vip_networks.push(network);
                }
            }
        }
    }
    Ok(Service {
        key: ServiceKey {
            namespace: it.namespace.into(),
            hostname: it.hostname.to_ascii_lowercase().into(),
        },
        name: it.name.into(),
        vips,
        vip_networks,
        app_protocols: app_protocols(&it.ports)?,
        ports: ports(&it.ports)?,
        subject_alt_names: identities(&it.subject_alt_names),
        waypoint: it.waypoint.map(gateway).transpose()?,
        load_balancing: it.load_balancing.map(load_balancing).unwrap_or_default(),
        ip_families: ip_families(it.ip_families),
    })
}

/// Istio leaves out what is `cluster.local`, and what is `default`.
fn identity(it: &wire::Workload, defaults: &Defaults) -> Result<SpiffeId, Unreadable> {
    let named = Some(it.trust_domain.as_str()).filter(|name| !name.is_empty());
    let own = || Ok(defaults.trust_domain.clone());
    let trust_domain = named.map_or_else(own, |name| name.parse::<TrustDomain>());
    let trust_domain = trust_domain.map_err(|err| bad("trust_domain", err))?;
    let account = Some(it.service_account.as_str()).filter(|name| !name.is_empty());
    SpiffeId::new(&trust_domain, &it.namespace, account.unwrap_or("default"))
        .map_err(|err| bad("service_account", err))
}

/// What else its workloads may prove to be. A ServiceEntry may name anything, as DNS names for TLS that apps begin themselves:
/// what is no identity of a mesh is nobody whom an agent could meet, and leaving it out widens nothing.
fn identities(names: &[String]) -> Vec<SpiffeId> {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// A protocol that we do not speak must not become plaintext.
fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, Unreadable> {
    match wire::TunnelProtocol::try_from(value) {
        Ok(wire::TunnelProtocol::None) => Ok(TunnelProtocol::None),
        Ok(wire::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(wire::TunnelProtocol::LegacyIstioMtls) | Err(_) => Err(bad(
            "tunnel_protocol",
            format!("{value} is none that weft speaks"),
        )),
    }
}

fn workload_type(value: i32) -> WorkloadType {
    match wire::WorkloadType::try_from(value) {
        Ok(wire::WorkloadType::CronJob) => WorkloadType::CronJob,
        Ok(wire::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(wire::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
    }
}

fn locality(it: wire::Locality) -> Locality {
    Locality {
        region: it.region.into(),
        zone: it.zone.into(),
        subzone: it.subzone.into(),
    }
}

fn services(services: &BTreeMap<String, wire::PortList>) -> Result<BackedServices, Unreadable> {
    let each = services.iter().map(|(name, list)| {
        let key =
            service_key(name).ok_or_else(|| bad("services", format!("{name} is not namespace/hostname")))?;
        Ok((key, ports(&list.ports)?))
    });
    each.collect()
}

fn ports(ports: &[wire::Port]) -> Result<Vec<PortMapping>, Unreadable> {
    let each = ports.iter().map(|port| {
        Ok(PortMapping {
            service_port: addresses::port(port.service_port, "ports")?,
            target_port: addresses::port(port.target_port, "ports")?,
        })
    });
    each.collect()
}

/// What we do not know is as good as unknown: no agent asks.
fn app_protocols(ports: &[wire::Port]) -> Result<BTreeMap<u16, AppProtocol>, Unreadable> {
    let mut protocols = BTreeMap::new();
    for port in ports {
        let protocol = match port.app_protocol {
            1 => AppProtocol::Http11,
            2 => AppProtocol::Http2,
            3 => AppProtocol::Grpc,
            4 => AppProtocol::Tcp,
            5 => AppProtocol::Tls,
            _ => continue,
        };
        protocols.insert(addresses::port(port.service_port, "ports")?, protocol);
    }
    Ok(protocols)
}

/// A gateway that cannot be read must not become none: that would be a way around it.
fn gateway(it: wire::GatewayAddress) -> Result<GatewayAddress, Unreadable> {
    let destination = match it.destination {
        Some(wire::Destination::Hostname(name)) => GatewayDestination::Service(ServiceKey {
            namespace: name.namespace.into(),
            hostname: name.hostname.to_ascii_lowercase().into(),
        }),
        Some(wire::Destination::Address(address)) => {
            GatewayDestination::Address(addresses::ip(&address.address, "waypoint")?)
        }
        None => return Err(bad("waypoint", "it has neither a name nor an address")),
    };
    let hbone_port = match addresses::port(it.hbone_mtls_port, "waypoint")? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(GatewayAddress {
        destination,
        hbone_port,
    })
}

fn load_balancing(it: wire::LoadBalancing) -> LoadBalancing {
    let scope = |value: &i32| match wire::RoutingScope::try_from(*value) {
        Ok(wire::RoutingScope::Network) => Some(RoutingScope::Network),
        Ok(wire::RoutingScope::Region) => Some(RoutingScope::Region),
        Ok(wire::RoutingScope::Zone) => Some(RoutingScope::Zone),
        Ok(wire::RoutingScope::Subzone) => Some(RoutingScope::Subzone),
        Ok(wire::RoutingScope::Node) => Some(RoutingScope::Node),
        Ok(wire::RoutingScope::Cluster) => Some(RoutingScope::Cluster),
        Ok(wire::RoutingScope::Unspecified) | Err(_) => None,
    };
    let mode = match wire::BalancingMode::try_from(it.mode) {
        Ok(wire::BalancingMode::Strict) => BalancingMode::Strict,
        Ok(wire::BalancingMode::Failover) => BalancingMode::Failover,
        Ok(wire::BalancingMode::Passthrough) => BalancingMode::Passthrough,
        Ok(wire::BalancingMode::Unspecified) | Err(_) => BalancingMode::Any,
    };
    let health = match wire::HealthPolicy::try_from(it.health_policy) {
        Ok(wire::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Ok(wire::HealthPolicy::OnlyHealthy) | Err(_) => HealthPolicy::OnlyHealthy,
    };
    LoadBalancing {
        routing_preference: it.routing_preference.iter().filter_map(scope).collect(),
        mode,
        health,
    }
}

fn ip_families(value: i32) -> IpFamilies {
    match wire::IpFamilies::try_from(value) {
        Ok(wire::IpFamilies::Ipv4Only) => IpFamilies::Ipv4Only,
        Ok(wire::IpFamilies::Ipv6Only) => IpFamilies::Ipv6Only,
        Ok(wire::IpFamilies::Dual) => IpFamilies::Dual,
        Ok(wire::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
    }
}

fn same_node(extensions: &[wire::Extension]) -> Result<Option<SameNode>, Unreadable> {
    match value(extensions, SAME_NODE) {
        None => Ok(None),
        Some(b"kernel") => Ok(Some(SameNode::Kernel)),
        Some(b"tunnel") => Ok(Some(SameNode::Tunnel)),
        Some(_) => Err(bad(SAME_NODE, "neither kernel nor tunnel")),
    }
}

fn subsets(extensions: &[wire::Extension]) -> Result<Vec<(ServiceKey, Arc<str>)>, Unreadable> {
    let pairs: Vec<(String, Arc<str>)> = json(extensions, SUBSETS)?;
    let each = pairs.into_iter().map(|(service, subset)| {
        let key = service_key(&service)
            .ok_or_else(|| bad(SUBSETS, format!("{service} is not namespace/hostname")))?;
        Ok((key, subset))
    });
    each.collect()
}

fn authentications(extensions: &[wire::Extension]) -> Result<Vec<PolicyKey>, Unreadable> {
    let names: Vec<String> = json(extensions, AUTHENTICATIONS)?;
    Ok(names.iter().map(|name| policy_key(name)).collect())
}

/// A list; none where the extension is missing.
fn json<T: serde::de::DeserializeOwned>(
    extensions: &[wire::Extension],
    name: &'static str,
) -> Result<Vec<T>, Unreadable> {
    let read = |value| serde_json::from_slice(value).map_err(|err| bad(name, err));
    value(extensions, name).map_or_else(|| Ok(Vec::new()), read)
}

/// What an extension says.
pub(super) fn value<'a>(extensions: &'a [wire::Extension], name: &str) -> Option<&'a [u8]> {
    let extension = extensions.iter().find(|extension| extension.name == name)?;
    Some(extension.config.as_ref().map_or(&[], |any| &any.value[..]))
}
