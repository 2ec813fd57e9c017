//! The record of one request through a waypoint: the log line and the metrics derive from it, and from it alone.
//!
//! What a connection is at an agent ([`crate::mesh::Flow`]) a request is here: each ends as exactly one.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method};

use super::RuleName;
use crate::mesh::{Party, PolicyKey, Security, Service};

/// One request, from its head to the end of its response.
#[derive(Clone, Debug)]
pub struct RequestFlow {
    /// The client, by the address and the identity that its tunnel proved.
    pub source: Party,
    /// The endpoint that answered, or was tried last. Without one its workload is none; the address is the one asked for.
    pub destination: Party,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
    /// What protects the client's connection.
    pub security: Security,
    /// The rule that matched.
    pub route: Option<RuleName>,
    /// What is spoken.
    pub protocol: Protocol,
    /// The method.
    pub method: Method,
    /// As it was sent.
    pub authority: Arc<str>,
    /// Normalised, and without the query, in which there may be tokens.
    pub path: Arc<str>,
    /// The status of the response; none where nobody got one.
    pub status: Option<u16>,
    /// Of a gRPC response that ended with one.
    pub grpc_status: Option<u32>,
    /// What went wrong.
    pub flag: ResponseFlag,
    /// The body's bytes, client to server.
    pub request_bytes: u64,
    /// The body's bytes, server to client.
    pub response_bytes: u64,
    /// gRPC messages, client to server.
    pub request_messages: u64,
    /// gRPC messages, server to client.
    pub response_messages: u64,
    /// From the head to the response's end.
    pub duration: Duration,
    /// Where the last attempt was sent: the pod's address, or that of its tunnel.
    pub upstream: Option<SocketAddr>,
    /// How often it was sent; 0 where the waypoint answered.
    pub attempts: u32,
    /// Of the trace that it is part of.
    pub trace_id: Option<TraceId>,
    /// `X-Request-Id`.
    pub request_id: Option<HeaderValue>,
    /// The policy that decided.
    pub policy: Option<PolicyKey>,
    /// Why it was refused or failed, as a text for people.
    pub error: Option<Arc<str>>,
}

impl RequestFlow {
    /// A record that has just begun.
    pub fn new(source: Party, protocol: Protocol, method: Method) -> Self {
        Self {
            source,
            destination: Party::default(),
            service: None,
            security: Security::Plaintext,
            route: None,
            protocol,
            method,
            authority: "".into(),
            path: "".into(),
            status: None,
            grpc_status: None,
            flag: ResponseFlag::None,
            request_bytes: 0,
            response_bytes: 0,
            request_messages: 0,
            response_messages: 0,
            duration: Duration::ZERO,
            upstream: None,
            attempts: 0,
            trace_id: None,
            request_id: None,
            policy: None,
            error: None,
        }
    }
}

/// What is spoken with the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC, on HTTP/2.
    Grpc,
}

impl Protocol {
    /// As the access log has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Grpc => "gRPC",
        }
    }

    /// Istio's label `request_protocol`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Http11 | Self::Http2 => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// What went wrong with a request, by the names of Envoy's response flags. Where several things did it is the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Nothing.
    #[default]
    None,
    /// No rule matched, or the rule that matched leads nowhere.
    NoRoute,
    /// No healthy endpoint.
    NoHealthyUpstream,
    /// No connection to the endpoint was had.
    UpstreamFailure,
    /// The endpoint's connection ended, or was reset, before the response's end.
    UpstreamConnectionTermination,
    /// The endpoint took too long.
    UpstreamTimeout,
    /// The client went away.
    DownstreamConnectionTermination,
    /// A bound was reached.
    RateLimited,
    /// As often as may be was tried again.
    RetriesExhausted,
    /// A failure on purpose.
    FaultInjected,
    /// A delay on purpose.
    DelayInjected,
    /// A token or a policy refused it.
    Unauthorized,
}

impl ResponseFlag {
    /// Each of them.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::NoRoute,
        Self::NoHealthyUpstream,
        Self::UpstreamFailure,
        Self::UpstreamConnectionTermination,
        Self::UpstreamTimeout,
        Self::DownstreamConnectionTermination,
        Self::RateLimited,
        Self::RetriesExhausted,
        Self::FaultInjected,
        Self::DelayInjected,
        Self::Unauthorized,
    ];

    /// Istio's `response_flags`.
    pub fn label(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::NoRoute => "NR",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamTimeout => "UT",
            Self::DownstreamConnectionTermination => "DC",
            Self::RateLimited => "RL",
            Self::RetriesExhausted => "URX",
            Self::FaultInjected => "FI",
            Self::DelayInjected => "DI",
            Self::Unauthorized => "UAEX",
        }
    }

    /// Whether the request did not go as it should have: a delay on purpose is no failure.
    pub fn is_failure(self) -> bool {
        !matches!(self, Self::None | Self::DelayInjected)
    }
}

/// A trace (W3C Trace Context 3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}
