//! The kinds of objects that a waypoint is made of, and where the API has them.

use kube::core::ApiResource;

/// One of the objects of a waypoint; each has the Gateway's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Part {
    ServiceAccount,
    Service,
    Deployment,
    DisruptionBudget,
    Autoscaler,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) part: Part,
}

/// A kind, as the API names it.
pub(super) struct PartKind {
    pub(super) group: &'static str,
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
}

impl Part {
    pub(super) const ALL: [Self; 5] = [
        Self::ServiceAccount,
        Self::Service,
        Self::Deployment,
        Self::DisruptionBudget,
        Self::Autoscaler,
    ];

    pub(super) fn kind(self) -> PartKind {
        let (group, api_version, kind, plural) = match self {
            Self::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
            Self::Service => ("", "v1", "Service", "services"),
            Self::Deployment => ("apps", "apps/v1", "Deployment", "deployments"),
            Self::DisruptionBudget => (
                "policy",
                "policy/v1",
                "PodDisruptionBudget",
                "poddisruptionbudgets",
            ),
            Self::Autoscaler => (
                "autoscaling",
                "autoscaling/v2",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
            ),
        };
        PartKind {
            group,
            api_version,
            kind,
            plural,
        }
    }

    pub(super) fn api_resource(self) -> ApiResource {
        let kind = self.kind();
        let version = kind.api_version.rsplit('/').next().unwrap_or(kind.api_version);
        ApiResource {
            group: kind.group.into(),
            version: version.into(),
            api_version: kind.api_version.into(),
            kind: kind.kind.into(),
            plural: kind.plural.into(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.part.kind().kind, self.namespace, self.name)
    }
}
