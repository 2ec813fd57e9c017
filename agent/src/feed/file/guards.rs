//! Nobody goes around a waypoint that enforces something (`crate::manifests::guards`), beside a mesh file: a waypoint runs as the
//! pods behind its service do.

use std::collections::BTreeSet;

use rustc_hash::FxHashSet;

use super::{policies::waypoint_service, workloads::Pod};
use crate::{
    manifests::guards::{self, Named},
    mesh::{
        Action, GatewayAddress, Policy, PolicyKey, Scope, Service, ServiceKey, StringMatch, TunnelProtocol,
    },
};

/// Adds those policies, and notes them at the workloads.
pub(super) fn guards(
    policies: &mut Vec<Policy>,
    targeted: &[(ServiceKey, PolicyKey)],
    services: &[Service],
    pods: &mut [Pod<'_>],
) {
    let enforced = |key: &PolicyKey| {
        let policy = policies.iter().find(|policy| policy.key == *key);
        policy.is_some_and(Policy::is_enforced)
    };
    let guarded = targeted.iter().filter(|(_, policy)| enforced(policy));
    let guarded: FxHashSet<_> = guarded.map(|(service, _)| service).collect();
    let guards: Vec<_> = pods
        .iter()
        .map(|pod| of_pod(pod, pods, policies, &guarded, services))
        .collect();
    for (pod, guards) in pods.iter_mut().zip(guards) {
        for policy in guards {
            pod.workload.policies.push(policy.key.clone());
            if !policies.iter().any(|it| it.key == policy.key) {
                policies.push(policy);
            }
        }
    }
}

/// The policies for one workload.
fn of_pod(
    pod: &Pod<'_>,
    pods: &[Pod<'_>],
    policies: &[Policy],
    guarded: &FxHashSet<&ServiceKey>,
    services: &[Service],
) -> Vec<Policy> {
    let workload = &pod.workload;
    if workload.tunnel_protocol != TunnelProtocol::Hbone || workload.native_tunnel {
        return Vec::new();
    }
    let own = services
        .iter()
        .filter(|it| workload.services.contains_key(&it.key));
    let of_services = own.filter_map(|it| it.waypoint.as_ref());
    let bound: Vec<_> = workload.waypoint.iter().chain(of_services).collect();
    let waypoints = principals(&bound, services, pods);
    let covering: Vec<_> = policies.iter().filter(|policy| covers(policy, pod)).collect();
    let allows = |policy: &&&Policy| policy.is_enforced() && policy.action == Action::Allow;
    let is_allowed = covering.iter().any(|policy| allows(&policy));
    let of_waypoint = workload.waypoint.as_ref();
    let of_waypoint = of_waypoint.and_then(|it| waypoint_service(it, services));
    let is_guarded = workload.services.keys().any(|key| guarded.contains(key))
        || of_waypoint.is_some_and(|it| guarded.contains(&it.key));
    let asks = !bound.is_empty() && covering.iter().any(|policy| guards::needs_waypoint(policy));
    let mut all = Vec::new();
    if is_guarded || asks {
        let mut named = Named::default();
        covering.iter().for_each(|policy| named.add(policy));
        all.push(guards::deny_others(&workload.namespace, &waypoints, named));
    }
    // It has judged the client by every one of them.
    if is_allowed && !waypoints.is_empty() {
        all.push(guards::let_in(&workload.namespace, waypoints));
    }
    all
}

fn covers(policy: &Policy, pod: &Pod<'_>) -> bool {
    match policy.scope {
        Scope::Mesh => true,
        Scope::Namespace => policy.key.namespace == pod.workload.namespace,
        Scope::Selector => pod.workload.policies.contains(&policy.key),
    }
}

/// Whom the waypoints run as.
fn principals(bound: &[&GatewayAddress], services: &[Service], pods: &[Pod<'_>]) -> Vec<StringMatch> {
    let of_waypoints = bound.iter().filter_map(|it| waypoint_service(it, services));
    let behind = of_waypoints.flat_map(|service| {
        let is_behind = |pod: &&Pod<'_>| pod.workload.services.contains_key(&service.key);
        pods.iter().filter(is_behind)
    });
    let principals: BTreeSet<_> = behind.map(|pod| pod.workload.identity.principal()).collect();
    let principals = principals.into_iter();
    principals.map(|it| StringMatch::Exact(it.into())).collect()
}
