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
use crate::mesh::{Action, Policy, PolicyKey, Scope};

/// Reads the `policies` section, and notes at the workloads which selector policies cover them.
pub(super) fn policies(
    document: &Document,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    problems: &mut Problems,
) -> Vec<Policy> {
    let section = Place::ROOT.field("policies");
    let mut keys = FxHashSet::default();
    let mut policies = Vec::new();
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
        policies.push(policy);
    }
    policies
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
        _ => Err(values::one_of(text, "ALLOW or DENY")),
    }
}
