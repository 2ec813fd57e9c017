//! From a body to a draft: is it what the path says, and does it have fields that nobody knows.

use serde_json::Value;

use super::{
    failure::Failure,
    kinds::Kind,
    schema,
    write::{Draft, Write},
};

/// Checks and cleans what a client sent.
pub(super) fn decode(write: &Write<'_>, mut value: Value) -> Result<Draft, Failure> {
    let (kind, target) = (write.kind, write.target);
    let expected = kind.api_version(&target.version);
    check_type(kind, &expected, &value)?;
    let Some(map) = value.as_object_mut() else {
        return Err(Failure::bad_request("the body is not an object"));
    };
    map.remove("kind");
    map.remove("apiVersion");
    if !value["metadata"].is_object() {
        value["metadata"] = serde_json::json!({});
    }
    check_place(write, &value)?;
    check_times(kind, &expected, &value)?;
    if kind.group == "events.k8s.io" {
        value = super::events::to_core(value);
    }
    let unknown = unknown_fields(write, &mut value);
    let told: Vec<String> = unknown
        .iter()
        .map(|field| format!("unknown field \"{field}\""))
        .collect();
    match write.request.query.text("fieldValidation") {
        "Strict" if !told.is_empty() => Err(Failure::bad_request(format!(
            "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {2}",
            kind.kind,
            target.version,
            told.join(", ")
        ))),
        "Ignore" => Ok(Draft {
            value,
            warnings: Vec::new(),
        }),
        _ => Ok(Draft {
            value,
            warnings: told,
        }),
    }
}

fn check_type(kind: &Kind, expected: &str, value: &Value) -> Result<(), Failure> {
    let own = value["kind"].as_str().unwrap_or(&kind.kind);
    let api_version = value["apiVersion"].as_str().unwrap_or(expected);
    if own != kind.kind {
        let version = expected.rsplit('/').next().unwrap_or_default();
        let internal = if kind.group.is_empty() {
            "core"
        } else {
            kind.group.split('.').next().unwrap_or_default()
        };
        return Err(Failure::bad_request(format!(
            "{own} in version \"{api_version}\" cannot be handled as a {0}: converting ({version}.{own}) to ({internal}.{0}): unknown conversion",
            kind.kind
        )));
    }
    if api_version != expected {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    Ok(())
}

fn check_place(write: &Write<'_>, value: &Value) -> Result<(), Failure> {
    let metadata = &value["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    if !namespace.is_empty() && namespace != write.target.namespace {
        return Err(Failure::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let (own, asked) = (metadata["name"].as_str().unwrap_or_default(), &write.target.name);
    if !asked.is_empty() && !own.is_empty() && own != asked {
        return Err(Failure::bad_request(format!(
            "the name of the object ({own}) does not match the name on the URL ({asked})"
        )));
    }
    Ok(())
}

/// Times with microseconds, as Leases and Events have them.
fn check_times(kind: &Kind, expected: &str, value: &Value) -> Result<(), Failure> {
    if kind.custom {
        return Ok(());
    }
    let times = ["/spec/renewTime", "/spec/acquireTime", "/eventTime"];
    for time in times
        .iter()
        .filter_map(|at| value.pointer(at))
        .filter_map(Value::as_str)
    {
        if humantime::parse_rfc3339_weak(time).is_err() {
            let version = expected.rsplit('/').next().unwrap_or_default();
            return Err(Failure::bad_request(format!(
                "{0} in version \"{version}\" cannot be handled as a {0}: parsing time \"{time}\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"{time}\" as \"2006\"",
                kind.kind
            )));
        }
    }
    Ok(())
}

/// Removes fields that the resource does not have, and names them. Of built-in resources only the outermost are known.
fn unknown_fields(write: &Write<'_>, value: &mut Value) -> Vec<String> {
    let kind = write.kind;
    if kind.custom {
        let version = kind.version(&write.target.version);
        let Some(schema) = version.and_then(|version| version.schema.as_ref()) else {
            return Vec::new();
        };
        return schema::prune(schema, value);
    }
    let known: &[&str] = match kind.plural.as_str() {
        "configmaps" => &["data", "binaryData", "immutable"],
        "secrets" => &["data", "stringData", "type", "immutable"],
        "services" | "pods" | "deployments" | "daemonsets" | "replicasets" | "namespaces" | "nodes"
        | "leases" => &["spec", "status"],
        _ => return Vec::new(),
    };
    let Some(map) = value.as_object_mut() else {
        return Vec::new();
    };
    let is_known = |key: &String| key == "metadata" || known.contains(&key.as_str());
    let unknown: Vec<String> = map.keys().filter(|key| !is_known(key)).cloned().collect();
    map.retain(|key, _| is_known(key));
    unknown
}
