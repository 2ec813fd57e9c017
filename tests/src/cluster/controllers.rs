//! The controllers beside the API server: what Deployments, ReplicaSets, DaemonSets and Jobs wish for becomes pods, and pods get
//! their node. Level-triggered: each turn looks at everything, and what was there when it began.

mod daemonsets;
mod deployments;
mod garbage;
mod jobs;
mod scheduler;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use super::spec::{items, text};
use crate::kube::StandIn;

/// A pod's label with the revision of its template.
const HASH: &str = "pod-template-hash";
const REVISION: &str = "controller-revision-hash";

/// Works until the API is gone.
pub(super) async fn run(api: Arc<StandIn>) {
    let mut changes = api.changes();
    loop {
        deployments::turn(&api);
        daemonsets::turn(&api);
        jobs::turn(&api);
        scheduler::turn(&api);
        garbage::turn(&api);
        if changes.changed().await.is_err() {
            return;
        }
        // What comes in bursts is looked at once.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The objects that an owner controls, in the order of their creation.
fn owned(api: &StandIn, kind: &str, owner: &Value) -> Vec<Value> {
    let uid = &owner["metadata"]["uid"];
    let mut own = api.list(kind, text(&owner["metadata"]["namespace"]));
    own.retain(|one| items(&one["metadata"]["ownerReferences"]).any(|by| by["uid"] == *uid));
    own.sort_by_key(|one| text(&one["metadata"]["creationTimestamp"]).to_owned());
    own
}

/// A pod of this template.
fn pod_of(owner: &Value, template: &Value, name: String, labels: &[(&str, &str)]) -> Value {
    let mut pod = child(owner, "v1", "Pod", name);
    pod["metadata"]["labels"] = template["metadata"]["labels"].clone();
    for (label, value) in labels {
        pod["metadata"]["labels"][label] = (*value).into();
    }
    pod["metadata"]["annotations"] = template["metadata"]["annotations"].clone();
    pod["spec"] = template["spec"].clone();
    pod
}

/// An object that goes with its owner.
fn child(owner: &Value, api_version: &str, kind: &str, name: String) -> Value {
    let of = &owner["metadata"];
    json!({
        "apiVersion": api_version, "kind": kind,
        "metadata": {"name": name, "namespace": of["namespace"], "ownerReferences": [{
            "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": of["name"], "uid": of["uid"],
            "controller": true, "blockOwnerDeletion": true}]},
    })
}

fn make(api: &StandIn, value: Value) {
    let (kind, of) = (value["kind"].clone(), value["metadata"].clone());
    if let Err(error) = api.apply(value) {
        return eprintln!("controllers: {error:#}");
    }
    // The owner may have been deleted since it was looked at: the garbage collector takes what it left.
    let owner = &of["ownerReferences"][0];
    let namespace = text(&of["namespace"]);
    let found = api.get(text(&owner["kind"]), namespace, text(&owner["name"]));
    if found.is_none_or(|found| found["metadata"]["uid"] != owner["uid"] || is_leaving(&found)) {
        api.delete(text(&kind), namespace, text(&of["name"]));
    }
}

/// Deletes a pod as a controller does: with its grace.
fn end_pod(api: &StandIn, pod: &Value) {
    let of = &pod["metadata"];
    api.delete("pods", text(&of["namespace"]), text(&of["name"]));
}

fn hash(value: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    value.to_string().hash(&mut hasher);
    format!("{:010x}", hasher.finish() & 0xff_ffff_ffff)
}

/// Five letters that no two pods of one run share.
fn suffix() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(7_919_993) % 60_466_176;
    let mut word = String::new();
    for _ in 0..5 {
        word.push(char::from(
            b"bcdfghjklmnpqrstvwxz2456789abcdefghij"[(number % 36) as usize],
        ));
        number /= 36;
    }
    word
}

fn is_ready(pod: &Value) -> bool {
    items(&pod["status"]["conditions"]).any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn is_leaving(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

fn has_ended(pod: &Value) -> bool {
    ["Succeeded", "Failed"].contains(&text(&pod["status"]["phase"]))
}

/// A number of pods, or a share of them.
fn count_of(value: &Value, of: u64, up: bool, usual: &str) -> u64 {
    let share = match value {
        Value::Null => usual,
        Value::String(share) => share,
        number => return number.as_u64().unwrap_or(0),
    };
    let share: u64 = share.trim_end_matches('%').parse().unwrap_or(0);
    if up {
        (of * share).div_ceil(100)
    } else {
        of * share / 100
    }
}

fn set_status(api: &StandIn, object: &Value, status: &Value) {
    let of = &object["metadata"];
    let id = (text(&object["kind"]), text(&of["namespace"]), text(&of["name"]));
    api.change(id, |live| {
        for (field, value) in status.as_object().into_iter().flatten() {
            live["status"][field] = value.clone();
        }
    });
}
