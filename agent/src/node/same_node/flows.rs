//! The connections that go from app to app, as the kernel's programs report them: each becomes one record like those that the
//! agent carries, with one log line. Both ends are here, so the metrics count it as source and as destination.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::{
    Shared,
    connections::{Carried, record_refused},
    inbound::tell_of_dry_runs,
    pod::Pod,
};
use crate::{
    kernel::verdicts::{self, Dialled, DirectConnection, DirectEvent, DirectEvents},
    mesh::{
        Direction, FailureKind, Flow, Mesh, Outcome, Party, Refusal, Security, Verdict, Workload, question,
        reconsider,
    },
    telemetry::metrics::OpenConnection,
};

/// The captured pods of this node, by the cookie of their network namespace.
pub(super) type Pods = HashMap<u64, Arc<Pod>>;
/// Both ends of a connection: the client's and the app's.
type Ends = (SocketAddr, SocketAddr);

/// What the control loop must do about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Trouble {
    /// Something on the way drops its SYNs.
    Blocked(Dialled),
    /// The app of a service's endpoint did not take it: the agent can try another.
    NotTaken(Dialled),
    /// Somebody else has the pod's address; the connection must be ended.
    Stranger(DirectConnection),
}

/// The open ones. Cheap to clone.
#[derive(Clone)]
pub(super) struct Flows {
    shared: Shared,
    pods: Arc<ArcSwap<Pods>>,
    open: Arc<Mutex<Table>>,
    trouble: mpsc::Sender<Trouble>,
}

#[derive(Default)]
struct Table {
    open: HashMap<Ends, Open>,
    /// Those that the agent is about to end, and why.
    refused: HashMap<Ends, Refusal>,
}

/// One that is open: its record, and its count as the destination sees it.
struct Open {
    carried: Carried,
    inbound: OpenConnection,
    inbound_flow: Box<Flow>,
}

impl Flows {
    pub(super) fn new(shared: Shared, pods: Arc<ArcSwap<Pods>>, trouble: mpsc::Sender<Trouble>) -> Self {
        Self {
            shared,
            pods,
            open: Arc::default(),
            trouble,
        }
    }

    /// Takes what the programs report until `stopped`.
    pub(super) async fn run(self, mut events: DirectEvents, stopped: CancellationToken) {
        loop {
            let next = events.next(|connection, event| self.take(&connection, event));
            let taken = tokio::select! {
                () = stopped.cancelled() => return,
                taken = next => taken,
            };
            if let Err(error) = taken {
                tracing::error!(%error, "connections inside the node are no longer logged and counted");
                return;
            }
        }
    }

    /// Makes the open ones those that the kernel has: an earlier agent may have known them.
    pub(super) fn adopt(&self, there: &[DirectConnection]) {
        let open = there.iter().filter(|connection| connection.open);
        open.clone().for_each(|connection| self.opened(connection));
        let ends: HashSet<Ends> = open.map(ends).collect();
        let mut table = self.lock();
        table.open.retain(|key, _| ends.contains(key));
    }

    /// Says why a connection ends, which the agent is about to bring about.
    pub(super) fn refuse(&self, connection: &DirectConnection, why: Refusal) {
        self.lock().refused.insert(ends(connection), why);
    }

    /// Who dialled, as the mesh had it when the connection began.
    pub(super) fn source_of(&self, connection: &DirectConnection) -> Option<Arc<Workload>> {
        let table = self.lock();
        let open = table.open.get(&ends(connection))?;
        open.inbound_flow.source.workload.clone()
    }

    fn take(&self, connection: &DirectConnection, event: DirectEvent) {
        let pair = (connection.source, connection.app);
        match event {
            DirectEvent::Opened => self.opened(connection),
            DirectEvent::Closed { at, sent, received } => self.closed(connection, at, (sent, received)),
            DirectEvent::Blocked => self.tell(Trouble::Blocked(pair)),
            DirectEvent::Stranger => self.tell(Trouble::Stranger(*connection)),
        }
    }

    fn opened(&self, connection: &DirectConnection) {
        let key = ends(connection);
        if self.lock().open.contains_key(&key) {
            return;
        }
        let Some(flow) = self.flow(connection) else { return };
        let mut inbound_flow = Box::new(flow.clone());
        inbound_flow.direction = Direction::Inbound;
        let open = Open {
            inbound: self.shared.metrics.open(&inbound_flow),
            carried: Carried::open(
                &self.shared,
                Box::new(flow),
                instant(connection.since),
                None,
                None,
            ),
            inbound_flow,
        };
        self.lock().open.insert(key, open);
    }

    fn closed(&self, connection: &DirectConnection, at: Duration, bytes: (u64, u64)) {
        let key = ends(connection);
        let (open, refused) = {
            let mut table = self.lock();
            (table.open.remove(&key), table.refused.remove(&key))
        };
        match open {
            Some(open) => open.close(bytes, refused),
            // The report of its beginning was lost, or read by an earlier agent.
            None if connection.open => {
                self.opened(connection);
                let open = self.lock().open.remove(&key);
                if let Some(open) = open {
                    open.close(bytes, refused);
                }
            }
            None => self.failed(connection, at, refused),
        }
    }

    /// It never came about.
    fn failed(&self, connection: &DirectConnection, at: Duration, refused: Option<Refusal>) {
        if connection.dialled != connection.app {
            self.tell(Trouble::NotTaken((connection.source, connection.app)));
        }
        let Some(mut flow) = self.flow(connection) else {
            return;
        };
        flow.outcome = refused.map_or_else(|| not_taken(connection.app), Outcome::Refused);
        flow.duration = at.saturating_sub(connection.since);
        record_refused(&self.shared, &flow);
    }

    /// The record of a connection that has just begun. `None` where the client is not a pod of the mesh any more.
    fn flow(&self, connection: &DirectConnection) -> Option<Flow> {
        let mesh = self.shared.mesh.load_full()?;
        let pod = self.pods.load().get(&connection.source).cloned()?;
        let source = mesh.workload(&pod.uid)?.clone();
        let destination = mesh.workload_at(connection.app.ip()).cloned();
        let identity = destination.as_ref().map(|workload| workload.identity.clone());
        let mut flow = Flow::new(
            Direction::Outbound,
            Party {
                addr: Some(connection.client),
                identity: Some(source.identity.clone()),
                workload: Some(source),
            },
            Party {
                addr: Some(connection.app),
                workload: destination,
                identity,
            },
        );
        flow.security = Security::Kernel;
        flow.service = mesh
            .service_at(connection.dialled.ip())
            .filter(|_| connection.dialled != connection.app)
            .cloned();
        self.authorized(&mesh, &mut flow);
        Some(flow)
    }

    /// Which policy lets it in, and what dry-run policies say.
    fn authorized(&self, mesh: &Mesh, flow: &mut Flow) {
        let (Some(source), Some(workload), Some(app)) = (
            flow.source.workload.as_deref(),
            flow.destination.workload.as_deref(),
            flow.destination.addr,
        ) else {
            return;
        };
        let question = question(source, app);
        tell_of_dry_runs(
            &self.shared,
            mesh,
            workload,
            &question,
            flow.source.addr.unwrap_or(app),
        );
        if let Verdict::Allow { policy } = reconsider(mesh, source, workload, app) {
            flow.policy = policy;
        }
    }

    /// When more troubles wait than there is room for, they will come again.
    fn tell(&self, trouble: Trouble) {
        let _ = self.trouble.try_send(trouble);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn close(self, (sent, received): (u64, u64), refused: Option<Refusal>) {
        let outcome = refused.map_or(Outcome::Complete, Outcome::Refused);
        let mut inbound_flow = self.inbound_flow;
        inbound_flow.outcome = outcome.clone();
        self.inbound.request(sent);
        self.inbound.response(received);
        self.inbound.close(&inbound_flow);
        self.carried.counts().request(sent);
        self.carried.counts().response(received);
        self.carried.close(outcome);
    }
}

fn not_taken(app: SocketAddr) -> Outcome {
    Outcome::Failed(
        FailureKind::Connect,
        format!("the app does not take {app}: the client was refused, or gave up"),
    )
}

fn ends(connection: &DirectConnection) -> Ends {
    (connection.client, connection.app)
}

/// A time of the kernel's clock as one of ours.
fn instant(at: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(verdicts::now().saturating_sub(at)).unwrap_or(now)
}
