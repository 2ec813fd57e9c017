//! Manifests, and what is said of them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

fn objects(text: &str) -> Vec<Object> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let object = |document| Object::from_manifest(document).expect("an object that is read");
    documents.into_iter().map(object).collect()
}

/// Each finding as `severity reason kind/name: message`, against what it begins with.
fn check(scope: Scope, texts: &[&str], expect: &[&str]) {
    let text = texts.join("---\n");
    let found = analyze(&objects(&text), &Settings::default(), scope);
    let said = found.iter().map(|it| {
        let (severity, reason, kind, name) = (it.severity, it.reason, it.object.kind.kind(), &it.object.name);
        format!("{severity} {reason} {kind}/{name}: {}", it.message)
    });
    let said: Vec<_> = said.collect();
    let begins = |(said, expect): (&String, &&str)| said.starts_with(*expect);
    let fits = said.len() == expect.len() && said.iter().zip(expect).all(begins);
    assert!(fits, "{text}\nsaid {said:#?}\nexpected {expect:#?}");
}

use Scope::{Cluster, Files};

const SHOP: &str =
    "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}\n";
const BOUND: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}}}\n";
const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: a}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
";
const SERVICE: &str = "apiVersion: v1
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

#[test]
fn what_is_fine_is_fine() {
    check(Cluster, &[SHOP, POD, SERVICE], &[]);
    check(Cluster, &[BOUND, POD, SERVICE, WAYPOINT], &[]);
    check(Files, &[SHOP, SERVICE], &[]);
}

#[test]
fn pods_that_are_not_in_the_mesh_although_they_seem_to_be() {
    let labelled = |labels: &str| {
        format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{labels}}}}}}}\n")
    };
    let both = labelled("istio.io/dataplane-mode: ambient, istio-injection: enabled");
    check(
        Files,
        &[&both],
        &["warning SidecarInjection Namespace/shop: label istio-injection: "],
    );
    let revision = labelled("istio.io/dataplane-mode: ambient, istio.io/rev: default");
    check(
        Files,
        &[&revision],
        &["warning SidecarInjection Namespace/shop: label istio.io/rev: "],
    );
    let off = labelled("istio.io/dataplane-mode: ambient, istio-injection: disabled");
    check(Files, &[&off], &[]);
    let strange = labelled("istio.io/dataplane-mode: enabled");
    check(
        Files,
        &[&strange],
        &["warning UnknownMode Namespace/shop: label istio.io/dataplane-mode: \"enabled\""],
    );
    let pod = |metadata: &str, spec: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: shop, {metadata}}}, spec: {{nodeName: a{spec}}}}}\n"
        )
    };
    let inject = pod("labels: {sidecar.istio.io/inject: 'true'}", "");
    check(
        Files,
        &[SHOP, &inject],
        &["warning SidecarInjection Pod/a: label sidecar.istio.io/inject"],
    );
    check(Files, &[&inject], &[]);
    let annotated = pod("annotations: {sidecar.istio.io/inject: 'true'}", "");
    check(
        Files,
        &[SHOP, &annotated],
        &["warning SidecarInjection Pod/a: annotation sidecar.istio.io/inject"],
    );
    let host = pod(
        "labels: {istio.io/dataplane-mode: ambient}",
        ", hostNetwork: true",
    );
    check(Files, &[&host], &["warning NotCaptured Pod/a: is labelled"]);
}

#[test]
fn policies_that_ask_for_tokens_need_somebody_who_checks_them() {
    let policy = |action: &str, rule: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\n\
             spec: {{selector: {{matchLabels: {{app: web}}}}, action: {action}, rules: [{rule}]}}\n"
        )
    };
    let authentication = |namespace: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: r, namespace: {namespace}}}\n\
             spec: {{{spec} jwtRules: [{{issuer: a, jwks: '{{}}'}}]}}\n"
        )
    };
    let by_source = policy("ALLOW", "{from: [{source: {requestPrincipals: ['*']}}]}");
    let world = [BOUND, POD, SERVICE, WAYPOINT];
    let reasons = |texts: &[&str]| {
        let all = [&world, texts].concat();
        let found = analyze(&objects(&all.join("---\n")), &Settings::default(), Cluster);
        let own = found
            .iter()
            .filter(|it| it.object.name == "p" && it.reason != "NeedsWaypoint");
        own.map(|it| format!("{} {} {}", it.severity, it.reason, it.message))
            .collect::<Vec<_>>()
    };
    let missing = |rule: &str, field: &str, effect: &str| {
        let said = reasons(&[rule]);
        let begin = format!("warning NoRequestAuthentication {field}: ");
        assert!(
            said.len() == 1 && said[0].starts_with(&begin) && said[0].contains(effect),
            "{said:?}"
        );
    };
    missing(
        &by_source,
        "spec.rules[0].from[0].source.requestPrincipals",
        "lets nobody in",
    );
    let deny = policy("DENY", "{from: [{source: {notRequestPrincipals: ['*']}}]}");
    missing(
        &deny,
        "spec.rules[0].from[0].source.notRequestPrincipals",
        "every request",
    );
    let when = policy(
        "ALLOW",
        "{to: [{operation: {ports: ['80']}}]}, {when: [{key: 'request.auth.claims[a]', values: [b]}]}",
    );
    missing(&when, "spec.rules[1].when[0].key", "lets nobody in");
    for (namespace, spec) in [
        ("shop", ""),
        ("istio-system", ""),
        ("shop", "selector: {matchLabels: {app: web}},"),
        ("istio-system", "selector: {matchLabels: {app: web}},"),
    ] {
        let it = authentication(namespace, spec);
        assert_eq!(
            reasons(&[&by_source, &it]),
            Vec::<String>::new(),
            "{namespace} {spec}"
        );
    }
    for (namespace, spec) in [
        ("other", ""),
        ("shop", "selector: {matchLabels: {app: other}},"),
        ("shop", "targetRefs: [{kind: Service, group: '', name: web}],"),
    ] {
        let it = authentication(namespace, spec);
        assert_eq!(reasons(&[&by_source, &it]).len(), 1, "{namespace} {spec}");
    }
}

#[test]
fn a_policy_of_the_root_namespace_is_for_the_whole_mesh() {
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}\n";
    check(
        Files,
        &[strict],
        &[
            "info MeshWide PeerAuthentication/default: metadata.namespace: istio-system is the root namespace: this is for everything",
        ],
    );
    let selects = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: istio-system}\nspec: {selector: {matchLabels: {app: web}}, rules: [{}]}\n";
    let wide = "info MeshWide AuthorizationPolicy/p: ";
    check(Cluster, &[SHOP, POD, selects], &[wide]);
    check(
        Cluster,
        &[selects],
        &["warning SelectsNothing AuthorizationPolicy/p: ", wide],
    );
    check(
        Files,
        &[selects],
        &[wide, "info SelectsNothing AuthorizationPolicy/p: "],
    );
}

#[test]
fn what_only_a_waypoint_sees_is_said_where_there_is_none() {
    let paths = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {paths: [/a]}}]}]}\n";
    check(
        Cluster,
        &[SHOP, POD, SERVICE, paths],
        &["warning NeedsWaypoint AuthorizationPolicy/p: spec.rules[0]: "],
    );
    check(
        Cluster,
        &[BOUND, POD, SERVICE, WAYPOINT, paths],
        &["info NeedsWaypoint AuthorizationPolicy/p: "],
    );
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: shop}\nspec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}\n";
    let has_none = "warning NeedsWaypoint DestinationRule/d: spec.host: only a waypoint acts on this, and web.shop.svc.cluster.local has none";
    check(Cluster, &[SHOP, POD, SERVICE, rule], &[has_none]);
    check(Cluster, &[BOUND, POD, SERVICE, WAYPOINT, rule], &[]);
}

#[test]
fn routes_need_a_waypoint_and_a_weight() {
    let route = |parent: &str, backends: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: shop}}\nspec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{backends}]}}]}}\n"
        )
    };
    let (web, good) = ("{group: '', kind: Service, name: web}", "{name: web, port: 80}");
    check(Cluster, &[BOUND, POD, SERVICE, WAYPOINT, &route(web, good)], &[]);
    check(
        Cluster,
        &[SHOP, POD, SERVICE, &route(web, good)],
        &["warning NeedsWaypoint HTTPRoute/r: spec.parentRefs[0]: "],
    );
    let zero = route(web, "{name: web, port: 80, weight: 0}");
    check(
        Cluster,
        &[BOUND, POD, SERVICE, WAYPOINT, &zero],
        &["warning NoWeight HTTPRoute/r: spec.rules[0].backendRefs: "],
    );
    check(
        Cluster,
        &[SHOP, POD, SERVICE, &route("{name: edge}", good)],
        &["info AtTheEdge HTTPRoute/r: spec.parentRefs[0]: Gateway shop/edge"],
    );
}

#[test]
fn what_files_do_not_have_may_be_in_the_cluster() {
    let missing = "error WaypointMissing Namespace/shop: ";
    check(Cluster, &[BOUND, SERVICE], &[missing]);
    check(
        Files,
        &[BOUND, SERVICE],
        &["info WaypointMissing Namespace/shop: "],
    );
    let selects = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {app: cart}}, rules: [{}]}\n";
    check(
        Files,
        &[selects],
        &["info SelectsNothing AuthorizationPolicy/p: spec.selector: "],
    );
    check(
        Files,
        &[SHOP, POD, selects],
        &["warning SelectsNothing AuthorizationPolicy/p: "],
    );
    let targets = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}\n";
    check(Files, &[targets], &["info TargetMissing AuthorizationPolicy/p: "]);
    check(
        Cluster,
        &[SHOP, POD, SERVICE, targets],
        &["error NoWaypoint AuthorizationPolicy/p: "],
    );
    check(
        Files,
        &[POD, SERVICE, targets],
        &["info NoWaypoint AuthorizationPolicy/p: "],
    );
}

#[test]
fn every_code_is_given_once() {
    let numbers: Vec<_> = CODES.iter().map(|it| it.number).collect();
    let sorted: BTreeSet<_> = numbers.iter().copied().collect();
    assert!(
        numbers.is_sorted() && sorted.len() == numbers.len(),
        "{numbers:?}"
    );
    let reasons: BTreeSet<_> = CODES.iter().map(|it| it.reason).collect();
    assert_eq!(reasons.len(), CODES.len());
}

/// Those that the manifests beside `compile` lead to, all of which are meant to be wrong in some way.
#[test]
fn every_reason_has_a_code() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = ["controller/compile/manifests", "manifests/goldens"];
    let mut seen = 0;
    for file in files
        .iter()
        .flat_map(|it| std::fs::read_dir(folder.join(it)))
        .flatten()
    {
        let path = file.expect("a file").path();
        if path.extension().is_none_or(|it| it != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("it can be read");
        for it in analyze(&objects(&text), &Settings::default(), Cluster) {
            assert!(code(it.reason).is_some(), "{}: {it}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 30, "{seen}");
}

#[test]
fn a_set_of_anything_is_looked_at() {
    for spec in [
        "~",
        "[]",
        "{}",
        "x",
        "{rules: [~, {from: ~}, {from: [~, {source: []}]}], hosts: [~], host: [], parentRefs: [~, {}], gateways: [~], selector: [], jwtRules: ~}",
    ] {
        for kind in crate::cluster::objects::Kind::ALL
            .into_iter()
            .filter(|it| it.is_custom())
        {
            let group = match kind.group() {
                "" => "v1".to_owned(),
                group => format!("{group}/v1"),
            };
            let text = format!(
                "{{apiVersion: {group}, kind: {}, metadata: {{name: a}}, spec: {spec}}}\n",
                kind.kind()
            );
            analyze(&objects(&text), &Settings::default(), Files);
        }
    }
}
