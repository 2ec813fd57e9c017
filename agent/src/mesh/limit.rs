//! What weft bounds, and what it says when a bound is reached. The numbers are the roles' (`limits`).

use std::fmt;

/// A bound that a connection, or a peer, has run into. Each has a series of `weft_limit_rejections_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Sockets of all connections together.
    Sockets,
    /// Sockets of one pod's connections.
    PodSockets,
    /// Connections of one peer to one pod: tunnels' streams, and those in plaintext.
    PeerConnections,
    /// TLS handshakes under way, of all pods together.
    Handshakes,
    /// TLS handshakes under way with one pod.
    PodHandshakes,
    /// TLS handshakes under way of one peer with one pod.
    PeerHandshakes,
    /// Open tunnels of one peer to one pod.
    PeerTunnels,
    /// Bytes of a CONNECT's headers.
    HeaderBytes,
    /// Bytes that wait for slow readers, of all peers together.
    BufferedBytes,
    /// Bytes that wait for slow readers, of one peer.
    PeerBufferedBytes,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 10] = [
        Self::Sockets,
        Self::PodSockets,
        Self::PeerConnections,
        Self::Handshakes,
        Self::PodHandshakes,
        Self::PeerHandshakes,
        Self::PeerTunnels,
        Self::HeaderBytes,
        Self::BufferedBytes,
        Self::PeerBufferedBytes,
    ];

    /// The metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::PodSockets => "pod_sockets",
            Self::PeerConnections => "peer_connections",
            Self::Handshakes => "handshakes",
            Self::PodHandshakes => "pod_handshakes",
            Self::PeerHandshakes => "peer_handshakes",
            Self::PeerTunnels => "peer_tunnels",
            Self::HeaderBytes => "header_bytes",
            Self::BufferedBytes => "buffered_bytes",
            Self::PeerBufferedBytes => "peer_buffered_bytes",
        }
    }
}

impl fmt::Display for Limit {
    /// What there is too much of, and the flag that allows more where there is one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sockets => "the agent has too many open connections (--max-sockets)",
            Self::PodSockets => "the pod has too many open connections (--max-sockets-per-pod)",
            Self::PeerConnections => {
                "the peer has too many connections to this pod (--max-connections-per-peer)"
            }
            Self::Handshakes => "the agent has too many TLS handshakes under way (--max-handshakes)",
            Self::PodHandshakes => "the pod has too many TLS handshakes under way (half of --max-handshakes)",
            Self::PeerHandshakes => {
                "the peer has too many TLS handshakes under way (--max-handshakes-per-peer)"
            }
            Self::PeerTunnels => "the peer has too many open tunnels to this pod",
            Self::HeaderBytes => "the CONNECT has too many bytes of headers",
            Self::BufferedBytes => "too many bytes wait for slow readers (--max-buffered-mib)",
            Self::PeerBufferedBytes => {
                "too many bytes of one peer wait for slow readers (--max-buffered-per-peer-mib)"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_limit_is_listed_once_under_its_own_label() {
        let labels: HashSet<_> = Limit::ALL.into_iter().map(Limit::label).collect();
        assert_eq!(labels.len(), Limit::ALL.len());
    }
}
