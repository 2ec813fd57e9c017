//! Manifests, and what is said of them.

use serde_json::Value;

use super::*;

fn objects(text: &str) -> Vec<Object> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    let object = |document| Object::from_manifest(document).expect("an object that is read");
    documents.into_iter().map(object).collect()
}

/// `severity reason kind/name: the message's beginning`, for each line of `expect`.
fn check(scope: Scope, text: &str, expect: &[&str]) {
    let found = analyze(&objects(text), &Settings::default(), scope);
    let said: Vec<_> = found
        .iter()
        .map(|it| {
            let (severity, reason, kind, name) =
                (it.severity, it.reason, it.object.kind.kind(), &it.object.name);
            format!("{severity} {reason} {kind}/{name}: {}", it.message)
        })
        .collect();
    let fits = said.len() == expect.len()
        && said
            .iter()
            .zip(expect)
            .all(|(said, expect)| said.starts_with(expect));
    assert!(fits, "{text}\n{said:#?}\n{expect:#?}");
}

const CLIENTS: &str = "apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, istio.io/dataplane-mode: ambient}}
spec: {nodeName: a}
status: {podIP: 10.1.0.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80}]}
";
