//! Why something is not as it should be, for a person who has only what the suite printed: pods that are not ready, what they wait
//! for and what they wrote last, what agents warned of, and what the cluster's events warn of. It never fails.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Pod};
use kube::{
    Api,
    api::{ListParams, LogParams},
};

use crate::{
    apps::{INSIDE, OUTSIDE, World, is_ready, phase},
    mesh::NAMESPACE,
};

/// The most pods of a namespace that are told of, lines of each log, and events.
const PODS: usize = 6;
const LINES: i64 = 15;
const EVENTS: usize = 12;
/// How much of a log warnings are looked for in.
const LOOKED_AT: i64 = 2_000;

/// Prints it.
pub(crate) async fn tell(world: &World<'_>) {
    for namespace in [NAMESPACE, INSIDE, OUTSIDE] {
        let pods = world.pods(namespace);
        let Ok(found) = pods.list(&ListParams::default()).await else {
            println!("-- {namespace}: its pods cannot be listed");
            continue;
        };
        let (well, ill): (Vec<_>, Vec<_>) = found.items.iter().partition(|pod| is_well(pod));
        for pod in ill.iter().take(PODS) {
            println!("-- not well: {namespace}/{}", described(pod));
            for container in containers(pod) {
                for previous in [true, false] {
                    if !previous || container.restart_count > 0 {
                        log(&pods, pod, container, previous).await;
                    }
                }
            }
        }
        if ill.len() > PODS {
            println!("-- and {} pods more of {namespace}", ill.len() - PODS);
        }
        if namespace == NAMESPACE {
            for pod in well {
                warnings(&pods, pod).await;
            }
        }
        events(world, namespace).await;
    }
}

fn is_well(pod: &Pod) -> bool {
    is_ready(pod) || phase(pod) == "Succeeded"
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_ref());
    let then = status.and_then(|status| status.container_statuses.as_ref());
    first.into_iter().chain(then).flatten()
}

/// A pod's name and node, where it stands, and why that is so.
fn described(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let mut said = format!("{name} on {}: {}", node.unwrap_or("no node"), phase(pod));
    if pod.metadata.deletion_timestamp.is_some() {
        said += ", on its way out";
    }
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    for one in conditions.into_iter().flatten() {
        let message = one.message.as_deref().unwrap_or_default();
        if one.status == "False" && !message.is_empty() {
            let _ = write!(said, "; {}: {message}", one.type_);
        }
    }
    for one in containers(pod) {
        let now = one.state.as_ref().map(standing).unwrap_or_default();
        let _ = write!(said, "; container {} {now}", one.name);
        if let Some(before) = one.last_state.as_ref().map(standing).filter(|it| !it.is_empty()) {
            let _ = write!(
                said,
                " (before: {before}, started again {} times)",
                one.restart_count
            );
        }
    }
    said
}

fn standing(state: &ContainerState) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        format!("waits: {} {}", text(&waiting.reason), text(&waiting.message))
    } else if let Some(ended) = &state.terminated {
        format!(
            "has ended with {}: {} {}",
            ended.exit_code,
            text(&ended.reason),
            text(&ended.message)
        )
    } else if state.running.is_some() {
        "runs".to_owned()
    } else {
        String::new()
    }
}

/// The last lines of a container, or of the one before it.
async fn log(pods: &Api<Pod>, pod: &Pod, container: &ContainerStatus, previous: bool) {
    let params = LogParams {
        container: Some(container.name.clone()),
        previous,
        tail_lines: Some(LINES),
        ..LogParams::default()
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    // One that has not begun has no log.
    let Ok(log) = pods.logs(name, &params).await else {
        return;
    };
    let which = if previous { " (the one before)" } else { "" };
    for line in log.lines() {
        println!("     {}{which} | {line}", container.name);
    }
}

/// What a pod of weft's that is ready has warned of.
async fn warnings(pods: &Api<Pod>, pod: &Pod) {
    let first = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    let params = LogParams {
        container: first.map(|container| container.name.clone()),
        tail_lines: Some(LOOKED_AT),
        ..LogParams::default()
    };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let log = pods.logs(name, &params).await.unwrap_or_default();
    let warned: Vec<&str> = log.lines().filter(|line| warns(line)).collect();
    if !warned.is_empty() {
        println!("-- ready, and has warned: {}", described(pod));
    }
    for line in warned.iter().rev().take(LINES as usize).rev() {
        println!("     | {line}");
    }
}

/// Of a log in JSON; connections that were refused are no warnings.
fn warns(line: &str) -> bool {
    let level = ["WARN", "ERROR"]
        .iter()
        .any(|it| line.contains(&format!("\"level\":\"{it}\"")));
    level && !line.contains("\"target\":\"access\"")
}

async fn events(world: &World<'_>, namespace: &str) {
    let events = Api::<Event>::namespaced(world.client(), namespace);
    let Ok(mut found) = events.list(&ListParams::default()).await else {
        return;
    };
    found
        .items
        .retain(|event| event.type_.as_deref() == Some("Warning"));
    let when = |event: &Event| {
        event
            .last_timestamp
            .clone()
            .or(event.first_timestamp.clone())
            .map(|at| at.0)
    };
    found.items.sort_by_key(|event| std::cmp::Reverse(when(event)));
    for event in found.items.iter().take(EVENTS) {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        println!(
            "-- event {} of {namespace}: {} {}: {}",
            text(&event.reason),
            text(&event.involved_object.kind),
            text(&event.involved_object.name),
            text(&event.message)
        );
    }
}

#[test]
fn a_pod_that_does_not_start_says_why() {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "weft-agent-x"}, "spec": {"nodeName": "a", "containers": []},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "message": "not ready: [agent]"}],
            "containerStatuses": [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]},
    }))
    .expect("a pod");
    assert!(!is_well(&pod));
    assert_eq!(
        described(&pod),
        "weft-agent-x on a: Running; Ready: not ready: [agent]; container agent waits: CrashLoopBackOff back-off 40s (before: \
         has ended with 1: Error , started again 3 times)"
    );
}

#[test]
fn a_pod_without_a_node_says_why() {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "x"},
        "status": {"phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]},
    }))
    .expect("a pod");
    assert_eq!(
        described(&pod),
        "x on no node: Pending; PodScheduled: 0/2 nodes are available"
    );
}

#[test]
fn refused_connections_are_no_warnings() {
    assert!(warns(r#"{"level":"WARN","target":"weft::node"}"#));
    assert!(!warns(r#"{"level":"ERROR","target":"access"}"#));
    assert!(!warns(r#"{"level":"INFO","target":"weft::node"}"#));
}
