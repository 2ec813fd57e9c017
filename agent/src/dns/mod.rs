//! DNS (RFC 1035): the messages, and asking the server that an app meant to ask. What names stand for is `mesh::resolve`'s
//! answer; whose queries these are, and every socket, is `node::dns`'s.
//!
//! Only what must be known of a message is read: a query that is not for the mesh is passed on as it is, and so is its
//! response.

mod answer;
mod forward;
mod frames;
mod message;
#[cfg(test)]
mod tests;

pub use answer::{answer, no_data, server_failure};
pub use forward::{Forward, over_udp, says_no_such_name};
pub use frames::{Frames, framed};
pub use message::{Ask, Request, Unanswerable, parse};

use std::time::Duration;

/// How long an upstream server may take; then the app is told that it failed.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest message, in bytes: what UDP carries, and what the length in front of one in TCP can say.
pub const LARGEST_MESSAGE: usize = 65_535;

/// What carried a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// One datagram, as large as the client says that it takes.
    Udp,
    /// A stream, whatever the size.
    Tcp,
}

impl Protocol {
    /// For logs and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}
