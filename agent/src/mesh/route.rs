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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The service whose virtual address was dialled.
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
    ask(mesh, conn).1.map_or(1, |choice| choice.count())
}

/// What the mesh says before the draw: the service that was dialled, and what there is to choose from.
fn ask<'a>(mesh: &'a Mesh, conn: &'a Outbound) -> (Option<&'a Arc<Service>>, Result<Choice<'a>, Refusal>) {
    let destination = canonical(conn.destination);
    let source = &conn.source;
    if let Some(service) = mesh.service_at(destination.ip()) {
        return (Some(service), to_service(mesh, source, service, destination));
    }
    let choice = match mesh.workload_at(destination.ip()) {
        Some(workload) => to_workload(mesh, source, workload, destination),
        None if mesh.is_cluster_address(destination.ip()) => Err(Refusal::UnknownDestination(destination)),
        None => Ok(Choice::Only(NextHop::Direct {
            addr: destination,
            workload: None,
        })),
    };
    (None, choice)
}

/// What a draw decides.
enum Choice<'a> {
    /// Nothing.
    Only(NextHop),
    /// Which endpoint of the service that was dialled.
    Endpoint {
        source: &'a Workload,
        service: &'a Service,
        candidates: Candidates<'a>,
        dialled: SocketAddr,
    },
    /// Which pod of the waypoint's service.
    Waypoint {
        service: &'a Service,
        candidates: Candidates<'a>,
        dialled: SocketAddr,
    },
}

impl Choice<'_> {
    fn count(&self) -> u64 {
        match self {
            Self::Only(_) => 1,
            Self::Endpoint { candidates, .. } | Self::Waypoint { candidates, .. } => candidates.count(),
        }
    }

    fn take(self, draw: u64) -> Result<NextHop, Refusal> {
        match self {
            Self::Only(next) => Ok(next),
            Self::Endpoint {
                source,
                service,
                candidates,
                dialled,
            } => {
                let (pod, address) = candidates.pick(draw, dialled.ip())?;
                to_pod(source, pod, address, &service.subject_alt_names)
            }
            Self::Waypoint {
                service,
                candidates,
                dialled,
            } => {
                let (pod, address) = candidates.pick(draw, dialled.ip())?;
                let tunnel = waypoint_tunnel(pod, address, &service.subject_alt_names, dialled);
                Ok(NextHop::Tunnel(tunnel))
            }
        }
    }
}

/// The endpoints of a service that a draw chooses from.
struct Candidates<'a> {
    service: &'a Service,
    endpoints: &'a [Endpoint],
    /// The port that is asked of them.
    port: u16,
    /// Its target port where an endpoint does not map it; none: such an endpoint is not chosen.
    unmapped: Option<u16>,
}

impl<'a> Candidates<'a> {
    /// Nothing where no endpoint has the port.
    fn new(mesh: &'a Mesh, service: &'a Service, port: u16, unmapped: Option<u16>) -> Option<Self> {
        let candidates = Self {
            service,
            endpoints: mesh.endpoints(&service.key),
            port,
            unmapped,
        };
        let any = candidates
            .endpoints
            .iter()
            .any(|endpoint| candidates.target_port(endpoint).is_some());
        any.then_some(candidates)
    }

    fn count(&self) -> u64 {
        self.endpoints.len() as u64
    }

    /// The endpoint that the draw names, or else the next that has the port. Every endpoint is as good as any other; which
    /// is nearer is not asked yet.
    fn pick(&self, draw: u64, like: IpAddr) -> Result<(&'a Arc<Workload>, SocketAddr), Refusal> {
        let chosen = draw.checked_rem(self.count()).and_then(|first| {
            let (before, from) = self.endpoints.split_at_checked(first as usize)?;
            from.iter().chain(before).find_map(|endpoint| {
                let address = address_like(&endpoint.workload, like)?;
                let address = SocketAddr::new(address, self.target_port(endpoint)?);
                Some((&endpoint.workload, address))
            })
        });
        chosen.ok_or_else(|| Refusal::NoHealthyEndpoint(self.service.key.clone()))
    }

    fn target_port(&self, endpoint: &Endpoint) -> Option<u16> {
        endpoint.target_port(self.port).or(self.unmapped)
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
        let unavailable = || Refusal::WaypointUnavailable(service.key.to_string());
        return to_waypoint(mesh, gateway, dialled).ok_or_else(unavailable);
    }
    let candidates = Candidates::new(mesh, service, port, None)
        .ok_or_else(|| Refusal::NoHealthyEndpoint(service.key.clone()))?;
    Ok(Choice::Endpoint {
        source,
        service,
        candidates,
        dialled,
    })
}

/// A pod's own address was dialled. Its health is not asked: whoever dials a pod means that pod.
fn to_workload<'a>(
    mesh: &'a Mesh,
    source: &'a Workload,
    workload: &'a Arc<Workload>,
    dialled: SocketAddr,
) -> Result<Choice<'a>, Refusal> {
    // Before the waypoint, which would be asked for a port that it must refuse; and before the pod itself, which may
    // not reach our listeners either.
    let in_mesh = workload.tunnel_protocol == TunnelProtocol::Hbone || workload.waypoint.is_some();
    if in_mesh && is_own_port(dialled.port()) {
        return Err(Refusal::OwnPort(dialled.port()));
    }
    let hairpin = source.uid == workload.uid;
    if let Some(gateway) = waypoint_to_pass(mesh, source, workload.waypoint.as_ref()).filter(|_| !hairpin) {
        let unavailable = || Refusal::WaypointUnavailable(workload.namespaced_name());
        return to_waypoint(mesh, gateway, dialled).ok_or_else(unavailable);
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
pub(super) fn is_pod_of(mesh: &Mesh, workload: &Workload, gateway: &GatewayAddress) -> bool {
    match (mesh.gateway_service(gateway), &gateway.destination) {
        (Some(service), _) => workload.services.contains_key(&service.key),
        (None, GatewayDestination::Address(address)) => workload.addresses.contains(address),
        (None, GatewayDestination::Service(_)) => false,
    }
}

/// The pods of a waypoint, one of which is asked for what the app dialled; nothing where there is none.
fn to_waypoint<'a>(mesh: &'a Mesh, gateway: &'a GatewayAddress, dialled: SocketAddr) -> Option<Choice<'a>> {
    let port = gateway.hbone_port;
    match (mesh.gateway_service(gateway), &gateway.destination) {
        (Some(service), _) => Some(Choice::Waypoint {
            service,
            candidates: Candidates::new(mesh, service, port, Some(port))?,
            dialled,
        }),
        (None, GatewayDestination::Address(address)) => {
            let pod = mesh.workload_at(*address).filter(|pod| pod.healthy)?;
            let address = SocketAddr::new(address_like(pod, dialled.ip())?, port);
            let tunnel = waypoint_tunnel(pod, address, &[], dialled);
            Some(Choice::Only(NextHop::Tunnel(tunnel)))
        }
        (None, GatewayDestination::Service(_)) => None,
    }
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
