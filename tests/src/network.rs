//! How the world's namespaces are joined: devices, addresses, routes. Everything here is text for `ip -batch` and
//! settings below `/proc/sys/net`; [`crate::topology`] decides what is made.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// What the device between the nodes is called on both.
pub const LINK: &str = "link0";

/// Addresses are usable at once: no duplicate address detection, no waiting for router advertisements.
const SETTINGS: [(&str, &str); 4] = [
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
];

/// A node's address on the link: node 1 is a, node 2 is b.
pub(crate) fn node_v4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, node)
}

/// The same in IPv6.
pub(crate) fn node_v6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, node.into())
}

/// The address of a node's pod.
pub(crate) fn pod_v4(node: u8, pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, pod)
}

/// The same in IPv6.
pub(crate) fn pod_v6(node: u8, pod: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, node.into(), 0, 0, 0, 0, pod.into())
}

/// The link between the nodes, the routes to each other's pods, and forwarding.
pub(crate) fn connect_nodes(namespaces: &[Netns]) -> Result<()> {
    for netns in namespaces {
        netns.sysctl(&SETTINGS)?;
        netns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    }
    let [a, b] = namespaces else {
        bail!("a world has two nodes")
    };
    // Different indexes on both ends, or the kernel may wait a second before it believes in the carrier.
    let pair = format!(
        "link add {LINK} index 2 type veth peer name {LINK} index 3 netns {}\n",
        b.name()
    );
    a.ip(&(pair + &node_batch(1, 2)))?;
    b.ip(&node_batch(2, 1))
}

/// `own` and `other` are the nodes' numbers.
fn node_batch(own: u8, other: u8) -> String {
    let (v4, v6, next4, next6) = (node_v4(own), node_v6(own), node_v4(other), node_v6(other));
    format!(
        "link set lo up\n\
         addr add {v4}/24 dev {LINK}\n\
         addr add {v6}/64 dev {LINK} nodad\n\
         link set {LINK} up\n\
         route add {}/24 via {next4}\n\
         route add {}/64 via {next6}\n",
        pod_v4(other, 0),
        pod_v6(other, 0)
    )
}

/// Makes a pod's namespace of this name and joins it to its node's: a veth pair, addresses, routes on both sides.
pub(crate) fn connect_pod(node: &Netns, number: u8, pod: u8, name: &str) -> Result<Netns> {
    let created = Netns::create(&[name.to_owned()])?;
    let netns = created.into_iter().next().context("ip made no namespace")?;
    netns.sysctl(&SETTINGS)?;
    netns.ip(&pod_side(number, pod, node.name()))?;
    node.ip(&node_side(number, pod))?;
    Ok(netns)
}

/// The pod sees one device, and its node as the next hop at an address that means nothing elsewhere. The index is one
/// that the other end cannot have, as above.
fn pod_side(node: u8, pod: u8, node_netns: &str) -> String {
    let (v4, v6) = (pod_v4(node, pod), pod_v6(node, pod));
    format!(
        "link set lo up\n\
         link add eth0 index 1000 type veth peer name pod{pod} netns {node_netns}\n\
         addr add {v4}/32 dev eth0\n\
         addr add {v6}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add 169.254.1.1 dev eth0 scope link\n\
         route add default via 169.254.1.1 dev eth0\n\
         route add ::/0 via fe80::1 dev eth0\n"
    )
}

/// The node has a route to the pod, and speaks to it from its own address.
fn node_side(node: u8, pod: u8) -> String {
    let (v4, v6) = (pod_v4(node, pod), pod_v6(node, pod));
    format!(
        "addr add 169.254.1.1/32 dev pod{pod}\n\
         addr add fe80::1/64 dev pod{pod} nodad\n\
         link set pod{pod} up\n\
         route add {v4}/32 dev pod{pod} src {}\n\
         route add {v6}/128 dev pod{pod} src {}\n",
        node_v4(node),
        node_v6(node)
    )
}
