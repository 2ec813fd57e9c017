//! Where tokens are in a request, and how one is taken out.

use std::{borrow::Cow, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{AUTHORIZATION, COOKIE},
    request::Parts,
    uri::PathAndQuery,
};

use super::{MOST_TOKENS, Unauthenticated, rules::PreparedRule, verify::LONGEST};
use crate::mesh::http::JwtRule;

/// A place where a rule looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `Authorization: Bearer`, whose scheme is written in any case (RFC 9110 11.1).
    Bearer,
    /// A header, after a prefix.
    Header(HeaderName, Arc<str>),
    /// A parameter of the query.
    Param(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}

/// A token, and the rules that look where it is.
pub(super) struct Found<'a> {
    pub(super) text: String,
    pub(super) place: &'a Place,
    pub(super) rules: Vec<&'a PreparedRule>,
}

impl Place {
    /// Those of a rule: the usual ones where it names none.
    pub(super) fn of(rule: &JwtRule) -> Vec<Self> {
        let header = |it: &crate::mesh::http::TokenHeader| {
            let name = HeaderName::from_bytes(it.name.as_bytes()).ok()?;
            Some(Self::Header(name, it.prefix.clone()))
        };
        let headers = rule.from_headers.iter().filter_map(header);
        let params = rule.from_params.iter().cloned().map(Self::Param);
        let cookies = rule.from_cookies.iter().cloned().map(Self::Cookie);
        let nowhere =
            rule.from_headers.is_empty() && rule.from_params.is_empty() && rule.from_cookies.is_empty();
        let usual = [Self::Bearer, Self::Param("access_token".into())];
        let usual = usual.into_iter().filter(|_| nowhere);
        headers.chain(params).chain(cookies).chain(usual).collect()
    }

    /// Whether a token that is found here and there is one: rules write the same place in different ways.
    fn is_where(&self, other: &Self) -> bool {
        let header = |place: &Self| match place {
            Self::Bearer => Some(AUTHORIZATION),
            Self::Header(name, _) => Some(name.clone()),
            Self::Param(_) | Self::Cookie(_) => None,
        };
        match header(self) {
            Some(name) => header(other) == Some(name),
            None => self == other,
        }
    }

    /// The tokens that are here.
    fn tokens<'a>(&'a self, request: &'a Parts) -> Box<dyn Iterator<Item = Cow<'a, str>> + 'a> {
        match self {
            Self::Bearer => Box::new(header(&request.headers, &AUTHORIZATION, bearer)),
            Self::Header(name, prefix) => Box::new(header(&request.headers, name, |value| {
                value.strip_prefix(&**prefix)
            })),
            Self::Param(name) => Box::new(params(&request.uri, name)),
            Self::Cookie(name) => Box::new(cookies(&request.headers, name).map(Cow::Borrowed)),
        }
    }

    /// Takes this token out of a request, wherever it is in this place.
    pub(super) fn remove(&self, request: &mut Parts, token: &str) {
        match self {
            Self::Bearer => remove_header(&mut request.headers, &AUTHORIZATION, |value| {
                bearer(value) == Some(token)
            }),
            Self::Header(name, prefix) => remove_header(&mut request.headers, name, |value| {
                value.strip_prefix(&**prefix).map(str::trim) == Some(token)
            }),
            Self::Param(name) => remove_param(&mut request.uri, name),
            Self::Cookie(name) => remove_cookie(&mut request.headers, name),
        }
    }
}

/// All tokens of a request that one of the rules is about, each with its rules.
pub(super) fn find<'a>(
    rules: impl Iterator<Item = &'a PreparedRule>,
    request: &Parts,
) -> Result<Vec<Found<'a>>, Unauthenticated> {
    let mut all: Vec<Found<'a>> = Vec::new();
    for rule in rules {
        for place in &rule.places {
            for text in place.tokens(request) {
                note(&mut all, rule, place, &text)?;
            }
        }
    }
    Ok(all)
}

fn note<'a>(
    all: &mut Vec<Found<'a>>,
    rule: &'a PreparedRule,
    place: &'a Place,
    text: &str,
) -> Result<(), Unauthenticated> {
    let same = |found: &&mut Found<'_>| found.place.is_where(place) && found.text == text;
    if let Some(found) = all.iter_mut().find(same) {
        found.rules.push(rule);
        return Ok(());
    }
    if all.len() == MOST_TOKENS || text.len() > LONGEST {
        return Err(Unauthenticated::TooLarge);
    }
    all.push(Found {
        text: text.to_owned(),
        place,
        rules: vec![rule],
    });
    Ok(())
}

/// What follows the prefix in each value of a header.
fn header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    token: impl Fn(&'a str) -> Option<&'a str> + 'a,
) -> impl Iterator<Item = Cow<'a, str>> {
    let values = headers.get_all(name).into_iter();
    values.filter_map(move |value| Some(Cow::Borrowed(token(text(value)?)?.trim())))
}

/// A value that is no text has no token in it, and no app finds one there.
fn text(value: &HeaderValue) -> Option<&str> {
    std::str::from_utf8(value.as_bytes()).ok()
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// The values of a parameter, of each that has this name.
fn params<'a>(uri: &'a Uri, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(move |pair| {
        let (key, value) = pair.split_once('=')?;
        (decoded(key) == name).then(|| decoded(value))
    })
}

/// Percent-decoded, and `+` is a space (URL, application/x-www-form-urlencoded). What is no UTF-8 is no token.
fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail
            .first_chunk()
            .and_then(|[high, low]| hex(*high).zip(hex(*low)));
        let (byte, skip) = match (first, digits) {
            (b'%', Some((high, low))) => (high << 4 | low, 2),
            (b'+', _) => (b' ', 0),
            _ => (*first, 0),
        };
        bytes.push(byte);
        rest = tail.get(skip..).unwrap_or_default();
    }
    Cow::Owned(String::from_utf8(bytes).unwrap_or_default())
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// The values of a cookie (RFC 6265 4.2.1), of each that has this name.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(COOKIE).into_iter().filter_map(text);
    let pairs = values.flat_map(|value| value.split(';'));
    pairs.filter_map(move |pair| cookie(pair, name))
}

fn cookie<'a>(pair: &'a str, name: &str) -> Option<&'a str> {
    let (key, value) = pair.split_once('=')?;
    (key.trim() == name).then(|| value.trim().trim_matches('"'))
}

fn remove_header(headers: &mut HeaderMap, name: &HeaderName, is_token: impl Fn(&str) -> bool) {
    let keep = |value: &&HeaderValue| !text(value).is_some_and(&is_token);
    let kept: Vec<_> = headers.get_all(name).into_iter().filter(keep).cloned().collect();
    put(headers, name, kept);
}

fn put(headers: &mut HeaderMap, name: &HeaderName, values: Vec<HeaderValue>) {
    headers.remove(name);
    for value in values {
        headers.append(name.clone(), value);
    }
}

fn remove_param(uri: &mut Uri, name: &str) {
    let Some(query) = uri.query() else {
        return;
    };
    let keep = |pair: &&str| decoded(pair.split_once('=').map_or(*pair, |(key, _)| key)) != name;
    let kept: Vec<_> = query.split('&').filter(keep).collect();
    let path = uri.path();
    let left = match kept.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    // Part of an address that was one.
    if let Ok(left) = PathAndQuery::try_from(left) {
        parts.path_and_query = Some(left);
    }
    if let Ok(left) = Uri::from_parts(parts) {
        *uri = left;
    }
}

fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    let without = |value: &HeaderValue| {
        let Some(text) = text(value) else {
            return Some(value.clone());
        };
        let pairs = text.split(';').map(str::trim);
        let kept: Vec<_> = pairs.filter(|pair| cookie(pair, name).is_none()).collect();
        HeaderValue::from_bytes(kept.join("; ").as_bytes())
            .ok()
            .filter(|value| !value.is_empty())
    };
    let kept: Vec<_> = headers.get_all(COOKIE).into_iter().filter_map(without).collect();
    put(headers, &COOKIE, kept);
}
