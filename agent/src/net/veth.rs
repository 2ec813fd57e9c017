//! Whether the way from one pod to another stays on the node: both must hang on it by a veth pair, and its routes must
//! lead from the one to the other. With ipvlan, SR-IOV, branch interfaces, or a cloud that shows traffic inside a node to
//! its own switches, "the same node" may leave the host; then nothing must go in clear.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use thiserror::Error;

use super::{netlink::Routes, netns::Netns};

/// Why it is not proved.
#[derive(Debug, Error)]
pub enum Unproved {
    /// A question to the kernel failed.
    #[error("{0}")]
    Ask(String, #[source] io::Error),
    /// The way to the other pod leaves the first by something else.
    #[error("{address} is not reached through a veth pair of this node")]
    NotVeth {
        /// The pod's.
        address: IpAddr,
    },
    /// The node sends it elsewhere.
    #[error("the node does not send what is for {address} straight to its pod")]
    Elsewhere {
        /// The pod's.
        address: IpAddr,
    },
}

/// Proves that what the pod `from`, at its address `source`, sends to `destination`, an address of the pod `to`, crosses
/// two veth pairs and the node's own routing or bridge between them, and nothing else.
///
/// # Errors
/// The first step that is not as it should be.
pub fn prove(
    node: &Netns,
    (from, source): (&Netns, IpAddr),
    (to, destination): (&Netns, IpAddr),
) -> Result<(), Unproved> {
    let host = open(node)?;
    let near = port_of(&host, node, (from, source), destination)?;
    let far = port_of(&host, node, (to, destination), source)?;
    let elsewhere = || Unproved::Elsewhere { address: destination };
    if near.bridge.is_some() && near.bridge == far.bridge && !near.has_gateway {
        return Ok(());
    }
    let arrives = near.bridge.unwrap_or(near.index);
    let out = route(&host, destination, Some((source, arrives)))?;
    if Some(out.device) == far.bridge || out.device == far.index {
        Ok(())
    } else {
        Err(elsewhere())
    }
}

/// The node's end of a pod's veth pair.
struct Port {
    index: u32,
    /// The bridge that it is a port of.
    bridge: Option<u32>,
    /// Whether the pod sends what is for the other by way of a gateway.
    has_gateway: bool,
}

/// Finds the node's end of the device by which the pod `(pod, address)` sends what is for `other`.
fn port_of(
    host: &Routes,
    node: &Netns,
    (pod, address): (&Netns, IpAddr),
    other: IpAddr,
) -> Result<Port, Unproved> {
    let not_veth = || Unproved::NotVeth { address };
    let inside = open(pod)?;
    let way = route(&inside, other, None)?;
    let own = link(&inside, way.device)?;
    let index = own.peer.filter(|_| own.is_veth).ok_or_else(not_veth)?;
    let end = link(host, index)?;
    // Both say that they are each other's ends, and the node's end that the other lies in this pod.
    let pod_there = end.netns.is_some() && end.netns == nsid(host, pod)?;
    let node_there = own.netns.is_some() && own.netns == nsid(&inside, node)?;
    if !end.is_veth || end.peer != Some(way.device) || !pod_there || !node_there {
        return Err(not_veth());
    }
    let bridge = match end.controller {
        Some(controller) => Some(link(host, controller)?)
            .filter(|it| it.is_bridge)
            .map(|it| it.index),
        None => None,
    };
    Ok(Port {
        index,
        bridge,
        has_gateway: way.has_gateway,
    })
}

fn open(netns: &Netns) -> Result<Routes, Unproved> {
    netns
        .enter(Routes::open)
        .map_err(|source| Unproved::Ask("open a netlink socket".to_owned(), source))
}

/// Where a namespace sends what is for an address.
struct Way {
    device: u32,
    has_gateway: bool,
}

/// Asks for the route to an address; with `forwarded`, of a packet that comes from that address by that device, so that
/// rules and filters count.
fn route(routes: &Routes, to: IpAddr, forwarded: Option<(IpAddr, u32)>) -> Result<Way, Unproved> {
    let failed = |source| Unproved::Ask(format!("ask for the route to {to}"), source);
    let bits = if to.is_ipv4() { 32 } else { 128 };
    let mut question = RouteMessage::default();
    question.header.address_family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    question.header.destination_prefix_length = bits;
    question
        .attributes
        .push(RouteAttribute::Destination(route_address(to)));
    if let Some((from, device)) = forwarded {
        question.header.source_prefix_length = bits;
        question
            .attributes
            .push(RouteAttribute::Source(route_address(from)));
        question.attributes.push(RouteAttribute::Iif(device));
    }
    let answer = routes
        .ask(RouteNetlinkMessage::GetRoute(question))
        .map_err(failed)?;
    let RouteNetlinkMessage::NewRoute(route) = answer else {
        return Err(failed(unexpected()));
    };
    let device = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(device) => Some(*device),
        _ => None,
    });
    let gateway =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_));
    Ok(Way {
        device: device.ok_or_else(|| failed(unexpected()))?,
        has_gateway: route.attributes.iter().any(gateway),
    })
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// A device, as far as it matters here.
struct Link {
    index: u32,
    is_veth: bool,
    is_bridge: bool,
    /// The other end of a pair, by its index there.
    peer: Option<u32>,
    /// The namespace of the other end, by the number that it has here.
    netns: Option<i32>,
    controller: Option<u32>,
}

fn link(routes: &Routes, index: u32) -> Result<Link, Unproved> {
    let failed = |source| Unproved::Ask(format!("ask for the device with index {index}"), source);
    let mut question = LinkMessage::default();
    question.header.index = index;
    let answer = routes
        .ask(RouteNetlinkMessage::GetLink(question))
        .map_err(failed)?;
    let RouteNetlinkMessage::NewLink(answer) = answer else {
        return Err(failed(unexpected()));
    };
    let mut link = Link {
        index,
        is_veth: false,
        is_bridge: false,
        peer: None,
        netns: None,
        controller: None,
    };
    for attribute in &answer.attributes {
        match attribute {
            LinkAttribute::Link(peer) => link.peer = Some(*peer),
            LinkAttribute::LinkNetNsId(id) => link.netns = Some(*id),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
            }
            _ => {}
        }
    }
    Ok(link)
}

/// The number by which the asked namespace knows another; none where it has no pair into it.
fn nsid(routes: &Routes, of: &Netns) -> Result<Option<i32>, Unproved> {
    let failed = |source| Unproved::Ask("ask for the number of a network namespace".to_owned(), source);
    let mut question = NsidMessage::default();
    let file = u32::try_from(of.as_fd().as_raw_fd()).map_err(|_| failed(unexpected()))?;
    question.attributes.push(NsidAttribute::Fd(file));
    let answer = routes
        .ask(RouteNetlinkMessage::GetNsId(question))
        .map_err(failed)?;
    let RouteNetlinkMessage::NewNsId(answer) = answer else {
        return Err(failed(unexpected()));
    };
    let id = answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) => Some(*id),
        _ => None,
    });
    // -1 says that it has none.
    Ok(id.filter(|id| *id >= 0))
}

fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not what was asked for")
}
