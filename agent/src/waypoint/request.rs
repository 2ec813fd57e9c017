//! One request, from its head to its response: the phases, top to bottom.
//!
//! authenticate, match, authorize the service's policies, pick, authorize what depends on the chosen workload, send with retries
//! (`send`), record (`record`, with the response's end). The questions are `mesh::http`'s and pure; the clock and the draws are
//! made here and in `send`. Whoever calls it has the request from a listener, whichever that is.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::{Instant, sleep};

use super::{
    balance::To,
    body::{Body, From, Sent},
    client::{Client, Here},
    downstream::{Busy, LONGEST_HEAD},
    draw, headers,
    record::Exchange,
    reply::Reply,
    send::{Answer, Sending},
};
use crate::mesh::{
    Bound, Inbound, Refusal, Verdict, authorize_service,
    http::{
        CorsAnswer, Decision, Destination, HeaderChanges, Matched, RequestFacts, RequestHead, ResponseFlag,
        RouteAction, Token, normalize, put_cors,
    },
};

/// Bytes of a request's path and query.
const LONGEST_URI: usize = 16 * 1024;

/// Answers one request. `busy` is held until its response has ended.
pub(super) async fn serve(client: &Arc<Client>, request: Request<Incoming>, busy: Busy) -> Response<Body> {
    let mut exchange = Exchange::begin(client, &request);
    // Boxed: what it needs would otherwise be kept for as long as the connection lives.
    match Box::pin(answer(client, request, &mut exchange)).await {
        Ok(answer) => answer.respond(exchange, busy),
        Err(reply) => {
            let reply = *reply;
            exchange.flag(reply.flag);
            exchange.flow.policy = reply.policy.clone().or(exchange.flow.policy.take());
            exchange.flow.error = reply.why.clone();
            let response = reply.into_response(exchange.is_grpc());
            exchange.head(response.status().as_u16(), response.headers());
            response.map(|body| Body::new(From::Own(body), exchange, Some(busy)))
        }
    }
}

/// The phases. What ends one early is a reply of the waypoint's own.
async fn answer(
    client: &Arc<Client>,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Answer, Box<Reply>> {
    let here = client.here().map_err(|refusal| unknown(&refusal))?;
    exchange.found(&here);
    let (mut asked, body) = Asked::read(client, request, exchange)?;
    // First: routes may go by headers that tokens become, and those are not the client's to write.
    authenticate(client, &here, &mut asked)?;
    let decision = match_(&here, &asked);
    if let Decision::Rule(matched) = &decision {
        exchange.flow.route = Some(matched.rule().name.clone());
    }
    authorize(client, &here, &asked, exchange)?;
    let (matched, to) = match &decision {
        Decision::NotFound => return Err(no_route("no rule is for this request")),
        Decision::Unrouted => (None, None),
        Decision::Rule(matched) => (Some(matched), Some(draw())),
    };
    let mut response_headers = ResponseHeaders::default();
    if let Some(matched) = matched {
        answer_cors(matched, &asked, &mut response_headers)?;
        inject_fault(matched, exchange).await?;
        answer_by_rule(matched, &here, &asked)?;
    }
    let backend = matched.and_then(|matched| matched.backend(to.unwrap_or_default()));
    let to = destination(&here, matched, backend.map(|backend| &backend.to))?;
    response_headers.rule = matched.map(|matched| matched.rule().response_headers.clone());
    response_headers.backend = backend.map(|backend| backend.response_headers.clone());
    let sending = Sending {
        client,
        here: &here,
        matched,
        backend,
        asked: &mut asked,
        body,
        deadline: deadline(matched, exchange),
        response_headers,
    };
    sending.send(to, exchange).await
}

/// Nothing is known of what was asked for any more, or yet.
fn unknown(refusal: &Refusal) -> Box<Reply> {
    Box::new(Reply::unavailable(ResponseFlag::NoRoute, refusal.to_string()))
}

fn no_route(why: &'static str) -> Box<Reply> {
    Box::new(Reply::new(StatusCode::NOT_FOUND, ResponseFlag::NoRoute, "").because(why))
}

/// A request as it was asked, with one path for all who look at it.
pub(super) struct Asked {
    pub(super) parts: Parts,
    /// Normalised, without its query.
    pub(super) path: Arc<str>,
    /// `:authority` or `Host`, as it was sent.
    pub(super) authority: Arc<str>,
    pub(super) token: Option<Token>,
    /// The protocol that the client wants to go on with.
    pub(super) upgrade: Option<(HeaderValue, OnUpgrade)>,
    /// The namespace of whoever asks.
    namespace: Arc<str>,
}

impl Asked {
    /// Reads the head, and refuses what is too large or can be read in two ways (RFC 9112 6.3, 3.2).
    fn read(
        client: &Client,
        mut request: Request<Incoming>,
        exchange: &mut Exchange,
    ) -> Result<(Self, Sent), Box<Reply>> {
        check(&request)?;
        let on_upgrade = request
            .headers()
            .contains_key(header::UPGRADE)
            .then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let authority = authority(&parts)?;
        exchange.flow.authority = Arc::clone(&authority);
        let how = client.worker().shared.settings.normalization;
        let path = normalize(parts.uri.path(), how);
        let path: Arc<str> = path
            .map_err(|error| Reply::bad_request("the path cannot be read").because(error.to_string()))?
            .into();
        exchange.flow.path = Arc::clone(&path);
        let upgrade = headers::strip_hop_by_hop(&mut parts.headers).filter(may_upgrade);
        let body = Sent::new(body, exchange.is_grpc());
        exchange.reads(&body);
        Ok((
            Self {
                path,
                authority,
                token: None,
                upgrade: upgrade
                    .zip(on_upgrade)
                    .filter(|_| parts.version == Version::HTTP_11),
                namespace: client.identity().namespace().into(),
                parts,
            },
            body,
        ))
    }

    /// As routes and policies look at it.
    pub(super) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.parts.method,
            path: &self.path,
            query: self.parts.uri.query(),
            authority: &self.authority,
            scheme: "http",
            headers: &self.parts.headers,
            source_namespace: Some(&self.namespace),
        }
    }

    /// The path and the query that are sent on where no rule changes them.
    pub(super) fn path_and_query(&self) -> Cow<'_, str> {
        match self.parts.uri.query() {
            None => Cow::Borrowed(&self.path),
            Some(query) => Cow::Owned(format!("{}?{query}", self.path)),
        }
    }
}

/// HTTP/2 would be requests that nobody judges (RFC 9113 3.1: `h2c` is not to be used any more).
fn may_upgrade(protocols: &HeaderValue) -> bool {
    let mut protocols = protocols.as_bytes().split(|byte| *byte == b',');
    !protocols.any(|protocol| protocol.trim_ascii().to_ascii_lowercase().starts_with(b"h2"))
}

/// What no endpoint is to be bothered with.
fn check(request: &Request<Incoming>) -> Result<(), Box<Reply>> {
    let headers = request.headers();
    if request.method() == Method::CONNECT {
        let reply = Reply::new(StatusCode::METHOD_NOT_ALLOWED, ResponseFlag::None, "");
        return Err(Box::new(reply.because("CONNECT")));
    }
    let uri = request.uri();
    if uri.path().len() + uri.query().map_or(0, str::len) > LONGEST_URI {
        let reply = Reply::new(StatusCode::URI_TOO_LONG, ResponseFlag::None, "");
        return Err(Box::new(reply.because("the path is too long")));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes > LONGEST_HEAD {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let reply = Reply::new(status, ResponseFlag::None, "");
        return Err(Box::new(reply.because("the headers are too large")));
    }
    if headers.contains_key(header::CONTENT_LENGTH) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(Reply::bad_request("both Content-Length and Transfer-Encoding").into());
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err(Reply::bad_request("more than one Content-Length").into());
    }
    Ok(())
}

/// Who is asked: one name, however often it is said.
fn authority(parts: &Parts) -> Result<Arc<str>, Box<Reply>> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::to_str).transpose();
    let host = host.map_err(|_| Reply::bad_request("a Host that is no text"))?;
    if hosts.next().is_some() {
        return Err(Reply::bad_request("more than one Host").into());
    }
    let asked = parts.uri.authority().map(|authority| authority.as_str());
    match (asked, host) {
        (Some(asked), Some(host)) if !asked.eq_ignore_ascii_case(host) => {
            Err(Reply::bad_request("Host and :authority are not the same").into())
        }
        (Some(one), _) | (None, Some(one)) if !one.contains('@') => Ok(one.into()),
        (None, None) if parts.version == Version::HTTP_10 => Ok("".into()),
        _ => Err(Reply::bad_request("no Host").into()),
    }
}

/// Which rule it falls under.
fn match_<'a>(here: &'a Here, asked: &Asked) -> Decision<'a> {
    match &here.routes {
        Some(routes) => routes.decide(here.bound.port(), &asked.head()),
        None => Decision::Unrouted,
    }
}

/// Verifies its tokens, and removes what the client must not say.
fn authenticate(client: &Client, here: &Here, asked: &mut Asked) -> Result<(), Box<Reply>> {
    if let Some(missing) = &here.missing {
        let why = format!("the request authentication {missing} has not arrived");
        return Err(Reply::unavailable(ResponseFlag::Unauthorized, why).into());
    }
    let authenticator = &client.worker().shared.authenticator;
    let verified = authenticator.authenticate(&here.authentications, &mut asked.parts, SystemTime::now());
    match verified {
        Ok(token) => {
            asked.token = token;
            Ok(())
        }
        Err(error) => {
            let mut reply = Reply::new(error.status(), ResponseFlag::Unauthorized, error.body());
            let challenge = error.challenge("http", &asked.authority, &asked.path);
            reply.headers.insert(header::WWW_AUTHENTICATE, challenge);
            Err(reply.because(error.to_string()).into())
        }
    }
}

/// What the policies say that name the service, its waypoint or that one's class.
fn authorize(client: &Client, here: &Here, asked: &Asked, exchange: &mut Exchange) -> Result<(), Box<Reply>> {
    if here.policies.is_empty() {
        return Ok(());
    }
    let conn = Inbound {
        peer: Some(client.identity().clone()),
        source_ip: client.addr.ip(),
        destination: here.dialled,
    };
    let (head, token) = (asked.head(), asked.token.as_ref());
    let facts = RequestFacts {
        head: &head,
        token,
        sni: None,
    };
    match authorize_service(&here.seen.mesh, &here.policies, &conn, &facts) {
        Verdict::Allow { policy } => {
            exchange.flow.policy = policy;
            Ok(())
        }
        Verdict::Deny(refusal) => Err(Reply::denied(&refusal).into()),
    }
}

/// A browser's question is answered here.
fn answer_cors(
    matched: &Matched<'_>,
    asked: &Asked,
    response: &mut ResponseHeaders,
) -> Result<(), Box<Reply>> {
    match matched.cors(&asked.head()) {
        CorsAnswer::Nothing => Ok(()),
        CorsAnswer::Preflight(headers) => {
            let mut reply = Reply::new(StatusCode::OK, ResponseFlag::None, "");
            reply.headers = headers;
            Err(reply.into())
        }
        CorsAnswer::Response(headers) => {
            response.cors = Some(headers);
            Ok(())
        }
    }
}

/// Failures on purpose.
async fn inject_fault(matched: &Matched<'_>, exchange: &mut Exchange) -> Result<(), Box<Reply>> {
    let Some(fault) = &matched.rule().fault else {
        return Ok(());
    };
    if let Some(delay) = fault.delay(draw()) {
        exchange.flag(ResponseFlag::DelayInjected);
        sleep(delay).await;
    }
    let Some(abort) = fault.abort(draw()) else {
        return Ok(());
    };
    let status = StatusCode::from_u16(abort.http_status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut reply = Reply::new(status, ResponseFlag::FaultInjected, "fault filter abort");
    reply.grpc = abort.grpc_status;
    Err(reply.into())
}

/// Redirects, and answers that a rule gives itself.
fn answer_by_rule(matched: &Matched<'_>, here: &Here, asked: &Asked) -> Result<(), Box<Reply>> {
    let rule = matched.rule();
    let mut reply = match &rule.action {
        RouteAction::Forward(_) => return Ok(()),
        RouteAction::Redirect(redirect) => {
            let location = matched.location(redirect, &asked.head(), here.bound.port());
            let status = StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND);
            let mut reply = Reply::new(status, ResponseFlag::None, "");
            let location = HeaderValue::try_from(location)
                .map_err(|_| Reply::bad_request("the redirect leads nowhere"))?;
            reply.headers.insert(header::LOCATION, location);
            reply
        }
        RouteAction::Respond(direct) => {
            let status = StatusCode::from_u16(direct.status).unwrap_or(StatusCode::OK);
            let body = Bytes::copy_from_slice(direct.body.as_bytes());
            Reply::new(status, ResponseFlag::None, body)
        }
    };
    rule.response_headers.apply(&mut reply.headers);
    Err(reply.into())
}

/// Where it goes.
fn destination<'a>(
    here: &'a Here,
    matched: Option<&Matched<'a>>,
    backend: Option<&'a Destination>,
) -> Result<To<'a>, Box<Reply>> {
    let nowhere = |why: String| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Box::new(Reply::new(status, ResponseFlag::NoRoute, "").because(why))
    };
    match (backend, &here.bound) {
        (None, _) if matched.is_some() => Err(nowhere("the rule sends to nobody".to_owned())),
        (Some(Destination::Nowhere(why)), _) => Err(nowhere(why.to_string())),
        // Whoever dials a pod of a service means that pod, as far as the service itself is meant.
        (Some(Destination::Service { service, subset, .. }), Bound::Workload { addr, of, .. })
            if subset.is_none() && of.as_ref().is_some_and(|(of, _)| of.key == *service) =>
        {
            Ok(To::Pod(*addr))
        }
        (
            Some(Destination::Service {
                service,
                port,
                subset,
            }),
            _,
        ) => Ok(To::Service(service, *port, subset.as_ref())),
        (None, Bound::Service { service, port }) => Ok(To::Service(&service.key, *port, None)),
        (None, Bound::Workload { addr, .. }) => Ok(To::Pod(*addr)),
    }
}

/// When the response must have ended.
fn deadline(matched: Option<&Matched<'_>>, exchange: &Exchange) -> Option<Instant> {
    let allowed = matched?.rule().timeouts.request_ms?;
    Instant::from_std(exchange.since()).checked_add(Duration::from_millis(allowed))
}

/// What a response gets besides what the endpoint says: the backend's changes, then the rule's, then what browsers are told.
#[derive(Default)]
pub(super) struct ResponseHeaders {
    backend: Option<HeaderChanges>,
    rule: Option<HeaderChanges>,
    cors: Option<http::HeaderMap>,
}

impl ResponseHeaders {
    pub(super) fn apply(&self, headers: &mut http::HeaderMap) {
        let changes = self.backend.iter().chain(&self.rule);
        changes.for_each(|changes| changes.apply(headers));
        if let Some(cors) = &self.cors {
            put_cors(headers, cors);
        }
    }
}
