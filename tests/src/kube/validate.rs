//! What is refused with 422: the rules that the transcripts show, and a few that no test object should break.

use serde_json::Value;

use super::{
    failure::{Cause, Failure},
    kinds::Kind,
    schema,
};

/// Checks an object that is to be stored, and what may not change of one that is there.
pub(super) fn object(kind: &Kind, version: &str, live: Option<&Value>, value: &Value) -> Result<(), Failure> {
    let mut causes = Vec::new();
    if live.is_none() {
        name(kind, value, &mut causes);
    }
    if kind.custom {
        if let Some(schema) = kind.version(version).and_then(|version| version.schema.as_ref()) {
            causes.extend(schema::check(schema, value));
        }
    } else {
        match kind.plural.as_str() {
            "services" => service(value, &mut causes),
            "events" => event(live, value, &mut causes),
            "leases" => lease(value, &mut causes),
            _ => {}
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    // Events are refused under core's name, whichever group they came by.
    let group = if kind.plural == "events" { "" } else { &kind.group };
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    Err(Failure::invalid(group, &kind.kind, name, &causes))
}

fn name(kind: &Kind, value: &Value, causes: &mut Vec<Cause>) {
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let letters = |part: &str| {
        part.bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    };
    let ends = |part: &str| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-');
    let label = |part: &str| letters(part) && ends(part);
    if ["services", "namespaces"].contains(&kind.plural.as_str()) {
        if !label(name) || name.len() > 63 {
            let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
            causes.push(Cause::invalid("metadata.name", format!("\"{name}\""), what));
        }
    } else if kind.group != "rbac.authorization.k8s.io" && (!name.split('.').all(label) || name.len() > 253) {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        causes.push(Cause::invalid("metadata.name", format!("\"{name}\""), what));
    }
}

fn service(value: &Value, causes: &mut Vec<Cause>) {
    let spec = &value["spec"];
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let headless = spec["clusterIP"] == "None";
    if ports.is_empty() && !headless && spec["type"] != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (at, port) in ports.iter().enumerate() {
        for field in ["port", "targetPort"] {
            let number = port[field].as_i64().unwrap_or(1);
            if !(1..=65_535).contains(&number) {
                let what = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(format!("spec.ports[{at}].{field}"), number, what));
            }
        }
        if ports.len() > 1 && port["name"].is_null() {
            causes.push(Cause::required(format!("spec.ports[{at}].name"), ""));
        }
    }
}

/// An event in the new form: core's fields by core's names.
fn event(live: Option<&Value>, value: &Value, causes: &mut Vec<Cause>) {
    if let Some(live) = live {
        for field in [
            "message",
            "reason",
            "action",
            "type",
            "involvedObject",
            "reportingComponent",
        ] {
            if value[field] != live[field] {
                causes.push(Cause::invalid(field, &value[field], "field is immutable"));
            }
        }
        return;
    }
    let by_the_new_api = value["reportingComponent"].is_string();
    if !by_the_new_api {
        return;
    }
    if value["eventTime"].is_null() {
        causes.push(Cause::required("eventTime", ""));
        return;
    }
    if value["message"].as_str().is_some_and(|text| text.len() > 1024) {
        causes.push(Cause::invalid(
            "message",
            "\"\"",
            "can have at most 1024 characters",
        ));
    }
    let kind = value["type"].as_str().unwrap_or_default();
    if !["Normal", "Warning"].contains(&kind) {
        causes.push(Cause::invalid(
            "type",
            "\"\"",
            &format!("has invalid value: {kind}"),
        ));
    }
}

fn lease(value: &Value, causes: &mut Vec<Cause>) {
    if let Some(seconds) = value["spec"]["leaseDurationSeconds"]
        .as_i64()
        .filter(|seconds| *seconds <= 0)
    {
        causes.push(Cause::invalid(
            "spec.leaseDurationSeconds",
            seconds,
            "must be greater than 0",
        ));
    }
}
