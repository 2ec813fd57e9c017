//! Who can answer requests, and how each is reached: as tables, and the same as `route` has it.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::mesh::{
    BalancingMode, LoadBalancing, Locality, Outbound, PortMapping, RoutingScope, Service, TunnelProtocol,
    choices, route,
    sample::{self, backs, mapping, service_key},
};

/// The waypoint of `web`, in zone `a`.
fn waypoint() -> Workload {
    let way = backs(sample::pod("way-1", &["10.0.0.100"]), "way");
    Workload {
        locality: zone("a"),
        native_tunnel: true,
        ..way
    }
}

fn zone(zone: &str) -> Locality {
    Locality {
        region: "eu".into(),
        zone: zone.into(),
        subzone: "".into(),
    }
}

/// A pod of `web`.
fn web(name: &str, address: &str, at: &str) -> Workload {
    Workload {
        locality: zone(at),
        ..backs(sample::pod(name, &[address]), "web")
    }
}

fn of_subset(pod: Workload, subset: &str) -> Workload {
    Workload {
        subsets: vec![(service_key("web"), subset.into()); 2],
        ..pod
    }
}

/// `web`, bound to the waypoint.
fn service() -> Service {
    Service {
        waypoint: sample::waypoint_service("way"),
        load_balancing: LoadBalancing::failover(&[RoutingScope::Region, RoutingScope::Zone]),
        ..sample::service("web", &["10.1.0.1"])
    }
}

fn mesh(web: Service, mut workloads: Vec<Workload>) -> Mesh {
    workloads.push(waypoint());
    let mut parts = sample::parts();
    parts.services = vec![web, sample::service("way", &["10.1.0.2"])];
    parts.workloads = workloads;
    Mesh::new(parts)
}

/// The groups, separated by `|`; each endpoint as `name=how it is reached`.
fn check(mesh: &Mesh, port: u16, subset: Option<&str>, expect: &str) {
    let shown = match http_endpoints(mesh, &service_key("web"), port, subset, &waypoint()) {
        Err(why) => why.to_string(),
        Ok(groups) => {
            let shown = |group: Vec<HttpEndpoint>| {
                let mut shown: Vec<_> = group.iter().map(shown).collect();
                shown.sort();
                shown.join(" ")
            };
            groups.into_iter().map(shown).collect::<Vec<_>>().join(" | ")
        }
    };
    assert_eq!(shown, expect);
}

fn shown(endpoint: &HttpEndpoint) -> String {
    let (name, addr) = (&endpoint.workload.name, endpoint.addr);
    match &endpoint.next {
        NextHop::Direct { addr: dialled, .. } => {
            assert_eq!(*dialled, addr);
            format!("{name}=direct:{addr}")
        }
        NextHop::Tunnel(tunnel) => {
            assert_eq!(tunnel.authority, addr);
            assert!(tunnel.identities.contains(&endpoint.workload.identity));
            format!(
                "{name}={}:{addr}",
                if tunnel.via_waypoint { "waypoint" } else { "tunnel" }
            )
        }
        NextHop::Refuse(why) => format!("{name}={why}"),
    }
}

#[test]
fn the_nearest_first() {
    let pods = || {
        vec![
            web("a1", "10.0.0.1", "a"),
            web("b1", "10.0.0.2", "b"),
            web("a2", "10.0.0.3", "a"),
        ]
    };
    let near = "a1=tunnel:10.0.0.1:8080 a2=tunnel:10.0.0.3:8080";
    check(
        &mesh(service(), pods()),
        80,
        None,
        &format!("{near} | b1=tunnel:10.0.0.2:8080"),
    );
    let strict = LoadBalancing {
        mode: BalancingMode::Strict,
        ..service().load_balancing
    };
    check(
        &mesh(
            Service {
                load_balancing: strict.clone(),
                ..service()
            },
            pods(),
        ),
        80,
        None,
        near,
    );
    let any = Service {
        load_balancing: LoadBalancing::default(),
        ..service()
    };
    check(
        &mesh(any, pods()),
        443,
        None,
        "a1=tunnel:10.0.0.1:443 a2=tunnel:10.0.0.3:443 b1=tunnel:10.0.0.2:443",
    );
    let far = vec![web("b1", "10.0.0.2", "b")];
    check(&mesh(service(), far.clone()), 80, None, "b1=tunnel:10.0.0.2:8080");
    check(
        &mesh(
            Service {
                load_balancing: strict,
                ..service()
            },
            far,
        ),
        80,
        None,
        "service demo/web.demo.svc.cluster.local has healthy endpoints, but none of them near enough: its load balancing is STRICT",
    );
}

#[test]
fn who_cannot_answer() {
    let nobody = "service demo/web.demo.svc.cluster.local has no healthy endpoint";
    let pod = || web("a1", "10.0.0.1", "a");
    for unable in [
        Workload {
            healthy: false,
            ..pod()
        },
        Workload { capacity: 0, ..pod() },
        Workload {
            addresses: Vec::new(),
            ..pod()
        },
        Workload {
            addresses: vec!["fd00::1".parse().unwrap()],
            ..pod()
        },
        Workload {
            services: [(service_key("web"), vec![mapping(80, 0)])].into(),
            ..pod()
        },
        // One that leads to a port of ours is refused by its agent.
        Workload {
            services: [(service_key("web"), vec![mapping(80, 15008)])].into(),
            ..pod()
        },
        backs(sample::pod("other", &["10.0.0.1"]), "other"),
    ] {
        check(&mesh(service(), vec![unable.clone()]), 80, None, nobody);
        let able = web("b1", "10.0.0.2", "b");
        check(
            &mesh(service(), vec![unable, able]),
            80,
            None,
            "b1=tunnel:10.0.0.2:8080",
        );
    }
    check(
        &mesh(service(), vec![pod()]),
        81,
        None,
        "service demo/web.demo.svc.cluster.local has no port 81",
    );
    check(
        &mesh(service(), vec![pod()]),
        15008,
        None,
        "port 15008 is one of weft's own",
    );
    let other = http_endpoints(
        &mesh(service(), vec![pod()]),
        &service_key("no"),
        80,
        None,
        &waypoint(),
    );
    assert!(matches!(other, Err(Refusal::NoHealthyEndpoint(_))));
}

#[test]
fn subsets() {
    let nobody = "service demo/web.demo.svc.cluster.local has no healthy endpoint";
    let pods = vec![
        of_subset(web("a1", "10.0.0.1", "a"), "v1"),
        of_subset(web("b1", "10.0.0.2", "b"), "v1"),
        of_subset(web("a2", "10.0.0.3", "a"), "v2"),
        Workload {
            subsets: vec![(service_key("other"), "v1".into())],
            ..web("a3", "10.0.0.4", "a")
        },
    ];
    let mesh = mesh(service(), pods);
    check(
        &mesh,
        80,
        Some("v1"),
        "a1=tunnel:10.0.0.1:8080 | b1=tunnel:10.0.0.2:8080",
    );
    check(&mesh, 80, Some("v2"), "a2=tunnel:10.0.0.3:8080");
    check(&mesh, 80, Some("v3"), nobody);
}

#[test]
fn how_each_is_reached() {
    let pod = || web("a1", "10.0.0.1", "a");
    let plain = Workload {
        tunnel_protocol: TunnelProtocol::None,
        ..web("vm", "10.0.0.2", "a")
    };
    check(
        &mesh(service(), vec![pod(), plain]),
        80,
        None,
        "a1=tunnel:10.0.0.1:8080 vm=direct:10.0.0.2:8080",
    );
    let mapped = Workload {
        services: [(
            service_key("web"),
            vec![PortMapping {
                service_port: 80,
                target_port: 9,
            }],
        )]
        .into(),
        ..pod()
    };
    check(&mesh(service(), vec![mapped]), 80, None, "a1=tunnel:10.0.0.1:9");
    // Another waypoint is gone through; it knows nothing of subsets.
    let elsewhere = Service {
        waypoint: sample::waypoint_address("10.0.0.50", 15008),
        ..service()
    };
    let other = sample::pod("other-1", &["10.0.0.50"]);
    let through = mesh(elsewhere, vec![of_subset(pod(), "v1"), other]);
    let nobody = "service demo/web.demo.svc.cluster.local has no healthy endpoint";
    check(&through, 80, Some("v1"), nobody);
    check(&through, 80, None, "other-1=waypoint:10.1.0.1:80");
    let none = Service {
        waypoint: sample::waypoint_service("gone"),
        ..service()
    };
    check(
        &mesh(none, vec![pod()]),
        80,
        None,
        "the waypoint of demo/web.demo.svc.cluster.local is not available",
    );
    // One that cannot be asked for it by an address.
    let headless = Service {
        waypoint: sample::waypoint_address("10.0.0.50", 15008),
        vips: Vec::new(),
        ..service()
    };
    let other = sample::pod("other-1", &["10.0.0.50"]);
    check(&mesh(headless, vec![pod(), other]), 80, None, nobody);
    // What has no endpoints of its own.
    let passthrough = LoadBalancing {
        mode: BalancingMode::Passthrough,
        ..LoadBalancing::default()
    };
    check(
        &mesh(
            Service {
                load_balancing: passthrough,
                ..service()
            },
            vec![pod()],
        ),
        80,
        None,
        nobody,
    );
    // A service that no address stands for.
    let headless = Service {
        vips: Vec::new(),
        ..service()
    };
    check(&mesh(headless, vec![pod()]), 80, None, "a1=tunnel:10.0.0.1:8080");
}

fn any_pod() -> impl Strategy<Value = Workload> {
    let place = (
        select(&["a", "b", ""]),
        select(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"]),
    );
    let state = (
        prop::bool::weighted(0.8),
        0..3_u32,
        any::<bool>(),
        select(&[8080_u16, 15006, 0]),
    );
    (0..9_u8, place, state).prop_map(|(name, (at, address), (healthy, capacity, in_mesh, port))| {
        let tunnel_protocol = if in_mesh {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        };
        let services = [(service_key("web"), vec![mapping(80, port)])].into();
        Workload {
            healthy,
            capacity,
            tunnel_protocol,
            services,
            ..web(&format!("p-{name}"), address, at)
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// The first group is what `route` gives to the waypoint for the service's address, whatever the draw; no endpoint is in
    /// two groups.
    #[test]
    fn as_route_has_it(pods in vec(any_pod(), 0..6), strict in any::<bool>()) {
        let mode = if strict { BalancingMode::Strict } else { BalancingMode::Failover };
        let load_balancing = LoadBalancing { mode, ..service().load_balancing };
        let mesh = mesh(Service { load_balancing, ..service() }, pods);
        let conn = Outbound { source: Arc::new(waypoint()), destination: "10.1.0.1:80".parse().unwrap() };
        let answers: Vec<_> = (0..choices(&mesh, &conn)).map(|draw| route::route(&mesh, &conn, draw).next).collect();
        let groups = http_endpoints(&mesh, &service_key("web"), 80, None, &waypoint());
        let led: Vec<_> = answers.iter().filter(|next| !matches!(next, NextHop::Refuse(_))).collect();
        match groups {
            // Where `route` draws one that is refused, requests go to those that are not.
            Ok(groups) => {
                let first: Vec<_> = groups[0].iter().map(|endpoint| &endpoint.next).collect();
                prop_assert!(led.is_empty() || led.iter().all(|next| first.contains(next)));
                prop_assert!(led.is_empty() || first.iter().all(|next| led.contains(next)));
                let mut all: Vec<_> = groups.iter().flatten().map(|endpoint| endpoint.workload.uid.clone()).collect();
                let count = all.len();
                all.sort();
                all.dedup();
                prop_assert_eq!(all.len(), count);
                prop_assert!(groups.iter().all(|group| !group.is_empty()));
            }
            Err(_) => prop_assert!(led.is_empty(), "{:?}", led),
        }
    }
}
