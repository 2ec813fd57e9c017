//! Watches the objects that waypoints are made of: those that carry our label, in every namespace.

use futures::StreamExt as _;
use kube::{
    Api, Client,
    core::DynamicObject,
    runtime::{
        WatchStreamExt as _,
        watcher::{Config, Event, watcher},
    },
};
use tokio::sync::mpsc;

use super::{
    parts::{Key, Part},
    plan::{Actual, is_ours},
};
use crate::{cluster::labels, net::chain};

/// Changes that wait.
const CHANGES: usize = 256;
/// Objects in one page of a list.
const PAGE: u32 = 500;

/// What a watch says.
pub(super) enum Change {
    Apply(Key, Box<DynamicObject>),
    Delete(Key),
    /// All objects of a kind.
    Replace(Part, Vec<(Key, DynamicObject)>),
}

/// Every change of every kind. The first of each says all of its objects.
pub(super) fn watch(client: &Client) -> mpsc::Receiver<Change> {
    let (sender, changes) = mpsc::channel(CHANGES);
    for part in Part::ALL {
        tokio::spawn(follow(part, client.clone(), sender.clone()));
    }
    changes
}

async fn follow(part: Part, client: Client, sender: mpsc::Sender<Change>) {
    let selector = format!(
        "{}={},{}",
        labels::WAYPOINT_MANAGED_BY.0,
        labels::WAYPOINT_MANAGED_BY.1,
        labels::GATEWAY_NAME
    );
    let config = Config::default().page_size(PAGE).labels(&selector);
    let api = Api::<DynamicObject>::all_with(client, &part.api_resource());
    let mut stream = std::pin::pin!(watcher(api, config).default_backoff());
    let mut list = Vec::new();
    while let Some(event) = stream.next().await {
        let change = match event {
            Ok(Event::Init) => {
                list.clear();
                continue;
            }
            Ok(Event::InitApply(object)) => {
                list.push(keyed(part, object));
                continue;
            }
            Ok(Event::InitDone) => Change::Replace(part, std::mem::take(&mut list)),
            Ok(Event::Apply(object)) => {
                let (key, object) = keyed(part, object);
                Change::Apply(key, Box::new(object))
            }
            Ok(Event::Delete(object)) => Change::Delete(keyed(part, object).0),
            Err(error) => {
                let kind = part.kind().kind;
                tracing::warn!(
                    kind,
                    error = chain(&error),
                    "a watch of waypoints broke; it goes on from a new list"
                );
                continue;
            }
        };
        if sender.send(change).await.is_err() {
            return;
        }
    }
}

/// Without what nobody reads.
fn keyed(part: Part, mut object: DynamicObject) -> (Key, DynamicObject) {
    object.metadata.managed_fields = None;
    let key = Key {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
        part,
    };
    (key, object)
}

/// Notes a change.
pub(super) fn apply(actual: &mut Actual, change: Change) {
    match change {
        Change::Apply(key, object) if is_ours(&object) => {
            actual.insert(key, *object);
        }
        Change::Apply(key, _) | Change::Delete(key) => {
            actual.remove(&key);
        }
        Change::Replace(part, objects) => {
            actual.retain(|key, _| key.part != part);
            actual.extend(objects.into_iter().filter(|(_, object)| is_ours(object)));
        }
    }
}
