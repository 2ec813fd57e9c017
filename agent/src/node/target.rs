//! What an inbound connection asks for: which port of this pod, and through which service. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::pod::Pod;
use crate::{
    hbone::Authority,
    mesh::{Mesh, Refusal, Service, ServiceKey, Workload, is_own_port},
};

/// A port of the pod, and the service that was dialled where it is known.
pub(super) struct Target {
    pub(super) addr: SocketAddr,
    pub(super) service: Option<Arc<Service>>,
}

/// Where a CONNECT leads: to this pod, by its address or by a service that it backs; nowhere else, and not to ourselves.
/// `host` is the service that the other agent says was dialled: it is believed for telemetry only, and only where the
/// pod backs that service. The client's address tells which of the pod's addresses will do.
pub(super) fn of_authority(
    mesh: &Mesh,
    workload: &Workload,
    pod: &Pod,
    authority: &Authority,
    (client, host): (IpAddr, Option<&str>),
) -> Result<Target, Refusal> {
    let elsewhere = || Refusal::NotThisWorkload(authority.to_string());
    let (key, port) = match authority {
        Authority::Host(host, port) => (backed(workload, host), *port),
        Authority::Addr(addr) => {
            let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            if is_own_port(addr.port()) {
                return Err(Refusal::OwnPort(addr.port()));
            }
            if pod.addresses.contains(&addr.ip()) && can_show(addr.ip(), client) {
                let service = of_port(mesh, workload, addr.port(), host);
                return Ok(Target { addr, service });
            }
            let service = mesh.service_at(addr.ip());
            let backed = service.filter(|service| workload.services.contains_key(&service.key));
            (backed.map(|service| &service.key), addr.port())
        }
    };
    through_service(mesh, workload, pod, key.ok_or_else(elsewhere)?, (client, port))
}

/// Whether an app that is dialled at `address` can be shown `client` as its peer: IPv4 fits into an IPv6 socket's
/// address, not the other way round.
fn can_show(address: IpAddr, client: IpAddr) -> bool {
    client.is_ipv4() || address.is_ipv6()
}

/// The pod's own port behind a service's.
fn through_service(
    mesh: &Mesh,
    workload: &Workload,
    pod: &Pod,
    key: &ServiceKey,
    (client, port): (IpAddr, u16),
) -> Result<Target, Refusal> {
    let endpoint = mesh
        .endpoints(key)
        .iter()
        .find(|endpoint| endpoint.workload.uid == workload.uid);
    let target = endpoint.and_then(|endpoint| endpoint.target_port(port));
    let port = target.ok_or_else(|| Refusal::NoSuchPort(key.clone(), port))?;
    if is_own_port(port) {
        return Err(Refusal::OwnPort(port));
    }
    let fits = |address: &&IpAddr| can_show(**address, client);
    let same_family = pod
        .addresses
        .iter()
        .find(|address| address.is_ipv4() == client.is_ipv4());
    let address = same_family
        .or_else(|| pod.addresses.iter().find(fits))
        .ok_or(Refusal::UnknownWorkload)?;
    Ok(Target {
        addr: SocketAddr::new(*address, port),
        service: mesh.service(key).cloned(),
    })
}

/// The service that leads to a port of the workload: the one that was named, or the only one that does.
pub(super) fn of_port(
    mesh: &Mesh,
    workload: &Workload,
    port: u16,
    host: Option<&str>,
) -> Option<Arc<Service>> {
    let named = host.and_then(|host| backed(workload, host));
    let leads = |key: &&ServiceKey| {
        workload.services[*key]
            .iter()
            .any(|mapping| mapping.target_port == port)
    };
    let key = named.or_else(|| {
        let mut leading = workload.services.keys().filter(leads);
        leading.next().filter(|_| leading.next().is_none())
    });
    mesh.service(key?).cloned()
}

fn backed<'a>(workload: &'a Workload, host: &str) -> Option<&'a ServiceKey> {
    workload
        .services
        .keys()
        .find(|key| key.hostname.eq_ignore_ascii_case(host))
}
