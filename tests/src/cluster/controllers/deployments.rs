//! Deployments: a ReplicaSet for each template, and pods moved from old ones to the new one as the strategy allows.

use serde_json::{Value, json};

use super::{
    HASH, child, count_of, end_pod, has_ended, hash, is_leaving, is_ready, make, owned, pod_of, set_status,
    suffix,
};
use crate::{
    cluster::{spec::text, status::now},
    kube::StandIn,
};

pub(super) fn turn(api: &StandIn) {
    for deployment in api.list("deployments", "") {
        if !is_leaving(&deployment) {
            roll(api, &deployment);
        }
    }
    for set in api.list("replicasets", "") {
        if !is_leaving(&set) {
            fill(api, &set);
        }
    }
}

fn roll(api: &StandIn, deployment: &Value) {
    let template = &deployment["spec"]["template"];
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let hash = hash(template);
    let sets = owned(api, "replicasets", deployment);
    let (new, old): (Vec<_>, Vec<_>) = sets
        .into_iter()
        .partition(|set| set["metadata"]["labels"][HASH] == hash.as_str());
    let Some(new) = new.first() else {
        let name = format!("{}-{hash}", text(&deployment["metadata"]["name"]));
        let mut set = child(deployment, "apps/v1", "ReplicaSet", name);
        set["metadata"]["labels"] = template["metadata"]["labels"].clone();
        set["metadata"]["labels"][HASH] = hash.as_str().into();
        let mut template = template.clone();
        template["metadata"]["labels"][HASH] = hash.as_str().into();
        let mut selector = deployment["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = hash.into();
        set["spec"] = json!({"replicas": 0, "selector": selector, "template": template});
        return make(api, set);
    };
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    let surge = count_of(&rolling["maxSurge"], wanted, true, "25%");
    let missing = count_of(&rolling["maxUnavailable"], wanted, false, "25%");
    let replicas = |set: &Value| set["spec"]["replicas"].as_u64().unwrap_or(0);
    let available = |set: &Value| set["status"]["availableReplicas"].as_u64().unwrap_or(0);
    let of_old: u64 = old.iter().map(replicas).sum();
    let may = (wanted + surge).saturating_sub(of_old).min(wanted);
    if replicas(new) != may && (replicas(new) < may || replicas(new) > wanted) {
        scale(api, new, may);
    }
    let all: u64 = old.iter().chain([new]).map(available).sum();
    let mut spare = all.saturating_sub(wanted.saturating_sub(missing));
    for set in &old {
        // Those that never became available are no loss.
        let dead = replicas(set).saturating_sub(available(set));
        let down = replicas(set).min(dead + spare);
        spare = spare.saturating_sub(down - dead.min(down));
        if down > 0 {
            scale(api, set, replicas(set) - down);
        }
    }
    tell(api, deployment, new, &old, missing);
}

/// Writes the status.
fn tell(api: &StandIn, deployment: &Value, new: &Value, old: &[Value], missing: u64) {
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let of_old: u64 = old
        .iter()
        .map(|set| set["spec"]["replicas"].as_u64().unwrap_or(0))
        .sum();
    let of = |set: &Value, field: &str| set["status"][field].as_u64().unwrap_or(0);
    let sum = |field: &str| -> u64 { old.iter().chain([new]).map(|set| of(set, field)).sum() };
    let enough = sum("availableReplicas") + missing >= wanted;
    let done = of(new, "availableReplicas") == wanted && of_old == 0;
    let condition = |kind: &str, is: bool, reason: &str| json!({"type": kind, "status": if is { "True" } else { "False" }, "reason": reason, "message": ""});
    let mut conditions = vec![
        condition(
            "Available",
            enough,
            if enough {
                "MinimumReplicasAvailable"
            } else {
                "MinimumReplicasUnavailable"
            },
        ),
        condition(
            "Progressing",
            true,
            if done {
                "NewReplicaSetAvailable"
            } else {
                "ReplicaSetUpdated"
            },
        ),
    ];
    for one in &mut conditions {
        let before = deployment["status"]["conditions"].as_array();
        let same = before.and_then(|all| {
            all.iter()
                .find(|was| was["type"] == one["type"] && was["status"] == one["status"])
        });
        one["lastTransitionTime"] =
            same.map_or_else(|| now().into(), |was| was["lastTransitionTime"].clone());
        one["lastUpdateTime"] = one["lastTransitionTime"].clone();
    }
    let status = json!({
        "observedGeneration": deployment["metadata"]["generation"], "replicas": sum("replicas"),
        "updatedReplicas": of(new, "replicas"), "readyReplicas": sum("readyReplicas"),
        "availableReplicas": sum("availableReplicas"),
        "unavailableReplicas": wanted.saturating_sub(sum("availableReplicas")), "conditions": conditions,
    });
    set_status(api, deployment, &status);
}

fn scale(api: &StandIn, set: &Value, replicas: u64) {
    let of = &set["metadata"];
    api.change(
        ("replicasets", text(&of["namespace"]), text(&of["name"])),
        |set| {
            set["spec"]["replicas"] = replicas.into();
            let generation = set["metadata"]["generation"].as_u64().unwrap_or(0);
            set["metadata"]["generation"] = (generation + 1).into();
        },
    );
}

fn fill(api: &StandIn, set: &Value) {
    let wanted = set["spec"]["replicas"].as_u64().unwrap_or(0) as usize;
    let pods = owned(api, "pods", set);
    let mut alive: Vec<_> = pods
        .iter()
        .filter(|pod| !is_leaving(pod) && !has_ended(pod))
        .collect();
    for _ in alive.len()..wanted {
        let name = format!("{}-{}", text(&set["metadata"]["name"]), suffix());
        make(api, pod_of(set, &set["spec"]["template"], name, &[]));
    }
    let ready = alive.iter().filter(|pod| is_ready(pod)).count();
    // Those that are not ready go first, then the youngest.
    alive.sort_by_key(|pod| is_ready(pod));
    for pod in alive.iter().take(alive.len().saturating_sub(wanted)) {
        end_pod(api, pod);
    }
    let status = json!({
        "observedGeneration": set["metadata"]["generation"], "replicas": alive.len().min(wanted.max(alive.len())),
        "fullyLabeledReplicas": alive.len(), "readyReplicas": ready, "availableReplicas": ready,
    });
    set_status(api, set, &status);
}
