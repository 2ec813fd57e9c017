//! Schemas of custom resources: what they prune, what they fill in, what they refuse. CEL rules are not evaluated.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::{failure::Cause, fields, structure::List, structure::Structure};

/// Removes fields that the schema does not have, and names them.
pub(super) fn prune(schema: &Value, value: &mut Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let Some(map) = value.as_object_mut() else {
        return unknown;
    };
    let metadata = map.remove("metadata");
    prune_at(schema, value, "", &mut unknown);
    value["metadata"] = metadata.unwrap_or_default();
    unknown
}

fn prune_at(schema: &Value, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
            let names: Vec<String> = map.keys().cloned().collect();
            for name in names {
                let inner = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match (field(schema, &name), map.get_mut(&name)) {
                    (Some(known), Some(value)) => prune_at(known, value, &inner, unknown),
                    _ if free => {}
                    _ => {
                        map.remove(&name);
                        unknown.push(inner);
                    }
                }
            }
        }
        Value::Array(list) => {
            for (at, item) in list.iter_mut().enumerate() {
                prune_at(&schema["items"], item, &format!("{path}[{at}]"), unknown);
            }
        }
        _ => {}
    }
}

/// The schema of a field; of any name, where the map is one from names to values.
fn field<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let known = schema.get("properties").and_then(|fields| fields.get(name));
    known.or_else(|| schema.get("additionalProperties").filter(|more| *more != false))
}

/// Fills in what is absent and has a default.
pub(super) fn fill(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, known) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = known.get("default")
                    && map.get(name).is_none_or(Value::is_null)
                {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, inner) in map.iter_mut() {
                if let Some(known) = field(schema, name) {
                    fill(known, inner);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| fill(&schema["items"], item)),
        _ => {}
    }
}

/// What is wrong with an object. Rules in CEL are never checked; where there are some and the object is wrong anyway,
/// that they were not checked is told, as an API server does.
pub(super) fn check(schema: &Value, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    check_at(schema, value, "", &mut causes);
    duplicates(schema, value, "", &mut causes);
    if !causes.is_empty() && has_rules(schema) {
        let what = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
        causes.push(Cause::invalid("<nil>", "null", what));
    }
    causes
}

fn check_at(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if let Some(wanted) = wrong_type(schema, value) {
        let shown = type_of(value);
        let what = format!("{path} in body must be of type {wanted}: \"{shown}\"");
        return causes.push(Cause::invalid(path, format!("\"{shown}\""), &what));
    }
    match value {
        Value::Object(map) => check_map(schema, map, path, causes),
        Value::Array(list) => check_list(schema, list, path, causes),
        Value::Number(_) => check_number(schema, value, path, causes),
        Value::String(text) => check_text(schema, text, path, causes),
        _ => {}
    }
    let allowed = schema["enum"].as_array();
    if let Some(allowed) = allowed.filter(|allowed| !allowed.contains(value)) {
        let all: Vec<_> = allowed.iter().map(Value::to_string).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", all.join(", "));
        causes.push(Cause::new("FieldValueNotSupported", path, message));
    }
}

fn check_map(schema: &Value, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let inside = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    for (name, value) in map {
        if path.is_empty() && name == "metadata" {
            continue;
        }
        if let Some(known) = field(schema, name) {
            check_at(known, value, &inside(name), causes);
        }
    }
    let required = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    for name in required.filter(|name| !map.contains_key(*name)) {
        causes.push(Cause::required(inside(name), ""));
    }
}

fn check_list(schema: &Value, list: &[Value], path: &str, causes: &mut Vec<Cause>) {
    for (at, item) in list.iter().enumerate() {
        check_at(&schema["items"], item, &format!("{path}[{at}]"), causes);
    }
    let most = schema["maxItems"].as_u64().unwrap_or(u64::MAX);
    if list.len() as u64 > most {
        let message = format!("Too many: {}: must have at most {most} items", list.len());
        causes.push(Cause::new("FieldValueTooMany", path, message));
    }
    let least = schema["minItems"].as_u64().unwrap_or(0);
    if (list.len() as u64) < least {
        let what = format!("{path} in body should have at least {least} items");
        causes.push(Cause::invalid(path, list.len(), &what));
    }
}

fn check_number(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let number = value.as_f64().unwrap_or_default();
    if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
        let what = format!("{path} in body should be greater than or equal to {least}");
        causes.push(Cause::invalid(path, value, &what));
    }
    if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
        let what = format!("{path} in body should be less than or equal to {most}");
        causes.push(Cause::invalid(path, value, &what));
    }
}

fn check_text(schema: &Value, text: &str, path: &str, causes: &mut Vec<Cause>) {
    let length = text.chars().count() as u64;
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        let what = format!("{path} in body should be at least {least} chars long");
        causes.push(Cause::invalid(path, format!("\"{text}\""), &what));
    }
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        let message = format!("Too long: may not be more than {most} bytes");
        causes.push(Cause::new("FieldValueTooLong", path, message));
    }
}

/// The type that the schema wants, if the value has another.
fn wrong_type<'a>(schema: &'a Value, value: &Value) -> Option<&'a str> {
    if schema["x-kubernetes-int-or-string"] == true {
        return None;
    }
    let wanted = schema["type"].as_str()?;
    let own = type_of(value);
    (own != wanted && !(own == "integer" && wanted == "number")).then_some(wanted)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Items of keyed lists and of sets that are there twice.
fn duplicates(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                let at = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                if let Some(known) = field(schema, name) {
                    duplicates(known, inner, &at, causes);
                }
            }
        }
        Value::Array(list) => {
            let mut seen = HashSet::new();
            for (at, item) in list.iter().enumerate() {
                let key = match Structure::Custom(Some(schema)).list(&[]) {
                    List::Atomic => continue,
                    List::Set => item.to_string(),
                    List::Keyed(keys) => fields::item_key(&keys, item)[2..].to_owned(),
                };
                if !seen.insert(key.clone()) {
                    let message = format!("Duplicate value: {key}");
                    causes.push(Cause::new(
                        "FieldValueDuplicate",
                        format!("{path}[{at}]"),
                        message,
                    ));
                }
                duplicates(&schema["items"], item, &format!("{path}[{at}]"), causes);
            }
        }
        _ => {}
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(list) => list.iter().any(has_rules),
        _ => false,
    }
}
