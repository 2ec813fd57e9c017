//! Says what is wrong with an object where people look: in an event about it. Only the replica that holds the Lease writes.
//!
//! Level-triggered: what has not been said yet is said, a part of it at a time, and what could not be said is tried again.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Wrong,
    compile::Diagnostic,
    lease::while_leading,
    retries::{FIRST, Retries, due},
    root::FIELD_MANAGER,
};
use crate::cluster::client::explain;

/// Between two events: a mistake in one manifest may concern a thousand objects.
const PACE: Duration = Duration::from_millis(50);
/// Events of one turn, after which there is a pause.
const MOST: usize = 200;

/// Writes events about what is new, until nobody compiles any more.
pub(super) async fn write(
    client: Client,
    mut leads: watch::Receiver<bool>,
    mut wrong: watch::Receiver<Wrong>,
) {
    let mut events = Events {
        client,
        said: BTreeSet::new(),
        failed: Retries::default(),
    };
    loop {
        let diagnostics = Arc::clone(&wrong.borrow_and_update());
        let leading = *leads.borrow_and_update();
        let again = match leading {
            true => events.turn(&diagnostics, &leads, &wrong).await,
            false => None,
        };
        let changed = tokio::select! {
            changed = wrong.changed() => changed,
            changed = leads.changed() => changed,
            () = due(again) => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

struct Events {
    client: Client,
    /// What the API has taken.
    said: BTreeSet<Diagnostic>,
    failed: Retries<Diagnostic>,
}

impl Events {
    /// Says what has not been said yet. When it is to be looked at again without a change.
    async fn turn(
        &mut self,
        diagnostics: &Wrong,
        leads: &watch::Receiver<bool>,
        wrong: &watch::Receiver<Wrong>,
    ) -> Option<Instant> {
        let is_still = |it: &Diagnostic| diagnostics.binary_search(it).is_ok();
        self.said.retain(is_still);
        self.failed.retain(is_still);
        let mut left = MOST;
        for diagnostic in diagnostics.iter() {
            if self.said.contains(diagnostic) || self.failed.waits(diagnostic, Instant::now()) {
                continue;
            }
            if wrong.has_changed().unwrap_or(true) {
                return None;
            }
            if left == 0 {
                return Some(Instant::now() + FIRST);
            }
            left -= 1;
            let told = while_leading(leads, tell(&self.client, diagnostic)).await?;
            if !self.note(diagnostic, told) {
                return Some(Instant::now() + FIRST);
            }
            sleep(PACE).await;
        }
        self.failed.next()
    }

    /// What became of it. Whether the API is there to be told the next one.
    fn note(&mut self, diagnostic: &Diagnostic, told: Result<(), kube::Error>) -> bool {
        let Err(error) = told else {
            self.failed.forget(diagnostic);
            self.said.insert(diagnostic.clone());
            return true;
        };
        tracing::warn!(object = %diagnostic.object, error = explain(&error), "cannot write an event; trying again");
        self.failed.failed(diagnostic.clone(), Instant::now());
        matches!(error, kube::Error::Api(_))
    }
}

/// An event of its own: a recorder that remembered what it has said would take two mistakes of one kind in one object for the
/// same, and say the first of them twice.
async fn tell(client: &Client, diagnostic: &Diagnostic) -> Result<(), kube::Error> {
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: None,
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let object = &diagnostic.object;
    let group_version = match object.group() {
        "" => object.version().to_owned(),
        group => format!("{group}/{}", object.version()),
    };
    let given = |text: &String| Some(text.clone()).filter(|it| !it.is_empty());
    let reference = ObjectReference {
        api_version: Some(group_version),
        kind: Some(object.kind.kind().to_owned()),
        namespace: given(&object.namespace),
        name: given(&object.name),
        uid: given(&object.uid),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Warning,
        reason: diagnostic.reason.to_string(),
        note: Some(diagnostic.message.clone()),
        action: "Compile".into(),
        secondary: None,
    };
    recorder.publish(&event, &reference).await
}
