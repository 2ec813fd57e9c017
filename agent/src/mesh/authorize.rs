//! `authorize`: whether a connection may reach a workload, and which policy says so. Pure.
//!
//! Not here: who the peer is (`net` verified its certificate), and what is done with the answer. Called by `node` for
//! every inbound connection, tunnelled or plain, and again for the open ones when the mesh changes.
//!
//! The order and the meaning of every field are Istio's, with two deliberate differences, both of which refuse where
//! Istio lets through: a policy that a workload names and that has not arrived denies, and a DENY match without any
//! field (what is left when a feed drops what an L4 agent cannot see) denies.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, Clause, Inbound, Match, Mesh, MtlsMode, Policy, PolicyKey, Refusal, Rule, StringMatch, Workload,
};

/// The answer of [`authorize`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Allow {
        /// The ALLOW policy that matched; none where no ALLOW policy covers the workload.
        policy: Option<PolicyKey>,
    },
    /// It may not.
    Deny(Refusal),
}

/// Whether a connection may reach a workload.
pub fn authorize(mesh: &Mesh, workload: &Workload, conn: &Inbound) -> Verdict {
    judge(mesh, workload, conn).map_or_else(Verdict::Deny, |policy| Verdict::Allow { policy })
}

/// The dry-run policies that match a connection: what they would have done is in their action.
pub fn dry_run_matches<'a>(
    mesh: &'a Mesh,
    workload: &'a Workload,
    conn: &Inbound,
) -> impl Iterator<Item = &'a Policy> {
    let conn = Judged::new(conn);
    mesh.policies_of(workload)
        .map(AsRef::as_ref)
        .filter(move |p| p.dry_run && policy_matches(p, &conn))
}

fn judge(mesh: &Mesh, workload: &Workload, conn: &Inbound) -> Result<Option<PolicyKey>, Refusal> {
    let port = conn.destination.port();
    if conn.peer.is_none() && mesh.mtls_mode(workload, port) == MtlsMode::Strict {
        return Err(Refusal::PlaintextToStrict(port));
    }
    if let Some(missing) = workload.policies.iter().find(|key| mesh.policy(key).is_none()) {
        return Err(Refusal::PolicyMissing(missing.clone()));
    }
    let conn = Judged::new(conn);
    let enforced = |action| {
        mesh.policies_of(workload)
            .filter(move |p| !p.dry_run && p.action == action)
    };
    if let Some(policy) = enforced(Action::Deny).find(|policy| policy_matches(policy, &conn)) {
        return Err(Refusal::DeniedBy(policy.key.clone()));
    }
    match enforced(Action::Allow).find(|policy| policy_matches(policy, &conn)) {
        Some(policy) => Ok(Some(policy.key.clone())),
        None if enforced(Action::Allow).next().is_some() => Err(Refusal::NotAllowed),
        None => Ok(None),
    }
}

/// What the fields of a match look at.
#[derive(Clone, Copy)]
struct Judged<'a> {
    /// None for a plaintext peer, which has proved nothing.
    principal: Option<&'a str>,
    namespace: Option<&'a str>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Judged<'a> {
    fn new(conn: &'a Inbound) -> Self {
        Self {
            principal: conn.peer.as_ref().map(|peer| peer.principal()),
            namespace: conn.peer.as_ref().map(|peer| peer.namespace()),
            source_ip: conn.source_ip.to_canonical(),
            destination_ip: conn.destination.ip().to_canonical(),
            destination_port: conn.destination.port(),
        }
    }
}

fn policy_matches(policy: &Policy, conn: &Judged<'_>) -> bool {
    policy
        .rules
        .iter()
        .any(|rule| rule_matches(rule, policy.action, conn))
}

fn rule_matches(rule: &Rule, action: Action, conn: &Judged<'_>) -> bool {
    rule.clauses
        .iter()
        .all(|clause| clause_matches(clause, action, conn))
}

fn clause_matches(clause: &Clause, action: Action, conn: &Judged<'_>) -> bool {
    if clause.matches.is_empty() {
        return empty_matches(action);
    }
    clause
        .matches
        .iter()
        .any(|match_| match_matches(match_, action, conn))
}

/// Nothing is said, so nothing is known: it must never widen what is allowed.
fn empty_matches(action: Action) -> bool {
    action == Action::Deny
}

/// Every field that says something must hold.
///
/// A plaintext peer has neither principal nor namespace. A field that names some does not hold for it, not even `*`
/// (which asks that there be one); its `not_` twin does hold, for a peer without a name is not one of those named.
/// So `not_principals: [*]` is how a policy says "plaintext", and an ALLOW by `not_principals: [x]` lets plaintext
/// peers in: as in Istio, whoever wants proof must ask for it, by `principals` or by STRICT.
fn match_matches(match_: &Match, action: Action, conn: &Judged<'_>) -> bool {
    if *match_ == Match::default() {
        return empty_matches(action);
    }
    let namespace = |pattern: &StringMatch| conn.namespace.is_some_and(|name| pattern.matches(name));
    let principal = |pattern: &StringMatch| conn.principal.is_some_and(|name| pattern.matches(name));
    let source_ip = |net: &IpNet| net.contains(&conn.source_ip);
    let destination_ip = |net: &IpNet| net.contains(&conn.destination_ip);
    let destination_port = |port: &u16| *port == conn.destination_port;

    field_matches(&match_.namespaces, &match_.not_namespaces, namespace)
        && field_matches(&match_.principals, &match_.not_principals, principal)
        && field_matches(&match_.source_ips, &match_.not_source_ips, source_ip)
        && field_matches(
            &match_.destination_ips,
            &match_.not_destination_ips,
            destination_ip,
        )
        && field_matches(
            &match_.destination_ports,
            &match_.not_destination_ports,
            destination_port,
        )
}

/// One of the values, where there are any, and none of the `not_` twin's.
fn field_matches<T>(values: &[T], not_values: &[T], holds: impl Fn(&T) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&holds)) && !not_values.iter().any(&holds)
}

#[cfg(test)]
mod tests;
