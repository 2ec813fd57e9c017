//! Routes and traffic rules that nobody acts on: they need a waypoint in front of the service, or a gateway at the edge.

use serde_json::Value;

use super::view::{View, list, tell, text};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind},
    },
    controller::compile::{Diagnostic, ObjectRef, Severity},
    mesh::Service,
};

const ROUTES: [Kind; 4] = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TcpRoute, Kind::TlsRoute];
/// The name by which VirtualServices mean the mesh rather than a gateway.
const MESH: &str = "mesh";

pub(super) fn check(view: &View<'_>, found: &mut Vec<Diagnostic>) {
    for (object, it) in view.customs(Kind::VirtualService) {
        if is_for_mesh(&it.spec) {
            for (i, host) in list(&it.spec, "hosts").iter().enumerate() {
                let Some(host) = host.as_str().filter(|host| !host.contains('*')) else {
                    continue;
                };
                let service = view.service_of_host(host, &object.namespace);
                needs_waypoint(&object, &format!("spec.hosts[{i}]"), host, service, found);
            }
        }
    }
    for (object, it) in view.customs(Kind::DestinationRule) {
        if let Some(host) = text(&it.spec, "host").filter(|host| !host.contains('*')) {
            let service = view.service_of_host(host, &object.namespace);
            needs_waypoint(&object, "spec.host", host, service, found);
        }
    }
    for kind in ROUTES {
        for (object, it) in view.customs(kind) {
            parents(view, &object, it, found);
            weights(&object, &it.spec, found);
        }
    }
    at_the_edge(view, found);
}

/// A rule whose requests nobody gets. What is wrong with a VirtualService's, `compile` says.
fn weights(object: &ObjectRef, spec: &Value, found: &mut Vec<Diagnostic>) {
    for (i, rule) in list(spec, "rules").iter().enumerate() {
        let backends = list(rule, "backendRefs");
        let is_zero = |it: &Value| it.get("weight").and_then(Value::as_u64) == Some(0);
        if !backends.is_empty() && backends.iter().all(is_zero) {
            let message = format!(
                "spec.rules[{i}].backendRefs: all weights are 0, so that requests are answered with 500: give one of them a weight"
            );
            tell(found, object, Severity::Warning, "NoWeight", message);
        }
    }
}

fn is_for_mesh(spec: &Value) -> bool {
    let gateways = list(spec, "gateways");
    gateways.is_empty() || gateways.iter().any(|it| it.as_str() == Some(MESH))
}

/// Agents see connections; what becomes of requests is a waypoint's business.
fn needs_waypoint(
    object: &ObjectRef,
    field: &str,
    host: &str,
    service: Option<&Service>,
    found: &mut Vec<Diagnostic>,
) {
    let (severity, message) = match service {
        Some(service) if service.waypoint.is_some() => return,
        Some(service) => {
            let message = format!(
                "{field}: only a waypoint acts on this, and {} has none: label it, or its namespace, {}",
                service.key.hostname,
                labels::USE_WAYPOINT
            );
            (Severity::Warning, message)
        }
        None => {
            let message = format!(
                "{field}: only a waypoint acts on this: the service {host} has to be labelled {}",
                labels::USE_WAYPOINT
            );
            (Severity::Info, message)
        }
    };
    tell(found, object, severity, "NeedsWaypoint", message);
}

fn parents(view: &View<'_>, object: &ObjectRef, it: &Custom, found: &mut Vec<Diagnostic>) {
    for (i, parent) in list(&it.spec, "parentRefs").iter().enumerate() {
        let name = text(parent, "name").unwrap_or_default();
        let namespace = text(parent, "namespace").unwrap_or(&object.namespace);
        let field = format!("spec.parentRefs[{i}]");
        match text(parent, "kind").unwrap_or("Gateway") {
            "Service" => {
                let service = view.service(namespace, name);
                needs_waypoint(object, &field, &format!("{namespace}/{name}"), service, found);
            }
            "Gateway" if !is_waypoint(view, namespace, name) => {
                let message = format!(
                    "{field}: Gateway {namespace}/{name} stands at the edge of the cluster, where weft serves nobody yet: inside \
                     of the mesh this has no effect; for that, name a Service"
                );
                tell(found, object, Severity::Info, "AtTheEdge", message);
            }
            _ => {}
        }
    }
}

/// Gateways that are no waypoints.
fn at_the_edge(view: &View<'_>, found: &mut Vec<Diagnostic>) {
    let message =
        "spec: stands at the edge of the cluster, where weft serves nobody yet: another controller has to";
    for (object, _) in view.customs(Kind::IstioGateway) {
        tell(found, &object, Severity::Info, "AtTheEdge", message);
    }
    for (object, it) in view.customs(Kind::Gateway) {
        if !is_of_mesh(it) {
            tell(found, &object, Severity::Info, "AtTheEdge", message);
        }
    }
}

fn is_waypoint(view: &View<'_>, namespace: &str, name: &str) -> bool {
    let is_it = |object: &ObjectRef| object.namespace == namespace && object.name == name;
    view.customs(Kind::Gateway)
        .any(|(object, it)| is_it(&object) && is_of_mesh(it))
}

/// Whether a Gateway is a waypoint, whoever's.
fn is_of_mesh(it: &Custom) -> bool {
    let class = text(&it.spec, "gatewayClassName").unwrap_or_default();
    let speaks_hbone = |listener: &Value| text(listener, "protocol") == Some("HBONE");
    labels::WAYPOINT_CLASSES.contains(&class) || list(&it.spec, "listeners").iter().any(speaks_hbone)
}
