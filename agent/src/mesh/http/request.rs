//! What is asked about a request: its head, and what is proved about whoever sent it.

use std::{borrow::Cow, cell::OnceCell, sync::Arc};

use http::{HeaderMap, Method, header::HeaderName};
use rustc_hash::FxHashMap;
use serde_json::{Map, Value};

/// A request's head, as far as routes and policies look at it.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, normalised ([`super::normalize`]), without its query.
    pub path: &'a str,
    /// The query, without its question mark.
    pub query: Option<&'a str>,
    /// `:authority` or `Host`, as it was sent.
    pub authority: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The headers, without pseudo headers.
    pub headers: &'a HeaderMap,
    /// The namespace of the client's workload, where it has proved one.
    pub source_namespace: Option<&'a str>,
}

impl<'a> RequestHead<'a> {
    /// The host without its port, in lower case.
    pub fn host(&self) -> Cow<'a, str> {
        host_of(self.authority)
    }

    /// Every value of a header. `host` is the authority, whichever of the two was sent, and pseudo headers have their
    /// values.
    pub(in crate::mesh) fn header_values(&self, name: &HeaderKey) -> Vec<Cow<'a, [u8]>> {
        match name {
            HeaderKey::Name(name) => {
                let values = self.headers.get_all(name).iter();
                values.map(|value| Cow::Borrowed(value.as_bytes())).collect()
            }
            HeaderKey::Authority => vec![Cow::Borrowed(self.authority.as_bytes())],
            HeaderKey::Method => vec![Cow::Owned(self.method.as_str().as_bytes().to_vec())],
            HeaderKey::Scheme => vec![Cow::Borrowed(self.scheme.as_bytes())],
            HeaderKey::Path => vec![Cow::Owned(self.path_and_query().into_bytes())],
            HeaderKey::Nothing => Vec::new(),
        }
    }

    /// A header's values, joined by commas (RFC 9110 5.2); none where it is not there.
    pub(in crate::mesh) fn header(&self, name: &HeaderKey) -> Option<Cow<'a, [u8]>> {
        if let HeaderKey::Name(name) = name {
            let mut values = self.headers.get_all(name).iter();
            let first = values.next()?;
            if values.next().is_none() {
                return Some(Cow::Borrowed(first.as_bytes()));
            }
        }
        joined(self.header_values(name))
    }

    pub(super) fn path_and_query(&self) -> String {
        match self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.to_owned(),
        }
    }
}

fn joined(mut values: Vec<Cow<'_, [u8]>>) -> Option<Cow<'_, [u8]>> {
    match values.len() {
        0 | 1 => values.pop(),
        _ => Some(Cow::Owned(values.join(&b','))),
    }
}

/// The name of a header, found out once.
#[derive(Clone, Debug)]
pub(in crate::mesh) enum HeaderKey {
    Name(HeaderName),
    Authority,
    Method,
    Path,
    Scheme,
    /// What no header can be called is never there.
    Nothing,
}

impl HeaderKey {
    pub(in crate::mesh) fn new(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => Self::Authority,
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":scheme" => Self::Scheme,
            name => HeaderName::from_bytes(name.as_bytes()).map_or(Self::Nothing, Self::Name),
        }
    }
}

/// The host of an authority: without user and port, without the dot at the end of an absolute name, in lower case.
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let (host, _) = split_port(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

/// Host and port of an authority. The last group of an IPv6 address is no port.
pub(super) fn split_port(authority: &str) -> (&str, Option<u16>) {
    let authority = authority
        .rsplit_once('@')
        .map_or(authority, |(_, authority)| authority);
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

/// A token that was verified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Token {
    /// `iss/sub`.
    pub principal: Arc<str>,
    /// `aud`.
    pub audiences: Vec<Arc<str>>,
    /// `azp`.
    pub presenter: Option<Arc<str>>,
    /// All of its payload.
    pub claims: Map<String, Value>,
    /// Claims that are lists in one text, besides `scope` and `permission` (the rule's `space_delimited_claims`).
    pub space_delimited: Vec<Arc<str>>,
}

/// What is known about a request besides its connection.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// Its head.
    pub head: &'a RequestHead<'a>,
    /// The token that it carries and that was verified.
    pub token: Option<&'a Token>,
    /// What the client asked for in TLS.
    pub sni: Option<&'a str>,
}

/// A request while routes are looked for: what is looked at more than once is found out once.
pub(super) struct Asked<'a> {
    pub(super) head: &'a RequestHead<'a>,
    pub(super) host: Cow<'a, str>,
    lower_path: OnceCell<String>,
    query: OnceCell<Parameters<'a>>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(head: &'a RequestHead<'a>) -> Self {
        Self {
            head,
            host: head.host(),
            lower_path: OnceCell::new(),
            query: OnceCell::new(),
        }
    }

    pub(super) fn lower_path(&self) -> &str {
        self.lower_path
            .get_or_init(|| self.head.path.to_ascii_lowercase())
    }

    /// The first parameter of this name.
    pub(super) fn parameter(&self, name: &str) -> Option<&[u8]> {
        let parameters = self.query.get_or_init(|| parameters(self.head.query));
        parameters.get(name.as_bytes()).map(AsRef::as_ref)
    }
}

/// Those of a query, percent-decoded; the first of each name.
type Parameters<'a> = FxHashMap<Cow<'a, [u8]>, Cow<'a, [u8]>>;

fn parameters(query: Option<&str>) -> Parameters<'_> {
    let mut parameters = FxHashMap::default();
    for pair in query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters.entry(decoded(name)).or_insert_with(|| decoded(value));
    }
    parameters
}

/// Percent-decoded; what is no sequence stays as it is.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    while let [first, rest @ ..] = bytes {
        match super::path::escaped(bytes) {
            Some((byte, rest)) => {
                decoded.push(byte);
                bytes = rest;
            }
            None => {
                decoded.push(*first);
                bytes = rest;
            }
        }
    }
    Cow::Owned(decoded)
}
