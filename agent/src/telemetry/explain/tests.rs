//! What is said of connections, as a table; and that it is what the data path's own questions say.

use std::path::Path;

use super::*;
use crate::{feed::parse, mesh::Mesh};

/// `web` and `plain` are reached through services, `way` is the waypoint of service `api` and of pod `bound`.
const MESH: &str = r#"
clusterCidrs: [10.0.0.0/8]
workloads:
- {name: curl-1, namespace: demo, serviceAccount: curl, node: a, addresses: [10.1.0.1, "fd00:1::1"], tunnelProtocol: HBONE}
- {name: cron-1, namespace: batch, serviceAccount: cron, node: a, addresses: [10.1.0.2], tunnelProtocol: HBONE}
- {name: web-1, namespace: demo, serviceAccount: web, node: b, addresses: [10.2.0.1, "fd00:2::1"], tunnelProtocol: HBONE, labels: {app: web}}
- {name: web-2, namespace: demo, serviceAccount: web, node: a, addresses: [10.1.0.3], tunnelProtocol: HBONE, labels: {app: web, canary: "yes"}}
- {name: db-1, namespace: demo, node: b, addresses: [10.2.0.2], labels: {app: db}}
- {name: api-1, namespace: demo, serviceAccount: api, node: b, addresses: [10.2.0.3], tunnelProtocol: HBONE, labels: {app: api}}
- {name: way-1, namespace: demo, serviceAccount: way, node: b, addresses: [10.2.0.4], tunnelProtocol: HBONE, labels: {app: way}}
- {name: strict-1, namespace: locked, serviceAccount: s, node: b, addresses: [10.2.0.5], tunnelProtocol: HBONE}
- {name: late-1, namespace: demo, node: b, tunnelProtocol: HBONE}
services:
- {name: web, namespace: demo, vips: [10.96.0.1, "fd00:96::1"], ports: [{port: 80, targetPort: 8080}], selector: {app: web}}
- {name: db, namespace: demo, vips: [10.96.0.2], ports: [{port: 5432}], selector: {app: db}}
- {name: api, namespace: demo, vips: [10.96.0.3], ports: [{port: 80}], selector: {app: api}, waypoint: {service: demo/way}}
- {name: way, namespace: demo, selector: {app: way}}
- {name: none, namespace: demo, vips: [10.96.0.4], ports: [{port: 80}], endpoints: []}
- {name: lazy, namespace: demo, vips: [10.96.0.5], ports: [{port: 80}], endpoints: [demo/web-1, demo/late-1]}
- {name: heads, namespace: demo, ports: [{port: 8080}], selector: {app: web}}
policies:
- {name: not-cron, namespace: demo, action: DENY, selector: {app: web}, rules: [{from: [{namespaces: [batch]}]}]}
- {name: canary, namespace: demo, selector: {canary: "yes"}, rules: [{from: [{serviceAccounts: [curl]}]}]}
- {name: trial, namespace: demo, action: DENY, dryRun: true, selector: {app: web}, rules: [{from: [{principals: ["*"]}]}]}
- {name: by-path, namespace: demo, action: DENY, selector: {app: api}, rules: [{to: [{paths: [/admin]}]}]}
peerAuthentications:
- {name: locked, namespace: locked, mode: STRICT}
"#;

fn mesh() -> Mesh {
    parse(MESH, Path::new("mesh.yaml"), "a")
        .unwrap_or_else(|error| panic!("{error}"))
        .mesh
}

/// The hops of each way: to whom, how, and the verdict or else the reason.
fn shown(explanation: &Explanation) -> Vec<String> {
    let hop = |hop: &Hop| {
        let to = hop.to.as_ref().and_then(|to| to.workload.clone());
        let at = hop.destination.map(|addr| addr.to_string());
        let said = hop
            .verdict
            .as_ref()
            .map_or(&hop.reason, |verdict| &verdict.reason);
        let (to, at) = (to.unwrap_or("-".into()), at.unwrap_or("-".into()));
        format!("{:?} {to} {at}: {said}", hop.kind)
    };
    let way = |way: &Way| way.hops.iter().map(hop).collect::<Vec<_>>().join(" | ");
    explanation.ways.iter().map(way).collect()
}

fn check(from: &str, to: &str, allowed: bool, ways: &[&str]) {
    let explanation =
        explain(&mesh(), from, to, |_| None).unwrap_or_else(|error| panic!("{from} {to}: {error}"));
    assert_eq!(shown(&explanation), ways, "{from} {to}");
    assert_eq!(explanation.allowed, allowed, "{from} {to}");
}

#[test]
fn tunnels_and_their_verdicts() {
    let one = "Tunnel demo/web-1 10.2.0.1:8080: allowed: no ALLOW policy covers the workload";
    let canary = "Tunnel demo/web-2 10.1.0.3:8080: allowed by policy demo/canary";
    check("demo/curl-1", "10.2.0.1:8080", true, &[one]);
    check("demo/curl-1", "[::ffff:10.2.0.1]:8080", true, &[one]);
    check("10.1.0.1", "10.2.0.1:8080", true, &[one]);
    check("demo/curl-1", "10.96.0.1:80", true, &[one, canary]);
    check("demo/curl-1", "web:80", true, &[one, canary]);
    check(
        "demo/curl-1",
        "Web.demo.svc.cluster.local.:80",
        true,
        &[one, canary],
    );
    let denied = "Tunnel demo/web-1 10.2.0.1:8080: denied by policy demo/not-cron";
    let denied2 = "Tunnel demo/web-2 10.1.0.3:8080: denied by policy demo/not-cron";
    check("batch/cron-1", "web.demo.svc:80", false, &[denied, denied2]);
    // Of two endpoints one is more careful: the refused way comes first.
    let nobody = "Tunnel demo/web-2 10.1.0.3:8080: no ALLOW policy matched: demo/canary";
    check("demo/way-1", "10.96.0.1:80", false, &[nobody, one]);
}

#[test]
fn each_family_has_its_own_way() {
    let v6 = "Tunnel demo/web-1 [fd00:2::1]:8080: allowed: no ALLOW policy covers the workload";
    check("demo/curl-1", "[fd00:2::1]:8080", true, &[v6]);
    // A hostname is what an app takes first; without a virtual address, every pod of the family.
    let v4 = [
        "Tunnel demo/web-1 10.2.0.1:8080: allowed: no ALLOW policy covers the workload",
        "Tunnel demo/web-2 10.1.0.3:8080: allowed by policy demo/canary",
    ];
    check("demo/curl-1", "heads:8080", true, &v4);
    check("fd00:1::1", "heads:8080", true, &[v6]);
}

#[test]
fn endpoints_have_a_standing() {
    let standing = |from: &str, to: &str| -> Vec<String> {
        let explanation = explain(&mesh(), from, to, |_| None).unwrap();
        let shown = |it: &EndpointStanding| format!("{} {} {}", it.workload, it.chosen, it.standing);
        explanation.endpoints.iter().map(shown).collect()
    };
    assert_eq!(
        standing("demo/curl-1", "lazy:80"),
        [
            "demo/web-1 true chosen",
            "demo/late-1 false it has no address that the client can reach"
        ]
    );
    assert_eq!(
        standing("demo/curl-1", "web:80"),
        ["demo/web-1 true chosen, 1 of 2", "demo/web-2 true chosen, 1 of 2"]
    );
    assert!(standing("demo/curl-1", "10.2.0.1:8080").is_empty());
    assert!(standing("demo/db-1", "web:80").is_empty());
    let headless = explain(&mesh(), "demo/curl-1", "10.2.0.1:8080", |_| None).unwrap();
    assert_eq!(
        headless.service.as_deref(),
        Some("demo/heads.demo.svc.cluster.local")
    );
}

#[test]
fn what_is_not_in_the_mesh() {
    let not_in_mesh = "the destination is not in the mesh: no agent is there to ask";
    check(
        "demo/curl-1",
        "db:5432",
        true,
        &[&format!("Direct demo/db-1 10.2.0.2:5432: {not_in_mesh}")],
    );
    check(
        "demo/curl-1",
        "192.0.2.1:443",
        true,
        &["Direct - 192.0.2.1:443: the address is outside of the mesh"],
    );
    check(
        "demo/curl-1",
        "10.1.0.1:9",
        true,
        &["Direct demo/curl-1 10.1.0.1:9: the pod dials itself: nothing leaves it, nobody is asked"],
    );
    // A source that weft does not capture is a plaintext peer, which no name fits.
    let one = "Direct demo/web-1 10.2.0.1:8080: allowed: no ALLOW policy covers the workload";
    let canary = "Direct demo/web-2 10.1.0.3:8080: no ALLOW policy matched: demo/canary";
    for from in ["demo/db-1", "192.0.2.9"] {
        check(from, "10.2.0.1:8080", true, &[one]);
        check(from, "web.demo.svc.cluster.local:80", false, &[canary, one]);
        check(
            from,
            "10.2.0.1:15008",
            false,
            &["Direct demo/web-1 10.2.0.1:15008: port 15008 is one of weft's own"],
        );
        let strict =
            "mutual TLS is required (STRICT) on port 1 by peer authentication locked/locked (namespace)";
        check(
            from,
            "10.2.0.5:1",
            false,
            &[&format!("Direct locked/strict-1 10.2.0.5:1: {strict}")],
        );
    }
}

#[test]
fn refused_before_it_leaves() {
    for (to, why) in [
        (
            "10.9.9.9:1",
            "10.9.9.9:1 is inside the cluster, but no workload or service has it",
        ),
        (
            "10.96.0.1:81",
            "service demo/web.demo.svc.cluster.local has no port 81",
        ),
        (
            "none:80",
            "service demo/none.demo.svc.cluster.local has no healthy endpoint",
        ),
        ("10.2.0.1:15001", "port 15001 is one of weft's own"),
    ] {
        check("demo/curl-1", to, false, &[&format!("Refused - -: {why}")]);
    }
}

#[test]
fn through_a_waypoint() {
    let way = "Waypoint demo/way-1 10.96.0.3:80: the destination is bound to this waypoint, which judges each request by \
               its own policies";
    let api = "Tunnel demo/api-1 10.2.0.3:80: allowed: no ALLOW policy covers the workload";
    check("demo/curl-1", "10.96.0.3:80", true, &[&format!("{way} | {api}")]);
    // Around it nobody enforces the path, so it is denied.
    let denied = "Tunnel demo/api-1 10.2.0.3:80: denied by policy demo/by-path";
    check("demo/curl-1", "10.2.0.3:80", false, &[denied]);
}

#[test]
fn what_no_agent_sees_is_named() {
    let explanation = explain(&mesh(), "demo/curl-1", "10.2.0.3:80", |_| None).unwrap();
    let verdict = explanation.ways[0].hops[0].verdict.as_ref().unwrap();
    assert_eq!(verdict.unseen, ["demo/by-path: paths"]);
}

#[test]
fn a_pod_that_is_not_captured_dials_as_if_it_were_not_in_the_mesh() {
    let failed = |workload: &crate::mesh::Workload| {
        (&*workload.name == "curl-1").then(|| "failed: no such namespace".to_owned())
    };
    let explanation = explain(&mesh(), "demo/curl-1", "10.2.0.5:1", failed).unwrap();
    let hop = &explanation.ways[0].hops[0];
    assert_eq!((hop.kind, hop.security), (HopKind::Direct, Security::Plaintext));
    let reason =
        "the source is not captured (failed: no such namespace), so it dials as if it were not in the mesh";
    assert_eq!(hop.reason, reason);
    assert!(!explanation.allowed, "{hop:?}");
    let other = explain(&mesh(), "batch/cron-1", "10.2.0.5:1", failed).unwrap();
    assert!(other.allowed, "{other:?}");
}

proptest::proptest! {
    #[test]
    fn no_question_panics(from in ".{0,20}", to in "(.{0,20}|[0-9.:\\[\\]]{0,20}|web[.a-z]{0,10}:[0-9]{0,6})") {
        let _ = explain(&mesh(), &from, &to, |_| None);
        let _ = explain(&mesh(), "demo/curl-1", &to, |_| None);
    }
}

#[test]
fn every_field_of_a_tunnel() {
    let explanation = explain(&mesh(), "demo/curl-1", "10.2.0.1:8080", |_| None).unwrap();
    let hop = &explanation.ways[0].hops[0];
    assert_eq!(
        explanation.source.identity,
        "spiffe://cluster.local/ns/demo/sa/curl"
    );
    assert_eq!(explanation.source.address, "10.1.0.1".parse().ok());
    assert_eq!((hop.kind, hop.security), (HopKind::Tunnel, Security::MutualTls));
    assert_eq!(hop.gateway, "10.2.0.1:15008".parse().ok());
    assert_eq!(hop.identities, ["spiffe://cluster.local/ns/demo/sa/web"]);
    let needed = "must let 10.1.0.1 reach 10.2.0.1 on TCP port 15008, whatever port the app has";
    assert_eq!(hop.network_policy.as_deref(), Some(needed));
    assert_eq!(hop.same_node, None);
    let verdict = hop.verdict.as_ref().unwrap();
    let trial = DryRunMatch {
        policy: "demo/trial".into(),
        action: "DENY".into(),
    };
    assert_eq!(verdict.dry_run_matches, [trial]);
    assert_eq!(
        verdict.if_enforced.as_deref(),
        Some("denied by policy demo/trial")
    );
    let same = explain(&mesh(), "demo/curl-1", "10.1.0.3:8080", |_| None).unwrap();
    assert!(same.ways[0].hops[0].same_node.is_some());
    let v6 = explain(&mesh(), "demo/curl-1", "[fd00:2::1]:8080", |_| None).unwrap();
    assert_eq!(v6.source.address, "fd00:1::1".parse().ok());
}

#[test]
fn questions_that_make_no_sense() {
    let check = |from: &str, to: &str, expect: &str| {
        let error = explain(&mesh(), from, to, |_| None).unwrap_err().to_string();
        assert!(error.starts_with(expect), "{from} {to}: {error}");
    };
    check(
        "demo/nobody",
        "10.2.0.1:1",
        "the mesh has no workload `demo/nobody`: write <namespace>/<name>",
    );
    check("curl-1", "10.2.0.1:1", "the mesh has no workload `curl-1`");
    check(
        "demo/late-1",
        "10.2.0.1:1",
        "workload `demo/late-1` has no address yet",
    );
    check("demo/curl-1", "10.2.0.1", "`10.2.0.1` is no destination: write");
    check("demo/curl-1", "web:http", "`web:http` is no destination");
    check("demo/curl-1", ":80", "`:80` is no destination");
    check(
        "demo/curl-1",
        "nowhere.example.com:80",
        "the mesh has no address for the hostname `nowhere.example.com`",
    );
}

#[test]
fn another_versions_explanation_is_read() {
    let text = r#"{"newField":1,"ways":[{"hops":[{"kind":"teleport","security":"quantum"}]}]}"#;
    let read: Explanation = serde_json::from_str(text).expect("unknown fields and kinds are taken");
    let hop = &read.ways[0].hops[0];
    assert_eq!((hop.kind, hop.security), (HopKind::Unknown, Security::Unknown));
}
