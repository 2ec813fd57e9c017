//! What each path of the ports answers. Pure, but for the log's filter and the request to stop.

use std::collections::HashMap;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tracing::info;

use super::{Admin, Port};
use crate::telemetry::metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

type Answer = super::Page;

/// The answer to one request; its body is not looked at.
pub(super) fn answer<B>(port: Port, request: &Request<B>, admin: &Admin) -> Answer {
    let path = request.uri().path();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let posts = request.method() == Method::POST;
    match (port, path) {
        (Port::Admin, "/quitquitquit") if posts => quit(admin),
        (Port::Admin, "/quitquitquit") => not_allowed("POST"),
        (Port::Admin, "/logging") if reads || posts => logging(request, admin),
        (Port::Admin, "/logging") => not_allowed("GET, HEAD, POST"),
        (_, path) if known(port, path) && !reads => not_allowed("GET, HEAD"),
        (Port::Admin, "/") => respond(StatusCode::OK, TEXT, index(admin)),
        (Port::Admin, "/status") => json(&admin.source.status()),
        (Port::Admin, "/explain") => explain(request, admin),
        (Port::Admin, "/config_dump") => config_dump(admin),
        (Port::Metrics, "/metrics" | "/stats/prometheus") => {
            respond(StatusCode::OK, metrics::CONTENT_TYPE, admin.metrics.encode())
        }
        (Port::Ready, "/healthz/ready") => ready(admin),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            format!("nothing here; {}\n", hint(port)),
        ),
    }
}

fn index(admin: &Admin) -> String {
    INDEX.replace("ROLE", admin.source.role())
}

const INDEX: &str = "\
weft ROLE

GET  /status              this ROLE's status, as JSON (`weft status` shows it to people)
GET  /explain?from=&to=   what becomes of a connection and why, as JSON (`weft explain`)
GET  /config_dump         the status and the running configuration, as JSON
GET  /logging             the log's filter
POST /logging?level=...   set it, for example level=debug or level=info,weft::hbone=debug
POST /quitquitquit        stop the ROLE
";

fn known(port: Port, path: &str) -> bool {
    match port {
        Port::Admin => matches!(path, "/" | "/status" | "/explain" | "/config_dump"),
        Port::Metrics => matches!(path, "/metrics" | "/stats/prometheus"),
        Port::Ready => path == "/healthz/ready",
    }
}

fn hint(port: Port) -> &'static str {
    match port {
        Port::Admin => "see /",
        Port::Metrics => "see /metrics",
        Port::Ready => "see /healthz/ready",
    }
}

fn ready(admin: &Admin) -> Answer {
    match admin.source.ready() {
        Ok(()) => respond(StatusCode::OK, TEXT, "ready\n"),
        Err(reason) => respond(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            format!("not ready: {reason}\n"),
        ),
    }
}

fn quit(admin: &Admin) -> Answer {
    info!("asked to stop by /quitquitquit");
    admin.quit.cancel();
    respond(StatusCode::OK, TEXT, "stopping\n")
}

fn explain<B>(request: &Request<B>, admin: &Admin) -> Answer {
    let query = query(request.uri().query().unwrap_or_default());
    let (Some(from), Some(to)) = (query.get("from"), query.get("to")) else {
        return respond(
            StatusCode::BAD_REQUEST,
            TEXT,
            "write /explain?from=<namespace>/<workload>&to=<host>:<port>\n",
        );
    };
    match admin.source.explain(from, to) {
        Ok(explanation) => json(&explanation),
        Err(error) => respond(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
    }
}

fn config_dump(admin: &Admin) -> Answer {
    json(&serde_json::json!({ "status": admin.source.status(), "config": admin.source.config() }))
}

/// `GET` reads the filter, `POST ?level=` sets it.
fn logging<B>(request: &Request<B>, admin: &Admin) -> Answer {
    let Some(filter) = &admin.filter else {
        return respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "the log's filter cannot be changed here\n",
        );
    };
    match query(request.uri().query().unwrap_or_default()).get("level") {
        None => respond(StatusCode::OK, TEXT, format!("{}\n", filter.current())),
        Some(_) if request.method() != Method::POST => not_allowed("POST"),
        Some(level) => match filter.set(level) {
            Ok(()) => {
                info!("the log's filter is now {level}");
                respond(StatusCode::OK, TEXT, format!("{}\n", filter.current()))
            }
            Err(error) => respond(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n")),
        },
    }
}

/// The pairs of a query string; `%XX` is decoded, for filters such as `weft%3Ddebug`.
pub(super) fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(name, value)| (percent_decode(name), percent_decode(value)))
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => decoded.push(high << 4 | low),
            None => decoded.push(first),
        }
        rest = if escaped.is_some() {
            tail.get(2..).unwrap_or_default()
        } else {
            tail
        };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    let digit = char::from(digit).to_digit(16)?;
    u8::try_from(digit).ok()
}

fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(mut text) => {
            text.push(b'\n');
            respond(StatusCode::OK, JSON, text)
        }
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
    }
}

fn not_allowed(allow: &'static str) -> Answer {
    let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("use {allow}\n"));
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static(allow));
    response
}

/// A page.
pub fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}
