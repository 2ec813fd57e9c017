//! The `policies` and `peerAuthentications` sections of a mesh file: Istio's AuthorizationPolicy and PeerAuthentication
//! in the fields that an L4 agent can judge.
//!
//! What Istio's own validation refuses (an empty list, an empty source) is refused here too: nobody should have to
//! guess whether it means "everything" or "nothing".

use std::{collections::BTreeMap, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};
use serde_saphyr::{Location, Spanned};

use super::{
    compile::{Globals, selected},
    problem::{Place, Problems},
    schema::{
        ConditionEntry, Document, OperationEntry, PeerAuthenticationEntry, PolicyEntry, RuleEntry,
        SourceEntry, Text,
    },
    values,
    workloads::Pod,
};
use crate::mesh::{
    Action, Clause, Match, MtlsMode, PeerAuthentication, PeerAuthentications, Policy, PolicyKey, Rule, Scope,
};

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
    let rules = entry.rules.iter().flatten().enumerate();
    let rules = rules
        .map(|(i, entry)| rule(entry, &rules_place.index(i), problems))
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

/// Sources are alternatives, and so are operations: a clause each. Every condition is a clause of its own.
fn rule(entry: &RuleEntry, place: &Place<'_>, problems: &mut Problems) -> Rule {
    let from = clause(&entry.from, &place.field("from"), problems, source);
    let to = clause(&entry.to, &place.field("to"), problems, operation);
    let when = clause(&entry.when, &place.field("when"), problems, condition);
    let when = when.into_iter().flat_map(|clause| clause.matches);
    let when = when.map(|match_| Clause {
        matches: vec![match_],
    });
    Rule {
        clauses: from.into_iter().chain(to).chain(when).collect(),
    }
}

fn clause<T>(
    entries: &Option<Spanned<Vec<Spanned<T>>>>,
    place: &Place<'_>,
    problems: &mut Problems,
    read: impl Fn(&Spanned<T>, &Place<'_>, &mut Problems) -> Match,
) -> Option<Clause> {
    let entries = entries.as_ref()?;
    check_not_empty(entries, place, problems);
    let matches = entries.value.iter().enumerate();
    Some(Clause {
        matches: matches
            .map(|(i, entry)| read(entry, &place.index(i), problems))
            .collect(),
    })
}

fn source(entry: &Spanned<SourceEntry>, place: &Place<'_>, problems: &mut Problems) -> Match {
    let (at, entry) = (entry.referenced, &entry.value);
    let principals = [&entry.principals, &entry.not_principals];
    let namespaces = [&entry.namespaces, &entry.not_namespaces];
    let ips = [&entry.ip_blocks, &entry.not_ip_blocks];
    let said = principals
        .into_iter()
        .chain(namespaces)
        .chain(ips)
        .any(Option::is_some);
    check_said(said, at, place, problems);
    let mut read = |list, field, parse: fn(&str) -> _| values_of(list, place, field, problems, parse);
    Match {
        principals: read(&entry.principals, "principals", values::principal),
        not_principals: read(&entry.not_principals, "notPrincipals", values::principal),
        namespaces: read(&entry.namespaces, "namespaces", values::namespace),
        not_namespaces: read(&entry.not_namespaces, "notNamespaces", values::namespace),
        source_ips: values_of(&entry.ip_blocks, place, "ipBlocks", problems, values::network),
        not_source_ips: values_of(
            &entry.not_ip_blocks,
            place,
            "notIpBlocks",
            problems,
            values::network,
        ),
        ..Match::default()
    }
}

fn operation(entry: &Spanned<OperationEntry>, place: &Place<'_>, problems: &mut Problems) -> Match {
    let (at, entry) = (entry.referenced, &entry.value);
    check_said(
        entry.ports.is_some() || entry.not_ports.is_some(),
        at,
        place,
        problems,
    );
    Match {
        destination_ports: values_of(&entry.ports, place, "ports", problems, values::port),
        not_destination_ports: values_of(&entry.not_ports, place, "notPorts", problems, values::port),
        ..Match::default()
    }
}

fn condition(entry: &Spanned<ConditionEntry>, place: &Place<'_>, problems: &mut Problems) -> Match {
    let (at, entry) = (entry.referenced, &entry.value);
    check_said(
        entry.values.is_some() || entry.not_values.is_some(),
        at,
        place,
        problems,
    );
    let mut read = Match::default();
    let Some(key) = problems.required(&entry.key, at, place, "key", |text| Ok(text.to_owned())) else {
        return read;
    };
    match key.as_str() {
        "source.ip" => {
            (read.source_ips, read.not_source_ips) = both(entry, place, problems, values::network);
        }
        "source.namespace" => {
            (read.namespaces, read.not_namespaces) = both(entry, place, problems, values::namespace);
        }
        "source.principal" => {
            (read.principals, read.not_principals) = both(entry, place, problems, values::principal);
        }
        "destination.ip" => {
            (read.destination_ips, read.not_destination_ips) = both(entry, place, problems, values::network);
        }
        "destination.port" => {
            (read.destination_ports, read.not_destination_ports) = both(entry, place, problems, values::port);
        }
        _ => unknown_condition(entry, &key, place, problems),
    }
    read
}

/// The values that match and those that must not.
fn both<T>(
    entry: &ConditionEntry,
    place: &Place<'_>,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, String>,
) -> (Vec<T>, Vec<T>) {
    let values = values_of(&entry.values, place, "values", problems, &parse);
    (
        values,
        values_of(&entry.not_values, place, "notValues", problems, &parse),
    )
}

fn unknown_condition(entry: &ConditionEntry, key: &str, place: &Place<'_>, problems: &mut Problems) {
    let known = "source.ip, source.namespace, source.principal, destination.ip or destination.port";
    let at = entry.key.as_ref().map_or(Location::UNKNOWN, |key| key.referenced);
    problems.add(at, &place.field("key"), values::one_of(key, known));
}

fn values_of<T>(
    texts: &Option<Spanned<Vec<Text>>>,
    place: &Place<'_>,
    field: &str,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let Some(texts) = texts else { return Vec::new() };
    let place = place.field(field);
    check_not_empty(texts, &place, problems);
    let texts = texts.value.iter().enumerate();
    texts
        .filter_map(|(i, text)| problems.read(text, &place.index(i), &parse))
        .collect()
}

fn check_not_empty<T>(list: &Spanned<Vec<T>>, place: &Place<'_>, problems: &mut Problems) {
    if list.value.is_empty() {
        problems.add(
            list.referenced,
            place,
            "is an empty list: name something, or remove it",
        );
    }
}

fn check_said(said: bool, at: Location, place: &Place<'_>, problems: &mut Problems) {
    if !said {
        problems.add(at, place, "says nothing: name something, or remove it");
    }
}

/// Reads the `peerAuthentications` section.
pub(super) fn peer_authentications(
    document: &Document,
    globals: &Globals,
    pods: &mut [Pod<'_>],
    problems: &mut Problems,
) -> PeerAuthentications {
    let section = Place::ROOT.field("peerAuthentications");
    let mut read = PeerAuthentications::default();
    let mut mesh = None;
    for (i, entry) in document.peer_authentications.iter().flatten().enumerate() {
        let place = section.index(i);
        let (at, entry) = (entry.referenced, &entry.value);
        let modes = modes(entry, &place, problems);
        let Some(namespace) = problems.required(&entry.namespace, at, &place, "namespace", values::label)
        else {
            continue;
        };
        let in_root = namespace == globals.root_namespace;
        let selector_place = place.field("selector");
        let covered_twice = match &entry.selector {
            Some(selector) if in_root => {
                let message = "is ignored in the root namespace: move this to the namespace of the workloads";
                problems.add(selector.referenced, &selector_place, message);
                None
            }
            Some(selector) => {
                let pods = selected(selector, Some(&namespace), pods, &selector_place, problems);
                cover(pods, &modes, &mut read.workloads)
            }
            None if in_root => mesh.replace(modes).map(|_| "the mesh".to_owned()),
            None => {
                let other = read.namespaces.insert(namespace.clone(), modes);
                other.map(|_| format!("namespace {namespace}"))
            }
        };
        if let Some(covered) = covered_twice {
            problems.add(
                at,
                &place,
                format!("{covered} has two peerAuthentications: remove one"),
            );
        }
    }
    read.mesh = mesh.unwrap_or_default();
    read
}

/// Notes the modes of the pods that a selector selected, and returns one that had some already. (Istio takes the older
/// of two; a file has no ages, so there may be only one.)
fn cover(
    pods: Vec<&mut Pod<'_>>,
    modes: &PeerAuthentication,
    workloads: &mut FxHashMap<Arc<str>, PeerAuthentication>,
) -> Option<String> {
    let mut twice = None;
    for pod in pods {
        if workloads
            .insert(pod.workload.uid.clone(), modes.clone())
            .is_some()
        {
            twice = Some(format!("workload {}", pod.workload.namespaced_name()));
        }
    }
    twice
}

fn modes(entry: &PeerAuthenticationEntry, place: &Place<'_>, problems: &mut Problems) -> PeerAuthentication {
    PeerAuthentication {
        mode: problems
            .optional(&entry.mode, place, "mode", values::mtls_mode)
            .flatten(),
        ports: port_modes(entry, &place.field("portLevelMtls"), problems),
    }
}

fn port_modes(
    entry: &PeerAuthenticationEntry,
    place: &Place<'_>,
    problems: &mut Problems,
) -> BTreeMap<u16, MtlsMode> {
    let mut modes = BTreeMap::new();
    for (port, mode) in entry.port_level_mtls.iter().flatten() {
        let place = place.field(port);
        let port = values::port(port).map_err(|message| problems.add(mode.referenced, &place, message));
        let mode = problems.read(mode, &place, values::mtls_mode);
        if let (Ok(port), Some(Some(mode))) = (port, mode) {
            modes.insert(port, mode);
        }
    }
    modes
}
