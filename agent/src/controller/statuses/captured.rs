//! PURE. Expected against captured: a condition of each namespace that has pods to be captured, so that a pod that carries the label
//! and is not in the mesh is an error that somebody sees. The controller says it and not the agents, because an agent that
//! does not run cannot; and on the namespace, because writing pods' or nodes' statuses is a right that reaches too far.

use super::super::{
    compile::{KeptPod, ObjectRef, Resources, Settings},
    conditions::{Condition, Status},
};
use crate::cluster::{
    enrolment::{self, Candidate, REDIRECTION},
    labels,
    objects::{Kind, Namespace},
};

/// Pods that are named.
const MOST_NAMED: usize = 5;

/// The conditions of namespaces, by object.
pub(super) fn captured<'a>(
    resources: &'a Resources,
    settings: &'a Settings,
) -> impl Iterator<Item = (ObjectRef, Status)> + use<'a> {
    let all = resources.namespaces();
    all.filter_map(|(namespace, pods)| {
        // A namespace's condition has no `observedGeneration`.
        let object = ObjectRef {
            generation: 0,
            ..ObjectRef::new(Kind::Namespace, &namespace.metadata)
        };
        let none = *object.name == *settings.own_namespace;
        let pods = pods.filter(|pod| !none && is_expected(namespace, pod));
        let condition = condition(pods);
        let is_there = condition.is_some() || namespace.says_captured();
        is_there.then(|| (object, Status::Conditions(condition.into_iter().collect())))
    })
}

/// Whether a pod runs and is to be captured.
fn is_expected(namespace: &Namespace, pod: &KeptPod) -> bool {
    let verdict = enrolment::verdict(Candidate {
        labels: &pod.labels,
        annotations: &pod.annotations,
        namespace: namespace.metadata.labels.as_ref(),
        host_network: pod.host_network,
        ended: pod.is_over,
    });
    verdict.is_enrolled() && pod.is_running && !pod.is_leaving
}

/// None without pods.
fn condition<'a>(pods: impl Iterator<Item = &'a KeptPod>) -> Option<Condition> {
    let (mut all, mut missing, mut named) = (0_usize, 0_usize, Vec::new());
    for pod in pods {
        all += 1;
        let state = pod.annotations.get(REDIRECTION);
        let why = match state.map(String::as_str) {
            Some("enabled") => continue,
            Some(_) => "its agent is at it, and `weft status` there says what it waits for",
            None => "no agent has seen it",
        };
        missing += 1;
        if named.len() < MOST_NAMED {
            let (name, node) = (&pod.name, pod.node.as_deref().unwrap_or_default());
            named.push(format!("{name} on node {node} ({why})"));
        }
    }
    let type_ = labels::PODS_CAPTURED;
    match (all, missing) {
        (0, _) => None,
        // Without the number, which changes all the time.
        (_, 0) => Some(Condition::new(
            type_,
            true,
            "Captured",
            "every pod that is to be in the mesh is",
        )),
        _ => {
            let more = missing - named.len();
            if more > 0 {
                named.push(format!("and {more} more"));
            }
            let message = format!("{missing} of {all} pods are not captured: {}", named.join(", "));
            Some(Condition::new(type_, false, "NotCaptured", message))
        }
    }
}
