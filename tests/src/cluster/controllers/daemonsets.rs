//! DaemonSets: one pod for each node that takes it; a new revision comes beside the old one where the strategy says so (surge),
//! and in its place otherwise. As Kubernetes has it, the old one of two ends when the new one is ready, and also when it is not
//! ready itself any more.

use serde_json::{Value, json};

use super::{
    REVISION, count_of, end_pod, has_ended, hash, is_leaving, is_ready, make, owned, pod_of, scheduler,
    set_status, suffix,
};
use crate::{cluster::spec::text, kube::StandIn};

pub(super) fn turn(api: &StandIn) {
    for set in api.list("daemonsets", "") {
        if !is_leaving(&set) {
            reconcile(api, &set);
        }
    }
}

/// What one node has of a set.
struct OnNode<'a> {
    name: &'a str,
    /// The oldest first.
    pods: Vec<&'a Value>,
}

fn reconcile(api: &StandIn, set: &Value) {
    let template = &set["spec"]["template"];
    let hash = hash(template);
    let nodes = api.list("nodes", "");
    let pods = owned(api, "pods", set);
    let is_new = |pod: &Value| pod["metadata"]["labels"][REVISION] == hash.as_str();
    let on_nodes: Vec<OnNode<'_>> = nodes
        .iter()
        .filter(|node| scheduler::takes(node, &template["spec"], true))
        .map(|node| {
            let name = text(&node["metadata"]["name"]);
            let of = pods.iter().filter(|pod| pod["spec"]["nodeName"] == name);
            OnNode {
                name,
                pods: of.collect(),
            }
        })
        .collect();
    let wanted = on_nodes.len() as u64;
    let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
    let surge = count_of(&rolling["maxSurge"], wanted, true, "0%");
    let missing = match &rolling["maxUnavailable"] {
        Value::Null => 1,
        value => count_of(value, wanted, true, "1"),
    };
    let surging = on_nodes.iter().filter(|node| {
        let alive = node.pods.iter().filter(|pod| !is_leaving(pod));
        alive.count() > 1
    });
    let mut may_surge = surge.saturating_sub(surging.count() as u64);
    let unavailable = on_nodes
        .iter()
        .filter(|node| !node.pods.iter().any(|pod| is_ready(pod)));
    let mut may_miss = missing.saturating_sub(unavailable.count() as u64);
    for node in &on_nodes {
        let alive = node.pods.iter().copied().filter(|pod| !is_leaving(pod));
        let (new, old): (Vec<&Value>, Vec<&Value>) = alive.partition(|pod| is_new(pod));
        if let Some(ended) = new.iter().chain(&old).find(|pod| has_ended(pod)) {
            end_pod(api, ended);
            continue;
        }
        // One that ends is waited for, unless two may be there.
        let free = node.pods.is_empty() || surge > 0 && old.is_empty();
        match (new.as_slice(), old.as_slice()) {
            ([], []) if free => start(api, set, node.name, &hash),
            ([], [_, ..]) if surge > 0 && may_surge > 0 => {
                may_surge -= 1;
                start(api, set, node.name, &hash);
            }
            ([], [old, ..]) if surge == 0 && (may_miss > 0 || !is_ready(old)) => {
                may_miss = may_miss.saturating_sub(1);
                end_pod(api, old);
            }
            ([new, ..], [first, ..]) if is_ready(new) || !is_ready(first) => {
                old.iter().for_each(|pod| end_pod(api, pod));
            }
            _ => {}
        }
    }
    tell(api, set, &on_nodes, &hash);
}

/// Writes the status.
fn tell(api: &StandIn, set: &Value, on_nodes: &[OnNode<'_>], hash: &str) {
    let is_new = |pod: &Value| pod["metadata"]["labels"][REVISION] == hash;
    let wanted = on_nodes.len() as u64;
    // The oldest pod of a node is what is counted.
    let first = |node: &OnNode<'_>| node.pods.first().copied().cloned();
    let counted: Vec<Value> = on_nodes.iter().filter_map(first).collect();
    let ready = counted.iter().filter(|pod| is_ready(pod)).count();
    let status = json!({
        "observedGeneration": set["metadata"]["generation"], "desiredNumberScheduled": wanted,
        "currentNumberScheduled": counted.len(), "numberMisscheduled": 0, "numberReady": ready,
        "numberAvailable": ready, "numberUnavailable": wanted - ready as u64,
        "updatedNumberScheduled": counted.iter().filter(|pod| is_new(pod)).count(),
    });
    set_status(api, set, &status);
}

fn start(api: &StandIn, set: &Value, node: &str, hash: &str) {
    let name = format!("{}-{}", text(&set["metadata"]["name"]), suffix());
    let mut pod = pod_of(set, &set["spec"]["template"], name, &[(REVISION, hash)]);
    pod["spec"]["nodeName"] = node.into();
    if !pod["spec"]["tolerations"].is_array() {
        pod["spec"]["tolerations"] = json!([]);
    }
    if let Some(all) = pod["spec"]["tolerations"].as_array_mut() {
        for taint in [
            "disk-pressure",
            "memory-pressure",
            "pid-pressure",
            "unschedulable",
        ] {
            let key = format!("node.kubernetes.io/{taint}");
            all.push(json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}));
        }
    }
    make(api, pod);
}
