//! What a Gateway says of itself as a waypoint, and who is bound to it. Pure.

use std::collections::BTreeMap;

use kube::core::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use crate::cluster::{labels, objects::Custom};

/// A Gateway that is a waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Waypoint {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) class: String,
    /// What goes through it.
    #[serde(rename = "for")]
    pub(super) waypoint_for: String,
    /// Whether it takes requests.
    pub(super) programmed: bool,
    /// Why it is programmed, or is not.
    pub(super) reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    pub(super) addresses: Vec<String>,
    /// None where its Deployment is not there.
    pub(super) replicas: Option<Replicas>,
    /// `namespace/name` of every service that is sent through it.
    pub(super) services: Vec<String>,
}

/// The pods of a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Replicas {
    pub(super) ready: i32,
    pub(super) wanted: i32,
}

/// Reads one; none where it is another kind of Gateway.
pub(super) fn waypoint(gateway: &Custom) -> Option<Waypoint> {
    let text = |value: &Value, field: &str| Some(value.get(field)?.as_str()?.to_owned());
    let class = text(&gateway.spec, "gatewayClassName").unwrap_or_default();
    let listeners = gateway.spec.get("listeners").and_then(Value::as_array);
    let mut listeners = listeners.into_iter().flatten();
    let speaks_hbone = listeners.any(|it| text(it, "protocol").as_deref() == Some("HBONE"));
    if !labels::WAYPOINT_CLASSES.contains(&class.as_str()) && !speaks_hbone {
        return None;
    }
    let own = gateway.metadata.labels.as_ref();
    let (programmed, reason, message) = programmed(gateway);
    let addresses = gateway.status.get("addresses").and_then(Value::as_array);
    let addresses = addresses.into_iter().flatten();
    Some(Waypoint {
        namespace: gateway.metadata.namespace.clone().unwrap_or_default(),
        name: gateway.metadata.name.clone().unwrap_or_default(),
        class,
        waypoint_for: own
            .and_then(|own| own.get(labels::WAYPOINT_FOR).cloned())
            .unwrap_or_else(|| "service".to_owned()),
        programmed,
        reason,
        message,
        addresses: addresses.filter_map(|it| text(it, "value")).collect(),
        ..Waypoint::default()
    })
}

/// What its conditions say of the spec that it has now; the first that is not met goes first.
fn programmed(gateway: &Custom) -> (bool, String, String) {
    let conditions = gateway.status.get("conditions").and_then(Value::as_array);
    let text = |it: &Value, field: &str| it[field].as_str().unwrap_or_default().to_owned();
    let find = |type_: &str| {
        let mut all = conditions.into_iter().flatten();
        all.find(|it| it["type"] == type_ && it["observedGeneration"].as_i64() == gateway.metadata.generation)
    };
    let (Some(accepted), Some(programmed)) = (find("Accepted"), find("Programmed")) else {
        let message = "no controller has looked at it: does weft run, and is the class its own?";
        return (false, "Waiting".to_owned(), message.to_owned());
    };
    let told = if accepted["status"] == "True" {
        programmed
    } else {
        accepted
    };
    let holds = told["type"] == "Programmed" && told["status"] == "True";
    (holds, text(told, "reason"), text(told, "message"))
}

/// The services that are sent through each waypoint, by its namespace and name. A service's own label goes before its
/// namespace's.
pub(super) fn bound(
    services: &[ObjectMeta],
    namespaces: &[ObjectMeta],
) -> BTreeMap<(String, String), Vec<String>> {
    let mut bound: BTreeMap<_, Vec<String>> = BTreeMap::new();
    let of_namespace: BTreeMap<_, _> = namespaces
        .iter()
        .map(|it| (it.name.as_deref().unwrap_or_default(), it.labels.as_ref()))
        .collect();
    for service in services {
        let namespace = service.namespace.as_deref().unwrap_or_default();
        let own = service.labels.as_ref();
        // A waypoint's own.
        if own.is_some_and(|own| own.contains_key(labels::GATEWAY_NAME)) {
            continue;
        }
        let asks = |labels: &&BTreeMap<String, String>| labels.contains_key(labels::USE_WAYPOINT);
        let Some(asked) = own
            .filter(asks)
            .or_else(|| of_namespace.get(namespace).copied().flatten())
        else {
            continue;
        };
        let Some(name) = asked.get(labels::USE_WAYPOINT).filter(|name| *name != "none") else {
            continue;
        };
        let elsewhere = asked.get(labels::USE_WAYPOINT_NAMESPACE);
        let at = elsewhere.map_or(namespace, String::as_str).to_owned();
        let service = format!("{namespace}/{}", service.name.as_deref().unwrap_or_default());
        bound.entry((at, name.clone())).or_default().push(service);
    }
    bound
}
