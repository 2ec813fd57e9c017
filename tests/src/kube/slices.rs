//! EndpointSlices of Services with a selector, as the controller manager keeps them.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Server,
    controllers::create,
    kinds::Kind,
    object::{self, Object, strings},
    select,
    store::{Change, State},
};

/// Endpoints of one slice.
const SIZE: usize = 100;
const NAME: &str = "kubernetes.io/service-name";

/// Brings the slices of the Services that a change is about up to date.
pub(super) fn follow(server: &Server, state: &mut State, kind: &Kind, change: &Arc<Change>) {
    let of = change.after.as_ref().or(change.before.as_ref());
    let Some(namespace) = of.map(|object| object.namespace.clone()) else {
        return;
    };
    if kind.table == "services" {
        // A Service that is gone takes its slices along as their owner.
        if let Some(service) = &change.after {
            reconcile(server, state, &service.value(), change.before.is_none());
        }
        return;
    }
    let pods: Vec<Arc<Object>> = change.before.iter().chain(&change.after).cloned().collect();
    let services: Vec<Value> = state
        .within("services", &namespace)
        .map(|service| service.value())
        .collect();
    for service in services {
        let selector = strings(&service["spec"]["selector"]);
        if pods.iter().any(|pod| select::covers(&selector, &pod.labels)) {
            let ready = change
                .after
                .as_ref()
                .is_some_and(|pod| became_ready(change.before.as_ref(), pod));
            reconcile(server, state, &service, ready);
        }
    }
}

fn became_ready(before: Option<&Arc<Object>>, after: &Object) -> bool {
    let ready = |object: &Object| {
        let pod = object.value();
        pod["status"]["podIP"].is_string() && is_ready(&pod)
    };
    ready(after) && !before.is_some_and(|before| ready(before))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn reconcile(server: &Server, state: &mut State, service: &Value, triggered: bool) {
    let selector = strings(&service["spec"]["selector"]);
    let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (text("namespace"), text("name"));
    if selector.is_empty() {
        return;
    }
    let chosen = state
        .within("pods", &namespace)
        .filter(|pod| select::covers(&selector, &pod.labels));
    let pods: Vec<Value> = chosen
        .map(|pod| pod.value())
        .filter(|pod| pod["status"]["podIP"].is_string())
        .collect();
    let endpoints: Vec<Value> = pods.iter().map(|pod| endpoint(state, pod)).collect();
    let ports = pods.first().map(|pod| ports(service, pod));
    let chunks: Vec<&[Value]> = if endpoints.is_empty() {
        vec![&[]]
    } else {
        endpoints.chunks(SIZE).collect()
    };
    let table = "endpointslices.discovery.k8s.io";
    let own = state
        .within(table, &namespace)
        .filter(|slice| slice.labels.contains(&(NAME.into(), name.clone())));
    let mut own: Vec<Value> = own
        .map(|slice| slice.value())
        .filter(|slice| slice["metadata"]["generateName"].is_string())
        .collect();
    for chunk in &chunks {
        let now = triggered.then(|| server.clock.stamp());
        let mut slice = slice(service, now);
        slice["endpoints"] = if chunk.is_empty() {
            Value::Null
        } else {
            json!(chunk)
        };
        slice["ports"] = ports.clone().unwrap_or_default();
        if own.is_empty() {
            slice["metadata"]["name"] = format!("{name}-{}", state.random.suffix()).into();
            create(
                server,
                state,
                ("discovery.k8s.io", "endpointslices"),
                &namespace,
                slice,
            );
        } else {
            replace(state, own.remove(0), slice);
        }
    }
    for extra in own {
        let key = object::key(&namespace, extra["metadata"]["name"].as_str().unwrap_or_default());
        super::controllers::remove(server, state, table, &key);
    }
}

/// Stores the slice in an old one's place, if it says anything new.
fn replace(state: &mut State, old: Value, slice: Value) {
    let mut new = old.clone();
    new["endpoints"] = slice["endpoints"].clone();
    new["ports"] = slice["ports"].clone();
    new["metadata"]["labels"] = slice["metadata"]["labels"].clone();
    if new == old {
        return;
    }
    match slice["metadata"].get("annotations") {
        Some(annotations) => new["metadata"]["annotations"] = annotations.clone(),
        None => drop(
            new["metadata"]
                .as_object_mut()
                .map(|metadata| metadata.remove("annotations")),
        ),
    }
    new["metadata"]["generation"] = (old["metadata"]["generation"].as_u64().unwrap_or(0) + 1).into();
    let kind = state.kind("discovery.k8s.io", "v1", "endpointslices").cloned();
    let Some(kind) = kind else { return };
    let text = |field: &str| old["metadata"][field].as_str().unwrap_or_default().to_owned();
    state.commit(&kind, &object::key(&text("namespace"), &text("name")), Some(new));
}

fn slice(service: &Value, triggered: Option<String>) -> Value {
    let name = &service["metadata"]["name"];
    let mut labels = service["metadata"]["labels"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    labels.insert(NAME.into(), name.clone());
    labels.insert(
        "endpointslice.kubernetes.io/managed-by".into(),
        "endpointslice-controller.k8s.io".into(),
    );
    if service["spec"]["clusterIP"] == "None" {
        labels.insert("service.kubernetes.io/headless".into(), "".into());
    }
    let mut metadata = json!({
        "generateName": format!("{}-", name.as_str().unwrap_or_default()),
        "labels": labels,
        "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": name, "uid": service["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true}],
        "managedFields": [{"manager": "kube-controller-manager", "operation": "Update",
            "apiVersion": "discovery.k8s.io/v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:endpoints": {}}}],
    });
    if let Some(now) = triggered {
        metadata["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
    }
    json!({"metadata": metadata, "addressType": "IPv4"})
}

fn endpoint(state: &State, pod: &Value) -> Value {
    let leaving = pod["metadata"]["deletionTimestamp"].is_string();
    let ready = is_ready(pod);
    let mut endpoint = json!({
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": ready && !leaving, "serving": ready, "terminating": leaving},
        "targetRef": {"kind": "Pod", "namespace": pod["metadata"]["namespace"], "name": pod["metadata"]["name"],
            "uid": pod["metadata"]["uid"]},
    });
    if let Some(node) = pod["spec"]["nodeName"].as_str() {
        endpoint["nodeName"] = node.into();
        let labels = state
            .object("nodes", node)
            .map(|node| node.labels.as_slice())
            .unwrap_or_default();
        if let Some((_, zone)) = labels
            .iter()
            .find(|(key, _)| key == "topology.kubernetes.io/zone")
        {
            endpoint["zone"] = zone.as_str().into();
        }
    }
    endpoint
}

/// The Service's ports as this pod has them: a port by name is looked up in its containers.
fn ports(service: &Value, pod: &Value) -> Value {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let found = ports.filter_map(|port| {
        let number = match &port["targetPort"] {
            Value::String(name) => named_port(pod, name)?,
            number => number.clone(),
        };
        let mut shown = json!({"protocol": port["protocol"], "port": number, "name": port["name"].as_str().unwrap_or_default()});
        if port["appProtocol"].is_string() {
            shown["appProtocol"] = port["appProtocol"].clone();
        }
        Some(shown)
    });
    found.collect()
}

fn named_port(pod: &Value, name: &str) -> Option<Value> {
    let containers = pod["spec"]["containers"].as_array()?.iter();
    let mut ports = containers.flat_map(|container| container["ports"].as_array().into_iter().flatten());
    ports
        .find(|port| port["name"] == name)
        .map(|port| port["containerPort"].clone())
}
