//! Waiting for a condition. Nothing here sleeps for correctness: a probe is asked again until it holds or time is up.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a test waits for something that should be nearly immediate, on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How long to pause between two looks.
const STEP: Duration = Duration::from_millis(10);

/// What a probe answers: not yet, or what was waited for.
pub trait Answer {
    /// What is handed back once it is there.
    type Value;

    /// The value, or `None` for "not yet".
    fn there(self) -> Option<Self::Value>;
}

impl Answer for bool {
    type Value = ();

    fn there(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Value = T;

    fn there(self) -> Option<T> {
        self
    }
}

/// An error means "not yet": what is being polled may not even be listening.
impl<T, E> Answer for Result<T, E> {
    type Value = T;

    fn there(self) -> Option<T> {
        self.ok()
    }
}

/// Asks `probe` every 10 ms until it answers, or fails after `limit` naming `what`.
pub fn wait_until<A: Answer>(what: &str, limit: Duration, mut probe: impl FnMut() -> A) -> Result<A::Value> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe().there() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(STEP);
    }
}
