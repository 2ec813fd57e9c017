//! Who may reach a workload: STRICT, then policies that have not arrived, then DENY, then ALLOW.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use weft_pure::mesh::{
    Action, Clause, Inbound, Match, MtlsMode, Policy, PolicyKey, Scope, StringMatch, Workload,
};

use crate::{requests::Request, world::World};

/// The answer, and the policies of which one must be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No ALLOW policy covers the workload.
    AllowedByNone,
    AllowedBy(BTreeSet<PolicyKey>),
    DeniedBy(BTreeSet<PolicyKey>),
    /// The ALLOW policies that cover the workload.
    NotAllowed(BTreeSet<PolicyKey>),
    Missing(BTreeSet<PolicyKey>),
    Strict,
}

impl Answer {
    pub(crate) fn allows(&self) -> bool {
        matches!(self, Self::AllowedByNone | Self::AllowedBy(_))
    }
}

/// The mode of a port: the narrowest scope that says anything, and in it the port before the rest.
pub(crate) fn mode(world: &World, workload: &Workload, port: u16) -> MtlsMode {
    let said = &world.parts.peer_authentications;
    let scopes = [
        said.workloads.get(&workload.uid),
        said.namespaces.get(&workload.namespace),
        Some(&said.mesh),
    ];
    for scope in scopes.into_iter().flatten() {
        if let Some(mode) = scope.ports.get(&port).copied().or(scope.mode) {
            return mode;
        }
    }
    MtlsMode::Permissive
}

/// Every policy that covers a workload, once: the first of each key.
pub(crate) fn covering<'a>(world: &'a World, workload: &Workload) -> Vec<&'a Policy> {
    let mut covering: Vec<&Policy> = Vec::new();
    let mut seen = BTreeSet::new();
    for policy in world
        .parts
        .policies
        .iter()
        .filter(|policy| seen.insert(policy.key.clone()))
    {
        let covers = match policy.scope {
            Scope::Mesh => true,
            Scope::Namespace => policy.key.namespace == workload.namespace,
            Scope::Selector => false,
        };
        if covers || workload.policies.contains(&policy.key) {
            covering.push(policy);
        }
    }
    covering
}

/// With `rehearsed`, policies in dry-run count as well.
pub(crate) fn answer(world: &World, workload: &Workload, conn: &Inbound, rehearsed: bool) -> Answer {
    if conn.peer.is_none() && mode(world, workload, conn.destination.port()) == MtlsMode::Strict {
        return Answer::Strict;
    }
    let known = |key: &&PolicyKey| world.parts.policies.iter().any(|policy| policy.key == **key);
    let missing: BTreeSet<_> = workload
        .policies
        .iter()
        .filter(|key| !known(key))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Answer::Missing(missing);
    }
    let (mut denying, mut allowing, mut allow_policies) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for policy in covering(world, workload) {
        if policy.dry_run && !rehearsed {
            continue;
        }
        let matches = holds(world, Some(workload), policy, conn, None);
        match policy.action {
            Action::Deny if matches => drop(denying.insert(policy.key.clone())),
            Action::Deny | Action::Audit => {}
            Action::Allow => {
                allow_policies.insert(policy.key.clone());
                if matches {
                    allowing.insert(policy.key.clone());
                }
            }
        }
    }
    match () {
        () if !denying.is_empty() => Answer::DeniedBy(denying),
        () if !allowing.is_empty() => Answer::AllowedBy(allowing),
        () if !allow_policies.is_empty() => Answer::NotAllowed(allow_policies),
        () => Answer::AllowedByNone,
    }
}

/// The policies in dry-run that match.
pub(crate) fn dry_run(world: &World, workload: &Workload, conn: &Inbound) -> BTreeSet<PolicyKey> {
    let covering = covering(world, workload)
        .into_iter()
        .filter(|policy| policy.dry_run);
    covering
        .filter(|policy| holds(world, Some(workload), policy, conn, None))
        .map(|policy| policy.key.clone())
        .collect()
}

/// Rules OR, clauses AND, matches OR. Where there is a request, what only a request has is judged by it.
pub(super) fn holds(
    world: &World,
    workload: Option<&Workload>,
    policy: &Policy,
    conn: &Inbound,
    request: Option<&Request>,
) -> bool {
    let deny = policy.action == Action::Deny;
    let through = workload.is_some_and(|workload| through_waypoint(world, workload, conn));
    for rule in &policy.rules {
        let clause_holds = |clause: &Clause| match clause.matches.as_slice() {
            // Nothing is said: it must not widen.
            [] => deny,
            matches => matches
                .iter()
                .any(|match_| match_holds(match_, deny, conn, request, through)),
        };
        if rule.clauses.iter().all(clause_holds) {
            return true;
        }
    }
    false
}

/// Fields AND, the values of each OR, and none of its `not_` twin's.
fn match_holds(
    match_: &Match,
    deny: bool,
    conn: &Inbound,
    request: Option<&Request>,
    through_waypoint: bool,
) -> bool {
    if *match_ == Match::default() {
        return deny;
    }
    // What nobody can tell here: never for ALLOW, and for DENY as if it held. A waypoint has seen to what only a request
    // has.
    if !match_.unreadable.is_empty() && !deny {
        return false;
    }
    let unseen = match (request, &match_.request) {
        _ if match_.unseen.is_empty() => true,
        (Some(request), Some(said)) => super::requests::holds(said, request, conn).unwrap_or(deny),
        (Some(_), None) => deny,
        (None, _) => deny && !through_waypoint,
    };
    if !unseen {
        return false;
    }
    let peer = conn.peer.as_ref();
    let uri = peer.map(|peer| peer.as_str());
    // spiffe: / / trust domain / ns / namespace / sa / service account
    let parts: Vec<&str> = uri.map(|uri| uri.split('/').collect()).unwrap_or_default();
    let part = |at: usize| parts.get(at).copied();
    let principal = uri.and_then(|uri| uri.strip_prefix("spiffe://"));
    let accounts = |list: &[weft_pure::mesh::ServiceAccountMatch]| {
        list.iter()
            .any(|it| part(4) == Some(&*it.namespace) && part(6) == Some(&*it.name))
    };
    let (source, destination, port) = (conn.source_ip, conn.destination.ip(), conn.destination.port());
    let fields = [
        (match_.namespaces.is_empty() || named(&match_.namespaces, part(4)))
            && !named(&match_.not_namespaces, part(4)),
        (match_.principals.is_empty() || named(&match_.principals, principal))
            && !named(&match_.not_principals, principal),
        (match_.trust_domains.is_empty() || named(&match_.trust_domains, part(2)))
            && !named(&match_.not_trust_domains, part(2)),
        (match_.service_accounts.is_empty() || accounts(&match_.service_accounts))
            && !accounts(&match_.not_service_accounts),
        (match_.source_ips.is_empty() || within(&match_.source_ips, source))
            && !within(&match_.not_source_ips, source),
        (match_.destination_ips.is_empty() || within(&match_.destination_ips, destination))
            && !within(&match_.not_destination_ips, destination),
        (match_.destination_ports.is_empty() || match_.destination_ports.contains(&port))
            && !match_.not_destination_ports.contains(&port),
    ];
    fields.into_iter().all(|held| held)
}

/// Whoever has proved no name is nobody that is named.
pub(super) fn named(patterns: &[StringMatch], name: Option<&str>) -> bool {
    let Some(name) = name else { return false };
    patterns.iter().any(|pattern| match pattern {
        StringMatch::Exact(text) => name == &**text,
        StringMatch::Prefix(text) => name.len() >= text.len() && name[..text.len()] == **text,
        StringMatch::Suffix(text) => name.len() >= text.len() && name[name.len() - text.len()..] == **text,
        StringMatch::Presence => true,
    })
}

/// An IPv4 address is also meant by its form in IPv6.
pub(super) fn within(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let mapped = match ip {
        IpAddr::V4(v4) => IpAddr::V6(v4.to_ipv6_mapped()),
        IpAddr::V6(_) => ip,
    };
    nets.iter()
        .any(|net| net.contains(&ip) || (net.prefix_len() >= 96 && net.contains(&mapped)))
}

/// Whether it comes from a pod, by proof, of a waypoint that the workload or a service of it is bound to.
fn through_waypoint(world: &World, workload: &Workload, conn: &Inbound) -> bool {
    let Some(source) = world.workload_at(conn.source_ip.to_canonical()) else {
        return false;
    };
    if conn.peer.as_ref() != Some(&source.identity) {
        return false;
    }
    let of_services = workload
        .services
        .keys()
        .filter_map(|key| world.service_of(key)?.waypoint.as_ref());
    let mut waypoints = workload.waypoint.iter().chain(of_services);
    waypoints.any(|gateway| world.is_of_waypoint(source, gateway))
}
