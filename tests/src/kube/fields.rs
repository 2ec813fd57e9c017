//! Sets of fields, as `managedFields` writes them, and what differs between two objects.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::structure::{List, Structure};

/// A tree of path elements (`f:name`, `k:{"port":80}`, `v:"x"`).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields {
    /// Whether this node itself is in the set.
    member: bool,
    children: BTreeMap<String, Fields>,
}

impl Fields {
    pub(super) fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// From `fieldsV1`.
    pub(super) fn parse(json: &Value) -> Self {
        let mut fields = Self::default();
        for (key, value) in json.as_object().into_iter().flatten() {
            if key == "." {
                fields.member = true;
                continue;
            }
            let mut child = Self::parse(value);
            child.member |= value.as_object().is_some_and(Map::is_empty);
            fields.children.insert(key.clone(), child);
        }
        fields
    }

    /// As `fieldsV1`.
    pub(super) fn json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.json());
        }
        map.into()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.member |= other.member;
        for (key, child) in &other.children {
            self.children.entry(key.clone()).or_default().add(child);
        }
    }

    /// Takes away what `other` has.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (key, child) in &other.children {
            if let Some(own) = self.children.get_mut(key) {
                own.subtract(child);
                if own.is_empty() {
                    self.children.remove(key);
                }
            }
        }
    }

    pub(super) fn common(&self, other: &Self) -> Self {
        let both = self.children.iter().filter_map(|(key, child)| {
            let common = child.common(other.children.get(key)?);
            (!common.is_empty()).then(|| (key.clone(), common))
        });
        Self {
            member: self.member && other.member,
            children: both.collect(),
        }
    }

    /// The members' paths, parents before children.
    pub(super) fn paths(&self) -> Vec<Vec<String>> {
        let own = self.member.then(Vec::new);
        let children = self.children.iter().flat_map(|(key, child)| {
            let inner = child.paths().into_iter();
            inner.map(move |path| [vec![key.clone()], path].concat())
        });
        own.into_iter().chain(children).collect()
    }

    /// Whether the node at `path`, or anything below, is in the set.
    pub(super) fn reaches(&self, path: &[String]) -> bool {
        match path.split_first() {
            None => !self.is_empty(),
            Some((first, rest)) => self.children.get(first).is_some_and(|child| child.reaches(rest)),
        }
    }

    /// Without what nobody owns: what an object is called, and what the server sets.
    pub(super) fn stripped(mut self) -> Self {
        const SERVER: [&str; 9] = [
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "managedFields",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ];
        self.member = false;
        for name in ["f:apiVersion", "f:kind"] {
            self.children.remove(name);
        }
        if let Some(metadata) = self.children.get_mut("f:metadata") {
            metadata.member = false;
            for name in SERVER {
                metadata.children.remove(&format!("f:{name}"));
            }
            if metadata.is_empty() {
                self.children.remove("f:metadata");
            }
        }
        self
    }
}

/// A path as conflicts name it: `.spec.ports[port=80].name`.
pub(super) fn shown(path: &[String]) -> String {
    let element = |element: &String| match element.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", key)) => {
            let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
            let pairs: Vec<_> = key
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            format!("[{}]", pairs.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        _ => element.clone(),
    };
    path.iter().map(element).collect()
}

/// The path element of a list's item.
pub(super) fn item_key(keys: &[(String, Option<Value>)], item: &Value) -> String {
    let values = keys.iter().filter_map(|(name, default)| {
        let value = item.get(name).or(default.as_ref())?;
        Some((name.clone(), value.clone()))
    });
    format!("k:{}", Value::Object(values.collect()))
}

/// The set of fields that an applied object names.
pub(super) fn named(structure: Structure<'_>, value: &Value, path: &mut Vec<String>) -> Fields {
    let mut fields = Fields::default();
    for (key, child, inner) in children(structure, Some(value), None, path) {
        let mut node = at(path, &key, |path| {
            named(inner, child.0.unwrap_or(&Value::Null), path)
        });
        node.member |= key.starts_with("k:");
        fields.children.insert(key, node);
    }
    fields.member = fields.children.is_empty();
    fields
}

/// What differs.
#[derive(Clone, Debug, Default)]
pub(super) struct Difference {
    /// What is new or has another value.
    pub(super) changed: Fields,
    pub(super) removed: Fields,
}

/// What differs between two objects, by fields.
pub(super) fn compare(structure: Structure<'_>, old: &Value, new: &Value) -> Difference {
    difference(structure, Some(old), Some(new), &mut Vec::new())
}

fn difference(
    structure: Structure<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
) -> Difference {
    let mut found = Difference::default();
    if old == new {
        return found;
    }
    let inside = children(structure, new, old, path);
    let leaf = inside.is_empty();
    for (key, (new, old), inner) in inside {
        let child = at(path, &key, |path| difference(inner, old, new, path));
        for (set, fields) in [
            (&mut found.changed, child.changed),
            (&mut found.removed, child.removed),
        ] {
            if !fields.is_empty() {
                set.children.insert(key.clone(), fields);
            }
        }
    }
    found.changed.member = new.is_some() && (old.is_none() || leaf);
    found.removed.member = new.is_none();
    found
}

/// Calls with the path grown by a field's name; items of lists add nothing.
fn at<T>(path: &mut Vec<String>, key: &str, call: impl FnOnce(&mut Vec<String>) -> T) -> T {
    let Some(name) = key.strip_prefix("f:") else {
        return call(path);
    };
    path.push(name.to_owned());
    let result = call(path);
    path.pop();
    result
}

type Pair<'v> = (Option<&'v Value>, Option<&'v Value>);

/// The elements of two values that are looked into: fields of maps, items of keyed lists and sets. None for a value that
/// is one, or where the two are not alike.
fn children<'s, 'v>(
    structure: Structure<'s>,
    one: Option<&'v Value>,
    other: Option<&'v Value>,
    path: &[String],
) -> Vec<(String, Pair<'v>, Structure<'s>)> {
    match (one, other) {
        (Some(Value::Object(_)), Some(Value::Object(_)) | None) | (None, Some(Value::Object(_))) => {
            if structure.is_atomic_map(path) {
                return Vec::new();
            }
            let of =
                |value: Option<&'v Value>| value.and_then(Value::as_object).into_iter().flat_map(Map::keys);
            let names: BTreeSet<&String> = of(one).chain(of(other)).collect();
            let field = |name: &String| {
                let inner = structure.field(&[path, std::slice::from_ref(name)].concat());
                let pair = (
                    one.and_then(|map| map.get(name)),
                    other.and_then(|map| map.get(name)),
                );
                (format!("f:{name}"), pair, inner)
            };
            names.into_iter().map(field).collect()
        }
        (Some(Value::Array(_)), Some(Value::Array(_)) | None) | (None, Some(Value::Array(_))) => {
            items(structure, one, other, path)
        }
        _ => Vec::new(),
    }
}

fn items<'s, 'v>(
    structure: Structure<'s>,
    one: Option<&'v Value>,
    other: Option<&'v Value>,
    path: &[String],
) -> Vec<(String, Pair<'v>, Structure<'s>)> {
    let list = structure.list(path);
    let key = |item: &Value| match &list {
        List::Atomic => None,
        List::Set => Some(format!("v:{item}")),
        List::Keyed(keys) => Some(item_key(keys, item)),
    };
    let mut found: BTreeMap<String, Pair<'v>> = BTreeMap::new();
    for item in one.and_then(Value::as_array).into_iter().flatten() {
        let Some(key) = key(item) else { return Vec::new() };
        found.entry(key).or_default().0 = Some(item);
    }
    for item in other.and_then(Value::as_array).into_iter().flatten() {
        let Some(key) = key(item) else { return Vec::new() };
        found.entry(key).or_default().1 = Some(item);
    }
    found
        .into_iter()
        .map(|(key, pair)| (key, pair, structure.items()))
        .collect()
}

/// Lays an applied value over another: maps and keyed lists are merged, all else replaced.
pub(super) fn merge(structure: Structure<'_>, live: &mut Value, applied: &Value, path: &mut Vec<String>) {
    match (&mut *live, applied) {
        (Value::Object(live), Value::Object(applied)) if !structure.is_atomic_map(path) => {
            for (name, value) in applied {
                let own = live.entry(name.clone()).or_insert(Value::Null);
                path.push(name.clone());
                merge(structure.field(path), own, value, path);
                path.pop();
            }
        }
        (Value::Array(live), Value::Array(applied)) => match structure.list(path) {
            List::Atomic => *live = applied.clone(),
            List::Set => {
                let new: Vec<_> = applied
                    .iter()
                    .filter(|item| !live.contains(item))
                    .cloned()
                    .collect();
                live.extend(new);
            }
            List::Keyed(keys) => {
                for item in applied {
                    let key = item_key(&keys, item);
                    match live.iter_mut().find(|own| item_key(&keys, own) == key) {
                        Some(own) => merge(structure.items(), own, item, path),
                        None => live.push(item.clone()),
                    }
                }
            }
        },
        _ => *live = applied.clone(),
    }
}

/// Removes what a path names.
pub(super) fn remove(structure: Structure<'_>, value: &mut Value, path: &[String], names: &mut Vec<String>) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    if let Some(name) = first.strip_prefix("f:") {
        if rest.is_empty() {
            if let Some(map) = value.as_object_mut() {
                map.remove(name);
            }
            return;
        }
        names.push(name.to_owned());
        if let Some(inner) = value.get_mut(name) {
            remove(structure.field(names), inner, rest, names);
        }
        names.pop();
        return;
    }
    let Some(list) = value.as_array_mut() else { return };
    let of = structure.list(names);
    let is = |item: &Value| match &of {
        List::Atomic => false,
        List::Set => *first == format!("v:{item}"),
        List::Keyed(keys) => item_key(keys, item) == *first,
    };
    if rest.is_empty() {
        list.retain(|item| !is(item));
    } else if let Some(item) = list.iter_mut().find(|item| is(item)) {
        remove(structure.items(), item, rest, names);
    }
}
