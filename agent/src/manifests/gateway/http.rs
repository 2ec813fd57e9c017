//! HTTPRoute: matches, filters, backends, timeouts and retries of its rules.

use serde_json::Value;

use super::{Rank, Whose, backends, filters};
use crate::{
    manifests::{
        Reader, Severity,
        rule::{Alternative, HttpRule, only, plain, typed, unreadable},
        there, words,
    },
    mesh::{
        Place,
        http::{
            HeaderMatch, HeaderTest, PathMatch, QueryMatch, RequestTest, Retry, RetryOn, RouteAction,
            TextMatch, Timeouts,
        },
        values,
    },
};

/// Attempts after the first where a manifest asks for retries and does not say how many.
const ATTEMPTS: u32 = 2;
/// The first pause between attempts where nobody says it.
const BACKOFF_MS: u64 = 25;

/// Reads the rule with this number.
pub(super) fn rule(
    i: usize,
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> HttpRule {
    let alternatives = alternatives(value, place, reader, test);
    let name = whose.rule_name(i);
    let before = reader.faults();
    let filters = filters::of_rule(value, place, whose, reader);
    let faulty = reader.faults() > before;
    let backends = backends::backends(value, place, whose, reader);
    let mut rule = match filters.redirect {
        Some(redirect) => plain(name, RouteAction::Redirect(redirect)),
        None => plain(name, RouteAction::Forward(backends)),
    };
    rule.request_headers = filters.request_headers;
    rule.response_headers = filters.response_headers;
    rule.rewrite = filters.rewrite;
    rule.mirrors = filters.mirrors;
    rule.cors = filters.cors;
    rule.timeouts = timeouts(value, place, reader);
    rule.retry = there(value, "retry").map(|it| retry(it, &place.field("retry"), reader));
    if there(value, "sessionPersistence").is_some() {
        let message = "is not done yet: requests of one session may go to different endpoints";
        reader.warn(&place.field("sessionPersistence"), "NotSupported", message);
    }
    if faulty {
        rule = unreadable(rule.name);
    }
    HttpRule { alternatives, rule }
}

/// The matches of a rule; without any it is about every request. One that cannot be read is about none.
pub(super) fn alternatives(
    rule: &Value,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
    read: impl Fn(&Value, &Place<'_>, &mut Reader<'_>) -> (RequestTest, Rank),
) -> Vec<Alternative> {
    let matches = reader.list(rule, "matches", place);
    let place = place.field("matches");
    let one = [Value::Object(Default::default())];
    let unreadable = there(rule, "matches").is_some_and(|it| !it.is_array());
    let matches = if matches.is_empty() && !unreadable {
        &one[..]
    } else {
        matches
    };
    let mut alternatives = Vec::new();
    for (i, value) in matches.iter().enumerate() {
        let (place, before) = (place.index(i), reader.faults());
        let (test, rank) = read(value, &place, reader);
        if reader.faults() > before {
            let message = format!(
                "{place}: is left out: requests for it fall under other rules, or are answered with 404"
            );
            reader.tell(Severity::Warning, "MatchDropped", message);
            continue;
        }
        let port = None;
        alternatives.push(Alternative { test, port, rank });
    }
    alternatives
}

fn test(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> (RequestTest, Rank) {
    only(
        value,
        &["path", "headers", "queryParams", "method"],
        place,
        reader,
    );
    let path = match there(value, "path") {
        Some(path) => self::path(path, &place.field("path"), reader),
        None => Some(PathMatch::Under("/".into())),
    };
    let method = reader.optional(value, "method", place, words::method);
    let test = RequestTest {
        path,
        method: method.map(TextMatch::Exact),
        headers: headers(value, place, reader),
        query: query(value, place, reader),
        ..RequestTest::default()
    };
    let rank = Rank::new(&test);
    (test, rank)
}

fn path(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<PathMatch> {
    only(value, &["type", "value"], place, reader);
    let type_ = reader.optional(value, "type", place, |text| Ok(text.to_owned()));
    let value = match there(value, "value") {
        Some(_) => value.clone(),
        None => serde_json::json!({"value": "/"}),
    };
    match type_.as_deref().unwrap_or("PathPrefix") {
        "Exact" => reader
            .required(&value, "value", place, words::path)
            .map(PathMatch::Exact),
        "PathPrefix" => {
            let path = reader.required(&value, "value", place, words::path)?;
            let whole = path.trim_end_matches('/');
            let under = if whole.is_empty() { "/" } else { whole };
            Some(PathMatch::Under(under.into()))
        }
        "RegularExpression" => reader
            .required(&value, "value", place, words::expression)
            .map(PathMatch::Regex),
        other => {
            let message = values::one_of(other, "Exact, PathPrefix or RegularExpression");
            reader.invalid(&place.field("type"), message);
            None
        }
    }
}

/// The headers of a match. Of several with one name the first counts.
pub(super) fn headers(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<HeaderMatch> {
    let mut headers: Vec<HeaderMatch> = Vec::new();
    let pairs = named(value, "headers", place, reader, words::header_name);
    for (name, test) in pairs {
        if !headers.iter().any(|it| it.name == name) {
            let not = false;
            headers.push(HeaderMatch { name, test, not });
        }
    }
    headers
}

fn query(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<QueryMatch> {
    let mut query: Vec<QueryMatch> = Vec::new();
    for (name, test) in named(value, "queryParams", place, reader, words::text) {
        if !query.iter().any(|it| it.name == name) {
            query.push(QueryMatch { name, test });
        }
    }
    query
}

/// A list of `name`, `type` and `value`.
fn named(
    value: &Value,
    field: &str,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
    name: impl Fn(&str) -> Result<std::sync::Arc<str>, String>,
) -> Vec<(std::sync::Arc<str>, HeaderTest)> {
    let entries = reader.list(value, field, place);
    let place = place.field(field);
    let mut named = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let place = place.index(i);
        only(entry, &["type", "name", "value"], &place, reader);
        let name = reader.required(entry, "name", &place, &name);
        named.extend(name.zip(typed(entry, &place, reader)));
    }
    named
}

fn timeouts(rule: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Timeouts {
    let Some(value) = there(rule, "timeouts") else {
        return Timeouts::default();
    };
    let place = place.field("timeouts");
    // 0 is none.
    let read = |field, reader: &mut Reader<'_>| {
        let read = reader.optional(value, field, &place, words::duration);
        read.filter(|ms| *ms > 0)
    };
    Timeouts {
        request_ms: read("request", reader),
        backend_ms: read("backendRequest", reader),
    }
}

fn retry(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Retry {
    let backoff = reader.optional(value, "backoff", place, words::duration);
    let backoff_ms = backoff.unwrap_or(BACKOFF_MS);
    Retry {
        attempts: reader
            .optional(value, "attempts", place, words::count)
            .unwrap_or(ATTEMPTS),
        on: RetryOn {
            connect_failure: true,
            refused_stream: true,
            reset: true,
            statuses: reader.all(value, "codes", place, |text| {
                words::number(text, 400..=599, "a status of a failure: write 400 to 599")
            }),
            ..RetryOn::default()
        },
        backoff_ms,
        max_backoff_ms: backoff_ms.saturating_mul(10),
        avoid_tried: true,
    }
}
