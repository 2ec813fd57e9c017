//! The node agent: captures this node's pods and carries their connections.
//!
//! Read it in the order of a connection: `outbound` (an app dials), `inbound` (the other agent takes it); `worker` is
//! the thread both run on; `enroll` decides which pods are captured; `dial` makes every socket that leaves.

mod connections;
mod dial;
mod enroll;
mod inbound;
mod outbound;
mod peers;
mod pod;
mod state;
mod target;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::{
    connections::Connections,
    enroll::{Desired, Enrolment},
    state::State,
};
use crate::{
    admin::{Admin, AdminAddrs, Listeners},
    feed::{FeedError, FileWatch, LocalPod, MeshFile},
    kernel::{
        events::log_decisions,
        load::{Kernel, LoadConfig},
        preflight, selftest,
    },
    mesh::{Mesh, TunnelProtocol},
    svid::{CertificateAuthority, LocalCa, StoreSettings, SvidStore},
    telemetry::{LogFilter, Metrics},
};

/// How often what should be is compared with what is, when nothing says that it changed.
const TURN: Duration = Duration::from_secs(1);

/// What the agent is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node's name in the mesh.
    pub node: String,
    /// The mesh.
    pub mesh_file: PathBuf,
    /// Root certificate of the local CA, PEM.
    pub ca_cert: PathBuf,
    /// Its private key, PEM.
    pub ca_key: PathBuf,
    /// Where the programs are attached and pinned.
    pub load: LoadConfig,
    /// Threads of the data plane.
    pub workers: u16,
    /// The agent's own ports.
    pub admin: AdminAddrs,
}

/// What every connection needs. Cheap to clone.
#[derive(Clone)]
struct Shared {
    /// The mesh in force; none before the first one.
    mesh: Arc<ArcSwapOption<Mesh>>,
    svids: SvidStore,
    metrics: Metrics,
    connections: Connections,
}

/// Runs the agent until `shutdown` is cancelled. What is pinned in the kernel stays and refuses.
///
/// # Errors
/// When something that it cannot run without is missing; the text says what, and the mend.
pub async fn run(
    config: NodeConfig,
    metrics: Metrics,
    filter: Option<LogFilter>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    preflight::check()?;
    let ports = Listeners::bind(&config.admin).await?;
    let ca = LocalCa::load(&config.ca_cert, &config.ca_key)?;
    let mut feed = FileWatch::new(&config.mesh_file, &config.node);
    let first = feed.changed().await?;
    // Last: an agent that cannot start has touched nothing.
    let mut kernel = Kernel::load(config.load.clone())?;
    selftest::run(&kernel.socket_states()?)?;

    let shared = Shared {
        mesh: Arc::default(),
        svids: SvidStore::spawn(CertificateAuthority::Local(ca), StoreSettings::default()),
        metrics,
        connections: Connections::default(),
    };
    let decisions = kernel.decision_log();
    let workers = Workers::start(config.workers, &kernel, &shared, &shutdown)?;
    let enrolment = Enrolment::new(kernel, workers.commands.clone())?;
    let state = Arc::new(State::new(&config, &shared, enrolment.kernel()));
    let admin = Admin {
        source: Arc::clone(&state) as _,
        metrics: shared.metrics.clone(),
        filter,
        quit: shutdown.clone(),
    };
    let admin = tokio::spawn(ports.serve(admin, shutdown.clone()));
    if let Some(decisions) = decisions {
        tokio::spawn(log_decisions(decisions));
    }

    let mut control = Control {
        node: config.node,
        shared,
        enrolment,
        state,
        local_pods: Vec::new(),
        desired: BTreeMap::new(),
    };
    control.take(first);
    control.run(&mut feed, &shutdown).await;
    tracing::info!("shutting down: the programs stay pinned and refuse until the next agent");
    workers.join();
    let _ = admin.await;
    Ok(())
}

/// The data plane's threads.
struct Workers {
    commands: Vec<tokio::sync::mpsc::Sender<worker::Serve>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    fn start(
        count: u16,
        kernel: &Kernel,
        shared: &Shared,
        drain: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut workers = Self {
            commands: Vec::new(),
            threads: Vec::new(),
        };
        for number in 0..count.max(1) {
            let sockets = kernel.socket_states()?;
            let (commands, thread) = worker::start(number, shared.clone(), sockets, drain.clone())
                .with_context(|| format!("start worker {number}"))?;
            workers.commands.push(commands);
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    fn join(self) {
        drop(self.commands);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// The control loop: takes meshes, and keeps the captured pods as they should be.
struct Control {
    node: String,
    shared: Shared,
    enrolment: Enrolment,
    state: Arc<State>,
    local_pods: Vec<LocalPod>,
    desired: BTreeMap<Arc<str>, Desired>,
}

impl Control {
    async fn run(&mut self, feed: &mut FileWatch, shutdown: &CancellationToken) {
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut certificates = self.shared.svids.revision();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = turns.tick() => {}
                _ = certificates.changed() => {}
                mesh = feed.changed() => self.changed(mesh),
            }
            self.turn().await;
        }
    }

    fn changed(&mut self, mesh: Result<MeshFile, FeedError>) {
        match mesh {
            Ok(file) => self.take(file),
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                tracing::error!(error, "the mesh was not taken; the running one stays");
                self.shared.metrics.mesh_rejected();
                self.state.mesh_rejected(error);
            }
        }
    }

    /// Puts a mesh in force, and closes the connections that it refuses.
    fn take(&mut self, file: MeshFile) {
        for warning in &file.warnings {
            tracing::warn!(%warning, "the mesh file may not say what is meant");
        }
        let mesh = Arc::new(file.mesh);
        self.local_pods = file.local_pods;
        self.desired = desired(&mesh, &self.local_pods);
        let identity = |uid: &Arc<str>| mesh.workload(uid).map(|workload| workload.identity.clone());
        self.shared
            .svids
            .desire(self.desired.keys().filter_map(identity).collect::<HashSet<_>>());
        self.shared.mesh.store(Some(Arc::clone(&mesh)));
        self.shared.connections.reconsider(&mesh);
        self.shared.metrics.mesh_loaded(SystemTime::now());
        self.shared.metrics.retain(mesh.workloads(), Instant::now());
        self.state.mesh_taken();
        tracing::info!(
            workloads = mesh.workloads().len(),
            services = mesh.services().len(),
            policies = mesh.policies().len(),
            pods = self.desired.len(),
            "mesh taken"
        );
        self.warn_of_a_strange_name(&mesh);
    }

    /// A mesh in which nothing runs on this node, while other nodes have workloads, is most likely a slip of the pen.
    fn warn_of_a_strange_name(&self, mesh: &Mesh) {
        let nodes: BTreeSet<_> = mesh
            .workloads()
            .map(|workload| &*workload.node)
            .filter(|node| !node.is_empty())
            .collect();
        if nodes.is_empty() || nodes.contains(self.node.as_str()) {
            return;
        }
        let node = &self.node;
        let known = nodes.into_iter().take(8).collect::<Vec<_>>().join(", ");
        tracing::warn!("no workload of the mesh is on node {node}: is --node right? It has nodes {known}");
    }

    async fn turn(&mut self) {
        let turn = self.enrolment.turn(&self.desired).await;
        (0..turn.started).for_each(|_| self.shared.metrics.proxy_started());
        (0..turn.stopped).for_each(|_| self.shared.metrics.proxy_stopped());
        let captured = self.enrolment.captured();
        self.shared
            .metrics
            .proxies(captured, self.desired.len().saturating_sub(captured));
        self.shared.metrics.pods(self.desired.len(), captured);
        self.state.pods(&self.desired, &self.enrolment, turn.failed);
    }
}

/// The pods of this node that should be captured: those that are in the mesh and whose namespace is known.
fn desired(mesh: &Mesh, local: &[LocalPod]) -> BTreeMap<Arc<str>, Desired> {
    let desired = |pod: &LocalPod| {
        let workload = mesh.workload(&pod.uid)?;
        let enrolled = workload.tunnel_protocol == TunnelProtocol::Hbone && !workload.host_network;
        enrolled.then(|| {
            let addresses = workload.addresses.iter().map(|ip| ip.to_canonical()).collect();
            let modes = mesh.strict_ports(workload);
            (
                pod.uid.clone(),
                Desired {
                    netns: pod.netns.clone(),
                    addresses,
                    modes,
                },
            )
        })
    };
    local.iter().filter_map(desired).collect()
}

/// The default addresses of the agent's own ports: as Istio's ambient mode has them.
pub fn default_ports() -> AdminAddrs {
    AdminAddrs {
        admin: SocketAddr::from(([127, 0, 0, 1], 15000)),
        metrics: SocketAddr::from(([0, 0, 0, 0], 15020)),
        ready: SocketAddr::from(([0, 0, 0, 0], 15021)),
    }
}
