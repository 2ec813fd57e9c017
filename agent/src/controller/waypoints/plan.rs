//! PURE. What has to be done, so that there is what is to be: `plan(desired, actual) -> Vec<Action>`.
//!
//! Only what is ours is in `actual` (`ours`), so nothing else is ever changed or deleted; whether something foreign has the name
//! of an object that is to be made shows when it is made (`apply`).

use std::collections::BTreeMap;

use kube::core::DynamicObject;
use serde_json::Value;

use super::{
    covers::covers,
    parts::{Key, Part},
};
use crate::cluster::labels;

/// The objects that are there, of those that are ours.
pub(super) type Actual = BTreeMap<Key, DynamicObject>;

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Make it: it is not there, as far as we know.
    Create(Key, Value),
    /// Put it right. It is the object of this uid, and no other.
    Apply(Key, Value, String),
    /// It is not to be there any more.
    Delete {
        key: Key,
        uid: String,
        /// Whether its Gateway is still a waypoint of ours, so that nobody has to be asked.
        part_of_waypoint: bool,
    },
}

/// What is to be done, in the order in which it is done.
pub(super) fn plan(
    desired: &BTreeMap<Key, Value>,
    held: impl Fn(&Key) -> bool,
    actual: &Actual,
) -> Vec<Action> {
    let mut actions = Vec::new();
    for (key, wanted) in desired {
        match actual.get(key) {
            None => actions.push(Action::Create(key.clone(), wanted.clone())),
            Some(there) if is_going(there) || is_right(there, wanted) => {}
            Some(there) => actions.push(Action::Apply(key.clone(), wanted.clone(), uid(there))),
        }
    }
    let is_waypoint = |key: &Key| {
        let account = Key {
            part: Part::ServiceAccount,
            ..key.clone()
        };
        desired.contains_key(&account)
    };
    let superfluous = actual.iter().filter(|(key, there)| {
        let wanted = desired.contains_key(key);
        !wanted && !held(key) && !is_going(there)
    });
    actions.extend(superfluous.map(|(key, there)| Action::Delete {
        key: key.clone(),
        uid: uid(there),
        part_of_waypoint: is_waypoint(key),
    }));
    actions
}

/// Whether an object is one that we made: it says so, and a Gateway of its name owns it.
pub(super) fn is_ours(object: &DynamicObject) -> bool {
    let metadata = &object.metadata;
    let label = |key: &str| metadata.labels.as_ref()?.get(key).map(String::as_str);
    let owned = metadata.owner_references.iter().flatten().any(|owner| {
        owner.kind == "Gateway"
            && owner.api_version.starts_with("gateway.networking.k8s.io/")
            && Some(&owner.name) == metadata.name.as_ref()
    });
    owned
        && label(labels::WAYPOINT_MANAGED_BY.0) == Some(labels::WAYPOINT_MANAGED_BY.1)
        && label(labels::GATEWAY_NAME) == metadata.name.as_deref()
}

/// Whether it says all that it is to say, whatever else it says.
fn is_right(there: &DynamicObject, wanted: &Value) -> bool {
    let Ok(there) = serde_json::to_value(there) else {
        return false;
    };
    covers(&there, wanted)
}

fn is_going(object: &DynamicObject) -> bool {
    object.metadata.deletion_timestamp.is_some()
}

fn uid(object: &DynamicObject) -> String {
    object.metadata.uid.clone().unwrap_or_default()
}
