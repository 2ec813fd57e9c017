//! Routes: what is matched, and what becomes of what matches. Plain values; matching is elsewhere.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Cors, Fault, Mirror, Traffic};
use crate::mesh::{PolicyKey, ServiceKey};

/// Everything that a waypoint does with what is sent to one service.
///
/// A service without any is passed on as it was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRoutes {
    /// Which service.
    pub service: ServiceKey,
    /// Requests, by the service's port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub http: BTreeMap<u16, HttpRoutes>,
    /// TLS that is passed through, by the service's port and then by what the client asks for (SNI); the first that matches.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tls: BTreeMap<u16, Vec<TlsRule>>,
    /// Everything else, by the service's port.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tcp: BTreeMap<u16, TcpRoute>,
    /// How its endpoints are chosen and used (DestinationRule).
    #[serde(default)]
    pub traffic: Traffic,
    /// Policies that name the service, its waypoint or that one's class in `targetRefs`. One that has not arrived refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyKey>,
    /// The [`super::RequestAuthentication`]s that requests to it are checked with, in order: those that name it or its waypoint, its
    /// namespace's, the mesh's, and those that select any of its workloads. One that has not arrived refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authentications: Vec<PolicyKey>,
}

/// Routes of one port.
///
/// A client of a namespace with routes of its own for this service (Gateway API: consumer routes) is judged by those, and
/// by those alone; everybody else by the service's own (producer routes).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRoutes {
    /// Of the service's own namespace. Without: requests are passed on as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<RouteTable>,
    /// By the client's namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub consumers: BTreeMap<Arc<str>, RouteTable>,
}

/// Which rule a request falls under. What matches none is answered with 404.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// In the order of precedence: the first whose test holds decides.
    pub entries: Vec<Entry>,
    /// What the entries refer to.
    pub rules: Vec<Rule>,
}

/// One alternative of a rule's matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What must hold. Nothing said holds for every request.
    #[serde(default)]
    pub test: RequestTest,
    /// Which of the table's rules it is of.
    pub rule: usize,
}

/// What a request must be. Every field that says something must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestTest {
    /// One of these hosts (of `:authority` or `Host`, without port, in lower case). None: any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostMatch>,
    /// The path, normalised, without its query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<TextMatch>,
    /// All of these headers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
    /// All of these parameters of the query.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<QueryMatch>,
    /// The authority as it was sent, port included (VirtualService's `authority`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<TextMatch>,
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<TextMatch>,
    /// The namespace of the client's workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<Arc<str>>,
}

/// A host name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HostMatch {
    /// This name.
    Exact(Arc<str>),
    /// Any name that ends in this, which begins with a dot (`*.example.com`).
    Under(Arc<str>),
    /// Any.
    Any,
}

/// A path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// A path under this one, by whole elements (Gateway API's PathPrefix): `/a` matches `/a` and `/a/b`, not `/ab`. Without
    /// a `/` at its end, but for `/` itself.
    Under(Arc<str>),
    /// Any path that begins with this text (Istio's `prefix`).
    Prefix(Arc<str>),
    /// A path that this expression (RE2) matches as a whole.
    Regex(Arc<str>),
    /// As `Exact`, whatever the case (`ignoreUriCase`); in lower case here.
    ExactIgnoringCase(Arc<str>),
    /// As `Prefix`, whatever the case; in lower case here.
    PrefixIgnoringCase(Arc<str>),
}

/// A text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TextMatch {
    /// This text.
    Exact(Arc<str>),
    /// Begins with it.
    Prefix(Arc<str>),
    /// An expression (RE2) that matches the whole.
    Regex(Arc<str>),
}

/// A header of this name, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderMatch {
    /// In lower case.
    pub name: Arc<str>,
    /// What is asked of it. Several values of one name are joined by commas first (RFC 9110 5.2).
    pub test: HeaderTest,
    /// Whether it must not hold (`withoutHeaders`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not: bool,
}

/// What is asked of a header or a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderTest {
    /// That it is there.
    Present,
    /// That it is there with such a value.
    Is(TextMatch),
}

/// A parameter of the query. The first of its name counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueryMatch {
    /// As it is after percent-decoding.
    pub name: Arc<str>,
    /// What is asked of it.
    pub test: HeaderTest,
}

/// What becomes of the requests that match, in the order of the fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What people know it by.
    pub name: RuleName,
    /// Answered for the app where a browser asks whether it may (CORS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Delays and failures on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// Changes of the request's headers, before those of the backend.
    #[serde(default)]
    pub request_headers: HeaderChanges,
    /// Changes of the response's headers, after those of the backend.
    #[serde(default)]
    pub response_headers: HeaderChanges,
    /// Changes of path and host.
    #[serde(default)]
    pub rewrite: Rewrite,
    /// Who answers.
    pub action: Action,
    /// Who gets a copy. Answers to it are dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// How long it may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What is tried again. None: the default, two attempts more where nothing was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// Where a rule comes from: `HTTPRoute shop/canary rule 0`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName(pub Arc<str>);

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// One of these, drawn by their weights. None, or none with a weight: 500 (Gateway API).
    Forward(Vec<Backend>),
    /// The waypoint: go elsewhere.
    Redirect(Redirect),
    /// The waypoint.
    Respond(DirectResponse),
}

/// Who a share of the requests goes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backend {
    /// Where.
    pub to: Destination,
    /// Its share, of the sum of all weights. With 0 it is given nothing.
    pub weight: u32,
    /// After those of the rule.
    #[serde(default)]
    pub request_headers: HeaderChanges,
    /// Before those of the rule.
    #[serde(default)]
    pub response_headers: HeaderChanges,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Destination {
    /// A service's port, or only those of its endpoints that are of a subset.
    Service {
        /// Which service.
        service: ServiceKey,
        /// Its port.
        port: u16,
        /// The subset's name in [`Traffic::subsets`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subset: Option<Arc<str>>,
    },
    /// Nobody: the reference leads nowhere or is not permitted. Its share is answered with 500 (Gateway API: `backendRefs`).
    Nowhere(Arc<str>),
}

/// Changes of headers: first what is set, then what is added, then what is removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeaderChanges {
    /// Name, in lower case, and value, in place of what was there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Name, in lower case, and value, beside what was there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Names, in lower case.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<Arc<str>>,
}

/// Changes of path and host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rewrite {
    /// The authority that is sent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<Arc<str>>,
    /// The path that is sent on; the query stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// A path in place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// This one.
    Full(Arc<str>),
    /// This in place of what the entry's `Under` or `Prefix` matched; where an exact path or none was matched, of all.
    Prefix(Arc<str>),
    /// What the expression matches is replaced; `\1` is its first group (VirtualService's `uriRegexRewrite`).
    Regex {
        /// RE2.
        matches: Arc<str>,
        /// What stands in its place.
        replacement: Arc<str>,
    },
}

/// An answer that sends the client elsewhere. What it does not say stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Arc<str>>,
    /// The host, without port; or with one (VirtualService's `authority`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Arc<str>>,
    /// The port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<RedirectPort>,
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308. Where a manifest says none it is 302 for the Gateway API and 301 for Istio.
    pub status: u16,
}

/// The port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectPort {
    /// This one; left out of the address where it is the scheme's own.
    Is(u16),
    /// The scheme's own.
    OfScheme,
    /// The one that was asked.
    OfRequest,
}

/// An answer of the waypoint's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// At most 1 MiB.
    #[serde(default)]
    pub body: Arc<str>,
}

/// How long a request may take. None: for ever, as in Istio and the Gateway API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From the request's head to the response's end, with all its retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_ms: Option<u64>,
    /// One attempt, to the response's head (Gateway API's `backendRequest`, Istio's `perTryTimeout`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_ms: Option<u64>,
}

/// What is tried again. Never after a byte of the response has been passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts after the first; 0 is none.
    pub attempts: u32,
    /// After what.
    pub on: RetryOn,
    /// The first pause, which doubles; each is drawn between nothing and it (full jitter).
    pub backoff_ms: u64,
    /// The longest pause.
    pub max_backoff_ms: u64,
    /// Whether an endpoint that was tried is left out while there are others (`retryIgnorePreviousHosts`).
    #[serde(default = "yes")]
    pub avoid_tried: bool,
}

fn yes() -> bool {
    true
}

/// Failures after which a request is tried again (Envoy's `retry_on`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryOn {
    /// No connection was had (`connect-failure`): nothing was sent.
    pub connect_failure: bool,
    /// The other end said that it did not look at it (REFUSED_STREAM, GOAWAY).
    pub refused_stream: bool,
    /// The connection broke before the response's head (`reset`, `reset-before-request`).
    pub reset: bool,
    /// A response of 500 and more, or none in time (`5xx`).
    pub server_error: bool,
    /// 502, 503 or 504 (`gateway-error`).
    pub gateway_error: bool,
    /// 409 (`retriable-4xx`).
    pub retriable_4xx: bool,
    /// These statuses.
    pub statuses: Vec<u16>,
    /// These codes of gRPC, where the response has no body (trailers only).
    pub grpc: Vec<u16>,
}

/// How many retries there may be beside requests (DestinationRule's `retryBudget`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryBudget {
    /// Of the requests that are under way.
    pub percent: u32,
    /// So many in any case.
    pub at_least: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            percent: 20,
            at_least: 3,
        }
    }
}

/// TLS that is passed through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsRule {
    /// What people know it by.
    pub name: RuleName,
    /// What the client asks for (SNI). None: anything, also nothing.
    pub hosts: Vec<HostMatch>,
    /// Who a share of the connections goes to.
    pub backends: Vec<Backend>,
}

/// Connections that are passed through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpRoute {
    /// What people know it by.
    pub name: RuleName,
    /// Who a share of the connections goes to.
    pub backends: Vec<Backend>,
}
