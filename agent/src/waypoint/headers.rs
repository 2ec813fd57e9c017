//! The headers that a waypoint itself writes, and those that end with it: who the client is, the request's id, its trace,
//! and what is said to the next hop only.
//!
//! Draws come in as arguments. Called by `request` in this order: [`strip_hop_by_hop`] before anything else looks at the
//! headers, so that what policies see is what the app gets; [`write_client`], [`request_id`] and [`continue_trace`] before
//! the request is sent on.

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, FORWARDED, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};

use crate::mesh::SpiffeId;

#[cfg(test)]
mod tests;
mod trace;

pub use trace::{Trace, continue_trace};

/// Who the client is, by what its certificate proved.
pub const X_FORWARDED_CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The client's address.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `http` or `https`.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What one request is called in every log.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// What apps believe about who a client is and where it comes from: never what a client wrote.
const CLAIMS: [HeaderName; 5] = [
    X_FORWARDED_CLIENT_CERT,
    X_FORWARDED_FOR,
    FORWARDED,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-envoy-external-address"),
];

/// The longest request id that is kept.
const LONGEST_ID: usize = 128;

/// Removes what is meant for the next hop only (RFC 9110 7.6.1), and gives the protocol that `Upgrade` asks for.
///
/// `TE: trailers` stays, which gRPC demands. Nobody removes what says where a request goes and where it ends by naming it
/// in `Connection`.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        .collect();
    let upgrade = headers.remove(UPGRADE).filter(|_| named.contains(&UPGRADE));
    let trailers = tokens(headers, &TE).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
    for name in named
        .into_iter()
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
    {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        TRANSFER_ENCODING,
        TE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

/// The elements of a header that is a list.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    values.flat_map(|value| {
        value
            .as_bytes()
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
    })
}

/// A request's client, as its tunnel proved it.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The waypoint itself.
    pub by: &'a SpiffeId,
    /// Who the client is.
    pub identity: Option<&'a SpiffeId>,
    /// Where it is.
    pub ip: IpAddr,
    /// `http` or `https`: what was spoken with the client.
    pub scheme: &'a str,
}

/// Writes who the client is, in place of whatever the client wrote about that.
///
/// `X-Forwarded-Proto` is the client's where it is `http` or `https`: only a gateway knows what its own client spoke, and
/// apps redirect in circles where that is lost.
pub fn write_client(headers: &mut HeaderMap, client: &Client<'_>) {
    remove_claims(headers);
    let mut line = BytesMut::with_capacity(192);
    if let Some(identity) = client.identity {
        for part in ["By=", client.by.as_str(), ";URI=", identity.as_str()] {
            line.put_slice(part.as_bytes());
        }
        insert(headers, X_FORWARDED_CLIENT_CERT, &line);
    }
    insert(headers, X_FORWARDED_FOR, client.ip.to_string().as_bytes());
    let sent = headers.get(&X_FORWARDED_PROTO).map(HeaderValue::as_bytes);
    if !matches!(sent, Some(b"http" | b"https")) {
        insert(headers, X_FORWARDED_PROTO, client.scheme.as_bytes());
    }
}

/// A value that cannot be one leaves none: identities, addresses and schemes always can.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    match HeaderValue::from_bytes(value) {
        Ok(value) => headers.insert(name, value),
        Err(_) => headers.remove(name),
    };
}

fn remove_claims(headers: &mut HeaderMap) {
    for name in &CLAIMS {
        remove_alike(headers, name);
    }
    // It is the client's to say, but not in disguise.
    let proto = headers.remove(X_FORWARDED_PROTO);
    remove_alike(headers, &X_FORWARDED_PROTO);
    if let Some(proto) = proto {
        headers.insert(X_FORWARDED_PROTO, proto);
    }
}

/// Removes a header, and those that look the same to apps which get headers as variables (CGI, WSGI): these cannot tell
/// `X_Forwarded_For` from `X-Forwarded-For`.
pub(super) fn remove_alike(headers: &mut HeaderMap, name: &HeaderName) {
    headers.remove(name);
    let dash = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let alike = |other: &&HeaderName| {
        let (a, b) = (name.as_str(), other.as_str());
        a.len() == b.len() && a.bytes().map(dash).eq(b.bytes().map(dash))
    };
    let disguised: Vec<_> = headers.keys().filter(alike).cloned().collect();
    for name in disguised {
        headers.remove(name);
    }
}

/// What the request is called: as the client said, or a UUID of this draw (RFC 9562 5.4).
pub fn request_id(headers: &mut HeaderMap, draw: u128) -> HeaderValue {
    let mut sent = headers.get_all(&X_REQUEST_ID).into_iter();
    if let (Some(id), None) = (sent.next(), sent.next())
        && is_sane_id(id.as_bytes())
    {
        return id.clone();
    }
    let id = uuid(draw);
    headers.insert(X_REQUEST_ID, id.clone());
    id
}

fn is_sane_id(id: &[u8]) -> bool {
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=~".contains(byte);
    (1..=LONGEST_ID).contains(&id.len()) && id.iter().all(sane)
}

fn uuid(draw: u128) -> HeaderValue {
    // Version 4, variant 10.
    let bits = draw & !(0xf << 76 | 0b11 << 62) | 4 << 76 | 0b10 << 62;
    let hex = format!("{bits:032x}");
    let mut text = String::with_capacity(36);
    for (at, digit) in hex.chars().enumerate() {
        if matches!(at, 8 | 12 | 16 | 20) {
            text.push('-');
        }
        text.push(digit);
    }
    // Hexadecimal and dashes.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("-"))
}
