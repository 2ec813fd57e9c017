//! The mesh's names: what a hostname that a pod looks up stands for. Pure; the messages are `dns`'s.
//!
//! Hostnames are kept and asked in lower case and without a last dot. One that is asked may be a hostname of the mesh,
//! may be covered by a wildcard (`*.example.com`, the longest that fits), may be the short form of a service's
//! hostname, or may be any of these with one of a pod's search domains behind it.

use std::{net::IpAddr, sync::Arc};

use rustc_hash::FxHashMap;

use super::{BalancingMode, Mesh, Service, Workload};

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Lookup<'a> {
    /// In lower case, without a last dot.
    pub hostname: &'a str,
    /// Of which families addresses are wanted.
    pub wanted: Wanted,
    /// Any number: another one turns the addresses of a service without virtual address around.
    pub draw: u64,
}

/// Which addresses are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// IPv4 (A).
    V4,
    /// IPv6 (AAAA).
    V6,
    /// All there are (ANY).
    Both,
    /// None: something else is asked of the name.
    Nothing,
}

impl Wanted {
    fn includes(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Both => true,
            Self::Nothing => false,
        }
    }
}

/// What the mesh says of a hostname that it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host<'a> {
    /// The hostname without the search domain that was behind it; the one that was asked where there was none.
    pub hostname: &'a str,
    /// The service's hostname, of a wildcard the part behind the star: the zone that the answer is about.
    pub zone: &'a str,
    /// The addresses that are wanted; none where the service has none of the family.
    pub addresses: Vec<IpAddr>,
}

/// The services by hostname.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    hosts: FxHashMap<Arc<str>, Vec<Arc<Service>>>,
    /// By what stands behind `*.`.
    wildcards: FxHashMap<Arc<str>, Vec<Arc<Service>>>,
}

impl Names {
    pub(super) fn new(services: &[Arc<Service>]) -> Self {
        let mut names = Self::default();
        for service in services.iter().filter(|service| has_answer(service)) {
            let hostname = service.key.hostname.to_ascii_lowercase();
            let hostname = hostname.trim_end_matches('.');
            let (table, hostname) = match hostname.strip_prefix("*.") {
                Some(zone) => (&mut names.wildcards, zone),
                None => (&mut names.hosts, hostname),
            };
            table
                .entry(hostname.into())
                .or_default()
                .push(Arc::clone(service));
        }
        let tables = names.hosts.values_mut().chain(names.wildcards.values_mut());
        // Several namespaces may have one: which comes first must not depend on the order of a feed.
        tables.for_each(|services| services.sort_by(|a, b| a.key.cmp(&b.key)));
        names
    }

    /// The services of this hostname, and their zone in it.
    pub(super) fn find<'a>(&self, hostname: &'a str) -> Option<(&[Arc<Service>], &'a str)> {
        if let Some(services) = self.hosts.get(hostname) {
            return Some((services, hostname));
        }
        let dots = hostname.match_indices('.');
        dots.map(|(dot, _)| &hostname[dot + 1..])
            .find_map(|zone| Some((self.wildcards.get(zone)?.as_slice(), zone)))
    }
}

/// A service that leads to whatever was dialled has no endpoints to answer with: where its hosts are, other servers know.
fn has_answer(service: &Service) -> bool {
    !service.vips.is_empty() || service.load_balancing.mode != BalancingMode::Passthrough
}

/// What a hostname stands for, to a pod of `client`'s namespace; `None` for one that is not the mesh's.
pub fn resolve<'a>(mesh: &Mesh, lookup: &Lookup<'a>, client: &Workload) -> Option<Host<'a>> {
    let (hostname, zone, services) = find(mesh, lookup.hostname, &client.namespace)?;
    let own = services
        .iter()
        .find(|service| service.key.namespace == client.namespace);
    let service = own.or(services.first())?;
    Some(Host {
        hostname,
        zone,
        addresses: addresses(mesh, service, lookup),
    })
}

/// The hostname as it stands, or else without the first search domain that leaves one of the mesh's: as Kubernetes
/// writes them into a pod's resolv.conf.
fn find<'m, 'a>(
    mesh: &'m Mesh,
    hostname: &'a str,
    namespace: &str,
) -> Option<(&'a str, &'a str, &'m [Arc<Service>])> {
    let long = || long_form(mesh, hostname, namespace);
    if let Some((services, zone)) = find_plain(mesh, hostname, long) {
        return Some((hostname, zone, services));
    }
    let of_cluster = hostname
        .strip_suffix(mesh.cluster_domain())
        .and_then(|rest| rest.strip_suffix('.'))?;
    let of_services = of_cluster.strip_suffix(".svc");
    let of_namespace = of_services.and_then(|rest| rest.strip_suffix(namespace)?.strip_suffix('.'));
    let stripped = [of_namespace, of_services, Some(of_cluster)];
    stripped.into_iter().flatten().find_map(|hostname| {
        // A single label has no namespace any more: the search domain that was behind it was another's.
        let long = || long_form(mesh, hostname, namespace).filter(|_| hostname.contains('.'));
        let (services, zone) = find_plain(mesh, hostname, long)?;
        Some((hostname, zone, services))
    })
}

/// A hostname of the mesh, or the short form of one, and the services and the zone that it has.
fn find_plain<'m, 'a>(
    mesh: &'m Mesh,
    hostname: &'a str,
    long: impl FnOnce() -> Option<String>,
) -> Option<(&'m [Arc<Service>], &'a str)> {
    let names = mesh.names();
    names.find(hostname).or_else(|| {
        let services = names.hosts.get(long()?.as_str())?;
        Some((services.as_slice(), hostname))
    })
}

/// The hostname that a short form stands for which no public name can have: `cart` is the service of the pod's own
/// namespace, `cart.shop.svc` that of another. (`cart.shop` alone might be a host of the Internet.)
fn long_form(mesh: &Mesh, hostname: &str, namespace: &str) -> Option<String> {
    let domain = mesh.cluster_domain();
    if !hostname.contains('.') {
        Some(format!("{hostname}.{namespace}.svc.{domain}"))
    } else if hostname.ends_with(".svc") {
        Some(format!("{hostname}.{domain}"))
    } else {
        None
    }
}

/// A service's virtual addresses; without any, those of the pods behind it, of which each comes first in turn.
fn addresses(mesh: &Mesh, service: &Service, lookup: &Lookup<'_>) -> Vec<IpAddr> {
    let wanted =
        |address: &IpAddr| lookup.wanted.includes(*address) && service.ip_families.includes(*address);
    if !service.vips.is_empty() {
        return service.vips.iter().copied().filter(wanted).collect();
    }
    let endpoints = mesh.endpoints(&service.key).iter();
    let pods = endpoints.flat_map(|endpoint| &endpoint.workload.addresses);
    let mut addresses: Vec<_> = pods.copied().filter(wanted).collect();
    if let Some(first) = lookup.draw.checked_rem(addresses.len() as u64) {
        addresses.rotate_left(first as usize);
    }
    addresses
}

#[cfg(test)]
mod tests;
