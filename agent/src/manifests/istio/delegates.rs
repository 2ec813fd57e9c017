//! `delegate` of a VirtualService's rule: another VirtualService, which names no hosts, says what becomes of its requests. As Istio
//! merges them: a request must be what both match, and of what is done the delegate's own counts before the rule's. What both match
//! is never more than what the rule matches: where that cannot be told, the delegate's rule is left out.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::virtual_service::{Whose, exports_to};
use crate::manifests::there;

/// What a rule has besides, and gives to those of its delegate's that have none of their own.
const HANDED_DOWN: [&str; 11] = [
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
];
/// The most matches that all rules of a VirtualService become which delegate: they multiply.
pub(super) const MOST: usize = 10_000;
/// What a rule that delegates cannot have.
const ACTIONS: [&str; 3] = ["route", "redirect", "directResponse"];
/// Fields of a match that are one text: exact, prefix or regex.
const TEXTS: [&str; 4] = ["uri", "scheme", "method", "authority"];
/// Those that are such a text by name.
const NAMED: [&str; 2] = ["headers", "queryParams"];
/// Those of which two values that differ have nothing in common, or nothing that can be told.
const SAME: [&str; 5] = [
    "port",
    "sourceNamespace",
    "sourceLabels",
    "withoutHeaders",
    "gateways",
];

/// The rules of a delegate.
pub(super) struct Delegated {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Each with its number in the delegate; none for those that never match what the rule does.
    pub(super) rules: Vec<(usize, Option<Value>)>,
}

/// What the rule of a VirtualService becomes; it takes from the `room` that there is for matches.
///
/// # Errors
/// Why nobody knows, and what to do about it.
pub(super) fn delegated(rule: &Value, whose: Whose<'_>, room: &mut usize) -> Result<Delegated, String> {
    if let Some(action) = ACTIONS.iter().find(|action| there(rule, action).is_some()) {
        return Err(format!(
            "stands beside {action}, and only one of them can count: remove the other"
        ));
    }
    let text = |field: &str| rule["delegate"][field].as_str().filter(|text| !text.is_empty());
    let name = text("name").ok_or("names no VirtualService: write its name")?;
    let namespace = text("namespace").unwrap_or(whose.namespace);
    let spec = whose.around.delegate(namespace, name);
    let spec = spec.filter(|spec| exports_to(spec, namespace, whose.namespace));
    let spec: Arc<Value> = spec.ok_or_else(|| {
        format!(
            "there is no VirtualService {namespace}/{name} that names no hosts and is exported to {}, so that its requests are \
             answered with 500: correct the name, or remove the hosts there",
            whose.namespace
        )
    })?;
    let rules = spec["http"].as_array().map(Vec::as_slice).unwrap_or_default();
    let count = |it: &Value| it["match"].as_array().map_or(1, |all| all.len().max(1));
    let all = rules.iter().fold(0_usize, |sum, theirs| {
        sum.saturating_add(count(rule).saturating_mul(count(theirs)))
    });
    *room = room.checked_sub(all).ok_or_else(|| {
        format!("makes more than {MOST} matches with {namespace}/{name}, so that its requests are answered with 500: write fewer")
    })?;
    let rules = rules.iter().map(|theirs| merged(rule, theirs)).enumerate();
    Ok(Delegated {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        rules: rules.collect(),
    })
}

/// A rule of a delegate's as it counts for this one.
fn merged(rule: &Value, theirs: &Value) -> Option<Value> {
    let Some(fields) = theirs.as_object() else {
        // Whoever reads it says that it is none.
        return Some(theirs.clone());
    };
    let mut fields = fields.clone();
    for field in HANDED_DOWN {
        if let (None, Some(value)) = (there(theirs, field), there(rule, field)) {
            fields.insert(field.to_owned(), value.clone());
        }
    }
    if let Some(matches) = matches(there(rule, "match"), there(theirs, "match")) {
        if matches.as_array().is_some_and(Vec::is_empty) {
            return None;
        }
        fields.insert("match".to_owned(), matches);
    }
    Some(Value::Object(fields))
}

/// What both match, by pairs; nothing where both match everything.
fn matches(ours: Option<&Value>, theirs: Option<&Value>) -> Option<Value> {
    let some = |it: &&Value| it.as_array().is_none_or(|all| !all.is_empty());
    let (ours, theirs) = match (ours.filter(some), theirs.filter(some)) {
        (None, None) => return None,
        (Some(one), None) | (None, Some(one)) => return Some(one.clone()),
        (Some(ours), Some(theirs)) => (ours, theirs),
    };
    let (Some(all_ours), Some(all_theirs)) = (ours.as_array(), theirs.as_array()) else {
        // One of them cannot be read, and neither can both.
        return Some(if ours.is_array() { theirs } else { ours }.clone());
    };
    let pairs = all_theirs
        .iter()
        .flat_map(|theirs| all_ours.iter().map(move |ours| (ours, theirs)));
    Some(pairs.filter_map(|(ours, theirs)| both(ours, theirs)).collect())
}

/// What is in two matches; none where that is nothing.
fn both(ours: &Value, theirs: &Value) -> Option<Value> {
    let (Some(ours_all), Some(theirs_all)) = (ours.as_object(), theirs.as_object()) else {
        return Some(if ours.is_object() { theirs } else { ours }.clone());
    };
    let ignores_case = |it: &Value| {
        there(it, "ignoreUriCase")
            .and_then(Value::as_bool)
            .unwrap_or(false)
    };
    if ignores_case(ours) != ignores_case(theirs) {
        return None;
    }
    let mut merged = ours_all.clone();
    for (field, value) in theirs_all.iter().filter(|(_, value)| !value.is_null()) {
        let value = match there(ours, field) {
            Some(own) if TEXTS.contains(&field.as_str()) => narrower(own, value)?,
            Some(own) if NAMED.contains(&field.as_str()) => named(own, value)?,
            Some(own) if SAME.contains(&field.as_str()) && own != value => return None,
            _ => value.clone(),
        };
        merged.insert(field.clone(), value);
    }
    Some(Value::Object(merged))
}

/// All headers of both, or parameters.
fn named(ours: &Value, theirs: &Value) -> Option<Value> {
    let (Some(ours_all), Some(theirs_all)) = (ours.as_object(), theirs.as_object()) else {
        return Some(if ours.is_object() { theirs } else { ours }.clone());
    };
    let mut merged: Map<_, _> = ours_all.clone();
    for (name, value) in theirs_all {
        let value = match ours_all.get(name) {
            Some(own) => narrower(own, value)?,
            None => value.clone(),
        };
        merged.insert(name.clone(), value);
    }
    Some(Value::Object(merged))
}

/// The text of theirs, where ours says nothing else: of two expressions nobody can tell.
fn narrower(ours: &Value, theirs: &Value) -> Option<Value> {
    let text = |it: &Value, kind: &str| it[kind].as_str().map(str::to_owned);
    // Of headers `{}` asks that it is there, which every text does.
    let asks_nothing = |it: &Value| it.as_object().is_some_and(Map::is_empty);
    if ours == theirs || asks_nothing(theirs) {
        return Some(ours.clone());
    }
    let within = match (text(ours, "exact"), text(ours, "prefix")) {
        (Some(ours), _) => text(theirs, "exact").is_some_and(|theirs| theirs == ours),
        (None, Some(ours)) => {
            let theirs = text(theirs, "exact").or_else(|| text(theirs, "prefix"));
            theirs.is_some_and(|theirs| theirs.starts_with(&ours))
        }
        (None, None) => asks_nothing(ours),
    };
    within.then(|| theirs.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::objects::Kind,
        manifests::{Known, Surroundings},
    };

    fn check(ours: Value, theirs: Value, expect: Option<Value>) {
        let merged = matches(Some(&ours), Some(&theirs));
        let expect = expect.unwrap_or_else(|| json!([]));
        assert_eq!(merged, Some(expect), "{ours} {theirs}");
    }

    #[test]
    fn a_request_must_be_what_both_match() {
        let uri = |kind: &str, text: &str| json!([{"uri": {kind: text}}]);
        let a = || uri("prefix", "/a");
        check(a(), uri("exact", "/a/b"), Some(uri("exact", "/a/b")));
        check(a(), uri("prefix", "/a/b"), Some(uri("prefix", "/a/b")));
        check(a(), uri("prefix", "/b"), None);
        check(a(), uri("prefix", "/"), None);
        check(a(), uri("regex", "/a.*"), None);
        check(uri("regex", "/a.*"), uri("exact", "/a"), None);
        check(uri("exact", "/a"), uri("prefix", "/a"), None);
        check(uri("exact", "/a"), uri("exact", "/a"), Some(uri("exact", "/a")));
        check(a(), json!([]), Some(a()));
        check(
            a(),
            json!([{"method": {"exact": "GET"}}]),
            Some(json!([{"uri": {"prefix": "/a"}, "method": {"exact": "GET"}}])),
        );
        check(
            a(),
            json!([{"uri": {"exact": "/a/B"}, "ignoreUriCase": true}]),
            None,
        );
    }

    #[test]
    fn what_the_rule_asks_for_is_never_lost() {
        let headers = |it: Value| json!([{ "headers": it }]);
        check(
            headers(json!({"x": {"exact": "1"}, "y": {}})),
            headers(json!({"x": {}, "y": {"prefix": "2"}, "z": {"exact": "3"}})),
            Some(headers(
                json!({"x": {"exact": "1"}, "y": {"prefix": "2"}, "z": {"exact": "3"}}),
            )),
        );
        check(
            headers(json!({"x": {"exact": "1"}})),
            headers(json!({"x": {"exact": "2"}})),
            None,
        );
        let without = |it: Value| json!([{ "withoutHeaders": it }]);
        check(
            without(json!({"x": {"prefix": "a"}})),
            without(json!({"x": {"exact": "ab"}})),
            None,
        );
        check(json!([{"port": 80}]), json!([{"port": 90}]), None);
        check(
            json!([{"port": 80}]),
            json!([{"port": 80}]),
            Some(json!([{"port": 80}])),
        );
        check(
            json!([{"gateways": ["a"]}]),
            json!([{"gateways": ["mesh"]}]),
            None,
        );
        // What cannot be read stays what it is, for whoever says so.
        check(json!("x"), json!([{}]), Some(json!("x")));
        check(json!([{}]), json!("x"), Some(json!("x")));
        check(json!([7]), json!([{"port": 80}]), Some(json!([7])));
    }

    #[test]
    fn matches_that_multiply_are_bounded() {
        struct Team(Arc<Value>);
        impl Surroundings for Team {
            fn cluster_domain(&self) -> &str {
                "cluster.local"
            }
            fn services_of(&self, _: Kind, _: &str, _: &str) -> Vec<Known> {
                Vec::new()
            }
            fn service_at(&self, _: &str, _: &str) -> Option<Known> {
                None
            }
            fn permits(&self, _: (Kind, &str), _: (Kind, &str, &str)) -> bool {
                false
            }
            fn delegate(&self, _: &str, _: &str) -> Option<Arc<Value>> {
                Some(Arc::clone(&self.0))
            }
        }
        let many = |count: usize| vec![json!({"uri": {"prefix": "/"}}); count];
        let team = Team(Arc::new(json!({"http": [{"match": many(100)}]})));
        let whose = Whose {
            around: &team,
            namespace: "shop",
            name: "root",
        };
        let mut room = MOST;
        let rule = |count| json!({"match": many(count), "delegate": {"name": "d"}});
        assert!(delegated(&rule(60), whose, &mut room).is_ok());
        assert_eq!(room, 4_000);
        assert!(delegated(&rule(41), whose, &mut room).is_err());
        assert!(delegated(&rule(40), whose, &mut room).is_ok());
    }

    #[test]
    fn the_delegates_own_counts_first() {
        let rule = json!({"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": "d"}, "timeout": "5s", "rewrite": {"uri": "/"}});
        let theirs = json!({"route": [], "timeout": "1s"});
        assert_eq!(
            merged(&rule, &theirs),
            Some(
                json!({"match": [{"uri": {"prefix": "/a"}}], "route": [], "timeout": "1s", "rewrite": {"uri": "/"}})
            )
        );
        assert_eq!(
            merged(&rule, &json!({"match": [{"uri": {"prefix": "/b"}}], "route": []})),
            None
        );
    }
}
