//! What each recording begins with, and what its recorder did beside it: the remarks of the files, as requests.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{parse, replay::Replay};

const CONFIG_MAPS: &str = "/api/v1/namespaces/demo/configmaps";
const PODS: &str = "/api/v1/namespaces/demo/pods";
const SERVICES: &str = "/api/v1/namespaces/demo/services";
const TOKEN: [&str; 4] = [
    "fake-header.fake-claims-1.fake-signature",
    "fake-header.fake-claims-2.fake-signature",
    "fake-header.fake-claims-3.fake-signature",
    "fake-header.fake-claims-9.fake-signature",
];

/// The state before the first exchange.
pub(crate) fn before_all(file: &str, replay: &mut Replay) -> Result<()> {
    replay.post("/api/v1/namespaces", r#"{"metadata":{"name":"demo"}}"#)?;
    match file {
        "watch.http" => replay.at(308),
        "watch-bookmarks.http" => {
            replay.post(
                "/api/v1/namespaces/demo/secrets",
                r#"{"metadata":{"name":"s"},"data":{}}"#,
            )?;
            replay.at(600)
        }
        "watch-list.http" => init(replay, "1", "2"),
        "gone.http" => gone(replay),
        "list.http" => {
            init(replay, "1", "2")?;
            data(replay, "i1", "stale")?;
            pages(replay)
        }
        "errors.http" => errors(replay),
        "selectors.http" => selectors(replay),
        "patch.http" => {
            let ports = json!([{"name": "x", "port": 80}, {"name": "y", "port": 81}]);
            let service = json!({"metadata": {"name": "p", "annotations": {"a": "1", "b": "2"}}, "spec": {"ports": ports}});
            replay.post(SERVICES, &service.to_string()).map(drop)
        }
        "status.http" => replay
            .post(
                SERVICES,
                r#"{"metadata":{"name":"cond"},"spec":{"ports":[{"port":80}]}}"#,
            )
            .map(drop),
        "token.http" => {
            account(replay)?;
            nodes(replay)?;
            let pod = pod(replay, "tok-pod", "app", Some("node-a"))?;
            pod_uid(replay, &pod, "25017c20-f741-4069-935e-fc92980e2d7f")?;
            self::pod(replay, "other-sa", "default", Some("node-a")).map(drop)
        }
        "access-review.http" => access(replay),
        "discovery.http" => definition(replay),
        "endpointslice.http" => {
            nodes(replay)?;
            replay.at(360)
        }
        "namespaces.http" => {
            replay.post("/api/v1/namespaces", r#"{"metadata":{"name":"enrol"}}"#)?;
            replay.at(527)
        }
        "pod-lifecycle.http" => {
            nodes(replay)?;
            replay.at(453)
        }
        _ => Ok(()),
    }
}

/// What was done before an exchange.
pub(crate) fn before(file: &str, number: usize, replay: &mut Replay) -> Result<()> {
    match (file, number) {
        ("list.http", 4) => {
            replay.cluster.delete("Namespace", "", "page-3");
            Ok(())
        }
        ("list.http", 12) => data(replay, "i2", "3"),
        ("token.http", 14) => forged(replay),
        ("token.http", 18) => {
            replay.cluster.delete("Pod", "demo", "tok-pod");
            replay.cluster.advance(Duration::from_millis(300));
            Ok(())
        }
        ("token.http", 19) => invalidated(replay),
        ("endpointslice.http", 3) => {
            let service = |name: &str, app: &str| {
                json!({"metadata": {"name": name}, "spec": {"clusterIP": "None", "selector": {"app": app},
                    "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
            };
            replay.post(SERVICES, &service("headless", "web").to_string())?;
            replay
                .post(SERVICES, &service("pub", "nobody").to_string())
                .map(drop)
        }
        ("namespaces.http", 3) => replay.at(534),
        ("namespaces.http", 4) => replay
            .post("/api/v1/namespaces", r#"{"metadata":{"name":"enrol2"}}"#)
            .map(drop),
        ("pod-lifecycle.http", 3) => pod(replay, "unbound", "default", None).map(drop),
        ("pod-lifecycle.http", 6) => config_map(replay, "plain", &json!({"data": {"a": "1"}})),
        ("pod-lifecycle.http", 7) => replay
            .post(
                SERVICES,
                r#"{"metadata":{"name":"tmp"},"spec":{"ports":[{"port":80}]}}"#,
            )
            .map(drop),
        _ => Ok(()),
    }
}

/// What was done while a watch was open.
pub(crate) fn during(file: &str, number: usize, replay: &mut Replay) -> Result<()> {
    match (file, number) {
        ("watch.http", 2) => {
            config_map(
                replay,
                "w1",
                &json!({"metadata": {"labels": {"app": "w"}}, "data": {"a": "1"}}),
            )?;
            let w1 = format!("{CONFIG_MAPS}/w1");
            replay.patch(&w1, r#"{"data":{"a":"2"}}"#)?;
            replay.patch(&w1, r#"{"data":{"a":"2"}}"#)?;
            config_map(replay, "other", &json!({}))?;
            label(replay, &format!("{CONFIG_MAPS}/other"), &json!({"app": "w"}))?;
            label(replay, &format!("{CONFIG_MAPS}/other"), &json!({"app": null}))?;
            replay.delete(&w1, "").map(drop)
        }
        ("watch-bookmarks.http", 1) => {
            config_map(replay, "b1", &json!({"data": {"a": "1"}}))?;
            label(replay, "/api/v1/namespaces/demo/secrets/s", &json!({"x": "y"}))
        }
        ("watch-bookmarks.http", 3) => {
            data(replay, "b1", "2")?;
            data(replay, "b1", "3")
        }
        ("watch-list.http", 1) => data(replay, "i1", "one"),
        ("selectors.http", 21) => {
            bind(replay, "sel-s3")?;
            label(replay, &format!("{PODS}/sel-s2"), &json!({"more": "yes"}))
        }
        ("endpointslice.http", 2) => endpoints(replay),
        ("namespaces.http", 1 | 2) => {
            let enrol = "/api/v1/namespaces/enrol";
            label(replay, enrol, &json!({"istio.io/dataplane-mode": "ambient"}))?;
            label(replay, enrol, &json!({"team": "b"}))?;
            label(replay, enrol, &json!({"istio.io/dataplane-mode": "none"}))?;
            label(replay, enrol, &json!({"istio.io/dataplane-mode": null}))
        }
        ("namespaces.http", 3) => {
            replay.delete("/api/v1/namespaces/enrol", "")?;
            replay.cluster.advance(Duration::from_secs(6));
            let gone = replay
                .cluster
                .wait_for(("Namespace", "", "enrol"), weft_tests::LIMIT, |found| {
                    found.is_none()
                });
            gone.map(drop)
        }
        ("pod-lifecycle.http", 2) => life(replay),
        ("pod-lifecycle.http", 5) => {
            config_map(
                replay,
                "fin",
                &json!({"metadata": {"finalizers": ["example.test/hold"]}, "data": {"a": "1"}}),
            )?;
            let fin = format!("{CONFIG_MAPS}/fin");
            replay.delete(&fin, "")?;
            replay
                .patch(&fin, r#"{"metadata":{"finalizers":null}}"#)
                .map(drop)
        }
        _ => Ok(()),
    }
}

fn config_map(replay: &Replay, name: &str, more: &Value) -> Result<()> {
    let mut object = more.clone();
    object["metadata"]["name"] = name.into();
    replay.post(CONFIG_MAPS, &object.to_string()).map(drop)
}

fn data(replay: &Replay, name: &str, value: &str) -> Result<()> {
    replay
        .patch(
            &format!("{CONFIG_MAPS}/{name}"),
            &json!({"data": {"n": value}}).to_string(),
        )
        .map(drop)
}

fn label(replay: &Replay, path: &str, labels: &Value) -> Result<()> {
    replay
        .patch(path, &json!({"metadata": {"labels": labels}}).to_string())
        .map(drop)
}

/// The ConfigMaps i1 and i2.
fn init(replay: &Replay, one: &str, two: &str) -> Result<()> {
    for (name, value) in [("i1", one), ("i2", two)] {
        config_map(
            replay,
            name,
            &json!({"metadata": {"labels": {"app": "init"}}, "data": {"n": value}}),
        )?;
    }
    Ok(())
}

fn pages(replay: &Replay) -> Result<()> {
    (0..5).try_for_each(|page| {
        let namespace = json!({"metadata": {"name": format!("page-{page}"), "labels": {"page": "yes"}}});
        replay
            .post("/api/v1/namespaces", &namespace.to_string())
            .map(drop)
    })
}

fn gone(replay: &mut Replay) -> Result<()> {
    init(replay, "stale", "2")?;
    pages(replay)?;
    replay.cluster.delete("Namespace", "", "page-3");
    replay.post("/api/v1/namespaces", r#"{"metadata":{"name":"gen-klmkh"}}"#)?;
    replay.at(593)?;
    data(replay, "i2", "five")?;
    data(replay, "i2", "six")?;
    replay.at(595)?;
    replay.cluster.faults().restart();
    Ok(())
}

fn account(replay: &Replay) -> Result<()> {
    replay
        .post(
            "/api/v1/namespaces/demo/serviceaccounts",
            r#"{"metadata":{"name":"app"}}"#,
        )
        .map(drop)
}

/// The first token of a recording is one for the API server.
fn own_token(replay: &mut Replay) -> Result<()> {
    account(replay)?;
    let token = replay.cluster.token("demo", "app", &[], None)?;
    replay.learn(TOKEN[0], &token)
}

fn errors(replay: &mut Replay) -> Result<()> {
    own_token(replay)?;
    init(replay, "1", "2")?;
    replay.at(323)?;
    data(replay, "i1", "two")?;
    let i1 = replay.cluster.get("ConfigMap", "demo", "i1").context("i1")?;
    pod_uid(replay, &i1, "8e5b9f9e-8030-44c4-a9c5-23b0ff329305")
}

fn pod_uid(replay: &mut Replay, object: &Value, recorded: &str) -> Result<()> {
    let uid = object["metadata"]["uid"].as_str().context("a uid")?.to_owned();
    replay.learn(recorded, &uid)
}

fn nodes(replay: &Replay) -> Result<()> {
    for letter in ["a", "b"] {
        let labels = json!({"topology.kubernetes.io/zone": format!("zone-{letter}")});
        let node = json!({"metadata": {"name": format!("node-{letter}"), "labels": labels}});
        replay.post("/api/v1/nodes", &node.to_string())?;
    }
    Ok(())
}

fn pod(replay: &Replay, name: &str, account: &str, node: Option<&str>) -> Result<Value> {
    let spec = json!({"serviceAccountName": account, "nodeName": node, "containers": [{"name": "app", "image": "example.test/app:1"}]});
    replay.post(
        PODS,
        &json!({"metadata": {"name": name, "labels": {"app": "x"}}, "spec": spec}).to_string(),
    )
}

fn bind(replay: &Replay, name: &str) -> Result<()> {
    let target = json!({"target": {"kind": "Node", "name": "node-a"}, "apiVersion": "v1", "kind": "Binding"});
    let answer = replay.post(&format!("{PODS}/{name}/binding"), &target.to_string())?;
    if answer["status"] != "Success" {
        bail!("{answer}");
    }
    Ok(())
}

fn selectors(replay: &Replay) -> Result<()> {
    nodes(replay)?;
    let pods = [
        ("sel-s1", json!({"app": "s", "tier": "web"}), Some("node-a")),
        ("sel-s2", json!({"app": "s", "tier": "db"}), Some("node-b")),
        ("sel-s3", json!({"app": "s"}), None),
    ];
    for (name, labels, node) in pods {
        pod(replay, name, "default", node)?;
        label(replay, &format!("{PODS}/{name}"), &labels)?;
    }
    for name in ["headless", "pub"] {
        let service = json!({"metadata": {"name": name}, "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]}});
        replay.post(SERVICES, &service.to_string())?;
    }
    for name in ["s1", "s2"] {
        replay.post(
            "/api/v1/namespaces/demo/secrets",
            &json!({"metadata": {"name": name}}).to_string(),
        )?;
    }
    Ok(())
}

/// The token of exchange 1 with another end.
fn forged(replay: &mut Replay) -> Result<()> {
    let good = replay.seen.known(TOKEN[0]).context("the first token")?;
    let forged = format!("{}AAAAAAAA", &good[..good.len() - 8]);
    replay.learn(TOKEN[2], &forged)
}

/// A token whose pod is gone for twelve seconds, reviewed right before.
fn invalidated(replay: &mut Replay) -> Result<()> {
    pod(replay, "tok-pod2", "app", Some("node-a"))?;
    let token = replay
        .cluster
        .token("demo", "app", &["istio-ca"], Some("tok-pod2"))?;
    let review = json!({"spec": {"token": token, "audiences": ["istio-ca"]}});
    let reviewed = replay.post("/apis/authentication.k8s.io/v1/tokenreviews", &review.to_string())?;
    if reviewed["status"]["authenticated"] != true {
        bail!("{reviewed}");
    }
    replay.cluster.delete("Pod", "demo", "tok-pod2");
    replay.cluster.advance(Duration::from_secs(12));
    replay.learn(TOKEN[3], &token)
}

fn access(replay: &mut Replay) -> Result<()> {
    own_token(replay)?;
    let rules = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]);
    let role = json!({"metadata": {"name": "r"}, "rules": rules});
    replay
        .post(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/demo/roles",
            &role.to_string(),
        )
        .map(drop)
}

/// The definition that `status.http` begins with.
fn definition(replay: &Replay) -> Result<()> {
    let exchanges = parse::parse(&super::read("status.http")?)?;
    let first = exchanges.first().context("an exchange")?;
    replay.post(&first.path, &first.body).map(drop)
}

fn status(replay: &Replay, name: &str, address: &str, ready: &str) -> Result<()> {
    let ready = json!({"type": "Ready", "status": ready});
    let status = json!({"status": {"phase": "Running", "podIP": address, "conditions": [ready]}});
    replay
        .patch(&format!("{PODS}/{name}/status"), &status.to_string())
        .map(drop)
}

fn endpoints(replay: &Replay) -> Result<()> {
    for (name, node) in [("web-1", "node-a"), ("web-2", "node-b")] {
        let ports = json!([{"name": "http", "containerPort": 8080}]);
        let containers = json!([{"name": "web", "image": "example.test/web:1", "ports": ports}]);
        let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"nodeName": node, "containers": containers}});
        replay.post(PODS, &pod.to_string())?;
    }
    status(replay, "web-1", "10.244.1.5", "False")?;
    status(replay, "web-1", "10.244.1.5", "True")?;
    status(replay, "web-2", "10.244.2.7", "True")?;
    replay.delete(&format!("{PODS}/web-2"), r#"{"gracePeriodSeconds":2}"#)?;
    replay.delete(&format!("{PODS}/web-2"), r#"{"gracePeriodSeconds":0}"#)?;
    replay.delete(&format!("{SERVICES}/web"), "").map(drop)
}

fn life(replay: &Replay) -> Result<()> {
    bind(replay, "life")?;
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-11-20T19:45:53Z"});
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.1.9", "conditions": conditions}});
    replay.patch(&format!("{PODS}/life/status"), &status.to_string())?;
    let life = format!("{PODS}/life");
    replay.delete(&life, "")?;
    replay.delete(&life, "")?;
    replay.delete(&life, r#"{"gracePeriodSeconds":1}"#)?;
    let pod = replay.cluster.get("Pod", "demo", "life").context("life")?;
    let last = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}});
    replay.delete(&life, &last.to_string()).map(drop)
}
