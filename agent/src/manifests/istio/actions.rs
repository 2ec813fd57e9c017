//! What a VirtualService's rule does with a request besides passing it on.

use std::sync::Arc;

use serde_json::Value;

use super::matches::text_match;
use crate::{
    manifests::{
        Reader, port,
        rule::{only, only_changeable, within},
        there, words,
    },
    mesh::{
        Place,
        http::{
            Cors, CorsOrigin, DirectResponse, Fault, FaultAbort, FaultDelay, HeaderChanges, PathRewrite,
            Redirect, RedirectPort, Rewrite, TextMatch,
        },
        values,
    },
};

/// The largest body of an answer of the waypoint's own, in bytes.
const LARGEST_BODY: usize = 1 << 20;

/// What `headers` changes.
#[derive(Default)]
pub(super) struct Headers {
    pub(super) request: HeaderChanges,
    pub(super) response: HeaderChanges,
    /// The host, which is a header to Istio's users.
    pub(super) authority: Option<Arc<str>>,
}

/// Reads `headers` of a rule or of a destination.
pub(super) fn headers(parent: &Value, place: &Place<'_>, into: &mut Headers, reader: &mut Reader<'_>) {
    let Some(value) = there(parent, "headers") else {
        return;
    };
    let place = place.field("headers");
    only(value, &["request", "response"], &place, reader);
    changes(
        within(value, "response"),
        &mut into.response,
        None,
        &place.field("response"),
        reader,
    );
    let authority = &mut into.authority;
    changes(
        within(value, "request"),
        &mut into.request,
        Some(authority),
        &place.field("request"),
        reader,
    );
}

fn changes(
    value: &Value,
    into: &mut HeaderChanges,
    mut authority: Option<&mut Option<Arc<str>>>,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
) {
    if value.is_null() {
        return;
    }
    only(value, &["set", "add", "remove"], place, reader);
    for (field, pairs) in [("set", &mut into.set), ("add", &mut into.add)] {
        let place = place.field(field);
        let fields = there(value, field).and_then(|it| reader.fields(it, &place));
        for (name, value) in fields.into_iter().flatten() {
            let place = place.field(name);
            let is_host = name == ":authority" || name.eq_ignore_ascii_case("host");
            match authority.as_deref_mut().filter(|_| is_host) {
                Some(authority) => *authority = reader.parse(value, &place, words::authority),
                None => {
                    let value = reader.parse(value, &place, words::header_value);
                    match words::header_name(name) {
                        Ok(name) => pairs.extend(value.map(|value| (name, value))),
                        Err(message) => reader.invalid(&place, message),
                    }
                }
            }
        }
    }
    into.remove
        .extend(reader.all(value, "remove", place, words::header_name));
    only_changeable(into, place, reader);
}

/// Reads `rewrite`; nothing where there is none.
pub(super) fn rewrite(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Rewrite {
    if value.is_null() {
        return Rewrite::default();
    }
    only(value, &["uri", "authority", "uriRegexRewrite"], place, reader);
    let prefix = reader.optional(value, "uri", place, words::any_text);
    let regex = there(value, "uriRegexRewrite").and_then(|it| {
        let place = place.field("uriRegexRewrite");
        let matches = reader.required(it, "match", &place, words::expression)?;
        let replacement = reader.optional(it, "rewrite", &place, words::any_text);
        let replacement = replacement.unwrap_or_default();
        Some(PathRewrite::Regex { matches, replacement })
    });
    Rewrite {
        authority: reader.optional(value, "authority", place, words::authority),
        path: prefix.map(PathRewrite::Prefix).or(regex),
    }
}

/// Reads `redirect`.
pub(super) fn redirect(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Redirect {
    const FIELDS: [&str; 6] = ["uri", "authority", "port", "derivePort", "scheme", "redirectCode"];
    only(value, &FIELDS, place, reader);
    let redirects = |text: &str| match text {
        "301" => Ok(301),
        "302" => Ok(302),
        "303" => Ok(303),
        "307" => Ok(307),
        "308" => Ok(308),
        _ => Err(values::one_of(text, "301, 302, 303, 307 or 308")),
    };
    let derived = |text: &str| match text {
        "FROM_PROTOCOL_DEFAULT" => Ok(RedirectPort::OfScheme),
        "FROM_REQUEST_PORT" => Ok(RedirectPort::OfRequest),
        _ => Err(values::one_of(text, "FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT")),
    };
    let written = reader.optional(value, "port", place, port);
    let derived = reader.optional(value, "derivePort", place, derived);
    Redirect {
        scheme: reader.optional(value, "scheme", place, words::scheme),
        host: reader.optional(value, "authority", place, words::authority),
        port: written.map(RedirectPort::Is).or(derived),
        path: reader
            .optional(value, "uri", place, words::text)
            .map(PathRewrite::Full),
        status: reader
            .optional(value, "redirectCode", place, redirects)
            .unwrap_or(301),
    }
}

/// Reads `directResponse`.
pub(super) fn direct_response(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> DirectResponse {
    only(value, &["status", "body"], place, reader);
    let body = |text: &str| match text.len() {
        0..=LARGEST_BODY => Ok(text.into()),
        _ => Err(format!("is too long: use at most {LARGEST_BODY} bytes")),
    };
    let written = within(value, "body");
    if there(written, "bytes").is_some() {
        reader.invalid(&place.field("body"), "bytes are not passed on yet: write string");
    }
    DirectResponse {
        status: reader
            .required(value, "status", place, words::status)
            .unwrap_or(500),
        body: reader
            .optional(written, "string", &place.field("body"), body)
            .unwrap_or_default(),
    }
}

/// `value` of a percentage, as parts of 10,000; 0 where it has none or cannot be read.
pub(super) fn percentage(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> u32 {
    if reader.fields(value, place).is_none() {
        return 0;
    }
    reader
        .optional(value, "value", place, words::percent)
        .unwrap_or(0)
}

/// Reads `fault`.
pub(super) fn fault(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Fault {
    only(value, &["delay", "abort"], place, reader);
    Fault {
        delay: there(value, "delay").and_then(|it| delay(it, &place.field("delay"), reader)),
        abort: there(value, "abort").and_then(|it| abort(it, &place.field("abort"), reader)),
    }
}

fn delay(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<FaultDelay> {
    let per_10_000 = share(value, place, reader);
    let delay_ms = reader.required(value, "fixedDelay", place, words::duration)?;
    Some(FaultDelay { per_10_000, delay_ms })
}

fn abort(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<FaultAbort> {
    let per_10_000 = share(value, place, reader);
    let http_status = reader.optional(value, "httpStatus", place, words::status);
    let grpc_status = reader.optional(value, "grpcStatus", place, words::grpc_status);
    if http_status.is_none() && grpc_status.is_none() {
        reader.invalid(place, "says no status: write httpStatus or grpcStatus");
        return None;
    }
    Some(FaultAbort {
        per_10_000,
        http_status: http_status.unwrap_or(200),
        grpc_status,
    })
}

/// Of how many requests; of none where it is not said, as in Istio.
fn share(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> u32 {
    if let Some(percentage) = there(value, "percentage") {
        return self::percentage(percentage, &place.field("percentage"), reader);
    }
    let old = reader.optional(value, "percent", place, words::percent);
    if old.is_none() {
        let message = "is missing, so that it happens to no request: write percentage.value";
        reader.warn(&place.field("percentage"), "NoPercentage", message);
    }
    old.unwrap_or(0)
}

/// Reads `corsPolicy`.
pub(super) fn cors(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Cors {
    const FIELDS: [&str; 8] = [
        "allowOrigin",
        "allowOrigins",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
        "allowCredentials",
        "unmatchedPreflights",
    ];
    only(value, &FIELDS, place, reader);
    let max_age = reader.optional(value, "maxAge", place, words::duration);
    let forward = |text: &str| match text {
        "FORWARD" | "UNSPECIFIED" => Ok(true),
        "IGNORE" => Ok(false),
        _ => Err(values::one_of(text, "FORWARD or IGNORE")),
    };
    Cors {
        allow_origins: origins(value, place, reader),
        allow_methods: reader.all(value, "allowMethods", place, words::text),
        allow_headers: reader.all(value, "allowHeaders", place, words::text),
        expose_headers: reader.all(value, "exposeHeaders", place, words::text),
        max_age_seconds: max_age.and_then(|ms| u32::try_from(ms / 1000).ok()),
        allow_credentials: reader
            .optional(value, "allowCredentials", place, words::truth)
            .unwrap_or(false),
        forward_unmatched: reader
            .optional(value, "unmatchedPreflights", place, forward)
            .unwrap_or(true),
    }
}

fn origins(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<CorsOrigin> {
    let any = |text: TextMatch| match text {
        TextMatch::Exact(text) if *text == *"*" => CorsOrigin::Any,
        text => CorsOrigin::Is(text),
    };
    let old = reader.all(value, "allowOrigin", place, words::text);
    let mut origins: Vec<_> = old.into_iter().map(|text| any(TextMatch::Exact(text))).collect();
    let written = reader.list(value, "allowOrigins", place);
    let place = place.field("allowOrigins");
    for (i, value) in written.iter().enumerate() {
        origins.extend(text_match(value, &place.index(i), reader).map(any));
    }
    origins
}
