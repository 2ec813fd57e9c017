//! Gateways that are waypoints: what is to be deployed for them, and what those who are bound to one need to know.

use serde_json::Value;

use super::{
    Resources, Settings, WaypointFor, WaypointGateway,
    namespace::{Pass, label},
    shared::{Admits, Expression, Operator, Waypoint, condition},
    waypoint_gateway,
    waypoints::service_of,
};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind},
    },
    manifests::{Labels, ObjectRef, Reader, Severity, port, there},
    mesh::{HBONE_PORT, Place, SpiffeId, values},
};

/// Adds the namespace's waypoints that are ours, and says what is wrong with them.
pub(super) fn gateways(pass: &mut Pass<'_>) {
    let objects = pass.objects;
    for (name, object) in objects.of_kind(Kind::Gateway) {
        let key = (pass.namespace.to_string(), name.to_owned());
        let Some(waypoint) = pass.cx.shared.waypoint(&key) else {
            continue;
        };
        let mut reader = pass.reader(Kind::Gateway, &object.metadata);
        let read = Read::new(object, &mut reader);
        check_waypoint_for(object, &mut reader);
        if read.hbone_port.is_none() {
            let message = "spec.listeners: has no listener with protocol HBONE: add one with port 15008";
            reader.tell(Severity::Warning, "NoHboneListener", message);
        }
        if waypoint.is_ours {
            let wishes = waypoint_gateway::read(object, &mut reader);
            pass.unit.waypoints.push(WaypointGateway {
                gateway: ObjectRef::new(Kind::Gateway, &object.metadata),
                class: waypoint.class.as_str().into(),
                waypoint_for: waypoint.waypoint_for,
                hbone_port: waypoint.hbone_port,
                wishes,
            });
        }
    }
}

/// The waypoint that a Gateway is; none for other Gateways. Policies are not asked yet.
pub(super) fn waypoint(object: &Custom, resources: &Resources, settings: &Settings) -> Option<Waypoint> {
    let reference = ObjectRef::new(Kind::Gateway, &object.metadata);
    // What is wrong with it, its own namespace says.
    let mut ignored = Vec::new();
    let read = Read::new(object, &mut Reader::new(reference.clone(), &mut ignored));
    let of_class = labels::WAYPOINT_CLASSES.contains(&read.class.as_str());
    if !of_class && read.hbone_port.is_none() {
        return None;
    }
    let class = resources.gateway_classes.get(&read.class);
    let of_gateway = label(object.metadata.labels.as_ref(), labels::WAYPOINT_FOR);
    let of_gateway_class = || {
        let labels = class.and_then(|class| class.metadata.labels.as_ref());
        label(labels, labels::WAYPOINT_FOR)
    };
    let waypoint_for = of_gateway.or_else(of_gateway_class).map(waypoint_for);
    let controller = class.and_then(|class| class.spec.get("controllerName")?.as_str());
    let ObjectRef { namespace, name, .. } = &reference;
    Some(Waypoint {
        key: service_of(namespace, name, &settings.cluster_domain),
        hbone_port: read.hbone_port.unwrap_or(HBONE_PORT),
        identity: SpiffeId::new(&settings.trust_domain, namespace, name).ok(),
        waypoint_for: match waypoint_for {
            Some(Ok(waypoint_for)) => waypoint_for,
            // A slip of the pen must not lead around it.
            Some(Err(_)) => WaypointFor::All,
            None => WaypointFor::default(),
        },
        is_ours: of_class && controller.is_none_or(|it| it == labels::CONTROLLER_NAME),
        class: read.class,
        admits: read.admits,
        ready: condition(&object.status, "Programmed").unwrap_or(false),
        enforces: false,
        policies: Vec::new(),
        authentications: Vec::new(),
    })
}

fn waypoint_for(text: &str) -> Result<WaypointFor, String> {
    match text {
        "service" => Ok(WaypointFor::Service),
        "workload" => Ok(WaypointFor::Workload),
        "all" => Ok(WaypointFor::All),
        "none" => Ok(WaypointFor::None),
        _ => Err(values::one_of(text, "service, workload, all or none")),
    }
}

fn check_waypoint_for(object: &Custom, reader: &mut Reader<'_>) {
    let written = label(object.metadata.labels.as_ref(), labels::WAYPOINT_FOR);
    if let Some(Err(message)) = written.map(waypoint_for) {
        let message = format!(
            "label {}: {message}; until then it is for all",
            labels::WAYPOINT_FOR
        );
        reader.tell(Severity::Error, "InvalidLabel", message);
    }
}

/// What a Gateway says, as far as it concerns waypoints.
struct Read {
    class: String,
    /// Of its first listener that speaks HBONE.
    hbone_port: Option<u16>,
    admits: Admits,
}

impl Read {
    fn new(object: &Custom, reader: &mut Reader<'_>) -> Self {
        let place = Place::ROOT.field("spec");
        let class = reader.optional(&object.spec, "gatewayClassName", &place, |text| {
            Ok(text.to_owned())
        });
        let mut read = Self {
            class: class.unwrap_or_default(),
            hbone_port: None,
            admits: Admits::Same,
        };
        let listeners = reader.list(&object.spec, "listeners", &place);
        let place = place.field("listeners");
        let speaks_hbone = |it: &Value| it.get("protocol").and_then(Value::as_str) == Some("HBONE");
        let found = listeners.iter().enumerate().find(|(_, it)| speaks_hbone(it));
        if let Some((i, listener)) = found {
            let place = place.index(i);
            let port = reader.required(listener, "port", &place, port);
            read.hbone_port = Some(port.unwrap_or(HBONE_PORT));
            read.admits = admits(listener, &place, reader);
        }
        read
    }
}

/// `allowedRoutes.namespaces` of a listener.
fn admits(listener: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Admits {
    let place = place.field("allowedRoutes");
    let place = place.field("namespaces");
    let Some(namespaces) = there(listener, "allowedRoutes").and_then(|it| there(it, "namespaces")) else {
        return Admits::Same;
    };
    match there(namespaces, "from").and_then(Value::as_str) {
        None | Some("Same") => Admits::Same,
        Some("All") => Admits::All,
        Some("Selector") => labelled(namespaces, &place, reader).unwrap_or(Admits::Same),
        Some(_) => {
            let message = "is not known here: write Same, All or Selector; until then it is Same";
            reader.invalid(&place.field("from"), message);
            Admits::Same
        }
    }
}

/// A selector of namespaces; none where it cannot be read.
fn labelled(namespaces: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Admits> {
    let place = place.field("selector");
    let Some(selector) = there(namespaces, "selector") else {
        reader.invalid(&place, "is missing: add it");
        return None;
    };
    reader.fields(selector, &place)?;
    let labels = match there(selector, "matchLabels") {
        Some(labels) => reader.labels(labels, &place.field("matchLabels"))?,
        None => Labels::new(),
    };
    let written = reader.list(selector, "matchExpressions", &place);
    let place = place.field("matchExpressions");
    let mut expressions = Vec::new();
    for (i, value) in written.iter().enumerate() {
        expressions.push(expression(value, &place.index(i), reader)?);
    }
    Some(Admits::Labelled(labels, expressions))
}

fn expression(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Expression> {
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let operator = |text: &str| match text {
        "In" => Ok(Operator::In),
        "NotIn" => Ok(Operator::NotIn),
        "Exists" => Ok(Operator::Exists),
        "DoesNotExist" => Ok(Operator::DoesNotExist),
        _ => Err(values::one_of(text, "In, NotIn, Exists or DoesNotExist")),
    };
    reader.fields(value, place)?;
    Some(Expression {
        key: reader.required(value, "key", place, text)?,
        operator: reader.required(value, "operator", place, operator)?,
        values: reader.all(value, "values", place, text),
    })
}
