//! The mesh: one plain value that says which workloads, services and policies there are, and the pure questions
//! asked of it. No I/O, no clock, no async, no Kubernetes: `feed` brings it, everybody reads it.

mod authorize;
mod bound;
mod endpoints;
mod flow;
pub mod http;
mod index;
mod interned;
mod limit;
mod names;
mod place;
mod policy;
mod refusal;
mod route;
mod same_node;
mod service;
mod spiffe;
pub mod values;
mod vips;
mod workload;

#[cfg(test)]
pub(crate) mod sample;

pub use authorize::{
    Verdict, authorize, authorize_from_waypoint, authorize_request, authorize_service,
    authorize_service_connection, dry_run_matches, recorded_matches, rehearse,
};
pub use bound::{Bound, Demands, Sought, bound};
pub use endpoints::Endpoint;
pub use flow::{Direction, FailureKind, Flow, Inbound, Outbound, Outcome, Party, Security};
pub use index::{Mesh, MeshParts};
pub use interned::{Interned, Pool, Shared};
pub use limit::Limit;
pub use names::{Host, Lookup, Wanted, resolve};
pub use place::Place;
pub use policy::{
    Action, Clause, GUARDS, Match, MtlsMode, MtlsSetting, PeerAuthentication, PeerAuthentications, Policy,
    PolicyKey, PortModes, Rule, Scope, ServiceAccountMatch, StringMatch,
};
pub use refusal::{InScope, Refusal};
pub use route::{Candidate, NextHop, Route, Standing, Tunnel, candidates, choices, reroute, route};
pub use same_node::{SameNode, SameNodes, ThroughAgent, direct, instead_of_tunnel, question, reconsider};
pub use service::{
    AppProtocol, BalancingMode, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing,
    RoutingScope, Service, ServiceKey,
};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use workload::{BackedServices, Locality, PortMapping, TunnelProtocol, Workload, WorkloadType};

/// The HBONE port of every workload (Istio ambient).
pub const HBONE_PORT: u16 = 15008;
/// Outbound capture: never a destination.
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound plaintext capture: never a destination.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// DNS capture: never a destination.
pub const DNS_PORT: u16 = 15053;

/// Whether weft listens on this port inside the pods of the mesh, so that no app may dial it and no tunnel may lead
/// to it.
pub fn is_own_port(port: u16) -> bool {
    matches!(
        port,
        OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | HBONE_PORT | DNS_PORT
    )
}
