//! The stand-in's time: real, or moved by a test that wants a watch of eighty seconds to end now.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// Where time-outs, bookmarks, tokens and timestamps get their time from.
pub(super) struct Clock {
    began: (Instant, SystemTime),
    /// What has passed, if a test says so.
    by_hand: Option<watch::Sender<Duration>>,
}

impl Clock {
    pub(super) fn new(by_hand: bool) -> Self {
        Self {
            began: (Instant::now(), SystemTime::now()),
            by_hand: by_hand.then(|| watch::Sender::new(Duration::ZERO)),
        }
    }

    /// Since the server was started.
    pub(super) fn now(&self) -> Duration {
        match &self.by_hand {
            Some(passed) => *passed.borrow(),
            None => self.began.0.elapsed(),
        }
    }

    /// Moves a clock that is moved by hand; a real one goes by itself.
    pub(super) fn advance(&self, by: Duration) {
        if let Some(passed) = &self.by_hand {
            passed.send_modify(|passed| *passed += by);
        }
    }

    /// The wall clock's time, seconds and more since the epoch.
    pub(super) fn wall(&self) -> SystemTime {
        self.began.1 + self.now()
    }

    /// Now as a Kubernetes timestamp, whole seconds.
    pub(super) fn stamp(&self) -> String {
        stamp(self.wall())
    }

    /// Returns once `now()` is at least `at`.
    pub(super) async fn until(&self, at: Duration) {
        match &self.by_hand {
            None => tokio::time::sleep(at.saturating_sub(self.now())).await,
            Some(passed) => {
                let mut passed = passed.subscribe();
                // The sender lives as long as the clock, which is borrowed.
                let _ = passed.wait_for(|passed| *passed >= at).await;
            }
        }
    }
}

/// A Kubernetes timestamp, whole seconds.
pub(super) fn stamp(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
