//! `parentRefs`: the services that a route is for.

use serde_json::Value;

use super::{Parent, Whose};
use crate::{
    cluster::objects::Kind,
    manifests::{Reader, Severity, port},
    mesh::Place,
};

const GATEWAY: &str = "gateway.networking.k8s.io";
const ISTIO: &str = "networking.istio.io";

/// Reads them. Gateways are passed over; what is not there is told.
pub(super) fn parents(
    spec: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Parent> {
    let refs = reader.list(spec, "parentRefs", place);
    let place = place.field("parentRefs");
    let mut parents = Vec::new();
    for (i, value) in refs.iter().enumerate() {
        let place = place.index(i);
        if reader.fields(value, &place).is_some() {
            parent(value, &place, whose, reader, &mut parents);
        }
    }
    parents
}

fn parent(
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
    parents: &mut Vec<Parent>,
) {
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let group = reader.optional(value, "group", place, text);
    let kind = reader.optional(value, "kind", place, text);
    let group = group.unwrap_or_else(|| GATEWAY.into());
    let kind = match (group.as_str(), kind.as_deref().unwrap_or("Gateway")) {
        ("" | "core", "Service") => Kind::Service,
        (ISTIO, "ServiceEntry") => Kind::ServiceEntry,
        (GATEWAY, "Gateway") => return,
        _ => {
            let message = "is not known here: write a Service (group \"\"), a ServiceEntry or a Gateway";
            return reader.invalid(&place.field("kind"), message);
        }
    };
    let before = reader.faults();
    let name = reader.required(value, "name", place, text);
    let namespace = reader.optional(value, "namespace", place, text);
    let wanted = reader.optional(value, "port", place, port);
    let Some(name) = name.filter(|_| reader.faults() == before) else {
        return;
    };
    let namespace = namespace.as_deref().unwrap_or(whose.namespace);
    let services = whose.around.services_of(kind, namespace, &name);
    if services.is_empty() {
        let message = format!(
            "{place}: there is no {} {namespace}/{name}: correct the name",
            kind.kind()
        );
        reader.tell(Severity::Warning, "ParentMissing", message);
    }
    for service in services {
        if let Some(wanted) = wanted.filter(|wanted| !service.ports.contains(wanted)) {
            let message = format!("{place}.port: {} has no port {wanted}: correct it", service.key);
            reader.tell(Severity::Warning, "ParentMissing", message);
            continue;
        }
        parents.push(Parent {
            service: service.key,
            port: wanted,
        });
    }
}
