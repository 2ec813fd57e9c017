//! Ctrl-C as a flag that loops look at, so that cleaning up is ordinary code. A second one ends the process at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use signal_hook::{consts, flag};

/// Whether somebody asked us to stop.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    ///
    /// # Errors
    /// The system does not let us.
    pub(crate) fn listen() -> Result<Self> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in [consts::SIGINT, consts::SIGTERM, consts::SIGHUP] {
            // In this order: the first signal finds the flag not yet set.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&came))
                .context("cannot listen for signals")?;
            flag::register(signal, Arc::clone(&came)).context("cannot listen for signals")?;
        }
        Ok(Self(came))
    }

    /// Whether it came.
    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
impl Interrupt {
    /// One that came, or never comes.
    pub(super) fn fixed(came: bool) -> Self {
        Self(Arc::new(AtomicBool::new(came)))
    }
}
