//! What a waypoint does with requests: routes, retries, balancing, and who may ask for what. Values and pure questions,
//! one internal model for the Gateway API and for Istio's VirtualService and DestinationRule.
//!
//! A waypoint reads it; agents, which see connections only, do not. The values ([`values`]) are carried as JSON by the feed
//! and indexed once ([`Routes`]), so that a question costs the same with one route and with a thousand. No I/O, no clock, no
//! draw of its own: these come in as arguments.

mod authentication;
mod policy;
mod routes;
mod traffic;
mod values;

pub use authentication::{ClaimHeader, Jwks, JwtRule, RequestAuthentication, TokenHeader};
pub use policy::{Condition, ConditionKey, PathPattern, RequestMatch};
pub use routes::{Index, Parts, Routes, RoutesError, UnreadableRoutes};
pub use traffic::{Balancer, OutlierDetection, Subset, Traffic, TrafficPolicy};
pub use values::{
    Action as RouteAction, Backend, Cors, CorsOrigin, Destination, DirectResponse, Entry, Fault, FaultAbort,
    FaultDelay, HeaderChanges, HeaderMatch, HeaderTest, HostMatch, HttpRoutes, Mirror, PathMatch,
    PathRewrite, QueryMatch, Redirect, RedirectPort, RequestTest, Retry, RetryBudget, RetryOn, Rewrite,
    RouteTable, Rule, RuleName, ServiceRoutes, TcpRoute, TextMatch, Timeouts, TlsRule,
};
