//! The `policies` section of a mesh file, and AuthorizationPolicies among its manifests. (What the section's rules say: `rules`.)

use rustc_hash::FxHashSet;
use serde_saphyr::Spanned;

use super::{
    compile::{Globals, selected},
    objects::Objects,
    problem::{Place, Problems},
    rules::{Whose, rule},
    schema::{Document, PolicyEntry},
    targets::Around,
    values,
    workloads::Pod,
};
use crate::{
    cluster::objects::Kind,
    manifests::{Diagnostic, Labels, Reader, Severity, Target, TargetKind, Targets, policy},
    mesh::{Action, GatewayAddress, GatewayDestination, Policy, PolicyKey, Scope, Service},
};

/// What the section and the manifests say.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) policies: Vec<Policy>,
    /// What those with `targetRefs` are about.
    pub(super) targets: Vec<(PolicyKey, Targets)>,
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
    let around = Around::new(globals, services, pods);
    let mut keys = FxHashSet::default();
    let mut read = Read::default();
    for (i, entry) in document.policies.iter().flatten().enumerate() {
        let place = section.index(i);
        let Some(policy) = read_entry(entry, globals, &place, problems) else {
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
        let targets = targets(&entry.value, &policy, &around, &place, problems);
        read.targets
            .extend(targets.map(|targets| (policy.key.clone(), targets)));
        read.policies.push(policy);
    }
    read
}

/// The same, of the AuthorizationPolicies among the manifests.
pub(super) fn of_manifests(
    objects: &Objects,
    globals: &Globals,
    services: &[Service],
    pods: &mut [Pod<'_>],
    read: &mut Read,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let around = Around::new(globals, services, pods);
    for (reference, object) in objects.of(Kind::AuthorizationPolicy) {
        let mut reader = Reader::new(reference.clone(), diagnostics);
        let policy::Read {
            policy,
            selector,
            targets,
            ..
        } = policy::read(object, &globals.root_namespace, &mut reader);
        if read.policies.iter().any(|it| it.key == policy.key) {
            let message = "the mesh file has a policy of this name as well: rename or remove one";
            reader.tell(Severity::Error, "Twice", message);
        }
        for message in targets
            .all
            .iter()
            .filter_map(|it| around.wrong(&reference.namespace, it))
        {
            reader.tell(
                Severity::Error,
                "TargetMissing",
                format!("spec.targetRefs: {message}"),
            );
        }
        if let Some(labels) = &selector {
            let mut selected = selected_by(labels, &reference.namespace, globals, pods).peekable();
            if selected.peek().is_none() {
                let message = "spec.selector: selects no workload: compare it with the workloads' labels";
                reader.tell(Severity::Warning, "SelectsNothing", message);
            }
            selected.for_each(|pod| pod.workload.policies.push(policy.key.clone()));
        }
        if targets.any {
            read.targets.push((policy.key.clone(), targets));
        }
        read.policies.push(policy);
    }
}

/// The pods that a manifest's selector selects; one of the root namespace selects in all namespaces.
pub(super) fn selected_by<'p, 'a>(
    labels: &'p Labels,
    namespace: &'p str,
    globals: &'p Globals,
    pods: &'p mut [Pod<'a>],
) -> impl Iterator<Item = &'p mut Pod<'a>> {
    let is_root = *namespace == *globals.root_namespace;
    pods.iter_mut()
        .filter(move |pod| (is_root || *pod.workload.namespace == *namespace) && pod.has_labels(labels))
}

/// What a policy is about, by its `targetRefs`.
fn targets(
    entry: &PolicyEntry,
    policy: &Policy,
    around: &Around<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Option<Targets> {
    let written = entry.target_refs.as_ref()?;
    let place = place.field("targetRefs");
    if written.value.is_empty() {
        let message = "is an empty list: name something, or remove it";
        problems.add(written.referenced, &place, message);
    }
    if let Some(selector) = &entry.selector {
        let message = "a policy has either a selector or targetRefs: remove one";
        problems.add(selector.referenced, &place, message);
    }
    let mut targets = Targets {
        any: true,
        ..Targets::default()
    };
    for (i, entry) in written.value.iter().enumerate() {
        let (at, place) = (entry.referenced, place.index(i));
        let kind = problems.required(&entry.value.kind, at, &place, "kind", target_kind);
        let name = problems.required(&entry.value.name, at, &place, "name", values::name);
        let Some((kind, name)) = kind.zip(name) else {
            continue;
        };
        let target = Target {
            kind,
            name: name.to_string(),
        };
        if let Some(message) = around.wrong(&policy.key.namespace, &target) {
            problems.add(at, &place, message);
        }
        targets.all.push(target);
    }
    Some(targets)
}

fn target_kind(text: &str) -> Result<TargetKind, String> {
    match text {
        "Service" => Ok(TargetKind::Service),
        "Gateway" => Ok(TargetKind::Gateway),
        _ => Err(values::one_of(text, "Service, or Gateway for a waypoint")),
    }
}

/// The service in front of a waypoint.
pub(super) fn waypoint_service<'s>(gateway: &GatewayAddress, services: &'s [Service]) -> Option<&'s Service> {
    services.iter().find(|service| match &gateway.destination {
        GatewayDestination::Service(key) => service.key == *key,
        GatewayDestination::Address(address) => service.vips.contains(address),
    })
}

fn read_entry(
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
