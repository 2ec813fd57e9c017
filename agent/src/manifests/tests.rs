//! Routes as they are linked: which match comes first, and for whom.

use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::objects::Object,
    mesh::{
        IpFamilies, LoadBalancing, PortMapping, Service,
        http::{RouteTable, ServiceRoutes},
    },
};

/// A namespace `shop` with a service `cart` and its port 80.
struct Shop;

fn cart() -> Known {
    Known {
        key: ServiceKey {
            namespace: "shop".into(),
            hostname: "cart.shop.svc.cluster.local".into(),
        },
        ports: vec![80],
        subsets: BTreeSet::new(),
        refused: false,
    }
}

impl Surroundings for Shop {
    fn cluster_domain(&self) -> &str {
        "cluster.local"
    }

    fn services_of(&self, _: Kind, namespace: &str, name: &str) -> Vec<Known> {
        let is_cart = (namespace, name) == ("shop", "cart");
        is_cart.then(cart).into_iter().collect()
    }

    fn service_at(&self, hostname: &str, _: &str) -> Option<Known> {
        Some(cart()).filter(|it| *it.key.hostname == *hostname)
    }

    fn permits(&self, _: (Kind, &str), _: (Kind, &str, &str)) -> bool {
        false
    }

    fn delegate(&self, _: &str, _: &str) -> Option<Arc<Value>> {
        None
    }
}

fn linked(objects: Vec<Value>) -> (ServiceRoutes, Vec<Diagnostic>) {
    let objects: Vec<_> = objects
        .into_iter()
        .map(|it| match Object::from_manifest(it) {
            Ok(Object::Custom(kind, object)) => (kind, object),
            other => panic!("no custom object: {other:?}"),
        })
        .collect();
    let mut diagnostics = Vec::new();
    let mut namespaces: Vec<_> = objects
        .iter()
        .filter_map(|(_, it)| it.metadata.namespace.clone())
        .collect();
    namespaces.sort();
    namespaces.dedup();
    let read = namespaces.iter().map(|namespace| {
        let own = objects
            .iter()
            .filter(|(_, it)| it.metadata.namespace.as_ref() == Some(namespace));
        let own = own.map(|(kind, it)| (*kind, &**it));
        (namespace.as_str(), Routings::read(own, &Shop, &mut diagnostics))
    });
    let read: Vec<_> = read.collect();
    let service = Service {
        key: cart().key,
        name: "cart".into(),
        vips: Vec::new(),
        vip_networks: Vec::new(),
        ports: vec![PortMapping {
            service_port: 80,
            target_port: 80,
        }],
        app_protocols: Default::default(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: LoadBalancing::default(),
        ip_families: IpFamilies::default(),
    };
    let all = read.iter().map(|(namespace, routings)| (*namespace, routings));
    let routes = link(&service, all, Bound::default(), &mut diagnostics);
    (routes.expect("something is said"), diagnostics)
}

fn producer(objects: Vec<Value>) -> RouteTable {
    let (mut routes, _) = linked(objects);
    routes
        .http
        .remove(&80)
        .and_then(|it| it.producer)
        .expect("routes")
}

/// A route of this name and second of birth with rules of these matches.
fn route(name: &str, second: u32, rules: Vec<Value>) -> Value {
    let rules: Vec<_> = rules
        .into_iter()
        .map(|matches| json!({"matches": matches}))
        .collect();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "cart"}], "rules": rules},
    })
}

/// Which rules decide, the first first.
fn check(what: &str, routes: Vec<Value>, expect: &[&str]) {
    let table = producer(routes);
    let order = table
        .entries
        .iter()
        .map(|entry| table.rules[entry.rule].name.to_string());
    let order: Vec<_> = order
        .map(|name| name.replace("HTTPRoute shop/", "").replace(" rule ", ""))
        .collect();
    assert_eq!(order, expect, "{what}");
}

#[test]
fn the_more_specific_match_comes_first() {
    let path = |type_: &str, value: &str| json!([{"path": {"type": type_, "value": value}}]);
    let rules = |all: Vec<Value>| vec![route("r", 0, all)];
    let paths = vec![
        path("PathPrefix", "/"),
        path("PathPrefix", "/a/long/prefix"),
        path("RegularExpression", "/.*"),
        path("PathPrefix", "/a"),
        path("Exact", "/a"),
    ];
    check("paths", rules(paths), &["r4", "r2", "r1", "r3", "r0"]);
    let methods = vec![
        json!([{}]),
        json!([{"method": "GET"}]),
        json!([{"path": {"value": "/a"}}]),
    ];
    check(
        "a method counts less than a path",
        rules(methods),
        &["r2", "r1", "r0"],
    );
    let headers = vec![
        json!([{"queryParams": [{"name": "a", "value": "1"}, {"name": "b", "value": "1"}]}]),
        json!([{"headers": [{"name": "a", "value": "1"}]}]),
        json!([{"headers": [{"name": "a", "value": "1"}, {"name": "b", "value": "1"}]}]),
        json!([{"method": "GET"}]),
        json!([{"headers": [{"name": "a", "value": "1"}], "queryParams": [{"name": "a", "value": "1"}]}]),
    ];
    check(
        "method, headers, parameters",
        rules(headers),
        &["r3", "r2", "r4", "r1", "r0"],
    );
    let twice = vec![
        json!([{"headers": [{"name": "A", "value": "1"}, {"name": "a", "value": "2"}]}]),
        json!([{}]),
    ];
    check(
        "of headers of one name the first counts",
        rules(twice),
        &["r0", "r1"],
    );
}

#[test]
fn then_the_older_route_its_name_and_the_order_within() {
    let any = || vec![json!([{}])];
    let both = vec![route("a", 2, any()), route("b", 1, any())];
    check("the older", both, &["b0", "a0"]);
    check(
        "the name",
        vec![route("b", 1, any()), route("a", 1, any())],
        &["a0", "b0"],
    );
    check(
        "the order",
        vec![route("a", 1, vec![json!([{}]), json!([{}, {}])])],
        &["a0", "a1", "a1"],
    );
    let specific = vec![
        route("a", 2, vec![json!([{"path": {"value": "/x"}}])]),
        route("b", 1, any()),
    ];
    check("but for what is more specific", specific, &["a0", "b0"]);
    check(
        "a rule without matches is about everything",
        vec![route("a", 1, vec![json!([])])],
        &["a0"],
    );
}

#[test]
fn a_match_that_cannot_be_read_is_about_nothing() {
    let broken = json!([{"path": {"type": "RegularExpression", "value": "("}}, {"header": []}, {"path": {"value": "/a"}}]);
    let (routes, diagnostics) = linked(vec![route("a", 1, vec![broken])]);
    let table = routes.http[&80].producer.as_ref().unwrap();
    assert_eq!(table.entries.len(), 1);
    let dropped = diagnostics.iter().filter(|it| it.reason == "MatchDropped");
    assert_eq!(dropped.count(), 2, "{diagnostics:?}");
    let nothing = linked(vec![route("a", 1, vec![json!("all")])]);
    let table = nothing.0.http[&80].producer.as_ref().unwrap();
    assert!(table.entries.is_empty(), "everything is answered with 404");
}

fn virtual_service(namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "vs", "namespace": namespace}, "spec": spec,
    })
}

#[test]
fn who_a_virtual_service_is_for() {
    let to_cart = json!([{"route": [{"destination": {"host": "cart.shop.svc.cluster.local"}}]}]);
    let host = "cart.shop.svc.cluster.local";
    let check = |namespace: &str, export_to: Value, expect: &[&str]| {
        let spec = json!({"hosts": [host], "exportTo": export_to, "http": to_cart});
        // Beside it somebody of a third namespace, so that something is said in any case.
        let other = virtual_service("zoo", json!({"hosts": [host], "http": to_cart}));
        let (routes, _) = linked(vec![virtual_service(namespace, spec), other]);
        let http = &routes.http[&80];
        let all = http.producer.iter().map(|_| "all");
        let all: Vec<_> = all.chain(http.consumers.keys().map(|it| &**it)).collect();
        assert_eq!(all, expect, "{namespace} {export_to}");
    };
    check("shop", json!(null), &["all", "zoo"]);
    check("shop", json!(["*"]), &["all", "zoo"]);
    check("shop", json!(["."]), &["shop", "zoo"]);
    check("shop", json!(["web", "zoo"]), &["web", "zoo"]);
    check("shop", json!(["~"]), &["zoo"]);
    check("web", json!(null), &["web", "zoo"]);
    check("web", json!(["."]), &["web", "zoo"]);
    check("web", json!(["shop"]), &["zoo"]);
    check("web", json!("*"), &["zoo"]);
}

#[test]
fn routes_of_the_gateway_api_come_before_virtual_services() {
    let written = virtual_service(
        "shop",
        json!({"hosts": ["cart"], "http": [{"route": [{"destination": {"host": "cart"}}]}]}),
    );
    let (routes, diagnostics) = linked(vec![written, route("a", 1, vec![json!([{}])])]);
    let table = routes.http[&80].producer.as_ref().unwrap();
    assert_eq!(&*table.rules[0].name.0, "HTTPRoute shop/a rule 0");
    assert!(
        diagnostics.iter().any(|it| it.reason == "ShadowedByRoute"),
        "{diagnostics:?}"
    );
}
