//! PURE. What a status comes to, given the one that is there: others' parts of it stay, and a condition that says what it said
//! keeps the time of its last change.

use serde_json::{Map, Value, json};

use super::{CONTROLLER_NAME, Condition, FIELD_MANAGER, GatewayStatus, Parent, Status};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind},
    },
    controller::compile::ObjectRef,
};

/// The longest message of a condition, in bytes; APIs take 32,768.
const LONGEST_MESSAGE: usize = 2048;

/// The types of conditions that are ours on objects of a kind, other than Gateways and routes.
pub(in crate::controller) fn ours(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &[labels::WAYPOINT_BOUND],
        Kind::ServiceEntry | Kind::WorkloadEntry => &["ZtunnelAccepted", labels::WAYPOINT_BOUND],
        Kind::Namespace => &[labels::PODS_CAPTURED],
        Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::RequestAuthentication => {
            &["ZtunnelAccepted", "WaypointAccepted"]
        }
        Kind::VirtualService | Kind::DestinationRule => &["WaypointAccepted"],
        Kind::GatewayClass => &["Accepted"],
        _ => &[],
    }
}

/// Whether the API merges conditions by their type, so that we send ours alone. Elsewhere a list has one owner.
fn merges(kind: Kind) -> bool {
    !kind.group().ends_with(".istio.io")
}

/// The `status` to apply; none where the object has it already.
pub(super) fn merged(object: &ObjectRef, live: &Custom, wanted: &Status, now: &str) -> Option<Value> {
    let old = &live.status;
    let context = Context {
        generation: object.generation,
        now,
    };
    let (status, same) = match wanted {
        Status::Conditions(conditions) => context.conditions(object.kind, old, conditions),
        Status::Parents(parents) => context.parents(old, parents),
        Status::Gateway(gateway) => context.gateway(old, gateway),
    };
    // What we said once and say no more.
    let left = is_empty(&status) && merges(object.kind) && applied(live);
    (!same || left).then_some(status)
}

/// The `status` to apply to an object once nothing of ours is to be said of it; none where nothing is.
pub(in crate::controller) fn cleared(kind: Kind, live: &Custom) -> Option<Value> {
    let (nothing, said) = match kind {
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
            // Whoever writes the list last owns all of it; each entry names its controller.
            let mut parents = items(&live.status["parents"]).iter();
            let said = parents.any(|it| it["controllerName"] == CONTROLLER_NAME);
            (Status::Parents(Vec::new()), said)
        }
        Kind::Gateway => (Status::Gateway(GatewayStatus::default()), applied(live)),
        // Another mesh has conditions of the same types.
        _ => (Status::Conditions(Vec::new()), applied(live)),
    };
    if !said {
        return None;
    }
    let object = ObjectRef {
        kind,
        namespace: String::new(),
        name: String::new(),
        uid: String::new(),
        generation: 0,
    };
    merged(&object, live, &nothing, "")
}

fn is_empty(status: &Value) -> bool {
    let fields = status.as_object();
    fields.is_none_or(|fields| fields.values().all(|it| it.as_array().is_some_and(Vec::is_empty)))
}

/// Whether some of its status is from us.
fn applied(live: &Custom) -> bool {
    let managers = live.metadata.managed_fields.iter().flatten();
    let mut ours = managers.filter(|it| {
        it.manager.as_deref() == Some(FIELD_MANAGER) && it.subresource.as_deref() == Some("status")
    });
    let says = |fields: &Value| fields.as_object().is_some_and(|fields| !fields.is_empty());
    ours.any(|it| it.fields_v1.as_ref().is_some_and(|fields| says(&fields.0)))
}

struct Context<'a> {
    generation: i64,
    now: &'a str,
}

impl Context<'_> {
    fn conditions(&self, kind: Kind, old: &Value, wanted: &[Condition]) -> (Value, bool) {
        let new = self.list(&old["conditions"], wanted);
        let is_ours = |it: &&Value| ours(kind).iter().any(|type_| it["type"] == *type_);
        let (mine, others): (Vec<_>, Vec<_>) = items(&old["conditions"]).iter().partition(is_ours);
        let same = is_same(&mine, &new);
        let mut all: Vec<Value> = match merges(kind) {
            true => Vec::new(),
            false => others.into_iter().cloned().collect(),
        };
        all.extend(new);
        (json!({ "conditions": all }), same)
    }

    fn parents(&self, old: &Value, wanted: &[Parent]) -> (Value, bool) {
        let is_ours = |it: &&Value| it["controllerName"] == CONTROLLER_NAME;
        let (mine, others): (Vec<_>, Vec<_>) = items(&old["parents"]).iter().partition(is_ours);
        let new: Vec<Value> = wanted
            .iter()
            .map(|parent| {
                let before = mine.iter().find(|it| it["parentRef"] == parent.parent_ref);
                let before = before.map_or(&Value::Null, |it| &it["conditions"]);
                json!({
                    "parentRef": parent.parent_ref,
                    "controllerName": CONTROLLER_NAME,
                    "conditions": self.list(before, &parent.conditions),
                })
            })
            .collect();
        let same = is_same(&mine, &new);
        let all: Vec<Value> = others.into_iter().cloned().chain(new).collect();
        (json!({ "parents": all }), same)
    }

    fn gateway(&self, old: &Value, wanted: &GatewayStatus) -> (Value, bool) {
        let listeners = wanted.listeners.iter().map(|listener| {
            let before = items(&old["listeners"])
                .iter()
                .find(|it| it["name"] == *listener.name);
            json!({
                "name": listener.name,
                "supportedKinds": [],
                "attachedRoutes": listener.attached_routes,
                "conditions": self.list(before.map_or(&Value::Null, |it| &it["conditions"]), &listener.conditions),
            })
        });
        let listeners: Vec<Value> = listeners.collect();
        let addresses = wanted
            .addresses
            .iter()
            .map(|it| json!({"type": it.type_, "value": it.value}));
        let addresses: Vec<Value> = addresses.collect();
        let conditions = self.list(&old["conditions"], &wanted.conditions);
        let has = |field: &str, new: &[Value]| {
            let old: Vec<_> = items(&old[field]).iter().collect();
            is_same(&old, new)
        };
        // Others may have conditions of their own there.
        let said = |new: &Value| items(&old["conditions"]).contains(new);
        let same =
            conditions.iter().all(said) && has("listeners", &listeners) && has("addresses", &addresses);
        let status = json!({"conditions": conditions, "listeners": listeners, "addresses": addresses});
        (status, same)
    }

    /// Conditions as the API has them, by what was there before.
    fn list(&self, old: &Value, wanted: &[Condition]) -> Vec<Value> {
        wanted.iter().map(|it| self.condition(items(old), it)).collect()
    }

    fn condition(&self, old: &[Value], wanted: &Condition) -> Value {
        let status = match wanted.holds {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        let before = old
            .iter()
            .find(|it| it["type"] == wanted.type_ && it["status"] == status);
        let since = before.and_then(|it| it["lastTransitionTime"].as_str());
        let mut condition = json!({
            "type": wanted.type_,
            "status": status,
            "reason": wanted.reason,
            "message": cut(&wanted.message),
            "lastTransitionTime": since.unwrap_or(self.now),
        });
        // Of kinds that do not count them.
        if self.generation > 0 {
            condition["observedGeneration"] = self.generation.into();
        }
        condition
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Whether these are those, in any order.
fn is_same(old: &[&Value], new: &[Value]) -> bool {
    old.len() == new.len() && new.iter().all(|new| old.iter().any(|old| covers(old, new)))
}

/// Whether what is there says all that is wanted; the API adds fields.
fn covers(there: &Value, wanted: &Value) -> bool {
    let empty = Map::new();
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(key, wanted)| match (there.get(key), wanted) {
                (Some(there), wanted) => covers(there, wanted),
                // Nothing, as the API has it.
                (None, Value::Array(wanted)) => wanted.is_empty(),
                (None, Value::Object(wanted)) => *wanted == empty,
                (None, wanted) => wanted.is_null(),
            })
        }
        (Value::Array(there), Value::Array(wanted)) => {
            let there: Vec<_> = there.iter().collect();
            is_same(&there, wanted)
        }
        (there, wanted) => there == wanted,
    }
}

fn cut(message: &str) -> &str {
    let mut end = message.len().min(LONGEST_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
