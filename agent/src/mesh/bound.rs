//! What a tunnel to a waypoint asks for: a service or a workload that is bound to this waypoint. Pure; called by `waypoint`.
//!
//! A waypoint leads nowhere else: it is no open proxy, whoever asks.

use std::{net::SocketAddr, sync::Arc};

use super::{
    Mesh, PolicyKey, Refusal, Service, Workload,
    http::{Routes, ServiceRoutes},
    is_own_port,
    route::is_pod_of,
};

/// What is asked for, as the CONNECT names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought<'a> {
    /// An address of a service or a pod.
    Addr(SocketAddr),
    /// A service's hostname, in lower case, and its port.
    Host(&'a str, u16),
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A port of a service.
    Service {
        /// Which.
        service: Arc<Service>,
        /// The service's port.
        port: u16,
    },
    /// A port of a pod that was dialled by its own address.
    Workload {
        /// Which.
        workload: Arc<Workload>,
        /// Its address and port.
        addr: SocketAddr,
        /// A service without virtual address, whose clients dial its pods, and its port: what is said of it holds.
        of: Option<(Arc<Service>, u16)>,
    },
}

impl Bound {
    /// The service, where it is of one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service { service, .. } => Some(service),
            Self::Workload { of, .. } => of.as_ref().map(|(service, _)| service),
        }
    }

    /// The port that is meant: the service's where it is of one.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service { port, .. }
            | Self::Workload {
                of: Some((_, port)), ..
            } => *port,
            Self::Workload { addr, of: None, .. } => addr.port(),
        }
    }
}

/// What a waypoint asks of whoever goes there, besides what it asks for the workload that is chosen in the end.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// What is done with requests to the service, where it is of one.
    pub routes: Option<Arc<Routes>>,
    /// The policies that name the service, the waypoint or its class.
    pub policies: Vec<PolicyKey>,
    /// Whose tokens are believed.
    pub authentications: Vec<PolicyKey>,
}

impl Demands {
    fn add(&mut self, routes: &ServiceRoutes) {
        push_new(&mut self.policies, &routes.policies);
        push_new(&mut self.authentications, &routes.authentications);
    }
}

fn push_new(keys: &mut Vec<PolicyKey>, more: &[PolicyKey]) {
    for key in more {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
}

impl Bound {
    /// What is asked of whoever goes there. The feed says something, if only that it is nothing, of every service that is
    /// bound to a waypoint, and of the waypoint's own, whose demands are those on whoever dials a workload itself.
    ///
    /// # Errors
    /// Where it has not arrived or cannot be read: nobody knows then what is to be refused.
    pub fn demands(&self, mesh: &Mesh) -> Result<Demands, Refusal> {
        let mut demands = Demands::default();
        if let Some(service) = self.service() {
            let routes = said_of(mesh, service)?;
            demands.add(routes.values());
            demands.routes = Some(Arc::clone(routes));
        }
        if let Self::Workload { workload, .. } = self {
            let gateway = workload.waypoint.as_ref();
            let gateway = gateway.or_else(|| self.service()?.waypoint.as_ref());
            if let Some(own) = gateway.and_then(|gateway| mesh.gateway_service(gateway)) {
                demands.add(said_of(mesh, own)?.values());
            }
            push_new(&mut demands.authentications, &workload.authentications);
        }
        Ok(demands)
    }
}

fn said_of<'m>(mesh: &'m Mesh, service: &Service) -> Result<&'m Arc<Routes>, Refusal> {
    let routes = mesh.usable_routes(&service.key)?;
    routes.ok_or_else(|| Refusal::RoutesMissing(service.key.clone()))
}

/// What a waypoint whose own pod is `waypoint` is asked for.
///
/// # Errors
/// [`Refusal::NotThisWorkload`] for what is not bound to it, [`Refusal::OwnPort`], and [`Refusal::NoSuchPort`].
pub fn bound(mesh: &Mesh, waypoint: &Workload, sought: Sought<'_>) -> Result<Bound, Refusal> {
    match sought {
        Sought::Host(hostname, port) => by_name(mesh, waypoint, hostname, port),
        Sought::Addr(addr) => {
            let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
            by_address(mesh, waypoint, addr)
        }
    }
}

fn by_name(mesh: &Mesh, waypoint: &Workload, hostname: &str, port: u16) -> Result<Bound, Refusal> {
    let named = mesh
        .names()
        .find(hostname)
        .map_or(&[][..], |(services, _)| services);
    let mine = named.iter().find(|service| is_bound(mesh, waypoint, service));
    let service = mine.ok_or_else(|| Refusal::NotThisWorkload(format!("{hostname}:{port}")))?;
    port_of(service, port)
}

fn by_address(mesh: &Mesh, waypoint: &Workload, addr: SocketAddr) -> Result<Bound, Refusal> {
    let elsewhere = || Refusal::NotThisWorkload(addr.to_string());
    if let Some(service) = mesh.service_at(addr.ip()) {
        if !is_bound(mesh, waypoint, service) {
            return Err(elsewhere());
        }
        return port_of(service, addr.port());
    }
    let workload = mesh.workload_at(addr.ip()).ok_or_else(elsewhere)?;
    if is_own_port(addr.port()) {
        return Err(Refusal::OwnPort(addr.port()));
    }
    let own = workload.waypoint.as_ref();
    let is_own = own.is_some_and(|gateway| is_pod_of(mesh, waypoint, gateway));
    let mut headless = mesh.headless_at(workload, addr.port());
    let service = headless.find(|service| is_bound(mesh, waypoint, service));
    if !is_own && service.is_none() {
        return Err(elsewhere());
    }
    Ok(Bound::Workload {
        workload: Arc::clone(workload),
        addr,
        of: service.map(|service| (Arc::clone(service), service_port(workload, service, addr.port()))),
    })
}

/// The service's port that leads to this one of the workload.
fn service_port(workload: &Workload, service: &Service, port: u16) -> u16 {
    let mapped = workload.services.get(&service.key).into_iter().flatten();
    let mut mappings = mapped.chain(&service.ports);
    let mapping = mappings.find(|mapping| mapping.target_port == port);
    mapping.map_or(port, |mapping| mapping.service_port)
}

fn is_bound(mesh: &Mesh, waypoint: &Workload, service: &Service) -> bool {
    let gateway = service.waypoint.as_ref();
    gateway.is_some_and(|gateway| is_pod_of(mesh, waypoint, gateway))
}

fn port_of(service: &Arc<Service>, port: u16) -> Result<Bound, Refusal> {
    if is_own_port(port) {
        return Err(Refusal::OwnPort(port));
    }
    if !service.ports.iter().any(|mapping| mapping.service_port == port) {
        return Err(Refusal::NoSuchPort(service.key.clone(), port));
    }
    Ok(Bound::Service {
        service: Arc::clone(service),
        port,
    })
}
