//! The patches that compute a whole new object: JSON patch, merge patch, strategic merge patch.

use serde_json::{Map, Value};

use super::{
    failure::{Cause, Failure},
    kinds::Kind,
    request::{Request, from_yaml},
    structure,
};

/// A patch, parsed.
pub(super) enum Patch {
    Json(Vec<json_patch::PatchOperation>),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    pub(super) fn parse(request: &Request, kind: &Kind) -> Result<Self, Failure> {
        let unreadable =
            |err: serde_json::Error| Failure::bad_request(format!("error decoding patch: {err}"));
        match request.content_type.as_str() {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(&request.body).map_err(unreadable)?;
                Ok(Self::Json(patch.0))
            }
            "application/merge-patch+json" => Ok(Self::Merge(
                serde_json::from_slice(&request.body).map_err(unreadable)?,
            )),
            "application/strategic-merge-patch+json" if !kind.custom => Ok(Self::Strategic(
                serde_json::from_slice(&request.body).map_err(unreadable)?,
            )),
            "application/strategic-merge-patch+json" => Err(Failure::new(
                415,
                "UnsupportedMediaType",
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
            )),
            _ => Err(
                Failure::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
                    .details(serde_json::json!({})),
            ),
        }
    }

    pub(super) fn onto(&self, kind: &Kind, live: &Value) -> Result<Value, Failure> {
        let mut value = live.clone();
        match self {
            Self::Json(operations) => json_patch::patch(&mut value, operations).map_err(|_| {
                let message = "the server rejected our request due to an error in our request";
                Failure::new(422, "Invalid", message).details(serde_json::json!({}))
            })?,
            Self::Merge(patch) => json_patch::merge(&mut value, patch),
            Self::Strategic(patch) => strategic(kind, &mut value, patch, &mut Vec::new()),
        }
        Ok(value)
    }
}

/// Maps whose values are strings, in metadata: anything else in them is not an object at all.
pub(super) fn check_strings(value: &Value) -> Result<(), Failure> {
    for field in ["annotations", "labels"] {
        let wrong = value["metadata"][field]
            .as_object()
            .into_iter()
            .flat_map(Map::values);
        let Some(wrong) = wrong.into_iter().find(|value| !value.is_string()) else {
            continue;
        };
        let own = match wrong {
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Array(_) => "array",
            _ => "object",
        };
        let what = format!(
            "json: cannot unmarshal {own} into Go struct field ObjectMeta.metadata.{field} of type string"
        );
        let shown = Value::String(value.to_string());
        return Err(Failure::invalid(
            "",
            "",
            "",
            &[Cause::invalid("patch", shown, &what)],
        ));
    }
    Ok(())
}

/// Merges maps and keyed lists, and obeys the directives `$patch`, `$retainKeys` and `$deleteFromPrimitiveList`.
fn strategic(kind: &Kind, value: &mut Value, patch: &Value, path: &mut Vec<String>) {
    let Value::Object(patch) = patch else {
        *value = patch.clone();
        return;
    };
    match patch.get("$patch").and_then(Value::as_str) {
        Some("delete") => return *value = Value::Null,
        Some("replace") => *value = Value::Object(Map::new()),
        _ => {}
    }
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Some(map) = value.as_object_mut() else { return };
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|key, _| kept.iter().any(|kept| kept == key.as_str()));
    }
    for (key, new) in patch {
        if let Some(name) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = new.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(list) = map.get_mut(name).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
        } else if new.is_null() {
            map.remove(key);
        } else {
            path.push(key.clone());
            strategic_field(kind, map.entry(key.clone()).or_insert(Value::Null), new, path);
            path.pop();
        }
    }
}

fn strategic_field(kind: &Kind, own: &mut Value, new: &Value, path: &mut Vec<String>) {
    let Value::Array(items) = new else {
        return strategic(kind, own, new, path);
    };
    let key = structure::merge_key(kind, path);
    let (Some(key), Some(list)) = (key, own.as_array_mut()) else {
        *own = items
            .iter()
            .filter(|item| item.get("$patch").is_none())
            .cloned()
            .collect();
        return;
    };
    if items.iter().any(|item| item["$patch"] == "replace") {
        list.clear();
    }
    for item in items {
        let at = list.iter().position(|own| own[key] == item[key]);
        match (item["$patch"].as_str(), at) {
            (Some("delete"), at) => drop(at.map(|at| list.remove(at))),
            (Some("replace"), _) => {}
            (_, Some(at)) => strategic(kind, &mut list[at], item, path),
            (_, None) => list.push(item.clone()),
        }
    }
}

/// The body of a server-side apply, checked as far as it is one.
pub(super) fn applied(request: &Request) -> Result<Value, Failure> {
    if request.query.text("fieldManager").is_empty() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        return Err(Failure::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
    }
    let value = from_yaml(&request.body)?;
    if !value["kind"].is_string() || !value["apiVersion"].is_string() {
        return Err(Failure::bad_request("invalid object type: /, Kind="));
    }
    if !value["metadata"]["managedFields"].is_null() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    Ok(value)
}
