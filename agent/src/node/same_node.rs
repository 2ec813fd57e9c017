//! The kernel path: keeps the kernel's list of pairs of this node's pods that may talk from app to app.
//!
//! A pair is asked for when the agent has carried its first connection (`outbound`). Whether it may go directly is asked of
//! the mesh (`mesh::direct`, the same answers as for a carried connection), of enrolment (both pods are captured here), of
//! the certificates (both have one), and of the node's links (`net::veth`). Level-triggered: whenever one of these changes,
//! every pair is looked at again, verdicts are taken back first, and then what is open is judged and, where it is
//! refused, ended.

mod entries;
mod flows;
mod inbox;
mod ways;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use rustls::pki_types::UnixTime;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(super) use self::inbox::{Inbox, Incoming};
use self::{
    entries::{Action, Choices, Entries, plan},
    flows::{Flows, Pods, Trouble},
    ways::Ways,
};
use super::{Shared, pod::Pod};
use crate::{
    kernel::{
        load::{Kernel, LoadError},
        verdicts::{self, Dialled, DirectConnection, DirectEvents, Verdicts},
    },
    mesh::{Mesh, Outbound, Refusal, ThroughAgent, Verdict, Workload, choices, direct, reconsider},
    net::{
        netlink,
        netns::Netns,
        tls::{Purpose, Rejected},
    },
};

/// Pairs that are kept; the one that was asked for first makes room.
const MOST_PAIRS: usize = 16_384;
/// A service with more endpoints is left to the agent.
const MOST_ENDPOINTS: u64 = 1_024;
/// For how long a pair whose SYNs were dropped goes through the agent.
const BLOCKED: Duration = Duration::from_secs(60);
/// For how long a pair whose app took no connection does: the agent tries other endpoints.
const NOT_TAKEN: Duration = Duration::from_secs(10);
/// Pairs that wait to be looked at, and troubles.
const WAITING: usize = 1_024;

/// A pair that may be one for the kernel: a pod of this node, and what it dialled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    /// The uid of the workload that dials.
    pub(super) source: Arc<str>,
    /// What it dials.
    pub(super) destination: SocketAddr,
}

/// The workers' end: where they ask for pairs.
pub(super) type Asking = mpsc::Sender<Pair>;

/// The state of the kernel path. Written by the control loop only.
pub(super) struct SameNode {
    shared: Shared,
    verdicts: Verdicts,
    flows: Flows,
    /// Not read yet: to no pod can what the programs report be put down before one is captured.
    unread: Option<DirectEvents>,
    reading: Option<(CancellationToken, JoinHandle<()>)>,
    ways: Ways,
    pods: Arc<ArcSwap<Pods>>,
    pairs: BTreeMap<Pair, Entries>,
    /// In the order in which they were asked for.
    order: VecDeque<Pair>,
    /// How many pairs need a verdict.
    needed: HashMap<Dialled, usize>,
    /// What went wrong with a verdict, and until when it is not given again.
    suspended: HashMap<Dialled, Instant>,
    /// What became of the pairs, for people.
    known: Known,
}

/// What became of each pair: the apps that it reaches directly, and the last reason for which something of it goes through
/// the agent. Cheap to clone; the control loop writes it, status reads it.
pub(super) type Known = Arc<Mutex<BTreeMap<Pair, Became>>>;

/// What became of a pair.
#[derive(Clone, Debug, Default)]
pub(super) struct Became {
    pub(super) directly: Vec<SocketAddr>,
    pub(super) through_agent: Option<ThroughAgent>,
}

impl SameNode {
    /// Makes a channel for pairs, of which workers have the one end, and this the other.
    pub(super) fn channel() -> (Asking, mpsc::Receiver<Pair>) {
        mpsc::channel(WAITING)
    }

    /// Takes back what an earlier agent allowed; pairs are asked for anew. `node` is the node's network namespace.
    ///
    /// # Errors
    /// When the maps cannot be opened or written.
    pub(super) fn new(
        shared: Shared,
        kernel: &Kernel,
        node: Option<Netns>,
        pairs: mpsc::Receiver<Pair>,
    ) -> Result<(Self, Inbox), LoadError> {
        let (tell, trouble) = mpsc::channel(WAITING);
        let pods: Arc<ArcSwap<Pods>> = Arc::default();
        let mut same_node = Self {
            flows: Flows::new(shared.clone(), Arc::clone(&pods), tell),
            known: Arc::clone(&shared.same_node),
            shared,
            verdicts: kernel.verdicts()?,
            unread: None,
            reading: None,
            ways: Ways::new(node),
            pods,
            pairs: BTreeMap::new(),
            order: VecDeque::new(),
            needed: HashMap::new(),
            suspended: HashMap::new(),
        };
        same_node.begin(kernel)?;
        Ok((same_node, Inbox { pairs, trouble }))
    }

    /// Writes the maps from now on, and reads what the programs report.
    fn begin(&mut self, kernel: &Kernel) -> Result<(), LoadError> {
        self.verdicts.clear().map_err(|error| kernel.map_error(error))?;
        for entries in self.pairs.values_mut() {
            *entries = Entries::default();
        }
        self.needed.clear();
        self.unread = Some(kernel.direct_events()?);
        if !self.pods.load().is_empty() {
            self.read();
        }
        Ok(())
    }

    fn read(&mut self) {
        if let Some(events) = self.unread.take() {
            let stopped = CancellationToken::new();
            let reading = tokio::spawn(self.flows.clone().run(events, stopped.clone()));
            self.reading = Some((stopped, reading));
        }
    }

    /// Another agent writes and reads from now on.
    pub(super) async fn hand_over(&mut self) {
        self.unread = None;
        if let Some((stopped, reading)) = self.reading.take() {
            stopped.cancel();
            let _ = reading.await;
        }
    }

    /// Writes and reads again, because the other agent has ended.
    ///
    /// # Errors
    /// When the maps cannot be opened or written.
    pub(super) fn resume(&mut self, kernel: &Kernel) -> Result<(), LoadError> {
        self.verdicts = kernel.verdicts()?;
        self.begin(kernel)
    }

    /// These are captured, and no other. Those that are about to be captured anew are not among them.
    pub(super) fn set_pods(&mut self, captured: Vec<Arc<Pod>>) {
        let pods: Pods = captured
            .into_iter()
            .map(|pod| (pod.netns.cookie(), pod))
            .collect();
        let before = self.pods.load_full();
        let same = |(cookie, pod): (&u64, &Arc<Pod>)| {
            before.get(cookie).is_some_and(|before| Arc::ptr_eq(before, pod))
        };
        if pods.len() == before.len() && pods.iter().all(same) {
            return;
        }
        self.pods.store(Arc::new(pods));
        self.ways.forget();
        self.look_again();
        if before.is_empty() {
            self.flows.adopt(&self.verdicts.connections());
            self.read();
        }
    }

    /// What comes with time: routes that changed, suspensions that end.
    pub(super) fn turn(&mut self) {
        let now = Instant::now();
        let before = self.suspended.len();
        self.suspended.retain(|_, until| *until > now);
        let changed = self.ways.have_changed();
        if changed || before != self.suspended.len() {
            self.look_again();
        }
    }

    /// A pair was asked for, or something went wrong with one.
    pub(super) fn take(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Pair(pair) => self.add(pair),
            Incoming::Trouble(Trouble::Blocked(verdict)) => self.suspend(verdict, BLOCKED),
            Incoming::Trouble(Trouble::NotTaken(verdict)) => self.suspend(verdict, NOT_TAKEN),
            Incoming::Trouble(Trouble::Stranger(connection)) => {
                let until = Instant::now() + BLOCKED;
                self.suspended.insert((connection.source, connection.app), until);
                self.look_again();
                self.end(&connection, Refusal::AnotherAnswered(connection.app));
            }
        }
    }

    /// The mesh, the certificates or the pods have changed: asks everything again. Verdicts that no longer hold are taken
    /// back before what is open is judged, so that nothing begins in between.
    pub(super) fn look_again(&mut self) {
        let Some(mesh) = self.shared.mesh.load_full() else {
            return;
        };
        let pairs: Vec<Pair> = self.pairs.keys().cloned().collect();
        for pair in pairs {
            self.settle(&mesh, &pair);
        }
        let node = self.ways.node().map(Netns::cookie);
        for connection in self.verdicts.connections() {
            if Some(connection.source) == node {
                continue;
            }
            if let Verdict::Deny(why) = self.judge(&mesh, &connection) {
                self.end(&connection, why);
            }
        }
    }

    fn add(&mut self, pair: Pair) {
        let Some(mesh) = self.shared.mesh.load_full() else {
            return;
        };
        if self.pairs.contains_key(&pair) {
            return;
        }
        if self.pairs.len() >= MOST_PAIRS
            && let Some(oldest) = self.order.pop_front()
        {
            self.replace(&oldest, Entries::default());
            self.pairs.remove(&oldest);
            lock(&self.known).remove(&oldest);
        }
        self.order.push_back(pair.clone());
        self.pairs.insert(pair.clone(), Entries::default());
        self.settle(&mesh, &pair);
    }

    fn suspend(&mut self, verdict: Dialled, pause: Duration) {
        if pause == BLOCKED && !self.suspended.contains_key(&verdict) {
            tracing::warn!(app = %verdict.1, "connections inside the node do not arrive and go through the agent for a while: does a NetworkPolicy let only port 15008 through?");
        }
        self.suspended.insert(verdict, Instant::now() + pause);
        self.look_again();
    }

    /// Makes the maps hold what they should for one pair.
    fn settle(&mut self, mesh: &Mesh, pair: &Pair) {
        let (entries, why) = self.entries(mesh, pair);
        let became = Became {
            directly: entries.verdicts.iter().map(|(_, app)| *app).collect(),
            through_agent: why,
        };
        self.replace(pair, entries);
        lock(&self.known).insert(pair.clone(), became);
    }

    /// What the maps should hold for a pair; with the last reason for which something of it goes through the agent.
    fn entries(&mut self, mesh: &Mesh, pair: &Pair) -> (Entries, Option<ThroughAgent>) {
        let mut entries = Entries::default();
        let pod = self
            .pods
            .load()
            .values()
            .find(|pod| pod.uid == pair.source)
            .cloned();
        let (Some(pod), Some(source)) = (pod, mesh.workload(&pair.source).cloned()) else {
            return (entries, Some(ThroughAgent::NotHere));
        };
        let destination = pair.destination;
        let conn = Outbound { source, destination };
        let dialled = (pod.netns.cookie(), destination);
        let (all, is_service) = (choices(mesh, &conn), mesh.service_at(destination.ip()).is_some());
        let mut apps = BTreeMap::new();
        let mut why = None;
        for draw in 0..Some(all).filter(|all| *all <= MOST_ENDPOINTS).unwrap_or(0) {
            let found = direct(mesh, &conn, draw)
                .and_then(|(workload, app)| self.here(&pod, &conn.source, &workload, app).map(|()| app));
            match found {
                Ok(app) => drop(apps.insert(draw as u32, app)),
                Err(reason) => why = Some(reason),
            }
        }
        entries.verdicts = apps.values().map(|app| (dialled.0, *app)).collect();
        if is_service && !apps.is_empty() {
            entries.service = Some(Choices {
                service: dialled,
                endpoints: all as u32,
                apps,
            });
        }
        (entries, why)
    }

    /// Whether the app is one of a captured pod of this node, to which the way is known to stay on the node.
    fn here(
        &mut self,
        from: &Pod,
        source: &Workload,
        workload: &Workload,
        app: SocketAddr,
    ) -> Result<(), ThroughAgent> {
        let pods = self.pods.load();
        let to = pods
            .values()
            .find(|pod| pod.uid == workload.uid && pod.addresses.contains(&app.ip()))
            .cloned()
            .ok_or(ThroughAgent::NotHere)?;
        drop(pods);
        for end in [source, workload] {
            if self.shared.svids.current(&end.identity).is_none() {
                return Err(ThroughAgent::NoIdentity(end.identity.to_string()));
            }
            self.believed(end).map_err(ThroughAgent::Refused)?;
        }
        if self.suspended.contains_key(&(from.netns.cookie(), app)) {
            return Err(ThroughAgent::Blocked);
        }
        self.ways.proved(from, &to, app).map_err(ThroughAgent::Unproved)
    }

    fn replace(&mut self, pair: &Pair, new: Entries) {
        let old = self.pairs.get(pair).cloned().unwrap_or_default();
        if old == new {
            return;
        }
        for verdict in &new.verdicts {
            *self.needed.entry(*verdict).or_default() += 1;
        }
        for verdict in &old.verdicts {
            if let Some(needed) = self.needed.get_mut(verdict) {
                *needed -= 1;
            }
        }
        self.needed.retain(|_, needed| *needed > 0);
        let needed = &self.needed;
        let actions = plan(&old, &new, |verdict| needed.contains_key(verdict));
        let written = actions
            .into_iter()
            .try_for_each(|action| apply(&mut self.verdicts, action));
        self.pairs.insert(pair.clone(), new);
        if let Err(error) = written {
            self.give_up(pair, &error);
        }
    }

    /// Leaves a pair to the agent that could not be written, such as when a map is full.
    fn give_up(&mut self, pair: &Pair, error: &aya::maps::MapError) {
        let (source, destination) = (&pair.source, pair.destination);
        tracing::warn!(%error, %source, %destination, "the kernel takes no more verdicts: connections go through the agent");
        let given = std::mem::take(self.pairs.entry(pair.clone()).or_default());
        for verdict in &given.verdicts {
            if let Some(needed) = self.needed.get_mut(verdict) {
                *needed -= 1;
            }
        }
        self.needed.retain(|_, needed| *needed > 0);
        for action in plan(&given, &Entries::default(), |verdict| {
            self.needed.contains_key(verdict)
        }) {
            if let Err(error) = apply(&mut self.verdicts, action) {
                tracing::error!(%error, %source, %destination, "cannot take a verdict back; it ends with this agent's lease");
            }
        }
    }

    /// Whether a connection that goes from app to app may go on: the app's policies let the client in, who is who it was when
    /// the connection began.
    fn judge(&self, mesh: &Mesh, connection: &DirectConnection) -> Verdict {
        let known = |pod: &Arc<Pod>| mesh.workload(&pod.uid).cloned();
        let source = self.pods.load().get(&connection.source).and_then(known);
        let source = source.or_else(|| self.flows.source_of(connection));
        let workload = self.pod_at(connection.app.ip()).as_ref().and_then(known);
        match (source, workload) {
            (Some(source), Some(workload)) => match self.believed(&source).and(self.believed(&workload)) {
                Ok(()) => reconsider(mesh, &source, &workload, connection.app),
                Err(why) => Verdict::Deny(why),
            },
            _ => Verdict::Deny(Refusal::UnknownWorkload),
        }
    }

    /// Whether others would believe a pod its certificate. One that has none, or whose time is over, had one when its
    /// connections began; but one that was revoked, or whose root is gone, is as good as another's.
    fn believed(&self, workload: &Workload) -> Result<(), Refusal> {
        let svids = &self.shared.svids;
        let Some(svid) = svids.current(&workload.identity) else {
            return Ok(());
        };
        let accepted = svids
            .trust()
            .accepts(&svid.cert.cert, Purpose::Client, UnixTime::now());
        accepted.map_err(|rejected| Refusal::CertificateRejected {
            identity: workload.identity.clone(),
            revoked: matches!(rejected, Rejected::Revoked { .. }),
        })
    }

    fn pod_at(&self, address: IpAddr) -> Option<Arc<Pod>> {
        let pods = self.pods.load();
        let found = pods.values().find(|pod| pod.addresses.contains(&address));
        found.cloned()
    }

    /// Ends a connection in the client's pod, or in the app's where the client's is none of ours any more: the other end gets
    /// a reset.
    fn end(&self, connection: &DirectConnection, why: Refusal) {
        let (client, app) = (connection.client, connection.app);
        let source = self.pods.load().get(&connection.source).cloned();
        // First: the programs report the end at once.
        self.flows.refuse(connection, why);
        let ended = match (source, self.pod_at(app.ip())) {
            (Some(pod), _) => pod
                .netns
                .enter(|| netlink::destroy((client, app), connection.client_socket)),
            (None, Some(pod)) => pod
                .netns
                .enter(|| netlink::destroy((app, client), connection.app_socket)),
            (None, None) => return,
        };
        if let Err(error) = ended {
            tracing::error!(%error, client = %connection.client, app = %connection.app, "cannot end a connection that is refused now");
        }
    }
}

fn apply(verdicts: &mut Verdicts, action: Action) -> Result<(), aya::maps::MapError> {
    match action {
        Action::Revoke(verdict) => verdicts.revoke(verdict),
        Action::Unspread(service) => verdicts.unspread(service),
        Action::Unchoose(service, number) => verdicts.unchoose(service, number),
        Action::Allow(verdict) => verdicts.allow(verdict),
        Action::Choose(service, number, app) => verdicts.choose(service, number, app),
        Action::Spread(service, endpoints) => verdicts.spread(service, endpoints),
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a lease ends that begins now.
pub(super) fn lease(length: Duration) -> Duration {
    verdicts::now() + length
}
