//! Whether a request is tried again, and after how long. Not here: whether its body is still there (the waypoint).

use std::time::Duration;

use super::{Retry, RetryOn};

/// The first status that is the server's fault.
const SERVER_ERROR: u16 = 500;
/// Pauses double at most so often: longer ones are all the longest.
const MOST_DOUBLINGS: u32 = 32;

/// How an attempt ended, before a byte of a response was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// A response with this status, and this code of gRPC where it has no body (trailers only).
    Status(u16, Option<u16>),
    /// No connection was had: nothing was sent.
    ConnectFailed,
    /// The other end did not look at it (REFUSED_STREAM, a GOAWAY before it).
    Refused,
    /// The connection broke, or the stream was reset, after it was sent.
    Reset,
    /// There was no response in time.
    TimedOut,
}

impl Attempt {
    /// Whether no app can have seen the request, so that trying again cannot do anything twice.
    pub fn was_not_seen(self) -> bool {
        matches!(self, Self::ConnectFailed | Self::Refused)
    }
}

impl Retry {
    /// What holds where a rule says nothing: two attempts more, where no app can have seen the request.
    pub fn standard() -> Self {
        Self {
            attempts: 2,
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                ..RetryOn::default()
            },
            backoff_ms: 25,
            max_backoff_ms: 250,
            avoid_tried: true,
        }
    }

    /// Whether an attempt that ended so is followed by another, if there are any left ([`Retry::attempts`]). As in Envoy,
    /// whatever would be answered with 5xx counts as one.
    pub fn again_after(&self, attempt: &Attempt) -> bool {
        let on = &self.on;
        let any_failure = on.server_error || on.gateway_error;
        match attempt {
            Attempt::ConnectFailed => any_failure || on.connect_failure,
            Attempt::Refused => any_failure || on.refused_stream,
            Attempt::Reset => any_failure || on.reset,
            Attempt::TimedOut => any_failure,
            Attempt::Status(status, grpc) => {
                (on.server_error && *status >= SERVER_ERROR)
                    || (on.gateway_error && matches!(status, 502..=504))
                    || (on.retriable_4xx && *status == 409)
                    || on.statuses.contains(status)
                    || grpc.is_some_and(|code| on.grpc.contains(&code))
            }
        }
    }

    /// How long to wait before the `n`th attempt after the first, from 1 on.
    pub fn pause(&self, n: u32, draw: u64) -> Duration {
        let doublings = n.saturating_sub(1).min(MOST_DOUBLINGS);
        let longest = self.backoff_ms.saturating_mul(1 << doublings);
        let longest = Duration::from_millis(longest.min(self.max_backoff_ms));
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(draw % micros.saturating_add(1))
    }
}

#[cfg(test)]
mod tests;
