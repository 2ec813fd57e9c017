//! The container runtime tells of pods that start, and waits for us before it starts their containers (NRI, the Node Resource
//! Interface of containerd and CRI-O): a pod is captured before its first instruction.
//!
//! ```text
//! runtime ──RunPodSandbox──▶ session ──▶ Sandboxes ──▶ Pods' look ──▶ View ──▶ control ──▶ enroll
//!    ▲                          │                                      │                     │
//!    └──────── answer ──────────┘◀── outside of the mesh ──────────────┘◀─── captured ───────┘
//! ```
//!
//! A help, never a need: where there is no runtime that offers it, or it cuts us, pods are found by their cgroups and what they
//! dial is refused until they are captured, as ever. The runtime waits for one plug-in after the other, and for one pod after
//! the other, so that an answer is never late: see [`session`].

mod api;
pub(in crate::node::pods) mod sandboxes;
mod session;
mod wire;

use std::{collections::HashSet, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    net::UnixStream,
    sync::watch,
    time::{sleep, timeout},
};

pub use self::sandboxes::{Sandbox, Sandboxes};
use self::session::SessionError;
use super::Pods;
use crate::telemetry::{
    Metrics, chain,
    status::{NriState, NriStatus},
};

/// Where runtimes listen, unless they were told otherwise.
pub const SOCKET: &str = "/var/run/nri/nri.sock";
/// How long the runtime may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(2);
/// The pause before the first new try, and the longest; it doubles in between.
const AGAIN: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
/// The same where another node's runtime has answered, which is troubled by each.
const FOREIGN: Duration = Duration::from_secs(60);

/// The network namespaces that are captured, by their cookies; nothing while another agent has this one's place.
pub type Captures = Option<Arc<HashSet<u64>>>;

/// The plug-in's side of things.
#[derive(Debug)]
pub struct Plugin {
    /// The runtime's socket.
    pub socket: PathBuf,
    /// The UID of the agent's own pod: a runtime that does not run it is another node's, whose socket this node sees too, as
    /// where nodes are network namespaces of one machine. Nothing where the agent is in no pod.
    pub own_pod: Option<String>,
    /// Where it is said which sandboxes run.
    pub told: watch::Sender<Arc<Sandboxes>>,
    /// What follows from that.
    pub pods: Pods,
    /// What is captured.
    pub captures: watch::Receiver<Captures>,
    /// How things stand, for people.
    pub status: watch::Sender<NriStatus>,
    /// And for machines.
    pub metrics: Metrics,
}

impl Plugin {
    /// Talks with the runtime until the agent ends.
    pub async fn run(mut self) {
        let mut pause = AGAIN;
        loop {
            if self.captures.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let ended = self.session().await;
            self.metrics.nri_connected(false);
            if self.is_connected() {
                pause = AGAIN;
            }
            let next = match &ended {
                Err(SessionError::Foreign { .. }) => FOREIGN,
                _ => pause,
            };
            match ended {
                // Another agent's turn.
                Ok(()) => self.say(NriState::Off, "another agent has this one's place".to_owned()),
                Err(error) => {
                    let state = match &error {
                        SessionError::Connect(source) if source.kind() == io::ErrorKind::NotFound => {
                            NriState::Absent
                        }
                        _ => NriState::Refused,
                    };
                    self.say(state, chain(&error));
                }
            }
            sleep(next).await;
            pause = (pause * 2).min(LONGEST);
        }
    }

    async fn session(&self) -> Result<(), SessionError> {
        let connected = timeout(CONNECT, UnixStream::connect(&self.socket)).await;
        let stream = connected
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(SessionError::Connect)?;
        session::run(self, stream).await
    }

    fn is_connected(&self) -> bool {
        self.status.borrow().state == NriState::Connected
    }

    /// The runtime has told of everything that runs.
    fn connected(&self, runtime: String) {
        tracing::info!(runtime, socket = %self.socket.display(), "the container runtime tells of pods that start, and waits until they are captured (NRI)");
        self.metrics.nri_connected(true);
        self.status.send_modify(|status| {
            status.state = NriState::Connected;
            status.runtime = Some(runtime);
            status.message = None;
        });
    }

    /// Logs only what is new: it is tried again for ever.
    fn say(&self, state: NriState, message: String) {
        let is_new = self.status.borrow().state != state;
        let socket = self.socket.display();
        match state {
            NriState::Refused if is_new => {
                tracing::warn!(%socket, message, "the container runtime does not tell of pods that start (NRI): they are found by their cgroups, and what they dial before that is refused; trying again");
            }
            NriState::Absent if is_new => {
                tracing::info!(%socket, "no container runtime offers NRI here: pods that start are found by their cgroups");
            }
            _ => tracing::debug!(%socket, message, "no NRI"),
        }
        self.status.send_modify(|status| {
            status.state = state;
            status.runtime = None;
            status.message = Some(message);
        });
    }
}
