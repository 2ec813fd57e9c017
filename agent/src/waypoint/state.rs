//! What the waypoint can tell of itself: the status that people and the kubelet ask for.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{Shared, WaypointConfig};
use crate::{
    admin::StatusSource,
    feed::client::FeedState,
    telemetry::{
        ExplainError, Explanation, explain,
        status::{CertificateStatus, ConnectionsStatus, MeshStatus, Status, TrustStatus, rfc3339},
    },
};

/// The waypoint's own view of itself.
pub(super) struct State {
    name: String,
    source: String,
    workers: usize,
    config: serde_json::Value,
    started: Instant,
    shared: Arc<Shared>,
    /// How things stand with the controller, if there is one.
    feed: Option<Arc<Mutex<FeedState>>>,
    changing: Mutex<Changing>,
    ended: CancellationToken,
}

/// What the control loop reports.
#[derive(Default)]
struct Changing {
    revision: u64,
    loaded_at: Option<SystemTime>,
    last_error: Option<String>,
    /// Why this pod is not found in the mesh.
    lost: Option<String>,
    listening: bool,
    draining: bool,
}

impl State {
    pub(super) fn new(
        config: &WaypointConfig,
        shared: &Arc<Shared>,
        feed: Option<Arc<Mutex<FeedState>>>,
    ) -> Self {
        Self {
            name: config.gateway.to_string(),
            source: config.source.to_string(),
            workers: config.workers.into(),
            config: config_dump(config),
            started: Instant::now(),
            shared: Arc::clone(shared),
            feed,
            changing: Mutex::default(),
            ended: CancellationToken::new(),
        }
    }

    /// Set when the waypoint's own ports are to be closed.
    pub(super) fn drained(&self) -> CancellationToken {
        self.ended.clone()
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    pub(super) fn mesh_taken(&self) {
        let mut changing = self.changing();
        changing.revision += 1;
        changing.loaded_at = Some(SystemTime::now());
        changing.last_error = None;
    }

    pub(super) fn mesh_rejected(&self, error: String) {
        self.changing().last_error = Some(error);
    }

    /// Whether this pod is in the mesh.
    pub(super) fn found(&self, found: Result<(), String>) {
        self.changing().lost = found.err();
    }

    pub(super) fn listening(&self) {
        self.changing().listening = true;
    }

    pub(super) fn draining(&self) {
        self.changing().draining = true;
    }

    fn mesh_status(&self, changing: &Changing) -> MeshStatus {
        let seen = self.shared.seen.load();
        let mesh = seen.as_ref().map(|seen| &seen.mesh);
        let age = changing.loaded_at.and_then(|at| at.elapsed().ok());
        MeshStatus {
            source: self.source.clone(),
            revision: changing.revision,
            loaded_at: changing.loaded_at.map(rfc3339),
            age_seconds: age.map(|age| age.as_secs()),
            workloads: mesh.map_or(0, |mesh| mesh.workloads().len()),
            services: mesh.map_or(0, |mesh| mesh.services().len()),
            policies: mesh.map_or(0, |mesh| mesh.policies().len()),
            last_error: changing.last_error.clone().or_else(|| self.feed_error()),
        }
    }

    fn feed_error(&self) -> Option<String> {
        let state = self.feed.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        state.error.clone()
    }

    fn trust(&self) -> TrustStatus {
        let trust = self.shared.svids.trust();
        TrustStatus {
            roots: trust.bundle().len(),
            revocation_lists: trust.revocations().len(),
            sessions: self.shared.svids.sessions().len(),
        }
    }

    fn certificates(&self) -> Vec<CertificateStatus> {
        let now = SystemTime::now();
        let all = self.shared.svids.all();
        let status = all.iter().map(|svid| {
            CertificateStatus::new(
                svid.id.as_str(),
                &svid.serial,
                svid.issued_at,
                svid.expires_at,
                now,
            )
        });
        status.collect()
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusSource for State {
    fn role(&self) -> &'static str {
        "waypoint"
    }

    fn explain(&self, from: &str, to: &str) -> Result<Explanation, ExplainError> {
        let seen = self.shared.seen.load_full().ok_or(ExplainError::NoMesh)?;
        explain(&seen.mesh, from, to, |_| None)
    }

    fn config(&self) -> serde_json::Value {
        self.config.clone()
    }

    fn status(&self) -> Status {
        let ready = self.ready();
        let changing = self.changing();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: self.name.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: ready.is_ok(),
            reason: ready.err(),
            workers: self.workers,
            mesh: self.mesh_status(&changing),
            certificates: self.certificates(),
            trust: self.trust(),
            connections: ConnectionsStatus {
                open: self.shared.connections.len(),
                list: Vec::new(),
            },
            ..Status::default()
        }
    }

    fn ready(&self) -> Result<(), String> {
        let seen = self.shared.seen.load_full();
        let changing = self.changing();
        let Some(seen) = seen else {
            let lost = changing.lost.clone();
            return Err(lost.unwrap_or_else(|| "there is no mesh yet".to_owned()));
        };
        if self.shared.svids.current(&seen.identity).is_none() {
            return Err(format!("no certificate for {} yet", seen.identity));
        }
        match (changing.listening, changing.draining) {
            (_, true) => Err("it is shutting down".to_owned()),
            (false, _) => Err("it does not take tunnels yet".to_owned()),
            (true, false) => Ok(()),
        }
    }
}

/// The configuration in force, as flags name it.
fn config_dump(config: &WaypointConfig) -> serde_json::Value {
    let settings = &config.settings;
    serde_json::json!({
        "gateway": config.gateway.to_string(),
        "address": config.addresses,
        "listen": config.listen,
        "source": config.source.dump(),
        "workers": config.workers,
        "drainTimeoutSeconds": settings.drain_timeout.as_secs(),
        "maxConnectionAgeSeconds": settings.max_connection_age.as_secs(),
        "sniffTimeoutMillis": settings.sniff_timeout.as_millis(),
        "headerTimeoutSeconds": settings.header_timeout.as_secs(),
        "idleTimeoutSeconds": settings.idle_timeout.as_secs(),
        "pathNormalization": format!("{:?}", settings.normalization),
        "limits": config.limits.dump(),
        "adminAddress": config.admin.admin,
        "metricsAddress": config.admin.metrics,
        "readyAddress": config.admin.ready,
    })
}
