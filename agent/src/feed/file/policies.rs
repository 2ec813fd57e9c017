//! The `policies` section of a mesh file: Istio's AuthorizationPolicy. (What its rules say: `rules`.)

use rustc_hash::FxHashSet;
use serde_saphyr::Spanned;

use super::{
    compile::{Globals, selected},
    problem::{Place, Problems},
    rules::{Whose, rule},
    schema::{Document, PolicyEntry},
    values,
    workloads::Pod,
};
use crate::mesh::{
    Action, GatewayAddress, GatewayDestination, Policy, PolicyKey, Scope, Service, ServiceKey,
};

/// What the section says.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) policies: Vec<Policy>,
    /// The services that policies with `targetRefs` are about, in the order of the policies.
    pub(super) targeted: Vec<(ServiceKey, PolicyKey)>,
}

/// Reads the `policies` section, and notes at the workloads which selector policies cover them.
pub(super) fn policies(
    document: &Document,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    services: &[Service],
    problems: &mut Problems,
) -> Read {
    let section = Place::ROOT.field("policies");
    let mut keys = FxHashSet::default();
    let mut read = Read::default();
    for (i, entry) in document.policies.iter().flatten().enumerate() {
        let place = section.index(i);
        let Some(policy) = policy(entry, globals, &place, problems) else {
            continue;
        };
        if !keys.insert(policy.key.clone()) {
            let key = &policy.key;
            problems.add(
                entry.referenced,
                &place,
                format!("there are two policies {key}: rename or remove one"),
            );
            continue;
        }
        if let Some(selector) = &entry.value.selector {
            // A selector of the root namespace selects in all namespaces.
            let namespace = Some(&policy.key.namespace).filter(|ns| **ns != globals.root_namespace);
            for pod in selected(selector, namespace, pods, &place.field("selector"), problems) {
                pod.workload.policies.push(policy.key.clone());
            }
        }
        for service in targets(&entry.value, &policy, services, &place, problems) {
            read.targeted.push((service, policy.key.clone()));
        }
        read.policies.push(policy);
    }
    read
}

/// The services that a policy is about, by its `targetRefs`.
fn targets(
    entry: &PolicyEntry,
    policy: &Policy,
    services: &[Service],
    place: &Place<'_>,
    problems: &mut Problems,
) -> Vec<ServiceKey> {
    let Some(targets) = &entry.target_refs else {
        return Vec::new();
    };
    let place = place.field("targetRefs");
    if targets.value.is_empty() {
        problems.add(
            targets.referenced,
            &place,
            "is an empty list: name something, or remove it",
        );
    }
    if let Some(selector) = &entry.selector {
        let message = "a policy has either a selector or targetRefs: remove one";
        problems.add(selector.referenced, &place, message);
    }
    let mut found = Vec::new();
    for (i, target) in targets.value.iter().enumerate() {
        let (at, place) = (target.referenced, place.index(i));
        let kind = problems.required(&target.value.kind, at, &place, "kind", target_kind);
        let name = problems.required(&target.value.name, at, &place, "name", values::name);
        let (Some(kind), Some(name)) = (kind, name) else {
            continue;
        };
        let own = services
            .iter()
            .find(|it| it.key.namespace == policy.key.namespace && it.name == name);
        match (own, kind) {
            (None, _) => {
                let namespace = &policy.key.namespace;
                let message = format!("there is no service {namespace}/{name}: correct the name");
                problems.add(at, &place, message);
            }
            (Some(service), TargetKind::Service) => found.push(service.key.clone()),
            (Some(waypoint), TargetKind::Gateway) => found.extend(bound(waypoint, services)),
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The services that go through a waypoint.
fn bound<'s>(waypoint: &'s Service, services: &'s [Service]) -> impl Iterator<Item = ServiceKey> {
    let goes = |service: &&Service| {
        let its = service.waypoint.as_ref();
        its.and_then(|it| waypoint_service(it, services))
            .is_some_and(|it| it.key == waypoint.key)
    };
    services.iter().filter(goes).map(|service| service.key.clone())
}

/// The service in front of a waypoint.
pub(super) fn waypoint_service<'s>(gateway: &GatewayAddress, services: &'s [Service]) -> Option<&'s Service> {
    services.iter().find(|service| match &gateway.destination {
        GatewayDestination::Service(key) => service.key == *key,
        GatewayDestination::Address(address) => service.vips.contains(address),
    })
}

/// What a policy is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TargetKind {
    Service,
    /// A waypoint, which has the name of the service in front of it.
    Gateway,
}

fn target_kind(text: &str) -> Result<TargetKind, String> {
    match text {
        "Service" => Ok(TargetKind::Service),
        "Gateway" => Ok(TargetKind::Gateway),
        _ => Err(values::one_of(text, "Service, or Gateway for a waypoint")),
    }
}

fn policy(
    entry: &Spanned<PolicyEntry>,
    globals: &Globals,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<Policy> {
    let (at, entry) = (entry.referenced, &entry.value);
    let name = problems.required(&entry.name, at, place, "name", values::name);
    let namespace = problems.required(&entry.namespace, at, place, "namespace", values::label);
    let action = problems
        .optional(&entry.action, place, "action", action)
        .unwrap_or(Action::Allow);
    let rules_place = place.field("rules");
    let policy = Whose {
        action,
        namespace: namespace.as_deref().unwrap_or_default(),
        by_agents: entry.target_refs.is_none(),
    };
    let rules = entry.rules.iter().flatten().enumerate();
    let rules = rules
        .map(|(i, entry)| rule(entry, policy, &rules_place.index(i), problems))
        .collect();
    let key = PolicyKey {
        namespace: namespace?,
        name: name?,
    };
    let scope = match &entry.selector {
        Some(_) => Scope::Selector,
        // It is a waypoint's to enforce, and no workload names it.
        None if entry.target_refs.is_some() => Scope::Selector,
        None if key.namespace == globals.root_namespace => Scope::Mesh,
        None => Scope::Namespace,
    };
    Some(Policy {
        key,
        scope,
        action,
        rules,
        dry_run: entry.dry_run.unwrap_or_default(),
    })
}

fn action(text: &str) -> Result<Action, String> {
    match text {
        "ALLOW" => Ok(Action::Allow),
        "DENY" => Ok(Action::Deny),
        "AUDIT" => Ok(Action::Audit),
        _ => Err(values::one_of(text, "ALLOW, DENY or AUDIT")),
    }
}
