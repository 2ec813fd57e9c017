//! Destinations of VirtualServices: host, subset and port.

use std::sync::Arc;

use serde_json::Value;

use super::{actions, virtual_service::Whose};
use crate::{
    manifests::{Reader, Severity, full_hostname, port, rule::within, there, words},
    mesh::{
        Place,
        http::{Backend, Destination, HeaderChanges},
    },
};

/// The port of a destination that has the port which was asked for.
pub(in crate::manifests) const SAME_PORT: u16 = 0;

/// `route` of a rule. A single destination gets everything, whatever its weight.
pub(super) fn backends(
    rule: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Backend> {
    let routes = reader.list(rule, "route", place);
    let place = place.field("route");
    let single = routes.len() == 1;
    let mut backends = Vec::new();
    for (i, value) in routes.iter().enumerate() {
        let (place, before) = (place.index(i), reader.faults());
        let weight = reader.optional(value, "weight", &place, words::count);
        let (request_headers, response_headers) = headers(value, &place, reader);
        let mut to = destination(
            within(value, "destination"),
            &place.field("destination"),
            whose,
            reader,
        );
        if reader.faults() > before {
            to = Destination::Nowhere(format!("{place} cannot be read").into());
        }
        backends.push(Backend {
            to,
            weight: if single { 1 } else { weight.unwrap_or(0) },
            request_headers,
            response_headers,
        });
    }
    if !backends.is_empty() && backends.iter().all(|it| it.weight == 0) {
        reader.invalid(
            &place,
            "all weights are 0, so that nobody gets anything: write weights",
        );
    }
    backends
}

/// Headers that a single destination changes, but for the host, which only a whole rule can.
fn headers(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> (HeaderChanges, HeaderChanges) {
    let mut changes = actions::Headers::default();
    actions::headers(value, place, &mut changes, reader);
    if changes.authority.is_some() {
        let message = "the host of a single destination is not changed yet: set it for the whole rule";
        reader.invalid(&place.field("headers"), message);
    }
    (changes.request, changes.response)
}

/// A destination. What is not there is told, and leads nowhere.
pub(super) fn destination(
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Destination {
    let nowhere = |why: String| Destination::Nowhere(why.into());
    if reader.fields(value, place).is_none() {
        return nowhere(format!("{place} cannot be read"));
    }
    let host = reader.required(value, "host", place, words::text);
    let subset = reader.optional(value, "subset", place, words::text);
    let wanted = there(value, "port").map(|it| {
        let place = place.field("port");
        reader.required(it, "number", &place, port)
    });
    let Some(host) = host else {
        return nowhere(format!("{place} has no host"));
    };
    let domain = whose.around.cluster_domain();
    let host = full_hostname(&host, whose.namespace, domain);
    let Some(known) = whose.around.service_at(&host, whose.namespace) else {
        let message = format!(
            "{place}.host: there is no service {host:.253}, so that its share is answered with 500: correct it, or write \
             the whole name, <service>.<namespace>.svc.{domain}"
        );
        reader.tell(Severity::Error, "UnknownHost", message.as_str());
        return nowhere(message);
    };
    if known.refused {
        return nowhere(format!(
            "nothing may be sent to {}, see its DestinationRule",
            known.key
        ));
    }
    if let Some(subset) = subset.as_ref().filter(|it| !known.subsets.contains(*it)) {
        tell_subset(subset, &known.key.hostname, place, reader);
    }
    let port = match (wanted, &known.ports[..]) {
        (Some(Some(wanted)), ports) if !ports.contains(&wanted) => {
            let message = format!("{place}.port: {} has no port {wanted}: correct it", known.key);
            reader.tell(Severity::Error, "BackendNotFound", message.as_str());
            return nowhere(message);
        }
        (Some(Some(wanted)), _) => wanted,
        (Some(None), _) => return nowhere(format!("{place}.port cannot be read")),
        (None, [single]) => *single,
        (None, _) => SAME_PORT,
    };
    Destination::Service {
        service: known.key,
        port,
        subset,
    }
}

fn tell_subset(subset: &Arc<str>, host: &str, place: &Place<'_>, reader: &mut Reader<'_>) {
    let message = format!(
        "{place}.subset: no DestinationRule makes a subset {subset:.64} of {host}, so that its share is answered with \
         503: add one to the DestinationRule of the host"
    );
    reader.tell(Severity::Error, "UnknownSubset", message);
}
