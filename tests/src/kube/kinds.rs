//! Which resources are served: the built-in ones from a table, custom ones from their definitions.

use std::sync::Arc;

use serde_json::Value;

/// One version of a custom resource.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) schema: Option<Value>,
    pub(super) subresources: Vec<String>,
}

/// A resource, all of its versions.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) group: String,
    /// Served ones, the preferred one first; of a built-in resource exactly one, without a schema.
    pub(super) versions: Vec<Version>,
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) kind: String,
    pub(super) list: String,
    pub(super) namespaced: bool,
    pub(super) short: Vec<String>,
    pub(super) categories: Vec<String>,
    pub(super) custom: bool,
    /// Where its objects are kept: both groups' Events are the same ones.
    pub(super) table: String,
}

impl Kind {
    /// As messages name the resource: `leases.coordination.k8s.io`.
    pub(super) fn qualified(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    pub(super) fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    pub(super) fn api_version(&self, version: &str) -> String {
        api_version(&self.group, version)
    }

    /// Of the version that is preferred.
    pub(super) fn preferred(&self) -> String {
        self.api_version(&self.versions[0].name)
    }

    /// Whether nothing of it is stored: reviews, bindings.
    pub(super) fn is_virtual(&self) -> bool {
        !self.custom && (self.plural.ends_with("reviews") || self.plural == "bindings")
    }

    /// Whether `metadata.generation` counts changes of what is wished for.
    pub(super) fn has_generation(&self) -> bool {
        const COUNTED: [&str; 14] = [
            "pods",
            "deployments",
            "daemonsets",
            "replicasets",
            "statefulsets",
            "jobs",
            "cronjobs",
            "poddisruptionbudgets",
            "endpointslices",
            "customresourcedefinitions",
            "mutatingwebhookconfigurations",
            "validatingwebhookconfigurations",
            "networkpolicies",
            "priorityclasses",
        ];
        self.custom || COUNTED.contains(&self.plural.as_str())
    }

    /// Whether `status` is written through its subresource alone.
    pub(super) fn has_status(&self, version: &str) -> bool {
        self.version(version)
            .is_some_and(|version| version.subresources.iter().any(|sub| sub == "status"))
    }

    pub(super) fn verbs(&self) -> Vec<&'static str> {
        match self.plural.as_str() {
            _ if self.is_virtual() => vec!["create"],
            "namespaces" => vec!["create", "delete", "get", "list", "patch", "update", "watch"],
            _ if self.custom => vec![
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch",
            ],
            _ => vec![
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        }
    }
}

pub(super) fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}

pub(super) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// What a subresource is called in discovery, the group and version of its kind where they differ, and its verbs.
pub(super) fn subresource(
    kind: &Kind,
    sub: &str,
) -> (String, Option<(&'static str, &'static str)>, Vec<&'static str>) {
    const PROXIED: &[&str] = &["create", "delete", "get", "patch", "update"];
    let own = kind.kind.as_str();
    let (name, foreign, verbs): (String, _, &[&str]) = match sub {
        "attach" => ("PodAttachOptions".into(), None, &["create", "get"]),
        "exec" => ("PodExecOptions".into(), None, &["create", "get"]),
        "portforward" => ("PodPortForwardOptions".into(), None, &["create", "get"]),
        "binding" => ("Binding".into(), None, &["create"]),
        "eviction" => ("Eviction".into(), Some(("policy", "v1")), &["create"]),
        "token" => (
            "TokenRequest".into(),
            Some(("authentication.k8s.io", "v1")),
            &["create"],
        ),
        "log" => (own.into(), None, &["get"]),
        "proxy" => (format!("{own}ProxyOptions"), None, PROXIED),
        "finalize" => (own.into(), None, &["update"]),
        "scale" => (
            "Scale".into(),
            Some(("autoscaling", "v1")),
            &["get", "patch", "update"],
        ),
        _ => (own.into(), None, &["get", "patch", "update"]),
    };
    (name, foreign, verbs.to_vec())
}

/// group, version, plural, kind, Namespaced or Cluster, short names, categories, subresources; `-` for none.
const BUILT_IN: &str = "
- v1 bindings Binding N - - -
- v1 configmaps ConfigMap N cm - -
- v1 endpoints Endpoints N ep - -
- v1 events Event N ev - -
- v1 limitranges LimitRange N limits - -
- v1 namespaces Namespace C ns - finalize,status
- v1 nodes Node C no - proxy,status
- v1 persistentvolumeclaims PersistentVolumeClaim N pvc - status
- v1 persistentvolumes PersistentVolume C pv - status
- v1 pods Pod N po all attach,binding,ephemeralcontainers,eviction,exec,log,portforward,proxy,resize,status
- v1 podtemplates PodTemplate N - - -
- v1 replicationcontrollers ReplicationController N rc all scale,status
- v1 resourcequotas ResourceQuota N quota - status
- v1 secrets Secret N - - -
- v1 serviceaccounts ServiceAccount N sa - token
- v1 services Service N svc all proxy,status
apps v1 controllerrevisions ControllerRevision N - - -
apps v1 daemonsets DaemonSet N ds all status
apps v1 deployments Deployment N deploy all scale,status
apps v1 replicasets ReplicaSet N rs all scale,status
apps v1 statefulsets StatefulSet N sts all scale,status
events.k8s.io v1 events Event N ev - -
authentication.k8s.io v1 selfsubjectreviews SelfSubjectReview C - - -
authentication.k8s.io v1 tokenreviews TokenReview C - - -
authorization.k8s.io v1 localsubjectaccessreviews LocalSubjectAccessReview N - - -
authorization.k8s.io v1 selfsubjectaccessreviews SelfSubjectAccessReview C - - -
authorization.k8s.io v1 selfsubjectrulesreviews SelfSubjectRulesReview C - - -
authorization.k8s.io v1 subjectaccessreviews SubjectAccessReview C - - -
autoscaling v2 horizontalpodautoscalers HorizontalPodAutoscaler N hpa all status
batch v1 cronjobs CronJob N cj all status
batch v1 jobs Job N - all status
networking.k8s.io v1 networkpolicies NetworkPolicy N netpol - -
networking.k8s.io v1 ingresses Ingress N ing - status
networking.k8s.io v1 ingressclasses IngressClass C - - -
policy v1 poddisruptionbudgets PodDisruptionBudget N pdb - status
rbac.authorization.k8s.io v1 clusterrolebindings ClusterRoleBinding C - - -
rbac.authorization.k8s.io v1 clusterroles ClusterRole C - - -
rbac.authorization.k8s.io v1 rolebindings RoleBinding N - - -
rbac.authorization.k8s.io v1 roles Role N - - -
storage.k8s.io v1 csidrivers CSIDriver C - - -
storage.k8s.io v1 storageclasses StorageClass C sc - -
admissionregistration.k8s.io v1 mutatingwebhookconfigurations MutatingWebhookConfiguration C - api-extensions -
admissionregistration.k8s.io v1 validatingadmissionpolicies ValidatingAdmissionPolicy C - api-extensions status
admissionregistration.k8s.io v1 validatingadmissionpolicybindings ValidatingAdmissionPolicyBinding C - api-extensions -
admissionregistration.k8s.io v1 validatingwebhookconfigurations ValidatingWebhookConfiguration C - api-extensions -
apiextensions.k8s.io v1 customresourcedefinitions CustomResourceDefinition C crd,crds api-extensions status
scheduling.k8s.io v1 priorityclasses PriorityClass C pc - -
coordination.k8s.io v1 leases Lease N - - -
node.k8s.io v1 runtimeclasses RuntimeClass C - - -
discovery.k8s.io v1 endpointslices EndpointSlice N - - -
";

/// Every resource that an API server serves by itself.
pub(super) fn built_in() -> Vec<Arc<Kind>> {
    BUILT_IN.lines().filter_map(built_in_kind).map(Arc::new).collect()
}

fn built_in_kind(line: &str) -> Option<Kind> {
    let columns: Vec<&str> = line.split(' ').collect();
    let &[
        group,
        version,
        plural,
        kind,
        scope,
        short,
        categories,
        subresources,
    ] = columns.as_slice()
    else {
        return None;
    };
    let names = |column: &str| -> Vec<String> {
        column
            .split(',')
            .filter(|name| *name != "-")
            .map(Into::into)
            .collect()
    };
    let group = if group == "-" { "" } else { group };
    let table = if plural == "events" {
        plural.to_owned()
    } else {
        qualified(plural, group)
    };
    Some(Kind {
        group: group.into(),
        versions: vec![Version {
            name: version.into(),
            schema: None,
            subresources: names(subresources),
        }],
        plural: plural.into(),
        singular: kind.to_lowercase(),
        kind: kind.into(),
        list: format!("{kind}List"),
        namespaced: scope == "N",
        short: names(short),
        categories: names(categories),
        custom: false,
        table,
    })
}

/// The resource that an established definition defines.
pub(super) fn custom(definition: &Value) -> Option<Kind> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let (group, plural) = (spec["group"].as_str()?, names["plural"].as_str()?);
    let kind = names["kind"].as_str()?;
    let listed = |value: &Value| -> Vec<String> {
        let all = value.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().filter_map(Value::as_str).map(Into::into).collect()
    };
    let mut versions: Vec<_> = spec["versions"]
        .as_array()?
        .iter()
        .filter_map(custom_version)
        .collect();
    versions.sort_by_key(|version| priority(&version.name));
    (!versions.is_empty()).then(|| Kind {
        group: group.into(),
        versions,
        plural: plural.into(),
        singular: names["singular"]
            .as_str()
            .map_or_else(|| kind.to_lowercase(), Into::into),
        kind: kind.into(),
        list: names["listKind"]
            .as_str()
            .map_or_else(|| format!("{kind}List"), Into::into),
        namespaced: spec["scope"] == "Namespaced",
        short: listed(&names["shortNames"]),
        categories: listed(&names["categories"]),
        custom: true,
        table: qualified(plural, group),
    })
}

fn custom_version(version: &Value) -> Option<Version> {
    if version["served"] != true {
        return None;
    }
    let subresources = version["subresources"].as_object();
    Some(Version {
        name: version["name"].as_str()?.into(),
        schema: version["schema"].get("openAPIV3Schema").cloned(),
        subresources: subresources
            .map(|all| all.keys().cloned().collect())
            .unwrap_or_default(),
    })
}

/// v2 before v1 before v1beta2 before v1alpha1.
fn priority(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>) {
    let number = |text: &str| std::cmp::Reverse(text.parse().unwrap_or(0));
    let rest = version.strip_prefix('v').unwrap_or(version);
    for (rank, stage) in [(1, "beta"), (2, "alpha")] {
        if let Some((major, minor)) = rest.split_once(stage) {
            return (rank, number(major), number(minor));
        }
    }
    (0, number(rest), number(""))
}
