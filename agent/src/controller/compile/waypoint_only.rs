//! Nobody goes around a waypoint that enforces something: the pods behind it accept only what comes out of it.
//!
//! Said in policies of our own, which any agent of the protocol enforces: a DENY of everybody but the waypoint, and but
//! those whom an ALLOW policy of the pod names (who scrapes its metrics, for example); and where the pod has ALLOW
//! policies, one more that lets the waypoint in. With no waypoint to enforce what is meant for one, nobody gets in.
//!
//! Where nothing but ALLOW policies cover such a pod, its waypoint is let in all the same: a waypoint of ours has judged the
//! client by every one of them, with the client's identity and never with its own. A waypoint of others has not.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::{claims::Owner, drafts::Draft, namespace::Pass};
use crate::{
    cluster::objects::Kind,
    manifests::{
        Reader, Severity, Target, TargetKind, Targets,
        guards::{self, Named},
        policy,
    },
    mesh::{GatewayAddress, GatewayDestination, Policy, Service, ServiceKey, StringMatch, TunnelProtocol},
};

/// A service of the namespace: its waypoint, and whether something is enforced there.
struct Guarded<'a> {
    service: &'a Service,
    enforced: bool,
}

/// Adds those policies.
pub(super) fn waypoint_only(pass: &mut Pass<'_>) {
    tell_targets(pass);
    let mut attached = Vec::new();
    {
        let guarded = guarded(pass);
        let by_request: Vec<_> = pass.covering().filter(|read| read.needs_waypoint()).collect();
        let allows: Vec<_> = pass.covering().filter(|read| read.allows()).collect();
        let enforced = guarded.values().any(|it| it.enforced);
        let own = |draft: &Draft<'_>| draft.workload.waypoint.is_some();
        let said = enforced || !by_request.is_empty() || !allows.is_empty();
        if !said && !pass.drafts.all.iter().any(own) {
            return;
        }
        for (at, draft) in pass.drafts.all.iter().enumerate() {
            if let Some(only) = only(pass, draft, &guarded, &by_request, &allows) {
                attached.push((at, only));
            }
        }
    }
    for (at, policies) in attached {
        for policy in policies {
            let policies = &mut pass.drafts.all[at].workload.policies;
            policies.push(policy.key.clone());
            if !pass.unit.policies.iter().any(|it| it.key == policy.key) {
                pass.unit.policies.push(policy.into());
            }
        }
    }
}

fn guarded<'p>(pass: &'p Pass<'_>) -> FxHashMap<&'p ServiceKey, Guarded<'p>> {
    let services = pass.unit.services.iter();
    let guarded = services.map(|it| {
        let targeted = pass
            .policies
            .iter()
            .any(|read| read.enforced && is_about(read, &it.owner, &it.value));
        let of_waypoint = it.value.waypoint.as_ref().and_then(|it| waypoint(pass, it));
        let guarded = Guarded {
            service: &it.value,
            enforced: targeted || of_waypoint.is_some_and(|it| it.enforces),
        };
        (&it.value.key, guarded)
    });
    guarded.collect()
}

/// Whether a policy is, or may be, about a service. One that nobody knows the target of is about what has a waypoint.
pub(super) fn is_about(read: &policy::Read, owner: &Owner, service: &Service) -> bool {
    targets(&read.targets, owner, service)
}

/// The same of any `targetRefs`.
pub(super) fn targets(targets: &Targets, owner: &Owner, service: &Service) -> bool {
    let (kind, name) = (target_kind(owner), &owner.name);
    let named = targets.all.iter().any(|it| it.kind == kind && *it.name == **name);
    named || (targets.unreadable && service.waypoint.is_some())
}

fn target_kind(owner: &Owner) -> TargetKind {
    match owner.kind {
        Kind::ServiceEntry => TargetKind::ServiceEntry,
        _ => TargetKind::Service,
    }
}

/// The waypoint that something is bound to, as far as it is known.
pub(super) fn waypoint<'p>(
    pass: &'p Pass<'_>,
    bound: &GatewayAddress,
) -> Option<&'p super::shared::Waypoint> {
    match &bound.destination {
        GatewayDestination::Service(key) => pass.cx.shared.waypoint_of(key),
        GatewayDestination::Address(_) => None,
    }
}

/// The policies for one workload; none where it may be reached as it is.
fn only(
    pass: &Pass<'_>,
    draft: &Draft<'_>,
    guarded: &FxHashMap<&ServiceKey, Guarded<'_>>,
    by_request: &[&policy::Read],
    allows: &[&policy::Read],
) -> Option<Vec<Policy>> {
    let workload = &draft.workload;
    if workload.tunnel_protocol != TunnelProtocol::Hbone || workload.native_tunnel {
        return None;
    }
    let services: Vec<_> = workload
        .services
        .keys()
        .filter_map(|key| guarded.get(key))
        .collect();
    let of_services = services.iter().filter_map(|it| it.service.waypoint.as_ref());
    let bound: Vec<_> = workload.waypoint.iter().chain(of_services).collect();
    let own = workload.waypoint.as_ref().and_then(|it| waypoint(pass, it));
    let enforced = services.iter().any(|it| it.enforced) || own.is_some_and(|it| it.enforces);
    let asked = !bound.is_empty() && by_request.iter().any(|read| covers(read, draft));
    let covering: Vec<_> = allows.iter().filter(|read| covers(read, draft)).collect();
    if !enforced && !asked {
        // A waypoint of ours has asked all of them with the client's identity.
        let ours = principals(pass, &bound, |waypoint| waypoint.is_ours);
        let let_in = !covering.is_empty() && !ours.is_empty();
        return let_in.then(|| vec![guards::let_in(pass.namespace, ours)]);
    }
    let waypoints = principals(pass, &bound, |_| true);
    let mut named = Named::default();
    covering.iter().for_each(|read| named.add(&read.policy));
    let mut policies = vec![guards::deny_others(pass.namespace, &waypoints, named)];
    if !covering.is_empty() && !waypoints.is_empty() {
        policies.push(guards::let_in(pass.namespace, waypoints));
    }
    Some(policies)
}

/// Whom the waypoints run as.
fn principals(
    pass: &Pass<'_>,
    bound: &[&GatewayAddress],
    counts: impl Fn(&super::shared::Waypoint) -> bool,
) -> Vec<StringMatch> {
    let waypoints = bound.iter().filter_map(|bound| waypoint(pass, bound));
    let identities = waypoints
        .filter(|it| counts(it))
        .filter_map(|it| it.identity.as_ref());
    let principals: BTreeSet<_> = identities.map(|identity| identity.principal()).collect();
    let principals = principals.into_iter();
    principals.map(|it| StringMatch::Exact(it.into())).collect()
}

fn covers(read: &policy::Read, draft: &Draft<'_>) -> bool {
    let labels = read.selector.as_ref();
    !read.targets.any && labels.is_none_or(|labels| draft.has_labels(labels))
}

/// Says which policies have a target that is not there, or that no waypoint enforces.
fn tell_targets(pass: &mut Pass<'_>) {
    let mut told = Vec::new();
    for read in &pass.policies {
        for target in &read.targets.all {
            if let Some((severity, reason, message)) = wrong(pass, read, target) {
                told.push((read.object.clone(), severity, reason, message));
            }
        }
    }
    for (object, severity, reason, message) in told {
        Reader::new(object, &mut pass.unit.diagnostics).tell(severity, reason, message);
    }
}

type Wrong = (Severity, &'static str, String);

fn wrong(pass: &Pass<'_>, read: &policy::Read, target: &Target) -> Option<Wrong> {
    let name = &target.name;
    let missing = |what: &str| {
        let message = format!("spec.targetRefs: there is no {what} {name} here: correct the name");
        Some((Severity::Warning, "TargetMissing", message))
    };
    let kind = match target.kind {
        TargetKind::Service => Kind::Service,
        TargetKind::ServiceEntry => Kind::ServiceEntry,
        TargetKind::Gateway => {
            let there = pass.objects.metadata(Kind::Gateway, name).is_some();
            return if there { None } else { missing("Gateway") };
        }
        TargetKind::GatewayClass if pass.is_root() => return None,
        TargetKind::GatewayClass => {
            let message = "spec.targetRefs: a GatewayClass counts only in the root namespace".to_owned();
            return Some((Severity::Warning, "TargetIgnored", message));
        }
    };
    let is = |owner: &Owner| owner.kind == kind && *owner.name == **name;
    let mut services = pass.unit.services.iter().filter(|it| is(&it.owner)).peekable();
    if services.peek().is_none() {
        return missing(kind.kind());
    }
    if !read.enforced || services.any(|it| it.value.waypoint.is_some()) {
        return None;
    }
    let message = format!(
        "spec.targetRefs: {} {name} has no waypoint, so that nobody can enforce this and its pods refuse everybody: \
         label it istio.io/use-waypoint",
        kind.kind()
    );
    Some((Severity::Error, "NoWaypoint", message))
}
