//! Whether a connection between two pods of one node may go from app to app, without the agent. Pure.
//!
//! Not here: whether both pods are captured on this node and joined by veth pairs (`node` knows that). It may be so where
//! `route` leads to the pod itself, `authorize` lets it in there, and nobody asked for a tunnel: the same two questions
//! that the agent asks of each connection, so that the kernel never lets through what the agent would not.

use std::{net::SocketAddr, sync::Arc};

use rustc_hash::FxHashMap;
use thiserror::Error;

use super::{Inbound, Mesh, NextHop, Outbound, Refusal, Tunnel, Verdict, Workload, authorize, route};

/// How connections between pods of one node go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameNode {
    /// From app to app, once the agent has allowed it: not encrypted, for the bytes never leave the node.
    #[default]
    Kernel,
    /// Through the agent and mutual TLS, as between nodes.
    Tunnel,
}

/// The settings of every scope but single workloads, which have their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SameNodes {
    /// Of every workload.
    pub mesh: SameNode,
    /// Of the workloads of a namespace, by its name.
    pub namespaces: FxHashMap<Arc<str>, SameNode>,
}

impl SameNodes {
    /// The narrowest scope that says anything decides.
    pub fn of(&self, workload: &Workload) -> SameNode {
        workload
            .same_node
            .or_else(|| self.namespaces.get(&workload.namespace).copied())
            .unwrap_or(self.mesh)
    }
}

/// Why a connection goes through the agent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ThroughAgent {
    /// It is refused, and the agent says so.
    #[error("it is refused: {0}")]
    Refused(Refusal),
    /// It does not lead to a pod of the mesh.
    #[error("the destination is not in the mesh")]
    NotInMesh,
    /// A waypoint is on the way.
    #[error("it goes through a waypoint")]
    Waypoint,
    /// The pods are on two nodes, or one of them is not captured.
    #[error("the destination is not a captured pod of this node")]
    NotHere,
    /// Somebody asked for a tunnel.
    #[error("`sameNode: tunnel` is set for {0}")]
    Setting(String),
    /// An IPv4 client of an IPv6 app, or the other way round.
    #[error("the app is reached in another address family than the client dialled in")]
    Family,
    /// The pods are not known to be joined by veth pairs and this node alone.
    #[error("it is not proved that the way stays on the node: {0}")]
    Unproved(String),
    /// A connection of the pair was not answered.
    #[error("something on the way drops it, such as a NetworkPolicy that lets only port 15008 through")]
    Blocked,
    /// One of the pods has no certificate that is good now, so it has no identity.
    #[error("there is no valid certificate for {0}")]
    NoIdentity(String),
}

/// The app that a connection may go to directly: the pod's workload, its address and its port.
///
/// # Errors
/// The reason for which it goes through the agent. [`ThroughAgent::NotHere`] is the caller's to find out.
pub fn direct(mesh: &Mesh, conn: &Outbound, draw: u64) -> Result<(Arc<Workload>, SocketAddr), ThroughAgent> {
    let tunnel = match route(mesh, conn, draw).next {
        NextHop::Refuse(refusal) => return Err(ThroughAgent::Refused(refusal)),
        NextHop::Direct { .. } => return Err(ThroughAgent::NotInMesh),
        NextHop::Tunnel(tunnel) => tunnel,
    };
    instead_of_tunnel(mesh, &conn.source, &tunnel)?;
    let (workload, app) = (tunnel.workload, tunnel.destination);
    if app.is_ipv4() == conn.destination.ip().to_canonical().is_ipv4() {
        Ok((workload, app))
    } else {
        Err(ThroughAgent::Family)
    }
}

/// Whether a connection may go directly for which there would be a tunnel, as far as the mesh says.
///
/// # Errors
/// The reason why not.
pub fn instead_of_tunnel(mesh: &Mesh, source: &Workload, tunnel: &Tunnel) -> Result<(), ThroughAgent> {
    if tunnel.via_waypoint {
        return Err(ThroughAgent::Waypoint);
    }
    let workload = &tunnel.workload;
    for end in [source, workload] {
        if mesh.same_node(end) == SameNode::Tunnel {
            return Err(ThroughAgent::Setting(end.namespaced_name()));
        }
    }
    match reconsider(mesh, source, workload, tunnel.destination) {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny(refusal) => Err(ThroughAgent::Refused(refusal)),
    }
}

/// Whether a connection that goes from app to app may: asked before it does, and when the mesh has changed. The client is
/// who the kernel says it is, a captured pod of this node.
pub fn reconsider(mesh: &Mesh, source: &Workload, workload: &Workload, app: SocketAddr) -> Verdict {
    authorize(mesh, workload, &question(source, app))
}

/// What `authorize` is asked of such a connection.
pub fn question(source: &Workload, app: SocketAddr) -> Inbound {
    let same_family = source
        .addresses
        .iter()
        .find(|address| address.is_ipv4() == app.is_ipv4());
    Inbound {
        peer: Some(source.identity.clone()),
        // A pod without an address of the family has no such connection; its own address matches no block of it.
        source_ip: same_family.copied().unwrap_or(app.ip()),
        destination: app,
    }
}

#[cfg(test)]
mod tests;
