//! `tls` and `tcp` of a VirtualService: what is passed through as it is.

use serde_json::Value;

use super::{destinations, http::rule_name, matches, virtual_service::Whose};
use crate::{
    manifests::{Reader, Severity, port, rule::only, there, words},
    mesh::{
        Place,
        http::{TcpRoute, TlsRule},
    },
};

/// Of TLS, by what the client asks for: each with the only port on which it counts.
pub(super) fn tls(
    spec: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Vec<(Option<u16>, TlsRule)> {
    const FIELDS: [&str; 6] = [
        "sniHosts",
        "destinationSubnets",
        "port",
        "sourceLabels",
        "gateways",
        "sourceNamespace",
    ];
    let rules = reader.list(spec, "tls", place);
    let place = place.field("tls");
    let mut read = Vec::new();
    for (i, value) in rules.iter().enumerate() {
        let place = place.index(i);
        let name = rule_name("tls", i, value, whose);
        let backends = destinations::backends(value, &place, whose, reader);
        let matches = reader.list(value, "match", &place);
        let place = place.field("match");
        for (i, value) in matches.iter().enumerate() {
            let (place, before) = (place.index(i), reader.faults());
            only(value, &FIELDS, &place, reader);
            let hosts = reader.all(value, "sniHosts", &place, words::host);
            let port = reader.optional(value, "port", &place, port);
            if hosts.is_empty() {
                reader.invalid(&place.field("sniHosts"), "is missing: add it");
            }
            if reader.faults() == before && matters(value, &place, reader) {
                let (name, backends) = (name.clone(), backends.clone());
                read.push((
                    port,
                    TlsRule {
                        name,
                        hosts,
                        backends,
                    },
                ));
            }
        }
    }
    read
}

/// Of everything else: each with the only port on which it counts.
pub(super) fn tcp(
    spec: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Vec<(Option<u16>, TcpRoute)> {
    const FIELDS: [&str; 6] = [
        "destinationSubnets",
        "port",
        "sourceLabels",
        "gateways",
        "sourceNamespace",
        "sourceSubnet",
    ];
    let rules = reader.list(spec, "tcp", place);
    let place = place.field("tcp");
    let mut read = Vec::new();
    for (i, value) in rules.iter().enumerate() {
        let place = place.index(i);
        let name = rule_name("tcp", i, value, whose);
        let backends = destinations::backends(value, &place, whose, reader);
        let route = TcpRoute { name, backends };
        let matches = reader.list(value, "match", &place);
        if there(value, "match").is_none_or(|it| it.as_array().is_some_and(Vec::is_empty)) {
            read.push((None, route.clone()));
        }
        let place = place.field("match");
        for (i, value) in matches.iter().enumerate() {
            let (place, before) = (place.index(i), reader.faults());
            only(value, &FIELDS, &place, reader);
            let port = reader.optional(value, "port", &place, port);
            if reader.faults() == before && matters(value, &place, reader) {
                read.push((port, route.clone()));
            }
        }
    }
    read
}

/// Whether a match counts here; one that asks for what is not looked at is left out rather than wider.
fn matters(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> bool {
    if !matches::for_mesh(value) || matches::asks_labels(value, place, reader) {
        return false;
    }
    let unseen = ["destinationSubnets", "sourceNamespace", "sourceSubnet"];
    let Some(field) = unseen.into_iter().find(|field| there(value, field).is_some()) else {
        return true;
    };
    let message = format!("{place}.{field}: is not asked of connections yet, so that this match is left out");
    reader.tell(Severity::Warning, "MatchDropped", message);
    false
}
