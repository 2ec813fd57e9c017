//! Writes status conditions: what became of an object, where people and other programs look.
//!
//! Whoever knows says what every status is to be ([`Statuses`], all of it each time); [`write`] compares that with what the API
//! has, and writes what differs, by server-side apply, with pauses. Level-triggered: another replica that takes over looks at
//! everything once. What the API refuses of one object is tried again later, and those behind it do not wait for that. Of each
//! object exactly one source says the status. Events are `status`'s.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    compile::ObjectRef,
    lease::while_leading,
    retries::{FIRST, Retries, due},
};
use crate::cluster::{
    client::{explain, is_not_found},
    labels,
    objects::{Custom, Kind},
};

pub(super) mod merge;
#[cfg(test)]
mod tests;

/// Who we are where several write one object.
pub(super) const FIELD_MANAGER: &str = "weft";
/// Between two requests: one change may concern a thousand objects.
const PACE: Duration = Duration::from_millis(20);

/// What statuses are to be, by object. The object's generation is what is written as `observedGeneration`.
pub(super) type Statuses = Arc<BTreeMap<ObjectRef, Status>>;

/// What is to be said of one object, in the form that its kind has.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Status {
    /// `status.conditions`. Those of our types ([`merge::ours`]) that are not here are taken away, all others stay.
    Conditions(Vec<Condition>),
    /// A route's `status.parents`: an entry for each parent that we answer for. Other controllers' entries stay.
    Parents(Vec<Parent>),
    /// A Gateway's.
    Gateway(GatewayStatus),
}

/// A condition of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// For example `Accepted`.
    pub(super) type_: &'static str,
    /// Whether it holds; none where nobody knows.
    pub(super) holds: Option<bool>,
    /// For programs, CamelCase.
    pub(super) reason: Cow<'static, str>,
    /// For people; cut where it is longer than an API takes.
    pub(super) message: String,
}

/// What became of a route at one of its parents.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parent {
    /// As the route has it in `spec.parentRefs`.
    pub(super) parent_ref: Value,
    /// `Accepted`, `ResolvedRefs`.
    pub(super) conditions: Vec<Condition>,
}

/// What became of a Gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GatewayStatus {
    /// `Accepted`, `Programmed`, `ResolvedRefs`.
    pub(super) conditions: Vec<Condition>,
    /// Of each listener of its spec.
    pub(super) listeners: Vec<ListenerStatus>,
    /// Where it is reached.
    pub(super) addresses: Vec<Address>,
}

/// Where a Gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// `IPAddress` or `Hostname`.
    pub(super) type_: &'static str,
    pub(super) value: String,
}

/// What became of a Gateway's listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListenerStatus {
    pub(super) name: String,
    pub(super) attached_routes: usize,
    /// `Accepted`, `Programmed`, `ResolvedRefs`, `Conflicted`.
    pub(super) conditions: Vec<Condition>,
}

impl Condition {
    /// One that holds, or does not.
    pub(super) fn new(
        type_: &'static str,
        holds: bool,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            type_,
            holds: Some(holds),
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Keeps statuses as they are wanted while `leads` says that we are the ones who write, until nobody wants any more.
pub(super) async fn write(
    client: Client,
    mut leads: watch::Receiver<bool>,
    mut wanted: watch::Receiver<Statuses>,
) {
    let mut writer = Writer {
        client,
        said: BTreeMap::new(),
        versions: BTreeMap::new(),
        failed: Retries::default(),
    };
    loop {
        let statuses = Arc::clone(&wanted.borrow_and_update());
        let leading = *leads.borrow_and_update();
        let again = match leading {
            true => writer.turn(&statuses, &leads, &wanted).await,
            // Another writes meanwhile.
            false => {
                writer.said.clear();
                writer.failed = Retries::default();
                None
            }
        };
        let changed = tokio::select! {
            changed = wanted.changed() => changed,
            changed = leads.changed() => changed,
            () = due(again) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What became of one status.
enum Outcome {
    Written,
    /// It is like that already, or the object is not that one any more.
    Nothing,
    /// Somebody else wrote at the same time.
    Overtaken,
    /// The API will never take it.
    Invalid(kube::Error),
}

struct Writer {
    client: Client,
    /// What is known to be written.
    said: BTreeMap<ObjectRef, Status>,
    /// Under which version the API has a kind.
    versions: BTreeMap<Kind, &'static str>,
    /// What could not be written.
    failed: Retries<ObjectRef>,
}

impl Writer {
    /// Writes what differs. When it is to be looked at again without a change.
    async fn turn(
        &mut self,
        statuses: &Statuses,
        leads: &watch::Receiver<bool>,
        wanted: &watch::Receiver<Statuses>,
    ) -> Option<Instant> {
        self.said.retain(|object, _| statuses.contains_key(object));
        self.failed.retain(|object| statuses.contains_key(object));
        for (object, status) in statuses.iter() {
            if self.said.get(object) == Some(status) || self.failed.waits(object, Instant::now()) {
                continue;
            }
            // What is newer goes first.
            if !*leads.borrow() || wanted.has_changed().unwrap_or(true) {
                return None;
            }
            let done = while_leading(leads, self.put(object, status)).await?;
            if !self.note(object, status, done) {
                return Some(Instant::now() + FIRST);
            }
            sleep(PACE).await;
        }
        self.failed.next()
    }

    /// What became of it. Whether the API is there to be asked for the next one.
    fn note(&mut self, object: &ObjectRef, status: &Status, done: Result<Outcome, kube::Error>) -> bool {
        match done {
            Ok(Outcome::Overtaken) => {
                self.failed.failed(object.clone(), Instant::now());
                true
            }
            Ok(outcome) => {
                if let Outcome::Invalid(error) = &outcome {
                    tracing::warn!(%object, error = explain(error), "the API does not take this status");
                }
                self.failed.forget(object);
                self.said.insert(object.clone(), status.clone());
                true
            }
            Err(error) => {
                tracing::warn!(%object, error = explain(&error), "cannot write a status; trying again");
                // Also where nobody answered: perhaps it is this object alone that takes so long.
                self.failed.failed(object.clone(), Instant::now());
                matches!(error, kube::Error::Api(_))
            }
        }
    }

    async fn put(&mut self, object: &ObjectRef, status: &Status) -> Result<Outcome, kube::Error> {
        let Some((api, resource, live)) = self.find(object).await? else {
            return Ok(Outcome::Nothing);
        };
        if live.metadata.uid.as_deref() != Some(&*object.uid) {
            return Ok(Outcome::Nothing);
        }
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let Some(status) = merge::merged(object, &live, status, &now) else {
            return Ok(Outcome::Nothing);
        };
        // With the version that was read: what others have in the same list has not changed meanwhile.
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": object.name, "resourceVersion": live.metadata.resource_version},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api
            .patch_status(&object.name, &params, &Patch::Apply(&patch))
            .await
        {
            Ok(_) => Ok(Outcome::Written),
            Err(error) if is_not_found(&error) => Ok(Outcome::Nothing),
            Err(kube::Error::Api(error)) if error.code == 409 => Ok(Outcome::Overtaken),
            Err(kube::Error::Api(error)) if matches!(error.code, 400 | 422) => {
                Ok(Outcome::Invalid(kube::Error::Api(error)))
            }
            Err(error) => Err(error),
        }
    }

    /// The object as the API has it; none where it is gone.
    async fn find(
        &mut self,
        object: &ObjectRef,
    ) -> Result<Option<(Api<Custom>, ApiResource, Custom)>, kube::Error> {
        let known = self.versions.get(&object.kind).copied();
        let versions = known.into_iter().chain(object.kind.versions().iter().copied());
        for version in versions {
            let resource = object.kind.api_resource(version);
            let api: Api<Custom> = match object.kind.is_namespaced() {
                true => Api::namespaced_with(self.client.clone(), &object.namespace, &resource),
                false => Api::all_with(self.client.clone(), &resource),
            };
            match api.get(&object.name).await {
                Ok(live) => {
                    self.versions.insert(object.kind, version);
                    return Ok(Some((api, resource, live)));
                }
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// What Gateway API's statuses call us.
const CONTROLLER_NAME: &str = labels::CONTROLLER_NAME;
