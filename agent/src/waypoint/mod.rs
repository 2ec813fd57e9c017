//! The waypoint: layer 7 for the services and pods of a namespace.
//!
//! Read it in the order of a request: `listen` (a worker takes tunnels), `tunnel` (what each of its streams asks for), `sniff`
//! (what is spoken in it), `downstream` (a client's connection), `request` (the phases of one request, top to bottom), `upstream` (the
//! connections to endpoints). `tcp` carries what is no HTTP.

mod balance;
mod body;
mod client;
mod control;
mod downstream;
pub mod grpc;
pub mod headers;
pub mod jwt;
mod listen;
mod mirror;
mod outgoing;
mod outliers;
mod record;
mod reply;
mod request;
mod send;
mod sniff;
mod state;
mod tcp;
#[cfg(test)]
mod tests;
mod tunnel;
mod upgrade;
mod upstream;

use std::{
    cell::Cell,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use self::{
    control::Control,
    jwt::{Authenticator, Fetcher},
    listen::Workers,
    state::State,
    tcp::Connections,
};
use crate::{
    admin::{Admin, AdminAddrs, Listeners},
    hbone,
    kernel::memory::give_back_regularly,
    limits::{LimitSettings, Limits, Places, PodPlaces},
    mesh::{HBONE_PORT, Mesh, SpiffeId, SpiffeIdError, TrustDomain, Workload, http::Normalization},
    net::{schedule, tls},
    source::{Source, SourceConfig},
    svid::{StoreSettings, SvidStore},
    telemetry::{LogFilter, Metrics},
};

/// What the waypoint is started with.
#[derive(Clone, Debug)]
pub struct WaypointConfig {
    /// Whose waypoint it is.
    pub gateway: GatewayName,
    /// The pod's own addresses: by them it finds itself in the mesh.
    pub addresses: Vec<IpAddr>,
    /// Where tunnels are taken.
    pub listen: SocketAddr,
    /// Where the mesh and certificates come from.
    pub source: SourceConfig,
    /// Threads that carry requests.
    pub workers: u16,
    /// How requests are handled.
    pub settings: Settings,
    /// What bounds peers.
    pub limits: LimitSettings,
    /// How many files the process may have open.
    pub open_files: usize,
    /// Where the waypoint's own ports are.
    pub admin: AdminAddrs,
}

/// How requests are handled.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long open requests may go on after the shutdown began.
    pub drain_timeout: Duration,
    /// After this, and up to a tenth less, a client's connection is told to go elsewhere: replicas that are new get their share.
    pub max_connection_age: Duration,
    /// How long a client may be silent at the start of a connection on a port of which nothing is known, before it is taken for
    /// one that waits for the server's first word.
    pub sniff_timeout: Duration,
    /// How long a client may take for the head of a request once it has begun it.
    pub header_timeout: Duration,
    /// How long a client's connection may be without a request.
    pub idle_timeout: Duration,
    /// How paths are normalised, before anything is asked of them.
    pub normalization: Normalization,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            drain_timeout: Duration::from_secs(30),
            max_connection_age: Duration::from_secs(600),
            sniff_timeout: Duration::from_millis(100),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(3600),
            normalization: Normalization::MergeSlashes,
        }
    }
}

/// A Gateway's namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name; its service and its service account are called so.
    pub name: Arc<str>,
}

impl GatewayName {
    /// Who the waypoint is.
    ///
    /// # Errors
    /// When the names are none that an identity can hold.
    pub fn identity(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::new(trust_domain, &self.namespace, &self.name)
    }
}

impl fmt::Display for GatewayName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What every request needs.
struct Shared {
    /// None before the first mesh in which the waypoint's own pod is.
    seen: ArcSwapOption<Seen>,
    svids: SvidStore,
    metrics: Metrics,
    settings: Settings,
    /// Of tunnels, in both directions.
    tunnel_settings: hbone::Settings,
    places: Arc<PodPlaces>,
    authenticator: Authenticator,
    /// Connections that are no requests.
    connections: Connections,
}

/// The mesh in force, as this waypoint sees it.
struct Seen {
    mesh: Arc<Mesh>,
    /// The waypoint's own pod.
    own: Arc<Workload>,
    /// Who the waypoint is.
    identity: SpiffeId,
}

/// Runs the waypoint until `shutdown` is cancelled and its requests have ended, or their time is up.
///
/// # Errors
/// When something that it cannot run without is missing; the text says what, and the mend.
pub async fn run(
    config: WaypointConfig,
    metrics: Metrics,
    filter: Option<LogFilter>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let ports = Listeners::bind(&config.admin).await?;
    let mut feed = tokio::select! {
        opened = Source::open(&config.source, "") => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let svids = SvidStore::spawn(feed.sources(), StoreSettings::default());
    feed.watch_trust(svids.clone());
    let (limits, too_many) = Limits::new(&config.limits, config.open_files);
    too_many.iter().for_each(|text| tracing::warn!("{text}"));
    let tunnel_settings = hbone::Settings {
        drain_timeout: config.settings.drain_timeout,
        ..config.limits.tunnels()
    };
    let buffers = tunnel_settings.buffers.clone();
    metrics.count_limits(Box::new(move || buffers.refused()));
    let shared = Arc::new(Shared {
        seen: ArcSwapOption::empty(),
        svids,
        metrics,
        settings: config.settings.clone(),
        tunnel_settings,
        places: Places::new(limits).of_pod(),
        authenticator: Authenticator::new(
            Fetcher::new(Handle::current(), []).context("prepare to fetch keys of tokens")?,
        ),
        connections: Connections::default(),
    });
    let state = Arc::new(State::new(&config, &shared, feed.state(&shared.metrics)));
    let admin = Admin {
        source: Arc::clone(&state) as _,
        metrics: shared.metrics.clone(),
        filter,
        quit: shutdown.clone(),
    };
    let ports = tokio::spawn(ports.serve(admin, state.drained()));
    let mut control = Control::new(&config, Arc::clone(&shared), Arc::clone(&state));
    if control.prepare(&mut feed, &shutdown).await {
        let workers = Workers::start(&config, &shared, &shutdown)
            .with_context(|| format!("take tunnels at {}", config.listen))?;
        state.listening();
        tokio::spawn(give_back_regularly(workers.on_each()));
        tokio::spawn(schedule::adapt(workers.on_each()));
        control.run(&mut feed, &shutdown).await;
        tracing::info!("shutting down: requests under way go on to their end");
        state.draining();
        tokio::task::spawn_blocking(move || workers.join()).await?;
    }
    state.end();
    let _ = ports.await;
    Ok(())
}

/// Where tunnels are taken if nothing is said: on every address of the pod.
pub fn default_listen() -> SocketAddr {
    SocketAddr::from(([0_u16; 8], HBONE_PORT))
}

/// A number that is as good as drawn: each thread has a sequence of its own (SplitMix64) that begins anywhere. Nothing secret
/// rests on it.
fn draw() -> u64 {
    thread_local! {
        // Without randomness no handshake was had either.
        static STATE: Cell<u64> = Cell::new(tls::random().map_or(0, u64::from_ne_bytes));
    }
    let state = STATE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    STATE.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
