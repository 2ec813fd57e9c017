//! Whether a pod belongs to the mesh: what its labels, its namespace's labels and its kind say. Pure.
//!
//! The one place that answers this. The controller asks it when it compiles a pod into a workload, the agent when it looks
//! which pods of its node are to be captured: what the two of them say of a pod cannot differ.

use std::{collections::BTreeMap, fmt};

use super::labels;

/// The label of namespaces and pods that says whether pods are in the mesh.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The value of [`DATAPLANE_MODE`] that puts pods in the mesh.
pub const AMBIENT: &str = "ambient";
/// The value of [`DATAPLANE_MODE`] that keeps them out.
pub const NONE: &str = "none";
/// The annotation of pods that have a sidecar, whatever put it there.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// The annotation by which the agent says what it has done with a pod: `enabled` or `pending`.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The annotation of pods whose DNS queries are, or are not, captured: `true` or `false`.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// What is asked about a pod.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The pod's labels.
    pub labels: &'a Labels,
    /// The pod's annotations.
    pub annotations: &'a Labels,
    /// The labels of its namespace; none where the namespace is not known.
    pub namespace: Option<&'a Labels>,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Whether it has ended for good (phase `Succeeded` or `Failed`).
    pub ended: bool,
}

/// Whether a pod is in the mesh, and why. In this order: what a pod cannot be, what it says itself, what its namespace says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// By its own label.
    ByPod,
    /// By the label of its namespace.
    ByNamespace,
    /// No: see [`Outside`].
    Outside(Outside),
}

/// Why a pod is not in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It has no network of its own.
    HostNetwork,
    /// A sidecar does the work already.
    Sidecar,
    /// It has ended, and its address may be another's.
    Ended,
    /// It is a waypoint's pod, which speaks HBONE itself.
    Waypoint,
    /// Its own label keeps it out.
    OptedOut,
    /// Neither it nor its namespace has the label.
    Unlabelled,
}

impl Verdict {
    /// Whether the pod is in the mesh.
    pub fn is_enrolled(self) -> bool {
        !matches!(self, Self::Outside(_))
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "it uses its node's network (hostNetwork)",
            Self::Sidecar => "it has a sidecar (annotation sidecar.istio.io/status)",
            Self::Ended => "it has ended",
            Self::Waypoint => "it is a waypoint's, and speaks HBONE itself",
            Self::OptedOut => "its label istio.io/dataplane-mode keeps it out",
            Self::Unlabelled => "neither it nor its namespace has the label istio.io/dataplane-mode=ambient",
        })
    }
}

/// Whether a pod is in the mesh.
pub fn verdict(pod: Candidate<'_>) -> Verdict {
    let mode = |labels: &'_ Labels| labels.get(DATAPLANE_MODE).map(String::as_str).map(Mode::of);
    if pod.host_network {
        return Verdict::Outside(Outside::HostNetwork);
    }
    if pod.annotations.contains_key(SIDECAR_STATUS) {
        return Verdict::Outside(Outside::Sidecar);
    }
    if pod.ended {
        return Verdict::Outside(Outside::Ended);
    }
    if is_waypoint(pod.labels) {
        return Verdict::Outside(Outside::Waypoint);
    }
    match (mode(pod.labels), pod.namespace.and_then(mode)) {
        (Some(Mode::None), _) => Verdict::Outside(Outside::OptedOut),
        (Some(Mode::Ambient), _) => Verdict::ByPod,
        (_, Some(Mode::Ambient)) => Verdict::ByNamespace,
        _ => Verdict::Outside(Outside::Unlabelled),
    }
}

/// Whether a pod was made for a Gateway that is a waypoint.
fn is_waypoint(pod: &Labels) -> bool {
    let class = pod.get(labels::GATEWAY_CLASS_NAME);
    pod.contains_key(labels::GATEWAY_NAME)
        && class.is_some_and(|class| labels::WAYPOINT_CLASSES.contains(&class.as_str()))
}

/// What a pod says of its DNS queries; nothing leaves it to the agent's setting.
pub fn dns_capture(annotations: &Labels) -> Option<bool> {
    match annotations.get(DNS_CAPTURE)?.trim() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// What the label says. Any other value is as good as no label: it may be another data plane's.
enum Mode {
    Ambient,
    None,
    Other,
}

impl Mode {
    fn of(value: &str) -> Self {
        match value {
            AMBIENT => Self::Ambient,
            NONE => Self::None,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(mode: &str) -> Labels {
        match mode {
            "" => Labels::new(),
            mode => Labels::from([(DATAPLANE_MODE.to_owned(), mode.to_owned())]),
        }
    }

    #[test]
    fn a_pods_label_goes_before_its_namespaces() {
        use Outside::{OptedOut, Unlabelled};
        for (namespace, pod, expect) in [
            ("", "", Verdict::Outside(Unlabelled)),
            ("ambient", "", Verdict::ByNamespace),
            ("ambient", "none", Verdict::Outside(OptedOut)),
            ("ambient", "ambient", Verdict::ByPod),
            ("ambient", "something", Verdict::ByNamespace),
            ("", "ambient", Verdict::ByPod),
            ("none", "ambient", Verdict::ByPod),
            ("none", "", Verdict::Outside(Unlabelled)),
            ("Ambient", "", Verdict::Outside(Unlabelled)),
        ] {
            let (namespace, pod) = (mode(namespace), mode(pod));
            let candidate = Candidate {
                labels: &pod,
                annotations: &Labels::new(),
                namespace: Some(&namespace),
                host_network: false,
                ended: false,
            };
            assert_eq!(verdict(candidate), expect, "{namespace:?} {pod:?}");
            assert_eq!(
                verdict(candidate).is_enrolled(),
                !matches!(expect, Verdict::Outside(_))
            );
        }
    }

    #[test]
    fn what_a_pod_cannot_be_no_label_makes_it() {
        let (ambient, nothing) = (mode(AMBIENT), Labels::new());
        let made_for = [
            (labels::GATEWAY_NAME.to_owned(), "waypoint".to_owned()),
            (labels::GATEWAY_CLASS_NAME.to_owned(), "weft-waypoint".to_owned()),
        ];
        let waypoint: Labels = ambient.clone().into_iter().chain(made_for).collect();
        let sidecar = Labels::from([(SIDECAR_STATUS.to_owned(), "{}".to_owned())]);
        let pod = Candidate {
            labels: &ambient,
            annotations: &nothing,
            namespace: Some(&ambient),
            host_network: false,
            ended: false,
        };
        for (pod, outside) in [
            (
                Candidate {
                    host_network: true,
                    ..pod
                },
                Outside::HostNetwork,
            ),
            (
                Candidate {
                    annotations: &sidecar,
                    ..pod
                },
                Outside::Sidecar,
            ),
            (Candidate { ended: true, ..pod }, Outside::Ended),
            (
                Candidate {
                    labels: &waypoint,
                    ..pod
                },
                Outside::Waypoint,
            ),
        ] {
            assert_eq!(verdict(pod), Verdict::Outside(outside));
            assert!(!outside.to_string().is_empty());
        }
        // Its own label is enough where the namespace is not known yet.
        assert_eq!(
            verdict(Candidate {
                namespace: None,
                ..pod
            }),
            Verdict::ByPod
        );
    }

    #[test]
    fn dns_capture_is_true_or_false_or_the_agents_setting() {
        for (value, expect) in [("true", Some(true)), (" false ", Some(false)), ("yes", None)] {
            let annotations = Labels::from([(DNS_CAPTURE.to_owned(), value.to_owned())]);
            assert_eq!(dns_capture(&annotations), expect, "{value}");
        }
        assert_eq!(dns_capture(&Labels::new()), None);
    }
}
