//! A point in time to come, on clocks that nobody can set.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Over as soon as either clock says so: tokio's, which tests can turn but which stands still while a machine sleeps,
/// or the kernel's that goes on then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    at: Instant,
    since_boot: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self::after(Duration::ZERO)
    }

    pub(super) fn after(pause: Duration) -> Self {
        Self {
            at: Instant::now() + pause,
            since_boot: since_boot().saturating_add(pause),
        }
    }

    pub(super) fn is_over(self) -> bool {
        Instant::now() >= self.at || since_boot() >= self.since_boot
    }

    /// When to wake up for it, unless the machine sleeps.
    pub(super) fn instant(self) -> Instant {
        self.at
    }

    /// How long it is until then.
    pub(super) fn left(self) -> Duration {
        let by_boot = self.since_boot.saturating_sub(since_boot());
        self.at.saturating_duration_since(Instant::now()).min(by_boot)
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}
