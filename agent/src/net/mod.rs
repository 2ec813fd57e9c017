//! The operating system's network, as weft uses it: namespaces, sockets, TLS. Knows the mesh's names, nothing of roles.

use std::error::Error;

pub mod copy;
pub mod lanes;
pub mod netlink;
pub mod netns;
pub(crate) mod schedule;
pub mod socket;
pub mod tls;
pub(crate) mod turn;
pub mod udp;
pub mod veth;
pub(crate) mod weight;

/// An error and its causes in one line, as log lines and a failed [`Flow`](crate::mesh::Flow) have them.
pub fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
