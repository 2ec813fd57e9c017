//! A request's head as it is sent on: the rule's changes, who the client is, and the form of the protocol that is spoken there.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    body::Outgoing,
    draw,
    headers::{self, continue_trace, request_id, write_client},
    record::Exchange,
    reply::Reply,
    request::Asked,
    send::Sending,
};
use crate::mesh::AppProtocol;

/// Whether HTTP/2 is spoken with an endpoint: where the port says so; as the client does where it says nothing, or where it is
/// gRPC, for which there is nothing else.
pub(super) fn speaks_http2(protocol: Option<AppProtocol>, asked: &Asked, is_grpc: bool) -> bool {
    if asked.upgrade.is_some() {
        return false;
    }
    match protocol {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::Http11) => is_grpc,
        Some(AppProtocol::Tcp | AppProtocol::Tls) | None => asked.parts.version == Version::HTTP_2,
    }
}

/// A head, for as many attempts as there are.
pub(super) struct Head {
    pub(super) http2: bool,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// Who is asked.
    pub(super) authority: Arc<str>,
    /// With its query.
    pub(super) path: String,
}

impl Head {
    /// What is sent on.
    ///
    /// # Errors
    /// When a rule makes something of it that cannot be sent.
    pub(super) fn of(
        sending: &Sending<'_>,
        http2: bool,
        exchange: &mut Exchange,
    ) -> Result<Self, Box<Reply>> {
        let asked = &*sending.asked;
        let rule = sending.matched.map(|matched| matched.rule());
        let path = match sending.matched {
            Some(matched) => matched.rewritten_path(&asked.head()).map_err(|error| {
                Reply::bad_request("the path cannot be rewritten").because(error.to_string())
            })?,
            None => None,
        };
        let path = path.unwrap_or_else(|| asked.path_and_query().into_owned());
        let rewritten = rule.and_then(|rule| rule.rewrite.authority.clone());
        let authority = rewritten.unwrap_or_else(|| Arc::clone(&asked.authority));
        let mut headers = asked.parts.headers.clone();
        let changes = rule.map(|rule| &rule.request_headers);
        let of_backend = sending.backend.map(|backend| &backend.request_headers);
        changes
            .into_iter()
            .chain(of_backend)
            .for_each(|changes| changes.apply(&mut headers));
        say_who(sending, &mut headers, exchange);
        let mut head = Self {
            http2,
            method: asked.parts.method.clone(),
            uri: Uri::default(),
            headers,
            authority,
            path,
        };
        head.take_form(asked)?;
        Ok(head)
    }

    /// In the form of the protocol that is spoken with the endpoint.
    fn take_form(&mut self, asked: &Asked) -> Result<(), Box<Reply>> {
        let bad = || Reply::bad_request("the request cannot be sent on");
        self.uri = uri(self.http2, &self.authority, &self.path).ok_or_else(bad)?;
        // Asked and answered by us: the body is sent as it comes.
        self.headers.remove(header::EXPECT);
        if self.http2 {
            self.headers.remove(header::HOST);
            return Ok(());
        }
        let host = HeaderValue::from_str(&self.authority).map_err(|_| bad())?;
        self.headers.insert(header::HOST, host);
        join_cookies(&mut self.headers);
        if let Some((protocol, _)) = &asked.upgrade {
            self.headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            self.headers.insert(header::UPGRADE, protocol.clone());
        } else if self.headers.contains_key(header::TE) {
            // RFC 9110 10.1.4: it is for the next hop, and says so.
            self.headers
                .insert(header::CONNECTION, HeaderValue::from_static("te"));
        }
        Ok(())
    }

    /// The request of an attempt.
    pub(super) fn request(&self, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        *request.version_mut() = match self.http2 {
            true => Version::HTTP_2,
            false => Version::HTTP_11,
        };
        request
    }
}

/// HTTP/1.1 has the path alone, HTTP/2 all of it.
pub(super) fn uri(http2: bool, authority: &str, path: &str) -> Option<Uri> {
    let path = PathAndQuery::try_from(path).ok()?;
    if !http2 {
        return Some(Uri::from(path));
    }
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(authority).ok()?);
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}

/// RFC 9113 8.2.3: what HTTP/2 may send in pieces is one header elsewhere.
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    if cookies.by_ref().nth(1).is_none() {
        return;
    }
    let pieces: Vec<_> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Who the client is, what the request is called, and the trace that it is part of.
fn say_who(sending: &Sending<'_>, headers: &mut HeaderMap, exchange: &mut Exchange) {
    let client = sending.client;
    write_client(
        headers,
        &headers::Client {
            by: &sending.here.seen.identity,
            identity: Some(client.identity()),
            ip: client.addr.ip(),
            scheme: "http",
        },
    );
    let number = || u128::from(draw()) << 64 | u128::from(draw());
    exchange.flow.request_id = Some(request_id(headers, number()));
    let trace = continue_trace(headers, (number(), draw()), false);
    exchange.flow.trace_id = Some(trace.id);
}
