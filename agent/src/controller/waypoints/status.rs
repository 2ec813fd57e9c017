//! PURE. What a Gateway says of its waypoint.

use kube::core::DynamicObject;
use serde_json::Value;

use super::{
    apply::Trouble,
    parts::{Key, Part},
    plan::Actual,
};
use crate::controller::{
    compile::{Listener, WaypointGateway},
    conditions::{Address, Condition, GatewayStatus, ListenerStatus, Status},
};

/// Of a class that is ours.
pub(super) fn class() -> Status {
    let accepted = Condition::new(
        "Accepted",
        true,
        "Accepted",
        "Gateways of this class become waypoints",
    );
    Status::Conditions(vec![accepted])
}

/// Of a Gateway that is a waypoint of ours.
pub(super) fn gateway(it: &WaypointGateway, actual: &Actual, troubles: &[(Part, &Trouble)]) -> Status {
    let there = |part| {
        actual.get(&Key {
            namespace: it.gateway.namespace.clone(),
            name: it.gateway.name.clone(),
            part,
        })
    };
    let addresses = there(Part::Service).map(addresses).unwrap_or_default();
    let programmed = programmed(it, there(Part::Deployment), &addresses, troubles);
    let listeners = it.wishes.listeners.iter();
    Status::Gateway(GatewayStatus {
        listeners: listeners.map(|it| listener(it, &programmed)).collect(),
        conditions: vec![
            accepted(it),
            programmed,
            resolved("ResolvedRefs", "it refers to nothing"),
        ],
        addresses: addresses
            .into_iter()
            .map(|value| Address {
                type_: "IPAddress",
                value,
            })
            .collect(),
    })
}

fn accepted(it: &WaypointGateway) -> Condition {
    match &it.wishes.fault {
        Some(fault) => Condition::new("Accepted", false, fault.reason, fault.message.as_str()),
        None => Condition::new("Accepted", true, "Accepted", "it is a waypoint"),
    }
}

fn resolved(type_: &'static str, message: &'static str) -> Condition {
    Condition::new(type_, true, "ResolvedRefs", message)
}

/// True when there is a pod that takes requests, and an address that leads to it.
fn programmed(
    it: &WaypointGateway,
    deployment: Option<&DynamicObject>,
    addresses: &[String],
    troubles: &[(Part, &Trouble)],
) -> Condition {
    let available = deployment.map_or(0, |it| number(it, "/status/availableReplicas"));
    let wrong: Vec<_> = troubles.iter().map(|(part, it)| told(*part, it)).collect();
    let wrong = wrong.join("; ");
    let no = |reason: &'static str, message: String| Condition::new("Programmed", false, reason, message);
    let needed = troubles.iter().find(|(part, _)| *part <= Part::Deployment);
    if available > 0 && !addresses.is_empty() {
        let message = match wrong.as_str() {
            "" => "a pod takes requests".to_owned(),
            wrong => format!("a pod takes requests, but {wrong}"),
        };
        return Condition::new("Programmed", true, "Programmed", message);
    }
    match (&it.wishes.fault, needed, deployment) {
        (Some(_), ..) => no("Invalid", "it is not accepted".to_owned()),
        (_, Some((Part::Service, Trouble::Refused(_))), _) if it.wishes.address.is_some() => {
            no("AddressNotUsable", wrong)
        }
        (_, Some(_), _) => no("NoResources", wrong),
        (.., None) => no("Pending", "its objects are being made".to_owned()),
        (.., Some(_)) if available == 0 => no("Pending", "no pod of it is ready yet".to_owned()),
        (.., Some(_)) => no("AddressNotAssigned", "its Service has no address yet".to_owned()),
    }
}

fn told(part: Part, trouble: &Trouble) -> String {
    let kind = part.kind().kind;
    match trouble {
        Trouble::Foreign => format!(
            "there is a {kind} of its name that weft did not make and leaves alone: remove that, or rename the Gateway"
        ),
        Trouble::Refused(message) => format!("the {kind} cannot be made: {message}"),
    }
}

fn listener(it: &Listener, programmed: &Condition) -> ListenerStatus {
    let accepted = match it.is_hbone {
        true => Condition::new("Accepted", true, "Accepted", "it speaks HBONE"),
        false => {
            let message = "a waypoint speaks HBONE alone: remove it";
            Condition::new("Accepted", false, "UnsupportedProtocol", message)
        }
    };
    let programmed = match it.is_hbone {
        true => programmed.clone(),
        false => Condition::new("Programmed", false, "Invalid", "it is not accepted"),
    };
    ListenerStatus {
        name: it.name.clone(),
        attached_routes: 0,
        conditions: vec![
            accepted,
            Condition::new("Conflicted", false, "NoConflicts", "no other listener is like it"),
            programmed,
            resolved("ResolvedRefs", "it refers to nothing"),
        ],
    }
}

fn number(object: &DynamicObject, pointer: &str) -> u64 {
    let found = object.data.pointer(pointer);
    found.and_then(Value::as_u64).unwrap_or_default()
}

fn addresses(service: &DynamicObject) -> Vec<String> {
    let all = service.data.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let texts = all.into_iter().flatten().filter_map(Value::as_str);
    let texts: Vec<_> = texts.filter(|it| *it != "None").map(str::to_owned).collect();
    let one = service.data.pointer("/spec/clusterIP").and_then(Value::as_str);
    match texts.is_empty() {
        true => one
            .filter(|it| *it != "None" && !it.is_empty())
            .map(str::to_owned)
            .into_iter()
            .collect(),
        false => texts,
    }
}
