//! GRPCRoute: its methods are paths that are POSTed to.

use serde_json::Value;

use super::{Rank, Whose, backends, filters, http};
use crate::{
    manifests::{
        Reader,
        rule::{HttpRule, only, plain, unreadable},
        there, words,
    },
    mesh::{
        Place,
        http::{PathMatch, RequestTest, RouteAction, TextMatch},
        values,
    },
};

/// Reads the rule with this number.
pub(super) fn rule(
    i: usize,
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> HttpRule {
    let alternatives = http::alternatives(value, place, reader, test);
    let name = whose.rule_name(i);
    let before = reader.faults();
    let filters = filters::of_rule(value, place, whose, reader);
    if filters.redirect.is_some() || filters.rewrite != Default::default() || filters.cors.is_some() {
        let message = "a GRPCRoute changes headers and mirrors only: remove the others";
        reader.invalid(&place.field("filters"), message);
    }
    let faulty = reader.faults() > before;
    let backends = backends::backends(value, place, whose, reader);
    let mut rule = plain(name, RouteAction::Forward(backends));
    rule.request_headers = filters.request_headers;
    rule.response_headers = filters.response_headers;
    rule.mirrors = filters.mirrors;
    if faulty {
        rule = unreadable(rule.name);
    }
    HttpRule { alternatives, rule }
}

fn test(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> (RequestTest, Rank) {
    only(value, &["method", "headers"], place, reader);
    let method = there(value, "method").map(|it| method(it, &place.field("method"), reader));
    let (path, of_any_service) = method.unwrap_or_default();
    let test = RequestTest {
        path,
        method: Some(TextMatch::Exact("POST".into())),
        headers: http::headers(value, place, reader),
        ..RequestTest::default()
    };
    let rank = Rank::new(&test);
    // The service counts first: one method of any service is less than a service.
    let rank = if of_any_service {
        rank.below_prefixes()
    } else {
        rank
    };
    (test, rank)
}

/// The path, and whether it is one of any service.
fn method(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> (Option<PathMatch>, bool) {
    only(value, &["type", "service", "method"], place, reader);
    let type_ = reader.optional(value, "type", place, |text| Ok(text.to_owned()));
    let exact = match type_.as_deref().unwrap_or("Exact") {
        "Exact" => true,
        "RegularExpression" => false,
        other => {
            let message = values::one_of(other, "Exact or RegularExpression");
            reader.invalid(&place.field("type"), message);
            return (None, false);
        }
    };
    let part = if exact { words::text } else { words::expression };
    let service = reader.optional(value, "service", place, part);
    let method = reader.optional(value, "method", place, part);
    let of_any_service = service.is_none() && method.is_some();
    let path = match (service, method) {
        (None, None) => None,
        (Some(service), Some(method)) if exact => {
            Some(PathMatch::Exact(format!("/{service}/{method}").into()))
        }
        (Some(service), None) if exact => Some(PathMatch::Prefix(format!("/{service}/").into())),
        (service, method) => {
            let part = |part: Option<std::sync::Arc<str>>| match part {
                None => "[^/]+".to_owned(),
                Some(part) if exact => regex::escape(&part),
                Some(part) => format!("(?:{part})"),
            };
            let (service, method) = (part(service), part(method));
            match words::expression(&format!("/{service}/{method}")) {
                Ok(path) => Some(PathMatch::Regex(path)),
                Err(message) => {
                    reader.invalid(place, message);
                    None
                }
            }
        }
    };
    (path, of_any_service)
}
