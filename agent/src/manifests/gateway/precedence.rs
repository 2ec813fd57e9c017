//! Which of many routes decides, as the Gateway API says it: the more specific match, then the older route, then its name, then
//! the order within it.

use std::cmp::Reverse;

use super::Route;
use crate::{
    manifests::rule::HttpRule,
    mesh::http::{Entry, PathMatch, RequestTest, RouteTable},
};

/// How specific a match is; what is more specific comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::manifests) struct Rank {
    path: Reverse<(u8, usize)>,
    without_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

impl Rank {
    /// An exact path, then an expression, then the longest prefix; then a method; then the number of headers and parameters.
    /// (Where expressions stand is left to implementations. Behind prefixes, `/` would hide them all.)
    pub(super) fn new(test: &RequestTest) -> Self {
        let path = match &test.path {
            Some(PathMatch::Exact(path) | PathMatch::ExactIgnoringCase(path)) => (3, path.chars().count()),
            Some(PathMatch::Regex(path)) => (2, path.chars().count()),
            Some(PathMatch::Under(path) | PathMatch::Prefix(path) | PathMatch::PrefixIgnoringCase(path)) => {
                (1, path.chars().count())
            }
            None => (0, 0),
        };
        Self {
            path: Reverse(path),
            without_method: test.method.is_none(),
            headers: Reverse(test.headers.len()),
            query: Reverse(test.query.len()),
        }
    }

    /// Of a path that counts as a prefix, though it is written as an expression.
    pub(super) fn below_prefixes(self) -> Self {
        Self {
            path: Reverse((1, 1)),
            ..self
        }
    }
}

/// The routes of one service, port and audience in one table.
pub(in crate::manifests) fn table(routes: &[(&Route, &[HttpRule])]) -> RouteTable {
    let mut table = RouteTable::default();
    let mut entries = Vec::new();
    for (route, rules) in routes {
        let object = &route.object;
        let age = (route.since, &object.namespace, &object.name, object.kind);
        for (order, rule) in rules.iter().enumerate() {
            let at = table.rules.len();
            table.rules.push(rule.rule.clone());
            let alternatives = rule.alternatives.iter();
            entries.extend(alternatives.map(|it| ((it.rank, age, order), &it.test, at)));
        }
    }
    // Stable: within a rule the order is that of its matches.
    entries.sort_by_key(|(key, ..)| *key);
    let entries = entries.into_iter();
    table.entries = entries
        .map(|(_, test, rule)| Entry {
            test: test.clone(),
            rule,
        })
        .collect();
    table
}
