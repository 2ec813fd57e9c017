//! `backendRefs`: who gets what share.

use serde_json::Value;

use super::{Whose, filters};
use crate::{
    cluster::objects::Kind,
    manifests::{Known, Reader, Severity, port, there, words},
    mesh::{
        Place,
        http::{Backend, Destination},
    },
};

/// Reads them all. One that leads nowhere keeps its share, which is answered with 500.
pub(super) fn backends(
    rule: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Backend> {
    let refs = reader.list(rule, "backendRefs", place);
    let place = place.field("backendRefs");
    let refs = refs.iter().enumerate();
    refs.map(|(i, value)| backend(value, &place.index(i), whose, reader))
        .collect()
}

fn backend(value: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Backend {
    let before = reader.faults();
    let weight = reader.optional(value, "weight", place, words::count);
    let of_backend = filters::of_backend(value, place, reader);
    let mut to = destination(value, place, whose, reader);
    if reader.faults() > before {
        to = Destination::Nowhere(format!("{place} cannot be read").into());
    }
    Backend {
        to,
        weight: match there(value, "weight") {
            None => 1,
            Some(_) => weight.unwrap_or(1),
        },
        request_headers: of_backend.request_headers,
        response_headers: of_backend.response_headers,
    }
}

/// What a reference refers to.
pub(super) fn destination(
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Destination {
    match service(value, place, whose, reader) {
        Ok((known, port)) => Destination::Service {
            service: known.key,
            port,
            subset: None,
        },
        Err((reason, message)) => {
            let why = format!("{place}: {message}");
            if !reason.is_empty() {
                reader.tell(Severity::Error, reason, why.as_str());
            }
            Destination::Nowhere(why.into())
        }
    }
}

/// Or the reason why there is none; told already where that is empty.
fn service(
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Result<(Known, u16), (&'static str, String)> {
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let unreadable = || ("", "cannot be read".to_owned());
    reader.fields(value, place).ok_or_else(unreadable)?;
    let group = reader.optional(value, "group", place, text).unwrap_or_default();
    let kind = reader.optional(value, "kind", place, text);
    let name = reader
        .required(value, "name", place, text)
        .ok_or_else(unreadable)?;
    let namespace = reader.optional(value, "namespace", place, text);
    let port = reader
        .required(value, "port", place, port)
        .ok_or_else(unreadable)?;
    let namespace = namespace.as_deref().unwrap_or(whose.namespace);
    let known = match (group.as_str(), kind.as_deref().unwrap_or("Service")) {
        ("" | "core", "Service") => of_namespace(Kind::Service, namespace, &name, whose)?,
        ("networking.istio.io", "ServiceEntry") => of_namespace(Kind::ServiceEntry, namespace, &name, whose)?,
        ("networking.istio.io", "Hostname") => whose.around.service_at(&name, whose.namespace),
        _ => {
            let message = "is not known here: write a Service";
            reader.invalid(&place.field("kind"), message);
            return Err(unreadable());
        }
    };
    let missing = |what: String| {
        let message = format!("{what}, so that its share is answered with 500: correct it");
        ("BackendNotFound", message)
    };
    let known = known.ok_or_else(|| missing(format!("there is no service {namespace}/{name}")))?;
    if known.refused {
        return Err(missing(format!(
            "nothing may be sent to {}, see its DestinationRule",
            known.key
        )));
    }
    if !known.ports.contains(&port) {
        return Err(missing(format!("{} has no port {port}", known.key)));
    }
    Ok((known, port))
}

fn of_namespace(
    kind: Kind,
    namespace: &str,
    name: &str,
    whose: Whose<'_>,
) -> Result<Option<Known>, (&'static str, String)> {
    let found = || whose.around.services_of(kind, namespace, name).into_iter().next();
    if namespace == whose.namespace {
        return Ok(found());
    }
    let permitted = whose
        .around
        .permits((whose.kind, whose.namespace), (kind, namespace, name));
    let known = found();
    let is_parent = |known: &Known| whose.parents.iter().any(|parent| parent.service == known.key);
    if !permitted && !known.as_ref().is_some_and(is_parent) {
        let message = format!(
            "no ReferenceGrant in {namespace} permits {}s of {} to refer to {name}, so that its share is answered with \
             500: add one",
            whose.kind.kind(),
            whose.namespace
        );
        return Err(("RefNotPermitted", message));
    }
    Ok(known)
}
