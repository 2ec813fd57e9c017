//! Jobs: as many pods at a time as they say, until as many have succeeded, or too many have failed.

use serde_json::{Value, json};

use super::{has_ended, is_leaving, make, owned, pod_of, set_status, suffix};
use crate::{
    cluster::{spec::text, status::now},
    kube::StandIn,
};

pub(super) fn turn(api: &StandIn) {
    for job in api.list("jobs", "") {
        if !is_leaving(&job) && job["status"]["conditions"].is_null() {
            reconcile(api, &job);
        }
    }
}

fn reconcile(api: &StandIn, job: &Value) {
    let number = |field: &str, usual: u64| job["spec"][field].as_u64().unwrap_or(usual);
    let (completions, parallel) = (number("completions", 1), number("parallelism", 1));
    let pods = owned(api, "pods", job);
    let of = |phase: &str| pods.iter().filter(|pod| pod["status"]["phase"] == phase).count() as u64;
    let (succeeded, failed) = (of("Succeeded"), of("Failed"));
    let active = pods.iter().filter(|pod| !has_ended(pod)).count() as u64;
    let now = now();
    let mut status = json!({"active": active, "succeeded": succeeded, "failed": failed});
    if job["status"]["startTime"].is_null() {
        status["startTime"] = now.as_str().into();
    }
    let condition = |kind: &str, reason: &str| json!({"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": now, "lastProbeTime": now});
    if succeeded >= completions {
        status["completionTime"] = now.as_str().into();
        status["conditions"] = ["SuccessCriteriaMet", "Complete"]
            .map(|kind| condition(kind, "CompletionsReached"))
            .to_vec()
            .into();
    } else if failed > number("backoffLimit", 6) {
        status["conditions"] = ["FailureTarget", "Failed"]
            .map(|kind| condition(kind, "BackoffLimitExceeded"))
            .to_vec()
            .into();
    } else {
        let name = text(&job["metadata"]["name"]);
        let uid = text(&job["metadata"]["uid"]);
        let labels = [
            ("batch.kubernetes.io/job-name", name),
            ("job-name", name),
            ("batch.kubernetes.io/controller-uid", uid),
        ];
        let wanted = parallel.min(completions - succeeded);
        for _ in active..wanted {
            let pod = format!("{name}-{}", suffix());
            make(api, pod_of(job, &job["spec"]["template"], pod, &labels));
        }
    }
    set_status(api, job, &status);
}
