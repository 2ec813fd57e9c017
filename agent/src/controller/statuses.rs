//! PURE. What the status of each object is to say: whether it is in force, at agents and at waypoints, and why not. Made from what
//! `compile` says, the same that events say; `conditions` writes it. A Gateway's status is `waypoints`'.

use std::collections::{BTreeMap, BTreeSet};

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::Value;

use super::{
    compile::{Compiler, Diagnostic, ObjectRef, Resources, Settings, Severity},
    conditions::{Condition, Parent, Status},
};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind, ObjectMeta},
    },
    mesh::{GatewayAddress, GatewayDestination, PolicyKey, Service, ServiceKey, TunnelProtocol, Workload},
};

mod captured;
mod hosts;
#[cfg(test)]
mod tests;

use captured::captured;
use hosts::of_hosts;

/// What agents do about a policy.
const AT_AGENTS: &str = "ZtunnelAccepted";
/// What waypoints do about it.
const AT_WAYPOINTS: &str = "WaypointAccepted";
/// What `compile` says where an agent does not see all that a policy asks for.
const UNSEEN: &str = "NeedsWaypoint";
/// What is told of one object, at most.
const MOST_TOLD: usize = 5;

const ROUTES: [Kind; 4] = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute];

/// Every status that is ours to say, by object.
pub(super) fn statuses(compiler: &Compiler, diagnostics: &[Diagnostic]) -> BTreeMap<ObjectRef, Status> {
    let view = View::new(compiler, diagnostics);
    let mut statuses = BTreeMap::new();
    for (kind, said) in BY_KIND {
        for (object, it) in view.customs(kind) {
            let conditions = said(&view, &object, it);
            statuses.insert(object, Status::Conditions(conditions));
        }
    }
    for service in view.resources.services() {
        let object = ObjectRef::new(Kind::Service, &service.metadata);
        let conditions: Vec<_> = view
            .bound_service(&object, &service.metadata)
            .into_iter()
            .collect();
        // Nothing is to be said of most, and it is looked at only where something was.
        if !conditions.is_empty() || !service.status.conditions.is_empty() {
            statuses.insert(object, Status::Conditions(conditions));
        }
    }
    for (object, it) in view.customs(Kind::ServiceEntry) {
        let bound = view.bound_entry(&object, it);
        // Its waypoint looks up names.
        let others = bound.as_ref().map_or(&[][..], |_| &["NoAddress"]);
        let said = [view.unaccepted(&object, others), bound];
        statuses.insert(object, Status::Conditions(said.into_iter().flatten().collect()));
    }
    for (object, it) in view.customs(Kind::WorkloadEntry) {
        let said = [view.unaccepted(&object, &[]), view.bound_workload(&object, it)];
        statuses.insert(object, Status::Conditions(said.into_iter().flatten().collect()));
    }
    for (object, it) in ROUTES.into_iter().flat_map(|kind| view.customs(kind)) {
        let parents = view.parents(&object, &it.spec);
        statuses.insert(object, Status::Parents(parents));
    }
    statuses.extend(captured(compiler.resources(), compiler.settings()));
    statuses
}

/// What is said of the objects of one kind.
type Said = fn(&View<'_>, &ObjectRef, &Custom) -> Vec<Condition>;

const BY_KIND: [(Kind, Said); 5] = [
    (Kind::AuthorizationPolicy, authorization_policy),
    (Kind::PeerAuthentication, peer_authentication),
    (Kind::RequestAuthentication, request_authentication),
    (Kind::VirtualService, of_hosts),
    (Kind::DestinationRule, of_hosts),
];

/// The objects, what they mean, and what is wrong with them.
struct View<'a> {
    resources: &'a Resources,
    /// By the object's kind, namespace and name.
    diagnostics: BTreeMap<(Kind, String, String), Vec<&'a Diagnostic>>,
    services: BTreeMap<&'a ServiceKey, &'a Service>,
    /// The same by their hostnames.
    by_hostname: FxHashMap<&'a str, Vec<&'a Service>>,
    /// By uid; those of WorkloadEntries, and the namespaces that have others in the mesh.
    workloads: FxHashMap<&'a str, &'a Workload>,
    meshed: FxHashSet<&'a str>,
    /// By the selector policies that no agent sees all of, whom those select.
    selected: BTreeMap<&'a PolicyKey, Vec<&'a Workload>>,
    settings: &'a Settings,
}

impl<'a> View<'a> {
    fn new(compiler: &'a Compiler, diagnostics: &'a [Diagnostic]) -> Self {
        let mut by_object: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for it in diagnostics {
            let object = &it.object;
            let key = (object.kind, object.namespace.clone(), object.name.clone());
            by_object.entry(key).or_default().push(it);
        }
        let unseen = diagnostics.iter().filter(|it| it.reason == UNSEEN);
        let unseen: BTreeSet<_> = unseen
            .map(|it| (it.object.namespace.as_str(), it.object.name.as_str()))
            .collect();
        let mut selected: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for workload in compiler.workloads().filter(|_| !unseen.is_empty()) {
            let policies = workload.policies.iter();
            for key in policies.filter(|key| unseen.contains(&(&*key.namespace, &*key.name))) {
                selected.entry(key).or_default().push(&**workload);
            }
        }
        let services = || compiler.services().map(|it| &**it);
        let mut by_hostname: FxHashMap<_, Vec<_>> = FxHashMap::default();
        for service in services() {
            by_hostname
                .entry(&*service.key.hostname)
                .or_default()
                .push(service);
        }
        let in_mesh = compiler
            .workloads()
            .filter(|it| it.tunnel_protocol == TunnelProtocol::Hbone);
        let entry = format!(
            "{}/networking.istio.io/WorkloadEntry/",
            compiler.settings().cluster
        );
        let entries = compiler.workloads().filter(|it| it.uid.starts_with(&entry));
        Self {
            resources: compiler.resources(),
            diagnostics: by_object,
            services: services().map(|it| (&it.key, it)).collect(),
            by_hostname,
            workloads: entries.map(|it| (&*it.uid, &**it)).collect(),
            meshed: in_mesh.map(|it| &*it.namespace).collect(),
            selected,
            settings: compiler.settings(),
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        let domain = &self.settings.cluster_domain;
        let key = ServiceKey {
            namespace: namespace.into(),
            hostname: format!("{name}.{namespace}.svc.{domain}").into(),
        };
        self.services.get(&key).copied()
    }

    fn customs(&self, kind: Kind) -> impl Iterator<Item = (ObjectRef, &'a Custom)> + use<'a> {
        let all = self.resources.customs(kind);
        all.map(move |it| (ObjectRef::new(kind, &it.metadata), it))
    }

    fn diagnostics(&self, object: &ObjectRef) -> &[&'a Diagnostic] {
        let key = (object.kind, object.namespace.clone(), object.name.clone());
        self.diagnostics.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The worst that is said of an object; none where it is in force as it stands.
    fn error(&self, object: &ObjectRef) -> Option<&'a Diagnostic> {
        let all = self.diagnostics(object).iter();
        all.copied().find(|it| it.severity == Severity::Error)
    }

    fn reason(&self, object: &ObjectRef, reasons: &[&str]) -> Option<&'a Diagnostic> {
        let all = self.diagnostics(object).iter();
        all.copied().find(|it| reasons.contains(&it.reason))
    }
}

/// All that is said of an object, for a message.
fn told(view: &View<'_>, object: &ObjectRef, what: impl Fn(&Diagnostic) -> bool) -> String {
    let all: Vec<_> = view.diagnostics(object).iter().filter(|it| what(it)).collect();
    let mut text: Vec<_> = all.iter().take(MOST_TOLD).map(|it| it.message.as_str()).collect();
    let more = format!("and {} more", all.len().saturating_sub(MOST_TOLD));
    if all.len() > MOST_TOLD {
        text.push(&more);
    }
    text.join("; ")
}

fn is_targeted(spec: &Value) -> bool {
    ["targetRefs", "targetRef"]
        .iter()
        .any(|field| spec.get(field).is_some_and(|it| !it.is_null()))
}

fn authorization_policy(view: &View<'_>, object: &ObjectRef, it: &Custom) -> Vec<Condition> {
    if is_targeted(&it.spec) {
        return vec![at_waypoints(view, object)];
    }
    let mut conditions = vec![at_agents(view, object, it)];
    if view.reason(object, &[UNSEEN]).is_some() {
        conditions.push(by_request(view, object));
    }
    conditions
}

fn at_agents(view: &View<'_>, object: &ObjectRef, it: &Custom) -> Condition {
    if let Some(error) = view.error(object) {
        let message = told(view, object, |it| it.severity == Severity::Error);
        return Condition::new(AT_AGENTS, false, error.reason, message);
    }
    let unseen = told(view, object, |it| it.reason == UNSEEN);
    if !unseen.is_empty() {
        return Condition::new(AT_AGENTS, true, "UnsupportedValue", unseen);
    }
    let dry_run = it.metadata.annotations.iter().flatten();
    let mut dry_run = dry_run.filter(|(key, value)| *key == labels::DRY_RUN && value.as_str() == "true");
    let mut message = match dry_run.next() {
        Some(_) => "evaluated, and not enforced: it is a rehearsal".to_owned(),
        None => "in force".to_owned(),
    };
    let more = told(view, object, |_| true);
    if !more.is_empty() {
        message = format!("{message}; {more}");
    }
    Condition::new(AT_AGENTS, true, "Accepted", message)
}

/// A policy that names what waypoints are in front of.
fn at_waypoints(view: &View<'_>, object: &ObjectRef) -> Condition {
    let missing = view.reason(object, &["TargetMissing", "TargetIgnored"]);
    match view.error(object).or(missing) {
        Some(wrong) => {
            let reason = match wrong.reason {
                "TargetMissing" => "TargetNotFound",
                other => other,
            };
            Condition::new(AT_WAYPOINTS, false, reason, told(view, object, |_| true))
        }
        None => Condition::new(
            AT_WAYPOINTS,
            true,
            "Accepted",
            "in force at the waypoints of what it names",
        ),
    }
}

/// A policy that covers workloads, and of which only a waypoint sees all.
fn by_request(view: &View<'_>, object: &ObjectRef) -> Condition {
    let key = PolicyKey {
        namespace: object.namespace.as_str().into(),
        name: object.name.as_str().into(),
    };
    let Some(selected) = view.selected.get(&key) else {
        let message = "in force at the waypoints in front of the workloads that it covers";
        return Condition::new(AT_WAYPOINTS, true, "Accepted", message);
    };
    match selected.iter().find(|it| !view.is_bound(it)) {
        Some(workload) => {
            let message = format!(
                "nothing that is sent to {}/{} comes through a waypoint: label its service, or the namespace, {}",
                workload.namespace,
                workload.name,
                labels::USE_WAYPOINT
            );
            Condition::new(AT_WAYPOINTS, false, "NoWaypoint", message)
        }
        None => {
            let message = "in force at the waypoints in front of the workloads that it selects";
            Condition::new(AT_WAYPOINTS, true, "Accepted", message)
        }
    }
}

fn peer_authentication(view: &View<'_>, object: &ObjectRef, it: &Custom) -> Vec<Condition> {
    if let Some(ignored) = view.reason(object, &["Ignored"]) {
        let condition = Condition::new(AT_AGENTS, false, "Conflicted", ignored.message.clone());
        return vec![condition];
    }
    vec![at_agents(view, object, it)]
}

/// Only waypoints read tokens.
fn request_authentication(view: &View<'_>, object: &ObjectRef, _: &Custom) -> Vec<Condition> {
    vec![at_waypoints(view, object)]
}

/// What says that a label for a waypoint leads nowhere.
const UNBOUND: [&str; 4] = [
    "WaypointMissing",
    "WaypointNotAllowed",
    "WaypointNotFor",
    "WaypointNotReady",
];

/// What says that an entry, or a part of it, leads nowhere.
const WITHOUT_EFFECT: [&str; 3] = ["DnsResolution", "HostTaken", "NoAddress"];

impl View<'_> {
    fn is_bound(&self, workload: &Workload) -> bool {
        let bound = |key: &ServiceKey| self.services.get(key).is_some_and(|it| it.waypoint.is_some());
        workload.waypoint.is_some() || workload.services.keys().any(bound)
    }

    fn bound_service(&self, object: &ObjectRef, metadata: &ObjectMeta) -> Option<Condition> {
        let service = self.service(&object.namespace, &object.name);
        self.bound(object, metadata, service.and_then(|it| it.waypoint.as_ref()))
    }

    /// Why an entry, or a part of it, is as if it were not there, for any reason but `others`. Nothing is said of one that is as it
    /// should be.
    fn unaccepted(&self, object: &ObjectRef, others: &[&str]) -> Option<Condition> {
        let is_of_it = |it: &Diagnostic| !UNBOUND.contains(&it.reason) && !others.contains(&it.reason);
        let without_effect =
            |it: &Diagnostic| it.severity == Severity::Error || WITHOUT_EFFECT.contains(&it.reason);
        let mut all = self.diagnostics(object).iter();
        let wrong = all.find(|it| is_of_it(it) && without_effect(it))?;
        let message = told(self, object, is_of_it);
        Some(Condition::new(AT_AGENTS, false, wrong.reason, message))
    }

    fn bound_entry(&self, object: &ObjectRef, it: &Custom) -> Option<Condition> {
        let hosts = it.spec.get("hosts").and_then(Value::as_array);
        let mut keys = hosts.into_iter().flatten().filter_map(|host| {
            Some(ServiceKey {
                namespace: object.namespace.as_str().into(),
                hostname: host.as_str()?.to_ascii_lowercase().into(),
            })
        });
        let waypoint = keys.find_map(|key| self.services.get(&key)?.waypoint.as_ref());
        self.bound(object, &it.metadata, waypoint)
    }

    fn bound_workload(&self, object: &ObjectRef, it: &Custom) -> Option<Condition> {
        let ObjectRef { namespace, name, .. } = object;
        let cluster = &self.settings.cluster;
        let uid = format!("{cluster}/networking.istio.io/WorkloadEntry/{namespace}/{name}");
        let workload = self.workloads.get(uid.as_str());
        self.bound(object, &it.metadata, workload.and_then(|it| it.waypoint.as_ref()))
    }

    fn bound(
        &self,
        object: &ObjectRef,
        metadata: &ObjectMeta,
        waypoint: Option<&GatewayAddress>,
    ) -> Option<Condition> {
        let own = metadata.labels.as_ref();
        let itself = own.is_some_and(|it| it.contains_key(labels::USE_WAYPOINT));
        let namespace = ObjectRef {
            namespace: String::new(),
            kind: Kind::Namespace,
            name: object.namespace.clone(),
            uid: String::new(),
            generation: 0,
        };
        let teller = if itself { object } else { &namespace };
        let wrong = self
            .reason(teller, &UNBOUND)
            .filter(|_| itself || waypoint.is_some());
        if let Some(wrong) = wrong {
            let message = wrong.message.clone();
            return Some(Condition::new(
                labels::WAYPOINT_BOUND,
                false,
                wrong.reason,
                message,
            ));
        }
        let GatewayDestination::Service(key) = &waypoint?.destination else {
            return None;
        };
        let name = key.hostname.split('.').next().unwrap_or_default();
        let message = format!("bound to waypoint {}/{name}", key.namespace);
        let condition = Condition::new(labels::WAYPOINT_BOUND, true, "WaypointAccepted", message);
        Some(condition)
    }

    /// Those parents of a route that are in the mesh; Gateways are others' business.
    fn parents(&self, object: &ObjectRef, spec: &Value) -> Vec<Parent> {
        let all = spec.get("parentRefs").and_then(Value::as_array);
        let mut seen = BTreeSet::new();
        let ours = all.into_iter().flatten().filter(|it| {
            let kind = it.get("kind").and_then(Value::as_str);
            matches!(kind, Some("Service" | "ServiceEntry")) && seen.insert(it.to_string())
        });
        ours.map(|it| Parent {
            parent_ref: it.clone(),
            conditions: vec![self.accepted(object, it), self.resolved(object)],
        })
        .collect()
    }

    fn accepted(&self, object: &ObjectRef, parent: &Value) -> Condition {
        const TYPE: &str = "Accepted";
        let text = |field: &str| parent.get(field).and_then(Value::as_str);
        let name = text("name").unwrap_or_default();
        let namespace = text("namespace").unwrap_or(&object.namespace);
        let kind = match text("kind") {
            Some("ServiceEntry") => Kind::ServiceEntry,
            _ => Kind::Service,
        };
        if !self.resources.has(kind, namespace, name) {
            let message = format!("there is no {} {namespace}/{name}", kind.kind());
            return Condition::new(TYPE, false, "NoMatchingParent", message);
        }
        let is_wrong = |it: &Diagnostic| it.severity == Severity::Error && !REFERENCES.contains(&it.reason);
        let message = told(self, object, is_wrong);
        if !message.is_empty() {
            return Condition::new(TYPE, false, "UnsupportedValue", message);
        }
        match self.has_waypoint(kind, namespace, name) {
            true => Condition::new(TYPE, true, "Accepted", "in force at the service's waypoint"),
            false => {
                let message = format!(
                    "{} {namespace}/{name} has no waypoint, which alone acts on routes: label it, or its namespace, {}",
                    kind.kind(),
                    labels::USE_WAYPOINT
                );
                Condition::new(TYPE, false, "NoWaypoint", message)
            }
        }
    }

    fn has_waypoint(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        if kind == Kind::Service {
            let service = self.service(namespace, name);
            return service.is_some_and(|it| it.waypoint.is_some());
        }
        let is_it = |(it, _): &(ObjectRef, &Custom)| it.namespace == namespace && it.name == name;
        let entry = self.customs(kind).find(is_it);
        let bound = entry.and_then(|(object, it)| self.bound_entry(&object, it));
        bound.is_some_and(|it| it.holds == Some(true))
    }

    fn resolved(&self, object: &ObjectRef) -> Condition {
        const TYPE: &str = "ResolvedRefs";
        match self.reason(object, &REFERENCES) {
            Some(wrong) => {
                let message = told(self, object, |it| REFERENCES.contains(&it.reason));
                Condition::new(TYPE, false, wrong.reason, message)
            }
            None => Condition::new(TYPE, true, "ResolvedRefs", "every backend is there"),
        }
    }
}

/// What is wrong with a route's references, by Gateway API's names.
const REFERENCES: [&str; 2] = ["BackendNotFound", "RefNotPermitted"];
