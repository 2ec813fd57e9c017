//! Who writes the maps: one agent at a time, by a lock on the pin directory; and how it passes to the next one.
//!
//! An agent that is to replace a running one asks by locking a second folder, and the running one, which looks now and
//! then, lets go of the first. No message is sent, so that agents of any two versions, in any two containers, understand
//! each other; and a lock ends with its process, so that whoever is left goes on. Called by the node role.

use std::{fs::File, io, path::PathBuf, time::Duration};

use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::pins::Pins;

/// How long a running agent may take to let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the lock is tried meanwhile.
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is tried to ask for it.
const TRIES: u32 = 25;

/// Why the maps are not ours to write.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another agent runs, and was not asked to let go.
    #[error(
        "another weft agent{} runs with the pins in {pins}: to replace it start this one with --takeover; for two \
         agents on one node give each its own --pin-dir and --cgroup-root",
        of_pid(*.pid)
    )]
    Busy {
        /// Where it has its pins.
        pins: PathBuf,
        /// Its process, where it is known.
        pid: Option<u32>,
    },
    /// A third agent is about to replace it.
    #[error("another weft agent is about to take over the pins in {0}: let one of them do it")]
    Contended(PathBuf),
    /// The other agent did not let go.
    #[error("the weft agent{} that has the pins in {pins} did not let go within {PATIENCE:?}: end it, and start again", of_pid(*.pid))]
    Stuck {
        /// Where it has its pins.
        pins: PathBuf,
        /// Its process, where it is known.
        pid: Option<u32>,
    },
    /// The folder.
    #[error("lock {0}")]
    Lock(PathBuf, #[source] io::Error),
}

fn of_pid(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default()
}

/// The right to write the maps. It ends when it is dropped, and with the process.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
    /// Held until this agent is ready, so that the replaced one knows when to turn to its end.
    request: Option<File>,
}

impl Claim {
    /// Takes the right, if nobody has it.
    ///
    /// # Errors
    /// When another agent has it.
    pub fn take(pins: &Pins) -> Result<Self, ClaimError> {
        match try_take(pins)? {
            Some(lock) => Ok(Self {
                _lock: lock,
                // An agent that has let go before must not think that this one is ready.
                request: pins.was_ever_requested().then(|| pins.request().ok()).flatten(),
            }),
            None => Err(ClaimError::Busy {
                pins: pins.path().to_owned(),
                pid: pins.holder(),
            }),
        }
    }

    /// Takes the right from the agent that has it, if one has.
    ///
    /// # Errors
    /// When it does not let go, or another agent asks it as well.
    pub async fn take_over(pins: &Pins) -> Result<Self, ClaimError> {
        let request = request(pins).await?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(lock) = try_take(pins)? {
                return Ok(Self {
                    _lock: lock,
                    request: Some(request),
                });
            }
            sleep(PAUSE).await;
        }
        Err(ClaimError::Stuck {
            pins: pins.path().to_owned(),
            pid: pins.holder(),
        })
    }

    /// This agent does the work now: the one that it replaced may turn to its end.
    pub fn settle(&mut self) {
        self.request = None;
    }

    /// Whether that has been said, so that a request is another agent's.
    pub fn is_settled(&self) -> bool {
        self.request.is_none()
    }
}

/// The lock, if nobody has it.
fn try_take(pins: &Pins) -> Result<Option<File>, ClaimError> {
    match pins.lock() {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(ClaimError::Lock(pins.path().to_owned(), error)),
    }
}

/// Asks for the lock. Tried for a while: the running agent looks by taking the request's lock for a moment itself.
async fn request(pins: &Pins) -> Result<File, ClaimError> {
    for _ in 0..TRIES {
        match pins.request() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
            request => return request.map_err(|error| ClaimError::Lock(pins.path().to_owned(), error)),
        }
    }
    Err(ClaimError::Contended(pins.path().to_owned()))
}
