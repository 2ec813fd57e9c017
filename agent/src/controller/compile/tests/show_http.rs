//! What waypoints are told, in a form to be read: as it travels, without what says nothing.

use std::fmt::Write as _;

use serde::Serialize;

use super::*;
use crate::mesh::http::{RequestMatch, RouteTable, ServiceRoutes};

pub(super) fn show(compiled: &Compiled, out: &mut String) {
    let http = &compiled.parts.http;
    for it in &http.routes {
        routes(it.values(), out);
    }
    for it in &http.authentications {
        let _ = writeln!(out, "authentication {}", it.key);
        for rule in &it.rules {
            let _ = writeln!(out, "  {}", json(rule));
        }
        if !it.unreadable.is_empty() {
            let _ = writeln!(out, "  unreadable {}", it.unreadable.join(", "));
        }
    }
}

fn routes(it: &ServiceRoutes, out: &mut String) {
    let _ = writeln!(out, "routes of {}", it.service);
    for (port, http) in &it.http {
        if let Some(producer) = &http.producer {
            table(&format!("{port}"), producer, out);
        }
        for (namespace, consumer) in &http.consumers {
            table(&format!("{port} for clients of {namespace}"), consumer, out);
        }
    }
    for (port, rules) in &it.tls {
        for rule in rules {
            let _ = writeln!(out, "  {port} TLS {}", json(rule));
        }
    }
    for (port, route) in &it.tcp {
        let _ = writeln!(out, "  {port} TCP {}", json(route));
    }
    if it.traffic != Default::default() {
        let _ = writeln!(out, "  traffic {}", json(&it.traffic));
    }
    for key in &it.policies {
        let _ = writeln!(out, "  policy {key}");
    }
    for key in &it.authentications {
        let _ = writeln!(out, "  authentication {key}");
    }
}

fn table(head: &str, table: &RouteTable, out: &mut String) {
    for entry in &table.entries {
        let name = table.rules.get(entry.rule).map_or("nothing", |rule| &rule.name.0);
        let _ = writeln!(out, "  {head}: {} -> {name}", json(&entry.test));
    }
    for rule in &table.rules {
        let mut value = serde_json::to_value(rule).unwrap();
        value.as_object_mut().unwrap().remove("name");
        let _ = writeln!(out, "  {head}: {} = {}", rule.name, json(&value));
    }
}

pub(super) fn request(it: &RequestMatch) -> String {
    json(it)
}

/// In one line, without what is empty.
fn json(value: &impl Serialize) -> String {
    let mut value = serde_json::to_value(value).unwrap();
    prune(&mut value);
    value.to_string()
}

fn prune(value: &mut Value) {
    let says = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_u64() != Some(0),
        Value::Bool(true) => true,
    };
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            fields.retain(|key, value| key == "weight" || says(value));
        }
        Value::Array(values) => values.iter_mut().for_each(prune),
        _ => {}
    }
}
