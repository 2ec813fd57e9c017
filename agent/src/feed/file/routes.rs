//! What waypoints do, as the manifests and the policies of a mesh file say it. The manifests mean what they mean in a cluster
//! (`crate::manifests`); what they say of the objects around them is looked up in the mesh file.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::{compile::Globals, objects::Objects, policies, problem::Problems, workloads::Pod};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{
        Authentication, Bound, Diagnostic, Known, Labels, OfService, Reader, Routings, Severity,
        Surroundings, TargetKind, authentication, destination_rule, is_routing, link, merged_traffic, there,
    },
    mesh::{PolicyKey, Service, ServiceKey, http},
};

/// Reads them, and notes at the workloads of which subsets they are and whose tokens are believed.
pub(super) fn http(
    objects: &Objects,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    services: &[Service],
    targeted: &[(ServiceKey, PolicyKey)],
    problems: &mut Problems,
) -> http::Parts {
    let mut diagnostics = Vec::new();
    let traffic = traffic(objects, globals, services, &mut diagnostics);
    subsets(&traffic, pods, &mut diagnostics);
    let around = Around {
        globals,
        services,
        traffic: &traffic,
        objects,
    };
    let routings = routings(objects, &around, &mut diagnostics);
    let authentications: Vec<_> = objects
        .of(Kind::RequestAuthentication)
        .map(|(key, object)| authentication(object, &mut Reader::new(key.clone(), &mut diagnostics)))
        .collect();
    let scopes = Scopes { globals, services };
    for pod in pods.iter_mut() {
        pod.workload.authentications = scopes.of_workload(&authentications, pod);
    }
    let mut parts = http::Parts {
        authentications: authentications.iter().map(|it| Arc::clone(&it.value)).collect(),
        ..http::Parts::default()
    };
    for service in services {
        let of_service = traffic.get(&service.key).cloned().unwrap_or_default();
        let its = targeted.iter().filter(|(key, _)| *key == service.key);
        let bound = Bound {
            traffic: of_service.traffic,
            policies: its.map(|(_, policy)| policy.clone()).collect(),
            authentications: scopes.of_service(&authentications, service, pods),
            refused: of_service.refused,
        };
        let all = routings.iter().map(|(namespace, its)| (*namespace, its));
        let linked = link(service, all, bound, &mut diagnostics);
        match linked.map(http::Routes::new) {
            Some(Ok(routes)) => parts.routes.push(Arc::new(routes)),
            Some(Err(error)) => {
                problems.add_of_file(format!("the routes of {} cannot be used: {error}", service.key))
            }
            None => {}
        }
    }
    objects.tell(diagnostics, problems);
    parts
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
        let grants = self.objects.of(Kind::ReferenceGrant);
        let mut grants = grants.filter(|(key, _)| key.namespace == namespace);
        grants.any(|(_, grant)| grants_from(grant, from) && grants_to(grant, kind, name))
    }
}

fn grants_from(grant: &Custom, (kind, namespace): (Kind, &str)) -> bool {
    items(grant, "from").any(|it| is_kind(it, kind) && text(it, "namespace") == namespace)
}

fn grants_to(grant: &Custom, kind: Kind, name: &str) -> bool {
    items(grant, "to")
        .any(|it| is_kind(it, kind) && (there(it, "name").is_none() || text(it, "name") == name))
}

fn items<'g>(grant: &'g Custom, field: &str) -> impl Iterator<Item = &'g Value> {
    let list = there(&grant.spec, field).and_then(Value::as_array);
    list.into_iter().flatten()
}

fn is_kind(value: &Value, kind: Kind) -> bool {
    (text(value, "group"), text(value, "kind")) == (kind.group(), kind.kind())
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    there(value, field).and_then(Value::as_str).unwrap_or_default()
}

/// For whom a RequestAuthentication is.
struct Scopes<'a> {
    globals: &'a Globals,
    services: &'a [Service],
}

/// The order in which authentications count: those that name it, its namespace's, the mesh's, those that select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Named,
    Namespace,
    Mesh,
    Selected,
}

impl Scopes<'_> {
    /// Those that requests to a service are checked with.
    fn of_service(&self, all: &[Authentication], service: &Service, pods: &[Pod<'_>]) -> Vec<PolicyKey> {
        let behind: Vec<_> = pods
            .iter()
            .filter(|pod| pod.workload.services.contains_key(&service.key))
            .collect();
        ordered(all.iter().filter_map(|it| {
            let scope = if it.targets.any {
                self.names(it, service).then_some(Scope::Named)
            } else if let Some(labels) = &it.selector {
                let selects = |pod: &&Pod<'_>| self.selects(it, labels, pod);
                behind.iter().any(selects).then_some(Scope::Selected)
            } else {
                self.covers(it, &service.key.namespace)
            };
            Some((scope?, it))
        }))
    }

    /// Those that requests to a workload's own address are checked with, where that goes through a waypoint.
    fn of_workload(&self, all: &[Authentication], pod: &Pod<'_>) -> Vec<PolicyKey> {
        let Some(waypoint) = &pod.workload.waypoint else {
            return Vec::new();
        };
        let waypoint = policies::waypoint_service(waypoint, self.services);
        ordered(all.iter().filter_map(|it| {
            let scope = if it.targets.any {
                let named = waypoint.is_some_and(|waypoint| is_target(it, TargetKind::Gateway, waypoint));
                named.then_some(Scope::Named)
            } else if let Some(labels) = &it.selector {
                self.selects(it, labels, &pod).then_some(Scope::Selected)
            } else {
                self.covers(it, &pod.workload.namespace)
            };
            Some((scope?, it))
        }))
    }

    fn names(&self, it: &Authentication, service: &Service) -> bool {
        let waypoint = service.waypoint.as_ref();
        let waypoint = waypoint.and_then(|it| policies::waypoint_service(it, self.services));
        is_target(it, TargetKind::Service, service)
            || is_target(it, TargetKind::ServiceEntry, service)
            || waypoint.is_some_and(|waypoint| is_target(it, TargetKind::Gateway, waypoint))
    }

    /// A selector of the root namespace selects in all namespaces.
    fn selects(&self, it: &Authentication, labels: &Labels, pod: &Pod<'_>) -> bool {
        let namespace = it.object.namespace.as_str();
        let within = namespace == &*self.globals.root_namespace || namespace == &*pod.workload.namespace;
        within && pod.has_labels(labels)
    }

    fn covers(&self, it: &Authentication, namespace: &str) -> Option<Scope> {
        if it.object.namespace == *self.globals.root_namespace {
            return Some(Scope::Mesh);
        }
        (it.object.namespace == namespace).then_some(Scope::Namespace)
    }
}

fn is_target(it: &Authentication, kind: TargetKind, service: &Service) -> bool {
    it.object.namespace == *service.key.namespace && it.targets.contains(kind, &service.name)
}

fn ordered<'o>(found: impl Iterator<Item = (Scope, &'o Authentication)>) -> Vec<PolicyKey> {
    let found: BTreeSet<_> = found.map(|(scope, it)| (scope, &it.value.key)).collect();
    found.into_iter().map(|(_, key)| key.clone()).collect()
}
