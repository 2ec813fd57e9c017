//! What the API server fills in: identity, defaults of each kind, cluster addresses.

use serde_json::{Value, json};

use super::{events, kinds::Kind, schema, store::State};

/// Fills in a new object, all but what is allotted.
pub(super) fn new(kind: &Kind, version: &str, value: &mut Value, now: &str, state: &mut State) {
    const SERVER: [&str; 6] = [
        "resourceVersion",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "uid",
    ];
    if let Some(metadata) = value["metadata"].as_object_mut() {
        SERVER.iter().for_each(|field| drop(metadata.remove(*field)));
    }
    value["metadata"]["uid"] = state.random.uid().into();
    value["metadata"]["creationTimestamp"] = now.into();
    if kind.has_generation() {
        value["metadata"]["generation"] = 1.into();
    }
    if kind.has_status(version) && kind.plural != "nodes" {
        clear_status(value);
    }
    match kind.plural.as_str() {
        "namespaces" => {
            value["spec"]["finalizers"] = json!(["kubernetes"]);
            value["status"] = json!({"phase": "Active"});
            let name = value["metadata"]["name"].clone();
            value["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "pods" => {
            value["status"] = json!({"phase": "Pending", "qosClass": quality(&value["spec"])});
            admitted(&mut value["spec"]);
        }
        "customresourcedefinitions" if !kind.custom => {
            let stored = value["spec"]["versions"].as_array().into_iter().flatten();
            let stored: Vec<_> = stored
                .filter(|version| version["storage"] == true)
                .map(|version| version["name"].clone())
                .collect();
            value["status"] = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": stored});
        }
        _ => {}
    }
    always(kind, version, value);
}

fn clear_status(value: &mut Value) {
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
}

/// Fills in a changed object: defaults again, and what was allotted stays.
pub(super) fn changed(kind: &Kind, version: &str, live: &Value, value: &mut Value) {
    if kind.plural == "services" && kind.group.is_empty() && value["spec"]["type"] != "ExternalName" {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if value["spec"][field].is_null() {
                value["spec"][field] = live["spec"][field].clone();
            }
        }
    }
    if kind.plural == "namespaces" {
        value["metadata"]["labels"]["kubernetes.io/metadata.name"] = live["metadata"]["name"].clone();
        if value["spec"]["finalizers"].is_null() {
            value["spec"]["finalizers"] = live["spec"]["finalizers"].clone();
        }
    }
    always(kind, version, value);
    tidy_nulls(
        value,
        &[
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "finalizers",
        ],
    );
}

/// Defaults that creating and changing share.
fn always(kind: &Kind, version: &str, value: &mut Value) {
    if kind.custom {
        if let Some(schema) = kind.version(version).and_then(|version| version.schema.as_ref()) {
            schema::fill(schema, value);
        }
        return;
    }
    match kind.plural.as_str() {
        "services" => service(value),
        "pods" => {
            pod_spec(&mut value["spec"]);
            conditions(
                value,
                &[
                    ("lastProbeTime", Value::Null),
                    ("lastTransitionTime", Value::Null),
                ],
            );
        }
        "secrets" => secret(value),
        "events" => events::fill(value),
        "endpointslices" => nulls(value, &["endpoints", "ports"]),
        "customresourcedefinitions" => definition(value),
        "deployments" | "replicasets" | "statefulsets" => default(&mut value["spec"], "replicas", 1),
        "horizontalpodautoscalers" => default(&mut value["spec"], "minReplicas", 1),
        "daemonsets" => default(&mut value["spec"], "revisionHistoryLimit", 10),
        _ => {}
    }
}

fn default(map: &mut Value, field: &str, value: impl Into<Value>) {
    if map.is_null() {
        *map = json!({});
    }
    if map[field].is_null() {
        map[field] = value.into();
    }
}

fn nulls(value: &mut Value, fields: &[&str]) {
    for field in fields {
        if value.get(*field).is_none() {
            value[*field] = Value::Null;
        }
    }
}

fn conditions(value: &mut Value, fields: &[(&str, Value)]) {
    for condition in list(&mut value["status"], "conditions") {
        for (field, empty) in fields {
            if condition.get(*field).is_none() {
                condition[*field] = empty.clone();
            }
        }
    }
}

/// The items of a list, none if there is no such list.
fn list<'a>(value: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    value
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn service(value: &mut Value) {
    let spec = &mut value["spec"];
    default(spec, "type", "ClusterIP");
    default(spec, "sessionAffinity", "None");
    let external = spec["type"] == "ExternalName";
    if !external {
        default(spec, "internalTrafficPolicy", "Cluster");
    }
    if ["NodePort", "LoadBalancer"]
        .iter()
        .any(|kind| spec["type"] == *kind)
    {
        default(spec, "externalTrafficPolicy", "Cluster");
    }
    for port in list(spec, "ports") {
        default(port, "protocol", "TCP");
        let same = port["port"].clone();
        default(port, "targetPort", same);
    }
    default(&mut value["status"], "loadBalancer", json!({}));
    let empty = ["reason", "message"].map(|field| (field, Value::from("")));
    conditions(value, &[("lastTransitionTime", Value::Null)]);
    conditions(value, &empty);
}

fn secret(value: &mut Value) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let plain = value.as_object_mut().and_then(|map| map.remove("stringData"));
    for (key, text) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
        value["data"][key] = STANDARD.encode(text.as_str().unwrap_or_default()).into();
    }
    default(value, "type", "Opaque");
}

fn definition(value: &mut Value) {
    let names = &mut value["spec"]["names"];
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    default(names, "singular", kind.to_lowercase());
    default(names, "listKind", format!("{kind}List"));
    default(&mut value["spec"], "conversion", json!({"strategy": "None"}));
    if value["status"].is_object() && value["status"].get("conditions").is_none() {
        value["status"]["conditions"] = Value::Null;
    }
}

fn pod_spec(spec: &mut Value) {
    for containers in ["containers", "initContainers"] {
        list(spec, containers).for_each(container);
    }
    default(spec, "restartPolicy", "Always");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "securityContext", json!({}));
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "enableServiceLinks", true);
}

fn container(container: &mut Value) {
    default(container, "resources", json!({}));
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|name| name.split_once(':'));
    let latest = tag.is_none_or(|(_, tag)| tag == "latest");
    default(
        container,
        "imagePullPolicy",
        if latest { "Always" } else { "IfNotPresent" },
    );
    for port in list(container, "ports") {
        default(port, "protocol", "TCP");
    }
}

/// What admission adds to a new pod.
fn admitted(spec: &mut Value) {
    default(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    default(spec, "serviceAccount", account);
    default(spec, "priority", 0);
    default(spec, "preemptionPolicy", "PreemptLowerPriority");
    if spec["tolerations"].is_null() {
        spec["tolerations"] = json!([]);
    }
    for taint in ["not-ready", "unreachable"] {
        let key = format!("node.kubernetes.io/{taint}");
        let tolerated = list(spec, "tolerations").any(|toleration| toleration["key"] == key.as_str());
        if !tolerated && let Some(all) = spec["tolerations"].as_array_mut() {
            all.push(
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            );
        }
    }
}

fn quality(spec: &Value) -> &'static str {
    let containers = spec["containers"].as_array().into_iter().flatten();
    let asks = |container: &Value| {
        let resources = &container["resources"];
        ["requests", "limits"]
            .iter()
            .any(|of| resources[*of].as_object().is_some_and(|of| !of.is_empty()))
    };
    if containers.clone().any(asks) {
        "Burstable"
    } else {
        "BestEffort"
    }
}

/// Gives a Service its addresses.
pub(super) fn allocate(kind: &Kind, value: &mut Value, state: &mut State) {
    if kind.plural != "services" || kind.custom || value["spec"]["type"] == "ExternalName" {
        return;
    }
    let (a, b) = (state.random.below(250), state.random.below(250) + 2);
    let spec = &mut value["spec"];
    default(spec, "clusterIP", format!("10.96.{a}.{b}"));
    let address = spec["clusterIP"].clone();
    default(spec, "clusterIPs", json!([address]));
    default(spec, "ipFamilies", json!(["IPv4"]));
    default(spec, "ipFamilyPolicy", "SingleStack");
    if ["NodePort", "LoadBalancer"]
        .iter()
        .any(|kind| spec["type"] == *kind)
    {
        let first = 30_000 + state.random.below(2_000);
        for (node_port, port) in (first..).zip(list(spec, "ports")) {
            default(port, "nodePort", node_port);
        }
    }
}

/// Leaves out what says nothing, as Go's `omitempty` does.
pub(super) fn tidy(kind: &Kind, value: &mut Value) {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    if kind.custom {
        strip_nulls(&mut value["metadata"]);
        tidy_nulls(value, &[]);
    } else {
        strip_nulls(value);
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.retain(|key, value| key == "deletionGracePeriodSeconds" || !empty(value));
    }
    if ["configmaps", "secrets"].contains(&kind.plural.as_str())
        && let Some(map) = value.as_object_mut()
    {
        map.retain(|key, value| !["data", "binaryData"].contains(&key.as_str()) || !empty(value));
    }
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(strip_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}

/// Removes an absent status, and these fields of the spec where they are null.
fn tidy_nulls(value: &mut Value, of_spec: &[&str]) {
    let Some(map) = value.as_object_mut() else { return };
    if map.get("status").is_some_and(Value::is_null) {
        map.remove("status");
    }
    if let Some(spec) = map.get_mut("spec").and_then(Value::as_object_mut) {
        spec.retain(|key, value| !of_spec.contains(&key.as_str()) || !value.is_null());
    }
}
