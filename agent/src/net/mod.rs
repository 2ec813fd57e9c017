//! The operating system's network, as weft uses it: namespaces, sockets, TLS. Knows the mesh's names, nothing of roles.

pub mod copy;
pub mod netlink;
pub mod netns;
pub mod socket;
pub mod tls;
pub(crate) mod turn;
pub mod udp;
pub mod veth;
