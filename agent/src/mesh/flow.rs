//! The record of one connection: the log line, the metrics and the command line derive from it, and from it alone.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{PolicyKey, Refusal, Service, SpiffeId, Workload};

/// Which way a connection goes, seen from the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The workload dialled.
    Outbound,
    /// The workload was dialled.
    Inbound,
}

/// What a connection is protected by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Security {
    /// Nothing: the other end is not in the mesh, or is not asked to be.
    #[default]
    Plaintext,
    /// Mutual TLS: both ends have proved who they are.
    MutualTls,
    /// The kernel: both ends are pods of this node, and the connection goes from app to app. Who they are is certain; the
    /// bytes are not encrypted, and do not leave the node.
    Kernel,
}

impl Security {
    /// The value of Istio's label `connection_security_policy`, which calls everything but mutual TLS `unknown`; a connection
    /// that the kernel vouches for has a name of its own.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plaintext => "unknown",
            Self::MutualTls => "mutual_tls",
            Self::Kernel => "kernel",
        }
    }

    /// Whether the ends' identities are known for certain.
    pub fn has_identities(self) -> bool {
        self != Self::Plaintext
    }
}

/// One end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// The address: of the client's socket, or the one that the client dialled.
    pub addr: Option<SocketAddr>,
    /// The workload, where the mesh knows it.
    pub workload: Option<Arc<Workload>>,
    /// The identity that it proved by mutual TLS, or that the kernel vouches for; never one that was only claimed.
    pub identity: Option<SpiffeId>,
}

/// How a connection ended.
#[derive(Clone, Debug, Default)]
pub enum Outcome {
    /// Both sides were copied to their end.
    #[default]
    Complete,
    /// We said no.
    Refused(Refusal),
    /// Something failed; the text is the whole chain of errors.
    Failed(FailureKind, String),
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What failed, as far as a metric label needs it. Names are those of Istio's `response_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// TCP to the next hop, or the next hop said that it could not reach the app.
    Connect,
    /// TCP to the other node's port 15008 got no answer at all: most likely a NetworkPolicy does not let it through.
    NetworkPolicy,
    /// The TLS handshake, other than an identity.
    Tls,
    /// The HTTP/2 preface or its settings.
    H2Handshake,
    /// The peer proved another identity than the mesh gives for it, or we have no certificate.
    Identity,
    /// The peer's certificate, or our own, is on a revocation list.
    Revoked,
    /// The other agent's policy refused us.
    Denied,
    /// Cut off after it was open.
    Broken,
}

/// One connection, from accept to close.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Seen from the workload whose agent writes the record.
    pub direction: Direction,
    /// The side that dialled.
    pub source: Party,
    /// The side that was dialled.
    pub destination: Party,
    /// Where the tunnel was dialled (port 15008), for a connection through HBONE.
    pub gateway: Option<SocketAddr>,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// What proves who the ends are, and hides what they say.
    pub security: Security,
    /// The policy that decided, where one did.
    pub policy: Option<PolicyKey>,
    /// Client to server, in bytes.
    pub request_bytes: u64,
    /// Server to client, in bytes.
    pub response_bytes: u64,
    /// From accept to close.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

impl Flow {
    /// A record that has just begun.
    pub fn new(direction: Direction, source: Party, destination: Party) -> Self {
        Self {
            direction,
            source,
            destination,
            gateway: None,
            service: None,
            security: Security::Plaintext,
            policy: None,
            request_bytes: 0,
            response_bytes: 0,
            duration: Duration::ZERO,
            outcome: Outcome::Complete,
        }
    }

    /// Bytes that the workload at this end sent, in the direction's view (the access log's `bytes_sent`).
    pub fn bytes_sent(&self) -> u64 {
        match self.direction {
            Direction::Outbound => self.request_bytes,
            Direction::Inbound => self.response_bytes,
        }
    }

    /// Bytes that the workload at this end received (the access log's `bytes_recv`).
    pub fn bytes_received(&self) -> u64 {
        match self.direction {
            Direction::Outbound => self.response_bytes,
            Direction::Inbound => self.request_bytes,
        }
    }

    /// Istio's `response_flags`.
    pub fn response_flags(&self) -> &'static str {
        match &self.outcome {
            Outcome::Complete => "-",
            Outcome::Refused(refusal) => refusal.response_flags(),
            Outcome::Failed(kind, _) => kind.response_flags(),
        }
    }
}

impl FailureKind {
    /// Istio's `response_flags`.
    pub fn response_flags(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::Tls => "TLS_FAILURE",
            Self::H2Handshake => "H2_HANDSHAKE_FAILURE",
            Self::Identity => "IDENTITY_ERROR",
            Self::Revoked => "CERT_REVOKED",
            Self::Denied => "DENY",
            Self::Broken => "-",
        }
    }
}

/// What `route` is asked about: who dials, and what.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// The workload that dials.
    pub source: Arc<Workload>,
    /// What the app dialled.
    pub destination: SocketAddr,
}

/// What `authorize` is asked about: who is there, and what they want.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// The identity proved by mutual TLS; none on a plaintext connection.
    pub peer: Option<SpiffeId>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The pod's address and port.
    pub destination: SocketAddr,
}
