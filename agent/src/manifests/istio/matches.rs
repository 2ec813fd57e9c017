//! `match` of a VirtualService's rules for requests.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    manifests::{
        Reader, Severity, port,
        rule::{Alternative, only},
        there, words,
    },
    mesh::{
        Place,
        http::{HeaderMatch, HeaderTest, PathMatch, QueryMatch, RequestTest, TextMatch},
    },
};

const FIELDS: [&str; 14] = [
    "name",
    "uri",
    "scheme",
    "method",
    "authority",
    "headers",
    "port",
    "sourceLabels",
    "gateways",
    "queryParams",
    "ignoreUriCase",
    "withoutHeaders",
    "sourceNamespace",
    "statPrefix",
];

/// Reads those of a rule; without any it is about every request. One that cannot be read is about none.
pub(super) fn alternatives(rule: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<Alternative> {
    let matches = reader.list(rule, "match", place);
    let unreadable = there(rule, "match").is_some_and(|it| !it.is_array());
    let one = [Value::Object(Default::default())];
    let matches = if matches.is_empty() && !unreadable {
        &one[..]
    } else {
        matches
    };
    let place = place.field("match");
    let mut alternatives = Vec::new();
    for (i, value) in matches.iter().enumerate() {
        let place = place.index(i);
        if !for_mesh(value) {
            continue;
        }
        alternatives.extend(alternative(value, &place, reader));
    }
    alternatives
}

/// Whether clients of the mesh are among those that a match is about.
pub(super) fn for_mesh(value: &Value) -> bool {
    let gateways = there(value, "gateways").and_then(Value::as_array);
    let is_mesh = |it: &Value| it.as_str() == Some("mesh");
    gateways.is_none_or(|gateways| gateways.is_empty() || gateways.iter().any(is_mesh))
}

/// Whether it asks for what a waypoint does not know of clients.
pub(super) fn asks_labels(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> bool {
    let labels = there(value, "sourceLabels").filter(|it| it.as_object().is_none_or(|it| !it.is_empty()));
    if labels.is_none() {
        return false;
    }
    let message = format!(
        "{place}.sourceLabels: a waypoint does not know the labels of clients, so that this match is left out: use \
         sourceNamespace"
    );
    reader.tell(Severity::Warning, "MatchDropped", message);
    true
}

fn alternative(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Alternative> {
    let before = reader.faults();
    only(value, &FIELDS, place, reader);
    let port = reader.optional(value, "port", place, port);
    let mut test = RequestTest {
        path: path(value, place, reader),
        method: text_field(value, "method", place, reader),
        headers: headers(value, place, reader),
        query: query(value, place, reader),
        authority: text_field(value, "authority", place, reader),
        scheme: text_field(value, "scheme", place, reader),
        source_namespace: reader.optional(value, "sourceNamespace", place, words::text),
        ..RequestTest::default()
    };
    pseudo_headers(&mut test, place, reader);
    let dropped = asks_labels(value, place, reader);
    if reader.faults() > before {
        let message =
            format!("{place}: is left out: requests for it fall under other rules, or are answered with 404");
        reader.tell(Severity::Warning, "MatchDropped", message);
        return None;
    }
    let rank = Default::default();
    (!dropped).then_some(Alternative { test, port, rank })
}

fn path(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<PathMatch> {
    let ignores_case = reader.optional(value, "ignoreUriCase", place, words::truth);
    let ignores_case = ignores_case.unwrap_or(false);
    let text = text_field(value, "uri", place, reader)?;
    let lower = |text: Arc<str>| Arc::from(text.to_ascii_lowercase());
    Some(match text {
        TextMatch::Exact(text) if ignores_case => PathMatch::ExactIgnoringCase(lower(text)),
        TextMatch::Prefix(text) if ignores_case => PathMatch::PrefixIgnoringCase(lower(text)),
        TextMatch::Exact(text) => PathMatch::Exact(text),
        TextMatch::Prefix(text) => PathMatch::Prefix(text),
        TextMatch::Regex(text) => PathMatch::Regex(text),
    })
}

fn text_field(value: &Value, field: &str, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<TextMatch> {
    text_match(there(value, field)?, &place.field(field), reader)
}

/// Istio's StringMatch.
pub(super) fn text_match(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<TextMatch> {
    only(value, &["exact", "prefix", "regex"], place, reader);
    let exact = reader.optional(value, "exact", place, words::any_text);
    let prefix = reader.optional(value, "prefix", place, words::any_text);
    let regex = reader.optional(value, "regex", place, words::expression);
    match (exact, prefix, regex) {
        (Some(text), None, None) => Some(TextMatch::Exact(text)),
        (None, Some(text), None) => Some(TextMatch::Prefix(text)),
        (None, None, Some(text)) => Some(TextMatch::Regex(text)),
        _ => {
            reader.invalid(place, "must be one of exact, prefix and regex");
            None
        }
    }
}

/// Of headers and parameters `{}` asks that it is there.
fn test(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<HeaderTest> {
    match value.as_object().is_some_and(|fields| fields.is_empty()) {
        true => Some(HeaderTest::Present),
        false => text_match(value, place, reader).map(HeaderTest::Is),
    }
}

fn named(
    value: &Value,
    field: &str,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
) -> Vec<(String, HeaderTest)> {
    let place = place.field(field);
    let fields = there(value, field).and_then(|it| reader.fields(it, &place));
    let mut named = Vec::new();
    for (name, value) in fields.into_iter().flatten() {
        let test = test(value, &place.field(name), reader);
        named.extend(test.map(|test| (name.clone(), test)));
    }
    named
}

fn headers(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<HeaderMatch> {
    let mut headers = Vec::new();
    for (field, not) in [("headers", false), ("withoutHeaders", true)] {
        for (name, test) in named(value, field, place, reader) {
            let read = match name.strip_prefix(':') {
                Some(_) => Ok(name.as_str().into()),
                None => words::header_name(&name),
            };
            match read {
                Ok(name) => headers.push(HeaderMatch { name, test, not }),
                Err(message) => reader.invalid(&place.field(field), message),
            }
        }
    }
    headers
}

/// What Istio's users write as headers and HTTP/2 has as fields of its own (RFC 9113 8.3.1).
fn pseudo_headers(test: &mut RequestTest, place: &Place<'_>, reader: &mut Reader<'_>) {
    let all = std::mem::take(&mut test.headers);
    let (pseudo, plain) = all
        .into_iter()
        .partition(|it: &HeaderMatch| it.name.starts_with(':'));
    test.headers = plain;
    for it in pseudo {
        let place = place.field(if it.not { "withoutHeaders" } else { "headers" });
        let slot = match &*it.name {
            ":method" => &mut test.method,
            ":authority" => &mut test.authority,
            ":scheme" => &mut test.scheme,
            _ => {
                reader.invalid(
                    &place.field(&it.name),
                    "is not looked at: use uri, method, authority or scheme",
                );
                continue;
            }
        };
        match (it.test, it.not, &slot) {
            (HeaderTest::Is(text), false, None) => *slot = Some(text),
            (HeaderTest::Present, false, _) => {}
            _ => reader.invalid(
                &place.field(&it.name),
                "is said twice, or negated: use the field of its own",
            ),
        }
    }
}

fn query(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<QueryMatch> {
    let named = named(value, "queryParams", place, reader);
    let query = named.into_iter().map(|(name, test)| QueryMatch {
        name: name.into(),
        test,
    });
    query.collect()
}
