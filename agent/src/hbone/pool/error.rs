//! Why a tunnel or a stream on it could not be had, and what the caller may do about it.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use h2::Reason;
use thiserror::Error;

use crate::{hbone::Authority, mesh::FailureKind, net::tls::TlsError};

/// Why there is no stream. No byte has reached an app, but for [`ConnectError::InDoubt`].
///
/// It can be cloned, because all that waited for the same handshake are told.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// We have nothing to present, or TLS cannot be set up with it.
    #[error("there is no usable certificate to dial with")]
    Certificate {
        /// What is wrong with it.
        #[source]
        source: Arc<TlsError>,
    },
    /// An authority that HTTP cannot carry.
    #[error("{0} cannot be the target of a CONNECT")]
    Authority(Authority),
    /// TCP to the other agent.
    #[error(
        "{peer} cannot be reached; where the connection timed out, a NetworkPolicy may be blocking the port"
    )]
    Dial {
        /// The other agent.
        peer: SocketAddr,
        /// What the dial said; `TimedOut` also when it took longer than is allowed.
        #[source]
        source: Arc<io::Error>,
    },
    /// The handshake, on either side of it; or the peer proved to be somebody else.
    #[error("TLS with {peer} failed")]
    Tls {
        /// The other agent.
        peer: SocketAddr,
        /// What failed; [`TlsError::is_identity`] tells who from how.
        #[source]
        source: Arc<TlsError>,
    },
    /// HTTP/2, before or on the stream.
    #[error("HTTP/2 with {peer} failed")]
    H2 {
        /// The other agent.
        peer: SocketAddr,
        /// What failed.
        #[source]
        source: Arc<h2::Error>,
    },
    /// The tunnel ended before it saw the request.
    #[error("the tunnel to {peer} ended before the request was seen")]
    Closed {
        /// The other agent.
        peer: SocketAddr,
    },
    /// The other agent said no.
    #[error("{peer} answered {status}")]
    Refused {
        /// The other agent.
        peer: SocketAddr,
        /// 400 misdirected, 401 policy, 503 the app cannot be reached.
        status: u16,
    },
    /// The other agent said nothing.
    #[error("{peer} did not answer the CONNECT within {after:?}")]
    Unanswered {
        /// The other agent.
        peer: SocketAddr,
        /// How long it had.
        after: Duration,
    },
    /// The app's first bytes went out with the CONNECT, and what became of them is not known.
    #[error("{peer} may have got the app's first bytes")]
    InDoubt {
        /// The other agent.
        peer: SocketAddr,
        /// What failed.
        #[source]
        source: Arc<ConnectError>,
    },
}

impl ConnectError {
    /// What failed, for the log's flag and the metrics' label.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Certificate { .. } => FailureKind::Identity,
            Self::Tls { source, .. } => source.kind(),
            Self::InDoubt { source, .. } => source.kind(),
            Self::H2 { .. } | Self::Closed { .. } => FailureKind::H2Handshake,
            Self::Refused { status: 401, .. } => FailureKind::Denied,
            Self::Dial { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
                FailureKind::NetworkPolicy
            }
            Self::Authority(_) | Self::Dial { .. } | Self::Refused { .. } | Self::Unanswered { .. } => {
                FailureKind::Connect
            }
        }
    }

    /// Whether another endpoint may be tried, and is of use. Where bytes may have reached an app it is not safe; a policy's no is an
    /// answer; and what is wrong on our side is wrong everywhere.
    pub fn may_retry(&self) -> bool {
        !matches!(
            self,
            Self::Certificate { .. }
                | Self::Authority(_)
                | Self::Refused { status: 401, .. }
                | Self::InDoubt { .. }
        )
    }

    /// The same, where the app's first bytes were right behind the CONNECT (`has_first`). What the other end has not looked at it
    /// has not passed on; but for a tunnel that we have cut ourselves (`is_cut`) nobody has said so.
    pub(super) fn having_sent(self, has_first: bool, is_cut: bool) -> Self {
        match self {
            Self::Closed { peer } if has_first && is_cut => self.in_doubt(peer),
            Self::H2 { peer, .. } | Self::Tls { peer, .. } | Self::Unanswered { peer, .. } if has_first => {
                self.in_doubt(peer)
            }
            _ => self,
        }
    }

    fn in_doubt(self, peer: SocketAddr) -> Self {
        let source = Arc::new(self);
        Self::InDoubt { peer, source }
    }
}

/// Names an error that h2 gave for a stream of a tunnel that was open.
pub(super) fn of_stream(peer: SocketAddr, source: h2::Error) -> ConnectError {
    // RFC 9113 6.8 and 8.7: the request was not looked at, so that it may be sent again on another connection.
    let unseen =
        (source.is_go_away() && source.is_remote()) || source.reason() == Some(Reason::REFUSED_STREAM);
    match source.get_io() {
        // tokio-rustls reports every TLS error as InvalidData. In TLS 1.3 the other end looks at our certificate
        // after we are done, so that its refusal is seen here.
        Some(io) if io.kind() == io::ErrorKind::InvalidData => {
            let source = Arc::new(TlsError::Handshake(io::Error::new(io.kind(), io.to_string())));
            ConnectError::Tls { peer, source }
        }
        _ if unseen => ConnectError::Closed { peer },
        _ => ConnectError::H2 {
            peer,
            source: source.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_other_end_says_that_it_has_not_seen_is_sent_again() {
        let peer = ([10, 0, 0, 1], 15008).into();
        let closed = || ConnectError::Closed { peer };
        let broken = || ConnectError::H2 {
            peer,
            source: Arc::new(Reason::CANCEL.into()),
        };
        let silent = || ConnectError::Unanswered {
            peer,
            after: Duration::from_secs(1),
        };
        let refused = |status| ConnectError::Refused { peer, status };
        let retried =
            |error: ConnectError, has_first, is_cut| error.having_sent(has_first, is_cut).may_retry();
        for error in [closed(), broken(), silent(), refused(503)] {
            assert!(retried(error, false, true));
        }
        assert!(retried(closed(), true, false) && retried(refused(503), true, false));
        for (error, is_cut) in [(broken(), false), (silent(), false), (closed(), true)] {
            assert!(!retried(error, true, is_cut));
        }
        assert!(!retried(refused(401), true, false));
    }

    #[test]
    fn a_stream_that_was_turned_away_unseen_is_told_from_one_that_was_reset() {
        let peer = ([10, 0, 0, 1], 15008).into();
        let of = |reason: Reason| of_stream(peer, reason.into());
        assert!(matches!(of(Reason::REFUSED_STREAM), ConnectError::Closed { .. }));
        for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
            assert!(matches!(of(reason), ConnectError::H2 { .. }), "{reason}");
        }
    }
}
