//! Who writes to the cluster: of several replicas the one that holds a Lease (`coordination.k8s.io`).
//!
//! ```text
//! waits --nobody holds it, or its holder has not renewed it in time--> holds --renews--> holds
//!   ^------------------ could not renew it in time, or somebody else has it ----------------/
//! ```
//!
//! Times are compared by our own clock alone: a holder is late when we have seen no renewal for the Lease's duration. Ours is good
//! from the moment at which we asked for it, whenever the answer came: a holder has stopped before anybody else can begin.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client, api::PostParams};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use crate::net::chain;

#[cfg(test)]
mod tests;

/// The Lease's name.
const NAME: &str = "weft-controller";
/// How long it is good for without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const PERIOD: Duration = Duration::from_secs(4);
/// And after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// A holder that could not renew it for so long does nothing more, before anybody else begins.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How long the API may take for one turn. A holder's is shorter when it is about to give up.
const TURN: Duration = Duration::from_secs(4);
/// How long it may take to let go of it.
const RELEASE: Duration = Duration::from_secs(2);

/// Why it could not be looked at.
#[derive(Debug, Error)]
enum LeaseError {
    /// What the API says.
    #[error("the API did not take it")]
    Api(#[source] kube::Error),
    /// It says nothing.
    #[error("the API did not answer within {0:?}")]
    Late(Duration),
}

/// The Lease, as one replica sees it.
pub(super) struct Lease {
    api: Api<coordination::Lease>,
    replica: String,
    /// The version that was seen last, and since when.
    seen: Option<(String, Instant)>,
    /// When it was asked for, where it was given to us.
    held: Option<Instant>,
    /// It was ours, and we heard nothing for too long.
    lost: bool,
}

impl Lease {
    /// Of this namespace, for this replica.
    pub(super) fn new(client: &Client, namespace: &str, replica: &str) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            replica: replica.to_owned(),
            seen: None,
            held: None,
            lost: false,
        }
    }

    /// A turn that has an end: before it a holder whose renewals get no answer would write beside the next one.
    async fn bounded_turn(&mut self) -> Result<(), LeaseError> {
        let left = self.left();
        self.lost |= self.held.is_some() && left.is_none();
        let limit = left.map_or(TURN, |left| left.min(TURN));
        let turn = timeout(limit, self.turn()).await;
        turn.map_err(|_| LeaseError::Late(limit))?
            .map_err(LeaseError::Api)
    }

    /// Tries to take it, or to keep it.
    async fn turn(&mut self) -> Result<(), kube::Error> {
        let asked = Instant::now();
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let made = self.api.create(&PostParams::default(), &self.wanted(None)).await;
            return self.took(made.map(drop), asked);
        };
        if !self.may_take(&lease, Instant::now()) {
            self.held = None;
            return Ok(());
        }
        let asked = Instant::now();
        let replaced = self
            .api
            .replace(NAME, &PostParams::default(), &self.wanted(Some(lease)))
            .await;
        self.took(replaced.map(drop), asked)
    }

    /// Whether it is ours already, nobody's, or its holder's that is late. Notes what was seen.
    ///
    /// Whoever has lost it leaves it to the others for a while: its renewals may arrive, though it hears of none, and would keep it
    /// from everybody.
    fn may_take(&mut self, lease: &coordination::Lease, now: Instant) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match self.seen.take() {
            Some((seen, since)) if seen == version => since,
            _ => now,
        };
        self.seen = Some((version, since));
        let holder = lease.spec.as_ref().and_then(|it| it.holder_identity.as_deref());
        match holder {
            None | Some("") => true,
            Some(holder) if holder == self.replica => !self.lost || now.duration_since(since) >= DURATION * 2,
            Some(_) => now.duration_since(since) >= DURATION,
        }
    }

    /// Somebody else may have been faster, which is no failure.
    fn took(&mut self, done: Result<(), kube::Error>, asked: Instant) -> Result<(), kube::Error> {
        match done {
            Ok(()) => {
                self.held = Some(asked);
                self.lost = false;
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.held = None;
                Ok(())
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

    /// How long it is ours without being renewed; none where it is not.
    fn left(&self) -> Option<Duration> {
        let left = GIVE_UP.checked_sub(self.held?.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    /// Lets go of it, so that the next one need not wait.
    async fn release(&mut self) {
        if self.left().is_none() {
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
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep(&mut lease, &leads, &counts) => {}
    }
    leads.send_replace(false);
    let _ = timeout(RELEASE, lease.release()).await;
}

/// Does something for all while this replica is the one that does: what is under way when it is no more is dropped.
pub(super) async fn while_leading<T>(
    leads: &watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut leads = leads.clone();
    tokio::select! {
        biased;
        _ = leads.wait_for(|leads| !*leads) => None,
        done = work => Some(done),
    }
}

async fn keep(lease: &mut Lease, leads: &watch::Sender<bool>, counts: &Counts) {
    loop {
        let turn = lease.bounded_turn().await;
        if let Err(error) = &turn {
            tracing::warn!(error = chain(error), "cannot take or renew the Lease {NAME}");
        }
        let pause = if turn.is_ok() { PERIOD } else { AGAIN };
        say(lease, leads, counts);
        match lease.left() {
            Some(left) if left < pause => {
                sleep(left).await;
                say(lease, leads, counts);
            }
            _ => sleep(pause).await,
        }
    }
}

fn say(lease: &Lease, leads: &watch::Sender<bool>, counts: &Counts) {
    let now = lease.left().is_some();
    counts.leads(now);
    if leads.send_replace(now) != now {
        tracing::info!(
            leads = now,
            "this replica {} to the cluster",
            if now { "writes" } else { "does not write" }
        );
    }
}
