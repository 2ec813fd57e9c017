//! Every reason for which weft refuses a connection, and what each means on the wire, in the log and in the metrics.

use std::{fmt, net::SocketAddr};

use thiserror::Error;

use super::{Limit, MtlsSetting, PolicyKey, ServiceKey, SpiffeId};

/// How many ALLOW policies a refusal names; the rest are counted.
const NAMED_POLICIES: usize = 4;

/// A "no" of ours. It is an answer, not an error: the connection did not fail, it was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Nothing is known yet, so nothing is guessed.
    #[error("no mesh has been loaded yet")]
    NoMesh,
    /// An address inside the cluster's CIDRs that no workload and no service has.
    #[error("{0} is inside the cluster, but no workload or service has it")]
    UnknownDestination(SocketAddr),
    /// The service is known, its port is not.
    #[error("service {0} has no port {1}")]
    NoSuchPort(ServiceKey, u16),
    /// The service is known, but no endpoint is healthy.
    #[error("service {0} has no healthy endpoint")]
    NoHealthyEndpoint(ServiceKey),
    /// The service has healthy endpoints, but none where its load balancing (STRICT) looks for them.
    #[error("service {0} has healthy endpoints, but none of them near enough: its load balancing is STRICT")]
    NoEndpointInScope(ServiceKey),
    /// The service's routes cannot be read: nobody knows what they were to refuse.
    #[error("the routes of service {0} cannot be read")]
    RoutesUnreadable(ServiceKey),
    /// What a waypoint does for the service has not arrived: nobody knows what it is to refuse.
    #[error("the routes of service {0} have not arrived")]
    RoutesMissing(ServiceKey),
    /// The destination is bound to a waypoint that the mesh does not know or that has no healthy endpoint.
    #[error("the waypoint of {0} is not available")]
    WaypointUnavailable(String),
    /// An app, or a tunnel, asks for one of weft's own ports.
    #[error("port {0} is one of weft's own")]
    OwnPort(u16),
    /// A connection that no captured socket made.
    #[error("the connection was not made by a captured socket")]
    NotCaptured,
    /// A DENY policy matched.
    #[error("denied by policy {0}")]
    DeniedBy(PolicyKey),
    /// ALLOW policies are in scope and none matched.
    #[error("no ALLOW policy matched: {0}")]
    NotAllowed(InScope),
    /// A policy that the workload names has not arrived.
    #[error("policy {0} applies but has not arrived")]
    PolicyMissing(PolicyKey),
    /// A plaintext connection to a STRICT port.
    #[error("mutual TLS is required (STRICT) on port {0} by {1}")]
    PlaintextToStrict(u16, MtlsSetting),
    /// A request on a tunnel that is not CONNECT.
    #[error("only CONNECT is answered here")]
    NotConnect,
    /// An `:authority` that is neither an address and port nor a service's name and port.
    #[error("the :authority `{0}` names no address and port")]
    BadAuthority(String),
    /// An `:authority` that names somebody else.
    #[error("{0} is not this workload")]
    NotThisWorkload(String),
    /// A bound is reached, such as that on handshakes which a peer begins and does not end.
    #[error("{0}")]
    OverLimit(Limit),
    /// The pod that was dialled is not one of ours any more.
    #[error("the workload is not known here")]
    UnknownWorkload,
    /// Nobody would believe one end of a connection inside the node its certificate.
    #[error("the certificate of {identity} {}", if *.revoked { "was revoked" } else { "leads to no root that is trusted" })]
    CertificateRejected {
        /// Whose it is.
        identity: SpiffeId,
        /// Whether a list says that it was revoked.
        revoked: bool,
    },
    /// A connection inside the node was answered by somebody else than the pod that the mesh gives for the address: the pod
    /// is gone, and its address has another owner here or elsewhere.
    #[error("somebody else than the pod that the mesh knows answered at {0}")]
    AnotherAnswered(SocketAddr),
}

impl Refusal {
    /// The status of the answer to a CONNECT, as in Istio's ambient mode: 400 malformed or misdirected, 401 policy, 503
    /// not available.
    pub fn http_status(&self) -> u16 {
        match self {
            // RFC 6585 5.
            Self::OverLimit(Limit::HeaderBytes) => 431,
            Self::NotConnect | Self::BadAuthority(_) | Self::NotThisWorkload(_) | Self::OwnPort(_) => 400,
            Self::DeniedBy(_)
            | Self::NotAllowed(_)
            | Self::PolicyMissing(_)
            | Self::PlaintextToStrict(..)
            | Self::CertificateRejected { .. }
            | Self::NotCaptured => 401,
            Self::NoMesh
            | Self::UnknownDestination(_)
            | Self::NoSuchPort(..)
            | Self::RoutesUnreadable(_)
            | Self::RoutesMissing(_)
            | Self::NoHealthyEndpoint(_)
            | Self::NoEndpointInScope(_)
            | Self::WaypointUnavailable(_)
            | Self::OverLimit(_)
            | Self::UnknownWorkload
            | Self::AnotherAnswered(_) => 503,
        }
    }

    /// Istio's `response_flags`: DENY where a policy decided, CERT_REVOKED where a revocation list did, CONNECT for the rest.
    pub fn response_flags(&self) -> &'static str {
        match (self, self.http_status()) {
            (Self::CertificateRejected { revoked: true, .. }, _) => "CERT_REVOKED",
            (_, 401) => "DENY",
            _ => "CONNECT",
        }
    }

    /// The policy that decided, where a single one did.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::DeniedBy(policy) | Self::PolicyMissing(policy) => Some(policy),
            _ => None,
        }
    }
}

/// The ALLOW policies that cover a workload when none of them matched: the first few, and how many there are besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InScope {
    /// At most four.
    pub named: Vec<PolicyKey>,
    /// Those that are not named.
    pub more: usize,
}

impl<'a> FromIterator<&'a PolicyKey> for InScope {
    fn from_iter<T: IntoIterator<Item = &'a PolicyKey>>(policies: T) -> Self {
        let mut policies = policies.into_iter();
        Self {
            named: policies.by_ref().take(NAMED_POLICIES).cloned().collect(),
            more: policies.count(),
        }
    }
}

impl fmt::Display for InScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, policy) in self.named.iter().enumerate() {
            write!(f, "{}{policy}", if i > 0 { ", " } else { "" })?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
