//! The control loop: takes meshes, keeps the captured pods as they should be, and makes way for another agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    NodeConfig, Shared,
    enroll::{Desired, Enrolment},
    memory::Memory,
    same_node::{Inbox, SameNode, lease},
    state::State,
};
use crate::{
    admin::{Admin, Listeners},
    feed::{FeedError, FileWatch, LocalPod, Lookups, MeshFile},
    kernel::{events::log_decisions, load::Kernel, pins::Pins, takeover::Claim},
    mesh::{Mesh, SpiffeId, TunnelProtocol},
    telemetry::chain,
};

/// How often what should be is compared with what is, when nothing says that it changed.
const TURN: Duration = Duration::from_secs(1);
/// How often it is looked whether another agent wants to take this one's place, or has given it up.
const LOOK: Duration = Duration::from_millis(100);

/// What this agent is to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The one that writes the maps.
    Writing,
    /// It has let go of them; its listeners go on until the other agent has put its own in their place.
    LetGo,
    /// The other agent does the work. Connections of this one go on.
    Replaced,
}

/// What the loop keeps as it should be.
pub(super) struct Kept {
    pub(super) enrolment: Enrolment,
    pub(super) same_node: SameNode,
}

/// The control loop's state.
pub(super) struct Control {
    config: NodeConfig,
    shared: Shared,
    enrolment: Enrolment,
    same_node: SameNode,
    state: Arc<State>,
    admin: Admin,
    ports: Option<(CancellationToken, JoinHandle<()>)>,
    shutdown: CancellationToken,
    standing: Standing,
    local_pods: Vec<LocalPod>,
    desired: BTreeMap<Arc<str>, Desired>,
    memory: Memory,
}

impl Control {
    pub(super) fn new(
        config: NodeConfig,
        shared: Shared,
        kept: Kept,
        state: Arc<State>,
        admin: Admin,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            config,
            shared,
            enrolment: kept.enrolment,
            same_node: kept.same_node,
            state,
            admin,
            ports: None,
            shutdown,
            standing: Standing::Writing,
            local_pods: Vec::new(),
            desired: BTreeMap::new(),
            memory: Memory::default(),
        }
    }

    /// Runs until the shutdown.
    pub(super) async fn run(&mut self, feed: &mut FileWatch, mut lookups: Lookups, mut inbox: Inbox) {
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut certificates = self.shared.svids.revision();
        let shutdown = self.shutdown.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = looks.tick() => if !self.look().await { continue },
                _ = turns.tick() => self.memory.turn(),
                _ = certificates.changed() => self.same_node.look_again(),
                incoming = inbox.next() => {
                    if self.standing == Standing::Writing {
                        self.same_node.take(incoming);
                    }
                    continue;
                }
                mesh = feed.changed() => self.changed(mesh),
                Some(_asked) = lookups.next() => match feed.look().await {
                    Some(mesh) => self.changed(mesh),
                    None => continue,
                },
            }
            if self.standing == Standing::Writing {
                self.reopen_ports().await;
                self.turn().await;
            }
        }
        self.same_node.hand_over().await;
        // The next agent need not wait until the last connection has ended.
        self.enrolment.hand_over();
        match self.standing {
            Standing::Writing => {
                tracing::info!("shutting down: the programs stay pinned and refuse until the next agent");
            }
            Standing::LetGo | Standing::Replaced => {
                tracing::info!("shutting down: another agent has taken over");
            }
        }
    }

    /// Answers on the agent's own ports.
    pub(super) fn serve_ports(&mut self, ports: Listeners) {
        let closed = self.shutdown.child_token();
        let serving = tokio::spawn(ports.serve(self.admin.clone(), closed.clone()));
        self.ports = Some((closed, serving));
    }

    /// Closes them again, and waits until they are.
    pub(super) async fn close_ports(&mut self) {
        if let Some((closed, serving)) = self.ports.take() {
            closed.cancel();
            let _ = serving.await;
        }
    }

    /// Looks whether another agent wants this one's place, has taken it, or has ended without taking it. Answers whether
    /// there is something to do.
    async fn look(&mut self) -> bool {
        let requested = self.enrolment.kernel().is_asked_for();
        match (self.standing, requested) {
            (Standing::Writing, true) => {
                tracing::info!("another agent takes over: this one changes nothing any more");
                self.standing = Standing::LetGo;
                self.close_ports().await;
                self.same_node.hand_over().await;
                // The other's programs may not know a connection that ours let through.
                if let Err(error) = self.enrolment.set_lease(Duration::ZERO) {
                    tracing::error!(
                        error = chain(&error),
                        "connections inside the node cannot be called back"
                    );
                }
                self.enrolment.hand_over();
            }
            (Standing::LetGo | Standing::Replaced, false) => return self.resume_or_retire().await,
            (Standing::Writing, false) | (Standing::LetGo | Standing::Replaced, true) => {}
        }
        false
    }

    /// Nobody asks for the maps any more: either another agent has them, or it has ended.
    async fn resume_or_retire(&mut self) -> bool {
        match Claim::take(&Pins::new(self.config.load.pin_dir.clone())) {
            Ok(claim) => {
                tracing::warn!("the other agent has ended: this one goes on");
                match self.resume(claim).await {
                    Ok(()) => return true,
                    Err(error) => tracing::error!(error = format!("{error:#}"), "cannot go on; trying again"),
                }
            }
            Err(_) if self.standing == Standing::LetGo => {
                tracing::info!(
                    "another agent has taken over: open connections go on until this one is ended"
                );
                self.standing = Standing::Replaced;
                self.enrolment.retire();
            }
            Err(_) => {}
        }
        false
    }

    async fn resume(&mut self, claim: Claim) -> anyhow::Result<()> {
        let mut kernel = Kernel::load(&self.config.load, claim)?;
        if let Some(decisions) = kernel.decision_log() {
            tokio::spawn(log_decisions(decisions));
        }
        self.same_node.resume(&kernel)?;
        self.enrolment.resume(kernel)?;
        self.state.look_again();
        self.standing = Standing::Writing;
        Ok(())
    }

    /// Opens the agent's own ports again, if they were closed for another agent.
    async fn reopen_ports(&mut self) {
        if self.ports.is_some() {
            return;
        }
        match Listeners::bind(&self.config.admin).await {
            Ok(ports) => self.serve_ports(ports),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "metrics and readiness are not served; trying again");
            }
        }
    }

    fn changed(&mut self, mesh: Result<MeshFile, FeedError>) {
        match mesh {
            Ok(file) => self.take(file),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "the mesh was not taken; the running one stays");
                self.shared.metrics.mesh_rejected();
                self.state.mesh_rejected(error);
            }
        }
    }

    /// Puts a mesh in force, and closes the connections that it refuses.
    pub(super) fn take(&mut self, file: MeshFile) {
        for warning in &file.warnings {
            tracing::warn!(%warning, "the mesh file may not say what is meant");
        }
        let mesh = Arc::new(file.mesh);
        self.local_pods = file.local_pods;
        self.desired = desired(&mesh, &self.local_pods, self.config.dns_capture);
        self.shared.svids.desire(identities(&mesh, &self.desired));
        self.shared.mesh.store(Some(Arc::clone(&mesh)));
        self.shared.connections.reconsider(&mesh);
        self.same_node.look_again();
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
        if nodes.is_empty() || nodes.contains(self.config.node.as_str()) {
            return;
        }
        let node = &self.config.node;
        let known = nodes.into_iter().take(8).collect::<Vec<_>>().join(", ");
        tracing::warn!("no workload of the mesh is on node {node}: is --node right? It has nodes {known}");
    }

    async fn turn(&mut self) {
        // Nothing goes directly to or from a pod that is about to change: its address may be another's by now.
        self.same_node.set_pods(self.enrolment.pods(&self.desired));
        let turn = self.enrolment.turn(&self.desired).await;
        self.same_node.set_pods(self.enrolment.pods(&self.desired));
        self.same_node.turn();
        if let Err(error) = self.enrolment.set_lease(lease(self.config.same_node_lease)) {
            let error = chain(&error);
            tracing::error!(error, "connections inside the node go through the agent");
        }
        (0..turn.started).for_each(|_| self.shared.metrics.proxy_started());
        (0..turn.stopped).for_each(|_| self.shared.metrics.proxy_stopped());
        let captured = self.enrolment.captured();
        self.shared
            .metrics
            .proxies(captured, self.desired.len().saturating_sub(captured));
        self.shared.metrics.pods(self.desired.len(), captured);
        self.state.pods(&self.desired, &self.enrolment, turn);
    }
}

/// The pods of this node that should be captured: those that are in the mesh and whose namespace is known.
pub(super) fn desired(mesh: &Mesh, local: &[LocalPod], dns_capture: bool) -> BTreeMap<Arc<str>, Desired> {
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
                    dns: pod.dns_capture.unwrap_or(dns_capture),
                },
            )
        })
    };
    local.iter().filter_map(desired).collect()
}

/// Who the pods of this node are.
pub(super) fn identities(mesh: &Mesh, desired: &BTreeMap<Arc<str>, Desired>) -> HashSet<SpiffeId> {
    let identity = |uid: &Arc<str>| mesh.workload(uid).map(|workload| workload.identity.clone());
    desired.keys().filter_map(identity).collect()
}
