//! Deployments and DaemonSets that are ready, and Jobs that are done, as soon as they are written, without pods: for
//! clients that wait for them.

use serde_json::json;

use super::{kinds::Kind, store::Change, store::State};

/// Writes the status of a workload that was just written.
pub(super) fn ready(state: &mut State, kind: &Kind, change: &Change, now: &str) {
    let Some(mut value) = change.after.as_ref().map(|after| after.value()) else {
        return;
    };
    let generation = value["metadata"]["generation"].clone();
    if value["status"]["observedGeneration"] == generation {
        return;
    }
    let replicas = value["spec"]["replicas"].as_u64().unwrap_or(1);
    let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now, "lastUpdateTime": now});
    let mut status = match kind.plural.as_str() {
        "daemonsets" => {
            let nodes = state.objects("nodes").count();
            json!({"currentNumberScheduled": nodes, "desiredNumberScheduled": nodes, "numberAvailable": nodes,
                "numberMisscheduled": 0, "numberReady": nodes, "updatedNumberScheduled": nodes})
        }
        "deployments" => {
            let conditions = [
                condition("Available", "MinimumReplicasAvailable"),
                condition("Progressing", "NewReplicaSetAvailable"),
            ];
            json!({"replicas": replicas, "readyReplicas": replicas, "availableReplicas": replicas,
                "updatedReplicas": replicas, "conditions": conditions})
        }
        "jobs" => {
            let conditions =
                ["SuccessCriteriaMet", "Complete"].map(|kind| condition(kind, "CompletionsReached"));
            json!({"succeeded": 1, "startTime": now, "completionTime": now, "conditions": conditions})
        }
        _ => return,
    };
    status["observedGeneration"] = generation;
    value["status"] = status;
    state.commit(kind, &change.key, Some(value));
}
