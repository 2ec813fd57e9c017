//! What controllers do beside the API server, right after each write: definitions become served, namespaces get what
//! each has, Services get their EndpointSlices, and what an owner leaves behind is collected.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Server, defaults, kinds, kinds::Kind, object, slices, store::Change, store::State, workloads};

/// Follows up on a write.
pub(super) fn after(server: &Server, state: &mut State, kind: &Kind, change: &Arc<Change>) {
    match kind.table.as_str() {
        "customresourcedefinitions.apiextensions.k8s.io" => definition(server, state, kind, change),
        "namespaces" if change.before.is_none() => furnish(server, state, &change.key),
        "deployments.apps" | "daemonsets.apps" | "jobs.batch" if server.options.workloads_ready => {
            workloads::ready(state, kind, change, &server.clock.stamp());
        }
        "pods" | "services" if server.options.endpoint_slices => slices::follow(server, state, kind, change),
        _ => {}
    }
    if change.after.is_none()
        && let Some(gone) = &change.before
    {
        let value = gone.value();
        collect(
            server,
            state,
            value["metadata"]["uid"].as_str().unwrap_or_default(),
        );
    }
}

/// Removes what an object that is gone owned.
fn collect(server: &Server, state: &mut State, uid: &str) {
    for (table, key) in state.orphans(uid) {
        remove(server, state, &table, &key);
    }
}

/// Removes an object, unless a finalizer holds it: then it is marked.
pub(super) fn remove(server: &Server, state: &mut State, table: &str, key: &str) {
    let kind = state.kinds.iter().find(|kind| kind.table == table).cloned();
    let (Some(kind), Some(mut value)) = (kind, state.value(table, key)) else {
        return;
    };
    let held = value["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|held| !held.is_empty());
    if held && value["metadata"]["deletionTimestamp"].is_string() {
        return;
    }
    if server.options.nodes_end_pods && table == "pods" && runs(&value) {
        if value["metadata"]["deletionTimestamp"].is_null() {
            let grace = value["spec"]["terminationGracePeriodSeconds"]
                .as_u64()
                .unwrap_or(30);
            mark(&kind, &mut value, &server.clock.stamp(), grace);
            let change = state.commit(&kind, key, Some(value));
            after(server, state, &kind, &change);
        }
        return;
    }
    if held {
        mark(&kind, &mut value, &server.clock.stamp(), 0);
    }
    let change = state.commit(&kind, key, held.then_some(value));
    after(server, state, &kind, &change);
}

/// Whether a node has a pod that has not ended.
fn runs(pod: &Value) -> bool {
    let ended = ["Succeeded", "Failed"]
        .iter()
        .any(|phase| pod["status"]["phase"] == *phase);
    pod["spec"]["nodeName"].is_string() && !ended
}

/// Marks an object as on its way out.
pub(super) fn mark(kind: &Kind, value: &mut Value, at: &str, grace: u64) {
    let first = value["metadata"]["deletionTimestamp"].is_null();
    value["metadata"]["deletionTimestamp"] = at.into();
    value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if first && kind.has_generation() {
        let generation = value["metadata"]["generation"].as_u64().unwrap_or(0);
        value["metadata"]["generation"] = (generation + 1).into();
    }
}

/// A controller's create, without a request.
pub(super) fn create(
    server: &Server,
    state: &mut State,
    plural: (&str, &str),
    namespace: &str,
    mut value: Value,
) {
    let (group, plural) = plural;
    let found = state
        .kinds
        .iter()
        .find(|kind| kind.group == group && kind.plural == plural)
        .cloned();
    let Some(kind) = found else { return };
    if kind.namespaced {
        value["metadata"]["namespace"] = namespace.into();
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = object::key(namespace, &name);
    if state.object(&kind.table, &key).is_some() {
        return;
    }
    let version = kind.versions[0].name.clone();
    defaults::new(&kind, &version, &mut value, &server.clock.stamp(), state);
    defaults::allocate(&kind, &mut value, state);
    let change = state.commit(&kind, &key, Some(value));
    after(server, state, &kind, &change);
}

/// What each namespace has.
fn furnish(server: &Server, state: &mut State, namespace: &str) {
    let about = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
    let roots = json!({
        "metadata": {"name": "kube-root-ca.crt", "annotations": {"kubernetes.io/description": about},
            "managedFields": [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {".": {}, "f:ca.crt": {}}}}]},
        "data": {"ca.crt": server.certificate},
    });
    create(server, state, ("", "configmaps"), namespace, roots);
    create(
        server,
        state,
        ("", "serviceaccounts"),
        namespace,
        json!({"metadata": {"name": "default"}}),
    );
}

/// A definition: its names are accepted, then it is established and served.
fn definition(server: &Server, state: &mut State, kind: &Kind, change: &Arc<Change>) {
    let Some(after) = &change.after else {
        if let Some(custom) = change
            .before
            .as_ref()
            .and_then(|before| kinds::custom(&before.value()))
        {
            state.drop_kind(&custom.table);
        }
        return;
    };
    let mut value = after.value();
    let Some(custom) = kinds::custom(&value) else {
        return;
    };
    if change.before.is_none() {
        let now = server.clock.stamp();
        let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message});
        let accepted = condition("NamesAccepted", "NoConflicts", "no conflicts found");
        let established = condition(
            "Established",
            "InitialNamesAccepted",
            "the initial names have been accepted",
        );
        value["status"]["acceptedNames"] = value["spec"]["names"].clone();
        value["status"]["conditions"] = json!([accepted]);
        state.commit(kind, &change.key, Some(value.clone()));
        value["status"]["conditions"] = json!([accepted, established]);
        state.commit(kind, &change.key, Some(value));
    }
    state.kinds.retain(|kind| kind.table != custom.table);
    state.kinds.push(Arc::new(custom));
}

/// Ends a namespace that is terminating: its content first. Whether it is gone now; a finalizer may hold something.
pub(super) fn finalize(server: &Server, state: &mut State, namespace: &str) -> bool {
    let mut left = false;
    for table in state.table_names() {
        let keys: Vec<String> = state
            .within(&table, namespace)
            .map(|object| object::key(&object.namespace, &object.name))
            .collect();
        for key in keys {
            remove(server, state, &table, &key);
            left |= state.object(&table, &key).is_some();
        }
    }
    let kind = state.kind("", "v1", "namespaces").cloned();
    let (Some(kind), Some(mut value)) = (kind, state.value("namespaces", namespace)) else {
        return true;
    };
    if left {
        return false;
    }
    let now = server.clock.stamp();
    let conditions = DELETED.map(|(kind, reason, message)| {
        json!({"type": kind, "status": "False", "lastTransitionTime": now, "reason": reason, "message": message})
    });
    value["status"]["conditions"] = conditions.to_vec().into();
    state.commit(&kind, namespace, Some(value));
    state.commit(&kind, namespace, None);
    true
}

/// How a namespace's end is told.
const DELETED: [(&str, &str, &str); 5] = [
    (
        "NamespaceDeletionDiscoveryFailure",
        "ResourcesDiscovered",
        "All resources successfully discovered",
    ),
    (
        "NamespaceDeletionGroupVersionParsingFailure",
        "ParsedGroupVersions",
        "All legacy kube types successfully parsed",
    ),
    (
        "NamespaceDeletionContentFailure",
        "ContentDeleted",
        "All content successfully deleted, may be waiting on finalization",
    ),
    (
        "NamespaceContentRemaining",
        "ContentRemoved",
        "All content successfully removed",
    ),
    (
        "NamespaceFinalizersRemaining",
        "ContentHasNoFinalizers",
        "All content-preserving finalizers finished",
    ),
];
