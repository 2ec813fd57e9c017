//! What only a request has, in the form in which it is compared. What the fields mean is said at [`RequestMatch`].
//!
//! A header that comes several times can be read in two ways: joined by commas, or one by one. Where a header is asked for
//! by its value, an ALLOW goes by the first alone, and a DENY by both: neither reading opens anything.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::mesh::{
    StringMatch,
    http::{
        Condition, ConditionKey, HeaderKey, PathPattern, RequestFacts, RequestMatch, Token, canonical_escapes,
    },
};

/// The longest way to a claim.
const DEEPEST_CLAIM: usize = 16;
/// Claims that are lists in one text (Istio).
const LISTS_IN_ONE_TEXT: [&str; 2] = ["scope", "permission"];

/// A request, while it is judged.
pub(super) struct Asked<'a> {
    pub(super) facts: &'a RequestFacts<'a>,
    host: Cow<'a, str>,
    authority: Cow<'a, str>,
    source_ip: IpAddr,
}

impl<'a> Asked<'a> {
    /// `source_ip` is canonical.
    pub(super) fn new(facts: &'a RequestFacts<'a>, source_ip: IpAddr) -> Self {
        Self {
            facts,
            host: facts.head.host(),
            authority: lower(facts.head.authority),
            source_ip,
        }
    }
}

fn lower(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(text.to_ascii_lowercase()),
        false => Cow::Borrowed(text),
    }
}

/// A [`RequestMatch`]: every field must hold.
#[derive(Debug)]
pub(super) struct RequestTest {
    fields: Vec<Field>,
}

#[derive(Debug)]
struct Field {
    values: Values,
    /// Whether one of the values is asked for; else (`not_`) that it be none of them.
    one_of: bool,
    /// Whether what can be read in two ways is read in both.
    both_readings: bool,
}

#[derive(Debug)]
enum Values {
    Hosts(Vec<StringMatch>),
    Methods(Vec<StringMatch>),
    Paths(Vec<Path>),
    Principals(Vec<StringMatch>),
    Remotes(Vec<IpNet>),
    Header(HeaderKey, Vec<StringMatch>),
    Audiences(Vec<StringMatch>),
    Presenter(Vec<StringMatch>),
    Claim(Vec<Arc<str>>, Vec<StringMatch>),
    Sni(Vec<StringMatch>),
}

impl RequestTest {
    /// None where nothing is said, or something that cannot be judged. `deny`: whether it is a DENY's.
    pub(super) fn new(match_: &RequestMatch, deny: bool) -> Option<Self> {
        let mut fields = Vec::new();
        let mut pair = |is: Option<Values>, is_not: Option<Values>| {
            for (values, one_of) in [(is, true), (is_not, false)] {
                fields.extend(values.map(|values| Field {
                    values,
                    one_of,
                    both_readings: deny == one_of,
                }));
            }
        };
        let m = match_;
        let lower = |list: &[StringMatch]| Values::Hosts(list.iter().map(lower_case).collect());
        pair(
            said(&m.methods, Values::Methods),
            said(&m.not_methods, Values::Methods),
        );
        let hosts = |list: &Vec<StringMatch>| (!list.is_empty()).then(|| lower(list));
        pair(hosts(&m.hosts), hosts(&m.not_hosts));
        pair(paths(&m.paths)?, paths(&m.not_paths)?);
        pair(
            said(&m.request_principals, Values::Principals),
            said(&m.not_request_principals, Values::Principals),
        );
        pair(
            said(&m.remote_ips, Values::Remotes),
            said(&m.not_remote_ips, Values::Remotes),
        );
        for condition in &m.when {
            if !is_judgeable(condition) {
                return None;
            }
            let values = |list: &Vec<StringMatch>| (!list.is_empty()).then(|| of_key(&condition.key, list));
            pair(values(&condition.values), values(&condition.not_values));
        }
        (!fields.is_empty()).then_some(Self { fields })
    }

    pub(super) fn holds(&self, asked: &Asked<'_>) -> bool {
        self.fields.iter().all(|field| field.holds(asked))
    }
}

fn said<T: Clone>(list: &[T], values: impl Fn(Vec<T>) -> Values) -> Option<Values> {
    (!list.is_empty()).then(|| values(list.to_vec()))
}

/// Some(None) where nothing is said, None where a pattern cannot be judged.
#[allow(
    clippy::option_option,
    reason = "nothing said, and nothing that can be judged, are two"
)]
fn paths(list: &[PathPattern]) -> Option<Option<Values>> {
    if list.is_empty() {
        return Some(None);
    }
    let paths = list.iter().map(Path::new).collect::<Option<_>>()?;
    Some(Some(Values::Paths(paths)))
}

/// Whether it says anything, and about something that there can be.
fn is_judgeable(condition: &Condition) -> bool {
    let says = !condition.values.is_empty() || !condition.not_values.is_empty();
    says && match &condition.key {
        ConditionKey::Claim(way) => (1..=DEEPEST_CLAIM).contains(&way.len()),
        ConditionKey::Header(name) => !matches!(HeaderKey::new(name), HeaderKey::Nothing),
        ConditionKey::Principal | ConditionKey::Audiences | ConditionKey::Presenter | ConditionKey::Sni => {
            true
        }
    }
}

fn of_key(key: &ConditionKey, list: &[StringMatch]) -> Values {
    let list = list.to_vec();
    match key {
        ConditionKey::Header(name) => Values::Header(HeaderKey::new(name), list),
        ConditionKey::Principal => Values::Principals(list),
        ConditionKey::Audiences => Values::Audiences(list),
        ConditionKey::Presenter => Values::Presenter(list),
        ConditionKey::Claim(way) => Values::Claim(way.clone(), list),
        ConditionKey::Sni => Values::Sni(list.iter().map(lower_case).collect()),
    }
}

fn mapped(pattern: &StringMatch, map: impl Fn(&str) -> Arc<str>) -> StringMatch {
    match pattern {
        StringMatch::Exact(text) => StringMatch::Exact(map(text)),
        StringMatch::Prefix(text) => StringMatch::Prefix(map(text)),
        StringMatch::Suffix(text) => StringMatch::Suffix(map(text)),
        StringMatch::Presence => StringMatch::Presence,
    }
}

fn lower_case(pattern: &StringMatch) -> StringMatch {
    mapped(pattern, |text| text.to_ascii_lowercase().into())
}

impl Field {
    fn holds(&self, asked: &Asked<'_>) -> bool {
        self.values.hold(asked, self.both_readings) == self.one_of
    }
}

impl Values {
    /// Whether one of them does. What is not there is none of them.
    fn hold(&self, asked: &Asked<'_>, both_readings: bool) -> bool {
        let head = asked.facts.head;
        let token = asked.facts.token;
        match self {
            // A pattern may name a port.
            Self::Hosts(hosts) => any(hosts, &asked.host) || any(hosts, &asked.authority),
            Self::Methods(methods) => any(methods, head.method.as_str()),
            Self::Paths(paths) => paths.iter().any(|path| path.matches(head.path)),
            Self::Principals(names) => token.is_some_and(|token| any(names, &token.principal)),
            Self::Remotes(nets) => nets.iter().any(|net| net.contains(&asked.source_ip)),
            Self::Header(name, values) => {
                let is = |value: &[u8]| any(values, &String::from_utf8_lossy(value));
                head.header(name).is_some_and(|value| is(&value))
                    || (both_readings && head.header_values(name).iter().any(|value| is(value)))
            }
            Self::Audiences(names) => {
                token.is_some_and(|token| token.audiences.iter().any(|audience| any(names, audience)))
            }
            Self::Presenter(names) => {
                let presenter = token.and_then(|token| token.presenter.as_deref());
                presenter.is_some_and(|presenter| any(names, presenter))
            }
            Self::Claim(way, values) => token.is_some_and(|token| claim_is(token, way, values)),
            Self::Sni(names) => asked.facts.sni.is_some_and(|sni| any(names, &lower(sni))),
        }
    }
}

fn any(patterns: &[StringMatch], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text))
}

/// A path of a policy.
#[derive(Debug)]
enum Path {
    Text(StringMatch),
    Template(Vec<Element>),
}

/// An element of a template, between slashes.
#[derive(Debug, PartialEq, Eq)]
enum Element {
    Is(Box<str>),
    /// `{*}`: any one that is not empty.
    One,
    /// `{**}`: any number of them, but for none: what it stands for may be empty, the slash before it is there.
    Some,
}

impl Path {
    fn new(pattern: &PathPattern) -> Option<Self> {
        let canonical = |text: &str| canonical_escapes(text).into();
        match pattern {
            PathPattern::Text(text) => Some(Self::Text(mapped(text, canonical))),
            PathPattern::Template(template) => {
                let elements = template.strip_prefix('/')?.split('/').map(Element::new);
                elements.collect::<Option<_>>().map(Self::Template)
            }
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path),
            Self::Template(elements) => fits(elements, path),
        }
    }
}

impl Element {
    fn new(text: &str) -> Option<Self> {
        match text {
            "{*}" => Some(Self::One),
            "{**}" => Some(Self::Some),
            _ if text.contains(['{', '}', '*']) => None,
            _ => Some(Self::Is((*canonical_escapes(text)).into())),
        }
    }

    fn fits(&self, element: &str) -> bool {
        match self {
            Self::Is(text) => **text == *element,
            Self::One => !element.is_empty(),
            Self::Some => true,
        }
    }
}

/// As patterns with a star are compared: the last `{**}` is the only one to go back to, so the time is at most that of every
/// element with every other.
fn fits(template: &[Element], path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else {
        return false;
    };
    let elements: Vec<&str> = path.split('/').collect();
    let (mut at, mut of, mut back) = (0, 0, None);
    while at < elements.len() {
        match template.get(of) {
            Some(element) if element.fits(elements[at]) => {
                if *element == Element::Some {
                    back = Some((at, of));
                }
                (at, of) = (at + 1, of + 1);
            }
            _ => {
                let Some((from, some)) = back else { return false };
                // One more for it.
                back = Some((from + 1, some));
                (at, of) = (from + 2, some + 1);
                if at > elements.len() {
                    return false;
                }
            }
        }
    }
    of == template.len()
}

/// Whether a claim, or one of its elements or words, is one of these.
fn claim_is(token: &Token, way: &[Arc<str>], values: &[StringMatch]) -> bool {
    let Some((last, objects)) = way.split_last() else {
        return false;
    };
    let mut claims: Option<&Map<String, Value>> = Some(&token.claims);
    for name in objects {
        claims = claims.and_then(|claims| claims.get(&**name)?.as_object());
    }
    let Some(claim) = claims.and_then(|claims| claims.get(&**last)) else {
        return false;
    };
    let words = way.len() == 1 && is_list_in_one_text(token, last);
    match claim {
        Value::Array(elements) => elements.iter().any(|element| scalar_is(element, false, values)),
        _ => scalar_is(claim, words, values),
    }
}

fn is_list_in_one_text(token: &Token, claim: &str) -> bool {
    LISTS_IN_ONE_TEXT.contains(&claim) || token.space_delimited.iter().any(|name| **name == *claim)
}

fn scalar_is(value: &Value, words: bool, values: &[StringMatch]) -> bool {
    match value {
        Value::String(text) if words => text.split(' ').any(|word| any(values, word)) || any(values, text),
        Value::String(text) => any(values, text),
        Value::Bool(_) | Value::Number(_) => any(values, &value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
mod tests;
