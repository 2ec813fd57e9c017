//! `authorize`: whether a connection may reach a workload, and which policy says so. Pure.
//!
//! Not here: who the peer is (`net` verified its certificate), and what is done with the answer. Called by `node` for
//! every inbound connection, tunnelled or plain, and again for the open ones when the mesh changes; and by `waypoint` for
//! every request ([`authorize_service`], [`authorize_request`]), which has all that a policy can ask for.
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

use std::{cell::OnceCell, net::IpAddr};

use super::{
    Action, Inbound, Mesh, MtlsMode, Policy, PolicyKey, Refusal, SpiffeId, Workload, http::RequestFacts,
    route::is_pod_of,
};

mod cover;
mod request;
mod rule;

pub(super) use cover::{Cover, Covered, OfServices, Policies};
use request::Asked;
use rule::{KINDS, Rule, key};

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
    verdict(judge(mesh, workload, conn, &mesh.cover(workload)))
}

/// Whether a request may reach a service: what the policies say that name the service, its waypoint or that one's class
/// ([`super::http::ServiceRoutes::policies`]). One that is not there refuses.
///
/// `conn` has the client's identity and address, and what it dialled.
pub fn authorize_service(
    mesh: &Mesh,
    policies: &[PolicyKey],
    conn: &Inbound,
    request: &RequestFacts<'_>,
) -> Verdict {
    let conn = Judged::of_request(mesh, conn, request);
    verdict(judge_policies(&mesh.cover_of(policies), &conn))
}

/// Whether a connection that is no request may reach a service: what the same policies say. What only a request has is not
/// there, so that a match that asks for it holds where it denies and does not where it allows.
pub fn authorize_service_connection(mesh: &Mesh, policies: &[PolicyKey], conn: &Inbound) -> Verdict {
    let conn = Judged::of_anybody(mesh, conn);
    verdict(judge_policies(&mesh.cover_of(policies), &conn))
}

/// Whether a connection that is no request may go on from a waypoint to a workload, as [`authorize_request`] says it of requests.
pub fn authorize_from_waypoint(mesh: &Mesh, workload: &Workload, conn: &Inbound) -> Verdict {
    let conn = Judged::of_anybody(mesh, conn);
    verdict(judge_policies(&mesh.cover(workload), &conn))
}

/// Whether a request may reach a workload: what every policy says that covers it.
///
/// `conn` has the client's identity and address, not the waypoint's, and the address and port of the workload. STRICT
/// does not matter: what a waypoint is asked came by mutual TLS.
pub fn authorize_request(
    mesh: &Mesh,
    workload: &Workload,
    conn: &Inbound,
    request: &RequestFacts<'_>,
) -> Verdict {
    let conn = Judged::of_request(mesh, conn, request);
    verdict(judge_policies(&mesh.cover(workload), &conn))
}

/// The policies that are only recorded and match a request: those of the service ([`authorize_service`]), then those of the
/// workload ([`authorize_request`]), where it is known which one that is.
pub fn recorded_matches<'a>(
    mesh: &'a Mesh,
    policies: &'a [PolicyKey],
    workload: Option<&'a Workload>,
    conn: &'a Inbound,
    request: &'a RequestFacts<'a>,
) -> impl Iterator<Item = &'a Policy> {
    let covering = workload.filter(|workload| mesh.cover(workload).dry_run);
    let covering = covering
        .into_iter()
        .flat_map(|workload| mesh.policies_of(workload));
    let of_service = policies.iter().filter_map(|key| mesh.policy(key));
    let conn = Judged::of_request(mesh, conn, request);
    of_service
        .chain(covering)
        .map(AsRef::as_ref)
        .filter(move |policy| !policy.is_enforced() && matches(policy, &conn))
}

/// What [`authorize`] would say if the dry-run policies that cover the workload were enforced; none where it has none.
pub fn rehearse(mesh: &Mesh, workload: &Workload, conn: &Inbound) -> Option<Verdict> {
    let cover = mesh.cover(workload);
    cover
        .dry_run
        .then(|| verdict(judge(mesh, workload, conn, &cover.rehearsed())))
}

/// The policies that are only recorded and match a connection: what those in dry-run would have done is in their action.
pub fn dry_run_matches<'a>(
    mesh: &'a Mesh,
    workload: &'a Workload,
    conn: &'a Inbound,
) -> impl Iterator<Item = &'a Policy> {
    let any = mesh.cover(workload).dry_run;
    let covering = any.then(|| mesh.policies_of(workload)).into_iter().flatten();
    let conn = Judged::new(mesh, workload, conn);
    covering
        .map(AsRef::as_ref)
        .filter(move |policy| !policy.is_enforced() && matches(policy, &conn))
}

/// As the index of a cover finds it, for a policy by itself.
fn matches(policy: &Policy, conn: &Judged<'_>) -> bool {
    let mut rules = policy
        .rules
        .iter()
        .filter_map(|rule| Rule::new(rule, policy.action));
    rules.any(|rule| rule.holds(conn))
}

fn verdict(judged: Result<Option<PolicyKey>, Refusal>) -> Verdict {
    judged.map_or_else(Verdict::Deny, |policy| Verdict::Allow { policy })
}

/// The policy that allows it, where one must.
fn judge(
    mesh: &Mesh,
    workload: &Workload,
    conn: &Inbound,
    cover: &Cover,
) -> Result<Option<PolicyKey>, Refusal> {
    if conn.peer.is_none() {
        check_strict(mesh, workload, conn.destination.port())?;
    }
    judge_policies(cover, &Judged::new(mesh, workload, conn))
}

/// DENY before ALLOW; and where there is any ALLOW, one must match.
fn judge_policies(cover: &Cover, conn: &Judged<'_>) -> Result<Option<PolicyKey>, Refusal> {
    if let Some(missing) = &cover.missing {
        return Err(Refusal::PolicyMissing(missing.clone()));
    }
    if let Some(policy) = cover.first_match(Action::Deny, conn) {
        return Err(Refusal::DeniedBy(policy.clone()));
    }
    match cover.first_match(Action::Allow, conn) {
        Some(policy) => Ok(Some(policy.clone())),
        None if cover.enforced(Action::Allow, conn).next().is_none() => Ok(None),
        None => Err(Refusal::NotAllowed(cover.enforced(Action::Allow, conn).collect())),
    }
}

fn check_strict(mesh: &Mesh, workload: &Workload, port: u16) -> Result<(), Refusal> {
    match mesh.mtls_setting(workload, port) {
        Some(setting) if setting.mode == MtlsMode::Strict => Err(Refusal::PlaintextToStrict(port, setting)),
        _ => Ok(()),
    }
}

/// What the fields of a match look at.
struct Judged<'a> {
    mesh: &'a Mesh,
    /// None where a waypoint judges.
    workload: Option<&'a Workload>,
    /// Boxed: without one, there is nothing to make room for.
    request: Option<Box<Asked<'a>>>,
    /// None for a plaintext peer, which has proved nothing.
    peer: Option<Peer<'a>>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
    /// By what rules for it are found, by [`rule::Kind`].
    keys: [Option<u64>; KINDS],
    through_waypoint: OnceCell<bool>,
}

/// The names of a peer.
struct Peer<'a> {
    identity: &'a SpiffeId,
    principal: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
}

impl<'a> Peer<'a> {
    fn new(identity: &'a SpiffeId) -> Self {
        Self {
            identity,
            principal: identity.principal(),
            namespace: identity.namespace(),
            trust_domain: identity.trust_domain(),
            service_account: identity.service_account(),
        }
    }
}

impl<'a> Judged<'a> {
    fn new(mesh: &'a Mesh, workload: &'a Workload, conn: &'a Inbound) -> Self {
        Self::of(mesh, conn, Some(workload), None)
    }

    /// Nothing is spared what a waypoint judges: this is the waypoint.
    fn of_request(mesh: &'a Mesh, conn: &'a Inbound, request: &'a RequestFacts<'a>) -> Self {
        let request = Asked::new(request, conn.source_ip.to_canonical());
        Self::of(mesh, conn, None, Some(Box::new(request)))
    }

    fn of_anybody(mesh: &'a Mesh, conn: &'a Inbound) -> Self {
        Self::of(mesh, conn, None, None)
    }

    /// Inline: it is made where it lies, once for every connection.
    #[inline]
    fn of(
        mesh: &'a Mesh,
        conn: &'a Inbound,
        workload: Option<&'a Workload>,
        request: Option<Box<Asked<'a>>>,
    ) -> Self {
        let peer = conn.peer.as_ref().map(Peer::new);
        let of_peer = |value: fn(&Peer<'_>) -> u64| peer.as_ref().map(value);
        let destination_port = conn.destination.port();
        Self {
            mesh,
            workload,
            request,
            source_ip: conn.source_ip.to_canonical(),
            destination_ip: conn.destination.ip().to_canonical(),
            destination_port,
            keys: [
                of_peer(|peer| key(peer.principal)),
                of_peer(|peer| key((peer.namespace, peer.service_account))),
                of_peer(|peer| key(peer.namespace)),
                Some(key(destination_port)),
            ],
            peer,
            through_waypoint: OnceCell::new(),
        }
    }

    /// Whether it is a waypoint that judges, and not the workload's agent.
    fn at_waypoint(&self) -> bool {
        self.workload.is_none()
    }

    /// Whether it comes out of a waypoint that the workload, or a service that it backs, is bound to: there a request
    /// was judged by what only a request has. The address is the tunnel's own and the identity is proven, so nobody can
    /// pretend.
    fn came_through_waypoint(&self) -> bool {
        *self.through_waypoint.get_or_init(|| self.find_waypoint())
    }

    fn find_waypoint(&self) -> bool {
        let Some(workload) = self.workload else {
            return false;
        };
        let peer = self.peer.as_ref().map(|peer| peer.identity);
        let source = self.mesh.workload_at(self.source_ip);
        let Some(source) = source.filter(|source| peer == Some(&source.identity)) else {
            return false;
        };
        let services = workload.services.keys();
        let of_services = services.filter_map(|key| self.mesh.service(key)?.waypoint.as_ref());
        let mut waypoints = workload.waypoint.iter().chain(of_services);
        waypoints.any(|gateway| is_pod_of(self.mesh, source, gateway))
    }
}

#[cfg(test)]
mod tests;
