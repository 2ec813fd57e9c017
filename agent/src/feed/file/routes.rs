//! What waypoints do, as the manifests and the policies of a mesh file say it. The manifests mean what they mean in a cluster
//! (`crate::manifests`); what they say of the objects around them is looked up in the mesh file.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::{compile::Globals, guards::guards, objects::Objects, policies, targets, workloads::Pod};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{
        Authentication, Bound, Diagnostic, Grant, Known, Labels, OfService, Reader, Routings, Severity,
        Surroundings, Targets, authentication, destination_rule, is_routing, link, merged_traffic,
        names_no_host,
    },
    mesh::{GatewayAddress, GatewayDestination, PolicyKey, Service, ServiceKey, http},
};

/// Reads them, notes at the workloads of which subsets they are and whose tokens are believed, and guards those behind waypoints.
pub(super) fn http(
    objects: &Objects,
    globals: &Globals,
    services: &[Service],
    pods: &mut [Pod<'_>],
    policies: &mut policies::Read,
    diagnostics: &mut Vec<Diagnostic>,
) -> http::Parts {
    let traffic = traffic(objects, globals, services, diagnostics);
    subsets(&traffic, pods, diagnostics);
    let around = Around {
        globals,
        services,
        traffic: &traffic,
        objects,
    };
    let routings = routings(objects, &around, diagnostics);
    let authentications: Vec<_> = objects
        .of(Kind::RequestAuthentication)
        .map(|(key, object)| authentication(object, &mut Reader::new(key.clone(), diagnostics)))
        .collect();
    let scopes = Scopes(targets::Around::new(globals, services, pods));
    for pod in pods.iter_mut() {
        pod.workload.authentications = scopes.of_workload(&authentications, pod);
    }
    let mut parts = http::Parts {
        authentications: authentications.iter().map(|it| Arc::clone(&it.value)).collect(),
        ..http::Parts::default()
    };
    let mut targeted = Vec::new();
    let waypoints = waypoints(services, pods);
    for service in services {
        let of_service = traffic.get(&service.key).cloned().unwrap_or_default();
        let is_for =
            |(key, targets): &&(PolicyKey, Targets)| scopes.0.is_for(&key.namespace, targets, service);
        let its: Vec<_> = policies
            .targets
            .iter()
            .filter(is_for)
            .map(|(key, _)| key.clone())
            .collect();
        targeted.extend(its.iter().map(|key| (service.key.clone(), key.clone())));
        let bound = Bound {
            traffic: of_service.traffic,
            policies: its,
            authentications: scopes.of_service(&authentications, service, pods),
            refused: of_service.refused,
            judged: service.waypoint.is_some() || waypoints.contains(&service.key),
        };
        let all = routings.iter().map(|(namespace, its)| (*namespace, its));
        let linked = link(service, all, bound, diagnostics);
        match linked.map(http::Routes::new) {
            Some(Ok(routes)) => parts.routes.push(Arc::new(routes)),
            // What was read can be used. If not, nobody knows what it was to refuse.
            Some(Err(_)) => parts.unreadable.push(service.key.clone()),
            None => {}
        }
    }
    guards(&mut policies.policies, &targeted, services, pods);
    parts
}

/// The services that something is bound to.
fn waypoints(services: &[Service], pods: &[Pod<'_>]) -> BTreeSet<ServiceKey> {
    let of_services = services.iter().filter_map(|service| service.waypoint.as_ref());
    let of_pods = pods.iter().filter_map(|pod| pod.workload.waypoint.as_ref());
    let key = |gateway: &GatewayAddress| match &gateway.destination {
        GatewayDestination::Service(key) => Some(key.clone()),
        GatewayDestination::Address(address) => {
            let has = |service: &&Service| service.vips.contains(address);
            services.iter().find(has).map(|service| service.key.clone())
        }
    };
    of_services.chain(of_pods).filter_map(key).collect()
}

/// What DestinationRules say of each service: those of its own namespace, else the root namespace's.
fn traffic(
    objects: &Objects,
    globals: &Globals,
    services: &[Service],
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<ServiceKey, OfService> {
    let read = objects.of(Kind::DestinationRule).filter_map(|(key, object)| {
        let mut reader = Reader::new(key.clone(), diagnostics);
        destination_rule(object, &globals.cluster_domain, &mut reader)
    });
    let rules: Vec<_> = read.collect();
    let of = |service: &Service| {
        let of_namespace = |namespace: &str| {
            let its = rules.iter().filter(|it| it.object.namespace == namespace);
            merged_traffic(&service.key.hostname, its)
        };
        let own = of_namespace(&service.key.namespace);
        let said = own.or_else(|| of_namespace(&globals.root_namespace))?;
        Some((service.key.clone(), said))
    };
    services.iter().filter_map(of).collect()
}

/// Notes at the workloads of which subsets they are.
fn subsets(
    traffic: &BTreeMap<ServiceKey, OfService>,
    pods: &mut [Pod<'_>],
    diagnostics: &mut Vec<Diagnostic>,
) {
    for (service, said) in traffic {
        for subset in &said.subsets {
            let is_of = |pod: &&mut Pod<'_>| {
                pod.workload.services.contains_key(service) && pod.has_labels(&subset.labels)
            };
            let mut none = true;
            for pod in pods.iter_mut().filter(is_of) {
                pod.workload.subsets.push((service.clone(), subset.name.clone()));
                none = false;
            }
            if none {
                let message = format!(
                    "spec.subsets: {} selects no workload of {service}: compare it with the workloads' labels",
                    subset.name
                );
                let mut reader = Reader::new(subset.object.clone(), diagnostics);
                reader.tell(Severity::Warning, "EmptySubset", message);
            }
        }
    }
    for pod in pods {
        pod.workload.subsets.sort();
    }
}

/// By namespace.
fn routings<'o>(
    objects: &'o Objects,
    around: &Around<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<&'o str, Routings> {
    let mut written: BTreeMap<&str, Vec<(Kind, &Custom)>> = BTreeMap::new();
    for (key, object) in objects.all().filter(|(key, _)| is_routing(key.kind)) {
        let its = written.entry(&key.namespace).or_default();
        its.push((key.kind, object));
    }
    let read = |(namespace, its)| (namespace, Routings::read(its, around, diagnostics));
    written.into_iter().map(read).collect()
}

/// What the objects around an object are: the mesh file's services.
struct Around<'a> {
    globals: &'a Globals,
    services: &'a [Service],
    traffic: &'a BTreeMap<ServiceKey, OfService>,
    objects: &'a Objects,
}

impl Around<'_> {
    fn known(&self, service: &Service) -> Known {
        let said = self.traffic.get(&service.key);
        let subsets = said.iter().flat_map(|it| &it.subsets).map(|it| it.name.clone());
        Known {
            key: service.key.clone(),
            ports: service.ports.iter().map(|port| port.service_port).collect(),
            subsets: subsets.collect(),
            refused: said.is_some_and(|it| it.refused),
        }
    }
}

impl Surroundings for Around<'_> {
    fn cluster_domain(&self) -> &str {
        &self.globals.cluster_domain
    }

    /// A mesh file has no ServiceEntries: whatever has a hostname of its own is a service.
    fn services_of(&self, kind: Kind, namespace: &str, name: &str) -> Vec<Known> {
        let is = |it: &&Service| *it.key.namespace == *namespace && *it.name == *name;
        let found = self.services.iter().filter(is);
        found
            .filter(|_| matches!(kind, Kind::Service | Kind::ServiceEntry))
            .map(|it| self.known(it))
            .collect()
    }

    fn service_at(&self, hostname: &str, from: &str) -> Option<Known> {
        let at = || self.services.iter().filter(|it| *it.key.hostname == *hostname);
        let own = at().find(|it| *it.key.namespace == *from);
        own.or_else(|| at().next()).map(|it| self.known(it))
    }

    fn permits(&self, from: (Kind, &str), to: (Kind, &str, &str)) -> bool {
        let (kind, namespace, name) = to;
        let mut grants = self.objects.of(Kind::ReferenceGrant);
        grants.any(|(key, grant)| key.namespace == namespace && Grant::new(grant).permits(from, (kind, name)))
    }

    fn delegate(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let mut all = self.objects.of(Kind::VirtualService);
        let (_, found) = all.find(|(key, _)| key.namespace == namespace && key.name == name)?;
        names_no_host(&found.spec).then(|| Arc::new(found.spec.clone()))
    }
}

/// For whom a RequestAuthentication is.
struct Scopes<'a>(targets::Around<'a>);

/// The order in which authentications count: those that name it, its namespace's, the mesh's, those that select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Named,
    Namespace,
    Mesh,
    Selected,
}

impl Scopes<'_> {
    /// Those that requests to a service are checked with. A waypoint's own are those that name it.
    fn of_service(&self, all: &[Authentication], service: &Service, pods: &[Pod<'_>]) -> Vec<PolicyKey> {
        let behind = || {
            pods.iter()
                .filter(|pod| pod.workload.services.contains_key(&service.key))
        };
        ordered(all.iter().filter_map(|it| {
            let scope = match &it.selector {
                _ if it.targets.any => {
                    let named = self.0.is_for(&it.object.namespace, &it.targets, service);
                    named.then_some(Scope::Named)
                }
                _ if service.waypoint.is_none() => None,
                Some(labels) => behind()
                    .any(|pod| self.selects(it, labels, pod))
                    .then_some(Scope::Selected),
                None => self.covers(it, &service.key.namespace),
            };
            Some((scope?, it))
        }))
    }

    /// Those that requests to a workload's own address are checked with, where that goes through a waypoint; besides those that
    /// name the waypoint.
    fn of_workload(&self, all: &[Authentication], pod: &Pod<'_>) -> Vec<PolicyKey> {
        if pod.workload.waypoint.is_none() {
            return Vec::new();
        }
        let all = all.iter().filter(|it| !it.targets.any);
        ordered(all.filter_map(|it| {
            let scope = match &it.selector {
                Some(labels) => self.selects(it, labels, pod).then_some(Scope::Selected),
                None => self.covers(it, &pod.workload.namespace),
            };
            Some((scope?, it))
        }))
    }

    /// A selector of the root namespace selects in all namespaces.
    fn selects(&self, it: &Authentication, labels: &Labels, pod: &Pod<'_>) -> bool {
        let namespace = it.object.namespace.as_str();
        let within = namespace == &*self.0.globals.root_namespace || namespace == &*pod.workload.namespace;
        within && pod.has_labels(labels)
    }

    fn covers(&self, it: &Authentication, namespace: &str) -> Option<Scope> {
        if it.object.namespace == *self.0.globals.root_namespace {
            return Some(Scope::Mesh);
        }
        (it.object.namespace == namespace).then_some(Scope::Namespace)
    }
}

fn ordered<'o>(found: impl Iterator<Item = (Scope, &'o Authentication)>) -> Vec<PolicyKey> {
    let found: BTreeSet<_> = found.map(|(scope, it)| (scope, &it.value.key)).collect();
    found.into_iter().map(|(_, key)| key.clone()).collect()
}

#[cfg(test)]
mod tests;
