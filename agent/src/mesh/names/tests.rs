//! What hostnames stand for, by name, family, namespace and search domain.

use super::{
    super::{IpFamilies, MeshParts, sample},
    *,
};

/// The namespace of [`sample`]'s pods and services is `demo`.
fn mesh() -> Mesh {
    let service = |namespace: &str, hostname: &str, vips: &[&str]| {
        let mut service = sample::service("x", vips);
        service.key.namespace = namespace.into();
        service.key.hostname = hostname.into();
        service
    };
    let unhealthy = Workload {
        healthy: false,
        ..sample::backs(sample::pod("db-3", &["10.1.0.3"]), "db")
    };
    Mesh::new(MeshParts {
        workloads: vec![
            sample::backs(sample::pod("db-1", &["10.1.0.1", "fd00:1::1"]), "db"),
            sample::backs(sample::pod("db-2", &["10.1.0.2"]), "db"),
            unhealthy,
        ],
        services: vec![
            sample::service("web", &["10.96.0.1", "fd00:96::1"]),
            sample::service("v4", &["10.96.0.2"]),
            sample::service("db", &[]),
            sample::service("empty", &[]),
            service("shop", "cart.shop.svc.cluster.local", &["10.96.0.3"]),
            service("demo", "Api.Example.COM", &["10.96.1.1"]),
            service("demo", "*.example.com", &["10.96.1.2"]),
            service("demo", "*.eu.example.com", &["10.96.1.3"]),
            service("zoo", "both.example.net", &["10.96.1.9"]),
            service("demo", "both.example.net", &["10.96.1.8"]),
            service("app", "both.example.net", &["10.96.1.7"]),
            service("demo", "printer", &["10.96.1.4"]),
        ],
        ..sample::parts()
    })
}

/// What a pod of `namespace` is told: `hostname/zone: addresses`, or `-` for a name that is not the mesh's.
fn asked(namespace: &str, hostname: &str, wanted: Wanted, draw: u64) -> String {
    let client = Workload {
        namespace: namespace.into(),
        ..sample::pod("client", &[])
    };
    let lookup = Lookup {
        hostname,
        wanted,
        draw,
    };
    let mesh = mesh();
    let Some(host) = resolve(&mesh, &lookup, &client) else {
        return "-".to_owned();
    };
    let addresses: Vec<_> = host.addresses.iter().map(ToString::to_string).collect();
    format!("{}/{}: {}", host.hostname, host.zone, addresses.join(" "))
}

fn check(hostname: &str, expect: &str) {
    assert_eq!(asked("demo", hostname, Wanted::V4, 0), expect, "{hostname}");
}

#[test]
fn a_service_has_its_virtual_addresses() {
    let web = "web.demo.svc.cluster.local";
    for (wanted, expect) in [
        (Wanted::V4, "10.96.0.1"),
        (Wanted::V6, "fd00:96::1"),
        (Wanted::Both, "10.96.0.1 fd00:96::1"),
        (Wanted::Nothing, ""),
    ] {
        assert_eq!(asked("demo", web, wanted, 0), format!("{web}/{web}: {expect}"));
    }
    let v4 = "v4.demo.svc.cluster.local";
    assert_eq!(asked("demo", v4, Wanted::V6, 0), format!("{v4}/{v4}: "));
    check("api.example.com", "api.example.com/api.example.com: 10.96.1.1");
    for unknown in [
        "web.demo.svc.cluster.locals",
        "demo.svc.cluster.local",
        "cluster.local",
        "example.org",
        "",
    ] {
        check(unknown, "-");
    }
}

#[test]
fn a_service_without_virtual_address_has_its_healthy_pods_each_first_in_turn() {
    let db = "db.demo.svc.cluster.local";
    let turns: Vec<_> = (0..3).map(|draw| asked("demo", db, Wanted::V4, draw)).collect();
    let first = format!("{db}/{db}: 10.1.0.1 10.1.0.2");
    assert_eq!(
        turns,
        [first.clone(), format!("{db}/{db}: 10.1.0.2 10.1.0.1"), first]
    );
    assert_eq!(asked("demo", db, Wanted::V6, 7), format!("{db}/{db}: fd00:1::1"));
    check(
        "empty.demo.svc.cluster.local",
        "empty.demo.svc.cluster.local/empty.demo.svc.cluster.local: ",
    );
}

#[test]
fn the_longest_wildcard_that_fits_and_before_it_the_hostname_itself() {
    check("www.example.com", "www.example.com/example.com: 10.96.1.2");
    check("a.b.example.com", "a.b.example.com/example.com: 10.96.1.2");
    check("a.eu.example.com", "a.eu.example.com/eu.example.com: 10.96.1.3");
    check("eu.example.com", "eu.example.com/example.com: 10.96.1.2");
    check("api.example.com", "api.example.com/api.example.com: 10.96.1.1");
    for unknown in ["example.com", "wwwexample.com", "com"] {
        check(unknown, "-");
    }
}

#[test]
fn a_search_domain_behind_a_hostname_is_taken_off() {
    let api = "api.example.com/api.example.com: 10.96.1.1";
    for domain in ["demo.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        check(&format!("api.example.com.{domain}"), api);
        check(
            &format!("www.example.com.{domain}"),
            "www.example.com/example.com: 10.96.1.2",
        );
        check(&format!("printer.{domain}"), "printer/printer: 10.96.1.4");
    }
    check("api.example.com.shop.svc.cluster.local", "-");
    assert_eq!(
        asked("shop", "api.example.com.shop.svc.cluster.local", Wanted::V4, 0),
        api
    );
    check(
        "cart.shop.svc.demo.svc.cluster.local",
        "cart.shop.svc/cart.shop.svc: 10.96.0.3",
    );
    check("cart.demo.svc.cluster.local", "-");
    // The service is the pod's own namespace's; without a namespace it is nobody's.
    check("web.svc.cluster.local", "-");
    check("web.cluster.local", "-");
}

#[test]
fn short_forms_that_no_public_name_can_have() {
    check("web", "web/web: 10.96.0.1");
    assert_eq!(asked("shop", "web", Wanted::V4, 0), "-");
    assert_eq!(asked("shop", "cart", Wanted::V4, 0), "cart/cart: 10.96.0.3");
    check("cart.shop.svc", "cart.shop.svc/cart.shop.svc: 10.96.0.3");
    check("cart.shop", "-");
}

#[test]
fn of_several_services_the_pods_own_namespaces_or_else_the_first_by_name() {
    for (namespace, address) in [("zoo", 9), ("demo", 8), ("app", 7), ("elsewhere", 7)] {
        let expect = format!("both.example.net/both.example.net: 10.96.1.{address}");
        assert_eq!(asked(namespace, "both.example.net", Wanted::V4, 0), expect);
    }
}

#[test]
fn families_and_services_without_an_answer() {
    let with = |name: &str, vips: &[&str], change: fn(&mut Service)| {
        let mut service = sample::service(name, vips);
        change(&mut service);
        service
    };
    let both = ["10.96.0.1", "fd00:96::1"];
    let passthrough = |service: &mut Service| {
        service.load_balancing.mode = BalancingMode::Passthrough;
        service.vip_networks = vec!["192.0.2.0/24".parse().unwrap()];
    };
    let mesh = Mesh::new(MeshParts {
        workloads: vec![sample::backs(
            sample::pod("db-1", &["10.1.0.1", "fd00:1::1"]),
            "db",
        )],
        services: vec![
            with("four", &both, |service| {
                service.ip_families = IpFamilies::Ipv4Only;
            }),
            with("six", &both, |service| service.ip_families = IpFamilies::Ipv6Only),
            with("dual", &both, |service| service.ip_families = IpFamilies::Dual),
            with("db", &[], |service| service.ip_families = IpFamilies::Ipv6Only),
            with("outside", &[], passthrough),
            with("known", &["198.51.100.1"], passthrough),
        ],
        ..sample::parts()
    });
    let check = |name: &str, expect: Option<&[&str]>| {
        let hostname = format!("{name}.demo.svc.cluster.local");
        let lookup = Lookup {
            hostname: &hostname,
            wanted: Wanted::Both,
            draw: 0,
        };
        let host = resolve(&mesh, &lookup, &sample::pod("client", &[]));
        let addresses = host.map(|host| host.addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            addresses.as_deref(),
            expect
                .map(|it| it.iter().map(ToString::to_string).collect::<Vec<_>>())
                .as_deref(),
            "{name}"
        );
    };
    check("four", Some(&["10.96.0.1"]));
    check("six", Some(&["fd00:96::1"]));
    check("dual", Some(&both));
    check("db", Some(&["fd00:1::1"]));
    // Whatever is dialled is meant, so other servers know where that is.
    check("outside", None);
    check("known", Some(&["198.51.100.1"]));
}
