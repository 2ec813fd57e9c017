//! One hop, told: how the connection gets there, and what carries it. Pure; called by `replay`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{End, Hop, HopKind, Security, judge::judge};
use crate::mesh::{Inbound, Mesh, Refusal, Tunnel, TunnelProtocol, Workload, instead_of_tunnel};

pub(super) fn refused(refusal: &Refusal) -> Hop {
    Hop {
        kind: HopKind::Refused,
        reason: refusal.to_string(),
        security: Security::Nothing,
        ..Hop::default()
    }
}

pub(super) fn direct(source: &Workload, addr: SocketAddr, workload: Option<&Arc<Workload>>) -> Hop {
    let (reason, security) = match workload {
        Some(workload) if workload.uid == source.uid => (
            "the pod dials itself: nothing leaves it, nobody is asked",
            Security::InsidePod,
        ),
        Some(_) => (
            "the destination is not in the mesh: no agent is there to ask",
            Security::Plaintext,
        ),
        None => ("the address is outside of the mesh", Security::Plaintext),
    };
    Hop {
        to: Some(end_at(workload, addr)),
        kind: HopKind::Direct,
        destination: Some(addr),
        reason: reason.to_owned(),
        security,
        ..Hop::default()
    }
}

/// A tunnel, and what the agent at its end says. At a waypoint that is asked by the request, which is not known here.
pub(super) fn through(mesh: &Mesh, source: &Workload, addresses: &[IpAddr], tunnel: &Tunnel) -> Hop {
    let source_ip = address_towards(addresses, tunnel.addr.ip()).unwrap_or(tunnel.addr.ip());
    let question = Inbound {
        peer: Some(source.identity.clone()),
        source_ip,
        destination: tunnel.authority,
    };
    let (kind, reason, verdict) = if tunnel.via_waypoint {
        let reason =
            "the destination is bound to this waypoint, which judges each request by its own policies";
        (HopKind::Waypoint, reason, None)
    } else {
        let verdict = judge(mesh, &tunnel.workload, &question);
        (HopKind::Tunnel, "both ends are in the mesh", Some(verdict))
    };
    let (to, port) = (tunnel.addr.ip(), tunnel.addr.port());
    Hop {
        to: Some(end_at(Some(&tunnel.workload), tunnel.addr)),
        kind,
        destination: Some(tunnel.destination),
        gateway: Some(tunnel.addr),
        reason: reason.to_owned(),
        identities: tunnel.identities.iter().map(ToString::to_string).collect(),
        security: Security::MutualTls,
        same_node: same_node(mesh, source, tunnel),
        network_policy: Some(format!(
            "must let {source_ip} reach {to} on TCP port {port}, whatever port the app has"
        )),
        verdict,
    }
}

/// Whether connections go from app to app or through the tunnel, as far as the mesh says; the agent knows more.
fn same_node(mesh: &Mesh, source: &Workload, tunnel: &Tunnel) -> Option<String> {
    let same = !source.node.is_empty() && source.node == tunnel.workload.node;
    same.then(|| match instead_of_tunnel(mesh, source, tunnel) {
        Ok(()) => "from app to app after the first connection, not encrypted, where both pods hang on veth pairs of the node".to_owned(),
        Err(why) => format!("tunnel: {why}"),
    })
}

/// Without its address.
pub(super) fn end(workload: &Workload) -> End {
    let identity = match workload.tunnel_protocol {
        TunnelProtocol::Hbone => workload.identity.to_string(),
        TunnelProtocol::None => String::new(),
    };
    End {
        workload: Some(workload.namespaced_name()),
        address: None,
        node: workload.node.to_string(),
        identity,
    }
}

pub(super) fn end_at(workload: Option<&Arc<Workload>>, addr: SocketAddr) -> End {
    End {
        address: Some(addr.ip()),
        ..workload.map(|workload| end(workload)).unwrap_or_default()
    }
}

/// The address of the other's family; else any.
pub(super) fn address_towards(addresses: &[IpAddr], other: IpAddr) -> Option<IpAddr> {
    let same_family = |address: &&IpAddr| address.is_ipv4() == other.is_ipv4();
    addresses.iter().find(same_family).or(addresses.first()).copied()
}
