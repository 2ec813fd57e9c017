//! `http` of a VirtualService: its rules, the first that matches.

use serde_json::Value;

use super::{
    actions,
    delegates::{self, Delegated},
    destinations, matches, retries,
    virtual_service::Whose,
};
use crate::{
    manifests::{
        Diagnostic, Reader, Severity,
        rule::{HttpRule, plain, unreadable, within},
        there, words,
    },
    mesh::{
        Place,
        http::{Destination, Mirror, RouteAction, Rule, RuleName},
    },
};

const FIELDS: [&str; 18] = [
    "name",
    "match",
    "route",
    "redirect",
    "directResponse",
    "delegate",
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirrorPercent",
    "mirror_percent",
    "mirrorPercentage",
    "corsPolicy",
    "headers",
    "statPrefix",
];

/// Reads them all.
pub(super) fn rules(
    spec: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
) -> Vec<HttpRule> {
    let rules = reader.list(spec, "http", place).iter().enumerate();
    let place = place.field("http");
    let (mut read, mut room) = (Vec::new(), delegates::MOST);
    for (i, value) in rules {
        let place = place.index(i);
        match there(value, "delegate") {
            Some(_) => read.extend(delegated(i, value, &place, whose, (&mut room, reader))),
            None => read.push(one(i, value, &place, whose, reader)),
        }
    }
    read
}

fn one(i: usize, value: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> HttpRule {
    HttpRule {
        alternatives: matches::alternatives(value, place, reader),
        rule: rule(i, value, place, whose, reader),
    }
}

/// What a rule becomes whose requests are another VirtualService's.
fn delegated(
    i: usize,
    value: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    (room, reader): (&mut usize, &mut Reader<'_>),
) -> Vec<HttpRule> {
    let (at, own_name) = (place.field("delegate"), rule_name("http", i, value, whose));
    unknown(value, place, reader);
    let Delegated {
        namespace,
        name,
        rules,
    } = match delegates::delegated(value, whose, room) {
        Ok(delegated) => delegated,
        Err(message) => {
            reader.invalid(&at, message);
            let alternatives = matches::alternatives(value, place, reader);
            let rule = unreadable(own_name);
            return vec![HttpRule { alternatives, rule }];
        }
    };
    let mut found = Vec::new();
    let mut said = Vec::new();
    let mut theirs = Reader::new(reader.object().clone(), &mut said);
    let there = Place::ROOT.field("spec");
    let there = there.field("http");
    for (nth, rule) in rules {
        let Some(rule) = rule else {
            let message = format!("{at}: rule {nth} of {namespace}/{name} never matches what this one does");
            reader.tell(Severity::Warning, "MatchDropped", message);
            continue;
        };
        let whose = Whose {
            around: whose.around,
            namespace: &namespace,
            name: &name,
        };
        let mut read = one(nth, &rule, &there.index(nth), whose, &mut theirs);
        // The same rule may be reached by several ways.
        read.rule.name = RuleName(format!("{own_name} by {}", read.rule.name).into());
        found.push(read);
    }
    if theirs.faults() > 0 {
        let is_fault = |it: &&Diagnostic| it.reason == "InvalidField";
        let first = said.iter().find(is_fault).map_or("", |it| &it.message);
        reader.invalid(&at, format!("with {namespace}/{name}, {first}"));
    }
    found
}

/// What a rule is known by: its own name, where it has one.
pub(super) fn rule_name(what: &str, i: usize, value: &Value, whose: Whose<'_>) -> RuleName {
    let (namespace, name) = (whose.namespace, whose.name);
    let own = there(value, "name").and_then(Value::as_str);
    let own = own.map(|own| format!(" {own:.64}")).unwrap_or_default();
    RuleName(format!("VirtualService {namespace}/{name} {what} {i}{own}").into())
}

fn rule(i: usize, value: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Rule {
    let name = rule_name("http", i, value, whose);
    unknown(value, place, reader);
    let before = reader.faults();
    let action = action(value, place, whose, reader);
    let faulty = reader.faults() > before;
    let mut rule = plain(name, action);
    rule.rewrite = actions::rewrite(within(value, "rewrite"), &place.field("rewrite"), reader);
    let mut headers = actions::Headers::default();
    actions::headers(value, place, &mut headers, reader);
    rule.request_headers = headers.request;
    rule.response_headers = headers.response;
    if rule.rewrite.authority.is_none() {
        rule.rewrite.authority = headers.authority;
    }
    rule.cors = there(value, "corsPolicy").map(|it| actions::cors(it, &place.field("corsPolicy"), reader));
    rule.fault = there(value, "fault").map(|it| actions::fault(it, &place.field("fault"), reader));
    rule.mirrors = mirrors(value, place, whose, reader);
    // What is to be changed and cannot be is not passed on unchanged.
    if faulty || reader.faults() > before {
        return unreadable(rule.name);
    }
    let timeout = reader.optional(value, "timeout", place, words::duration);
    rule.timeouts.request_ms = timeout.filter(|ms| *ms > 0);
    if let Some(retries) = there(value, "retries") {
        let place = place.field("retries");
        rule.retry = Some(retries::retry(retries, &place, reader));
        let per_try = reader.optional(retries, "perTryTimeout", &place, words::duration);
        rule.timeouts.backend_ms = per_try.filter(|ms| *ms > 0);
    }
    rule
}

/// A field that nobody knows changes less than a rule; it is told.
fn unknown(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) {
    let fields = value.as_object().into_iter().flatten();
    for (field, _) in fields.filter(|(field, _)| !FIELDS.contains(&field.as_str())) {
        reader.warn(
            &place.field(field),
            "UnknownField",
            "is not known here: correct or remove it",
        );
    }
}

fn action(value: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> RouteAction {
    if reader.fields(value, place).is_none() {
        return RouteAction::Forward(Vec::new());
    }
    if there(value, "delegate").is_some() {
        let message = "one that is delegated to delegates no further: write the rules here";
        reader.invalid(&place.field("delegate"), message);
        return RouteAction::Forward(Vec::new());
    }
    if let Some(redirect) = there(value, "redirect") {
        return RouteAction::Redirect(actions::redirect(redirect, &place.field("redirect"), reader));
    }
    if let Some(direct) = there(value, "directResponse") {
        let place = place.field("directResponse");
        return RouteAction::Respond(actions::direct_response(direct, &place, reader));
    }
    let backends = destinations::backends(value, place, whose, reader);
    if backends.is_empty() && there(value, "route").is_none() {
        reader.invalid(
            place,
            "says nothing of where to: write route, redirect or directResponse",
        );
    }
    RouteAction::Forward(backends)
}

/// `mirrors`, and `mirror` of before, with one of three spellings of its share.
fn mirrors(value: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Vec<Mirror> {
    let mut mirrors = Vec::new();
    let mut add = |to: Destination, per_10_000, place: &Place<'_>, reader: &mut Reader<'_>| match to {
        Destination::Nowhere(_) => {
            let message = format!("{place}: nobody gets this copy");
            reader.tell(Severity::Warning, "NoMirror", message);
        }
        to => mirrors.push(Mirror { to, per_10_000 }),
    };
    if let Some(mirror) = there(value, "mirror") {
        let of_100 = ["mirrorPercent", "mirror_percent"];
        let old = of_100
            .iter()
            .find_map(|field| reader.optional(value, field, place, words::percent));
        let share = there(value, "mirrorPercentage")
            .map(|it| actions::percentage(it, &place.field("mirrorPercentage"), reader));
        let place = place.field("mirror");
        let to = destinations::destination(mirror, &place, whose, reader);
        add(to, share.or(old).unwrap_or(10_000), &place, reader);
    }
    let several = reader.list(value, "mirrors", place);
    let place = place.field("mirrors");
    for (i, mirror) in several.iter().enumerate() {
        let place = place.index(i);
        let share = there(mirror, "percentage");
        let share = share.map(|it| actions::percentage(it, &place.field("percentage"), reader));
        let to = within(mirror, "destination");
        let to = destinations::destination(to, &place.field("destination"), whose, reader);
        add(to, share.unwrap_or(10_000), &place, reader);
    }
    mirrors
}
