//! Which connections may go from app to app, as a table.

use super::*;
use crate::mesh::{
    Action, Match, MeshParts, Policy, Scope, StringMatch, TunnelProtocol,
    sample::{self, any_of, backs, policy},
};

/// What `shop-1` (10.0.0.1) is told that dials `to` in a mesh with `cart-1` (10.0.0.2), behind service `cart`.
fn answer(
    change: impl FnOnce(&mut MeshParts),
    to: &str,
) -> Result<(Arc<Workload>, SocketAddr), ThroughAgent> {
    let mut parts = MeshParts {
        workloads: vec![
            sample::pod("shop-1", &["10.0.0.1", "fd00::1"]),
            backs(sample::pod("cart-1", &["10.0.0.2", "fd00::2"]), "cart"),
        ],
        services: vec![sample::service("cart", &["10.96.0.1", "fd00:96::1"])],
        ..sample::parts()
    };
    change(&mut parts);
    let mesh = Mesh::new(parts);
    let source = mesh.workload(&sample::uid("shop-1")).unwrap().clone();
    let destination = to.parse().unwrap();
    direct(&mesh, &Outbound { source, destination }, 0)
}

fn check(change: impl FnOnce(&mut MeshParts), to: &str, expect: &str) {
    let answer = match answer(change, to) {
        Ok((workload, app)) => format!("{} at {app}", workload.name),
        Err(why) => why.to_string(),
    };
    assert_eq!(answer, expect, "to {to}");
}

fn check_refused(change: impl FnOnce(&mut MeshParts), to: &str) {
    let answer = answer(change, to);
    assert!(
        matches!(answer, Err(ThroughAgent::Refused(_))),
        "{to}: {answer:?}"
    );
}

fn only_for(principal: &str) -> Policy {
    let rule = any_of([Match {
        principals: vec![StringMatch::Exact(principal.into())],
        ..Match::default()
    }]);
    policy("demo/only", Scope::Namespace, Action::Allow, vec![rule])
}

#[test]
fn what_the_agent_would_tunnel_to_the_pod_and_allow_goes_directly() {
    check(|_| {}, "10.0.0.2:8080", "cart-1 at 10.0.0.2:8080");
    check(|_| {}, "10.96.0.1:80", "cart-1 at 10.0.0.2:8080");
    check(|_| {}, "[fd00:96::1]:80", "cart-1 at [fd00::2]:8080");
    let allows = |parts: &mut MeshParts| parts.policies = vec![only_for("cluster.local/ns/demo/sa/shop")];
    check(allows, "10.96.0.1:80", "cart-1 at 10.0.0.2:8080");
}

#[test]
fn what_is_refused_is_the_agents_to_refuse() {
    let other = |parts: &mut MeshParts| parts.policies = vec![only_for("cluster.local/ns/demo/sa/other")];
    check_refused(other, "10.0.0.2:8080");
    check_refused(other, "10.96.0.1:80");
    check_refused(|_| {}, "10.96.0.1:81");
    check_refused(|_| {}, "10.0.0.2:15008");
    check_refused(|_| {}, "10.9.9.9:80");
}

#[test]
fn a_waypoint_is_never_passed_by() {
    let of_service = |parts: &mut MeshParts| {
        parts.services.push(sample::service("waypoint", &["10.96.0.9"]));
        parts
            .workloads
            .push(backs(sample::pod("waypoint-1", &["10.0.0.9"]), "waypoint"));
        parts.services[0].waypoint = sample::waypoint_service("waypoint");
    };
    check(of_service, "10.96.0.1:80", "it goes through a waypoint");
    let of_pod = |parts: &mut MeshParts| {
        parts.workloads.push(sample::pod("waypoint-1", &["10.0.0.9"]));
        parts.workloads[1].waypoint = sample::waypoint_address("10.0.0.9", 15008);
    };
    check(of_pod, "10.0.0.2:8080", "it goes through a waypoint");
}

#[test]
fn the_narrowest_setting_of_either_end_decides() {
    const SHOP: &str = "`sameNode: tunnel` is set for demo/shop-1";
    const CART: &str = "`sameNode: tunnel` is set for demo/cart-1";
    let to = "10.0.0.2:8080";
    check(|parts| parts.same_nodes.mesh = SameNode::Tunnel, to, SHOP);
    let namespace = |same_node| {
        move |parts: &mut MeshParts| {
            parts.same_nodes.mesh = SameNode::Tunnel;
            parts.same_nodes.namespaces.insert("demo".into(), same_node);
        }
    };
    check(namespace(SameNode::Kernel), to, "cart-1 at 10.0.0.2:8080");
    check(namespace(SameNode::Tunnel), to, SHOP);
    check(
        |parts| parts.workloads[1].same_node = Some(SameNode::Tunnel),
        to,
        CART,
    );
    let both = |parts: &mut MeshParts| {
        parts
            .same_nodes
            .namespaces
            .insert("demo".into(), SameNode::Tunnel);
        parts.workloads[0].same_node = Some(SameNode::Kernel);
    };
    check(both, to, CART);
}

#[test]
fn what_is_not_in_the_mesh_or_of_another_family_is_not_for_the_kernel() {
    let outside = |parts: &mut MeshParts| parts.workloads[1].tunnel_protocol = TunnelProtocol::None;
    check(outside, "10.0.0.2:8080", "the destination is not in the mesh");
    check(|_| {}, "192.0.2.1:80", "the destination is not in the mesh");
    let v4_only = |parts: &mut MeshParts| parts.workloads[1].addresses.truncate(1);
    let family = "the app is reached in another address family than the client dialled in";
    check(v4_only, "[fd00:96::1]:80", family);
}
