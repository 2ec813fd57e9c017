//! Nothing that a manifest may hold is a reason to panic, or to lose a neighbour.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::cluster::objects::{Custom, Kind};

/// Field names and values that something is made of somewhere, so that a random document gets deep.
const WORDS: &[&str] = &[
    "selector",
    "matchLabels",
    "action",
    "rules",
    "from",
    "source",
    "principals",
    "notPrincipals",
    "namespaces",
    "serviceAccounts",
    "ipBlocks",
    "to",
    "operation",
    "ports",
    "notPorts",
    "paths",
    "when",
    "key",
    "values",
    "notValues",
    "source.ip",
    "destination.port",
    "targetRefs",
    "kind",
    "name",
    "group",
    "Service",
    "mtls",
    "mode",
    "STRICT",
    "DISABLE",
    "portLevelMtls",
    "8080",
    "hosts",
    "addresses",
    "resolution",
    "STATIC",
    "NONE",
    "DNS",
    "endpoints",
    "address",
    "number",
    "targetPort",
    "protocol",
    "labels",
    "workloadSelector",
    "weight",
    "locality",
    "listeners",
    "gatewayClassName",
    "weft-waypoint",
    "HBONE",
    "allowedRoutes",
    "from",
    "Selector",
    "10.0.0.1",
    "10.0.0.0/8",
    "*",
    "é\u{301}",
    "",
    "parentRefs",
    "backendRefs",
    "matches",
    "path",
    "type",
    "value",
    "PathPrefix",
    "Exact",
    "RegularExpression",
    "headers",
    "queryParams",
    "method",
    "filters",
    "RequestRedirect",
    "requestRedirect",
    "URLRewrite",
    "urlRewrite",
    "replacePrefixMatch",
    "RequestMirror",
    "requestMirror",
    "backendRef",
    "fraction",
    "numerator",
    "denominator",
    "timeouts",
    "request",
    "retry",
    "codes",
    "attempts",
    "backoff",
    "s",
    "http",
    "route",
    "destination",
    "host",
    "subset",
    "s.shop.svc.cluster.local",
    "tls",
    "sniHosts",
    "tcp",
    "match",
    "uri",
    "exact",
    "prefix",
    "regex",
    "(a|b)+",
    "(",
    "/a",
    "rewrite",
    "redirect",
    "redirectCode",
    "301",
    "timeout",
    "1s",
    "1.5h",
    "retries",
    "retryOn",
    "5xx,503",
    "perTryTimeout",
    "fault",
    "delay",
    "abort",
    "percentage",
    "fixedDelay",
    "httpStatus",
    "mirror",
    "corsPolicy",
    "allowOrigins",
    "exportTo",
    "gateways",
    "mesh",
    "trafficPolicy",
    "loadBalancer",
    "simple",
    "ROUND_ROBIN",
    "connectionPool",
    "outlierDetection",
    "interval",
    "portLevelSettings",
    "subsets",
    "jwtRules",
    "issuer",
    "jwksUri",
    "https://a",
    "jwks",
    "fromHeaders",
    "audiences",
    "targetRef",
    "{*}",
    "request.headers[x]",
    "request.auth.claims[a]",
    "hostnames",
    "networking.istio.io",
    "gateway.networking.k8s.io",
    "port",
    "weight",
    "80",
    "set",
    "add",
    "remove",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(WORDS).prop_map(str::to_owned),
        1 => ".{0,8}",
        1 => "[a-z*./:0-9-]{0,600}",
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// The beginnings of specs that get past the first look.
const STARTS: [&str; 8] = [
    r#"{"parentRefs": [{"group": "", "kind": "Service", "name": "s"}], "rules": [X]}"#,
    r#"{"parentRefs": [{"group": "", "kind": "Service", "name": "s"}], "rules": [{"matches": [X], "filters": [X]}]}"#,
    r#"{"hosts": ["s"], "http": [X, X]}"#,
    r#"{"hosts": ["s"], "http": [{"match": [X], "route": [{"destination": {"host": "s"}}], "headers": X}]}"#,
    r#"{"hosts": ["*"], "tls": [X], "tcp": [X], "http": [{"retries": X, "fault": X, "redirect": X}]}"#,
    r#"{"host": "s", "trafficPolicy": X, "subsets": [X, X]}"#,
    r#"{"jwtRules": [X, X], "targetRefs": X}"#,
    r#"{"rules": [{"to": [{"operation": X}], "when": [X]}], "targetRefs": [X]}"#,
];

/// A spec of any kind, or one that begins well.
fn spec() -> impl Strategy<Value = Value> {
    let begun = (prop::sample::select(&STARTS[..]), value());
    let begun = begun.prop_map(|(start, value)| {
        serde_json::from_str(&start.replace('X', &value.to_string())).expect("JSON in JSON")
    });
    prop_oneof![value(), begun]
}

fn custom() -> impl Strategy<Value = Object> {
    let kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| kind.is_custom()).collect();
    let names = prop::sample::select(&["a", "b"][..]);
    let namespaces = prop::sample::select(&["shop", "istio-system"][..]);
    (prop::sample::select(kinds), names, namespaces, spec(), value()).prop_map(
        |(kind, name, namespace, spec, status)| {
            let mut object = Custom {
                spec,
                status,
                ..Custom::default()
            };
            object.metadata.name = Some(name.to_owned());
            object.metadata.namespace = kind.is_namespaced().then(|| namespace.to_owned());
            Object::Custom(kind, Box::new(object))
        },
    )
}

/// A pod and a service that are well.
fn neighbours() -> Vec<Object> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "shop", "labels": {"app": "p"}},
        "spec": {"nodeName": "n1"}, "status": {"podIP": "10.0.0.1"},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "p"}, "ports": [{"port": 80}]},
    });
    let read = |it| Object::from_manifest(it).unwrap();
    vec![read(pod), read(service)]
}

proptest! {
    #[test]
    fn any_spec_is_compiled_and_harms_no_neighbour(customs in prop::collection::vec(custom(), 1..6)) {
        let all = neighbours().into_iter().chain(customs);
        let compiled = compile(&Resources::new(all), &settings());
        let pods = compiled.parts.workloads.iter().filter(|it| &*it.name == "p" && !it.addresses.is_empty());
        prop_assert_eq!(pods.count(), 1);
        let services = compiled.parts.services.iter();
        prop_assert!(services.filter(|it| &*it.name == "s").all(|it| it.vips.len() == 1));
        for diagnostic in &compiled.diagnostics {
            prop_assert!(diagnostic.message.len() <= 600 && !diagnostic.message.is_empty());
        }
        let mut sorted = compiled.diagnostics.clone();
        sorted.sort();
        prop_assert_eq!(sorted, compiled.diagnostics);
        let _ = crate::mesh::Mesh::new(compiled.parts);
    }

    #[test]
    fn any_object_of_kubernetes_that_can_be_read_is_compiled(
        kind in prop::sample::select(&["Pod", "Service", "EndpointSlice", "Namespace", "Node"][..]),
        spec in value(),
        status in value(),
    ) {
        let api_version = if kind == "EndpointSlice" { "discovery.k8s.io/v1" } else { "v1" };
        let document = json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": {"name": "a", "namespace": "shop"}, "spec": spec, "status": status,
        });
        if let Ok(object) = Object::from_manifest(document) {
            let _ = compile(&Resources::new([object]), &settings());
        }
    }
}
