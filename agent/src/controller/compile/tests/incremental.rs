//! Told of changes, the compiler ends where it would have begun: incremental and full are the same.

use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cluster::objects::Kind;

const NAMESPACES: [&str; 3] = ["shop", "bank", "istio-system"];
const NAMES: [&str; 3] = ["a", "b", "waypoint"];

fn metadata(draw: &Draw) -> Value {
    let mut labels = json!({"app": draw.name});
    let pairs = [
        (
            "istio.io/dataplane-mode",
            ["ambient", "none"][draw.bits(0, 2)],
            draw.bits(1, 2) == 0,
        ),
        (
            "istio.io/use-waypoint",
            ["waypoint", "none"][draw.bits(2, 8) / 7],
            draw.bits(3, 3) == 0,
        ),
        (
            "istio.io/use-waypoint-namespace",
            NAMESPACES[draw.bits(4, 3)],
            draw.bits(5, 3) == 0,
        ),
        (
            "istio.io/waypoint-for",
            ["all", "workload"][draw.bits(6, 2)],
            draw.bits(7, 2) == 0,
        ),
        ("kubernetes.io/service-name", NAMES[draw.bits(8, 3)], true),
    ];
    for (key, value, there) in pairs {
        if there {
            labels[key] = value.into();
        }
    }
    json!({"name": draw.name, "namespace": draw.namespace, "labels": labels})
}

/// A change, in numbers.
#[derive(Clone, Debug)]
struct Draw {
    kind: Kind,
    namespace: &'static str,
    name: &'static str,
    seed: u64,
    delete: bool,
}

impl Draw {
    /// The `nth` of its choices, below `below`.
    fn bits(&self, nth: u32, below: usize) -> usize {
        let mixed = self.seed.rotate_left(nth * 5).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as usize % below
    }

    fn address(&self, nth: u32) -> String {
        format!("10.0.0.{}", self.bits(nth, 5) + 1)
    }

    fn spec(&self) -> (Value, Value) {
        let app = json!({"matchLabels": {"app": NAMES[self.bits(9, 3)]}});
        let action = ["ALLOW", "DENY", "CUSTOM", "AUDIT"][self.bits(10, 4)];
        let unseen = json!([{"to": [{"operation": {"paths": ["/x"]}}]}]);
        let rules = [
            json!([{}]),
            unseen,
            json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]),
        ];
        let rules = &rules[self.bits(11, 3)];
        let address = self.address(12);
        let controller = ["a", "weft.dev/mesh-controller"][self.bits(19, 2)];
        match self.kind {
            Kind::Pod => (
                json!({"nodeName": NAMES[self.bits(13, 3)], "serviceAccountName": self.name}),
                json!({"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}),
            ),
            Kind::Service => {
                let selector = [json!(null), json!({"app": NAMES[self.bits(14, 3)]})];
                let spec = json!({
                    "clusterIP": address, "ports": [{"port": 80, "targetPort": self.bits(15, 3)}],
                    "selector": selector[self.bits(16, 2)],
                });
                (spec, json!(null))
            }
            Kind::Gateway => {
                let from = ["All", "Same"][self.bits(17, 2)];
                let listener = json!({"protocol": "HBONE", "port": 15008, "allowedRoutes": {"namespaces": {"from": from}}});
                let class = ["weft-waypoint", "istio"][self.bits(18, 6) / 5];
                (
                    json!({"gatewayClassName": class, "listeners": [listener]}),
                    json!(null),
                )
            }
            Kind::GatewayClass => (json!({"controllerName": controller}), json!(null)),
            Kind::AuthorizationPolicy => {
                let targets = json!([
                    {"kind": "Service", "name": self.name},
                    {"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"},
                    {"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "weft-waypoint"},
                ]);
                let spec = match self.bits(20, 3) {
                    0 => json!({"action": action, "rules": rules}),
                    1 => json!({"action": action, "rules": rules, "selector": app}),
                    _ => json!({"action": action, "rules": rules, "targetRefs": [targets[self.bits(21, 3)]]}),
                };
                (spec, json!(null))
            }
            Kind::PeerAuthentication => {
                let mode = ["STRICT", "PERMISSIVE", "UNSET"][self.bits(22, 3)];
                let selector = [json!(null), app];
                (
                    json!({"mtls": {"mode": mode}, "selector": selector[self.bits(23, 2)]}),
                    json!(null),
                )
            }
            Kind::ServiceEntry => {
                let resolution = ["STATIC", "NONE", "DNS"][self.bits(24, 3)];
                let host = format!("{}.example.com", NAMES[self.bits(25, 3)]);
                let spec = json!({
                    "hosts": [host], "addresses": [address], "resolution": resolution,
                    "ports": [{"number": 80, "name": "http"}], "endpoints": [{"address": self.address(26)}],
                });
                (spec, json!(null))
            }
            Kind::WorkloadEntry => (
                json!({"address": address, "labels": {"app": NAMES[self.bits(27, 3)]}}),
                json!(null),
            ),
            kind => (self.routing(kind), json!(null)),
        }
    }

    /// The spec of a kind that is about requests.
    fn routing(&self, kind: Kind) -> Value {
        let host = match self.bits(31, 4) {
            0 => NAMES[self.bits(32, 3)].to_owned(),
            1 => format!(
                "{}.{}.svc.cluster.local",
                NAMES[self.bits(32, 3)],
                NAMESPACES[self.bits(33, 3)]
            ),
            2 => format!("{}.example.com", NAMES[self.bits(32, 3)]),
            _ => "*".to_owned(),
        };
        let backend =
            json!({"name": NAMES[self.bits(34, 3)], "namespace": NAMESPACES[self.bits(35, 3)], "port": 80});
        let kinds = ["Service", "ServiceEntry"];
        let at = self.bits(36, 8) / 7;
        let group = ["", "networking.istio.io"][at];
        let parent = json!({"group": group, "kind": kinds[at], "name": NAMES[self.bits(37, 3)],
            "namespace": NAMESPACES[self.bits(38, 3)]});
        let app = json!({"app": NAMES[self.bits(39, 3)]});
        let export_to = ["*", ".", "bank"][self.bits(40, 3)];
        match kind {
            Kind::VirtualService => {
                let route =
                    json!({"route": [{"destination": {"host": NAMES[self.bits(41, 3)], "subset": "v1"}}]});
                let (name, namespace) = (NAMES[self.bits(44, 3)], NAMESPACES[self.bits(45, 3)]);
                let delegates = json!({"delegate": {"name": name, "namespace": namespace}});
                match self.bits(46, 3) {
                    0 => json!({"exportTo": [export_to], "http": [route]}),
                    1 => json!({"hosts": [host], "exportTo": [export_to], "http": [delegates, route]}),
                    _ => json!({"hosts": [host], "exportTo": [export_to], "http": [route]}),
                }
            }
            Kind::DestinationRule => json!({"host": host, "subsets": [{"name": "v1", "labels": app}]}),
            Kind::RequestAuthentication => {
                let rules = json!([{"issuer": "a", "jwksUri": "https://a/keys"}]);
                match self.bits(42, 3) {
                    0 => json!({"jwtRules": rules}),
                    1 => json!({"jwtRules": rules, "selector": {"matchLabels": app}}),
                    _ => json!({"jwtRules": rules, "targetRefs": [{"kind": "Service", "name": self.name}]}),
                }
            }
            Kind::ReferenceGrant => json!({
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": NAMESPACES[self.bits(43, 3)]}],
                "to": [{"group": "", "kind": "Service"}],
            }),
            _ => json!({"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]}),
        }
    }

    fn change(&self) -> Change {
        if self.delete {
            let namespace = if self.kind.is_namespaced() {
                self.namespace
            } else {
                ""
            };
            return Change::Delete {
                kind: self.kind,
                namespace: namespace.into(),
                name: self.object_name().into(),
            };
        }
        let (spec, status) = self.spec();
        let mut document = json!({
            "apiVersion": format!("{}/v1", self.kind.group()).trim_start_matches('/'), "kind": self.kind.kind(),
            "metadata": metadata(self), "spec": spec, "status": status,
            "addressType": "IPv4",
        });
        document["metadata"]["name"] = self.object_name().into();
        if self.kind == Kind::EndpointSlice {
            let terminating = self.bits(28, 2) == 0;
            document["endpoints"] = json!([
                {"addresses": [self.address(29)], "conditions": {"terminating": terminating}},
                {"addresses": [self.address(30)], "targetRef": {"kind": "Pod", "name": self.name}},
            ]);
        }
        Change::Apply(Object::from_manifest(document).expect("an object"))
    }

    fn object_name(&self) -> &'static str {
        match self.kind {
            Kind::Namespace => self.namespace,
            Kind::GatewayClass => "weft-waypoint",
            _ => self.name,
        }
    }
}

/// Those that routes come from, and what they are about.
const ABOUT_REQUESTS: [Kind; 11] = [
    Kind::Service,
    Kind::Service,
    Kind::Namespace,
    Kind::Gateway,
    Kind::HttpRoute,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::RequestAuthentication,
    Kind::AuthorizationPolicy,
    Kind::ReferenceGrant,
    Kind::ServiceEntry,
];

fn draw(kinds: Vec<Kind>) -> impl Strategy<Value = Draw> {
    let names = (
        prop::sample::select(&NAMESPACES[..]),
        prop::sample::select(&NAMES[..]),
    );
    let drawn = (
        prop::sample::select(kinds),
        names,
        any::<u64>(),
        prop::bool::weighted(0.25),
    );
    drawn.prop_map(|(kind, (namespace, name), seed, delete)| Draw {
        kind,
        namespace,
        name,
        seed,
        delete,
    })
}

/// What somebody has who only took in what changed.
#[derive(Default)]
struct Follower {
    workloads: std::collections::BTreeMap<Arc<str>, Arc<Workload>>,
    services: std::collections::BTreeMap<ServiceKey, Arc<Service>>,
    policies: std::collections::BTreeMap<PolicyKey, Arc<Policy>>,
    routes: std::collections::BTreeMap<ServiceKey, Arc<Routes>>,
    authentications: std::collections::BTreeMap<PolicyKey, Arc<RequestAuthentication>>,
    peer_authentications: PeerAuthentications,
    same_nodes: SameNodes,
    diagnostics: Vec<Diagnostic>,
    waypoints: Vec<WaypointGateway>,
}

impl Follower {
    fn apply(&mut self, delta: Delta) {
        for uid in &delta.removed_workloads {
            assert!(self.workloads.remove(uid).is_some(), "{uid} was not there");
        }
        for key in &delta.removed_services {
            assert!(self.services.remove(key).is_some(), "{key} was not there");
        }
        for key in &delta.removed_policies {
            assert!(self.policies.remove(key).is_some(), "{key} was not there");
        }
        for key in &delta.removed_routes {
            assert!(self.routes.remove(key).is_some(), "{key} was not there");
        }
        for key in &delta.removed_authentications {
            assert!(self.authentications.remove(key).is_some(), "{key} was not there");
        }
        let routes = delta.routes.into_iter();
        self.routes
            .extend(routes.map(|it| (it.values().service.clone(), it)));
        let authentications = delta.authentications.into_iter();
        self.authentications
            .extend(authentications.map(|it| (it.key.clone(), it)));
        self.workloads
            .extend(delta.workloads.into_iter().map(|it| (it.uid.clone(), it)));
        self.services
            .extend(delta.services.into_iter().map(|it| (it.key.clone(), it)));
        self.policies
            .extend(delta.policies.into_iter().map(|it| (it.key.clone(), it)));
        if let Some(all) = delta.peer_authentications {
            self.peer_authentications = all;
        }
        if let Some(all) = delta.same_nodes {
            self.same_nodes = all;
        }
        if let Some(all) = delta.diagnostics {
            self.diagnostics = all;
        }
        if let Some(all) = delta.waypoints {
            self.waypoints = all;
        }
    }

    fn check(&self, full: &Compiled) {
        let parts = &full.parts;
        assert!(
            self.workloads.values().map(|it| &**it).eq(&parts.workloads),
            "workloads"
        );
        assert!(
            self.services.values().map(|it| &**it).eq(&parts.services),
            "services"
        );
        assert!(
            self.policies.values().map(|it| &**it).eq(&parts.policies),
            "policies"
        );
        let http = &parts.http;
        assert!(self.routes.values().eq(&http.routes), "routes");
        let authentications = self.authentications.values();
        assert!(authentications.eq(&http.authentications), "authentications");
        assert_eq!(self.peer_authentications, parts.peer_authentications);
        assert_eq!(self.same_nodes, parts.same_nodes);
        assert_eq!(self.diagnostics, full.diagnostics);
        assert_eq!(self.waypoints, full.waypoints);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn incremental_is_the_same_as_full(batches in batches(Kind::ALL.to_vec(), 6)) {
        follow(batches);
    }

    #[test]
    fn incremental_is_the_same_as_full_for_what_is_about_requests(batches in batches(ABOUT_REQUESTS.to_vec(), 12)) {
        follow(batches);
    }
}

fn batches(kinds: Vec<Kind>, most: usize) -> impl Strategy<Value = Vec<Vec<Draw>>> {
    prop::collection::vec(prop::collection::vec(draw(kinds), 1..most), 1..12)
}

fn follow(batches: Vec<Vec<Draw>>) {
    let mut compiler = Compiler::new(settings());
    let mut follower = Follower::default();
    for batch in batches {
        for draw in &batch {
            compiler.apply(draw.change());
        }
        follower.apply(compiler.compile());
        follower.check(&compile(compiler.resources(), &settings()));
        follower.check(&compiler.compiled());
    }
}

#[test]
fn nothing_is_compiled_where_nothing_changed() {
    let text = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/controller/compile/manifests/waypoint-only.yaml"
    ))
    .unwrap();
    let mut compiler = Compiler::new(settings());
    for object in objects(&text) {
        compiler.apply(Change::Apply(object));
    }
    assert!(!compiler.compile().workloads.is_empty());
    for object in objects(&text) {
        assert!(!compiler.apply(Change::Apply(object)));
    }
    assert_eq!(compiler.compile(), Delta::default());
}

#[test]
fn a_list_replaces_what_is_not_in_it() {
    let pod = |name: &str| {
        let document = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"nodeName": "n1"},
        });
        Object::from_manifest(document).unwrap()
    };
    let list = |compiler: &mut Compiler, names: [&str; 2]| {
        for name in names {
            compiler.apply(Change::Apply(pod(name)));
        }
        let there = names.map(|name| ("shop".to_owned(), name.to_owned()));
        compiler.apply(Change::Listed(Kind::Pod, there.into()))
    };
    let mut compiler = Compiler::new(settings());
    list(&mut compiler, ["a", "b"]);
    assert_eq!(compiler.compile().workloads.len(), 2);
    assert!(list(&mut compiler, ["b", "c"]));
    let delta = compiler.compile();
    let names = |all: &[Arc<Workload>]| all.iter().map(|it| it.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&delta.workloads), ["c"]);
    assert_eq!(delta.removed_workloads, [Arc::from("Kubernetes//Pod/shop/a")]);
}

/// What the process has in memory.
fn resident_mib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let resident = pages
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    (resident.expect("a number of pages") * 4096) >> 20
}

/// 500 namespaces with 100 pods and 10 services each.
#[test]
#[ignore = "prints how long 50,000 pods take"]
fn how_long_fifty_thousand_pods_take() {
    let before = resident_mib();
    let mut compiler = Compiler::new(settings());
    let pod = |namespace: usize, pod: usize, address: u32| {
        let document = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("app-{}-5d9c7b4f6d-{pod:05}", pod % 10), "namespace": format!("ns-{namespace}"),
                "uid": format!("00000000-0000-0000-{namespace:04}-{pod:012}"),
                "labels": {"app": format!("app-{}", pod % 10), "version": "v1", "pod-template-hash": "5d9c7b4f6d"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "name": format!("app-{}-5d9c7b4f6d", pod % 10), "uid": "1"}],
            },
            "spec": {"nodeName": format!("node-{}", pod % 1000), "serviceAccountName": format!("app-{}", pod % 10),
                "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"podIP": std::net::Ipv4Addr::from_bits(0x0a00_0000 + address).to_string(), "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        Object::from_manifest(document).unwrap()
    };
    for namespace in 0..500 {
        for number in 0..100 {
            compiler.apply(Change::Apply(pod(
                namespace,
                number,
                (namespace * 100 + number) as u32,
            )));
        }
        for number in 0..10 {
            let document = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("app-{number}"), "namespace": format!("ns-{namespace}")},
                "spec": {"clusterIP": format!("11.{}.{}.{number}", namespace / 256, namespace % 256),
                    "selector": {"app": format!("app-{number}")}, "ports": [{"port": 80, "targetPort": "http"}]},
            });
            compiler.apply(Change::Apply(Object::from_manifest(document).unwrap()));
        }
    }
    println!("the objects: {} MiB", resident_mib() - before);
    let begin = Instant::now();
    let delta = compiler.compile();
    println!(
        "all of {} workloads: {:?}",
        delta.workloads.len(),
        begin.elapsed()
    );
    println!("objects and mesh: {} MiB", resident_mib() - before);
    let begin = Instant::now();
    for turn in 0..1000_u32 {
        let namespace = (turn % 500) as usize;
        compiler.apply(Change::Apply(pod(namespace, 7, 1_000_000 + turn)));
        assert_eq!(compiler.compile().workloads.len(), 1);
    }
    println!("one pod of them: {:?}", begin.elapsed() / 1000);
    let begin = Instant::now();
    let full = compile(compiler.resources(), &settings());
    println!(
        "all from nothing: {:?} ({} workloads)",
        begin.elapsed(),
        full.parts.workloads.len()
    );
}
