//! `route`: where an app's connection goes. Pure; the random draw comes in as an argument.
//!
//! [`route`] gives the answer, [`reroute`] the next one when that could not be reached; [`choices`] and [`candidates`] say
//! what there is to choose from. Not here: dialling, tunnels, and what the destination's agent says. Called by `node` for
//! every captured connection.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    BalancingMode, GatewayAddress, GatewayDestination, HBONE_PORT, Mesh, Outbound, Refusal, Service,
    ServiceKey, SpiffeId, TunnelProtocol, Workload, http::HttpEndpoint, is_own_port,
};

mod candidates;

use candidates::{Bound, Candidates};
pub use candidates::{Candidate, Standing};

/// The answer of [`route`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The service whose virtual address was dialled; or the only one without a virtual address that leads to the pod's
    /// port that was dialled.
    pub service: Option<Arc<Service>>,
    /// What is to be done.
    pub next: NextHop,
}

/// What is to be done with a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Reset it.
    Refuse(Refusal),
    /// Plain TCP.
    Direct {
        /// Where to.
        addr: SocketAddr,
        /// The workload there, where the mesh knows it.
        workload: Option<Arc<Workload>>,
    },
    /// HBONE.
    Tunnel(Tunnel),
}

impl NextHop {
    /// What is dialled; nothing for a refusal.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Refuse(_) => None,
            Self::Direct { addr, .. } => Some(*addr),
            Self::Tunnel(tunnel) => Some(tunnel.addr),
        }
    }
}

/// A connection through HBONE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Where the tunnel is dialled: the address of the pod or of the waypoint's pod, and its HBONE port.
    pub addr: SocketAddr,
    /// What the CONNECT asks for: the pod's address and port, or through a waypoint what the app dialled.
    pub authority: SocketAddr,
    /// Where the connection leads, for the log. Equal to `authority` as long as authorities are addresses.
    pub destination: SocketAddr,
    /// The server must prove one of these; every other identity is refused before a byte is sent.
    pub identities: Arc<[SpiffeId]>,
    /// The pod at the end of the tunnel: the destination, or the waypoint's.
    pub workload: Arc<Workload>,
    /// Whether that pod is a waypoint's.
    pub via_waypoint: bool,
}

/// Where a connection goes. `draw` is any number; another one may choose another endpoint, and the next one does
/// whenever there are two.
///
/// `route(mesh, conn, d) == route(mesh, conn, d % choices(mesh, conn))`.
pub fn route(mesh: &Mesh, conn: &Outbound, draw: u64) -> Route {
    let (service, choice) = ask(mesh, conn);
    let next = choice.and_then(|choice| choice.take(draw));
    Route {
        service: service.cloned(),
        next: next.unwrap_or_else(NextHop::Refuse),
    }
}

/// How many draws [`route`] tells apart for a connection: the draws from 0 to one less than this give every answer that
/// it has, and a greater draw gives that of its remainder. 1 for what is not a choice, never 0.
pub fn choices(mesh: &Mesh, conn: &Outbound) -> u64 {
    match ask(mesh, conn) {
        (_, Ok(Choice::Endpoint(candidates))) => candidates.count().max(1),
        _ => 1,
    }
}

/// Where else a connection may go, when none of `tried` could be reached (what [`NextHop::addr`] said of each): another
/// endpoint that is as near, or else the next nearest that the service allows. Nothing when none is left.
pub fn reroute(mesh: &Mesh, conn: &Outbound, draw: u64, tried: &[SocketAddr]) -> Option<Route> {
    let (service, Ok(Choice::Endpoint(candidates))) = ask(mesh, conn) else {
        return None;
    };
    let untried = |next: &NextHop| next.addr().is_some_and(|addr| !tried.contains(&addr));
    let mut nexts = candidates
        .ordered(draw)
        .filter_map(|candidate| candidates.lead_to(candidate).ok());
    Some(Route {
        next: nexts.find(untried)?,
        service: service.cloned(),
    })
}

/// Every endpoint of the service or of the waypoint that a connection could be carried to, with why or why not: for people
/// who ask. Empty for what is not a choice.
pub fn candidates(mesh: &Mesh, conn: &Outbound) -> Vec<Candidate> {
    match ask(mesh, conn) {
        (_, Ok(Choice::Endpoint(candidates))) => candidates.explain(mesh),
        _ => Vec::new(),
    }
}

/// Every answer for whoever chooses among endpoints himself, the nearest group first; none is empty and none has a refusal.
/// A subset is of the service's own endpoints: no other waypoint is asked for one.
pub(super) fn groups(
    mesh: &Mesh,
    key: &ServiceKey,
    port: u16,
    subset: Option<&str>,
    source: &Workload,
) -> Result<Vec<Vec<HttpEndpoint>>, Refusal> {
    let nobody = || Refusal::NoHealthyEndpoint(key.clone());
    let service = mesh.service(key).ok_or_else(nobody)?;
    let vip = service.vips.first();
    // Without a virtual address: of the family that whoever dials has.
    let like = vip.or(source.addresses.first()).ok_or_else(nobody)?;
    let mut candidates = match to_service(mesh, source, service, SocketAddr::new(*like, port))? {
        Choice::Endpoint(candidates) => candidates,
        Choice::Only(next) => {
            let only = only(next, subset).filter(|_| vip.is_some());
            return Ok(vec![vec![only.ok_or_else(nobody)?]]);
        }
    };
    match (subset, candidates.waypoint_of) {
        (None, None) => {}
        // Another waypoint is asked for the service's address, and for no subset.
        (None, Some(_)) if vip.is_some() => {}
        (_, Some(_)) => return Err(nobody()),
        (Some(subset), None) => candidates.endpoints = mesh.subset(key, subset),
    }
    let groups: Vec<_> = candidates.groups().filter(|group| !group.is_empty()).collect();
    match groups.is_empty() {
        true => Err(candidates.none()),
        false => Ok(groups),
    }
}

/// Another waypoint's only pod. Nothing else is an endpoint: a service that has none of its own leads to what was dialled.
fn only(next: NextHop, subset: Option<&str>) -> Option<HttpEndpoint> {
    match &next {
        NextHop::Tunnel(tunnel) if tunnel.via_waypoint && subset.is_none() => Some(HttpEndpoint {
            workload: tunnel.workload.clone(),
            addr: tunnel.authority,
            next,
        }),
        _ => None,
    }
}

/// What the mesh says before the draw: the service that was dialled, and what there is to choose from.
fn ask<'a>(mesh: &'a Mesh, conn: &'a Outbound) -> (Option<&'a Arc<Service>>, Result<Choice<'a>, Refusal>) {
    let destination = canonical(conn.destination);
    let source = &conn.source;
    if let Some(service) = mesh.service_at(destination.ip()) {
        return (Some(service), to_service(mesh, source, service, destination));
    }
    match mesh.workload_at(destination.ip()) {
        Some(workload) => {
            let mut headless = mesh.headless_at(workload, destination.port());
            let named = headless.next().filter(|_| headless.next().is_none());
            (named, to_workload(mesh, source, workload, destination))
        }
        None if mesh.is_cluster_address(destination.ip()) => {
            (None, Err(Refusal::UnknownDestination(destination)))
        }
        None => (None, Ok(Choice::Only(direct(destination, None)))),
    }
}

/// What a draw decides.
enum Choice<'a> {
    /// Nothing.
    Only(NextHop),
    /// Which endpoint.
    Endpoint(Candidates<'a>),
}

impl Choice<'_> {
    fn take(self, draw: u64) -> Result<NextHop, Refusal> {
        match self {
            Self::Only(next) => Ok(next),
            Self::Endpoint(candidates) => match candidates.ordered(draw).next() {
                Some(picked) => candidates.lead_to(picked),
                None => Err(candidates.none()),
            },
        }
    }
}

/// A virtual address was dialled.
fn to_service<'a>(
    mesh: &'a Mesh,
    source: &'a Workload,
    service: &'a Service,
    dialled: SocketAddr,
) -> Result<Choice<'a>, Refusal> {
    let port = dialled.port();
    if is_own_port(port) {
        return Err(Refusal::OwnPort(port));
    }
    if !service.ports.iter().any(|mapping| mapping.service_port == port) {
        return Err(Refusal::NoSuchPort(service.key.clone(), port));
    }
    if let Some(gateway) = waypoint_to_pass(mesh, source, service.waypoint.as_ref()) {
        return to_waypoint(mesh, source, gateway, Bound::Service(service), dialled);
    }
    if service.load_balancing.mode == BalancingMode::Passthrough {
        return pass_through(mesh, source, dialled).map(Choice::Only);
    }
    Ok(Choice::Endpoint(Candidates {
        service,
        endpoints: mesh.balanced(&service.key),
        source,
        dialled,
        port,
        waypoint_of: None,
    }))
}

/// A service that has no endpoints of its own: what was dialled is what is meant. In clear only to what is not in the mesh.
fn pass_through(mesh: &Mesh, source: &Workload, dialled: SocketAddr) -> Result<NextHop, Refusal> {
    match mesh.workload_at(dialled.ip()) {
        Some(workload) => to_pod(source, workload, dialled, &[]),
        None => Ok(direct(dialled, None)),
    }
}

/// A pod's own address was dialled. Its health is not asked: whoever dials a pod means that pod.
fn to_workload<'a>(
    mesh: &'a Mesh,
    source: &'a Workload,
    workload: &'a Arc<Workload>,
    dialled: SocketAddr,
) -> Result<Choice<'a>, Refusal> {
    // A service without virtual address is dialled like this, and its waypoint must not be passed by.
    let of_services = || {
        mesh.headless_at(workload, dialled.port())
            .find_map(|it| it.waypoint.as_ref())
    };
    let waypoint = workload.waypoint.as_ref().or_else(of_services);
    // Before the waypoint, which would be asked for a port that it must refuse; and before the pod itself, which may
    // not reach our listeners either.
    let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone || waypoint.is_some();
    if in_mesh && is_own_port(dialled.port()) {
        return Err(Refusal::OwnPort(dialled.port()));
    }
    let hairpin = source.uid == workload.uid;
    if let Some(gateway) = waypoint_to_pass(mesh, source, waypoint).filter(|_| !hairpin) {
        return to_waypoint(mesh, source, gateway, Bound::Workload(workload), dialled);
    }
    to_pod(source, workload, dialled, &[]).map(Choice::Only)
}

/// The last hop: to the pod itself, as it is reached.
fn to_pod(
    source: &Workload,
    workload: &Arc<Workload>,
    destination: SocketAddr,
    subject_alt_names: &[SpiffeId],
) -> Result<NextHop, Refusal> {
    let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone;
    // A service may map its port to one of ours; the pod's agent would refuse it anyway.
    if in_mesh && is_own_port(destination.port()) {
        return Err(Refusal::OwnPort(destination.port()));
    }
    // A pod that reaches itself (hairpin) never leaves its namespace: there is no wire to encrypt.
    if !in_mesh || source.uid == workload.uid {
        return Ok(direct(destination, Some(workload.clone())));
    }
    Ok(NextHop::Tunnel(Tunnel {
        addr: SocketAddr::new(destination.ip(), HBONE_PORT),
        authority: destination,
        destination,
        identities: identities(workload, subject_alt_names),
        workload: workload.clone(),
        via_waypoint: false,
    }))
}

/// The waypoint that a connection has to go through: none for the waypoint's own pods, which are on the far side of it.
fn waypoint_to_pass<'a>(
    mesh: &Mesh,
    source: &Workload,
    waypoint: Option<&'a GatewayAddress>,
) -> Option<&'a GatewayAddress> {
    waypoint.filter(|gateway| !is_pod_of(mesh, source, gateway))
}

/// Asked of the workload rather than of the mesh's endpoints: a pod that is not ready is a waypoint's pod all the same.
pub(super) fn is_pod_of(mesh: &Mesh, workload: &Workload, gateway: &GatewayAddress) -> bool {
    match (mesh.gateway_service(gateway), &gateway.destination) {
        (Some(service), _) => workload.services.contains_key(&service.key),
        (None, GatewayDestination::Address(address)) => workload.addresses.contains(address),
        (None, GatewayDestination::Service(_)) => false,
    }
}

/// The pods of a waypoint, one of which is asked for what the app dialled.
fn to_waypoint<'a>(
    mesh: &'a Mesh,
    source: &'a Workload,
    gateway: &'a GatewayAddress,
    bound: Bound<'a>,
    dialled: SocketAddr,
) -> Result<Choice<'a>, Refusal> {
    let port = gateway.hbone_port;
    if let Some(service) = mesh.gateway_service(gateway) {
        return Ok(Choice::Endpoint(Candidates {
            service,
            endpoints: mesh.balanced(&service.key),
            source,
            dialled,
            port,
            waypoint_of: Some(bound),
        }));
    }
    let pod = match &gateway.destination {
        GatewayDestination::Address(address) => mesh.workload_at(*address).filter(|pod| pod.healthy),
        GatewayDestination::Service(_) => None,
    };
    let reached = pod.and_then(|pod| Some((pod, address_like(pod, dialled.ip(), source)?)));
    let (pod, address) = reached.ok_or_else(|| bound.unavailable())?;
    let tunnel = waypoint_tunnel(pod, SocketAddr::new(address, port), &[], dialled);
    Ok(Choice::Only(NextHop::Tunnel(tunnel)))
}

/// A tunnel to one of the waypoint's pods. A waypoint always speaks HBONE.
fn waypoint_tunnel(
    pod: &Arc<Workload>,
    addr: SocketAddr,
    subject_alt_names: &[SpiffeId],
    dialled: SocketAddr,
) -> Tunnel {
    Tunnel {
        addr,
        authority: dialled,
        destination: dialled,
        identities: identities(pod, subject_alt_names),
        workload: pod.clone(),
        via_waypoint: true,
    }
}

fn direct(addr: SocketAddr, workload: Option<Arc<Workload>>) -> NextHop {
    NextHop::Direct { addr, workload }
}

/// The pod's address of the family that was dialled, so that a client of one family never meets the other without
/// need; else any that the client can reach: it must have an address of that family itself.
fn address_like(workload: &Workload, dialled: IpAddr, source: &Workload) -> Option<IpAddr> {
    let of_family = |v4: bool| workload.addresses.iter().find(|address| address.is_ipv4() == v4);
    let other = || {
        let v4 = !dialled.is_ipv4();
        let reachable = source.addresses.iter().any(|address| address.is_ipv4() == v4);
        of_family(v4).filter(|_| reachable)
    };
    of_family(dialled.is_ipv4()).or_else(other).copied()
}

/// What the mesh says the server may be: the pod's own identity, and those that the dialled service adds.
fn identities(workload: &Workload, subject_alt_names: &[SpiffeId]) -> Arc<[SpiffeId]> {
    let others = subject_alt_names.iter().filter(|id| **id != workload.identity);
    std::iter::once(&workload.identity)
        .chain(others)
        .cloned()
        .collect()
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests;
