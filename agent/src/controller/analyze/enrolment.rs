//! Pods that are not in the mesh although somebody may think so.

use super::view::{Labels, View, tell};
use crate::{
    cluster::{
        enrolment::{AMBIENT, Candidate, DATAPLANE_MODE, NONE, verdict},
        objects::{Kind, ObjectMeta, Pod},
    },
    controller::compile::{Diagnostic, ObjectRef, Severity},
};

/// Labels by which namespaces ask for sidecars.
const INJECTION: [&str; 2] = ["istio-injection", "istio.io/rev"];
/// The label, and the annotation of before, by which pods do.
const INJECT: &str = "sidecar.istio.io/inject";

pub(super) fn check(view: &View<'_>, found: &mut Vec<Diagnostic>) {
    for namespace in view.namespaces() {
        let object = ObjectRef::new(Kind::Namespace, &namespace.metadata);
        mode(&namespace.metadata, &object, found);
        if is_ambient(&namespace.metadata) {
            injected_namespace(&namespace.metadata, &object, found);
        }
    }
    let none = Labels::new();
    for pod in view.pods() {
        let object = ObjectRef::new(Kind::Pod, &pod.metadata);
        mode(&pod.metadata, &object, found);
        let namespace = view
            .namespaces()
            .find(|it| it.metadata.name == pod.metadata.namespace);
        let candidate = Candidate {
            labels: pod.metadata.labels.as_ref().unwrap_or(&none),
            annotations: pod.metadata.annotations.as_ref().unwrap_or(&none),
            namespace: namespace.and_then(|it| it.metadata.labels.as_ref()),
            host_network: pod.spec.host_network,
            ended: pod.is_over(),
        };
        if verdict(candidate).is_enrolled() {
            injected_pod(pod, &object, found);
        }
    }
}

fn is_ambient(metadata: &ObjectMeta) -> bool {
    label(metadata, DATAPLANE_MODE) == Some(AMBIENT)
}

fn label<'m>(metadata: &'m ObjectMeta, key: &str) -> Option<&'m str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn mode(metadata: &ObjectMeta, object: &ObjectRef, found: &mut Vec<Diagnostic>) {
    let Some(mode) = label(metadata, DATAPLANE_MODE).filter(|it| *it != AMBIENT && *it != NONE) else {
        return;
    };
    let message = format!(
        "label {DATAPLANE_MODE}: {mode:?} means nothing to weft, as if the label were not there: write {AMBIENT} or {NONE}"
    );
    tell(found, object, Severity::Warning, "UnknownMode", message);
}

fn injected_namespace(metadata: &ObjectMeta, object: &ObjectRef, found: &mut Vec<Diagnostic>) {
    let asks = |key: &&&str| label(metadata, key).is_some_and(|value| value != "disabled");
    if let Some(key) = INJECTION.iter().find(asks) {
        let message = format!(
            "label {key}: asks for sidecars beside {DATAPLANE_MODE}={AMBIENT}, and a pod that gets one is not captured: \
             remove it, and start the pods anew"
        );
        tell(found, object, Severity::Warning, "SidecarInjection", message);
    }
}

fn injected_pod(pod: &Pod, object: &ObjectRef, found: &mut Vec<Diagnostic>) {
    let metadata = &pod.metadata;
    let annotation = metadata.annotations.as_ref().and_then(|it| it.get(INJECT));
    let (what, value) = match (label(metadata, INJECT), annotation) {
        (Some(value), _) => ("label", value),
        (None, Some(value)) => ("annotation", value.as_str()),
        (None, None) => return,
    };
    if value == "true" {
        let message = format!(
            "{what} {INJECT}: asks for a sidecar, and with one the pod is not captured, although it is labelled into the \
             mesh: remove it"
        );
        tell(found, object, Severity::Warning, "SidecarInjection", message);
    }
}
