//! What the agent can tell of itself: the status that people and the kubelet ask for.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use tokio::sync::watch;

use super::{
    NodeConfig, Shared,
    connections::Connection,
    enroll::{Desired, Enrolment, Turn},
    same_node::{Became, Pair, lock},
};
use crate::{
    admin::StatusSource,
    feed::client::FeedState,
    kernel::load::Kernel,
    mesh::{Direction, Mesh, Workload},
    svid::Svid,
    telemetry::{
        ExplainError, Explanation, explain,
        status::{
            CertificateStatus, ConnectionStatus, ConnectionsStatus, MOST_CONNECTIONS_LISTED,
            MOST_PAIRS_LISTED, MeshStatus, NriStatus, PairStatus, PodState, PodStatus, ProgramStatus,
            SameNodeStatus, StartingStatus, Status, TrustStatus, rfc3339,
        },
    },
};

/// The agent's own view of itself.
pub(super) struct State {
    node: String,
    source: String,
    workers: usize,
    started: Instant,
    programs: Vec<ProgramStatus>,
    config: serde_json::Value,
    shared: Shared,
    /// How things stand with the controller, if there is one.
    feed: Option<Arc<Mutex<FeedState>>>,
    /// How things stand with the container runtime.
    nri: watch::Receiver<NriStatus>,
    changing: Mutex<Changing>,
}

/// What the control loop reports.
#[derive(Default)]
struct Changing {
    revision: u64,
    loaded_at: Option<SystemTime>,
    last_error: Option<String>,
    pods: Vec<PodStatus>,
    looked: bool,
    starting: StartingStatus,
    /// Why the programs of an earlier agent are still in charge.
    unsettled: Option<String>,
}

impl State {
    pub(super) fn new(
        config: &NodeConfig,
        shared: &Shared,
        kernel: &Kernel,
        feed: Option<Arc<Mutex<FeedState>>>,
        nri: watch::Receiver<NriStatus>,
    ) -> Self {
        let program = |attached: crate::kernel::load::Attached| ProgramStatus {
            kind: attached.kind.to_owned(),
            name: attached.name.to_owned(),
            attached_to: attached.to,
            id: attached.id,
        };
        Self {
            node: config.node.clone(),
            source: config.source.to_string(),
            workers: config.workers.into(),
            started: Instant::now(),
            config: config_dump(config),
            programs: kernel.attached().into_iter().map(program).collect(),
            shared: shared.clone(),
            feed,
            nri,
            changing: Mutex::default(),
        }
    }

    pub(super) fn mesh_taken(&self) {
        let mut changing = self.changing();
        changing.revision += 1;
        changing.loaded_at = Some(SystemTime::now());
        changing.last_error = None;
        // Not ready again until the control loop has looked at the new mesh's pods.
        changing.looked = false;
    }

    /// Not ready until the control loop has looked at the pods.
    pub(super) fn look_again(&self) {
        self.changing().looked = false;
    }

    pub(super) fn mesh_rejected(&self, error: String) {
        self.changing().last_error = Some(error);
    }

    /// From when on pods that start are held.
    pub(super) fn starting(&self, starting: StartingStatus) {
        self.changing().starting = starting;
    }

    /// What a turn of the control loop left.
    pub(super) fn pods(&self, desired: &BTreeMap<Arc<str>, Desired>, enrolment: &Enrolment, mut turn: Turn) {
        let pods = desired
            .iter()
            .map(|(uid, pod)| self.pod(uid, pod, enrolment, turn.failed.remove(uid)))
            .collect();
        let mut changing = self.changing();
        changing.pods = pods;
        changing.unsettled = turn.unsettled;
        changing.looked = true;
    }

    fn pod(
        &self,
        uid: &Arc<str>,
        desired: &Desired,
        enrolment: &Enrolment,
        failure: Option<String>,
    ) -> PodStatus {
        let mesh = self.shared.mesh.load();
        let workload = mesh.as_ref().and_then(|mesh| mesh.workload(uid));
        let certified = workload.is_some_and(|it| self.shared.svids.current(&it.identity).is_some());
        let (state, message) = match failure {
            // It starts, or has ended: there is nothing to capture.
            Some(message) if desired.netns.is_idle() => (PodState::Pending, Some(message)),
            Some(message) => (PodState::Failed, Some(message)),
            None if !enrolment.is_captured(uid) => (PodState::Pending, None),
            // It may be told of later than the runtime tells of its pod; and never, where another cluster's name is.
            None if workload.is_none() => (
                PodState::Captured,
                Some("the mesh does not know it yet: what it dials waits for that at first, and is refused then".to_owned()),
            ),
            None if !certified => (PodState::Pending, Some("waits for its certificate".to_owned())),
            None => (PodState::Captured, None),
        };
        PodStatus {
            workload: workload.map_or_else(|| uid.to_string(), |it| it.name.to_string()),
            namespace: workload.map(|it| it.namespace.to_string()).unwrap_or_default(),
            addresses: desired.addresses.clone(),
            netns: desired.netns.to_string(),
            identity: workload.map(|it| it.identity.to_string()).unwrap_or_default(),
            state,
            message,
        }
    }

    fn mesh_status(&self, changing: &Changing) -> MeshStatus {
        let mesh = self.shared.mesh.load();
        MeshStatus {
            source: self.source.clone(),
            revision: changing.revision,
            loaded_at: changing.loaded_at.map(rfc3339),
            age_seconds: changing
                .loaded_at
                .and_then(|at| at.elapsed().ok())
                .map(|age| age.as_secs()),
            workloads: mesh.as_ref().map_or(0, |mesh| mesh.workloads().len()),
            services: mesh.as_ref().map_or(0, |mesh| mesh.services().len()),
            policies: mesh.as_ref().map_or(0, |mesh| mesh.policies().len()),
            last_error: changing.last_error.clone().or_else(|| self.feed_error()),
        }
    }

    /// Why the controller is not there, or what it sent could not be read.
    fn feed_error(&self) -> Option<String> {
        let state = self.feed.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let error = state.error.as_ref()?;
        let heard = state.heard.map(rfc3339);
        let heard = heard.map_or_else(String::new, |at| format!(" (last heard of at {at})"));
        Some(match state.connected {
            true => error.clone(),
            false => format!("no controller{heard}: {error}"),
        })
    }

    fn trust(&self) -> TrustStatus {
        let trust = self.shared.svids.trust();
        TrustStatus {
            roots: trust.bundle().len(),
            revocation_lists: trust.revocations().len(),
            sessions: self.shared.svids.sessions().len(),
        }
    }

    fn connections(&self) -> ConnectionsStatus {
        let oldest = self.shared.connections.oldest(MOST_CONNECTIONS_LISTED);
        ConnectionsStatus {
            open: self.shared.connections.len(),
            list: oldest
                .iter()
                .map(|connection| connection_status(connection))
                .collect(),
        }
    }

    /// Why a pod of this node is not captured, where it should be.
    fn uncaptured(&self, workload: &Workload) -> Option<String> {
        let changing = self.changing();
        let pod = changing
            .pods
            .iter()
            .find(|pod| pod.namespace == *workload.namespace && pod.workload == *workload.name)?;
        match (pod.state, &pod.message) {
            (PodState::Failed, Some(message)) => Some(format!("failed: {message}")),
            (PodState::Failed | PodState::Pending, None) => Some(pod.state.to_string()),
            // One that waits for its certificate is captured: what it dials is refused until then.
            (PodState::Captured | PodState::Pending | PodState::Unknown, _) => None,
        }
    }

    /// What became of a pair of this node that has talked, in place of what the mesh says it may do.
    fn tell_of_the_kernel(&self, mesh: &Mesh, from: &str, explanation: &mut Explanation) {
        let source = mesh.workloads().find(|it| it.namespaced_name() == from);
        let Some(source) = source.map(|it| Arc::clone(&it.uid)) else {
            return;
        };
        let known = lock(&self.shared.same_node);
        let became = |destination: &SocketAddr| {
            let (source, destination) = (Arc::clone(&source), *destination);
            known.get(&Pair { source, destination })
        };
        let Some(became) = explanation.dialled.iter().find_map(became) else {
            return;
        };
        let first = explanation.ways.iter_mut().filter_map(|way| way.hops.first_mut());
        for hop in first.filter(|hop| hop.same_node.is_some()) {
            let directly = hop.destination.is_some_and(|app| became.directly.contains(&app));
            match &became.through_agent {
                _ if directly => {
                    hop.same_node =
                        Some("from app to app, not encrypted: the kernel vouches for both ends".to_owned());
                }
                Some(why) => hop.same_node = Some(format!("tunnel: {why}")),
                None => {}
            }
        }
    }

    fn same_node(&self) -> SameNodeStatus {
        let known = lock(&self.shared.same_node);
        let status = |(pair, became): (&Pair, &Became)| PairStatus {
            source: pair.source.to_string(),
            destination: pair.destination.to_string(),
            directly: became.directly.iter().map(ToString::to_string).collect(),
            through_agent: became.through_agent.as_ref().map(ToString::to_string),
        };
        SameNodeStatus {
            pairs: known.len(),
            direct: known
                .values()
                .filter(|became| !became.directly.is_empty())
                .count(),
            list: known.iter().take(MOST_PAIRS_LISTED).map(status).collect(),
        }
    }

    fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StatusSource for State {
    fn explain(&self, from: &str, to: &str) -> Result<Explanation, ExplainError> {
        let mesh = self.shared.mesh.load_full().ok_or(ExplainError::NoMesh)?;
        let mut explanation = explain(&mesh, from, to, |workload| self.uncaptured(workload))?;
        self.tell_of_the_kernel(&mesh, from, &mut explanation);
        Ok(explanation)
    }

    fn config(&self) -> serde_json::Value {
        self.config.clone()
    }

    fn status(&self) -> Status {
        let ready = self.ready();
        let changing = self.changing();
        let captured = changing
            .pods
            .iter()
            .filter(|pod| pod.state == PodState::Captured)
            .count();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: self.node.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: ready.is_ok(),
            reason: ready.err(),
            workers: self.workers,
            mesh: self.mesh_status(&changing),
            programs: self.programs.clone(),
            expected_pods: changing.pods.len(),
            captured_pods: captured,
            pods: changing.pods.clone(),
            certificates: self
                .shared
                .svids
                .all()
                .iter()
                .map(|svid| certificate(svid))
                .collect(),
            trust: self.trust(),
            connections: self.connections(),
            same_node: self.same_node(),
            nri: self.nri.borrow().clone(),
            starting: changing.starting.clone(),
        }
    }

    fn ready(&self) -> Result<(), String> {
        let changing = self.changing();
        if !changing.looked {
            return Err("the mesh's pods have not been looked at yet".to_owned());
        }
        if let Some(error) = &changing.unsettled {
            return Err(format!("cannot take an earlier agent's place: {error}"));
        }
        // One that failed must not hold up the others; the status and the metrics say that it is not captured.
        match changing.pods.iter().find(|pod| pod.state == PodState::Pending) {
            Some(pod) => {
                let why = pod
                    .message
                    .as_deref()
                    .map(|message| format!(": {message}"))
                    .unwrap_or_default();
                Err(format!("pod {}/{} is pending{why}", pod.namespace, pod.workload))
            }
            None => Ok(()),
        }
    }
}

/// The configuration in force, as flags name it. No secrets are in it: keys are named by their files.
fn config_dump(config: &NodeConfig) -> serde_json::Value {
    serde_json::json!({
        "node": config.node,
        "source": config.source.dump(),
        "cgroupRoot": config.load.cgroup_root,
        "pinDir": config.load.pin_dir,
        "workers": config.workers,
        "dnsCapture": config.dns_capture,
        "nriSocket": config.nri_socket,
        "limits": config.limits.dump(),
        "adminAddress": config.admin.admin,
        "metricsAddress": config.admin.metrics,
        "readyAddress": config.admin.ready,
    })
}

fn certificate(svid: &Svid) -> CertificateStatus {
    let now = SystemTime::now();
    CertificateStatus::new(
        svid.id.as_str(),
        &svid.serial,
        svid.issued_at,
        svid.expires_at,
        now,
    )
}

fn connection_status(connection: &Connection) -> ConnectionStatus {
    let flow = &connection.flow;
    let (direction, peer) = match flow.direction {
        Direction::Outbound => ("outbound", &flow.destination),
        Direction::Inbound => ("inbound", &flow.source),
    };
    ConnectionStatus {
        direction: direction.to_owned(),
        source: flow.source.addr,
        destination: flow.destination.addr,
        service: flow
            .service
            .as_ref()
            .map(|service| service.key.hostname.to_string()),
        identity: peer.identity.as_ref().map(ToString::to_string),
        open_seconds: connection.since.elapsed().as_secs(),
        request_bytes: connection.counts.request(),
        response_bytes: connection.counts.response(),
    }
}
