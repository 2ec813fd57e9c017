//! Who writes to the cluster: of several replicas the one that holds a Lease (`coordination.k8s.io`).
//!
//! ```text
//! waits --nobody holds it, or its holder has not renewed it in time--> holds --renews--> holds
//!   ^------------------ could not renew it in time, or somebody else has it ----------------/
//! ```
//!
//! Times are compared by our own clock alone: a holder is late when we have seen no renewal for the Lease's duration.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, api::PostParams};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use crate::net::chain;

/// The Lease's name.
const NAME: &str = "weft-controller";
/// How long it is good for without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(4);
/// A holder that could not renew it for so long does nothing more, before anybody else begins.
const GIVE_UP: Duration = Duration::from_secs(10);

/// The Lease, as one replica sees it.
pub(super) struct Lease {
    api: Api<coordination::Lease>,
    replica: String,
    /// What was seen last, and since when.
    seen: Option<(String, Instant)>,
    held: Option<Instant>,
}

impl Lease {
    /// Of this namespace, for this replica.
    pub(super) fn new(client: &Client, namespace: &str, replica: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            replica: replica.to_owned(),
            seen: None,
            held: None,
        }
    }

    /// Tries to take it, or to keep it. Whether it is ours.
    async fn turn(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let made = self.api.create(&PostParams::default(), &self.wanted(None)).await;
            return self.took(made.map(drop));
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let is_new = self.seen.as_ref().is_none_or(|(seen, _)| *seen != version);
        if is_new {
            self.seen = Some((version, Instant::now()));
        }
        let late = self
            .seen
            .as_ref()
            .is_some_and(|(_, since)| since.elapsed() >= DURATION);
        if holder != self.replica && !holder.is_empty() && !late {
            self.held = None;
            return Ok(false);
        }
        let replaced = self
            .api
            .replace(NAME, &PostParams::default(), &self.wanted(Some(lease)))
            .await;
        self.took(replaced.map(drop))
    }

    /// Somebody else may have been faster, which is no failure.
    fn took(&mut self, done: Result<(), kube::Error>) -> Result<bool, kube::Error> {
        match done {
            Ok(()) => {
                self.held = Some(Instant::now());
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.held = None;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// The Lease as ours. Its version is the one that was read, so that only one of two can take it.
    fn wanted(&self, there: Option<coordination::Lease>) -> coordination::Lease {
        let now = MicroTime(Timestamp::now());
        let mut lease = there.unwrap_or_default();
        lease.metadata.name = Some(NAME.into());
        let mut spec = lease.spec.take().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.replica) {
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
            spec.acquire_time = Some(now.clone());
        }
        spec.holder_identity = Some(self.replica.clone());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        lease.spec = Some(spec);
        lease
    }

    fn is_held(&self) -> bool {
        self.held.is_some_and(|since| since.elapsed() < GIVE_UP)
    }

    /// Lets go of it, so that the next one need not wait.
    async fn release(&mut self) {
        if !self.is_held() {
            return;
        }
        if let Ok(Some(mut lease)) = self.api.get_opt(NAME).await
            && let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.replica)
        {
            spec.holder_identity = Some(String::new());
            let _ = self.api.replace(NAME, &PostParams::default(), &lease).await;
        }
    }
}

/// Holds the Lease when it can, and says whether it does, until the shutdown.
pub(super) async fn hold(
    mut lease: Lease,
    leads: watch::Sender<bool>,
    counts: Arc<Counts>,
    shutdown: CancellationToken,
) {
    loop {
        if let Err(error) = lease.turn().await {
            tracing::warn!(error = chain(&error), "cannot take or renew the Lease {NAME}");
        }
        let now = lease.is_held();
        counts.leads(now);
        if leads.send_replace(now) != now {
            tracing::info!(
                leads = now,
                "this replica {} to the cluster",
                if now { "writes" } else { "does not write" }
            );
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = sleep(PERIOD) => {}
        }
    }
    leads.send_replace(false);
    lease.release().await;
}
