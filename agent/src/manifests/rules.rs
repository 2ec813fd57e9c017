//! The rules of an AuthorizationPolicy: `from`, `to` and `when`. What they mean is said at `mesh::Match`.
//!
//! What cannot be read never widens: a value, or a field that nobody knows, makes the match `unreadable`. Fields that only
//! a request has are `unseen`: what they say is for a waypoint.

use std::sync::Arc;

use serde_json::Value;

use super::{Reader, Severity, there};
use crate::mesh::{
    Action, Clause, Match, Place, Rule,
    http::{Condition, RequestMatch},
    values,
};

/// What a rule needs to know of its policy.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) action: Action,
    /// The policy's namespace, which a service account without one is in.
    pub(super) namespace: &'a str,
    /// What no agent can ask and stands behind every rule: the external authorizer of a CUSTOM policy.
    pub(super) asks: Option<&'a Arc<str>>,
    /// Whether agents are to enforce it, rather than a waypoint.
    pub(super) by_agents: bool,
}

const FIELDS: [&str; 3] = ["from", "to", "when"];

/// Reads one rule.
pub(super) fn rule(value: &Value, policy: Whose<'_>, place: &Place<'_>, reader: &mut Reader<'_>) -> Rule {
    let mut clauses = Vec::new();
    let mut strange = Vec::new();
    match reader.fields(value, place) {
        Some(fields) => strange.extend(unknown(fields.keys(), &FIELDS, place, reader)),
        None => strange.push("rule".into()),
    }
    clauses.extend(clause(value, "from", place, reader, |entry, place, reader| {
        inner(entry, "source", place, reader, |it, place, reader| {
            source(it, policy, place, reader)
        })
    }));
    clauses.extend(clause(value, "to", place, reader, |entry, place, reader| {
        inner(entry, "operation", place, reader, operation)
    }));
    // Every condition is a clause of its own.
    let when = clause(value, "when", place, reader, |entry, place, reader| {
        condition(entry, policy, place, reader)
    });
    let when = when.into_iter().flat_map(|clause| clause.matches);
    clauses.extend(when.map(|match_| Clause {
        matches: vec![match_],
    }));
    let unseen: Vec<_> = policy.asks.into_iter().cloned().collect();
    if !strange.is_empty() || !unseen.is_empty() {
        let matches = vec![Match {
            unreadable: strange,
            unseen,
            ..Match::default()
        }];
        clauses.push(Clause { matches });
    }
    warn_unseen(&clauses, policy, place, reader);
    Rule { clauses }
}

/// How one alternative is read.
type Read<'f> = &'f dyn Fn(&Value, &Place<'_>, &mut Reader<'_>) -> Match;

/// Its matches are alternatives. None where the field is not there.
fn clause(
    rule: &Value,
    field: &str,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
    read: impl Fn(&Value, &Place<'_>, &mut Reader<'_>) -> Match,
) -> Option<Clause> {
    let place = place.field(field);
    let Some(Value::Array(entries)) = there(rule, field) else {
        there(rule, field)?;
        reader.invalid(&place, "must be a list");
        return Some(Clause {
            matches: vec![unreadable(field)],
        });
    };
    if entries.is_empty() {
        reader.invalid(&place, "is an empty list: name something, or remove it");
    }
    let read: Read<'_> = &read;
    let mut matches = Vec::with_capacity(entries.len());
    for (i, entry) in entries.iter().enumerate() {
        let (place, before) = (place.index(i), reader.faults());
        let match_ = read(entry, &place, reader);
        if match_ == Match::default() && reader.faults() == before {
            reader.invalid(&place, "says nothing: name something, or remove it");
        }
        matches.push(match_);
    }
    Some(Clause { matches })
}

fn unreadable(field: &str) -> Match {
    Match {
        unreadable: vec![field.into()],
        ..Match::default()
    }
}

/// `source` in an entry of `from`, `operation` in one of `to`.
fn inner(
    entry: &Value,
    field: &str,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
    read: impl Fn(&Value, &Place<'_>, &mut Reader<'_>) -> Match,
) -> Match {
    let Some(fields) = reader.fields(entry, place) else {
        return unreadable(field);
    };
    let strange: Vec<_> = unknown(fields.keys(), &[field], place, reader).collect();
    let mut match_ = match there(entry, field) {
        Some(value) => read(value, &place.field(field), reader),
        None => Match::default(),
    };
    match_.unreadable.extend(strange);
    match_
}

/// Fields that nobody knows. What one of them was to narrow is not narrowed by it.
fn unknown<'v>(
    names: serde_json::map::Keys<'v>,
    known: &[&str],
    place: &Place<'_>,
    reader: &mut Reader<'_>,
) -> impl Iterator<Item = Arc<str>> + use<'v> {
    let strange: Vec<_> = names.filter(|name| !known.contains(&name.as_str())).collect();
    for name in &strange {
        let message = format!("is not known here: write {}", known.join(", "));
        reader.invalid(&place.field(name), message);
    }
    strange.into_iter().map(|name| name.as_str().into())
}

const SOURCE: [&str; 14] = [
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "ipBlocks",
    "notIpBlocks",
    "requestPrincipals",
    "notRequestPrincipals",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

fn source(value: &Value, policy: Whose<'_>, place: &Place<'_>, reader: &mut Reader<'_>) -> Match {
    let account = |text: &str| values::service_account(text, policy.namespace);
    let mut fields = Fields::new(value, &SOURCE, place, reader);
    let mut match_ = Match {
        principals: fields.read("principals", values::principal),
        not_principals: fields.read("notPrincipals", values::principal),
        namespaces: fields.read("namespaces", values::namespace),
        not_namespaces: fields.read("notNamespaces", values::namespace),
        service_accounts: fields.read("serviceAccounts", account),
        not_service_accounts: fields.read("notServiceAccounts", account),
        trust_domains: fields.read("trustDomains", values::trust_domain),
        not_trust_domains: fields.read("notTrustDomains", values::trust_domain),
        source_ips: fields.read("ipBlocks", values::network),
        not_source_ips: fields.read("notIpBlocks", values::network),
        ..Match::default()
    };
    fields.request = RequestMatch {
        request_principals: fields.of_request("requestPrincipals", values::pattern),
        not_request_principals: fields.of_request("notRequestPrincipals", values::pattern),
        remote_ips: fields.of_request("remoteIpBlocks", values::network),
        not_remote_ips: fields.of_request("notRemoteIpBlocks", values::network),
        ..RequestMatch::default()
    };
    fields.finish(&mut match_);
    match_
}

const OPERATION: [&str; 8] = [
    "ports",
    "notPorts",
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
];

fn operation(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Match {
    let mut fields = Fields::new(value, &OPERATION, place, reader);
    let mut match_ = Match {
        destination_ports: fields.read("ports", values::port),
        not_destination_ports: fields.read("notPorts", values::port),
        ..Match::default()
    };
    fields.request = RequestMatch {
        hosts: fields.of_request("hosts", values::pattern),
        not_hosts: fields.of_request("notHosts", values::pattern),
        methods: fields.of_request("methods", values::pattern),
        not_methods: fields.of_request("notMethods", values::pattern),
        paths: fields.of_request("paths", values::path_pattern),
        not_paths: fields.of_request("notPaths", values::path_pattern),
        ..RequestMatch::default()
    };
    fields.finish(&mut match_);
    match_
}

const CONDITION: [&str; 3] = ["key", "values", "notValues"];

fn condition(value: &Value, policy: Whose<'_>, place: &Place<'_>, reader: &mut Reader<'_>) -> Match {
    let account = |text: &str| values::service_account(text, policy.namespace);
    let mut read = Match::default();
    if reader.fields(value, place).is_none() {
        return unreadable("when");
    }
    let Some(key) = reader.required(value, "key", place, values::condition_key) else {
        return unreadable("key");
    };
    let mut fields = Fields::new(value, &CONDITION, place, reader);
    match &*key {
        "source.ip" => (read.source_ips, read.not_source_ips) = fields.both(values::network),
        "source.namespace" => (read.namespaces, read.not_namespaces) = fields.both(values::namespace),
        "source.serviceAccount" => {
            (read.service_accounts, read.not_service_accounts) = fields.both(account);
        }
        "source.principal" => (read.principals, read.not_principals) = fields.both(values::principal),
        "source.trustDomain" => {
            (read.trust_domains, read.not_trust_domains) = fields.both(values::trust_domain);
        }
        "destination.ip" => {
            (read.destination_ips, read.not_destination_ips) = fields.both(values::network);
        }
        "destination.port" => {
            (read.destination_ports, read.not_destination_ports) = fields.both(values::port);
        }
        "remote.ip" => {
            let (some, none) = fields.both(values::network);
            fields.note_unseen(&key, &some, &none);
            (fields.request.remote_ips, fields.request.not_remote_ips) = (some, none);
        }
        _ => request_condition(&key, &mut fields),
    }
    fields.finish(&mut read);
    read
}

/// A condition that only a request has. Where it is one that no waypoint knows either, it says nothing to be judged by.
fn request_condition(key: &Arc<str>, fields: &mut Fields<'_, '_, '_>) {
    let (values, not_values) = fields.both(values::pattern);
    fields.note_unseen(key, &values, &not_values);
    match values::request_condition(key) {
        Ok(Some(key)) if !values.is_empty() || !not_values.is_empty() => {
            fields.request.when.push(Condition {
                key,
                values,
                not_values,
            });
        }
        Ok(_) => {}
        Err(message) => {
            fields.reader.invalid(&fields.place.field("key"), message);
            fields.unreadable.push("key".into());
        }
    }
}

/// The fields of one source, operation or condition.
struct Fields<'a, 'r, 'd> {
    value: &'a Value,
    place: &'a Place<'a>,
    reader: &'r mut Reader<'d>,
    unseen: Vec<Arc<str>>,
    /// What the unseen ones say.
    request: RequestMatch,
    unreadable: Vec<Arc<str>>,
}

impl<'a, 'r, 'd> Fields<'a, 'r, 'd> {
    fn new(value: &'a Value, known: &[&str], place: &'a Place<'a>, reader: &'r mut Reader<'d>) -> Self {
        let strange = match reader.fields(value, place) {
            Some(fields) => unknown(fields.keys(), known, place, reader).collect(),
            None => vec![place.to_string().into()],
        };
        Self {
            value,
            place,
            reader,
            unseen: Vec::new(),
            request: RequestMatch::default(),
            unreadable: strange,
        }
    }

    /// A list of values. With one that cannot be read none of them counts: the match is unreadable.
    fn read<T>(&mut self, field: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        if there(self.value, field).is_none() {
            return Vec::new();
        }
        let before = self.reader.faults();
        let read = self.reader.all(self.value, field, self.place, parse);
        if read.is_empty() && self.reader.faults() == before {
            let place = self.place.field(field);
            self.reader
                .invalid(&place, "is an empty list: name something, or remove it");
        }
        if self.reader.faults() == before {
            return read;
        }
        self.unreadable.push(field.into());
        Vec::new()
    }

    /// The values that match and those that must not.
    fn both<T>(&mut self, parse: impl Fn(&str) -> Result<T, String>) -> (Vec<T>, Vec<T>) {
        (self.read("values", &parse), self.read("notValues", &parse))
    }

    /// A list that only a request can be compared with.
    fn of_request<T>(&mut self, field: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let read = self.read(field, parse);
        if !read.is_empty() {
            self.unseen.push(field.into());
        }
        read
    }

    fn note_unseen<T>(&mut self, key: &Arc<str>, some: &[T], none: &[T]) {
        if !some.is_empty() || !none.is_empty() {
            self.unseen.push(key.clone());
        }
    }

    fn finish(self, match_: &mut Match) {
        match_.request = (self.request != RequestMatch::default()).then(|| Arc::new(self.request));
        match_.unseen = self.unseen;
        match_.unreadable = self.unreadable;
    }
}

fn warn_unseen(clauses: &[Clause], policy: Whose<'_>, place: &Place<'_>, reader: &mut Reader<'_>) {
    let matches = clauses.iter().flat_map(|clause| &clause.matches);
    let mut fields: Vec<_> = matches.flat_map(|match_| &match_.unseen).collect();
    fields.dedup();
    if fields.is_empty() || !policy.by_agents {
        return;
    }
    let fields: Vec<_> = fields.iter().map(|field| &***field).collect();
    let effect = match policy.action {
        Action::Allow => "allows nothing",
        Action::Audit => "is not recorded",
        Action::Deny => {
            "denies whatever they are, except what comes out of a waypoint of the workload or its service"
        }
    };
    let fields = fields.join(", ");
    let message = format!("{place}: no agent sees {fields}, only a waypoint does: at an agent this {effect}");
    reader.tell(Severity::Warning, "NeedsWaypoint", message);
}
