//! What a request asks for: its path and query taken apart, and what its headers say it can read.

use bytes::Bytes;
use serde_json::Value;

use super::{access::User, failure::Failure, protobuf};

/// A request for a resource, as the path names it; whether there is such a resource is another question.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Target {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) plural: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) sub: String,
    /// The old `/watch/` path.
    pub(super) watch: bool,
}

impl Target {
    /// `None` for a path that names no resource.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut parts = path
            .trim_matches('/')
            .split('/')
            .map(decode)
            .collect::<Vec<_>>()
            .into_iter();
        let mut target = Self::default();
        match parts.next()?.as_str() {
            "api" => target.version = parts.next()?,
            "apis" => (target.group, target.version) = (parts.next()?, parts.next()?),
            _ => return None,
        }
        let mut rest: Vec<String> = parts.collect();
        if rest.first().is_some_and(|part| part == "watch") {
            target.watch = true;
            rest.remove(0);
        }
        let of_namespace = ["status", "finalize"];
        let inside = rest.len() > 2 && rest[0] == "namespaces" && !of_namespace.contains(&rest[2].as_str());
        if inside {
            target.namespace = rest[1].clone();
            rest.drain(..2);
        }
        let mut rest = rest.into_iter();
        target.plural = rest.next().filter(|plural| !plural.is_empty())?;
        target.name = rest.next().unwrap_or_default();
        target.sub = rest.collect::<Vec<_>>().join("/");
        Some(target)
    }
}

/// The query's pairs.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(key, value)| (decode(key), decode(&value.replace('+', " "))))
                .collect(),
        )
    }

    /// The value, or "".
    pub(super) fn text(&self, key: &str) -> &str {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map_or("", |(_, value)| value)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(name, _)| name == key)
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        ["1", "true"].contains(&self.text(key))
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key).parse().ok()
    }
}

/// How the answer is to be shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    Whole,
    /// `PartialObjectMetadata` and lists of it.
    Metadata,
    /// Aggregated discovery.
    Discovery,
}

/// A request, its body read.
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: Query,
    pub(super) target: Option<Target>,
    pub(super) user: User,
    pub(super) shape: Shape,
    pub(super) content_type: String,
    /// What a field manager is called by default: the beginning of the User-Agent.
    pub(super) agent: String,
    pub(super) if_none_match: String,
    pub(super) body: Bytes,
}

impl Request {
    /// Who is noted as the owner of fields.
    pub(super) fn manager(&self) -> &str {
        match self.query.text("fieldManager") {
            "" => &self.agent,
            named => named,
        }
    }

    pub(super) fn dry_run(&self) -> bool {
        self.query.text("dryRun") == "All"
    }

    /// Whether a watch is asked for.
    pub(super) fn watches(&self) -> bool {
        self.query.flag("watch") || self.target.as_ref().is_some_and(|target| target.watch)
    }

    /// What RBAC calls it.
    pub(super) fn verb(&self) -> &'static str {
        let named = self.target.as_ref().is_none_or(|target| !target.name.is_empty());
        match (self.method.as_str(), named) {
            ("GET" | "HEAD", _) if self.target.is_some() && self.watches() => "watch",
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            _ => "",
        }
    }
}

/// What of `Accept` can be answered; JSON is always there.
pub(super) fn shape(accept: &str) -> Result<Shape, Failure> {
    if accept.is_empty() {
        return Ok(Shape::Whole);
    }
    for one in accept.split(',').map(str::trim) {
        let mut parts = one.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        if !["application/json", "application/*", "*/*"].contains(&media) {
            continue;
        }
        match parts.find_map(|part| part.strip_prefix("as=")) {
            None => return Ok(Shape::Whole),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Shape::Metadata),
            Some("APIGroupDiscoveryList") if one.contains("v=v2") && !one.contains("v2beta") => {
                return Ok(Shape::Discovery);
            }
            Some(_) => {}
        }
    }
    let message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, application/vnd.kubernetes.protobuf";
    Err(Failure::new(406, "NotAcceptable", message).details(serde_json::json!({})))
}

/// A body in JSON or YAML, an object whatever it holds.
pub(super) fn parse_body(request: &Request, kind: &str) -> Result<Value, Failure> {
    match request.content_type.as_str() {
        "application/json" | "" => {
            serde_json::from_slice(&request.body).map_err(|err| unreadable(&request.body, kind, &err))
        }
        "application/yaml" => from_yaml(&request.body),
        "application/vnd.kubernetes.protobuf" => protobuf::read(&request.body).ok_or_else(unsupported),
        _ => Err(unsupported()),
    }
}

fn unsupported() -> Failure {
    Failure::new(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
    )
}

/// One YAML document (JSON is one, too).
pub(super) fn from_yaml(body: &[u8]) -> Result<Value, Failure> {
    let text = std::str::from_utf8(body).map_err(|err| Failure::bad_request(err.to_string()))?;
    serde_saphyr::from_str(text).map_err(|err| Failure::bad_request(format!("error decoding YAML: {err}")))
}

fn unreadable(body: &[u8], kind: &str, err: &serde_json::Error) -> Failure {
    let told = if err.is_eof() {
        "unexpected end of JSON input".to_owned()
    } else {
        err.to_string()
    };
    let text = String::from_utf8_lossy(body);
    let shown: String = text.chars().take(30).collect();
    let more = if text.chars().count() > 30 { " ..." } else { "" };
    Failure::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {told} ({shown}{more})"
    ))
}

/// Undoes percent encoding.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
