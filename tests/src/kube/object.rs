//! An object as it is kept: serialised, with what selectors ask about beside it. Fifty thousand pods fit into memory.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::kinds::Kind;

/// One version of one object; its bytes have neither `kind` nor `apiVersion`, which depend on how it is asked for.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    /// What field selectors may name beside the name and the namespace.
    pub(super) fields: Vec<(&'static str, String)>,
    /// The uids of its owners.
    pub(super) owners: Vec<String>,
    bytes: Bytes,
}

impl Object {
    /// `value` has no `kind` and `apiVersion`, and its resourceVersion is set to `revision`.
    pub(super) fn new(kind: &Kind, mut value: Value, revision: u64) -> Self {
        value["metadata"]["resourceVersion"] = revision.to_string().into();
        let text = |at: &str| {
            value
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            labels: strings(&value["metadata"]["labels"]),
            fields: super::select::fields_of(kind, &value),
            owners: owners(&value),
            bytes: serde_json::to_vec(&value).unwrap_or_default().into(),
        }
    }

    pub(super) fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    /// The same content under another resourceVersion, as a deletion is told.
    pub(super) fn at(&self, kind: &Kind, revision: u64) -> Self {
        Self::new(kind, self.value(), revision)
    }

    /// The object as the API shows it in `version`.
    pub(super) fn shown(&self, kind: &Kind, version: &str) -> Vec<u8> {
        if kind.group == "events.k8s.io" {
            let value = super::events::to_new(self.value());
            return shown_value(kind, version, &value);
        }
        let mut shown = head(&kind.kind, &kind.api_version(version));
        shown.extend_from_slice(&self.bytes[1..]);
        shown
    }

    /// As an item of a list: only custom resources say there what they are.
    pub(super) fn item(&self, kind: &Kind, version: &str) -> Vec<u8> {
        match kind.group.as_str() {
            _ if kind.custom => self.shown(kind, version),
            "events.k8s.io" => serde_json::to_vec(&super::events::to_new(self.value())).unwrap_or_default(),
            _ => self.bytes.to_vec(),
        }
    }

    /// `PartialObjectMetadata`.
    pub(super) fn metadata(&self) -> Vec<u8> {
        let mut only = Map::new();
        only.insert("metadata".into(), self.value()["metadata"].take());
        let mut shown = head("PartialObjectMetadata", "meta.k8s.io/v1");
        shown.extend_from_slice(&serde_json::to_vec(&only).unwrap_or_default()[1..]);
        shown
    }
}

/// A value that is not stored, or not yet, as the API shows it.
pub(super) fn shown_value(kind: &Kind, version: &str, value: &Value) -> Vec<u8> {
    let mut shown = head(&kind.kind, &kind.api_version(version));
    shown.extend_from_slice(&serde_json::to_vec(value).unwrap_or_default()[1..]);
    shown
}

/// Opens an object; every stored object has metadata, so that a comma is right.
fn head(kind: &str, api_version: &str) -> Vec<u8> {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",").into_bytes()
}

/// A map of strings.
pub(super) fn strings(map: &Value) -> Vec<(String, String)> {
    let pairs = map.as_object().into_iter().flatten();
    pairs
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

/// `namespace/name`, or the name alone of what has no namespace.
pub(super) fn key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

fn owners(value: &Value) -> Vec<String> {
    let owners = value["metadata"]["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten();
    owners
        .filter_map(|owner| owner["uid"].as_str().map(Into::into))
        .collect()
}
