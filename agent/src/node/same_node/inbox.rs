//! What comes in to the control loop: pairs that workers ask for, and what the kernel's programs report as trouble.

use tokio::sync::mpsc;

use super::{Pair, flows::Trouble};

/// What comes in from workers and from the kernel.
#[derive(Debug)]
pub(in crate::node) struct Inbox {
    pub(super) pairs: mpsc::Receiver<Pair>,
    pub(super) trouble: mpsc::Receiver<Trouble>,
}

impl Inbox {
    /// Waits for pairs or troubles and hands them on.
    pub(in crate::node) async fn next(&mut self) -> Incoming {
        tokio::select! {
            Some(pair) = self.pairs.recv() => Incoming::Pair(pair),
            Some(trouble) = self.trouble.recv() => Incoming::Trouble(trouble),
            else => std::future::pending().await,
        }
    }
}

/// One thing from the [`Inbox`].
#[derive(Debug)]
pub(in crate::node) enum Incoming {
    Pair(Pair),
    Trouble(Trouble),
}
