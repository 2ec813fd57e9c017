//! The node agent: captures this node's pods and carries their connections.
//!
//! Read it in the order of a connection: `outbound` (an app dials), `inbound` (the other agent takes it); `worker` is
//! the thread both run on; `enroll` decides which pods are captured; `dial` makes every socket that leaves.

mod connections;
mod control;
mod dial;
mod dns;
mod draws;
mod enroll;
mod exposed;
mod inbound;
mod node_netns;
mod outbound;
mod pod;
pub mod pods;
mod same_node;
mod state;
mod target;
mod worker;

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    connections::Connections,
    control::{Control, Kept, desired, identities},
    enroll::Enrolment,
    exposed::Exposed,
    pods::{
        Listing, PodSettings, Pods, View, listing,
        nri::{Captures, Plugin, Sandboxes},
        report::{Report, Reporter},
    },
    same_node::{Asking, Known, SameNode},
    state::State,
    worker::Drain,
};
use crate::{
    admin::{Admin, AdminAddrs, AdminError, Listeners},
    feed::{Lookups, OnDemand, on_demand},
    hbone,
    kernel::{
        events::log_decisions,
        load::{Kernel, LoadConfig},
        maps::PodsCgroup,
        memory::give_back_regularly,
        pins::Pins,
        preflight, selftest,
        takeover::{Claim, ClaimError},
    },
    limits::{LimitSettings, Limits, Places},
    mesh::Mesh,
    net::{lanes::Lanes, netns::Netns, schedule},
    source::{Source, SourceConfig, Update},
    svid::{StoreSettings, SvidStore},
    telemetry::{LogFilter, Metrics, status::NriStatus},
};

/// How long an agent that is to replace another waits for its pods' certificates before it asks for its place.
const CERTIFICATES: Duration = Duration::from_secs(10);
/// How long an agent that ends, or is being replaced, may take to close its ports.
const PORTS: Duration = Duration::from_secs(2);

/// What the agent is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node's name in the mesh.
    pub node: String,
    /// Where the mesh and certificates come from.
    pub source: SourceConfig,
    /// Where the programs are attached and pinned.
    pub load: LoadConfig,
    /// The cgroup under which the node's pods are; the kubelet's where none is given.
    pub pods_cgroup: Option<PathBuf>,
    /// What the API shows of this node; without it the mesh file says which pods are captured, and where they are.
    pub listing: Option<Showing>,
    /// Where the container runtime tells of pods that start; it is asked where the API says which are to be captured.
    pub nri_socket: Option<PathBuf>,
    /// The UID of the agent's own pod, where it is in one: its node's runtime knows it.
    pub pod_uid: Option<String>,
    /// The node's own network namespace.
    pub node_netns: PathBuf,
    /// An address of the node, which that namespace must have.
    pub node_ip: Option<IpAddr>,
    /// For how long pairs of pods of this node go on from app to app when the agent has gone.
    pub same_node_lease: Duration,
    /// Whether to replace an agent that runs.
    pub takeover: bool,
    /// Threads of the data plane.
    pub workers: u16,
    /// How long open connections may go on after shutdown began.
    pub drain_timeout: Duration,
    /// Whether pods' DNS queries are captured, where a pod does not say otherwise.
    pub dns_capture: bool,
    /// What bounds peers and pods.
    pub limits: LimitSettings,
    /// Files that the process may open.
    pub open_files: usize,
    /// The agent's own ports.
    pub admin: AdminAddrs,
}

/// Where what the API shows of this node comes from, and where goes what is to be said there.
#[derive(Clone, Debug)]
pub struct Showing {
    /// The cluster's name, the first part of workloads' uids.
    pub cluster: String,
    /// The namespace that weft itself runs in: its pods are never captured.
    pub own_namespace: String,
    /// The newest; nothing until everything has been shown once.
    pub listing: watch::Receiver<Option<Arc<Listing>>>,
    /// Which pods are captured; nothing until the agent has looked at them.
    pub reports: watch::Sender<Option<Arc<Report>>>,
}

impl Showing {
    /// Watches the pods of the node of this name, and tells the API which are captured. Within a runtime.
    pub fn of(
        client: kube::Client,
        node: &str,
        (cluster, own_namespace): (&str, &str),
        startup_taint: Option<String>,
    ) -> Self {
        let listing = listing::watch(client.clone(), node);
        let (reports, said) = watch::channel(None);
        let reporter = Reporter {
            client,
            node: node.to_owned(),
            cluster: cluster.to_owned(),
            startup_taint,
        };
        tokio::spawn(reporter.run(listing.clone(), said));
        Self {
            cluster: cluster.to_owned(),
            own_namespace: own_namespace.to_owned(),
            listing,
            reports,
        }
    }
}

/// What every connection needs. Cheap to clone.
#[derive(Clone)]
struct Shared {
    /// The mesh in force; none before the first one.
    mesh: Arc<ArcSwapOption<Mesh>>,
    /// Tells that there is another one.
    meshes: watch::Sender<()>,
    on_demand: OnDemand,
    svids: SvidStore,
    metrics: Metrics,
    connections: Connections,
    /// Where workers ask that a pair may talk from app to app.
    asking: Asking,
    /// What became of the pairs that were asked for.
    same_node: Known,
}

impl Shared {
    fn new(feed: &Source, metrics: Metrics, asking: Asking) -> (Self, Lookups) {
        let (on_demand, lookups) = on_demand();
        let shared = Self {
            mesh: Arc::default(),
            meshes: watch::Sender::new(()),
            on_demand,
            svids: SvidStore::spawn(feed.sources(), StoreSettings::default()),
            metrics,
            connections: Connections::default(),
            asking,
            same_node: Known::default(),
        };
        (shared, lookups)
    }
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
    let config = NodeConfig {
        node_netns: node_netns::find(&config.node_netns, config.node_ip),
        ..config
    };
    let (told, sandboxes) = watch::channel(Arc::default());
    let (mut feed, first, local) = tokio::select! {
        opened = open(&config, sandboxes) => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (asking, pairs) = SameNode::channel();
    let (shared, lookups) = Shared::new(&feed, metrics, asking);
    feed.watch_trust(shared.svids.clone());
    // Last: an agent that cannot start has touched nothing.
    let claim = claim(&config, &shared, &first).await?;
    let ports = bind_ports(&config).await?;
    let mut kernel = Kernel::load(&config.load, claim)?;
    selftest::run(&kernel.socket_states()?)?;

    if let Some(decisions) = kernel.decision_log() {
        tokio::spawn(log_decisions(decisions));
    }
    let (limits, too_many) = Limits::new(&config.limits, config.open_files);
    too_many.iter().for_each(|text| tracing::warn!("{text}"));
    let tunnels = config.limits.tunnels();
    let buffers = tunnels.buffers.clone();
    shared.metrics.count_limits(Box::new(move || buffers.refused()));
    let workers = Workers::start(&config, &kernel, &shared, &tunnels, &shutdown)?;
    let keeping = workers.keep();
    let node = open_node_netns(&config.node_netns);
    let (same_node, inbox) = SameNode::new(shared.clone(), &kernel, node.clone(), pairs)?;
    let mut enrolment = Enrolment::new(kernel, workers.commands.clone(), Places::new(limits))?;
    let pods = pods_cgroup(&config, &enrolment, local.as_ref())?;
    enrolment.set_node(node.as_ref().map(Netns::cookie), pods)?;
    let (nri, captures) = ask_runtime(&config, local.as_ref(), told, &shared.metrics);
    let state = Arc::new(State::new(
        &config,
        &shared,
        enrolment.kernel(),
        feed.state(&shared.metrics),
        nri,
    ));
    let admin = Admin {
        source: Arc::clone(&state) as _,
        metrics: shared.metrics.clone(),
        filter,
        quit: shutdown.clone(),
    };
    let kept = Kept {
        enrolment,
        same_node,
        exposed: Exposed::new(node, shared.metrics.clone()),
        pods: local,
        captures,
    };
    let mut control = Control::new(config, shared, kept, state, admin, shutdown);
    control.serve_ports(ports);
    control.take(first);
    control.run(&mut feed, lookups, inbox).await;
    drop(keeping);
    workers.join();
    control.close_ports().await;
    Ok(())
}

/// The source, its first mesh, and the node's pods. A cluster may take its time to say what is needed.
async fn open(
    config: &NodeConfig,
    sandboxes: watch::Receiver<Arc<Sandboxes>>,
) -> anyhow::Result<(Source, Update, Option<(Pods, Arc<View>)>)> {
    let mut feed = Source::open(&config.source, &config.node).await?;
    let (first, local) = tokio::join!(feed.changed(), find_pods(config, sandboxes));
    let (mut first, local) = (first?, local?);
    if let Some((_, view)) = &local {
        first.local_pods = view.pods.clone();
    }
    Ok((feed, first, local))
}

/// The node's pods, where the API is to say which they are. Waits until it has: whoever does not know which pods are to be
/// captured must not let go of those that an earlier agent has captured.
async fn find_pods(
    config: &NodeConfig,
    sandboxes: watch::Receiver<Arc<Sandboxes>>,
) -> anyhow::Result<Option<(Pods, Arc<View>)>> {
    let Some(showing) = &config.listing else {
        return Ok(None);
    };
    let pods_cgroup = match &config.pods_cgroup {
        Some(path) => preflight::pods_cgroup(Some(path), path)?.map(|found| (path.clone(), found.level)),
        None => None,
    };
    let settings = PodSettings {
        cluster: showing.cluster.clone(),
        own_namespace: showing.own_namespace.clone(),
        pods_cgroup,
        node_netns: config.node_netns.clone(),
    };
    let spawned = Pods::spawn(settings, showing.listing.clone(), sandboxes);
    let mut pods = spawned.context("look for the node's pods")?;
    let first = pods.first().await;
    Ok(Some((pods, first)))
}

/// The cgroup under which the node's pods are: where it is said to be, where a kubelet usually has it, or where they were found.
fn pods_cgroup(
    config: &NodeConfig,
    enrolment: &Enrolment,
    local: Option<&(Pods, Arc<View>)>,
) -> anyhow::Result<Option<PodsCgroup>> {
    let usual = preflight::pods_cgroup(config.pods_cgroup.as_deref(), enrolment.kernel().cgroup_root())?;
    Ok(usual.or_else(|| local?.1.pods_cgroup))
}

/// Begins to ask the container runtime, once there is a view of the node's pods. What is captured is to be said to the sender.
fn ask_runtime(
    config: &NodeConfig,
    local: Option<&(Pods, Arc<View>)>,
    told: watch::Sender<Arc<Sandboxes>>,
    metrics: &Metrics,
) -> (watch::Receiver<NriStatus>, watch::Sender<Captures>) {
    let (status, shown) = watch::channel(NriStatus::default());
    let (captures, captured) = watch::channel(None);
    if let (Some((pods, _)), Some(socket)) = (local, &config.nri_socket) {
        status.send_modify(|status| status.socket = socket.display().to_string());
        let plugin = Plugin {
            socket: socket.clone(),
            own_pod: config.pod_uid.clone(),
            told,
            pods: pods.clone(),
            captures: captured,
            status,
            metrics: metrics.clone(),
        };
        tokio::spawn(plugin.run());
    }
    (shown, captures)
}

/// The network namespace of the node itself. Without it no way between two pods can be proved to stay on the node, and no
/// process of the node is known.
fn open_node_netns(path: &Path) -> Option<Netns> {
    let opened = Netns::open(path);
    opened
        .inspect_err(|error| {
            let path = path.display();
            tracing::warn!(%path, %error, "cannot open the node's network namespace: connections inside the node go through the agent, and STRICT pods refuse the kubelet; has the pod hostPID? See --node-netns");
        })
        .ok()
}

/// The right to write the kernel's maps; from the agent that runs, if this one is to replace it. That one goes on until
/// everything is ready here that can be.
async fn claim(config: &NodeConfig, shared: &Shared, first: &Update) -> anyhow::Result<Claim> {
    preflight::pin_dir(&config.load.pin_dir)?;
    let pins = Pins::new(config.load.pin_dir.clone());
    match Claim::take(&pins) {
        Err(ClaimError::Busy { .. }) if config.takeover => {}
        claim => return Ok(claim?),
    }
    let wanted = identities(
        &first.mesh,
        &desired(&first.mesh, &first.local_pods, config.dns_capture),
    );
    shared.svids.desire(wanted.clone());
    let mut certificates = shared.svids.revision();
    let all = async {
        while !wanted.iter().all(|id| shared.svids.current(id).is_some()) {
            if certificates.changed().await.is_err() {
                break;
            }
        }
    };
    timeout(CERTIFICATES, all).await.context(
        "not every pod has a certificate yet, so the running agent goes on: look for errors of the CA above",
    )?;
    Ok(Claim::take_over(&pins).await?)
}

/// Opens the agent's own ports. An agent that ends or is being replaced closes them at about the time at which it lets go of
/// the maps.
async fn bind_ports(config: &NodeConfig) -> Result<Listeners, AdminError> {
    let deadline = Instant::now() + PORTS;
    loop {
        match Listeners::bind(&config.admin).await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(20)).await,
            bound => return bound,
        }
    }
}

/// The data plane's threads.
struct Workers {
    commands: Vec<tokio::sync::mpsc::Sender<worker::Serve>>,
    lanes: Vec<Lanes>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Workers {
    fn start(
        config: &NodeConfig,
        kernel: &Kernel,
        shared: &Shared,
        tunnels: &hbone::Settings,
        drain: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut workers = Self {
            commands: Vec::new(),
            lanes: Vec::new(),
            threads: Vec::new(),
        };
        for number in 0..config.workers.max(1) {
            let sockets = (kernel.socket_states()?, kernel.dns_servers()?);
            let drain = Drain {
                begins: drain.clone(),
                timeout: config.drain_timeout,
            };
            let started = worker::start(number, shared.clone(), sockets, tunnels.clone(), drain)
                .with_context(|| format!("start worker {number}"))?;
            workers.commands.push(started.commands);
            workers.lanes.push(started.lanes);
            workers.threads.push(started.thread);
        }
        Ok(workers)
    }

    /// Keeps them as they should be until it is dropped: memory that is not needed any more is given back, and they have their
    /// turns as fits what else the node does.
    fn keep(&self) -> JoinSet<()> {
        let (lanes, talking) = (self.lanes.clone(), self.lanes.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(give_back_regularly(move |work| {
            lanes.iter().for_each(|lanes| lanes.on_each(work));
        }));
        tasks.spawn(schedule::adapt(move |work| {
            talking.iter().for_each(|lanes| lanes.on_talk(work));
        }));
        tasks
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

/// The default addresses of the agent's own ports: as Istio's ambient mode has them.
pub fn default_ports() -> AdminAddrs {
    AdminAddrs {
        admin: SocketAddr::from(([127, 0, 0, 1], 15000)),
        metrics: SocketAddr::from(([0, 0, 0, 0], 15020)),
        ready: SocketAddr::from(([0, 0, 0, 0], 15021)),
    }
}
