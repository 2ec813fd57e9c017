//! Manifests, and what is said on them.

use serde_json::Value;

use super::*;
use crate::{
    cluster::objects::Object,
    controller::compile::{Change, Settings},
};

/// Each condition as `kind/name type=status reason: message`, against what it begins with.
fn check(texts: &[&str], expect: &[&str]) {
    let text = texts.join("---\n");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let mut compiler = Compiler::new(Settings::default());
    for document in documents {
        let object = Object::from_manifest(document).expect("an object that is read");
        compiler.apply(Change::Apply(object));
    }
    let diagnostics = compiler.compile().diagnostics.unwrap_or_default();
    let mut said = Vec::new();
    for (object, status) in statuses(&compiler, &diagnostics) {
        let name = format!("{}/{}", object.kind.kind(), object.name);
        match status {
            Status::Conditions(all) => said.extend(all.iter().map(|it| show(&name, it))),
            Status::Parents(parents) => {
                for parent in parents {
                    let name = format!(
                        "{name} at {}",
                        parent.parent_ref["name"].as_str().unwrap_or_default()
                    );
                    said.extend(parent.conditions.iter().map(|it| show(&name, it)));
                }
            }
            Status::Gateway(_) => panic!("{object} is not ours"),
        }
    }
    let begins = |(said, expect): (&String, &&str)| said.starts_with(*expect);
    let fits = said.len() == expect.len() && said.iter().zip(expect).all(begins);
    assert!(fits, "{text}\nsaid {said:#?}\nexpected {expect:#?}");
}

fn show(name: &str, it: &Condition) -> String {
    let holds = it.holds.map_or("Unknown".to_owned(), |it| it.to_string());
    format!("{name} {}={holds} {}: {}", it.type_, it.reason, it.message)
}

const SHOP: &str =
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}\n";
const BOUND: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}}\n";
const WEB: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: a}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, name: http}]}
";
const WAYPOINT: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: weft-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {conditions: [{type: Programmed, status: 'True'}]}
";
const IS_BOUND: &str =
    "Service/web istio.io/WaypointBound=true WaypointAccepted: bound to waypoint shop/waypoint";

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn policies_are_in_force_or_say_why_not() {
    let agents = |spec: &str, expect: &str| check(&[SHOP, WEB, &policy(spec)], &[expect]);
    agents(
        "rules: [{}]",
        "AuthorizationPolicy/p ZtunnelAccepted=true Accepted: in force",
    );
    agents(
        "rules: [{from: [{source: {ipBlocks: [x]}}]}]",
        "AuthorizationPolicy/p ZtunnelAccepted=false InvalidField: spec.rules[0].from[0].source.ipBlocks[0]: ",
    );
    agents(
        "selector: {matchLabels: {app: x}}, rules: [{}]",
        "AuthorizationPolicy/p ZtunnelAccepted=true Accepted: in force; spec.selector: selects no workload",
    );
    let paths = policy("selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {paths: [/a]}}]}]");
    let unseen = "AuthorizationPolicy/p ZtunnelAccepted=true UnsupportedValue: spec.rules[0]: ";
    check(
        &[SHOP, WEB, &paths],
        &[
            unseen,
            "AuthorizationPolicy/p WaypointAccepted=false NoWaypoint: nothing that is sent to shop/web-1 ",
        ],
    );
    check(
        &[BOUND, WEB, WAYPOINT, &paths],
        &[
            IS_BOUND,
            unseen,
            "AuthorizationPolicy/p WaypointAccepted=true Accepted: ",
        ],
    );
    let targets = |name: &str| {
        policy(&format!(
            "targetRefs: [{{kind: Service, group: '', name: {name}}}], rules: [{{}}]"
        ))
    };
    check(
        &[SHOP, WEB, &targets("web")],
        &["AuthorizationPolicy/p WaypointAccepted=false NoWaypoint: "],
    );
    check(
        &[SHOP, WEB, &targets("other")],
        &["AuthorizationPolicy/p WaypointAccepted=false TargetNotFound: "],
    );
    check(
        &[BOUND, WEB, WAYPOINT, &targets("web")],
        &[IS_BOUND, "AuthorizationPolicy/p WaypointAccepted=true Accepted: "],
    );
}

#[test]
fn peer_authentications_are_in_force_unless_another_counts() {
    let one = |name: &str, mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
        )
    };
    check(
        &[&one("a", "STRICT"), &one("b", "STRICT")],
        &[
            "PeerAuthentication/a ZtunnelAccepted=true Accepted: in force",
            "PeerAuthentication/b ZtunnelAccepted=false Conflicted: shop/a covers the same",
        ],
    );
    check(
        &[&one("a", "x")],
        &["PeerAuthentication/a ZtunnelAccepted=false InvalidField: spec.mtls.mode: "],
    );
}

fn istio(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn virtual_services_are_in_force_at_waypoints_or_say_why_not() {
    let bound = |spec: &str, expect: &str| {
        let object = istio("VirtualService", "v", spec);
        check(&[BOUND, WEB, WAYPOINT, &object], &[IS_BOUND, expect]);
    };
    bound(
        "hosts: [web], http: [{route: [{destination: {host: web}}]}]",
        "VirtualService/v WaypointAccepted=true Accepted: in force at the waypoints of its hosts",
    );
    bound(
        "hosts: [web], http: [{strange: 1, route: [{destination: {host: web}}]}]",
        "VirtualService/v WaypointAccepted=true Accepted: in force at the waypoints of its hosts; spec.http[0].strange: ",
    );
    bound(
        "hosts: [web], http: [{route: [{destination: {host: gone}}]}]",
        "VirtualService/v WaypointAccepted=false UnknownHost: spec.http[0].route[0].destination.host: ",
    );
    bound(
        "hosts: [gone], http: [{route: [{destination: {host: web}}]}]",
        "VirtualService/v WaypointAccepted=false UnknownHost: spec.hosts: there is no service gone",
    );
    bound(
        "http: [{route: [{destination: {host: web}}]}]",
        "VirtualService/v WaypointAccepted=true Accepted: in force where others delegate to it; spec.hosts: names no host",
    );
    let route = "http: [{route: [{destination: {host: web}}]}]";
    let unbound = istio("VirtualService", "v", &format!("hosts: [web], {route}"));
    check(
        &[SHOP, WEB, &unbound],
        &["VirtualService/v WaypointAccepted=false NoWaypoint: "],
    );
    let any = istio("VirtualService", "v", &format!("hosts: ['*'], {route}"));
    check(
        &[SHOP, WEB, &any],
        &["VirtualService/v WaypointAccepted=false NoWaypoint: no service that it is about"],
    );
    // Another mesh's.
    check(&[WEB, &unbound], &[]);
    // An ingress gateway's business, of which that one may say what it likes.
    let gateway = istio(
        "VirtualService",
        "v",
        &format!("hosts: [web], gateways: [in], {route}"),
    );
    check(&[BOUND, WEB, WAYPOINT, &gateway], &[IS_BOUND]);
}

#[test]
fn destination_rules_are_in_force_at_waypoints_or_say_why_not() {
    let rule = |host: &str, said: &str| istio("DestinationRule", "d", &format!("host: {host}, {said}"));
    let random = "trafficPolicy: {loadBalancer: {simple: RANDOM}}";
    check(
        &[BOUND, WEB, WAYPOINT, &rule("web", random)],
        &[
            IS_BOUND,
            "DestinationRule/d WaypointAccepted=true Accepted: in force at the waypoints of its hosts",
        ],
    );
    check(
        &[SHOP, WEB, &rule("web", random)],
        &[
            "DestinationRule/d WaypointAccepted=false NoWaypoint: spec.host: shop/web.shop.svc.cluster.local has no",
        ],
    );
    check(
        &[SHOP, WEB, &rule("gone", random)],
        &["DestinationRule/d WaypointAccepted=false UnknownHost: spec.host: "],
    );
    check(
        &[SHOP, WEB, &rule("pay.bank.svc.cluster.local", random)],
        &["DestinationRule/d WaypointAccepted=false Elsewhere: spec.host: "],
    );
    check(
        &[SHOP, WEB, &rule("'a b'", random)],
        &["DestinationRule/d WaypointAccepted=false InvalidField: spec.host: "],
    );
    let all = rule("'*.shop.svc.cluster.local'", random);
    let nobody = "DestinationRule/d WaypointAccepted=false NoWaypoint: no service that it is about";
    check(&[SHOP, WEB, &all], &[nobody]);
    let accepted = "DestinationRule/d WaypointAccepted=true Accepted: in force";
    check(&[BOUND, WEB, WAYPOINT, &all], &[IS_BOUND, accepted]);
    // The root namespace's counts for all.
    let root = rule("'*.local'", random).replace("namespace: shop", "namespace: istio-system");
    check(&[SHOP, WEB, &root], &[nobody]);
    check(&[BOUND, WEB, WAYPOINT, &root], &[accepted, IS_BOUND]);
    // Another mesh's, or nobody's.
    check(&[WEB, &rule("web", random)], &[]);
    check(&[&root], &[]);
}

#[test]
fn who_is_bound_to_a_waypoint_says_so() {
    check(&[SHOP, WEB], &[]);
    check(
        &[BOUND, WEB],
        &[
            "Service/web istio.io/WaypointBound=false WaypointMissing: label istio.io/use-waypoint: there is no waypoint shop/waypoint",
        ],
    );
    let unready = WAYPOINT.replace("'True'", "'False'");
    check(
        &[BOUND, WEB, &unready],
        &["Service/web istio.io/WaypointBound=false WaypointNotReady: "],
    );
    check(&[BOUND, WEB, WAYPOINT], &[IS_BOUND]);
    let for_workloads = WAYPOINT.replace(
        "namespace: shop",
        "namespace: shop, labels: {istio.io/waypoint-for: workload}",
    );
    check(&[BOUND, WEB, &for_workloads], &[]);
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: own, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}\n";
    check(
        &[SHOP, service, WAYPOINT],
        &["Service/own istio.io/WaypointBound=true"],
    );
    check(
        &[SHOP, service, &for_workloads],
        &["Service/own istio.io/WaypointBound=false WaypointNotFor: "],
    );
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec: {hosts: [api.example.com], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]}\n";
    check(
        &[BOUND, entry, WAYPOINT],
        &["ServiceEntry/e istio.io/WaypointBound=true"],
    );
    let by_name = entry
        .replace("STATIC", "DNS")
        .replace("192.0.2.1", "api.example.com");
    check(
        &[BOUND, &by_name, WAYPOINT],
        &["ServiceEntry/e istio.io/WaypointBound=true"],
    );
    let machine = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: m, namespace: shop, labels: {istio.io/use-waypoint: other}}\nspec: {address: 192.0.2.2}\n";
    check(
        &[SHOP, machine],
        &["WorkloadEntry/m istio.io/WaypointBound=false WaypointMissing: "],
    );
}

#[test]
fn an_entry_that_is_not_taken_says_why() {
    let entry = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let good = "hosts: [api.example.com], ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 192.0.2.1}]";
    check(&[SHOP, &entry(good)], &[]);
    check(
        &[SHOP, &entry(&good.replace("STATIC", "DNS"))],
        &["ServiceEntry/e ZtunnelAccepted=false DnsResolution: "],
    );
    check(
        &[SHOP, &entry(&good.replace("192.0.2.1", "nowhere:80"))],
        &["ServiceEntry/e ZtunnelAccepted=false NoAddress: "],
    );
    check(
        &[
            SHOP,
            &entry(&good.replace("api.example.com", "x.other.svc.cluster.local")),
        ],
        &["ServiceEntry/e ZtunnelAccepted=false HostTaken: "],
    );
    let machine = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: m, namespace: shop}\nspec: {address: not an address}\n";
    check(
        &[SHOP, machine],
        &["WorkloadEntry/m ZtunnelAccepted=false NoAddress: "],
    );
}

#[test]
fn what_was_said_of_a_service_that_is_bound_no_more_is_taken_back() {
    let said = "status: {conditions: [{type: istio.io/WaypointBound, status: 'True'}]}\n";
    let text = format!("{WEB}{said}");
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    let mut compiler = Compiler::new(Settings::default());
    for document in documents {
        compiler.apply(Change::Apply(Object::from_manifest(document).expect("an object")));
    }
    compiler.compile();
    let statuses = statuses(&compiler, &[]);
    let all: Vec<_> = statuses.values().collect();
    assert_eq!(all, [&Status::Conditions(Vec::new())]);
}

#[test]
fn routes_answer_at_each_parent_in_the_mesh() {
    let route = |parents: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec: {{parentRefs: [{parents}], rules: [{{backendRefs: [{{name: web, port: 80}}]}}]}}\n"
        )
    };
    let service = "{group: '', kind: Service, name: web}";
    let resolved = "HTTPRoute/r at web ResolvedRefs=true";
    check(
        &[SHOP, WEB, &route(service)],
        &[
            "HTTPRoute/r at web Accepted=false NoWaypoint: Service shop/web has no waypoint",
            resolved,
        ],
    );
    check(
        &[BOUND, WEB, WAYPOINT, &route(service)],
        &[IS_BOUND, "HTTPRoute/r at web Accepted=true Accepted", resolved],
    );
    let several = format!("{service}, {{name: edge}}, {{group: '', kind: Service, name: gone}}, {service}");
    check(
        &[BOUND, WEB, WAYPOINT, &route(&several)],
        &[
            IS_BOUND,
            "HTTPRoute/r at web Accepted=true",
            resolved,
            "HTTPRoute/r at gone Accepted=false NoMatchingParent: there is no Service shop/gone",
            "HTTPRoute/r at gone ResolvedRefs=true",
        ],
    );
}

#[test]
fn pods_that_are_not_captured_are_said_on_their_namespace() {
    let pod = |name: &str, annotations: &str, phase: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, annotations: {{{annotations}}}}}\nspec: {{nodeName: n1}}\nstatus: {{phase: {phase}}}\n"
        )
    };
    let is = pod("a", "ambient.istio.io/redirection: enabled", "Running");
    let unseen = pod("b", "", "Running");
    let at_it = pod("c", "ambient.istio.io/redirection: pending", "Running");
    let starts = pod("d", "", "Pending");
    check(&[SHOP, &starts], &[]);
    check(
        &[SHOP, &is, &starts],
        &["Namespace/shop weft.dev/PodsCaptured=true Captured"],
    );
    check(
        &[SHOP, &is, &unseen, &at_it],
        &[
            "Namespace/shop weft.dev/PodsCaptured=false NotCaptured: 2 of 3 pods are not captured: b on node n1 (no agent has seen it), c on node n1 (its agent",
        ],
    );
    let unlabelled = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n";
    check(&[unlabelled, &unseen], &[]);
}

/// What is said of the one AuthorizationPolicy: whether it holds, and why.
fn of_the_policy(compiler: &mut Compiler) -> (Option<bool>, String, usize) {
    let diagnostics = compiler.compile().diagnostics.unwrap_or_default();
    let of_pods = diagnostics
        .iter()
        .filter(|it| it.object.kind == Kind::Pod)
        .count();
    let statuses = statuses(compiler, &diagnostics);
    let of = |(object, _): &(&ObjectRef, &Status)| object.kind == Kind::AuthorizationPolicy;
    let (_, status) = statuses.iter().find(of).expect("a status");
    let Status::Conditions(conditions) = status else {
        panic!("{status:?}");
    };
    (conditions[0].holds, conditions[0].reason.to_string(), of_pods)
}

fn apply(compiler: &mut Compiler, text: &str) {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    for document in documents {
        let object = Object::from_manifest(document).expect("an object that is read");
        compiler.apply(Change::Apply(object));
    }
}

#[test]
fn what_is_wrong_with_thousands_of_pods_hides_nothing_else() {
    let mut compiler = Compiler::new(Settings::default());
    apply(&mut compiler, SHOP);
    // Many in one namespace, and as many as are kept in each of many.
    for pod in 0..11_000 {
        let namespace = match pod {
            ..1000 => "shop".to_owned(),
            _ => format!("n{}", pod % 25),
        };
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p{pod}, namespace: {namespace}, annotations: {{weft.dev/same-node: nonsense}}}}, \
             spec: {{nodeName: a}}, status: {{podIP: 10.0.{}.{}}}}}",
            pod / 256,
            pod % 256
        );
        apply(&mut compiler, &pod);
    }
    apply(
        &mut compiler,
        &policy("rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]"),
    );
    let (holds, reason, of_pods) = of_the_policy(&mut compiler);
    assert_eq!((holds, &*reason), (Some(false), "InvalidField"));
    assert!((500..=10_000).contains(&of_pods), "{of_pods} of pods are kept");
}

#[test]
fn an_error_behind_many_warnings_of_one_object_is_one() {
    let mut compiler = Compiler::new(Settings::default());
    let warnings = "{to: [{operation: {methods: [GET]}}]}, ".repeat(40);
    let rules = format!("rules: [{warnings} {{from: [{{source: {{ipBlocks: [nonsense]}}}}]}}]");
    apply(&mut compiler, &format!("{SHOP}---\n{}", policy(&rules)));
    let (holds, reason, _) = of_the_policy(&mut compiler);
    assert_eq!((holds, &*reason), (Some(false), "InvalidField"));
}
