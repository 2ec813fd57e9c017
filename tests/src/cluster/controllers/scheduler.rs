//! The scheduler: a pod goes to a node that takes it, the one that has the fewest pods with the same labels.

use serde_json::Value;

use super::is_leaving;
use crate::{
    cluster::{
        spec::{items, text},
        status,
    },
    kube::StandIn,
};

pub(super) fn turn(api: &StandIn) {
    let pods = api.list("pods", "");
    let free = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"].is_null() && !is_leaving(pod));
    let free: Vec<&Value> = free.collect();
    if free.is_empty() {
        return;
    }
    let nodes = api.list("nodes", "");
    let mut placed: Vec<(String, Value)> = pods
        .iter()
        .filter(|pod| pod["spec"]["nodeName"].is_string())
        .map(|pod| {
            (
                text(&pod["spec"]["nodeName"]).to_owned(),
                pod["metadata"]["labels"].clone(),
            )
        })
        .collect();
    for pod in free {
        let labels = &pod["metadata"]["labels"];
        let taking = nodes.iter().filter(|node| takes(node, &pod["spec"], false));
        let chosen = taking.min_by_key(|node| {
            let name = text(&node["metadata"]["name"]);
            let alike = placed
                .iter()
                .filter(|(on, of)| on == name && of == labels)
                .count();
            (alike, placed.iter().filter(|(on, _)| on == name).count())
        });
        let Some(node) = chosen else { continue };
        let name = text(&node["metadata"]["name"]).to_owned();
        let of = &pod["metadata"];
        api.change(("pods", text(&of["namespace"]), text(&of["name"])), |pod| {
            pod["spec"]["nodeName"] = name.as_str().into();
            status::condition(pod, "PodScheduled", true, &status::now());
        });
        placed.push((name, labels.clone()));
    }
}

/// Whether a node takes such a pod. A DaemonSet's tolerates what is wrong with the node itself.
pub(super) fn takes(node: &Value, spec: &Value, of_daemon_set: bool) -> bool {
    let labels = &node["metadata"]["labels"];
    let mut wanted = spec["nodeSelector"].as_object().into_iter().flatten();
    if !wanted.all(|(key, value)| labels[key] == *value) {
        return false;
    }
    let tolerated = |taint: &Value| {
        let own = of_daemon_set && text(&taint["key"]).starts_with("node.kubernetes.io/");
        own || items(&spec["tolerations"]).any(|one| tolerates(one, taint))
    };
    items(&node["spec"]["taints"]).all(|taint| taint["effect"] == "PreferNoSchedule" || tolerated(taint))
}

fn tolerates(one: &Value, taint: &Value) -> bool {
    let key = one["key"].is_null() || one["key"] == taint["key"];
    let effect = text(&one["effect"]).is_empty() || one["effect"] == taint["effect"];
    let value = one["operator"] == "Exists" || text(&one["value"]) == text(&taint["value"]);
    key && effect && value
}
