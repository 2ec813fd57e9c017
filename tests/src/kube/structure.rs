//! Which lists are maps by a key, and which maps are one value: what server-side apply and strategic merge go by.

use serde_json::Value;

use super::kinds::Kind;

/// How a list is put together.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum List {
    /// One value.
    Atomic,
    /// Values, each at most once.
    Set,
    /// Objects, told apart by these fields; a default for a field that may be missing.
    Keyed(Vec<(String, Option<Value>)>),
}

/// What is known about a resource's fields.
#[derive(Clone, Copy)]
pub(super) enum Structure<'a> {
    BuiltIn(&'a Kind),
    /// The schema of this place; `None` where anything may be.
    Custom(Option<&'a Value>),
}

impl<'a> Structure<'a> {
    pub(super) fn of(kind: &'a Kind, version: &str) -> Self {
        match kind.version(version).filter(|_| kind.custom) {
            Some(version) => Self::Custom(version.schema.as_ref()),
            None => Self::BuiltIn(kind),
        }
    }

    /// The structure of a field.
    pub(super) fn field(self, path: &[String]) -> Self {
        let Self::Custom(Some(schema)) = self else {
            return self;
        };
        if path == ["metadata"] {
            return Self::Custom(None);
        }
        let name = path.last().map(String::as_str).unwrap_or_default();
        let known = schema.get("properties").and_then(|fields| fields.get(name));
        Self::Custom(known.or_else(|| schema.get("additionalProperties").filter(|more| more.is_object())))
    }

    /// The structure of a list's items.
    pub(super) fn items(self) -> Self {
        match self {
            Self::Custom(schema) => Self::Custom(schema.and_then(|schema| schema.get("items"))),
            own => own,
        }
    }

    /// How the list at `path` (names of fields, the items between them left out) is put together.
    pub(super) fn list(self, path: &[String]) -> List {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        match names.as_slice() {
            ["metadata", "finalizers"] => return List::Set,
            ["metadata", "ownerReferences"] => return keyed(&["uid"]),
            _ => {}
        }
        match self {
            Self::BuiltIn(kind) => built_in(kind, &names),
            Self::Custom(None) => List::Atomic,
            Self::Custom(Some(schema)) => match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => List::Set,
                Some("map") => custom_keys(schema),
                _ => List::Atomic,
            },
        }
    }

    /// Whether the map at `path` is one value.
    pub(super) fn is_atomic_map(self, path: &[String]) -> bool {
        const ATOMIC: [&str; 11] = [
            "selector",
            "nodeSelector",
            "roleRef",
            "podSelector",
            "namespaceSelector",
            "objectSelector",
            "labelSelector",
            "regarding",
            "involvedObject",
            "configMapKeyRef",
            "secretKeyRef",
        ];
        match self {
            Self::BuiltIn(_) => path.last().is_some_and(|name| ATOMIC.contains(&name.as_str())),
            Self::Custom(schema) => schema.is_some_and(|schema| schema["x-kubernetes-map-type"] == "atomic"),
        }
    }
}

fn keyed(names: &[&str]) -> List {
    List::Keyed(names.iter().map(|name| ((*name).to_owned(), None)).collect())
}

fn custom_keys(schema: &Value) -> List {
    let keys = schema["x-kubernetes-list-map-keys"]
        .as_array()
        .into_iter()
        .flatten();
    let default = |name: &str| {
        schema
            .pointer(&format!("/items/properties/{name}/default"))
            .cloned()
    };
    List::Keyed(
        keys.filter_map(Value::as_str)
            .map(|name| (name.to_owned(), default(name)))
            .collect(),
    )
}

fn built_in(kind: &Kind, path: &[&str]) -> List {
    let tcp = |port: &str| List::Keyed(vec![(port.into(), None), ("protocol".into(), Some("TCP".into()))]);
    match (kind.kind.as_str(), path.last().copied().unwrap_or_default()) {
        ("EndpointSlice" | "Endpoints", _) => List::Atomic,
        ("Service", "ports") => tcp("port"),
        (_, "ports") if path.contains(&"containers") || path.contains(&"initContainers") => {
            tcp("containerPort")
        }
        (_, "conditions" | "addresses") => keyed(&["type"]),
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "env"
            | "imagePullSecrets"
            | "webhooks"
            | "secrets"
            | "resourceClaims",
        ) => keyed(&["name"]),
        (_, "volumeMounts") => keyed(&["mountPath"]),
        (_, "hostAliases" | "podIPs") => keyed(&["ip"]),
        (_, "topologySpreadConstraints") => keyed(&["topologyKey", "whenUnsatisfiable"]),
        _ => List::Atomic,
    }
}

/// The key by which a strategic merge patch merges the list `field` of a built-in resource; none: it is replaced.
pub(super) fn merge_key(kind: &Kind, path: &[String]) -> Option<&'static str> {
    let field = path.last().map(String::as_str).unwrap_or_default();
    Some(match (kind.kind.as_str(), field) {
        ("EndpointSlice" | "Endpoints", _) => return None,
        ("Service", "ports") => "port",
        (_, "ports") => "containerPort",
        (_, "conditions" | "addresses") => "type",
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "env"
            | "imagePullSecrets"
            | "webhooks"
            | "secrets",
        ) => "name",
        (_, "volumeMounts") => "mountPath",
        (_, "hostAliases" | "podIPs") => "ip",
        (_, "topologySpreadConstraints") => "topologyKey",
        (_, "taints") => "key",
        (_, "ownerReferences") => "uid",
        _ => return None,
    })
}
