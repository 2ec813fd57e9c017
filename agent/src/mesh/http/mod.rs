//! What a waypoint does with requests: routes, retries, balancing, and who may ask for what. Values and pure questions,
//! one internal model for the Gateway API and for Istio's VirtualService and DestinationRule.
//!
//! A waypoint reads it; agents, which see connections only, do not. The values ([`values`]) are carried as JSON by the feed
//! and indexed once ([`Routes`]), so that a question costs the same with one route and with a thousand. No I/O, no clock, no
//! draw of its own: these come in as arguments.

mod authentication;
mod balance;
mod cors;
mod endpoints;
mod filters;
mod flow;
mod headers;
mod path;
mod policy;
mod request;
mod retry;
mod rewrite;
mod routes;
mod test;
mod text;
mod traffic;
mod values;

pub use authentication::{ClaimHeader, Jwks, JwtRule, RequestAuthentication, TokenHeader};
pub use balance::{Load, pick};
pub use cors::{CorsAnswer, put_cors};
pub use endpoints::{HttpEndpoint, http_endpoints};
pub use filters::{Cors, CorsOrigin, Fault, FaultAbort, FaultDelay, Mirror};
pub use flow::{Protocol, RequestFlow, ResponseFlag, TraceId};
pub use headers::is_changeable;
pub(in crate::mesh) use path::canonical_escapes;
pub use path::{BadPath, Normalization, normalize};
pub use policy::{Condition, ConditionKey, PathPattern, RequestMatch};
pub(in crate::mesh) use request::HeaderKey;
pub use request::{RequestFacts, RequestHead, Token, host_of};
pub use retry::Attempt;
pub use rewrite::BadRewrite;
pub use routes::{Decision, Index, Matched, Parts, Routes, RoutesError, TlsDecision, UnreadableRoutes};
pub use text::check_expression;
pub use traffic::{Balancer, OutlierDetection, Subset, Traffic, TrafficPolicy};
pub use values::{
    Action as RouteAction, Backend, Destination, DirectResponse, Entry, HeaderChanges, HeaderMatch,
    HeaderTest, HostMatch, HttpRoutes, PathMatch, PathRewrite, QueryMatch, Redirect, RedirectPort,
    RequestTest, Retry, RetryBudget, RetryOn, Rewrite, RouteTable, Rule, RuleName, ServiceRoutes, TcpRoute,
    TextMatch, Timeouts, TlsRule,
};
