//! Connections that are older than a pod's capture: they go past the mesh, in plaintext. Each is judged as that.
//!
//! | the connection | a pod that gets the label while it runs | a pod that had it, and no agent |
//! |---|---|---|
//! | inside the pod; with the node itself (probes) | stays | stays |
//! | inbound, and the pod's policies refuse plaintext from there | ended | ended |
//! | outbound, to a workload whose policies refuse it | ended | ended |
//! | outbound, through a tunnel if it were dialled now | stays, until it ends by itself | ended |
//! | outbound, where `route` refuses | stays | ended |
//! | any other | stays | stays |
//!
//! Enrolment must not break what is allowed, so the left column lets a running pod's connections come to their end. In the
//! right one nobody has allowed anything: the pod was to be in the mesh from its start, and was not, as after a reboot
//! without the start-up taint. What is ended is reset (the app dials again, and gets a tunnel), counted, and said.
//!
//! Judged twice: a `connect` that was under way while the pod was captured shows up by the second time.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::pod::Pod;
use crate::{
    mesh::{Inbound, Mesh, NextHop, Outbound, Verdict, Workload, authorize, route},
    net::{
        netlink::{self, TcpSocket},
        netns::Netns,
    },
    telemetry::Metrics,
};

/// The port that tunnels arrive at: the agent's own connections, as a rule, and never plaintext.
const TUNNELS: u16 = 15008;
/// Connections that a line names.
const MOST_NAMED: usize = 8;

/// Which way a connection was opened, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Inbound,
    Outbound,
}

/// A pod that was captured, and what is allowed to go on in it.
pub(super) struct Fresh {
    pub(super) pod: Arc<Pod>,
    /// Whether it was to be captured before it ran.
    pub(super) late: bool,
}

/// Judges what is open at pods' captures.
pub(super) struct Exposed {
    node: Option<Netns>,
    metrics: Metrics,
    /// Those whose second time is due.
    again: Vec<Fresh>,
    /// Those that the mesh does not know yet.
    unknown: Vec<Fresh>,
}

/// For how long after its capture a pod may become known to the mesh.
const UNKNOWN: Duration = Duration::from_secs(300);

impl Exposed {
    pub(super) fn new(node: Option<Netns>, metrics: Metrics) -> Self {
        Self {
            node,
            metrics,
            again: Vec::new(),
            unknown: Vec::new(),
        }
    }

    /// Whether the node's own network namespace is known.
    pub(super) fn knows_node(&self) -> bool {
        self.node.is_some()
    }

    /// Judges the connections of pods that were just captured, and of those of the last turn.
    pub(super) fn turn(&mut self, mesh: &Mesh, fresh: Vec<Fresh>) {
        let is_known = |fresh: &Fresh| mesh.workload(&fresh.pod.uid).is_some();
        let waiting = std::mem::take(&mut self.unknown).into_iter();
        let waiting = waiting.filter(|fresh| fresh.pod.since.elapsed() < UNKNOWN);
        let (fresh, unknown) = waiting.chain(fresh).partition::<Vec<_>, _>(is_known);
        self.unknown = unknown;
        let again = std::mem::take(&mut self.again);
        if again.is_empty() && fresh.is_empty() {
            return;
        }
        let node = self.node_addresses();
        for pod in again.iter().chain(&fresh) {
            if let Err(error) = self.judge(mesh, pod, &node) {
                tracing::warn!(pod = %pod.pod.uid, %error, "cannot look for connections that are older than the pod's capture: those in plaintext go on");
            }
        }
        self.again = fresh;
    }

    fn node_addresses(&self) -> HashSet<IpAddr> {
        let addresses = self.node.as_ref().map(|node| node.enter(netlink::addresses));
        addresses
            .and_then(Result::ok)
            .unwrap_or_default()
            .into_iter()
            .collect()
    }

    fn judge(&self, mesh: &Mesh, fresh: &Fresh, node: &HashSet<IpAddr>) -> io::Result<()> {
        let Some(workload) = mesh.workload(&fresh.pod.uid) else {
            return Ok(());
        };
        let sockets = fresh.pod.netns.enter(netlink::tcp_sockets)?;
        let mut ended = Vec::new();
        for (socket, direction) in refused(mesh, workload, (&fresh.pod.addresses, node), fresh.late, &sockets)
        {
            let ends = (socket.local, socket.remote);
            fresh.pod.netns.enter(|| netlink::destroy(ends, socket.cookie))?;
            self.metrics.exposed(match direction {
                Direction::Inbound => "inbound",
                Direction::Outbound => "outbound",
            });
            ended.push(format!("{} {}", socket.local, socket.remote));
        }
        if !ended.is_empty() {
            let count = ended.len();
            ended.truncate(MOST_NAMED);
            let connections = ended.join(", ");
            tracing::warn!(pod = %fresh.pod.uid, count, connections, "connections of before the pod's capture were in plaintext and are not allowed to be: reset");
        }
        Ok(())
    }
}

/// The connections of a pod that must not go on.
fn refused<'a>(
    mesh: &Mesh,
    workload: &Arc<Workload>,
    (pod, node): (&[IpAddr], &HashSet<IpAddr>),
    late: bool,
    sockets: &'a [TcpSocket],
) -> Vec<(&'a TcpSocket, Direction)> {
    let listening: HashSet<u16> = sockets
        .iter()
        .filter(|it| it.listens)
        .map(|it| it.local.port())
        .collect();
    let goes_on = |socket: &TcpSocket, direction| {
        let (local, remote) = (socket.local, socket.remote);
        let inside = local.ip().is_loopback() || remote.ip().is_loopback() || pod.contains(&remote.ip());
        let tunnel = local.port() == TUNNELS || remote.port() == TUNNELS;
        // A tunnel of the agent's, or of an app that speaks TLS by itself.
        if inside || tunnel || node.contains(&remote.ip()) {
            return true;
        }
        match direction {
            Direction::Inbound => takes_plaintext(mesh, workload, remote.ip(), local),
            Direction::Outbound => is_allowed_out(mesh, workload, socket, late),
        }
    };
    let connections = sockets.iter().filter(|socket| !socket.listens);
    connections
        .map(|socket| {
            let direction = if listening.contains(&socket.local.port()) {
                Direction::Inbound
            } else {
                Direction::Outbound
            };
            (socket, direction)
        })
        .filter(|(socket, direction)| !goes_on(socket, *direction))
        .collect()
}

fn takes_plaintext(mesh: &Mesh, workload: &Workload, source_ip: IpAddr, destination: SocketAddr) -> bool {
    let question = Inbound {
        peer: None,
        source_ip,
        destination,
    };
    matches!(authorize(mesh, workload, &question), Verdict::Allow { .. })
}

fn is_allowed_out(mesh: &Mesh, source: &Arc<Workload>, socket: &TcpSocket, late: bool) -> bool {
    let question = Outbound {
        source: Arc::clone(source),
        destination: socket.remote,
    };
    // Any endpoint will do: which one the connection has is not known where it was dialled by a service.
    match route(mesh, &question, 0).next {
        NextHop::Direct { .. } => true,
        NextHop::Tunnel(_) | NextHop::Refuse(_) if late => false,
        NextHop::Tunnel(tunnel) if !tunnel.via_waypoint => {
            takes_plaintext(mesh, &tunnel.workload, socket.local.ip(), tunnel.destination)
        }
        NextHop::Tunnel(_) | NextHop::Refuse(_) => true,
    }
}

#[cfg(test)]
mod tests;
