//! What a compiled mesh answers: manifests in, verdicts and routes out.

use super::*;
use crate::mesh::{Inbound, Mesh, NextHop, Outbound, Refusal, SpiffeId, Verdict, authorize, route};

fn mesh(name: &str) -> Mesh {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/controller/compile/manifests");
    let text = std::fs::read_to_string(folder.join(name)).unwrap();
    Mesh::new(compiled(&text).parts)
}

/// Whether `peer`, `namespace/account` or nobody, reaches a port of the pod at an address.
fn allowed(mesh: &Mesh, peer: Option<&str>, app: &str) -> bool {
    let app = app.parse().unwrap();
    let peer = peer.map(|peer| {
        let (namespace, account) = peer.split_once('/').unwrap();
        SpiffeId::new(mesh.trust_domain(), namespace, account).unwrap()
    });
    let conn = Inbound {
        peer,
        source_ip: "10.9.9.9".parse().unwrap(),
        destination: app,
    };
    let workload = mesh.workload_at(app.ip()).unwrap();
    matches!(authorize(mesh, workload, &conn), Verdict::Allow { .. })
}

#[test]
fn nobody_goes_around_a_waypoint_that_enforces() {
    let mesh = mesh("waypoint-only.yaml");
    let cart = "10.1.0.1:80";
    assert!(allowed(&mesh, Some("shop/waypoint"), cart));
    assert!(
        !allowed(&mesh, Some("shop/other"), cart),
        "a rule for anybody names nobody"
    );
    assert!(!allowed(&mesh, None, cart));
    assert!(allowed(&mesh, Some("monitoring/prometheus"), "10.1.0.1:9090"));
    assert!(!allowed(&mesh, Some("monitoring/grafana"), "10.1.0.1:9090"));
    for peer in [Some("shop/waypoint"), Some("shop/other"), None] {
        assert!(
            !allowed(&mesh, peer, "10.1.0.2:80"),
            "no waypoint enforces it: {peer:?}"
        );
    }
    assert!(allowed(&mesh, Some("shop/waypoint"), "10.1.0.3:80"));
    assert!(!allowed(&mesh, Some("shop/other"), "10.1.0.3:80"));
    assert!(
        allowed(&mesh, Some("shop/other"), "10.1.0.4:80"),
        "a dry run keeps nobody out"
    );
    assert!(allowed(&mesh, Some("infra/shared"), "10.1.0.5:80"));
    assert!(!allowed(&mesh, Some("team/other"), "10.1.0.5:80"));
}

#[test]
fn a_waypoint_of_ours_is_let_in_where_clients_are_named() {
    let mesh = mesh("waypoint-policies.yaml");
    let (cart, of_others) = ("10.1.0.1:80", "10.1.1.1:80");
    assert!(allowed(&mesh, Some("web/any"), cart), "it is named");
    assert!(!allowed(&mesh, Some("shop/other"), cart));
    assert!(
        allowed(&mesh, Some("shop/waypoint"), cart),
        "it has judged the client"
    );
    assert!(allowed(&mesh, Some("web/any"), of_others));
    assert!(
        !allowed(&mesh, Some("other/theirs"), of_others),
        "it has judged nobody"
    );
}

#[test]
fn a_target_that_nobody_knows_closes_what_may_be_meant() {
    let mesh = mesh("waypoint-policies.yaml");
    let (behind, free) = ("10.1.2.1:80", "10.1.2.2:80");
    assert!(
        !allowed(&mesh, Some("slip/other"), behind),
        "only the waypoint gets in"
    );
    assert!(allowed(&mesh, Some("slip/waypoint"), behind));
    assert!(
        allowed(&mesh, Some("slip/other"), free),
        "no waypoint could enforce it"
    );
    let key = |name: &str| ServiceKey {
        namespace: "slip".into(),
        hostname: format!("{name}.slip.svc.cluster.local").into(),
    };
    let routes = mesh.http_routes(&key("behind")).expect("they can be read");
    let routes = routes.expect("something is said of it");
    let policies: Vec<_> = routes.values().policies.iter().map(ToString::to_string).collect();
    assert_eq!(policies, ["slip/slip"]);
    assert!(mesh.http_routes(&key("free")).is_ok_and(|it| it.is_none()));
}

/// Where the pod at an address is sent.
fn next(mesh: &Mesh, from: &str, to: &str) -> NextHop {
    let source = mesh.workload_at(from.parse().unwrap()).unwrap();
    let conn = Outbound {
        source: source.clone(),
        destination: to.parse().unwrap(),
    };
    route(mesh, &conn, 0).next
}

#[test]
fn a_waypoint_that_is_not_there_refuses() {
    let mesh = mesh("waypoints.yaml");
    for service in ["10.96.0.1:80", "10.96.0.3:80", "10.96.0.4:80", "10.96.0.5:80"] {
        let next = next(&mesh, "10.1.0.1", service);
        let refused = matches!(next, NextHop::Refuse(Refusal::WaypointUnavailable(_)));
        assert!(refused, "{service}: {next:?}");
    }
    let opted_out = next(&mesh, "10.1.0.1", "10.96.0.2:80");
    assert!(
        matches!(opted_out, NextHop::Refuse(Refusal::NoHealthyEndpoint(_))),
        "{opted_out:?}"
    );
}

#[test]
fn an_address_of_others_leads_to_them() {
    let mesh = mesh("service-entries.yaml");
    let bank = mesh.service_at("10.96.0.1".parse().unwrap()).unwrap();
    assert_eq!(&*bank.key.namespace, "bank");
    let pod = mesh.workload_at("10.1.0.1".parse().unwrap()).unwrap();
    assert_eq!(&*pod.namespace, "shop");
    let db = next(&mesh, "10.1.0.1", "192.0.2.10:5432");
    assert_eq!(
        db.addr(),
        "192.0.2.10:6432".parse().ok(),
        "its address is its endpoint's too"
    );
    let partner = next(&mesh, "10.1.0.1", "198.51.100.9:443");
    assert_eq!(partner.addr(), "198.51.100.9:443".parse().ok());
}

#[test]
fn what_slices_name_is_reached() {
    let mesh = mesh("endpoint-slices.yaml");
    let mixed = mesh.service_at("10.96.0.2".parse().unwrap()).unwrap();
    let reached = mesh
        .endpoints(&mixed.key)
        .iter()
        .map(|it| it.workload.addresses[0].to_string());
    let mut reached: Vec<_> = reached.collect();
    reached.sort();
    assert_eq!(
        reached,
        ["10.1.0.1", "192.0.2.1"],
        "neither another namespace's pod nor one that is not well"
    );
    let db = mesh.service_at("10.96.0.1".parse().unwrap()).unwrap();
    let ready = mesh.endpoints(&db.key);
    assert_eq!(ready.len(), 1, "a slice knows that the other is about to go");
}
