//! Says what is wrong with an object where people look: in an event about it. Only the replica that holds the Lease writes.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{sync::watch, time::sleep};

use super::{Wrong, compile::Diagnostic, root::FIELD_MANAGER};
use crate::cluster::client::explain;

/// Between two events: a mistake in one manifest may concern a thousand objects.
const PACE: Duration = Duration::from_millis(50);
/// Events of one change.
const MOST: usize = 200;

/// Writes events about what is new, until nobody compiles any more.
pub(super) async fn write(
    client: Client,
    mut leads: watch::Receiver<bool>,
    mut wrong: watch::Receiver<Wrong>,
) {
    let reporter = Reporter {
        controller: FIELD_MANAGER.to_owned(),
        instance: None,
    };
    let recorder = Recorder::new(client, reporter);
    let mut said: BTreeSet<Diagnostic> = BTreeSet::new();
    loop {
        let diagnostics = Arc::clone(&wrong.borrow_and_update());
        if *leads.borrow_and_update() {
            said.retain(|it| diagnostics.binary_search(it).is_ok());
            let new: Vec<_> = diagnostics
                .iter()
                .filter(|it| !said.contains(*it))
                .take(MOST)
                .cloned()
                .collect();
            for diagnostic in new {
                tell(&recorder, &diagnostic).await;
                said.insert(diagnostic);
                sleep(PACE).await;
            }
        }
        let changed = tokio::select! {
            changed = wrong.changed() => changed,
            changed = leads.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

async fn tell(recorder: &Recorder, diagnostic: &Diagnostic) {
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
    if let Err(error) = recorder.publish(&event, &reference).await {
        tracing::warn!(error = explain(&error), "cannot write an event");
    }
}
