//! Endpoints that are left out for a while because they fail (Istio's outlierDetection). Each worker sees for itself.
//!
//! Pure, but for what it counts: the clock comes in as an argument.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::mesh::http::OutlierDetection;

/// How an endpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Result {
    /// It answered with this status.
    Status(u16),
    /// It did not answer: as good as 503.
    Failed,
}

/// What one worker knows of an endpoint.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    server_errors: u32,
    gateway_errors: u32,
    /// How often it was left out.
    times: u32,
    out_until: Option<Instant>,
}

/// Longer than this nobody is left out (Envoy's `max_ejection_time`).
const LONGEST: Duration = Duration::from_secs(300);

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is left out.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.state().out_until.is_some_and(|until| now < until)
    }

    /// Counts what became of a request. Answers whether the endpoint is to be left out, which the others decide as well.
    pub(super) fn count(&self, result: Result, settings: &OutlierDetection) -> bool {
        let status = match result {
            Result::Status(status) => status,
            Result::Failed => 503,
        };
        let mut state = self.state();
        let count = |errors: u32, is_error: bool| if is_error { errors.saturating_add(1) } else { 0 };
        state.server_errors = count(state.server_errors, status >= 500);
        state.gateway_errors = count(state.gateway_errors, matches!(status, 502..=504));
        let reached = |most: u32, errors: u32| most > 0 && errors >= most;
        reached(settings.consecutive_5xx, state.server_errors)
            || reached(settings.consecutive_gateway_errors, state.gateway_errors)
    }

    /// Leaves it out from now on: longer each time, until it has been well for as long.
    pub(super) fn leave_out(&self, now: Instant, settings: &OutlierDetection) {
        let mut state = self.state();
        let base = Duration::from_millis(settings.base_ejection_ms);
        let span = |times: u32| base.saturating_mul(times).min(LONGEST.max(base));
        let well_for = state.out_until.map(|until| now.saturating_duration_since(until));
        if well_for.is_none_or(|well_for| well_for > span(state.times)) {
            state.times = 0;
        }
        state.times += 1;
        state.out_until = now.checked_add(span(state.times));
        (state.server_errors, state.gateway_errors) = (0, 0);
    }
}

/// Whether one more of so many endpoints may be left out, of which some are.
pub(super) fn may_leave_out(all: usize, out: usize, settings: &OutlierDetection) -> bool {
    let percent = settings.max_ejection_percent as usize;
    // One may be in any case (Envoy).
    percent > 0 && (out == 0 || (out + 1) * 100 <= all * percent)
}

/// Whether so many are left out that nobody is.
pub(super) fn are_too_many_out(all: usize, out: usize, settings: &OutlierDetection) -> bool {
    (all - out.min(all)) * 100 < all * settings.min_health_percent as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: OutlierDetection = OutlierDetection {
        consecutive_5xx: 3,
        consecutive_gateway_errors: 2,
        interval_ms: 10_000,
        base_ejection_ms: 1_000,
        max_ejection_percent: 50,
        min_health_percent: 40,
    };

    #[test]
    fn errors_in_a_row_count_and_a_success_ends_the_row() {
        for (statuses, out) in [
            (&[500, 500, 500][..], true),
            (&[500, 500, 200, 500, 500], false),
            (&[502, 503], true),
            (&[502, 500, 502], true),
            (&[502, 500], false),
            (&[404; 10], false),
        ] {
            let health = Health::default();
            let last = statuses
                .iter()
                .map(|status| health.count(Result::Status(*status), &SETTINGS))
                .last();
            assert_eq!(last, Some(out), "{statuses:?}");
        }
        let health = Health::default();
        assert!(!health.count(Result::Failed, &SETTINGS));
        assert!(health.count(Result::Failed, &SETTINGS));
    }

    #[test]
    fn it_is_left_out_for_longer_each_time_and_comes_back() {
        let (health, begun) = (Health::default(), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        health.leave_out(at(0), &SETTINGS);
        assert!(health.is_out(at(999)) && !health.is_out(at(1000)));
        health.leave_out(at(1500), &SETTINGS);
        assert!(health.is_out(at(3499)) && !health.is_out(at(3500)));
        // Well for long enough.
        health.leave_out(at(10_000), &SETTINGS);
        assert!(!health.is_out(at(11_000)));
    }

    #[test]
    fn not_too_many_are_left_out() {
        for (all, out, may) in [
            (1, 0, true),
            (4, 1, true),
            (4, 2, false),
            (10, 4, true),
            (10, 5, false),
        ] {
            assert_eq!(may_leave_out(all, out, &SETTINGS), may, "{out} of {all}");
        }
        for (all, out, too_many) in [(10, 6, false), (10, 7, true), (1, 1, true), (1, 0, false)] {
            assert_eq!(are_too_many_out(all, out, &SETTINGS), too_many, "{out} of {all}");
        }
    }
}
