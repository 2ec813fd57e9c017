//! `filters`: what is changed on the way, who gets a copy, and what is answered by the waypoint.

use serde_json::Value;

use super::{Whose, backends};
use crate::{
    manifests::{
        Reader,
        rule::{only, only_changeable, within},
        there, words,
    },
    mesh::{
        Place,
        http::{
            Cors, CorsOrigin, HeaderChanges, Mirror, PathRewrite, Redirect, RedirectPort, Rewrite, TextMatch,
        },
    },
};

/// What the filters of a rule say.
#[derive(Default)]
pub(super) struct Filters {
    pub(super) request_headers: HeaderChanges,
    pub(super) response_headers: HeaderChanges,
    pub(super) rewrite: Rewrite,
    pub(super) redirect: Option<Redirect>,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) cors: Option<Cors>,
}

/// Reads those of a rule. One that cannot be read is a fault: nothing may be passed on without it.
pub(super) fn of_rule(rule: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Filters {
    let mut filters = Filters::default();
    each(rule, place, reader, |type_, value, place, reader| {
        match type_ {
            "RequestRedirect" => filters.redirect = Some(redirect(value, place, reader)),
            "URLRewrite" => filters.rewrite = rewrite(value, place, reader),
            "RequestMirror" => filters.mirrors.push(mirror(value, place, whose, reader)),
            "CORS" => filters.cors = Some(cors(value, place, reader)),
            _ => return headers(type_, value, &mut filters, place, reader),
        }
        true
    });
    filters
}

/// Those of a single backend, which may change headers only.
pub(super) fn of_backend(backend: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Filters {
    let mut filters = Filters::default();
    each(backend, place, reader, |type_, value, place, reader| {
        headers(type_, value, &mut filters, place, reader)
    });
    filters
}

fn headers(
    type_: &str,
    value: &Value,
    filters: &mut Filters,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
) -> bool {
    match type_ {
        "RequestHeaderModifier" => changes(value, &mut filters.request_headers, place, reader),
        "ResponseHeaderModifier" => changes(value, &mut filters.response_headers, place, reader),
        _ => return false,
    }
    true
}

/// Calls back for each filter with its type and what it says; whether it was known.
fn each(
    parent: &Value,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
    mut read: impl FnMut(&str, &Value, &Place<'_>, &mut Reader<'_>) -> bool,
) {
    let filters = reader.list(parent, "filters", place);
    let place = place.field("filters");
    for (i, filter) in filters.iter().enumerate() {
        let place = place.index(i);
        if reader.fields(filter, &place).is_none() {
            continue;
        }
        let type_ = reader.required(filter, "type", &place, |text| Ok(text.to_owned()));
        let Some(type_) = type_ else { continue };
        let field = field_of(&type_);
        if !read(&type_, within(filter, field), &place.field(field), reader) {
            let message = format!("{type_:.64} is not known here, and a filter is never left out: remove it");
            reader.invalid(&place.field("type"), message);
        }
    }
}

/// Where a filter of this type says what it does.
fn field_of(type_: &str) -> &'static str {
    match type_ {
        "RequestHeaderModifier" => "requestHeaderModifier",
        "ResponseHeaderModifier" => "responseHeaderModifier",
        "RequestRedirect" => "requestRedirect",
        "URLRewrite" => "urlRewrite",
        "RequestMirror" => "requestMirror",
        "CORS" => "cors",
        _ => "type",
    }
}

fn changes(value: &Value, into: &mut HeaderChanges, place: &Place<'_>, reader: &mut Reader<'_>) {
    only(value, &["set", "add", "remove"], place, reader);
    let pairs = |field, reader: &mut Reader<'_>| {
        let entries = reader.list(value, field, place);
        let place = place.field(field);
        let mut pairs = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let place = place.index(i);
            let name = reader.required(entry, "name", &place, words::header_name);
            let value = reader.required(entry, "value", &place, words::header_value);
            pairs.extend(name.zip(value));
        }
        pairs
    };
    into.set.extend(pairs("set", reader));
    into.add.extend(pairs("add", reader));
    into.remove
        .extend(reader.all(value, "remove", place, words::header_name));
    only_changeable(into, place, reader);
}

fn path(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<PathRewrite> {
    let path = there(value, "path")?;
    let place = place.field("path");
    only(
        path,
        &["type", "replaceFullPath", "replacePrefixMatch"],
        &place,
        reader,
    );
    let type_ = reader.required(path, "type", &place, |text| Ok(text.to_owned()))?;
    match type_.as_str() {
        "ReplaceFullPath" => reader
            .required(path, "replaceFullPath", &place, words::any_text)
            .map(PathRewrite::Full),
        "ReplacePrefixMatch" => reader
            .required(path, "replacePrefixMatch", &place, words::any_text)
            .map(PathRewrite::Prefix),
        _ => {
            let message = "is not known here: write ReplaceFullPath or ReplacePrefixMatch";
            reader.invalid(&place.field("type"), message);
            None
        }
    }
}

fn rewrite(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Rewrite {
    only(value, &["hostname", "path"], place, reader);
    Rewrite {
        authority: reader.optional(value, "hostname", place, words::authority),
        path: path(value, place, reader),
    }
}

fn redirect(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Redirect {
    only(
        value,
        &["scheme", "hostname", "path", "port", "statusCode"],
        place,
        reader,
    );
    let scheme = reader.optional(value, "scheme", place, words::scheme);
    let port = reader.optional(value, "port", place, crate::manifests::port);
    let redirects = |text: &str| match text {
        "301" => Ok(301),
        "302" => Ok(302),
        "303" => Ok(303),
        "307" => Ok(307),
        "308" => Ok(308),
        _ => Err(crate::mesh::values::one_of(text, "301, 302, 303, 307 or 308")),
    };
    Redirect {
        host: reader.optional(value, "hostname", place, words::authority),
        port: Some(match (port, &scheme) {
            (Some(port), _) => RedirectPort::Is(port),
            (None, Some(_)) => RedirectPort::OfScheme,
            (None, None) => RedirectPort::OfRequest,
        }),
        scheme,
        path: path(value, place, reader),
        status: reader
            .optional(value, "statusCode", place, redirects)
            .unwrap_or(302),
    }
}

fn mirror(value: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Mirror {
    only(value, &["backendRef", "percent", "fraction"], place, reader);
    let percent = reader.optional(value, "percent", place, words::percent);
    let fraction = there(value, "fraction").and_then(|it| fraction(it, &place.field("fraction"), reader));
    Mirror {
        to: backends::destination(
            within(value, "backendRef"),
            &place.field("backendRef"),
            whose,
            reader,
        ),
        per_10_000: percent.or(fraction).unwrap_or(10_000),
    }
}

fn fraction(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<u32> {
    let part = reader.required(value, "numerator", place, words::count)?;
    let whole = reader
        .optional(value, "denominator", place, words::count)
        .unwrap_or(100);
    if part > whole || whole == 0 {
        reader.invalid(place, "is more than the whole: write a smaller numerator");
        return None;
    }
    u32::try_from(u64::from(part) * 10_000 / u64::from(whole)).ok()
}

fn cors(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Cors {
    const FIELDS: [&str; 6] = [
        "allowOrigins",
        "allowMethods",
        "allowHeaders",
        "exposeHeaders",
        "maxAge",
        "allowCredentials",
    ];
    only(value, &FIELDS, place, reader);
    Cors {
        allow_origins: reader.all(value, "allowOrigins", place, origin),
        allow_methods: reader.all(value, "allowMethods", place, words::text),
        allow_headers: reader.all(value, "allowHeaders", place, words::text),
        expose_headers: reader.all(value, "exposeHeaders", place, words::text),
        max_age_seconds: Some(reader.optional(value, "maxAge", place, words::count).unwrap_or(5)),
        allow_credentials: reader
            .optional(value, "allowCredentials", place, words::truth)
            .unwrap_or(false),
        forward_unmatched: false,
    }
}

/// `https://example.com`, `https://*.example.com` or `*`.
fn origin(text: &str) -> Result<CorsOrigin, String> {
    let origin = words::text(text)?;
    match text.split_once('*') {
        None => Ok(CorsOrigin::Is(TextMatch::Exact(origin))),
        Some(("", "")) => Ok(CorsOrigin::Any),
        Some((before, after)) if !after.contains('*') => {
            Ok(CorsOrigin::Wildcard(before.into(), after.into()))
        }
        Some(_) => Err("has more than one `*`: write one at most".into()),
    }
}
