//! `route`: where an app's connection goes. Pure; the random draw comes in as an argument.
//!
//! Not here: dialling, tunnels, and what the destination's agent says. Called by `node` for every captured connection,
//! and again with another draw when an endpoint could not be reached.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    Endpoint, GatewayAddress, GatewayDestination, HBONE_PORT, Mesh, Outbound, Refusal, Service, SpiffeId,
    TunnelProtocol, Workload, is_own_port,
};

/// The answer of [`route`].
#[derive(Clone, Debug)]
pub struct Route {
    /// The service whose virtual address was dialled.
    pub service: Option<Arc<Service>>,
    /// What is to be done.
    pub next: NextHop,
}

/// What is to be done with a connection.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
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
pub fn route(mesh: &Mesh, conn: &Outbound, draw: u64) -> Route {
    let destination = canonical(conn.destination);
    let source = &conn.source;
    if let Some(service) = mesh.service_at(destination.ip()) {
        let next = to_service(mesh, source, service, destination, draw).unwrap_or_else(NextHop::Refuse);
        return Route {
            service: Some(service.clone()),
            next,
        };
    }
    let next = match mesh.workload_at(destination.ip()) {
        Some(workload) => to_workload(mesh, source, workload, destination, draw),
        None if mesh.is_cluster_address(destination.ip()) => Err(Refusal::UnknownDestination(destination)),
        None => Ok(NextHop::Direct {
            addr: destination,
            workload: None,
        }),
    };
    Route {
        service: None,
        next: next.unwrap_or_else(NextHop::Refuse),
    }
}

/// A virtual address was dialled.
fn to_service(
    mesh: &Mesh,
    source: &Workload,
    service: &Service,
    dialled: SocketAddr,
    draw: u64,
) -> Result<NextHop, Refusal> {
    let port = dialled.port();
    if is_own_port(port) {
        return Err(Refusal::OwnPort(port));
    }
    if !service.ports.iter().any(|mapping| mapping.service_port == port) {
        return Err(Refusal::NoSuchPort(service.key.clone(), port));
    }
    if let Some(gateway) = waypoint_to_pass(mesh, source, service.waypoint.as_ref()) {
        let unavailable = || Refusal::WaypointUnavailable(service.key.to_string());
        return to_waypoint(mesh, gateway, dialled, draw)
            .map(NextHop::Tunnel)
            .ok_or_else(unavailable);
    }
    let endpoints = mesh.endpoints(&service.key);
    let (endpoint, target_port) = pick(endpoints, draw, |e| e.target_port(port))
        .ok_or_else(|| Refusal::NoHealthyEndpoint(service.key.clone()))?;
    let no_address = || Refusal::NoHealthyEndpoint(service.key.clone());
    let address = address_like(&endpoint.workload, dialled.ip()).ok_or_else(no_address)?;
    let destination = SocketAddr::new(address, target_port);
    to_pod(
        source,
        &endpoint.workload,
        destination,
        &service.subject_alt_names,
    )
}

/// A pod's own address was dialled. Its health is not asked: whoever dials a pod means that pod.
fn to_workload(
    mesh: &Mesh,
    source: &Workload,
    workload: &Arc<Workload>,
    dialled: SocketAddr,
    draw: u64,
) -> Result<NextHop, Refusal> {
    // Before the waypoint, which would be asked for a port that it must refuse; and before the pod itself, which may
    // not reach our listeners either.
    let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone || workload.waypoint.is_some();
    if in_mesh && is_own_port(dialled.port()) {
        return Err(Refusal::OwnPort(dialled.port()));
    }
    let hairpin = source.uid == workload.uid;
    if let Some(gateway) = waypoint_to_pass(mesh, source, workload.waypoint.as_ref()).filter(|_| !hairpin) {
        let unavailable = || Refusal::WaypointUnavailable(workload.namespaced_name());
        return to_waypoint(mesh, gateway, dialled, draw)
            .map(NextHop::Tunnel)
            .ok_or_else(unavailable);
    }
    to_pod(source, workload, dialled, &[])
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
        return Ok(NextHop::Direct {
            addr: destination,
            workload: Some(workload.clone()),
        });
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
fn is_pod_of(mesh: &Mesh, workload: &Workload, gateway: &GatewayAddress) -> bool {
    match (mesh.gateway_service(gateway), &gateway.destination) {
        (Some(service), _) => workload.services.contains_key(&service.key),
        (None, GatewayDestination::Address(address)) => workload.addresses.contains(address),
        (None, GatewayDestination::Service(_)) => false,
    }
}

/// A tunnel to one of the waypoint's pods, which is asked for what the app dialled. A waypoint always speaks HBONE.
fn to_waypoint(mesh: &Mesh, gateway: &GatewayAddress, dialled: SocketAddr, draw: u64) -> Option<Tunnel> {
    let service = mesh.gateway_service(gateway);
    let (pod, port) = match (service, &gateway.destination) {
        (Some(service), _) => {
            let port = |endpoint: &Endpoint| {
                endpoint
                    .target_port(gateway.hbone_port)
                    .or(Some(gateway.hbone_port))
            };
            let (endpoint, port) = pick(mesh.endpoints(&service.key), draw, port)?;
            (&endpoint.workload, port)
        }
        (None, GatewayDestination::Address(address)) => (
            mesh.workload_at(*address).filter(|pod| pod.healthy)?,
            gateway.hbone_port,
        ),
        (None, GatewayDestination::Service(_)) => return None,
    };
    Some(Tunnel {
        addr: SocketAddr::new(address_like(pod, dialled.ip())?, port),
        authority: dialled,
        destination: dialled,
        identities: identities(pod, service.map_or(&[], |service| &service.subject_alt_names)),
        workload: pod.clone(),
        via_waypoint: true,
    })
}

/// Chooses an endpoint that has the port: the one that the draw names, or else the next. Every endpoint is as good as
/// any other; which is nearer is not asked yet.
fn pick(
    endpoints: &[Endpoint],
    draw: u64,
    port: impl Fn(&Endpoint) -> Option<u16>,
) -> Option<(&Endpoint, u16)> {
    let first = draw.checked_rem(endpoints.len() as u64)? as usize;
    let (before, from) = endpoints.split_at_checked(first)?;
    from.iter()
        .chain(before)
        .find_map(|endpoint| Some((endpoint, port(endpoint)?)))
}

/// The pod's address of the family that was dialled, so that a client of one family never meets the other without
/// need; else any that it has.
fn address_like(workload: &Workload, dialled: IpAddr) -> Option<IpAddr> {
    let same_family = |address: &&IpAddr| address.is_ipv4() == dialled.is_ipv4();
    workload
        .addresses
        .iter()
        .find(same_family)
        .or(workload.addresses.first())
        .copied()
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
