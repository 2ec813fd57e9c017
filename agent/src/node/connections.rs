//! The connections that are open now: what `weft status` lists, and what a policy change asks again.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::Shared;
use crate::{
    mesh::{FailureKind, Flow, Inbound, Mesh, Outcome, Refusal, Verdict, authorize},
    net::{
        copy::CopyError,
        tls::{Ended, Session},
    },
    telemetry::{
        chain, log,
        metrics::{ByteCounts, OpenConnection},
    },
};

/// All open connections of this agent. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Connections {
    open: Arc<Mutex<HashMap<u64, Arc<Connection>>>>,
    next: Arc<AtomicU64>,
}

/// What `authorize` was asked when an inbound connection was opened.
pub(super) struct Asked {
    /// The uid of the workload that was dialled.
    pub(super) uid: Arc<str>,
    pub(super) question: Inbound,
}

/// One open connection.
pub(super) struct Connection {
    /// As it was when it was opened; its counts are in `counts`.
    pub(super) flow: Box<Flow>,
    /// The live counts of bytes.
    pub(super) counts: Arc<ByteCounts>,
    /// When it was accepted.
    pub(super) since: Instant,
    asked: Option<Asked>,
    /// The TLS session that it is inside of.
    session: Option<Arc<Session>>,
    refused: OnceLock<Refusal>,
    wake: Notify,
}

impl Connection {
    /// Waits until a change of the mesh refuses the connection; for ever when none does.
    pub(super) async fn refused(&self) -> Refusal {
        loop {
            let woken = self.wake.notified();
            if let Some(refusal) = self.refused.get() {
                return refusal.clone();
            }
            woken.await;
        }
    }

    /// Waits until a change of the trust ends the session that the connection is inside of; for ever when none does.
    async fn distrusted(&self) -> Outcome {
        match &self.session {
            Some(session) => end_of(&session.rejected().await),
            None => std::future::pending().await,
        }
    }

    /// What a copy that broke means: the tunnel may have been cut, and told us before we were woken for it.
    fn broken(&self, error: &CopyError) -> Outcome {
        let ended = self.session.as_ref().and_then(|session| session.ended());
        match ended {
            Some(ended) => end_of(&ended),
            None => Outcome::Failed(FailureKind::Broken, chain(error)),
        }
    }

    /// Asks `authorize` again.
    fn reconsider(&self, mesh: &Mesh) {
        let Some(Asked { uid, question }) = &self.asked else {
            return;
        };
        let verdict = match mesh.workload(uid) {
            Some(workload) => authorize(mesh, workload, question),
            None => Verdict::Deny(Refusal::UnknownWorkload),
        };
        if let Verdict::Deny(refusal) = verdict {
            // Refused once is refused for good; a second refusal has nothing to add.
            let _ = self.refused.set(refusal);
            self.wake.notify_waiters();
        }
    }
}

/// A connection that is being carried: listed, counted, and closed once.
pub(super) struct Carried {
    connections: Connections,
    id: u64,
    connection: Arc<Connection>,
    counts: OpenConnection,
}

impl Carried {
    /// Counts and lists a connection whose way is clear; `asked` for inbound ones, `session` for those in a tunnel.
    pub(super) fn open(
        shared: &Shared,
        flow: Box<Flow>,
        since: Instant,
        asked: Option<Asked>,
        session: Option<Arc<Session>>,
    ) -> Self {
        log::opened(&flow);
        let counts = shared.metrics.open(&flow);
        let connection = Connection {
            flow,
            counts: counts.byte_counts(),
            since,
            asked,
            session,
            refused: OnceLock::new(),
            wake: Notify::new(),
        };
        let (id, connection) = shared.connections.list(connection);
        // The mesh may have changed while the app was dialled. One that changes from here on finds the connection listed.
        if let Some(mesh) = shared.mesh.load_full() {
            connection.reconsider(&mesh);
        }
        Self {
            connections: shared.connections.clone(),
            id,
            connection,
            counts,
        }
    }

    /// Where the copy counts its bytes.
    pub(super) fn counts(&self) -> &OpenConnection {
        &self.counts
    }

    /// Runs the copy to its end, or until a change of the mesh or of the trust refuses the connection, which resets both
    /// sides.
    pub(super) async fn unless_refused(&self, copy: impl Future<Output = Result<(), CopyError>>) -> Outcome {
        tokio::select! {
            // First: a connection that is refused already copies nothing.
            biased;
            refusal = self.connection.refused() => Outcome::Refused(refusal),
            outcome = self.connection.distrusted() => outcome,
            copied = copy => match copied {
                Ok(()) => Outcome::Complete,
                Err(error) => self.connection.broken(&error),
            },
        }
    }

    /// Writes the connection's one line and counts its end.
    pub(super) fn close(self, outcome: Outcome) {
        self.connections.lock().remove(&self.id);
        let mut flow = self.connection.flow.clone();
        flow.outcome = outcome;
        flow.request_bytes = self.counts.request_total();
        flow.response_bytes = self.counts.response_total();
        flow.duration = self.connection.since.elapsed();
        self.counts.close(&flow);
        log::access(&flow);
    }
}

/// What a connection inside of a session that was rejected ends with.
pub(super) fn end_of(ended: &Ended) -> Outcome {
    let kind = if ended.is_revoked() {
        FailureKind::Revoked
    } else {
        FailureKind::Tls
    };
    Outcome::Failed(kind, ended.to_string())
}

/// Writes the one line of a connection that never opened, and counts it.
pub(super) fn record_refused(shared: &Shared, flow: &Flow) {
    shared.metrics.refused(flow);
    log::access(flow);
}

impl Connections {
    fn list(&self, connection: Connection) -> (u64, Arc<Connection>) {
        let connection = Arc::new(connection);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Arc::clone(&connection));
        (id, connection)
    }

    /// Asks every inbound connection's question again and closes those that are refused now.
    pub(super) fn reconsider(&self, mesh: &Mesh) {
        // Copied out, so that connections can end while the policies are evaluated.
        let open: Vec<_> = self.lock().values().cloned().collect();
        for connection in open {
            connection.reconsider(mesh);
        }
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The `most` that have been open the longest.
    pub(super) fn oldest(&self, most: usize) -> Vec<Arc<Connection>> {
        let mut open: Vec<_> = self.lock().values().cloned().collect();
        open.sort_unstable_by_key(|connection| connection.since);
        open.truncate(most);
        open
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
