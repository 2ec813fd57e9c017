//! Watches every kind of object that is read. A kind that the cluster does not know yet is looked for again and again, so that
//! definitions may be installed later, or removed.
//!
//! ServiceAccounts are not among them: nothing that is compiled reads one. Who a pod is, its `spec.serviceAccountName` says, which the
//! API has checked and which never changes; whether a token is its account's, a TokenReview says at the moment of the call. Those
//! that waypoints run as are watched with the rest of what is made for them (`waypoints::actual`).

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use futures::{Stream, StreamExt as _};
use kube::{
    Api, Client,
    api::ListParams,
    core::{ApiResource, PartialObjectMeta},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::sleep};

use super::compile::{Change, Named};
use crate::cluster::{
    client::explain,
    objects::{Custom, EndpointSlice, Kind, Namespace, Node, Object, ObjectMeta, Pod, Service},
};

/// How often it is looked whether a kind is there by now.
const LOOK: Duration = Duration::from_secs(10);
/// Objects in one page of a list.
const PAGE: u32 = 500;
/// Changes that wait for the compiler.
const CHANGES: usize = 1024;

/// Every change of every kind. The first of each kind says all of its objects.
pub(super) fn watch(client: &Client) -> mpsc::Receiver<Change> {
    let (sender, changes) = mpsc::channel(CHANGES);
    for kind in Kind::ALL {
        let (client, sender) = (client.clone(), sender.clone());
        tokio::spawn(async move {
            match kind {
                Kind::Namespace => of::<Namespace>(kind, client, sender).await,
                Kind::Node => of::<Node>(kind, client, sender).await,
                Kind::Pod => of::<Pod>(kind, client, sender).await,
                Kind::Service => of::<Service>(kind, client, sender).await,
                Kind::EndpointSlice => of::<EndpointSlice>(kind, client, sender).await,
                kind => of_custom(kind, client, sender).await,
            }
        });
    }
    changes
}

/// One of Kubernetes' own kinds.
async fn of<K>(kind: Kind, client: Client, sender: mpsc::Sender<Change>)
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    Object: From<K>,
{
    let stream = watcher(Api::<K>::all(client), config()).default_backoff();
    follow(kind, stream, &sender, Object::from, |_| false).await;
}

fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// A kind that a CustomResourceDefinition defines.
async fn of_custom(kind: Kind, client: Client, sender: mpsc::Sender<Change>) {
    loop {
        let Some(resource) = served(kind, &client).await else {
            // There are none of what there is not.
            if sender.send(Change::Listed(kind, BTreeSet::new())).await.is_err() {
                return;
            }
            sleep(LOOK).await;
            continue;
        };
        tracing::info!(kind = kind.kind(), version = resource.api_version, "watching");
        let api = Api::<Custom>::all_with(client.clone(), &resource);
        let stream = watcher(api, config()).default_backoff();
        let object = |custom| Object::Custom(kind, Box::new(custom));
        follow(kind, stream, &sender, object, is_gone).await;
        if sender.is_closed() {
            return;
        }
    }
}

/// The best version of a kind that the cluster serves.
async fn served(kind: Kind, client: &Client) -> Option<ApiResource> {
    for version in kind.versions() {
        let resource = kind.api_resource(version);
        let api = Api::<PartialObjectMeta<Custom>>::all_with(client.clone(), &resource);
        loop {
            match api.list_metadata(&ListParams::default().limit(1)).await {
                Ok(_) => return Some(resource),
                Err(kube::Error::Api(status)) if status.code == 404 => break,
                Err(error) => {
                    tracing::warn!(
                        kind = kind.kind(),
                        error = explain(&error),
                        "cannot list; trying again"
                    );
                    sleep(LOOK).await;
                }
            }
        }
    }
    None
}

/// The kind itself is not there any more.
fn is_gone(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error)) = error else {
        return false;
    };
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Passes on what a watch says, until nobody listens or `ends` says that it is over.
async fn follow<K>(
    kind: Kind,
    stream: impl Stream<Item = watcher::Result<Event<K>>>,
    sender: &mpsc::Sender<Change>,
    object: impl Fn(K) -> Object,
    ends: impl Fn(&watcher::Error) -> bool,
) where
    K: kube::Resource,
{
    let mut stream = std::pin::pin!(stream);
    // Objects are passed on one by one and not gathered: a list of all pods would be as large as all that is kept of them.
    let mut list = BTreeSet::new();
    while let Some(event) = stream.next().await {
        let change = match event {
            Ok(Event::Init) => {
                list.clear();
                continue;
            }
            Ok(Event::InitApply(it)) => {
                list.insert(named(it.meta()));
                Change::Apply(object(it))
            }
            Ok(Event::InitDone) => Change::Listed(kind, std::mem::take(&mut list)),
            Ok(Event::Apply(it)) => Change::Apply(object(it)),
            Ok(Event::Delete(it)) => {
                let (namespace, name) = named(it.meta());
                Change::Delete {
                    kind,
                    namespace,
                    name,
                }
            }
            Err(error) if ends(&error) => return,
            Err(error) => {
                tracing::warn!(
                    kind = kind.kind(),
                    error = crate::net::chain(&error),
                    "a watch broke; it goes on from a new list"
                );
                continue;
            }
        };
        if sender.send(change).await.is_err() {
            return;
        }
    }
}

fn named(metadata: &ObjectMeta) -> Named {
    let ObjectMeta { namespace, name, .. } = metadata;
    (
        namespace.clone().unwrap_or_default(),
        name.clone().unwrap_or_default(),
    )
}
