//! PURE. What a kubelet says of a pod.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{
    container::{Container, Phase},
    messages::ContainerStatus,
    spec::text,
    worker::{Restart, Worker},
};

/// The time as the API has it.
pub(super) fn now() -> String {
    stamp(SystemTime::now())
}

fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

fn nanoseconds(at: i64) -> String {
    stamp(SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(at).unwrap_or(0)))
}

/// Sets a condition; its time changes when it does.
pub(super) fn condition(pod: &mut Value, kind: &str, is: bool, now: &str) {
    let status = if is { "True" } else { "False" };
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(all) = pod["status"]["conditions"].as_array_mut() else {
        return;
    };
    let new = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now});
    match all.iter_mut().find(|one| one["type"] == kind) {
        Some(one) if one["status"] == status => {}
        Some(one) => *one = new,
        None => all.push(new),
    }
}

/// Where the pod stands.
pub(super) fn phase(worker: &Worker) -> &'static str {
    let again = match text(&worker.pod["spec"]["restartPolicy"]) {
        "Never" => Restart::Never,
        "OnFailure" => Restart::OnFailure,
        _ => Restart::Always,
    };
    let over = |one: &Container| one.phase != Phase::Running;
    if worker.failed.is_some() && worker.containers.iter().all(over) {
        let good = worker.containers.iter().all(Container::succeeded);
        return if good && worker.failed == Some("") {
            "Succeeded"
        } else {
            "Failed"
        };
    }
    if again == Restart::Never
        && worker
            .initial
            .iter()
            .any(|one| one.is_over(again) && !one.succeeded())
    {
        return "Failed";
    }
    if worker.containers.iter().all(|one| one.is_over(again)) {
        let good = worker.containers.iter().all(Container::succeeded);
        return if good { "Succeeded" } else { "Failed" };
    }
    let begun = |one: &Container| one.phase != Phase::Waiting || one.attempt > 0 && one.before.is_some();
    if worker.containers.iter().all(begun) {
        "Running"
    } else {
        "Pending"
    }
}

/// Writes the status of a pod.
pub(super) fn write(worker: &Worker, pod: &mut Value) {
    let now = now();
    let phase = phase(worker);
    let over = phase == "Succeeded" || phase == "Failed";
    let initialized = worker.initial.iter().all(Container::succeeded);
    let ready = !over && worker.containers.iter().all(Container::is_ready);
    pod["status"]["phase"] = phase.into();
    if let Some(why) = worker.failed.filter(|why| !why.is_empty()) {
        pod["status"]["reason"] = why.into();
    }
    if !worker.address.is_empty() {
        pod["status"]["podIP"] = worker.address.as_str().into();
        pod["status"]["podIPs"] = json!([{"ip": worker.address}]);
    }
    condition(pod, "PodReadyToStartContainers", !over, &now);
    condition(pod, "Initialized", initialized, &now);
    condition(pod, "Ready", ready, &now);
    condition(pod, "ContainersReady", ready, &now);
    let shown = |all: &[Container]| -> Value { all.iter().map(container).collect() };
    pod["status"]["containerStatuses"] = shown(&worker.containers);
    for (field, all) in [
        ("initContainerStatuses", &worker.initial),
        ("ephemeralContainerStatuses", &worker.ephemeral),
    ] {
        if !all.is_empty() {
            pod["status"][field] = shown(all);
        }
    }
}

fn container(one: &Container) -> Value {
    let state = match one.phase {
        Phase::Running => json!({"running": {"startedAt": nanoseconds(one.seen.started_at)}}),
        Phase::Ended if one.waits.is_empty() => terminated(&one.seen),
        _ => {
            let (reason, message) = one.waits.split_once(": ").unwrap_or((&one.waits, ""));
            json!({"waiting": {"reason": reason, "message": message}})
        }
    };
    let mut shown = json!({
        "name": one.spec["name"], "image": one.spec["image"], "imageID": one.seen.image_ref,
        "ready": one.is_ready(), "started": one.is_started(), "restartCount": one.attempt,
        "state": state, "lastState": one.before.as_ref().map(terminated).unwrap_or(json!({})),
    });
    if !one.id.is_empty() {
        shown["containerID"] = format!("containerd://{}", one.id).into();
    }
    shown
}

fn terminated(seen: &ContainerStatus) -> Value {
    json!({"terminated": {
        "exitCode": seen.exit_code, "reason": seen.reason, "message": seen.message,
        "startedAt": nanoseconds(seen.started_at), "finishedAt": nanoseconds(seen.finished_at),
        "containerID": format!("containerd://{}", seen.id),
    }})
}
