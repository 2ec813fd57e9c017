//! Policies, both ways.

use std::sync::Arc;

use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prost::Message as _;

use super::{
    AUDIT, NO_PORT, REQUEST, Sees, TRUST_DOMAINS, UNREADABLE, UNSEEN, Unreadable, addresses, bad, decode,
    encode::extension,
};
use crate::{
    mesh::{
        Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
        http::RequestMatch,
    },
    rpc::authorization as wire,
};

/// The extensions of a match.
const KNOWN: [&str; 4] = [UNSEEN, UNREADABLE, TRUST_DOMAINS, REQUEST];
/// The value of [`AUDIT`] for a policy that is a rehearsal as well.
const DRY_RUN: &[u8] = b"dry-run";

/// Reads an `istio.security.Authorization`.
///
/// What a match says that cannot be read is noted in it, so that it never widens what is allowed. What it says of requests is
/// decoded for those who see any.
///
/// # Errors
/// When the policy as a whole says what cannot be, with the field.
pub fn policy(bytes: &[u8], sees: Sees) -> Result<Policy, Unreadable> {
    let it = wire::Authorization::decode(bytes).map_err(|err| Unreadable::Encoding(err.to_string()))?;
    if it.name.is_empty() {
        return Err(bad("name", "it is empty"));
    }
    let scope = match wire::Scope::try_from(it.scope) {
        Ok(wire::Scope::Global) => Scope::Mesh,
        Ok(wire::Scope::Namespace) => Scope::Namespace,
        Ok(wire::Scope::WorkloadSelector) => Scope::Selector,
        Err(_) => return Err(bad("scope", format!("{} is none", it.scope))),
    };
    let audit = decode::value(&it.extensions, AUDIT);
    let action = match wire::Action::try_from(it.action) {
        // One that would refuse to whoever does not know of auditing is no audit.
        Ok(wire::Action::Deny) if audit.is_some() && it.dry_run => Action::Audit,
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(bad("action", format!("{} is none", it.action))),
    };
    let dry_run = match action {
        Action::Audit => audit == Some(DRY_RUN),
        Action::Allow | Action::Deny => it.dry_run,
    };
    Ok(Policy {
        key: PolicyKey {
            namespace: it.namespace.into(),
            name: it.name.into(),
        },
        scope,
        action,
        rules: it.rules.iter().map(|it| rule(it, action, sees)).collect(),
        dry_run,
    })
}

fn rule(it: &wire::Rule, action: Action, sees: Sees) -> Rule {
    let read = |it| read_match(it, action, sees);
    let clauses = it.clauses.iter().map(|clause| Clause {
        matches: clause.matches.iter().map(read).collect(),
    });
    Rule {
        clauses: clauses.collect(),
    }
}

fn read_match(it: &wire::Match, action: Action, sees: Sees) -> Match {
    let mut unreadable = lines(it, UNREADABLE);
    let mut unseen = lines(it, UNSEEN);
    let request = request(it, sees, &mut unseen, &mut unreadable);
    let (not, yes): (Vec<_>, Vec<_>) = lines(it, TRUST_DOMAINS)
        .into_iter()
        .partition(|line| line.starts_with('!'));
    let mut note = |name: &'static str, failed: bool| {
        if failed {
            unreadable.push(name.into());
        }
    };
    let (namespaces, bad_namespaces) = all(&it.namespaces, string);
    note("namespaces", bad_namespaces);
    let (not_namespaces, failed) = all(&it.not_namespaces, string);
    note("notNamespaces", failed);
    let (principals, failed) = all(&it.principals, string);
    note("principals", failed);
    let (not_principals, failed) = all(&it.not_principals, string);
    note("notPrincipals", failed);
    let (source_ips, failed) = all(&it.source_ips, network);
    note("ipBlocks", failed);
    let (not_source_ips, failed) = all(&it.not_source_ips, network);
    note("notIpBlocks", failed);
    let (destination_ips, failed) = all(&it.destination_ips, network);
    note("destination.ip", failed);
    let (not_destination_ips, failed) = all(&it.not_destination_ips, network);
    note("not destination.ip", failed);
    let (destination_ports, failed) = all(&it.destination_ports, port);
    note("ports", failed);
    let (not_destination_ports, failed) = all(&it.not_destination_ports, port);
    note("notPorts", failed);
    let known = it.extensions.iter().all(|it| KNOWN.contains(&it.name.as_str()));
    note("extensions", !known);
    let account = |it: &wire::ServiceAccountMatch| {
        Some(ServiceAccountMatch {
            namespace: it.namespace.as_str().into(),
            name: it.service_account.as_str().into(),
        })
    };
    let mut read = Match {
        namespaces,
        not_namespaces,
        service_accounts: all(&it.service_accounts, account).0,
        not_service_accounts: all(&it.not_service_accounts, account).0,
        trust_domains: yes.iter().map(|line| pattern(line)).collect(),
        not_trust_domains: not.iter().map(|line| pattern(&line[1..])).collect(),
        principals,
        not_principals,
        source_ips,
        not_source_ips,
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports,
        unseen,
        request,
        unreadable,
    };
    if !it.extensions.is_empty() {
        reopen(&mut read, action);
    }
    read
}

/// What a match says of requests, for whoever sees any, or a note that it cannot be read.
fn request(
    it: &wire::Match,
    sees: Sees,
    unseen: &mut Vec<Arc<str>>,
    unreadable: &mut Vec<Arc<str>>,
) -> Option<Arc<RequestMatch>> {
    let value = decode::value(&it.extensions, REQUEST)?;
    if sees == Sees::Connections {
        // Nobody may take a match for wider than it is, also where nothing is named that is not seen.
        if unseen.is_empty() {
            unseen.push(REQUEST.into());
        }
        return None;
    }
    let read = serde_json::from_slice(value).ok().map(Arc::new);
    if read.is_none() {
        unreadable.push(REQUEST.into());
    }
    read
}

/// The values that can be read, and whether one could not. A list of which one value cannot be read is empty: it must not
/// match by the others what it excludes by that one.
fn all<A, B>(values: &[A], read: impl Fn(&A) -> Option<B>) -> (Vec<B>, bool) {
    let read: Option<Vec<B>> = values.iter().map(read).collect();
    let failed = read.is_none();
    (read.unwrap_or_default(), failed)
}

fn string(it: &wire::StringMatch) -> Option<StringMatch> {
    Some(match it.match_type.as_ref()? {
        wire::MatchType::Exact(name) => StringMatch::Exact(name.as_str().into()),
        wire::MatchType::Prefix(start) => StringMatch::Prefix(start.as_str().into()),
        wire::MatchType::Suffix(end) => StringMatch::Suffix(end.as_str().into()),
        wire::MatchType::Presence(()) => StringMatch::Presence,
    })
}

fn network(it: &wire::Network) -> Option<IpNet> {
    addresses::network(&it.address, it.length, "").ok()
}

fn port(it: &u32) -> Option<u16> {
    u16::try_from(*it).ok()
}

fn lines(it: &wire::Match, name: &str) -> Vec<Arc<str>> {
    let Some(value) = decode::value(&it.extensions, name) else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(value);
    text.lines()
        .filter(|line| !line.is_empty())
        .map(Into::into)
        .collect()
}

/// A name as manifests write it: `*`, `name*`, `*name` or `name`.
fn pattern(text: &str) -> StringMatch {
    match (text.strip_suffix('*'), text.strip_prefix('*')) {
        (Some(""), _) => StringMatch::Presence,
        (Some(start), _) => StringMatch::Prefix(start.into()),
        (None, Some(end)) => StringMatch::Suffix(end.into()),
        (None, None) => StringMatch::Exact(text.into()),
    }
}

fn written(it: &StringMatch) -> String {
    match it {
        StringMatch::Exact(name) => name.to_string(),
        StringMatch::Prefix(start) => format!("{start}*"),
        StringMatch::Suffix(end) => format!("*{end}"),
        StringMatch::Presence => "*".to_owned(),
    }
}

/// The policy.
pub fn encode_policy(it: &Policy) -> Bytes {
    let policy = wire::Authorization {
        name: it.key.name.to_string(),
        namespace: it.key.namespace.to_string(),
        scope: match it.scope {
            Scope::Mesh => wire::Scope::Global as i32,
            Scope::Namespace => wire::Scope::Namespace as i32,
            Scope::Selector => wire::Scope::WorkloadSelector as i32,
        },
        action: match it.action {
            Action::Allow => wire::Action::Allow as i32,
            // To whoever does not know of auditing it is a rehearsal.
            Action::Deny | Action::Audit => wire::Action::Deny as i32,
        },
        rules: it.rules.iter().map(|rule| encode_rule(rule, it.action)).collect(),
        dry_run: !it.is_enforced(),
        extensions: audit(it).into_iter().collect(),
    };
    policy.encode_to_vec().into()
}

fn audit(it: &Policy) -> Option<crate::rpc::workload::Extension> {
    let value = if it.dry_run { DRY_RUN } else { &[] };
    (it.action == Action::Audit).then(|| extension(AUDIT, value.to_vec()))
}

fn encode_rule(it: &Rule, action: Action) -> wire::Rule {
    let clause = |clause: &Clause| {
        let empty = [Match::default()];
        let matches = if clause.matches.is_empty() {
            &empty[..]
        } else {
            &clause.matches
        };
        wire::Clause {
            matches: matches.iter().map(|it| encode_match(it, action)).collect(),
        }
    };
    wire::Rule {
        clauses: it.clauses.iter().map(clause).collect(),
    }
}

fn encode_match(it: &Match, action: Action) -> wire::Match {
    let strings = |all: &[StringMatch]| all.iter().map(encode_string).collect();
    let networks = |all: &[IpNet]| all.iter().map(encode_network).collect();
    let ports = |all: &[u16]| all.iter().map(|port| u32::from(*port)).collect();
    let accounts = |all: &[ServiceAccountMatch]| all.iter().map(encode_account).collect();
    let mut encoded = wire::Match {
        namespaces: strings(&it.namespaces),
        not_namespaces: strings(&it.not_namespaces),
        principals: strings(&it.principals),
        not_principals: strings(&it.not_principals),
        source_ips: networks(&it.source_ips),
        not_source_ips: networks(&it.not_source_ips),
        destination_ips: networks(&it.destination_ips),
        not_destination_ips: networks(&it.not_destination_ips),
        destination_ports: ports(&it.destination_ports),
        not_destination_ports: ports(&it.not_destination_ports),
        service_accounts: accounts(&it.service_accounts),
        not_service_accounts: accounts(&it.not_service_accounts),
        extensions: extensions(it),
    };
    if !encoded.extensions.is_empty() || *it == Match::default() {
        close(&mut encoded, action);
    }
    encoded
}

/// For agents that do not know the extensions, or skip a match that says nothing: in an ALLOW policy it matches nothing, in
/// a DENY policy whatever its other fields let it. [`reopen`] takes it back.
fn close(it: &mut wire::Match, action: Action) {
    if it.extensions.is_empty() {
        it.extensions.push(extension(UNSEEN, Vec::new()));
    }
    match action {
        Action::Allow => it
            .not_destination_ips
            .extend(everywhere().iter().map(encode_network)),
        Action::Deny | Action::Audit => it.not_destination_ports.push(NO_PORT.into()),
    }
}

/// Takes off what [`close`] has put at the end.
fn reopen(it: &mut Match, action: Action) {
    match action {
        Action::Allow if it.not_destination_ips.ends_with(&everywhere()) => {
            let kept = it.not_destination_ips.len() - everywhere().len();
            it.not_destination_ips.truncate(kept);
        }
        Action::Deny | Action::Audit if it.not_destination_ports.last() == Some(&NO_PORT) => {
            it.not_destination_ports.pop();
        }
        Action::Allow | Action::Deny | Action::Audit => {}
    }
}

/// Every address there is.
fn everywhere() -> [IpNet; 2] {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

fn extensions(it: &Match) -> Vec<crate::rpc::workload::Extension> {
    let no = |name: &StringMatch| format!("!{}", written(name));
    let trust_domains: Vec<_> = it
        .trust_domains
        .iter()
        .map(written)
        .chain(it.not_trust_domains.iter().map(no))
        .collect();
    let all = [
        (UNSEEN, it.unseen.join("\n")),
        (UNREADABLE, it.unreadable.join("\n")),
        (TRUST_DOMAINS, trust_domains.join("\n")),
    ];
    let said = all.into_iter().filter(|(_, value)| !value.is_empty());
    let said = said.map(|(name, value)| extension(name, value.into_bytes()));
    // What cannot be written, which is nothing of this type, is sent as what cannot be read.
    let request = it.request.as_deref();
    let request = request.map(|it| extension(REQUEST, serde_json::to_vec(it).unwrap_or_default()));
    said.chain(request).collect()
}

fn encode_string(it: &StringMatch) -> wire::StringMatch {
    let match_type = match it {
        StringMatch::Exact(name) => wire::MatchType::Exact(name.to_string()),
        StringMatch::Prefix(start) => wire::MatchType::Prefix(start.to_string()),
        StringMatch::Suffix(end) => wire::MatchType::Suffix(end.to_string()),
        StringMatch::Presence => wire::MatchType::Presence(()),
    };
    wire::StringMatch {
        match_type: Some(match_type),
    }
}

fn encode_network(it: &IpNet) -> wire::Network {
    wire::Network {
        address: addresses::bytes(it.addr()),
        length: it.prefix_len().into(),
    }
}

fn encode_account(it: &ServiceAccountMatch) -> wire::ServiceAccountMatch {
    wire::ServiceAccountMatch {
        namespace: it.namespace.to_string(),
        service_account: it.name.to_string(),
    }
}
