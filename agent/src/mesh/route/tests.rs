//! Where connections go, as Istio's ambient mode has it, as a table; and what no mesh whatever may make `route` do.

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::mesh::{HealthPolicy, LoadBalancing, Locality, MeshParts, RoutingScope, ServiceKey, sample};

/// Who dials what, with which draw, and where that goes.
fn check(mesh: &Mesh, from: &str, dialled: &str, draw: u64, expect: &str) {
    let source = mesh.workload(&sample::uid(from)).unwrap().clone();
    let conn = Outbound {
        source,
        destination: dialled.parse().unwrap(),
    };
    let answer = route(mesh, &conn, draw);
    let service = answer
        .service
        .map_or(String::new(), |service| format!("{}: ", service.name));
    assert_eq!(
        format!("{service}{}", shown(&answer.next)),
        expect,
        "{from} dials {dialled} (draw {draw})"
    );
}

fn shown(next: &NextHop) -> String {
    match next {
        NextHop::Refuse(why) => format!("refused, {why}"),
        NextHop::Direct { addr, workload: None } => format!("direct {addr}"),
        NextHop::Direct {
            addr,
            workload: Some(workload),
        } => format!("direct {addr} ({})", workload.name),
        NextHop::Tunnel(tunnel) => {
            assert_eq!(tunnel.authority, tunnel.destination);
            let accounts: Vec<_> = tunnel.identities.iter().map(SpiffeId::service_account).collect();
            let via = if tunnel.via_waypoint { "waypoint " } else { "" };
            let (addr, asks) = (tunnel.addr, tunnel.authority);
            format!(
                "{via}{addr} ({}) asks {asks} as {}",
                tunnel.workload.name,
                accounts.join("|")
            )
        }
    }
}

fn parts() -> MeshParts {
    let mut parts = sample::parts();
    parts.services = vec![
        sample::service("web", &["10.96.0.10", "fd00:96::10"]),
        sample::service("plain", &["10.96.0.20"]),
        sample::service("sick", &["10.96.0.30"]),
        sample::service("empty", &["10.96.0.31"]),
        sample::service("node", &["10.96.0.32"]),
    ];
    parts.workloads = vec![
        sample::pod("curl-1", &["10.244.1.10", "fd00:244:1::10"]),
        sample::backs(sample::pod("web-1", &["10.244.2.10", "fd00:244:2::10"]), "web"),
        sample::backs(sample::pod("web-2", &["10.244.2.11"]), "web"),
        sample::backs(sample::pod("web-3", &[]), "web"),
        sample::backs(
            Workload {
                healthy: false,
                ..sample::pod("web-4", &["10.244.2.13"])
            },
            "web",
        ),
        sample::backs(not_in_mesh(sample::pod("plain-1", &["10.244.2.20"])), "plain"),
        sample::backs(
            Workload {
                healthy: false,
                ..sample::pod("sick-1", &["10.244.2.30"])
            },
            "sick",
        ),
        sample::backs(host_network(sample::pod("node-1", &["192.168.77.2"])), "node"),
    ];
    parts
}

fn not_in_mesh(pod: Workload) -> Workload {
    Workload {
        tunnel_protocol: TunnelProtocol::None,
        ..pod
    }
}

fn host_network(pod: Workload) -> Workload {
    Workload {
        host_network: true,
        ..not_in_mesh(pod)
    }
}

#[test]
fn services() {
    let mesh = Mesh::new(parts());
    let check = |dialled, draw, expect: &str| check(&mesh, "curl-1", dialled, draw, expect);
    let web_1 = "web: 10.244.2.10:15008 (web-1) asks 10.244.2.10:8080 as web";
    let web_2 = "web: 10.244.2.11:15008 (web-2) asks 10.244.2.11:8080 as web";
    // Only the healthy ones with an address; the next draw is another one.
    check("10.96.0.10:80", 0, web_1);
    check("10.96.0.10:80", 1, web_2);
    check("10.96.0.10:80", 2, web_1);
    check("10.96.0.10:80", u64::MAX, web_2);
    check("[::ffff:10.96.0.10]:80", 0, web_1);
    check(
        "10.96.0.10:443",
        0,
        "web: 10.244.2.10:15008 (web-1) asks 10.244.2.10:443 as web",
    );
    // The family that was dialled, where the pod has it.
    check(
        "[fd00:96::10]:80",
        0,
        "web: [fd00:244:2::10]:15008 (web-1) asks [fd00:244:2::10]:8080 as web",
    );
    check("[fd00:96::10]:80", 1, web_2);

    check("10.96.0.20:80", 0, "plain: direct 10.244.2.20:8080 (plain-1)");
    check("10.96.0.32:80", 0, "node: direct 192.168.77.2:8080 (node-1)");
    check(
        "10.96.0.10:81",
        0,
        "web: refused, service demo/web.demo.svc.cluster.local has no port 81",
    );
    let no_endpoint = "refused, service demo/sick.demo.svc.cluster.local has no healthy endpoint";
    check("10.96.0.30:80", 0, &format!("sick: {no_endpoint}"));
    check(
        "10.96.0.31:80",
        7,
        &format!("empty: {}", no_endpoint.replace("sick", "empty")),
    );
}

#[test]
fn addresses() {
    let mesh = Mesh::new(parts());
    let check = |dialled, expect: &str| check(&mesh, "curl-1", dialled, 0, expect);
    check(
        "10.244.2.10:8080",
        "10.244.2.10:15008 (web-1) asks 10.244.2.10:8080 as web",
    );
    check(
        "[::ffff:10.244.2.10]:8080",
        "10.244.2.10:15008 (web-1) asks 10.244.2.10:8080 as web",
    );
    check(
        "[fd00:244:2::10]:1",
        "[fd00:244:2::10]:15008 (web-1) asks [fd00:244:2::10]:1 as web",
    );
    // Whoever dials a pod means that pod, ready or not.
    check(
        "10.244.2.30:5432",
        "10.244.2.30:15008 (sick-1) asks 10.244.2.30:5432 as sick",
    );
    check("10.244.2.20:80", "direct 10.244.2.20:80 (plain-1)");
    // A hostNetwork pod is not found by its node's address.
    check("192.168.77.2:80", "direct 192.168.77.2:80");
    check("93.184.216.34:443", "direct 93.184.216.34:443");
    check("[2606:2800::1]:443", "direct [2606:2800::1]:443");
    let unknown = "is inside the cluster, but no workload or service has it";
    check("10.244.9.9:80", &format!("refused, 10.244.9.9:80 {unknown}"));
    check(
        "[::ffff:10.244.9.9]:80",
        &format!("refused, 10.244.9.9:80 {unknown}"),
    );
    check("[fd00::9]:80", &format!("refused, [fd00::9]:80 {unknown}"));
}

#[test]
fn own_ports() {
    let mesh = Mesh::new(parts());
    for port in [15001, 15006, 15008, 15053] {
        let refused = format!("refused, port {port} is one of weft's own");
        check(&mesh, "curl-1", &format!("10.244.2.10:{port}"), 0, &refused);
        check(
            &mesh,
            "curl-1",
            &format!("10.96.0.10:{port}"),
            0,
            &format!("web: {refused}"),
        );
        check(&mesh, "curl-1", &format!("10.244.1.10:{port}"), 0, &refused);
        // Outside of the mesh these are ports as any other.
        let plain = format!("direct 10.244.2.20:{port} (plain-1)");
        check(&mesh, "curl-1", &format!("10.244.2.20:{port}"), 0, &plain);
        check(
            &mesh,
            "curl-1",
            &format!("93.184.216.34:{port}"),
            0,
            &format!("direct 93.184.216.34:{port}"),
        );
    }
}

#[test]
fn a_service_port_that_leads_to_an_own_port() {
    let mut parts = parts();
    parts.services[0].ports = vec![sample::mapping(80, HBONE_PORT)];
    check(
        &Mesh::new(parts),
        "curl-1",
        "10.96.0.10:80",
        0,
        "web: refused, port 15008 is one of weft's own",
    );
}

#[test]
fn hairpin() {
    let mesh = Mesh::new(parts());
    check(
        &mesh,
        "web-1",
        "10.96.0.10:80",
        0,
        "web: direct 10.244.2.10:8080 (web-1)",
    );
    check(
        &mesh,
        "web-1",
        "10.96.0.10:80",
        1,
        "web: 10.244.2.11:15008 (web-2) asks 10.244.2.11:8080 as web",
    );
    check(
        &mesh,
        "web-1",
        "10.244.2.10:9000",
        0,
        "direct 10.244.2.10:9000 (web-1)",
    );
}

#[test]
fn ports_of_a_workload() {
    let mut parts = parts();
    parts.workloads[1]
        .services
        .insert(sample::service_key("web"), vec![sample::mapping(80, 9090)]);
    // A name that this pod has no port for.
    parts.workloads[2]
        .services
        .insert(sample::service_key("web"), vec![sample::mapping(80, 0)]);
    let mesh = Mesh::new(parts);
    let web_1 = |port| format!("web: 10.244.2.10:15008 (web-1) asks 10.244.2.10:{port} as web");
    check(&mesh, "curl-1", "10.96.0.10:80", 0, &web_1(9090));
    check(&mesh, "curl-1", "10.96.0.10:80", 1, &web_1(9090));
    check(&mesh, "curl-1", "10.96.0.10:443", 0, &web_1(443));
    check(
        &mesh,
        "curl-1",
        "10.96.0.10:443",
        1,
        "web: 10.244.2.11:15008 (web-2) asks 10.244.2.11:443 as web",
    );
}

#[test]
fn subject_alt_names() {
    let mut parts = parts();
    parts.services[0].subject_alt_names =
        vec![sample::identity("demo", "web"), sample::identity("demo", "old")];
    let mesh = Mesh::new(parts);
    let expect = "web: 10.244.2.10:15008 (web-1) asks 10.244.2.10:8080 as web|old";
    check(&mesh, "curl-1", "10.96.0.10:80", 0, expect);
    // They are the service's: the pod's own address is its own identity alone.
    check(
        &mesh,
        "curl-1",
        "10.244.2.10:80",
        0,
        "10.244.2.10:15008 (web-1) asks 10.244.2.10:80 as web",
    );
}

/// The mesh with a waypoint of two pods, in front of the service `web` and of the pod `web-1`.
fn behind_waypoint(waypoint: Option<GatewayAddress>) -> MeshParts {
    let mut parts = parts();
    parts.services.push(Service {
        ports: Vec::new(),
        ..sample::service("gate", &["10.96.0.99"])
    });
    parts.workloads.push(sample::backs(
        sample::pod("gate-1", &["10.244.3.1", "fd00:244:3::1"]),
        "gate",
    ));
    parts.workloads.push(sample::backs(
        not_in_mesh(sample::pod("gate-2", &["10.244.3.2"])),
        "gate",
    ));
    parts.services[0].waypoint = waypoint.clone();
    parts.workloads[1].waypoint = waypoint;
    parts
}

#[test]
fn waypoints() {
    let mesh = Mesh::new(behind_waypoint(sample::waypoint_service("gate")));
    let gate_1 = "waypoint 10.244.3.1:15008 (gate-1) asks 10.96.0.10:80 as gate";
    check(&mesh, "curl-1", "10.96.0.10:80", 0, &format!("web: {gate_1}"));
    // A waypoint speaks HBONE, whatever its workload says.
    check(
        &mesh,
        "curl-1",
        "10.96.0.10:80",
        1,
        &format!("web: {}", gate_1.replace("3.1", "3.2").replace("-1", "-2")),
    );
    let over_ipv6 = "waypoint [fd00:244:3::1]:15008 (gate-1) asks [fd00:96::10]:443 as gate";
    check(
        &mesh,
        "curl-1",
        "[fd00:96::10]:443",
        0,
        &format!("web: {over_ipv6}"),
    );
    check(
        &mesh,
        "curl-1",
        "10.244.2.10:9",
        0,
        &gate_1.replace("10.96.0.10:80", "10.244.2.10:9"),
    );
    check(
        &mesh,
        "curl-1",
        "10.244.2.11:9",
        0,
        "10.244.2.11:15008 (web-2) asks 10.244.2.11:9 as web",
    );
    check(
        &mesh,
        "curl-1",
        "10.96.0.10:81",
        0,
        "web: refused, service demo/web.demo.svc.cluster.local has no port 81",
    );

    check(
        &mesh,
        "curl-1",
        "10.244.2.10:15008",
        0,
        "refused, port 15008 is one of weft's own",
    );

    // Its own pods are on the far side of it.
    check(
        &mesh,
        "gate-1",
        "10.96.0.10:80",
        0,
        "web: 10.244.2.10:15008 (web-1) asks 10.244.2.10:8080 as web",
    );
    check(
        &mesh,
        "gate-2",
        "10.244.2.10:80",
        0,
        "10.244.2.10:15008 (web-1) asks 10.244.2.10:80 as web",
    );
    // And a pod needs none to reach itself.
    check(
        &mesh,
        "web-1",
        "10.244.2.10:80",
        0,
        "direct 10.244.2.10:80 (web-1)",
    );
    check(&mesh, "web-1", "10.96.0.10:80", 0, &format!("web: {gate_1}"));
}

#[test]
fn waypoint_addresses() {
    let check = |waypoint, expect: &str| {
        check(
            &Mesh::new(behind_waypoint(waypoint)),
            "curl-1",
            "10.96.0.10:80",
            1,
            &format!("web: {expect}"),
        );
    };
    let asks = "asks 10.96.0.10:80 as";
    check(
        sample::waypoint_address("10.96.0.99", 15008),
        &format!("waypoint 10.244.3.2:15008 (gate-2) {asks} gate"),
    );
    check(
        sample::waypoint_address("10.244.3.1", 15008),
        &format!("waypoint 10.244.3.1:15008 (gate-1) {asks} gate"),
    );
    check(
        sample::waypoint_address("::ffff:10.244.3.1", 99),
        &format!("waypoint 10.244.3.1:99 (gate-1) {asks} gate"),
    );
    let unavailable = "refused, the waypoint of demo/web.demo.svc.cluster.local is not available";
    check(sample::waypoint_address("10.244.3.9", 15008), unavailable);
    check(sample::waypoint_address("10.244.2.30", 15008), unavailable); // not healthy
    check(sample::waypoint_service("nobody"), unavailable);
    check(sample::waypoint_service("sick"), unavailable);
}

#[test]
fn waypoint_ports_and_names() {
    let mut parts = behind_waypoint(sample::waypoint_service("gate"));
    parts.services[5].ports = vec![sample::mapping(15008, 16008)];
    parts.services[5].subject_alt_names = vec![sample::identity("demo", "edge")];
    let expect = "web: waypoint 10.244.3.1:16008 (gate-1) asks 10.96.0.10:80 as gate|edge";
    check(&Mesh::new(parts), "curl-1", "10.96.0.10:80", 0, expect);
}

/// The mesh with `web` in two zones: web-1 in the client's, web-2 in another of the same region.
fn in_zones(load_balancing: LoadBalancing) -> MeshParts {
    let mut parts = parts();
    for (pod, zone) in [(0, "a"), (1, "a"), (2, "b")] {
        parts.workloads[pod].locality.zone = zone.into();
    }
    parts.services[0].load_balancing = load_balancing;
    parts
}

fn strict(scopes: &[RoutingScope]) -> LoadBalancing {
    LoadBalancing {
        mode: BalancingMode::Strict,
        ..LoadBalancing::failover(scopes)
    }
}

const WEB_1: &str = "web: 10.244.2.10:15008 (web-1) asks 10.244.2.10:8080 as web";
const WEB_2: &str = "web: 10.244.2.11:15008 (web-2) asks 10.244.2.11:8080 as web";

#[test]
fn locality() {
    let web = "10.96.0.10:80";
    let mesh = Mesh::new(in_zones(LoadBalancing::failover(&LoadBalancing::CLOSE)));
    for draw in 0..3 {
        check(&mesh, "curl-1", web, draw, WEB_1);
        check(&mesh, "web-2", web, draw, "web: direct 10.244.2.11:8080 (web-2)");
    }
    // Only what is there counts: nobody in the zone has the port.
    let mut parts = in_zones(LoadBalancing::failover(&LoadBalancing::CLOSE));
    parts.workloads[1]
        .services
        .insert(sample::service_key("web"), vec![sample::mapping(80, 0)]);
    check(&Mesh::new(parts), "curl-1", web, 0, WEB_2);
    let mut parts = in_zones(LoadBalancing::failover(&LoadBalancing::CLOSE));
    parts.workloads[1].healthy = false;
    check(&Mesh::new(parts), "curl-1", web, 0, WEB_2);

    let mesh = Mesh::new(in_zones(strict(&[RoutingScope::Zone])));
    check(&mesh, "curl-1", web, 1, WEB_1);
    let mut parts = in_zones(strict(&[RoutingScope::Zone]));
    parts.workloads[0].locality.zone = "c".into();
    let refused = "web: refused, service demo/web.demo.svc.cluster.local has healthy endpoints, but none of them near \
                   enough: its load balancing is STRICT";
    check(&Mesh::new(parts.clone()), "curl-1", web, 0, refused);
    parts.workloads[1].healthy = false;
    parts.workloads[2].healthy = false;
    let refused = "web: refused, service demo/web.demo.svc.cluster.local has no healthy endpoint";
    check(&Mesh::new(parts.clone()), "curl-1", web, 0, refused);
    // publishNotReadyAddresses.
    parts.services[0].load_balancing = LoadBalancing {
        health: HealthPolicy::AllowAll,
        ..LoadBalancing::default()
    };
    check(&Mesh::new(parts.clone()), "curl-1", web, 0, WEB_1);
    for without in [1, 4] {
        parts.workloads[without].capacity = 0;
    }
    for draw in 0..3 {
        check(&Mesh::new(parts.clone()), "curl-1", web, draw, WEB_2);
    }
}

#[test]
fn candidates_and_why_not() {
    let mut parts = in_zones(LoadBalancing::failover(&LoadBalancing::CLOSE));
    parts.workloads.push(Workload {
        capacity: 0,
        ..sample::backs(sample::pod("web-5", &["10.244.2.14"]), "web")
    });
    let shown = |mesh: &Mesh, dialled: &str| -> Vec<String> {
        let conn = Outbound {
            source: mesh.workload(&sample::uid("curl-1")).unwrap().clone(),
            destination: dialled.parse().unwrap(),
        };
        let shown = |it: &Candidate| {
            let addr = it.addr.map_or("-".to_owned(), |addr| addr.to_string());
            format!(
                "{} {addr} {}: {}",
                it.workload.name,
                it.shared_scopes.len(),
                it.standing
            )
        };
        candidates(mesh, &conn).iter().map(shown).collect()
    };
    let mut expect = [
        "web-1 10.244.2.10:8080 4: chosen",
        "web-2 10.244.2.11:8080 2: farther: chosen when no nearer one can be reached",
        "web-3 - 2: it has no address that the client can reach",
        "web-4 - 2: it is not healthy",
        "web-5 10.244.2.14:8080 2: its capacity is 0",
    ];
    assert_eq!(shown(&Mesh::new(parts.clone()), "10.96.0.10:80"), expect);
    parts.services[0].load_balancing.mode = BalancingMode::Strict;
    expect[1] = "web-2 10.244.2.11:8080 2: too far: the service's load balancing is STRICT";
    assert_eq!(shown(&Mesh::new(parts.clone()), "10.96.0.10:80"), expect);
    // Also where none is chosen.
    let sick = ["sick-1 - 0: it is not healthy"];
    assert_eq!(shown(&Mesh::new(parts.clone()), "10.96.0.30:80"), sick);
    assert!(shown(&Mesh::new(parts), "10.244.2.10:80").is_empty());
}

/// Where a connection goes, attempt after attempt, when nothing answers.
fn attempts(mesh: &Mesh, from: &str, dialled: &str, draw: u64) -> Vec<String> {
    let conn = Outbound {
        source: mesh.workload(&sample::uid(from)).unwrap().clone(),
        destination: dialled.parse().unwrap(),
    };
    let first = route(mesh, &conn, draw);
    let mut tried: Vec<_> = first.next.addr().into_iter().collect();
    while let Some(next) = reroute(mesh, &conn, draw, &tried) {
        assert_eq!(next.service, first.service);
        tried.push(next.next.addr().expect("nobody is refused for the second time"));
    }
    tried.iter().map(ToString::to_string).collect()
}

#[test]
fn other_endpoints() {
    let web = "10.96.0.10:80";
    let (one, two) = ("10.244.2.10:15008", "10.244.2.11:15008");
    let mesh = Mesh::new(parts());
    assert_eq!(attempts(&mesh, "curl-1", web, 0), [one, two]);
    assert_eq!(attempts(&mesh, "curl-1", web, 7), [two, one]);
    assert_eq!(
        attempts(&mesh, "curl-1", "10.96.0.20:80", 0),
        ["10.244.2.20:8080"]
    );
    // There is one of each of these.
    assert_eq!(attempts(&mesh, "curl-1", "10.244.2.10:80", 0), [one]);
    assert_eq!(attempts(&mesh, "curl-1", "8.8.8.8:80", 0), ["8.8.8.8:80"]);
    assert!(attempts(&mesh, "curl-1", "10.96.0.30:80", 0).is_empty());
    // The next tier, once the nearest is used up; but nothing that is out of bounds.
    let mesh = Mesh::new(in_zones(LoadBalancing::failover(&LoadBalancing::CLOSE)));
    assert_eq!(attempts(&mesh, "curl-1", web, 1), [one, two]);
    let mesh = Mesh::new(in_zones(strict(&[RoutingScope::Zone])));
    assert_eq!(attempts(&mesh, "curl-1", web, 1), [one]);
    let mesh = Mesh::new(behind_waypoint(sample::waypoint_service("gate")));
    let gates = ["10.244.3.2:15008", "10.244.3.1:15008"];
    assert_eq!(attempts(&mesh, "curl-1", web, 1), gates);
    assert_eq!(attempts(&mesh, "curl-1", "10.244.2.10:9", 1), gates);
}

#[test]
fn a_waypoint_is_chosen_by_locality() {
    let mut parts = behind_waypoint(sample::waypoint_service("gate"));
    parts.workloads[0].locality.zone = "a".into();
    let gate_2 = parts.workloads.len() - 1;
    parts.workloads[gate_2].locality.zone = "a".into();
    let near = "web: waypoint 10.244.3.2:15008 (gate-2) asks 10.96.0.10:80 as gate";
    for draw in 0..3 {
        check(&Mesh::new(parts.clone()), "curl-1", "10.96.0.10:80", draw, near);
    }
    // Unless it says otherwise.
    let service = parts.services.len() - 1;
    parts.services[service].load_balancing = strict(&[RoutingScope::Region]);
    let far = near.replace("3.2", "3.1").replace("gate-2", "gate-1");
    check(&Mesh::new(parts), "curl-1", "10.96.0.10:80", 0, &far);
}

#[test]
fn networks_of_addresses() {
    let mut parts = parts();
    parts.services[1].vip_networks = vec!["10.200.0.0/16".parse().unwrap(), "fd00:200::/64".parse().unwrap()];
    parts.services[0].vip_networks = vec!["10.200.1.0/24".parse().unwrap(), "10.244.2.0/24".parse().unwrap()];
    let mesh = Mesh::new(parts);
    let check = |dialled, expect: &str| check(&mesh, "curl-1", dialled, 0, expect);
    check("10.200.9.9:80", "plain: direct 10.244.2.20:8080 (plain-1)");
    check(
        "[::ffff:10.200.9.9]:80",
        "plain: direct 10.244.2.20:8080 (plain-1)",
    );
    check("[fd00:200::7]:80", "plain: direct 10.244.2.20:8080 (plain-1)");
    check("10.200.1.9:80", WEB_1);
    check(
        "10.200.1.9:81",
        "web: refused, service demo/web.demo.svc.cluster.local has no port 81",
    );
    check(
        "10.201.0.1:80",
        "refused, 10.201.0.1:80 is inside the cluster, but no workload or service has it",
    );
    // A pod's own address is the smallest network of all.
    check("10.244.2.20:80", "direct 10.244.2.20:80 (plain-1)");
    check("10.244.2.99:80", WEB_1);
}

#[test]
fn passed_through() {
    let mut parts = parts();
    let outside = Service {
        vip_networks: vec!["192.0.2.0/24".parse().unwrap(), "10.7.0.0/16".parse().unwrap()],
        load_balancing: LoadBalancing {
            mode: BalancingMode::Passthrough,
            ..LoadBalancing::default()
        },
        subject_alt_names: vec![sample::identity("x", "san")],
        ..sample::service("outside", &["198.51.100.1", "10.244.2.10"])
    };
    parts.services.push(outside);
    let through = |parts: &MeshParts, dialled, expect: &str| {
        check(
            &Mesh::new(parts.clone()),
            "curl-1",
            dialled,
            0,
            &format!("outside: {expect}"),
        );
    };
    through(&parts, "198.51.100.1:80", "direct 198.51.100.1:80");
    through(&parts, "192.0.2.77:443", "direct 192.0.2.77:443");
    // Somebody said that this address is known.
    through(&parts, "10.7.1.1:80", "direct 10.7.1.1:80");
    let no_port = "refused, service demo/outside.demo.svc.cluster.local has no port 81";
    through(&parts, "192.0.2.77:81", no_port);
    // In clear only to what is not in the mesh, and to nobody but that very pod.
    let tunnel = "10.244.2.10:15008 (web-1) asks 10.244.2.10:80 as web";
    through(&parts, "10.244.2.10:80", tunnel);
    // And through its waypoint where it has one.
    parts.services[5].waypoint = sample::waypoint_address("10.244.2.11", 15008);
    let waypoint = "waypoint 10.244.2.11:15008 (web-2) asks 192.0.2.77:443 as web";
    through(&parts, "192.0.2.77:443", waypoint);
}

/// The pods of a service without virtual address are dialled by their own.
#[test]
fn headless() {
    let mut parts = parts();
    parts.services.push(sample::service("db", &[]));
    parts.services.push(Service {
        ports: vec![sample::mapping(9000, 9000)],
        ..sample::service("peers", &[])
    });
    let db = sample::backs(sample::backs(sample::pod("db-1", &["10.244.4.1"]), "db"), "peers");
    parts.workloads.push(sample::backs(db, "web"));
    let dials = |parts: &MeshParts, dialled: &str, expect: &str| {
        check(&Mesh::new(parts.clone()), "curl-1", dialled, 0, expect);
    };
    let tunnel = |port| format!("10.244.4.1:15008 (db-1) asks 10.244.4.1:{port} as db");
    dials(&parts, "10.244.4.1:8080", &format!("db: {}", tunnel(8080)));
    dials(&parts, "10.244.4.1:9000", &format!("peers: {}", tunnel(9000)));
    dials(&parts, "10.244.4.1:80", &tunnel(80));
    // No guess where two lead to the port.
    let db_1 = parts.workloads.len() - 1;
    let mapped = vec![sample::mapping(9000, 8080)];
    parts.workloads[db_1]
        .services
        .insert(sample::service_key("peers"), mapped);
    dials(&parts, "10.244.4.1:8080", &tunnel(8080));

    // The service's waypoint is not passed by, and not by the way over an ambiguous port either.
    parts.services[6].waypoint = sample::waypoint_address("10.244.2.11", 15008);
    let waypoint = "waypoint 10.244.2.11:15008 (web-2) asks 10.244.4.1:8080 as web";
    dials(&parts, "10.244.4.1:8080", waypoint);
    dials(&parts, "10.244.4.1:80", &tunnel(80));
    let mesh = Mesh::new(parts.clone());
    check(&mesh, "web-2", "10.244.4.1:8080", 0, &tunnel(8080));
    check(
        &mesh,
        "db-1",
        "10.244.4.1:8080",
        0,
        "direct 10.244.4.1:8080 (db-1)",
    );
    // The pod's own comes before it.
    parts.workloads[db_1].waypoint = sample::waypoint_address("10.244.2.10", 15008);
    dials(
        &parts,
        "10.244.4.1:8080",
        &waypoint.replace("2.11", "2.10").replace("web-2", "web-1"),
    );
}

#[test]
fn families() {
    let mut parts = parts();
    parts.workloads.push(sample::pod("v6-1", &["fd00:244:5::1"]));
    parts.workloads.push(sample::pod("v4-1", &["10.244.5.1"]));
    let mesh = Mesh::new(parts);
    let both = "web: [fd00:244:2::10]:15008 (web-1) asks [fd00:244:2::10]:8080 as web";
    for draw in 0..3 {
        // Nobody is given what has no address of a family that it has itself.
        check(&mesh, "v6-1", "[fd00:96::10]:80", draw, both);
    }
    check(&mesh, "v4-1", "10.96.0.10:80", 0, WEB_1);
    check(&mesh, "v4-1", "10.96.0.10:80", 1, WEB_2);
    check(&mesh, "curl-1", "[fd00:96::10]:80", 1, WEB_2);
}

const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.2",
    "::ffff:10.0.0.3",
    "10.0.0.4",
    "fd00::1",
    "fd00::2",
    "8.8.8.8",
    "2001::1",
];
const SERVICES: [&str; 3] = ["one", "two", "three"];

fn any_gateway() -> impl Strategy<Value = Option<GatewayAddress>> {
    let by_service = select(&SERVICES).prop_map(|name| sample::waypoint_service(name).unwrap());
    let by_address = select(&ADDRESSES).prop_map(|address| sample::waypoint_address(address, 15008).unwrap());
    option::weighted(0.3, prop_oneof![by_service, by_address])
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let backed = vec((select(&SERVICES), 0u16..3), 0..3);
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.1),
    );
    let place = (select(&["a", "b"]), select(&["m", "n"]), 0u32..3);
    (
        0..9,
        vec(select(&ADDRESSES), 0..3),
        flags,
        any_gateway(),
        backed,
        place,
    )
        .prop_map(
            |(i, addresses, (in_mesh, healthy, host_network), waypoint, backed, (zone, node, capacity))| {
                Workload {
                    locality: Locality {
                        zone: zone.into(),
                        ..Locality::default()
                    },
                    node: node.into(),
                    capacity,
                    tunnel_protocol: if in_mesh {
                        TunnelProtocol::Hbone
                    } else {
                        TunnelProtocol::None
                    },
                    healthy,
                    host_network,
                    waypoint,
                    services: backed
                        .iter()
                        .map(|(s, port)| (sample::service_key(s), vec![sample::mapping(80, *port)]))
                        .collect(),
                    ..sample::pod(&format!("w{i}"), &addresses)
                }
            },
        )
}

fn any_service() -> impl Strategy<Value = Service> {
    (
        select(&SERVICES),
        vec(select(&ADDRESSES), 0..2),
        any_gateway(),
        option::of(Just(sample::identity("x", "san"))),
        option::weighted(
            0.2,
            select(&["10.0.0.0/24", "10.0.0.0/30", "fd00::/64", "2000::/8"]),
        ),
        any_load_balancing(),
    )
        .prop_map(|(name, vips, waypoint, san, network, load_balancing)| Service {
            waypoint,
            subject_alt_names: san.into_iter().collect(),
            vip_networks: network.iter().map(|network| network.parse().unwrap()).collect(),
            load_balancing,
            ..sample::service(name, &vips)
        })
}

fn any_load_balancing() -> impl Strategy<Value = LoadBalancing> {
    let scope = select(&[RoutingScope::Zone, RoutingScope::Node, RoutingScope::Cluster]);
    let mode = select(&[
        BalancingMode::Any,
        BalancingMode::Failover,
        BalancingMode::Strict,
        BalancingMode::Passthrough,
    ]);
    let health = select(&[HealthPolicy::OnlyHealthy, HealthPolicy::AllowAll]);
    (vec(scope, 0..3), mode, health).prop_map(|(routing_preference, mode, health)| LoadBalancing {
        routing_preference,
        mode,
        health,
    })
}

/// The identities that the mesh gives for the end of a tunnel.
fn given(mesh: &Mesh, tunnel: &Tunnel) -> Vec<SpiffeId> {
    let services = tunnel
        .workload
        .services
        .keys()
        .filter_map(|key: &ServiceKey| mesh.service(key));
    let names = services.flat_map(|service| service.subject_alt_names.iter().cloned());
    names.chain([tunnel.workload.identity.clone()]).collect()
}

/// A mesh of few addresses, so that they clash, and a question to it.
fn any_question() -> impl Strategy<Value = (Mesh, Outbound)> {
    (
        vec(any_workload(), 1..6),
        vec(any_service(), 0..4),
        select(&ADDRESSES),
        select(&[80u16, 81, 443, 15008, 15001]),
    )
        .prop_map(|(workloads, services, address, port)| {
            let mesh = Mesh::new(MeshParts {
                workloads,
                services,
                ..sample::parts()
            });
            let source = mesh.workloads().min_by_key(|w| w.uid.clone()).unwrap().clone();
            let destination = SocketAddr::new(address.parse().unwrap(), port);
            (mesh, Outbound { source, destination })
        })
}

#[test]
fn choices_of_a_connection() {
    let mut parts = behind_waypoint(sample::waypoint_service("gate"));
    parts.services[0].waypoint = None;
    let mesh = Mesh::new(parts);
    let check = |dialled: &str, expect| {
        let conn = Outbound {
            source: mesh.workload(&sample::uid("curl-1")).unwrap().clone(),
            destination: dialled.parse().unwrap(),
        };
        assert_eq!(choices(&mesh, &conn), expect, "{dialled}");
    };
    check("10.96.0.10:80", 2);
    check("10.96.0.10:81", 1); // no such port
    check("10.96.0.30:80", 1); // no healthy endpoint
    check("10.244.2.10:80", 2); // through a waypoint of two pods
    check("10.244.2.11:80", 1);
    check("93.184.216.34:443", 1);
}

proptest! {
    /// Whoever keeps the answers for the draws from 0 to `choices` keeps all that there are.
    #[test]
    fn a_draw_counts_by_its_remainder((mesh, conn) in any_question(), draw: u64) {
        let choices = choices(&mesh, &conn);
        prop_assert!(choices > 0);
        prop_assert_eq!(route(&mesh, &conn, draw), route(&mesh, &conn, draw % choices));
    }

    /// Every attempt goes elsewhere, to what another draw or another failure could lead to as well, and there is an end.
    #[test]
    fn attempts_go_elsewhere((mesh, conn) in any_question(), draw: u64) {
        let mut tried: Vec<_> = route(&mesh, &conn, draw).next.addr().into_iter().collect();
        while let Some(next) = reroute(&mesh, &conn, draw, &tried) {
            let addr = next.next.addr().unwrap();
            prop_assert!(!tried.contains(&addr));
            tried.push(addr);
        }
        for draw in 0..choices(&mesh, &conn) {
            // A refusal is an answer, and its draw has no address.
            if let Some(addr) = route(&mesh, &conn, draw).next.addr() {
                prop_assert!(tried.contains(&addr));
            }
        }
    }

    #[test]
    fn never_more_than_the_mesh_gives((mesh, conn) in any_question(), draw: u64) {
        let (source, destination) = (&conn.source, conn.destination);
        let ours = |port| matches!(port, 15001 | 15006 | 15008 | 15053);
        match route(&mesh, &conn, draw).next {
            NextHop::Refuse(_) => {}
            NextHop::Direct { addr, workload: None } => {
                prop_assert_eq!(addr.ip(), destination.ip().to_canonical());
                let service = mesh.service_at(addr.ip());
                let passes = service.is_some_and(|it| it.load_balancing.mode == BalancingMode::Passthrough);
                prop_assert!(passes || (service.is_none() && !mesh.is_cluster_address(addr.ip())));
                prop_assert!(mesh.workload_at(addr.ip()).is_none());
            }
            NextHop::Direct { addr, workload: Some(workload) } => {
                prop_assert!(workload.uid == source.uid || workload.tunnel_protocol == TunnelProtocol::None);
                prop_assert!(workload.addresses.contains(&addr.ip()));
            }
            NextHop::Tunnel(tunnel) => {
                let given = given(&mesh, &tunnel);
                prop_assert!(!tunnel.identities.is_empty());
                prop_assert!(tunnel.identities.iter().all(|id| given.contains(id)));
                prop_assert!(tunnel.workload.addresses.contains(&tunnel.addr.ip()));
                prop_assert!(!ours(tunnel.authority.port()));
                prop_assert!(tunnel.via_waypoint || tunnel.workload.tunnel_protocol == TunnelProtocol::Hbone);
            }
        }
    }
}
