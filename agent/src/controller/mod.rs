//! The controller: watches Kubernetes, compiles what it says into a mesh, serves that to every agent, and signs their pods'
//! certificates.
//!
//! Read it in the order of a change: `watch` hears of it, `compile` says what it means, `publish` encodes it, and
//! `serve` answers agents from that. Every replica does all of this; only one at a time (`lease`) writes to the cluster.

mod allowance;
pub mod analyze;
mod ca;
pub mod cleared;
pub mod compile;
mod conditions;
mod counts;
mod lease;
mod placement;
mod publish;
mod retries;
mod root;
mod serve;
mod status;
mod statuses;
mod tokens;
mod watch;
mod waypoint_accounts;
pub mod waypoints;

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use http::StatusCode;
use kube::Client;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch as latest},
    time::{interval, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::ca::AgentAccount;
use self::{
    ca::Authority,
    compile::{Change, Compiler, Diagnostic, Settings},
    conditions::Statuses,
    counts::Counts,
    placement::Placement,
    publish::Publisher,
    root::{Root, RootPlace},
    serve::Services,
    tokens::Tokens,
    waypoint_accounts::WaypointAccounts,
};
use crate::{
    admin::{Page, Port, respond, serve_pages},
    cluster::{
        client::{Access, connect},
        objects::Kind,
    },
    feed::{server::Server, store::Store},
    kernel::memory::give_back_regularly,
    mesh::TrustDomain,
    net::chain,
    rpc::{self, Clients, ServerTls},
    svid::LocalCa,
};

/// After a change it is waited so long for more of them,
const QUIET: Duration = Duration::from_millis(50);
/// and no longer than this.
const LATEST: Duration = Duration::from_millis(500);
/// How long before its end the server's certificate is replaced.
const SERVER_CERT: Duration = Duration::from_secs(6 * 3600);
/// The pause after the API has failed at the start.
const AGAIN: Duration = Duration::from_secs(2);

/// What the controller is started with.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// How the Kubernetes API is reached.
    pub access: Access,
    /// Where agents ask for the mesh and for certificates.
    pub listen: SocketAddr,
    /// Where Prometheus and the kubelet ask.
    pub http: SocketAddr,
    /// The namespace that it runs in.
    pub namespace: String,
    /// The name of the Service in front of it: its certificate is for that.
    pub service: String,
    /// This replica's name.
    pub replica: String,
    /// What objects do not say.
    pub settings: Settings,
    /// The Secret with the root.
    pub ca_secret: String,
    /// The ConfigMap that says whom to trust.
    pub root_config_map: String,
    /// Tokens are accepted that are for one of these.
    pub audiences: Vec<String>,
    /// The service accounts that may ask for others' certificates.
    pub agents: Vec<AgentAccount>,
    /// How waypoints are deployed; none where Gateways become none.
    pub waypoints: Option<waypoints::Settings>,
}

/// Runs the controller until `shutdown`.
///
/// # Errors
/// When something that it cannot run without is missing; the text says what, and the mend.
pub async fn run(config: ControllerConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    let client = connect(&config.access).await?;
    let listener = bind(config.listen, "--listen").await?;
    let pages = bind(config.http, "--http").await?;
    let place = root_place(&config);
    let Some(root) = first_root(&place, &client, &shutdown).await else {
        return Ok(());
    };
    let (store, placement) = (Store::default(), Placement::default());
    let counts = Arc::new(Counts::default());
    let waypoints = WaypointAccounts::default();
    let names = server_names(&config);
    let tls = server_tls(&root, &config, &names)?;
    let authority = Arc::new(authority(&config, root.ca, &placement));
    let services = Arc::new(Services {
        reviewer: Tokens::new(client.clone(), config.audiences.clone()),
        authority: Arc::clone(&authority),
        waypoints: waypoints.clone(),
        feed: Server::new(store.clone()),
        counts: Arc::clone(&counts),
    });
    let (diagnostics, wrong) = latest::channel(Arc::default());
    let (statuses, to_say) = latest::channel(Arc::default());
    let (wanted, to_deploy) = latest::channel(None);
    let (trusted, roots) = latest::channel(root.trust.to_pem());
    let tasks = TaskTracker::new();
    let compiling = Compiling {
        compiler: Compiler::new(config.settings.clone()),
        publisher: Publisher::new(
            store.clone(),
            placement,
            waypoints,
            config.settings.root_namespace.clone(),
        ),
        counts: Arc::clone(&counts),
        wrong: Arc::default(),
        diagnostics,
        statuses,
        wanted,
    };
    tasks.spawn(until(shutdown.clone(), compiling.run(watch::watch(&client))));
    let keeping = Keeping {
        place,
        client: client.clone(),
        authority,
        tls: tls.clone(),
        names,
        content: root.content,
        trusted,
    };
    tasks.spawn(until(shutdown.clone(), keeping.run()));
    let writing = Writing {
        client,
        wrong,
        statuses: to_say,
        waypoints: to_deploy,
        roots,
    };
    writing.spawn(&config, &counts, &tasks, &shutdown);
    tasks.spawn(until(shutdown.clone(), give_back_regularly(|_| {})));
    let page = page(Arc::clone(&services), store);
    tracing::info!(address = %config.listen, "serving the mesh and certificates");
    tokio::join!(
        rpc::serve(listener, tls, services, shutdown.clone()),
        serve_pages(pages, Port::Metrics, page, &tasks, &shutdown),
    );
    tasks.close();
    tasks.wait().await;
    Ok(())
}

fn root_place(config: &ControllerConfig) -> RootPlace {
    RootPlace {
        namespace: config.namespace.clone(),
        secret: config.ca_secret.clone(),
        config_map: config.root_config_map.clone(),
        trust_domain: config.settings.trust_domain.clone(),
    }
}

fn authority(config: &ControllerConfig, ca: LocalCa, placement: &Placement) -> Authority {
    Authority::new(
        ca,
        config.settings.trust_domain.clone(),
        config.settings.cluster.clone(),
        config.agents.clone(),
        placement.clone(),
    )
}

/// What one replica does for all: what it hears of.
struct Writing {
    client: Client,
    wrong: latest::Receiver<Wrong>,
    statuses: latest::Receiver<Statuses>,
    waypoints: latest::Receiver<Option<Arc<waypoints::Wanted>>>,
    roots: latest::Receiver<String>,
}

impl Writing {
    /// Takes the Lease when it can, and writes while it has it.
    fn spawn(
        self,
        config: &ControllerConfig,
        counts: &Arc<Counts>,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        let lease = lease::Lease::new(&self.client, &config.namespace, &config.replica);
        let (leads, leading) = latest::channel(false);
        tasks.spawn(lease::hold(lease, leads, Arc::clone(counts), shutdown.clone()));
        let writing = self.run(leading, config.waypoints.clone());
        tasks.spawn(until(shutdown.clone(), writing));
    }

    async fn run(self, leading: latest::Receiver<bool>, settings: Option<waypoints::Settings>) {
        let client = self.client;
        let events = status::write(client.clone(), leading.clone(), self.wrong);
        let of_objects = conditions::write(client.clone(), leading.clone(), self.statuses);
        let (statuses, wanted) = latest::channel(Statuses::default());
        let conditions = conditions::write(client.clone(), leading.clone(), wanted);
        let inputs = waypoints::Inputs {
            leads: leading,
            wanted: self.waypoints,
            roots: self.roots,
        };
        let deploying = async {
            match settings {
                Some(settings) => waypoints::deploy(client, settings, inputs, statuses).await,
                None => drop(statuses),
            }
        };
        tokio::join!(events, of_objects, conditions, deploying);
    }
}

async fn until(shutdown: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("listen on {address}: free the port, or choose another one by {flag}"))
}

/// The API may not answer yet; the kubelet would only start us again.
async fn first_root(place: &RootPlace, client: &Client, shutdown: &CancellationToken) -> Option<Root> {
    loop {
        let made = async {
            let root = place.read_or_make(client).await?;
            place.publish(client, &root).await?;
            Ok::<_, root::RootError>(root)
        };
        let made = tokio::select! {
            () = shutdown.cancelled() => return None,
            made = made => made,
        };
        match made {
            Ok(root) => return Some(root),
            Err(error) => tracing::error!(error = chain(&error), "no root for the mesh yet; trying again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = sleep(AGAIN) => {}
        }
    }
}

/// All names that the Service has in the cluster, and the one that istiod's clients expect of a discovery service.
fn server_names(config: &ControllerConfig) -> Vec<String> {
    let ControllerConfig {
        service, namespace, ..
    } = config;
    let domain = &config.settings.cluster_domain;
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{domain}"),
        format!("{service}.{namespace}"),
        service.clone(),
        "istiod.istio-system.svc".to_owned(),
    ]
}

fn server_tls(root: &Root, config: &ControllerConfig, names: &[String]) -> anyhow::Result<ServerTls> {
    let cert = root
        .ca
        .server_cert(names)
        .context("make the server's own certificate")?;
    let clients = clients(root, &config.settings.trust_domain);
    Ok(ServerTls::new(cert.chain, cert.key, clients)?)
}

/// Whoever has a certificate of the mesh may show it.
fn clients(root: &Root, trust_domain: &TrustDomain) -> Option<Clients> {
    Some(Clients {
        trust: root.trust.clone(),
        trust_domain: trust_domain.clone(),
    })
}

type Asked = http::Request<hyper::body::Incoming>;

fn page(services: Arc<Services>, store: Store) -> impl Fn(&Asked) -> Page + Clone {
    move |request: &Asked| answer(request.uri().path(), &services, &store)
}

fn answer(path: &str, services: &Services, store: &Store) -> Page {
    const TEXT: &str = "text/plain; charset=utf-8";
    match path {
        "/metrics" | "/stats/prometheus" => {
            let page = services.counts.page(services.feed.counts(), store);
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
        }
        "/healthz" => respond(StatusCode::OK, TEXT, "alive\n"),
        "/healthz/ready" if store.revision().borrow().is_some() => respond(StatusCode::OK, TEXT, "ready\n"),
        "/healthz/ready" => {
            let why = "not every kind of object has been listed yet\n";
            respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, why)
        }
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "try /metrics, /healthz or /healthz/ready\n",
        ),
    }
}

/// What is wrong with objects, at the moment.
type Wrong = Arc<Vec<Diagnostic>>;

/// From changes to what the feed serves.
struct Compiling {
    compiler: Compiler,
    publisher: Publisher,
    counts: Arc<Counts>,
    /// As they were last.
    wrong: Wrong,
    diagnostics: latest::Sender<Wrong>,
    statuses: latest::Sender<Statuses>,
    wanted: latest::Sender<Option<Arc<waypoints::Wanted>>>,
}

impl Compiling {
    async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut missing: HashSet<Kind> = Kind::ALL.into();
        while let Some(change) = changes.recv().await {
            let mut worth = self.take(change, &mut missing);
            let latest = tokio::time::Instant::now() + LATEST;
            let mut quiet = tokio::time::Instant::now() + QUIET;
            while let Ok(Some(change)) = timeout_at(quiet.min(latest), changes.recv()).await {
                worth |= self.take(change, &mut missing);
                quiet = tokio::time::Instant::now() + QUIET;
            }
            // Half of the objects may mean something else than all of them.
            if worth && missing.is_empty() {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "the controller's runtime has threads to spare"
                )]
                tokio::task::block_in_place(|| self.turn());
            }
        }
    }

    fn take(&mut self, change: Change, missing: &mut HashSet<Kind>) -> bool {
        let mut worth = false;
        if let Change::Listed(kind, _) = &change {
            worth = missing.remove(kind) && missing.is_empty();
        }
        self.compiler.apply(change) || worth
    }

    fn turn(&mut self) {
        let since = Instant::now();
        let mut delta = self.compiler.compile();
        let (changed, removed) = (delta.workloads.len(), delta.removed_workloads.len());
        let diagnostics = delta.diagnostics.take();
        let gateways = delta.waypoints.clone();
        self.publisher.publish(&self.compiler, delta);
        self.say_waypoints(gateways);
        self.counts.compiled(since.elapsed());
        tracing::debug!(changed, removed, took = ?since.elapsed(), "compiled");
        if let Some(diagnostics) = diagnostics {
            self.counts.diagnostics(diagnostics.len());
            self.wrong = Arc::new(diagnostics);
            self.diagnostics.send_replace(Arc::clone(&self.wrong));
        }
        self.say_statuses();
    }
}

impl Compiling {
    /// Says which waypoints are to be; `gateways` where they have changed.
    fn say_statuses(&self) {
        let new = statuses::statuses(&self.compiler, &self.wrong);
        self.statuses.send_if_modified(|before| {
            let differs = **before != new;
            if differs {
                *before = Arc::new(new);
            }
            differs
        });
    }

    fn say_waypoints(&self, gateways: Option<Vec<compile::WaypointGateway>>) {
        let classes = self.compiler.own_classes();
        self.wanted.send_if_modified(|wanted| {
            let before = || {
                let before = wanted.as_deref();
                before.map(|it| it.gateways.clone()).unwrap_or_default()
            };
            let new = waypoints::Wanted {
                gateways: gateways.unwrap_or_else(before),
                classes,
            };
            let differs = wanted.as_deref() != Some(&new);
            if differs {
                *wanted = Some(Arc::new(new));
            }
            differs
        });
    }
}

/// Keeps the root, its ConfigMap and our own certificate as they should be.
struct Keeping {
    place: RootPlace,
    client: Client,
    authority: Arc<Authority>,
    tls: ServerTls,
    names: Vec<String>,
    content: Vec<u8>,
    /// Whom to trust, for those who hear of it by us alone.
    trusted: latest::Sender<String>,
}

impl Keeping {
    async fn run(mut self) {
        let mut turns = interval(root::PERIOD);
        let mut renewed = Instant::now();
        loop {
            turns.tick().await;
            if let Err(error) = self.turn(&mut renewed).await {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the root could not be looked at; what is in force stays"
                );
            }
        }
    }

    async fn turn(&mut self, renewed: &mut Instant) -> anyhow::Result<()> {
        let root = self.place.read_or_make(&self.client).await?;
        // First whom to trust, so that nobody meets a certificate of a root that it does not know yet.
        if self.place.publish(&self.client, &root).await? {
            tracing::info!("the roots of the mesh have changed");
        }
        let trust = root.trust.to_pem();
        self.trusted.send_if_modified(|said| {
            let differs = *said != trust;
            *said = trust;
            differs
        });
        let is_new = root.content != self.content;
        if is_new || renewed.elapsed() > SERVER_CERT {
            let cert = root.ca.server_cert(&self.names)?;
            let clients = clients(&root, &self.place.trust_domain);
            self.tls.replace(cert.chain, cert.key, clients)?;
            *renewed = Instant::now();
        }
        if is_new {
            tracing::info!("another root signs from now on");
            self.authority.replace(root.ca);
            self.content = root.content;
        }
        Ok(())
    }
}
