//! Other paths, and the addresses of redirects. Whatever a client sent and a rule says, what comes out is a path or an
//! address: what has no place in one is escaped.

use std::{borrow::Cow, fmt::Write as _};

use regex::bytes::{Captures, Regex};
use thiserror::Error;

use super::{
    PathMatch, PathRewrite, Redirect, RedirectPort, RequestHead,
    path::escape,
    request::{host_of, split_port},
};

/// The longest path with its query that a rewrite makes, in bytes.
const LONGEST_PATH: usize = 32 * 1024;

/// A rewrite whose outcome is no path. The request is answered with 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRewrite {
    /// An expression made much of little.
    #[error("the rewritten path is longer than 32 KiB")]
    TooLong,
}

/// What is known about a rewrite beforehand.
pub(super) struct Rewriting<'a> {
    pub(super) to: &'a PathRewrite,
    /// Where `to` is an expression.
    pub(super) regex: Option<&'a Regex>,
    /// What the path was matched by.
    pub(super) matched: Option<&'a PathMatch>,
}

impl Rewriting<'_> {
    /// The path and its query. A replacement may bring parameters of its own, which come first.
    pub(super) fn apply(&self, head: &RequestHead<'_>) -> Result<String, BadRewrite> {
        let path = match self.to {
            PathRewrite::Full(path) => Cow::Borrowed(&**path),
            PathRewrite::Prefix(start) => self.with_prefix(start, head.path),
            PathRewrite::Regex { replacement, .. } => match self.regex {
                Some(regex) => Cow::Owned(replaced(regex, replacement, head.path)?),
                None => Cow::Borrowed(head.path),
            },
        };
        let path = with_query(&legal(&path), head.query);
        if path.len() > LONGEST_PATH {
            return Err(BadRewrite::TooLong);
        }
        Ok(path)
    }

    fn with_prefix<'p>(&self, start: &'p str, path: &str) -> Cow<'p, str> {
        match self.matched {
            Some(PathMatch::Under(under)) => {
                let under = super::path::canonical_escapes(under);
                let rest = path.strip_prefix(under.trim_end_matches('/')).unwrap_or_default();
                join(start, rest)
            }
            Some(PathMatch::Prefix(prefix) | PathMatch::PrefixIgnoringCase(prefix)) => {
                let matched = super::path::canonical_escapes(prefix).len();
                join(start, path.get(matched..).unwrap_or_default())
            }
            _ => Cow::Borrowed(start),
        }
    }
}

/// With one slash between the two, whichever of them brings it.
fn join<'a>(start: &'a str, rest: &str) -> Cow<'a, str> {
    if rest.is_empty() {
        return Cow::Borrowed(start);
    }
    let start = match rest.starts_with('/') {
        true => start.trim_end_matches('/'),
        false => start,
    };
    Cow::Owned(format!("{start}{rest}"))
}

fn replaced(regex: &Regex, replacement: &str, path: &str) -> Result<String, BadRewrite> {
    let (mut out, mut from) = (Vec::new(), 0);
    for captures in regex.captures_iter(path.as_bytes()) {
        let Some(whole) = captures.get(0) else { continue };
        out.extend_from_slice(path.as_bytes().get(from..whole.start()).unwrap_or_default());
        expand(&captures, replacement, &mut out);
        from = whole.end();
        if out.len() > LONGEST_PATH {
            return Err(BadRewrite::TooLong);
        }
    }
    out.extend_from_slice(path.as_bytes().get(from..).unwrap_or_default());
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `\1` is the first group, `\0` the whole, `\\` a backslash (RE2's rewrite strings).
fn expand(captures: &Captures<'_>, replacement: &str, out: &mut Vec<u8>) {
    let mut bytes = replacement.bytes();
    while let Some(byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, true) => match bytes.next() {
                Some(digit @ b'0'..=b'9') => {
                    let group = captures.get(usize::from(digit - b'0'));
                    out.extend_from_slice(group.map_or(&[][..], |group| group.as_bytes()));
                }
                Some(other) => out.push(other),
                None => out.push(b'\\'),
            },
            (byte, false) => out.push(byte),
        }
    }
}

fn with_query(path: &str, query: Option<&str>) -> String {
    match query {
        Some(query) if path.contains('?') => format!("{path}&{}", legal(query)),
        Some(query) => format!("{path}?{}", legal(query)),
        None => path.to_owned(),
    }
}

/// A path with its query in which everything may stand where it stands (RFC 3986 3.3, 3.4).
fn legal(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => escape(byte, &mut out),
            b'!'..=b'~' => out.push(char::from(byte)),
            _ => escape(byte, &mut out),
        }
    }
    out
}

/// Begins with one slash, so that nobody reads a host into it.
fn absolute(path: &str) -> String {
    format!("/{}", path.trim_start_matches('/'))
}

/// The path and query that are sent on.
pub(super) fn path_and_query(
    rewriting: &Rewriting<'_>,
    head: &RequestHead<'_>,
) -> Result<String, BadRewrite> {
    rewriting.apply(head).map(|path| absolute(&path))
}

/// The address of a redirect. `port` is the one that the client asked for.
pub(super) fn location(
    redirect: &Redirect,
    rewriting: Option<&Rewriting<'_>>,
    head: &RequestHead<'_>,
    port: u16,
) -> String {
    let rewritten = rewriting.and_then(|rewriting| rewriting.apply(head).ok());
    let path = rewritten.unwrap_or_else(|| with_query(&legal(head.path), head.query));
    let path = absolute(&path);
    let scheme = redirect.scheme.as_deref().unwrap_or(head.scheme);
    let Some(well_known) = well_known_port(scheme) else {
        return path;
    };
    let said = redirect.host.as_deref();
    let (said_host, said_port) = said.map_or(("", None), split_port);
    let host = match said {
        Some(_) => Cow::Borrowed(said_host),
        None => host_of(head.authority),
    };
    if !is_host(&host) {
        return path;
    }
    let port = match redirect.port {
        Some(RedirectPort::Is(port)) => port,
        Some(RedirectPort::OfRequest) => said_port.unwrap_or(port),
        Some(RedirectPort::OfScheme) => said_port.unwrap_or(well_known),
        None if redirect.scheme.is_some() => said_port.unwrap_or(well_known),
        None => said_port.unwrap_or(port),
    };
    let mut location = format!("{scheme}://{host}");
    if port != well_known {
        let _infallible = write!(location, ":{port}");
    }
    location + &path
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Whether it can stand in an address: a name or an IP address.
fn is_host(host: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(legal),
    }
}

#[cfg(test)]
mod tests;
