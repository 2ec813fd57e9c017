//! The objects and what they mean, found by what checks ask for.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    cluster::objects::{Custom, Kind, Namespace, Object, Pod},
    controller::compile::{Diagnostic, ObjectRef, Settings, Severity},
    mesh::{MeshParts, Service, ServiceKey, Workload},
};

/// Labels, or a selector for labels.
pub(super) type Labels = BTreeMap<String, String>;

/// It.
pub(super) struct View<'a> {
    pub(super) settings: &'a Settings,
    objects: BTreeMap<Kind, Vec<&'a Object>>,
    services: BTreeMap<&'a ServiceKey, &'a Service>,
    by_hostname: BTreeMap<&'a str, &'a Service>,
    members: BTreeMap<&'a str, Vec<Member<'a>>>,
}

/// A workload with what selectors look at.
pub(super) struct Member<'a> {
    pub(super) labels: Labels,
    pub(super) workload: &'a Workload,
}

impl<'a> View<'a> {
    pub(super) fn new(objects: &'a [Object], parts: &'a MeshParts, settings: &'a Settings) -> Self {
        let mut by_kind: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for object in objects {
            by_kind.entry(object.kind()).or_default().push(object);
        }
        Self {
            settings,
            services: parts.services.iter().map(|it| (&it.key, it)).collect(),
            by_hostname: parts.services.iter().map(|it| (&*it.key.hostname, it)).collect(),
            members: members(&by_kind, parts),
            objects: by_kind,
        }
    }

    /// The objects of a kind that a CustomResourceDefinition defines.
    pub(super) fn customs(&self, kind: Kind) -> impl Iterator<Item = (ObjectRef, &'a Custom)> + use<'a, '_> {
        self.objects(kind).filter_map(move |object| match object {
            Object::Custom(_, it) => Some((ObjectRef::new(kind, &it.metadata), &**it)),
            _ => None,
        })
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &'a Namespace> + use<'a, '_> {
        self.objects(Kind::Namespace).filter_map(|object| match object {
            Object::Namespace(it) => Some(&**it),
            _ => None,
        })
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &'a Pod> + use<'a, '_> {
        self.objects(Kind::Pod).filter_map(|object| match object {
            Object::Pod(it) => Some(&**it),
            _ => None,
        })
    }

    pub(super) fn objects(&self, kind: Kind) -> impl Iterator<Item = &'a Object> + use<'a, '_> {
        self.objects.get(&kind).into_iter().flatten().copied()
    }

    /// Whether there is any object of these kinds in the namespace, or the namespace itself.
    pub(super) fn has_any(&self, namespace: &str, kinds: &[Kind]) -> bool {
        let is_in = |object: &Object| {
            let metadata = object.metadata();
            let its = match object.kind() {
                Kind::Namespace => &metadata.name,
                _ => &metadata.namespace,
            };
            its.as_deref() == Some(namespace)
        };
        kinds.iter().any(|kind| self.objects(*kind).any(is_in))
    }

    /// The workloads of every namespace that a policy of this one can be about: its own, or those of the whole mesh.
    pub(super) fn within_reach(&self, namespace: &str) -> impl Iterator<Item = &Member<'a>> {
        let everywhere = *namespace == *self.settings.root_namespace;
        let all = self.members.iter();
        let reached = all.filter(move |(its, _)| everywhere || **its == namespace);
        reached.flat_map(|(_, members)| members)
    }

    /// The service that a host of Istio's manifests names, written in an object of this namespace.
    pub(super) fn service_of_host(&self, host: &str, namespace: &str) -> Option<&'a Service> {
        let host = host.to_ascii_lowercase();
        let domain = &self.settings.cluster_domain;
        let names = match host.split('.').count() {
            1 => vec![format!("{host}.{namespace}.svc.{domain}")],
            2 => vec![host.clone(), format!("{host}.svc.{domain}")],
            3 if host.ends_with(".svc") => vec![format!("{host}.{domain}")],
            _ => vec![host],
        };
        let mut found = names
            .iter()
            .filter_map(|name| self.by_hostname.get(name.as_str()));
        found.next().copied()
    }

    /// A Service of Kubernetes.
    pub(super) fn service(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        let domain = &self.settings.cluster_domain;
        let hostname = format!("{name}.{namespace}.svc.{domain}");
        let key = ServiceKey {
            namespace: namespace.into(),
            hostname: hostname.into(),
        };
        self.services.get(&key).copied()
    }

    /// Whether what is sent to a workload comes through a waypoint: its own, or one of its services'.
    pub(super) fn is_bound(&self, workload: &Workload) -> bool {
        let bound = |key: &ServiceKey| self.services.get(key).is_some_and(|it| it.waypoint.is_some());
        workload.waypoint.is_some() || workload.services.keys().any(bound)
    }
}

impl Member<'_> {
    /// Whether it has all of these labels.
    pub(super) fn has(&self, labels: &Labels) -> bool {
        labels
            .iter()
            .all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

fn members<'a>(
    objects: &BTreeMap<Kind, Vec<&'a Object>>,
    parts: &'a MeshParts,
) -> BTreeMap<&'a str, Vec<Member<'a>>> {
    let by_uid: BTreeMap<_, _> = parts.workloads.iter().map(|it| (&*it.uid, it)).collect();
    let mut members: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let cluster = &parts.cluster;
    let selected = [(Kind::Pod, ""), (Kind::WorkloadEntry, "networking.istio.io")];
    for (kind, group) in selected {
        for object in objects.get(&kind).into_iter().flatten() {
            let metadata = object.metadata();
            let (Some(namespace), Some(name)) = (&metadata.namespace, &metadata.name) else {
                continue;
            };
            let uid = format!("{cluster}/{group}/{}/{namespace}/{name}", kind.kind());
            let Some(workload) = by_uid.get(uid.as_str()) else {
                continue;
            };
            let mut labels = metadata.labels.clone().unwrap_or_default();
            if let Object::Custom(_, it) = object {
                labels.extend(labels_of(it.spec.get("labels")));
            }
            let member = Member { labels, workload };
            members.entry(namespace.as_str()).or_default().push(member);
        }
    }
    members
}

/// Labels, as far as they are texts; what is wrong with them, `compile` says.
pub(super) fn labels_of(value: Option<&Value>) -> Labels {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// `selector.matchLabels` of a policy; empty for everything.
pub(super) fn selector(spec: &Value) -> Labels {
    labels_of(spec.get("selector").and_then(|it| it.get("matchLabels")))
}

/// The items of a list; none for what is no list.
pub(super) fn list<'v>(value: &'v Value, field: &str) -> &'v [Value] {
    value
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A field that is a text.
pub(super) fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value.get(field)?.as_str()
}

/// Notes something.
pub(super) fn tell(
    found: &mut Vec<Diagnostic>,
    object: &ObjectRef,
    severity: Severity,
    reason: &'static str,
    message: impl Into<String>,
) {
    found.push(Diagnostic {
        object: object.clone(),
        severity,
        reason,
        message: message.into(),
    });
}
