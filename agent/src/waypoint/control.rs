//! The control loop: takes meshes, and finds the waypoint's own pod in them.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{GatewayName, Seen, Shared, WaypointConfig, state::State};
use crate::{
    feed::FeedError,
    mesh::{Mesh, Workload},
    source::{Source, Update},
    telemetry::chain,
};

/// The control loop's state.
pub(super) struct Control {
    gateway: GatewayName,
    addresses: Vec<IpAddr>,
    shared: Arc<Shared>,
    state: Arc<State>,
}

impl Control {
    pub(super) fn new(config: &WaypointConfig, shared: Arc<Shared>, state: Arc<State>) -> Self {
        Self {
            gateway: config.gateway.clone(),
            addresses: config.addresses.clone(),
            shared,
            state,
        }
    }

    /// Waits until there is all that the first tunnel needs: the mesh with this pod in it, and the certificate. False when the
    /// shutdown comes before.
    pub(super) async fn prepare(&mut self, feed: &mut Source, shutdown: &CancellationToken) -> bool {
        let mut certificates = self.shared.svids.revision();
        while !self.has_all() {
            tokio::select! {
                () = shutdown.cancelled() => return false,
                mesh = feed.changed() => self.changed(mesh),
                _ = certificates.changed() => {}
            }
        }
        true
    }

    fn has_all(&self) -> bool {
        let seen = self.shared.seen.load();
        let certified = |seen: &Arc<Seen>| self.shared.svids.current(&seen.identity).is_some();
        seen.as_ref().is_some_and(certified)
    }

    /// Runs until the shutdown.
    pub(super) async fn run(&mut self, feed: &mut Source, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                mesh = feed.changed() => self.changed(mesh),
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

    fn take(&mut self, update: Update) {
        for warning in &update.warnings {
            tracing::warn!(%warning, "the mesh file may not say what is meant");
        }
        let mesh = Arc::new(update.mesh);
        self.shared.metrics.mesh_loaded(SystemTime::now());
        self.shared.metrics.retain(mesh.workloads(), Instant::now());
        self.state.mesh_taken();
        tracing::info!(
            workloads = mesh.workloads().len(),
            services = mesh.services().len(),
            policies = mesh.policies().len(),
            "mesh taken"
        );
        match self.see(&mesh) {
            Ok(seen) => {
                let seen = Arc::new(seen);
                let authentications = seen.mesh.request_authentications();
                self.shared.authenticator.update(authentications);
                self.shared.svids.desire(HashSet::from([seen.identity.clone()]));
                self.shared.seen.store(Some(Arc::clone(&seen)));
                self.shared.connections.reconsider(&seen);
                self.state.found(Ok(()));
            }
            // The mesh that had this pod, if one had, stays in force.
            Err(why) => {
                tracing::warn!("{why}");
                self.state.found(Err(why));
            }
        }
    }

    /// The mesh with this pod in it. One that has it no more has still the one that runs: a pod leaves the mesh before it ends.
    fn see(&self, mesh: &Arc<Mesh>) -> Result<Seen, String> {
        let before = || self.shared.seen.load().as_ref().map(|seen| Arc::clone(&seen.own));
        let own = self.find(mesh).or_else(before);
        let own = own.ok_or_else(|| {
            let addresses: Vec<_> = self.addresses.iter().map(ToString::to_string).collect();
            format!(
                "no workload of the mesh has the address {}: is --address the pod's own?",
                addresses.join(", ")
            )
        })?;
        let identity = self.gateway.identity(mesh.trust_domain());
        let identity = identity.map_err(|error| format!("--gateway {}: {error}", self.gateway))?;
        Ok(Seen {
            mesh: Arc::clone(mesh),
            own,
            identity,
        })
    }

    fn find(&self, mesh: &Mesh) -> Option<Arc<Workload>> {
        let mut at = self.addresses.iter().filter_map(|it| mesh.workload_at(*it));
        at.next().cloned()
    }
}
