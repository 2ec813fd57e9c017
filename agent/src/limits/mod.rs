//! The numbers that bound what peers and pods can make an agent or a waypoint hold, and where they come from. What counts against them:
//! `places` (sockets, handshakes, tunnels) and `hbone` (streams, headers, bytes).

mod places;

use std::time::Duration;

pub use places::{Place, Places, PodPlaces};

use crate::hbone::{self, Buffers};

/// What an operator may set. What is left out follows from the limit of open files.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Sockets of all connections together.
    pub max_sockets: Option<usize>,
    /// Sockets of one pod's connections; half of the above.
    pub max_sockets_per_pod: Option<usize>,
    /// Connections of one peer to one pod; half of the above.
    pub max_connections_per_peer: Option<usize>,
    /// TLS handshakes under way, of all pods; one pod may have half of them.
    pub max_handshakes: usize,
    /// TLS handshakes under way of one peer with one pod.
    pub max_handshakes_per_peer: usize,
    /// Bytes that may wait for slow readers beyond each tunnel's own window, of all peers.
    pub max_buffered: usize,
    /// The same, of one peer.
    pub max_buffered_per_peer: usize,
    /// TLS, the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// A tunnel without a stream is closed after this.
    pub idle_tunnel_timeout: Duration,
}

/// Files that the agent needs for itself: programs, maps, its own HTTP ports (256 connections), the mesh file, logs.
const OWN_FILES: usize = 1024;
/// Files of a captured pod that are no connection's: its namespace and links, listeners of up to 4 workers in two
/// families, sockets for DNS.
const POD_FILES: usize = 48;
/// Sockets that each pod may have whatever the others have.
pub(crate) const OWN_SOCKETS: usize = 32;
/// Handshakes that each pod may have under way whatever the others have.
pub(crate) const OWN_HANDSHAKES: usize = 16;
/// DNS queries of all pods together that wait for servers, each with a socket: an eighth of all files, and no more than
/// this.
const DNS_QUERIES: usize = 4096;
/// Streams of one tunnel (`hbone::Settings::max_streams`), of which a peer's connections make so and so many tunnels.
const STREAMS: usize = 100;
/// Tunnels of a peer that may be there beside those that its connections fill: of bulk streams, of old certificates,
/// and idle ones.
const SPARE_TUNNELS: usize = 16;

/// The numbers in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sockets of all connections, before what each pod takes off it ([`Limits::POD_RESERVE`]).
    pub(crate) sockets: usize,
    pub(crate) sockets_of_pod: usize,
    pub(crate) connections_of_peer: usize,
    pub(crate) tunnels_of_peer: usize,
    pub(crate) handshakes: usize,
    pub(crate) handshakes_of_pod: usize,
    pub(crate) handshakes_of_peer: usize,
    pub(crate) dns_queries: usize,
}

impl Limits {
    /// What each captured pod takes off the sockets that all share.
    pub(crate) const POD_RESERVE: usize = POD_FILES + OWN_SOCKETS;

    /// What `files` open files allow, and less where it is set to be less. The text says what is set to more than that.
    pub fn new(settings: &LimitSettings, files: usize) -> (Self, Option<String>) {
        let dns_queries = DNS_QUERIES.min(files / 8);
        let allowed = files.saturating_sub(OWN_FILES.min(files / 8) + dns_queries);
        let wanted = settings.max_sockets.unwrap_or(allowed);
        let sockets = wanted.min(allowed);
        let sockets_of_pod = settings.max_sockets_per_pod.unwrap_or(sockets / 2).min(sockets);
        let connections_of_peer = settings
            .max_connections_per_peer
            .unwrap_or(sockets_of_pod / 2)
            .min(sockets_of_pod);
        let limits = Self {
            sockets,
            sockets_of_pod,
            connections_of_peer,
            tunnels_of_peer: connections_of_peer / STREAMS + SPARE_TUNNELS,
            handshakes: settings.max_handshakes,
            handshakes_of_pod: settings.max_handshakes.div_ceil(2),
            handshakes_of_peer: settings.max_handshakes_per_peer,
            dns_queries,
        };
        let too_many = (wanted > allowed).then(|| {
            format!(
                "--max-sockets {wanted} is more than {files} open files allow, so it is {allowed}: raise the agent's \
                 limit of open files (LimitNOFILE, ulimit -n)"
            )
        });
        (limits, too_many)
    }
}

impl LimitSettings {
    /// As the status shows them; null is what follows from the limit of open files.
    pub fn dump(&self) -> serde_json::Value {
        serde_json::json!({
            "maxSockets": self.max_sockets,
            "maxSocketsPerPod": self.max_sockets_per_pod,
            "maxConnectionsPerPeer": self.max_connections_per_peer,
            "maxHandshakes": self.max_handshakes,
            "maxHandshakesPerPeer": self.max_handshakes_per_peer,
            "maxBufferedMib": self.max_buffered >> 20,
            "maxBufferedPerPeerMib": self.max_buffered_per_peer >> 20,
            "handshakeTimeoutSeconds": self.handshake_timeout.as_secs(),
            "idleTunnelTimeoutSeconds": self.idle_tunnel_timeout.as_secs(),
        })
    }

    /// The tunnels' part.
    pub fn tunnels(&self) -> hbone::Settings {
        hbone::Settings {
            handshake_timeout: self.handshake_timeout,
            idle_timeout: self.idle_tunnel_timeout,
            buffers: Buffers::new(self.max_buffered, self.max_buffered_per_peer),
            ..hbone::Settings::default()
        }
    }
}

impl Default for LimitSettings {
    fn default() -> Self {
        let tunnels = hbone::Settings::default();
        Self {
            max_sockets: None,
            max_sockets_per_pod: None,
            max_connections_per_peer: None,
            max_handshakes: 1024,
            max_handshakes_per_peer: 64,
            max_buffered: 512 << 20,
            max_buffered_per_peer: 128 << 20,
            handshake_timeout: tunnels.handshake_timeout,
            idle_tunnel_timeout: tunnels.idle_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_follows_from_the_limit_of_files() {
        let (limits, warning) = Limits::new(&LimitSettings::default(), 20_000);
        assert_eq!(
            (limits.sockets, limits.sockets_of_pod, limits.connections_of_peer),
            (16_476, 8_238, 4_119)
        );
        assert!(warning.is_none());
        // A container runtime's usual limit.
        let (limits, _) = Limits::new(&LimitSettings::default(), 1 << 20);
        assert!(limits.sockets > 1_000_000);
        // Even the smallest has some.
        let (limits, _) = Limits::new(&LimitSettings::default(), 1024);
        assert_eq!(limits.sockets, 768);
    }

    #[test]
    fn more_than_the_files_allow_is_said() {
        let settings = LimitSettings {
            max_sockets: Some(5000),
            max_connections_per_peer: Some(9000),
            ..LimitSettings::default()
        };
        let (limits, warning) = Limits::new(&settings, 4096);
        assert_eq!((limits.sockets, limits.connections_of_peer), (3072, 1536));
        let warning = warning.unwrap();
        assert!(
            warning.contains("--max-sockets 5000") && warning.contains("LimitNOFILE"),
            "{warning}"
        );
    }
}
