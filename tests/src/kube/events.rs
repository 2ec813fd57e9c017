//! Events are the same objects in two groups, with fields of other names: they are kept as core/v1 has them.

use serde_json::{Value, json};

/// core/v1's name and events.k8s.io/v1's.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

pub(super) fn to_new(event: Value) -> Value {
    renamed(event, |(old, new)| (old, new))
}

pub(super) fn to_core(event: Value) -> Value {
    renamed(event, |(old, new)| (new, old))
}

fn renamed(
    mut event: Value,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) -> Value {
    let Some(map) = event.as_object_mut() else {
        return event;
    };
    for (from, to) in NAMES.map(direction) {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
    event
}

/// What every event has, set or not.
pub(super) fn fill(event: &mut Value) {
    for (name, empty) in [
        ("source", json!({})),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
        ("involvedObject", json!({})),
    ] {
        if event[name].is_null() {
            event[name] = empty;
        }
    }
}
