//! The explanation: what becomes of one connection, step by step, and what decides each step. As `weft explain -o json`
//! and the admin port's `/explain` print it.
//!
//! Plain values with stable names, as in `status`: the command line that reads them may be of another version. They are
//! made by `replay`, which asks `mesh::route` and `mesh::authorize`, the very questions that the data path asks.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod hop;
mod judge;
mod replay;
#[cfg(test)]
mod tests;

pub use replay::explain;

/// Everything that `weft explain` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Explanation {
    /// Who dials.
    pub source: End,
    /// What is dialled, as it was asked.
    pub asked: String,
    /// What that stands for: an address and port each; more than one for a hostname without a virtual address.
    pub dialled: Vec<SocketAddr>,
    /// The service that has the address or hostname, as `namespace/hostname`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Whether every way is allowed.
    pub allowed: bool,
    /// The endpoints of the service, or of its waypoint, and whether they are chosen. Some of them.
    pub endpoints: Vec<EndpointStanding>,
    /// Endpoints that are not listed.
    pub more_endpoints: usize,
    /// The ways that a connection may take, one for each endpoint that may be chosen; refused ones first.
    pub ways: Vec<Way>,
    /// Ways that are not listed.
    pub more_ways: usize,
}

/// A workload behind the service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointStanding {
    /// `namespace/name`.
    pub workload: String,
    /// Where it would be reached; nothing where it cannot be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Whether a connection may be given to it at once.
    pub chosen: bool,
    /// How often it is chosen, or why it is not.
    pub standing: String,
}

/// One way to one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Way {
    /// Whether nothing on it refuses.
    pub allowed: bool,
    /// From the source to the destination; more than one through a waypoint. A refusal ends it.
    pub hops: Vec<Hop>,
}

/// From one pod to the next.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hop {
    /// Who takes the connection; nobody where it is refused before it leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<End>,
    /// How it gets there.
    pub kind: HopKind,
    /// Where it leads: the address and port that the app of `to` is dialled at, or what a waypoint is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// Where the tunnel is dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<SocketAddr>,
    /// Why it goes this way.
    pub reason: String,
    /// The identities of which the other end must prove one, for a tunnel.
    pub identities: Vec<String>,
    /// What carries the bytes.
    pub security: Security,
    /// For two pods of one node: whether the kernel carries it or a tunnel, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_node: Option<String>,
    /// What a NetworkPolicy must let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<String>,
    /// What the other end's agent says; nothing where no agent of the mesh is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Judgement>,
}

/// How a connection gets to the next pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HopKind {
    /// Through HBONE.
    Tunnel,
    /// Through HBONE to a waypoint.
    Waypoint,
    /// Plain TCP.
    Direct,
    /// Refused before it leaves the source.
    Refused,
    /// Something that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What carries the bytes of a hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Security {
    /// Mutual TLS.
    MutualTls,
    /// Nothing hides them.
    Plaintext,
    /// They do not leave the pod.
    InsidePod,
    /// Nothing is sent.
    Nothing,
    /// Something that only another version knows.
    #[default]
    #[serde(other)]
    Unknown,
}

/// One end of a hop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct End {
    /// `namespace/name`, where the mesh knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The node it runs on.
    pub node: String,
    /// Its SPIFFE identity; empty for one that is not in the mesh, which can prove none.
    pub identity: String,
}

/// What authorization says of one hop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Judgement {
    /// Whether it is allowed.
    pub allowed: bool,
    /// What decided, and how; for a refusal the same text as in the access log.
    pub reason: String,
    /// The policy that decided, as `namespace/name`, where a single one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What a policy that decided looks at and no agent sees, such as `demo/by-path: paths, methods`: a DENY denies by
    /// it, an ALLOW does not allow by it.
    pub unseen: Vec<String>,
    /// The dry-run policies that match.
    pub dry_run_matches: Vec<DryRunMatch>,
    /// What would be said if the dry-run policies were enforced, where that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_enforced: Option<String>,
}

/// A dry-run policy that matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DryRunMatch {
    /// As `namespace/name`.
    pub policy: String,
    /// ALLOW or DENY.
    pub action: String,
}

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExplainError {
    /// Nothing has been loaded.
    #[error("no mesh has been loaded yet")]
    NoMesh,
    /// The source is neither of the mesh nor an address.
    #[error("the mesh has no workload `{0}`: write <namespace>/<name> of one, or an IP address")]
    NoSuchWorkload(String),
    /// The source has no address yet.
    #[error("workload `{0}` has no address yet")]
    NoAddress(String),
    /// The destination is no address and port.
    #[error(
        "`{0}` is no destination: write <IP address>:<port>, [<IPv6 address>]:<port> or <hostname>:<port>"
    )]
    NotADestination(String),
    /// The mesh does not know the hostname, or has no address for it.
    #[error("the mesh has no address for the hostname `{0}`: write a service's hostname, or an IP address")]
    NoSuchHost(String),
}
