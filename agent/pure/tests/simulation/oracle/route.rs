//! Where a connection may go, as the rules of Istio's ambient mode and the documentation of `mesh::route` have it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weft_pure::mesh::{
    BalancingMode, GatewayAddress, GatewayDestination, HBONE_PORT, HealthPolicy, RoutingScope, Service,
    ServiceKey, SpiffeId, TunnelProtocol, Workload, is_own_port,
};

use crate::world::World;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hop {
    /// In clear, and the uid of the workload there.
    Direct(SocketAddr, Option<Arc<str>>),
    Tunnel {
        addr: SocketAddr,
        authority: SocketAddr,
        identities: BTreeSet<SpiffeId>,
        uid: Arc<str>,
        via_waypoint: bool,
    },
    /// Refused, and why in one word.
    Refuse(&'static str),
}

/// The service that is meant, and every answer that some draw may give.
pub(crate) fn answers(
    world: &World,
    source: &Workload,
    dialled: SocketAddr,
) -> (Option<ServiceKey>, BTreeSet<Hop>) {
    let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
    if let Some(service) = world.service_at(dialled.ip()) {
        return (
            Some(service.key.clone()),
            to_service(world, source, service, dialled),
        );
    }
    if let Some(workload) = world.workload_at(dialled.ip()) {
        let headless = headless(world, workload, dialled.port());
        let named = match headless.as_slice() {
            [only] => Some(only.key.clone()),
            _ => None,
        };
        return (named, to_workload(world, source, workload, dialled, &headless));
    }
    let hop = if world.in_cluster(dialled.ip()) {
        Hop::Refuse("unknown")
    } else {
        Hop::Direct(dialled, None)
    };
    (None, one(hop))
}

fn one(hop: Hop) -> BTreeSet<Hop> {
    BTreeSet::from([hop])
}

fn to_service(world: &World, source: &Workload, service: &Service, dialled: SocketAddr) -> BTreeSet<Hop> {
    if is_own_port(dialled.port()) {
        return one(Hop::Refuse("own port"));
    }
    if service
        .ports
        .iter()
        .all(|port| port.service_port != dialled.port())
    {
        return one(Hop::Refuse("no such port"));
    }
    if let Some(gateway) = service
        .waypoint
        .as_ref()
        .filter(|gateway| !world.is_of_waypoint(source, gateway))
    {
        return to_waypoint(world, source, gateway, dialled);
    }
    if service.load_balancing.mode == BalancingMode::Passthrough {
        return match world.workload_at(dialled.ip()) {
            Some(workload) => one(to_pod(source, workload, dialled, &[])),
            None => one(Hop::Direct(dialled, None)),
        };
    }
    let candidates = candidates(world, source, service, dialled, |workload| {
        target_port(service, workload, dialled.port())
    });
    match choose(world, source, service, &candidates) {
        Ok(chosen) => chosen
            .into_iter()
            .map(|(workload, addr)| to_pod(source, workload, addr, &service.subject_alt_names))
            .collect(),
        Err(refusal) => one(refusal),
    }
}

/// Where a workload maps a port of a service to; 0 is nowhere.
fn target_port(service: &Service, workload: &Workload, port: u16) -> Option<u16> {
    let mut of_service = service
        .ports
        .iter()
        .filter(|mapping| mapping.service_port == port);
    let of_service = of_service.next()?.target_port;
    let mapped = workload.services[&service.key]
        .iter()
        .find(|mapping| mapping.service_port == port);
    Some(mapped.map_or(of_service, |mapping| mapping.target_port)).filter(|port| *port != 0)
}

type Candidate<'a> = (&'a Workload, SocketAddr);

/// The endpoints that are ready, where that is asked, and that can be reached.
fn candidates<'a>(
    world: &'a World,
    source: &Workload,
    service: &Service,
    dialled: SocketAddr,
    port: impl Fn(&Workload) -> Option<u16>,
) -> Vec<Candidate<'a>> {
    // An address that another pod has by now leads to that one.
    let keeps = |workload: &Workload| {
        let others = |ip: &IpAddr| {
            world
                .workload_at(*ip)
                .is_some_and(|there| there.uid != workload.uid)
        };
        !workload.addresses.iter().any(others)
    };
    let ready =
        |workload: &Workload| workload.healthy || service.load_balancing.health == HealthPolicy::AllowAll;
    let backing = world
        .workloads()
        .filter(|workload| workload.services.contains_key(&service.key));
    let reached = |workload: &'a Workload| {
        Some((
            workload,
            SocketAddr::new(reach(source, workload, dialled.ip())?, port(workload)?),
        ))
    };
    backing
        .filter(|workload| ready(workload) && keeps(workload))
        .filter_map(reached)
        .collect()
}

/// Of the family that was dialled; else of the other, if the client has one.
fn reach(source: &Workload, workload: &Workload, like: IpAddr) -> Option<IpAddr> {
    for v4 in [like.is_ipv4(), !like.is_ipv4()] {
        let address = workload.addresses.iter().find(|address| address.is_ipv4() == v4);
        let can = v4 == like.is_ipv4() || source.addresses.iter().any(|address| address.is_ipv4() == v4);
        if let Some(address) = address.filter(|_| can) {
            return Some(*address);
        }
    }
    None
}

/// The nearest, as the service's load balancing has it. What can take nothing (capacity 0) is not chosen.
fn choose<'a>(
    world: &World,
    source: &Workload,
    service: &Service,
    candidates: &[Candidate<'a>],
) -> Result<Vec<Candidate<'a>>, Hop> {
    let (strict, scopes) = balancing(world, service);
    let mut able: Vec<_> = candidates
        .iter()
        .filter(|(workload, _)| workload.capacity > 0)
        .copied()
        .collect();
    let shared = |workload: &Workload| {
        scopes
            .iter()
            .take_while(|scope| value(**scope, source) == value(**scope, workload))
            .count()
    };
    let nearest = if strict {
        scopes.len()
    } else {
        able.iter()
            .map(|(workload, _)| shared(workload))
            .max()
            .unwrap_or(0)
    };
    let any = !able.is_empty();
    able.retain(|(workload, _)| shared(workload) == nearest);
    match () {
        () if !able.is_empty() => Ok(able),
        () if service.load_balancing.mode == BalancingMode::Strict && any => Err(Hop::Refuse("none near")),
        () => Err(Hop::Refuse("no endpoint")),
    }
}

/// Whether only the nearest will do, and what near means: for a waypoint's service that says nothing, being close.
fn balancing(world: &World, service: &Service) -> (bool, Vec<RoutingScope>) {
    use RoutingScope::{Network, Region, Subzone, Zone};
    let said = &service.load_balancing.routing_preference;
    let mut scopes: Vec<RoutingScope> = Vec::new();
    for scope in said {
        if !scopes.contains(scope) {
            scopes.push(*scope);
        }
    }
    match service.load_balancing.mode {
        BalancingMode::Strict => (true, scopes),
        BalancingMode::Failover => (false, scopes),
        BalancingMode::Any if is_of_a_waypoint(world, service) => {
            (false, vec![Network, Region, Zone, Subzone])
        }
        BalancingMode::Any | BalancingMode::Passthrough => (false, Vec::new()),
    }
}

fn is_of_a_waypoint(world: &World, service: &Service) -> bool {
    let of_workloads = world
        .workloads()
        .filter_map(|workload| workload.waypoint.as_ref());
    let of_services = world.services().filter_map(|service| service.waypoint.as_ref());
    let mut gateways = of_workloads
        .chain(of_services)
        .filter_map(|gateway| world.gateway_service(gateway));
    gateways.any(|gateway| gateway.key == service.key)
}

fn value(scope: RoutingScope, workload: &Workload) -> &str {
    match scope {
        RoutingScope::Network => &workload.network,
        RoutingScope::Region => &workload.locality.region,
        RoutingScope::Zone => &workload.locality.zone,
        RoutingScope::Subzone => &workload.locality.subzone,
        RoutingScope::Node => &workload.node,
        RoutingScope::Cluster => &workload.cluster,
    }
}

fn to_pod(source: &Workload, workload: &Workload, addr: SocketAddr, others: &[SpiffeId]) -> Hop {
    let uid = workload.uid.clone();
    match workload.tunnel_protocol {
        TunnelProtocol::None => Hop::Direct(addr, Some(uid)),
        TunnelProtocol::Hbone if is_own_port(addr.port()) => Hop::Refuse("own port"),
        TunnelProtocol::Hbone if uid == source.uid => Hop::Direct(addr, Some(uid)),
        TunnelProtocol::Hbone => Hop::Tunnel {
            addr: SocketAddr::new(addr.ip(), HBONE_PORT),
            authority: addr,
            identities: others.iter().chain([&workload.identity]).cloned().collect(),
            uid,
            via_waypoint: false,
        },
    }
}

/// The services without a virtual address that lead to this port of a workload.
fn headless<'a>(world: &'a World, workload: &Workload, port: u16) -> Vec<&'a Service> {
    let backed = workload.services.keys().filter_map(|key| world.service_of(key));
    let headless = backed.filter(|service| service.vips.is_empty() && service.vip_networks.is_empty());
    let leads = |service: &Service| {
        service
            .ports
            .iter()
            .filter(|it| target_port(service, workload, it.service_port) == Some(port))
            .count()
    };
    headless
        .flat_map(|service| std::iter::repeat_n(service, leads(service)))
        .collect()
}

fn to_workload(
    world: &World,
    source: &Workload,
    workload: &Workload,
    dialled: SocketAddr,
    headless: &[&Service],
) -> BTreeSet<Hop> {
    let of_services = headless.iter().find_map(|service| service.waypoint.as_ref());
    let waypoint = workload.waypoint.as_ref().or(of_services);
    let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone || waypoint.is_some();
    if in_mesh && is_own_port(dialled.port()) {
        return one(Hop::Refuse("own port"));
    }
    match waypoint {
        Some(gateway) if source.uid != workload.uid && !world.is_of_waypoint(source, gateway) => {
            to_waypoint(world, source, gateway, dialled)
        }
        _ => one(to_pod(source, workload, dialled, &[])),
    }
}

/// Any of its pods that is as near as any; it is asked for what was dialled.
fn to_waypoint(
    world: &World,
    source: &Workload,
    gateway: &GatewayAddress,
    dialled: SocketAddr,
) -> BTreeSet<Hop> {
    let tunnel = |workload: &Workload, addr, others: &[SpiffeId]| Hop::Tunnel {
        addr,
        authority: dialled,
        identities: others.iter().chain([&workload.identity]).cloned().collect(),
        uid: workload.uid.clone(),
        via_waypoint: true,
    };
    let none = || one(Hop::Refuse("no waypoint"));
    if let Some(service) = world.gateway_service(gateway) {
        let port = |workload: &Workload| {
            target_port(service, workload, gateway.hbone_port).or(Some(gateway.hbone_port))
        };
        let candidates = candidates(world, source, service, dialled, port);
        let chosen = choose(world, source, service, &candidates);
        let hop = |(workload, addr)| tunnel(workload, addr, &service.subject_alt_names);
        return chosen.map_or_else(|_| none(), |chosen| chosen.into_iter().map(hop).collect());
    }
    let GatewayDestination::Address(ip) = gateway.destination else {
        return none();
    };
    let pod = world.workload_at(ip).filter(|pod| pod.healthy);
    let reached = pod.and_then(|pod| {
        Some((
            pod,
            SocketAddr::new(reach(source, pod, dialled.ip())?, gateway.hbone_port),
        ))
    });
    reached.map_or_else(none, |(pod, addr)| one(tunnel(pod, addr, &[])))
}
