//! What a rule does besides: copies, cross-origin requests, failures on purpose. Plain values.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Destination, TextMatch};

/// Somebody who gets a copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// Who.
    pub to: Destination,
    /// Of how many requests: parts of 10,000.
    pub per_10_000: u32,
}

/// Cross-origin requests (CORS), as Istio's CorsPolicy and the Gateway API's filter have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the names are those of the headers that they become")]
pub struct Cors {
    pub allow_origins: Vec<CorsOrigin>,
    pub allow_methods: Vec<Arc<str>>,
    pub allow_headers: Vec<Arc<str>>,
    pub expose_headers: Vec<Arc<str>>,
    pub max_age_seconds: Option<u32>,
    pub allow_credentials: bool,
    /// Whether a preflight of an origin that is not allowed is passed on to the app (Istio's FORWARD).
    pub forward_unmatched: bool,
}

/// An origin that is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CorsOrigin {
    /// Any (`*`).
    Any,
    /// Such a one.
    Is(TextMatch),
    /// `https://*.example.com`: what stands before the star and after it.
    Wildcard(Arc<str>, Arc<str>),
}

/// Failures on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    /// First.
    pub delay: Option<FaultDelay>,
    /// Then.
    pub abort: Option<FaultAbort>,
}

/// A delay on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultDelay {
    /// Of how many requests: parts of 10,000.
    pub per_10_000: u32,
    /// How long.
    pub delay_ms: u64,
}

/// An answer on purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultAbort {
    /// Of how many requests: parts of 10,000.
    pub per_10_000: u32,
    /// The HTTP status; of a gRPC request it is 200 where `grpc_status` is set.
    pub http_status: u16,
    /// The gRPC status.
    pub grpc_status: Option<u16>,
}
