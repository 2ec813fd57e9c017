//! How a service's endpoints are chosen and used (Istio's DestinationRule).

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::RetryBudget;

/// Of one service. Which of its endpoints are of which subset, the workloads say ([`crate::mesh::Workload::subsets`]).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// For all of it, as far as a port or a subset does not say otherwise.
    pub policy: TrafficPolicy,
    /// By the service's port (`portLevelSettings`), whole: what a port does not say is the default, not the service's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, TrafficPolicy>,
    /// By name. A route to one that is not here is answered with 503.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subsets: BTreeMap<Arc<str>, Subset>,
}

/// Some of a service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Subset {
    /// Field by field in place of the service's own; a feed has merged the two.
    pub policy: TrafficPolicy,
    /// By the service's port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<u16, TrafficPolicy>,
}

/// How endpoints are chosen and used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrafficPolicy {
    /// Which endpoint is next.
    pub balancer: Balancer,
    /// How long a connection to an endpoint may take. None: 10 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// After how long without a request a connection is closed. None: an hour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Requests that a connection carries; 0 is no bound.
    pub max_requests_per_connection: u32,
    /// Connections to one endpoint (`tcp.maxConnections`); 0 is no bound.
    pub max_connections: u32,
    /// Requests that wait for a connection (`http1MaxPendingRequests`); 0 is no bound.
    pub max_pending: u32,
    /// Requests under way (`http2MaxRequests`); 0 is no bound.
    pub max_requests: u32,
    /// Retries.
    pub retry_budget: RetryBudget,
    /// Which endpoints are left out for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outliers: Option<OutlierDetection>,
}

/// Which endpoint is next, among those that are near enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Balancer {
    /// The one of two, drawn by their capacities, that has fewer requests under way (power of two choices): the default.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Drawn.
    Random,
}

/// Which endpoints are left out for a while (Istio's OutlierDetection).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutlierDetection {
    /// After so many 5xx in a row (`consecutive5xxErrors`); 0 is never.
    pub consecutive_5xx: u32,
    /// After so many 502, 503, 504 in a row (`consecutiveGatewayErrors`); 0 is never.
    pub consecutive_gateway_errors: u32,
    /// How often they are looked at.
    pub interval_ms: u64,
    /// For how long, times how often it was left out before.
    pub base_ejection_ms: u64,
    /// At most so many of the endpoints, in percent.
    pub max_ejection_percent: u32,
    /// With fewer healthy ones, in percent, nobody is left out.
    pub min_health_percent: u32,
}
