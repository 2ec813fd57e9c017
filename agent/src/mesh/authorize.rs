//! `authorize`: whether a connection may reach a workload, and which policy says so. Pure.
//!
//! Not here: who the peer is (`net` verified its certificate), and what is done with the answer. Called by `node` for
//! every inbound connection, tunnelled or plain, and again for the open ones when the mesh changes.
//!
//! The order and the meaning of every field are Istio's: STRICT, then DENY, then ALLOW, and once an ALLOW policy covers
//! the workload what none allows is refused. The differences are deliberate, and each refuses where Istio's ambient mode
//! lets through:
//!
//! - A policy that a workload names and that has not arrived denies. (There: it is skipped.)
//! - A DENY match with fields of which an L4 agent cannot say whether they hold (`paths`, `methods`, `hosts`, JWT claims,
//!   headers...) holds when its other fields do, so that a DENY by such fields alone denies everything. (There: it has no
//!   effect.) Only what comes out of a waypoint that the workload, or a service that it backs, is bound to is spared: that
//!   waypoint enforces the policy. What goes around the waypoint is denied.
//! - A match with a value that the feed could not read, such as a network, never widens: in an ALLOW policy it does not
//!   hold, in a DENY policy it does. (A mesh file with such a value is rejected whole.)
//! - A match without any field, or a clause without a match, never widens: in an ALLOW policy it does not hold, in a DENY
//!   policy it does. (There: it is skipped.)
//!
//! As there, an ALLOW match with fields that only a request has does not hold at L4.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Action, Clause, Inbound, Match, Mesh, MtlsMode, Policy, PolicyKey, Refusal, Rule, ServiceAccountMatch,
    SpiffeId, StringMatch, Workload, route::is_pod_of,
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
    verdict(judge(mesh, workload, conn, |policy| !policy.dry_run))
}

/// What [`authorize`] would say if the dry-run policies that cover the workload were enforced; none where it has none.
pub fn rehearse(mesh: &Mesh, workload: &Workload, conn: &Inbound) -> Option<Verdict> {
    mesh.policies_of(workload)
        .any(|policy| policy.dry_run)
        .then(|| verdict(judge(mesh, workload, conn, |_| true)))
}

/// The dry-run policies that match a connection: what they would have done is in their action.
pub fn dry_run_matches<'a>(
    mesh: &'a Mesh,
    workload: &'a Workload,
    conn: &'a Inbound,
) -> impl Iterator<Item = &'a Policy> {
    let conn = Judged::new(mesh, workload, conn);
    mesh.policies_of(workload)
        .map(AsRef::as_ref)
        .filter(move |p| p.dry_run && policy_matches(p, &conn))
}

fn verdict(judged: Result<Option<PolicyKey>, Refusal>) -> Verdict {
    judged.map_or_else(Verdict::Deny, |policy| Verdict::Allow { policy })
}

/// The policy that allows it, where one must; `in_force` says which policies count.
fn judge(
    mesh: &Mesh,
    workload: &Workload,
    conn: &Inbound,
    in_force: impl Fn(&Policy) -> bool,
) -> Result<Option<PolicyKey>, Refusal> {
    if conn.peer.is_none() {
        check_strict(mesh, workload, conn.destination.port())?;
    }
    if let Some(missing) = workload.policies.iter().find(|key| mesh.policy(key).is_none()) {
        return Err(Refusal::PolicyMissing(missing.clone()));
    }
    let conn = Judged::new(mesh, workload, conn);
    let enforced = |action| {
        mesh.policies_of(workload)
            .filter(move |policy| policy.action == action)
            .filter(|policy| in_force(policy))
    };
    if let Some(policy) = enforced(Action::Deny).find(|policy| policy_matches(policy, &conn)) {
        return Err(Refusal::DeniedBy(policy.key.clone()));
    }
    match enforced(Action::Allow).find(|policy| policy_matches(policy, &conn)) {
        Some(policy) => Ok(Some(policy.key.clone())),
        None if enforced(Action::Allow).next().is_none() => Ok(None),
        None => {
            let in_scope = enforced(Action::Allow).map(|policy| &policy.key).collect();
            Err(Refusal::NotAllowed(in_scope))
        }
    }
}

fn check_strict(mesh: &Mesh, workload: &Workload, port: u16) -> Result<(), Refusal> {
    match mesh.mtls_setting(workload, port) {
        Some(setting) if setting.mode == MtlsMode::Strict => Err(Refusal::PlaintextToStrict(port, setting)),
        _ => Ok(()),
    }
}

/// What the fields of a match look at.
#[derive(Clone, Copy)]
struct Judged<'a> {
    mesh: &'a Mesh,
    workload: &'a Workload,
    /// None for a plaintext peer, which has proved nothing.
    peer: Option<&'a SpiffeId>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Judged<'a> {
    fn new(mesh: &'a Mesh, workload: &'a Workload, conn: &'a Inbound) -> Self {
        Self {
            mesh,
            workload,
            peer: conn.peer.as_ref(),
            source_ip: conn.source_ip.to_canonical(),
            destination_ip: conn.destination.ip().to_canonical(),
            destination_port: conn.destination.port(),
        }
    }

    /// Whether it comes out of a waypoint that the workload, or a service that it backs, is bound to: there a request
    /// was judged by what only a request has. The address is the tunnel's own and the identity is proven, so nobody can
    /// pretend.
    fn came_through_waypoint(&self) -> bool {
        let source = self.mesh.workload_at(self.source_ip);
        let Some(source) = source.filter(|source| self.peer == Some(&source.identity)) else {
            return false;
        };
        let services = self.workload.services.keys();
        let of_services = services.filter_map(|key| self.mesh.service(key)?.waypoint.as_ref());
        let mut waypoints = self.workload.waypoint.iter().chain(of_services);
        waypoints.any(|gateway| is_pod_of(self.mesh, source, gateway))
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
/// A plaintext peer has no name of any kind. A field that names some does not hold for it, not even `*` (which asks that
/// there be one); its `not_` twin does hold, for a peer without a name is not one of those named. So
/// `not_principals: [*]` is how a policy says "plaintext", and an ALLOW by `not_principals: [x]` lets plaintext peers
/// in: as in Istio, whoever wants proof must ask for it, by `principals` or by STRICT.
fn match_matches(match_: &Match, action: Action, conn: &Judged<'_>) -> bool {
    if *match_ == Match::default() {
        return empty_matches(action);
    }
    let unknown = !match_.unseen.is_empty() || !match_.unreadable.is_empty();
    if unknown && action == Action::Allow {
        return false;
    }
    if !match_.unseen.is_empty() && conn.came_through_waypoint() {
        return false;
    }
    peer_matches(match_, conn) && addresses_match(match_, conn)
}

fn peer_matches(match_: &Match, conn: &Judged<'_>) -> bool {
    let is = |pattern: &StringMatch, name: fn(&SpiffeId) -> &str| {
        conn.peer.is_some_and(|peer| pattern.matches(name(peer)))
    };
    let service_account = |account: &ServiceAccountMatch| {
        conn.peer.is_some_and(|peer| {
            peer.namespace() == &*account.namespace && peer.service_account() == &*account.name
        })
    };
    field_matches(&match_.namespaces, &match_.not_namespaces, |pattern| {
        is(pattern, SpiffeId::namespace)
    }) && field_matches(&match_.trust_domains, &match_.not_trust_domains, |pattern| {
        is(pattern, SpiffeId::trust_domain)
    }) && field_matches(&match_.principals, &match_.not_principals, |pattern| {
        is(pattern, SpiffeId::principal)
    }) && field_matches(
        &match_.service_accounts,
        &match_.not_service_accounts,
        service_account,
    )
}

fn addresses_match(match_: &Match, conn: &Judged<'_>) -> bool {
    let source_ip = |net: &IpNet| net.contains(&conn.source_ip);
    let destination_ip = |net: &IpNet| net.contains(&conn.destination_ip);
    let destination_port = |port: &u16| *port == conn.destination_port;
    field_matches(&match_.source_ips, &match_.not_source_ips, source_ip)
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
