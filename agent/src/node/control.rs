//! The control loop: takes meshes, keeps the captured pods as they should be, and makes way for another agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    NodeConfig, Shared,
    enroll::{Desired, Enrolment},
    exposed::{Exposed, Fresh},
    pod::Pod,
    pods::{Pods, View, nri::Captures, report::Report},
    same_node::{Inbox, SameNode, lease},
    state::State,
};
use crate::{
    admin::{Admin, Listeners},
    feed::{FeedError, LocalPod, Lookups},
    kernel::{events::log_decisions, load::Kernel, pins::Pins, takeover::Claim},
    mesh::{Mesh, SpiffeId, TunnelProtocol, Workload},
    net::netns::NetnsSource,
    source::{Source, Update},
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
    pub(super) exposed: Exposed,
    /// The node's pods, where the API says which they are, and how they were at first.
    pub(super) pods: Option<(Pods, Arc<View>)>,
    /// Where the container runtime is told of what is captured.
    pub(super) captures: watch::Sender<Captures>,
}

/// The control loop's state.
pub(super) struct Control {
    config: NodeConfig,
    shared: Shared,
    enrolment: Enrolment,
    same_node: SameNode,
    exposed: Exposed,
    captures: watch::Sender<Captures>,
    /// Whether this agent has looked at the node's pods.
    looked: bool,
    state: Arc<State>,
    admin: Admin,
    ports: Option<(CancellationToken, JoinHandle<()>)>,
    shutdown: CancellationToken,
    standing: Standing,
    local_pods: Vec<LocalPod>,
    pods: Option<Pods>,
    /// What the API and the cgroups say of this node's pods; nothing where the mesh file does.
    view: Option<Arc<View>>,
    desired: BTreeMap<Arc<str>, Desired>,
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
        let (pods, view) = kept.pods.unzip();
        Self {
            config,
            shared,
            pods,
            view,
            enrolment: kept.enrolment,
            same_node: kept.same_node,
            exposed: kept.exposed,
            captures: kept.captures,
            looked: false,
            state,
            admin,
            ports: None,
            shutdown,
            standing: Standing::Writing,
            local_pods: Vec::new(),
            desired: BTreeMap::new(),
        }
    }

    /// Runs until the shutdown.
    pub(super) async fn run(&mut self, feed: &mut Source, mut lookups: Lookups, mut inbox: Inbox) {
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut certificates = self.shared.svids.revision();
        let shutdown = self.shutdown.clone();
        let mut pods = self.pods.clone();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = looks.tick() => if !self.look().await { continue },
                _ = turns.tick() => {}
                _ = certificates.changed() => self.same_node.look_again(),
                incoming = inbox.next() => {
                    if self.standing == Standing::Writing {
                        self.same_node.take(incoming);
                    }
                    continue;
                }
                view = next_view(pods.as_mut()) => self.take_view(view),
                mesh = feed.changed() => self.changed(mesh),
                Some(asked) = lookups.next() => match feed.look(asked).await {
                    Some(mesh) => self.changed(mesh),
                    None => continue,
                },
            }
            if self.standing == Standing::Writing {
                self.reopen_ports().await;
                self.turn().await;
            }
        }
        self.fall_silent();
        if self.standing == Standing::Writing
            && let Err(error) = self.enrolment.end_hold()
        {
            // The next agent's own pod would be, for one.
            tracing::error!(
                error = chain(&error),
                "pods that start are held for some seconds more"
            );
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
                self.fall_silent();
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

    fn changed(&mut self, mesh: Result<Update, FeedError>) {
        match mesh {
            Ok(update) => self.take(update),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "the mesh was not taken; the running one stays");
                self.shared.metrics.mesh_rejected();
                self.state.mesh_rejected(error);
            }
        }
    }

    /// Puts a mesh in force, and closes the connections that it refuses.
    pub(super) fn take(&mut self, update: Update) {
        for warning in &update.warnings {
            tracing::warn!(%warning, "the mesh file may not say what is meant");
        }
        let mesh = Arc::new(update.mesh);
        self.local_pods = match &self.view {
            Some(view) => view.pods.clone(),
            None => update.local_pods,
        };
        self.want(&mesh);
        self.shared.mesh.store(Some(Arc::clone(&mesh)));
        self.shared.meshes.send_replace(());
        // Whoever waits for an address asks this mesh.
        drop(update.lookups);
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

    /// What should be captured, and who these pods are.
    fn want(&mut self, mesh: &Mesh) {
        self.desired = desired(mesh, &self.local_pods, self.config.dns_capture);
        self.shared.svids.desire(identities(mesh, &self.desired));
    }

    /// Other pods run on this node, or start, or are found.
    fn take_view(&mut self, view: Option<Arc<View>>) {
        let Some(view) = view else { return };
        self.local_pods = view.pods.clone();
        self.view = Some(view);
        if let Some(mesh) = self.shared.mesh.load_full() {
            self.want(&mesh);
        }
    }

    /// Refuses what pods dial that are on their way, before anything else is done, and lets those go that have arrived.
    fn hold_starting(&mut self) {
        // Without a view there are none, and what an earlier agent left is let go. Pods that share the node's network must never
        // be held back, the API's own server for one, so that the node must be known.
        let newest = self.pods.as_ref().and_then(Pods::newest);
        let newest = newest.filter(|_| self.exposed.knows_node());
        let finds_pods = self.config.pods_cgroup.is_none();
        let starting = self.enrolment.hold_starting(newest.as_ref(), finds_pods);
        if self.pods.is_some() {
            self.state.starting(starting);
        }
    }

    /// Which of the node's pods are captured, for the API.
    fn report(&self) {
        let (Some(showing), Some(view)) = (&self.config.listing, &self.view) else {
            return;
        };
        let is_captured = |pod: &LocalPod| self.enrolment.is_captured_at(&pod.uid, &pod.netns);
        let pods = view.pods.iter().map(|pod| (pod.uid.clone(), is_captured(pod)));
        let report = Report { pods: pods.collect() };
        showing.reports.send_if_modified(|last| {
            let is_new = last.as_deref() != Some(&report);
            if is_new {
                *last = Some(Arc::new(report));
            }
            is_new
        });
    }

    /// What is said of the pods is another agent's from now on: two would contradict each other.
    fn fall_silent(&self) {
        self.captures.send_replace(None);
        if let Some(showing) = &self.config.listing {
            showing.reports.send_replace(None);
        }
    }

    /// The container runtime may start the containers of what is captured.
    fn tell_runtime(&self) {
        let captured = self.enrolment.cookies();
        self.captures.send_if_modified(|last| {
            let is_new = last.as_deref() != Some(&captured);
            if is_new {
                *last = Some(Arc::new(captured));
            }
            is_new
        });
    }

    /// What pods that were captured now had opened before.
    fn judge_exposed(&mut self, fresh: Vec<Arc<Pod>>) {
        let Some(mesh) = self.shared.mesh.load_full() else {
            return;
        };
        let held = |pod: &Pod| {
            let view = self.view.as_ref();
            view.is_some_and(|view| view.holds.awaits(&pod.uid))
        };
        let fresh = fresh.into_iter().map(|pod| Fresh {
            late: !self.looked || held(&pod),
            pod,
        });
        let fresh = fresh.collect();
        self.exposed.turn(&mesh, fresh);
        self.looked = true;
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
        self.hold_starting();
        self.same_node.set_pods(self.enrolment.pods(&self.desired));
        // The captures of a burst take longer than a pod needs to start.
        let starting = self.pods.clone().filter(|_| self.exposed.knows_node());
        let starting = || starting.as_ref().and_then(Pods::newest);
        let mut turn = self.enrolment.turn(&self.desired, starting).await;
        self.tell_runtime();
        self.judge_exposed(std::mem::take(&mut turn.fresh));
        self.hold_starting();
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
        self.report();
        self.state.pods(&self.desired, &self.enrolment, turn);
    }
}

/// Waits for another view of the node's pods.
async fn next_view(pods: Option<&mut Pods>) -> Option<Arc<View>> {
    match pods {
        Some(pods) => {
            pods.changed().await;
            pods.view()
        }
        None => std::future::pending().await,
    }
}

/// The pods of this node that should be captured. A mesh file says it of those that it gives a namespace. Of the others the
/// labels say it, also where the mesh does not know them yet, or not that they take tunnels: they are captured first.
pub(super) fn desired(mesh: &Mesh, local: &[LocalPod], dns_capture: bool) -> BTreeMap<Arc<str>, Desired> {
    let desired = |pod: &LocalPod| {
        let by_file = matches!(pod.netns, NetnsSource::Path(_));
        let workload = mesh.workload(&pod.uid);
        let is_meant = |workload: &Workload| {
            !workload.host_network && (!by_file || workload.tunnel_protocol == TunnelProtocol::Hbone)
        };
        if !workload.map_or(!by_file, |workload| is_meant(workload)) {
            return None;
        }
        // A pod that the mesh does not know yet, or not its addresses, has those that it has.
        let addresses = match workload {
            Some(workload) if !workload.addresses.is_empty() => workload.addresses.as_slice(),
            Some(_) => pod.addresses.as_slice(),
            None => unambiguous(&pod.addresses),
        };
        let mut addresses: Vec<_> = addresses.iter().map(|ip| ip.to_canonical()).collect();
        // As they are found, so that a pod is not captured anew when the mesh says the same.
        addresses.sort_by_key(IpAddr::is_ipv6);
        let desired = Desired {
            netns: pod.netns.clone(),
            addresses,
            modes: workload.map(|it| mesh.strict_ports(it)).unwrap_or_default(),
            dns: pod.dns_capture.unwrap_or(dns_capture),
        };
        Some((pod.uid.clone(), desired))
    };
    local.iter().filter_map(desired).collect()
}

/// A pod's addresses, where there is no other that could be meant: one of each family. Of more only the mesh says which are
/// the pod's own in the cluster's network.
fn unambiguous(addresses: &[IpAddr]) -> &[IpAddr] {
    let of_v6 = addresses.iter().filter(|address| address.is_ipv6()).count();
    if of_v6 > 1 || addresses.len() - of_v6 > 1 {
        return &[];
    }
    addresses
}

/// Who the pods of this node are.
pub(super) fn identities(mesh: &Mesh, desired: &BTreeMap<Arc<str>, Desired>) -> HashSet<SpiffeId> {
    let identity = |uid: &Arc<str>| mesh.workload(uid).map(|workload| workload.identity.clone());
    desired.keys().filter_map(identity).collect()
}

#[cfg(test)]
mod tests;
