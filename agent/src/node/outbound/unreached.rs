//! Why a next hop was not reached, and what may be done about it.

use std::io;

use crate::{
    hbone::ConnectError,
    mesh::{Outcome, Refusal},
    telemetry::chain,
};

/// Why there is no upstream, whether another endpoint may be tried, and whether the way may open in a moment.
pub(super) struct Unreached {
    pub(super) outcome: Outcome,
    pub(super) retry: bool,
    pub(super) is_closed: bool,
}

impl Unreached {
    pub(super) fn for_good(refusal: Refusal) -> Self {
        Self {
            outcome: refusal.into(),
            retry: false,
            is_closed: false,
        }
    }

    /// A tunnel that could not be had; a refusal of ours among the reasons is one.
    pub(super) fn through(error: &ConnectError) -> Self {
        if let ConnectError::Dial { source, .. } = error
            && let Some(inner) = source.get_ref()
            && let Some(refusal) = inner.downcast_ref::<Refusal>()
        {
            return Self::for_good(refusal.clone());
        }
        Self {
            outcome: Outcome::Failed(error.kind(), chain(error)),
            retry: error.may_retry(),
            is_closed: matches!(error, ConnectError::Dial { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused),
        }
    }
}
