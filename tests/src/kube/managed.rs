//! `managedFields`: who owns which fields, after updates and after server-side apply.

use serde_json::{Value, json};

use super::{
    failure::{Cause, Failure},
    fields::{self, Fields},
    structure::Structure,
};

/// One entry.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    /// "Apply" or "Update".
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: Fields,
}

/// Who writes, and how.
pub(super) struct Writer<'a> {
    pub(super) manager: &'a str,
    pub(super) api_version: &'a str,
    /// "" for the object itself.
    pub(super) subresource: &'a str,
    pub(super) now: &'a str,
}

impl Entry {
    fn parse(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: Fields::parse(&json["fieldsV1"]),
        }
    }

    fn json(&self) -> Value {
        let mut json = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.json(),
        });
        if !self.subresource.is_empty() {
            json["subresource"] = self.subresource.as_str().into();
        }
        json
    }

    fn is(&self, writer: &Writer<'_>, operation: &str) -> bool {
        self.manager == writer.manager
            && self.operation == operation
            && self.subresource == writer.subresource
            && (operation == "Apply" || self.api_version == writer.api_version)
    }

    fn new(writer: &Writer<'_>, operation: &str, fields: Fields) -> Self {
        Self {
            manager: writer.manager.to_owned(),
            operation: operation.to_owned(),
            api_version: writer.api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
            time: writer.now.to_owned(),
            fields,
        }
    }

    /// As a conflict names its owner.
    fn named(&self) -> String {
        let sub = match self.subresource.as_str() {
            "" => String::new(),
            sub => format!(" with subresource \"{sub}\""),
        };
        let using = match self.operation.as_str() {
            "Update" => format!(" using {} at {}", self.api_version, self.time),
            _ => String::new(),
        };
        format!("\"{}\"{sub}{using}", self.manager)
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let all = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten();
    all.map(Entry::parse).collect()
}

fn store(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| {
            (
                entry.operation.clone(),
                entry.time.clone(),
                entry.manager.clone(),
                entry.api_version.clone(),
                entry.subresource.clone(),
            )
        };
        key(a).cmp(&key(b))
    });
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return;
    };
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), entries.iter().map(Entry::json).collect());
    }
}

/// Notes what a create (`live` is `None`) or an update changed. An object whose fields were not tracked stays so.
pub(super) fn update(structure: Structure<'_>, live: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let mut owned = live.map(entries).unwrap_or_default();
    if live.is_some() && owned.is_empty() {
        return store(new, owned);
    }
    let empty = match structure {
        Structure::BuiltIn(_) => json!({"metadata": {}, "spec": {}, "status": {}}),
        Structure::Custom(_) => json!({"metadata": {}}),
    };
    let difference = fields::compare(structure, live.unwrap_or(&empty), new);
    let (changed, removed) = (difference.changed.stripped(), difference.removed.stripped());
    for entry in &mut owned {
        if !entry.is(writer, "Update") {
            entry.fields.subtract(&changed);
        }
        entry.fields.subtract(&removed);
    }
    if !changed.is_empty() {
        match owned.iter_mut().find(|entry| entry.is(writer, "Update")) {
            Some(own) => {
                own.fields.add(&changed);
                own.time = writer.now.to_owned();
            }
            None => owned.push(Entry::new(writer, "Update", changed)),
        }
    }
    store(new, owned);
}

/// Server-side apply: `live` becomes what `applied` makes of it.
pub(super) fn apply(
    structure: Structure<'_>,
    live: &Value,
    applied: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Failure> {
    let mut owned = entries(live);
    let exists = live["metadata"]["uid"].is_string();
    if exists && owned.is_empty() {
        let before = Writer {
            manager: "before-first-apply",
            subresource: "",
            ..*writer
        };
        let named = fields::named(structure, live, &mut Vec::new()).stripped();
        owned.push(Entry::new(&before, "Update", named));
    }
    let named = fields::named(structure, applied, &mut Vec::new()).stripped();
    let mut merged = live.clone();
    fields::merge(structure, &mut merged, applied, &mut Vec::new());
    let changed = fields::compare(structure, live, &merged).changed.stripped();
    let conflicts = conflicts(&owned, &changed, writer);
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    for entry in owned.iter_mut().filter(|entry| !entry.is(writer, "Apply")) {
        entry.fields.subtract(&changed);
    }
    let mut own = Entry::new(writer, "Apply", named);
    if let Some(at) = owned.iter().position(|entry| entry.is(writer, "Apply")) {
        let last = owned.remove(at);
        prune(structure, &mut merged, &last.fields, &own.fields, &owned);
        if last.fields == own.fields {
            own.time = last.time;
        }
    }
    owned.push(own);
    store(&mut merged, owned);
    Ok(merged)
}

/// Removes what the manager applied before, no longer does, and nobody else owns.
fn prune(structure: Structure<'_>, merged: &mut Value, last: &Fields, own: &Fields, others: &[Entry]) {
    for path in last.paths() {
        let kept = own.reaches(&path) || others.iter().any(|entry| entry.fields.reaches(&path));
        if !kept {
            fields::remove(structure, merged, &path, &mut Vec::new());
        }
    }
}

fn conflicts(owned: &[Entry], changed: &Fields, writer: &Writer<'_>) -> Vec<(String, String)> {
    let others = owned.iter().filter(|entry| !entry.is(writer, "Apply"));
    let all = others.flat_map(|entry| {
        let fields = entry.fields.common(changed).paths();
        let named = entry.named();
        fields
            .into_iter()
            .map(move |path| (named.clone(), fields::shown(&path)))
    });
    all.collect()
}

fn conflict(conflicts: &[(String, String)]) -> Failure {
    let causes: Vec<_> = conflicts
        .iter()
        .map(|(owner, field)| {
            Cause::new(
                "FieldManagerConflict",
                field.as_str(),
                format!("conflict with {owner}"),
            )
        })
        .collect();
    let message = match conflicts {
        [(owner, field)] => format!("Apply failed with 1 conflict: conflict with {owner}: {field}"),
        many => {
            let told: Vec<_> = many
                .iter()
                .map(|(owner, field)| format!("- {field}: conflict with {owner}"))
                .collect();
            format!("Apply failed with {} conflicts:\n{}", many.len(), told.join("\n"))
        }
    };
    Failure::new(409, "Conflict", message).causes(&causes)
}
