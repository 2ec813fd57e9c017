//! The rules of one policy of a mesh file: Istio's `from`, `to` and `when`.
//!
//! What Istio's own validation refuses (an empty list, an empty source) is refused here too: nobody should have to
//! guess whether it means "everything" or "nothing". Fields that only a request has are noted in the match as what an L4
//! agent cannot see, with a warning; what they say is for a waypoint.

use std::sync::Arc;

use serde_saphyr::{Location, Spanned};

use super::{
    problem::{Place, Problems},
    schema::{ConditionEntry, OperationEntry, RuleEntry, SourceEntry, Texts},
    values,
};
use crate::mesh::{
    Action, Clause, Match, Rule,
    http::{Condition, RequestMatch},
};

/// What a rule needs to know of its policy.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) action: Action,
    /// The policy's namespace, which a service account without one is in.
    pub(super) namespace: &'a str,
    /// Whether agents are to enforce it, rather than a waypoint.
    pub(super) by_agents: bool,
}

/// Sources are alternatives, and so are operations: a clause each. Every condition is a clause of its own.
pub(super) fn rule(entry: &RuleEntry, policy: Whose<'_>, place: &Place<'_>, problems: &mut Problems) -> Rule {
    let from = clause(&entry.from, policy, &place.field("from"), problems, source);
    let to = clause(&entry.to, policy, &place.field("to"), problems, operation);
    let when = clause(&entry.when, policy, &place.field("when"), problems, condition);
    let when = when.into_iter().flat_map(|clause| clause.matches);
    let when = when.map(|match_| Clause {
        matches: vec![match_],
    });
    Rule {
        clauses: from.into_iter().chain(to).chain(when).collect(),
    }
}

/// How one alternative is read.
type Read<T> = fn(&T, Location, Whose<'_>, &Place<'_>, &mut Problems) -> Match;

fn clause<T>(
    entries: &Option<Spanned<Vec<Spanned<T>>>>,
    policy: Whose<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
    read: Read<T>,
) -> Option<Clause> {
    let entries = entries.as_ref()?;
    check_not_empty(entries, place, problems);
    let mut matches = Vec::with_capacity(entries.value.len());
    for (i, entry) in entries.value.iter().enumerate() {
        let (at, place, before) = (entry.referenced, place.index(i), problems.count());
        let match_ = read(&entry.value, at, policy, &place, problems);
        if match_ == Match::default() && problems.count() == before {
            problems.add(at, &place, "says nothing: name something, or remove it");
        }
        if !match_.unseen.is_empty() && policy.by_agents {
            problems.warn(at, &place, unseen_warning(&match_, policy.action));
        }
        matches.push(match_);
    }
    Some(Clause { matches })
}

fn unseen_warning(match_: &Match, action: Action) -> String {
    let fields = match_.unseen.join(", ");
    let effect = match action {
        Action::Allow => "allows nothing",
        Action::Audit => "is not recorded",
        Action::Deny => {
            "denies whatever they are, except what comes out of a waypoint of the workload or its service"
        }
    };
    format!("no agent sees {fields}, only a waypoint does: at an agent this {effect}")
}

fn source(
    entry: &SourceEntry,
    _: Location,
    policy: Whose<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Match {
    let account = |text: &str| values::service_account(text, policy.namespace);
    let mut fields = Fields::new(place, problems);
    let request = RequestMatch {
        request_principals: fields.unseen("requestPrincipals", &entry.request_principals, values::pattern),
        not_request_principals: fields.unseen(
            "notRequestPrincipals",
            &entry.not_request_principals,
            values::pattern,
        ),
        remote_ips: fields.unseen("remoteIpBlocks", &entry.remote_ip_blocks, values::network),
        not_remote_ips: fields.unseen("notRemoteIpBlocks", &entry.not_remote_ip_blocks, values::network),
        ..RequestMatch::default()
    };
    let read = Match {
        principals: fields.read("principals", &entry.principals, values::principal),
        not_principals: fields.read("notPrincipals", &entry.not_principals, values::principal),
        namespaces: fields.read("namespaces", &entry.namespaces, values::namespace),
        not_namespaces: fields.read("notNamespaces", &entry.not_namespaces, values::namespace),
        service_accounts: fields.read("serviceAccounts", &entry.service_accounts, account),
        not_service_accounts: fields.read("notServiceAccounts", &entry.not_service_accounts, account),
        trust_domains: fields.read("trustDomains", &entry.trust_domains, values::trust_domain),
        not_trust_domains: fields.read("notTrustDomains", &entry.not_trust_domains, values::trust_domain),
        source_ips: fields.read("ipBlocks", &entry.ip_blocks, values::network),
        not_source_ips: fields.read("notIpBlocks", &entry.not_ip_blocks, values::network),
        ..Match::default()
    };
    fields.finish(read, request)
}

fn operation(
    entry: &OperationEntry,
    _: Location,
    _: Whose<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Match {
    let mut fields = Fields::new(place, problems);
    let request = RequestMatch {
        hosts: fields.unseen("hosts", &entry.hosts, values::pattern),
        not_hosts: fields.unseen("notHosts", &entry.not_hosts, values::pattern),
        methods: fields.unseen("methods", &entry.methods, values::pattern),
        not_methods: fields.unseen("notMethods", &entry.not_methods, values::pattern),
        paths: fields.unseen("paths", &entry.paths, values::path_pattern),
        not_paths: fields.unseen("notPaths", &entry.not_paths, values::path_pattern),
        ..RequestMatch::default()
    };
    let read = Match {
        destination_ports: fields.read("ports", &entry.ports, values::port),
        not_destination_ports: fields.read("notPorts", &entry.not_ports, values::port),
        ..Match::default()
    };
    fields.finish(read, request)
}

fn condition(
    entry: &ConditionEntry,
    at: Location,
    policy: Whose<'_>,
    place: &Place<'_>,
    problems: &mut Problems,
) -> Match {
    let account = |text: &str| values::service_account(text, policy.namespace);
    let mut read = Match::default();
    let Some(key) = problems.required(&entry.key, at, place, "key", values::condition_key) else {
        return read;
    };
    let mut fields = Fields::new(place, problems);
    let mut request = RequestMatch::default();
    let said = entry.values.is_some() || entry.not_values.is_some();
    match &*key {
        "source.ip" => (read.source_ips, read.not_source_ips) = fields.both(entry, values::network),
        "source.namespace" => {
            (read.namespaces, read.not_namespaces) = fields.both(entry, values::namespace);
        }
        "source.serviceAccount" => {
            (read.service_accounts, read.not_service_accounts) = fields.both(entry, account);
        }
        "source.principal" => {
            (read.principals, read.not_principals) = fields.both(entry, values::principal);
        }
        "source.trustDomain" => {
            (read.trust_domains, read.not_trust_domains) = fields.both(entry, values::trust_domain);
        }
        "destination.ip" => {
            (read.destination_ips, read.not_destination_ips) = fields.both(entry, values::network);
        }
        "destination.port" => {
            (read.destination_ports, read.not_destination_ports) = fields.both(entry, values::port);
        }
        "remote.ip" => {
            (request.remote_ips, request.not_remote_ips) = fields.both(entry, values::network);
            fields.unseen.extend(said.then_some(key));
        }
        _ => {
            request.when = request_condition(&key, entry, at, &mut fields)
                .into_iter()
                .collect();
            fields.unseen.extend(said.then_some(key));
        }
    }
    fields.finish(read, request)
}

/// None for what Istio knows and no waypoint can look at.
fn request_condition(
    key: &str,
    entry: &ConditionEntry,
    at: Location,
    fields: &mut Fields<'_>,
) -> Option<Condition> {
    let (values, not_values) = fields.both(entry, values::pattern);
    let place = fields.place.field("key");
    let key = values::request_condition(key).map_err(|message| fields.problems.add(at, &place, message));
    let said = !values.is_empty() || !not_values.is_empty();
    Some(Condition {
        key: key.ok().flatten().filter(|_| said)?,
        values,
        not_values,
    })
}

/// The fields of one source, operation or condition.
struct Fields<'a> {
    place: &'a Place<'a>,
    problems: &'a mut Problems,
    /// The names of those that are there and that only a request has.
    unseen: Vec<Arc<str>>,
}

impl<'a> Fields<'a> {
    fn new(place: &'a Place<'a>, problems: &'a mut Problems) -> Self {
        Self {
            place,
            problems,
            unseen: Vec::new(),
        }
    }

    fn read<T>(
        &mut self,
        field: &str,
        texts: &Option<Texts>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let Some(texts) = texts else { return Vec::new() };
        let place = self.place.field(field);
        check_not_empty(texts, &place, self.problems);
        let texts = texts.value.iter().enumerate();
        texts
            .filter_map(|(i, text)| self.problems.read(text, &place.index(i), &parse))
            .collect()
    }

    /// The values that match and those that must not.
    fn both<T>(
        &mut self,
        entry: &ConditionEntry,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> (Vec<T>, Vec<T>) {
        let values = self.read("values", &entry.values, &parse);
        (values, self.read("notValues", &entry.not_values, &parse))
    }

    /// A field that only a request has.
    fn unseen<T>(
        &mut self,
        field: &str,
        texts: &Option<Texts>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.unseen.extend(texts.is_some().then(|| field.into()));
        self.read(field, texts, parse)
    }

    /// The match. Where what is not seen says nothing that can be looked at, nobody can judge it.
    fn finish(self, read: Match, request: RequestMatch) -> Match {
        Match {
            unseen: self.unseen,
            request: (request != RequestMatch::default()).then(|| Arc::new(request)),
            ..read
        }
    }
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
