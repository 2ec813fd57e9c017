//! Garbage: what is made for an owner that has gone meanwhile. With an owner goes what it has at that time, at once (the stand-in
//! does that, where a cluster takes a moment); a controller that has not heard of it may make something for it yet.

use serde_json::Value;

use super::is_leaving;
use crate::{
    cluster::spec::{items, text},
    kube::StandIn,
};

/// What weft's controller makes for Gateways. For what these own see [`super::make`].
const KINDS: [&str; 5] = [
    "deployments",
    "horizontalpodautoscalers",
    "poddisruptionbudgets",
    "serviceaccounts",
    "services",
];

pub(super) fn turn(api: &StandIn) {
    for kind in KINDS {
        for object in api.list(kind, "") {
            if is_orphan(api, &object) && !is_leaving(&object) {
                let of = &object["metadata"];
                api.delete(kind, text(&of["namespace"]), text(&of["name"]));
            }
        }
    }
}

/// Whether it has owners, and none of them is there.
fn is_orphan(api: &StandIn, object: &Value) -> bool {
    let of = &object["metadata"];
    let is_there = |owner: &Value| {
        let found = api.get(text(&owner["kind"]), text(&of["namespace"]), text(&owner["name"]));
        found.is_some_and(|found| found["metadata"]["uid"] == owner["uid"])
    };
    let mut owners = items(&of["ownerReferences"]).peekable();
    owners.peek().is_some() && !owners.any(is_there)
}
