//! The server's side of the discovery service: what each client is sent, and when.
//!
//! ```text
//! subscribe --> everything, or what is new against `initial_resource_versions` --> ACK | NACK
//!                   and then, once the last response was answered, what has changed since
//! ```
//!
//! A client that does not answer is sent nothing more, and what changes meanwhile is sent once, in its last state. Who the
//! client is has been asked by whoever calls [`Server::stream`]. What there is to say is in `store`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::body::Incoming;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming, body::Body, codec::Codec as _};
use tonic_prost::ProstCodec;

mod subscription;
#[cfg(test)]
mod tests;

use subscription::{Subscription, Unanswered};

pub use subscription::node_group;

use super::{
    push::{self, Push, Pushes},
    store::{Delta, Kind, Store},
};
use crate::rpc::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

/// Names that one client may ask for besides `*`.
const NAMES: usize = 10_000;
/// Large pushes on their way at once: a thousand agents may come at the same moment, and each is to be done before all have begun.
const LARGE_PUSHES: usize = 16;
/// Larger than this, in bytes, is large.
const LARGE: usize = 1 << 20;
/// How long a large push may keep others waiting.
const LARGE_WAIT: Duration = Duration::from_secs(20);

/// The largest request that is read, in bytes: with it come the versions of all that a client has.
const LARGEST_REQUEST: usize = 64 << 20;

/// Serves the store. Clones share it.
#[derive(Clone, Debug)]
pub struct Server {
    store: Store,
    large: Arc<Semaphore>,
    counts: Arc<Counts>,
}

/// What has been done, for metrics.
#[derive(Debug, Default)]
pub struct Counts {
    /// Clients at this moment.
    pub clients: AtomicU64,
    /// Responses sent.
    pub pushes: AtomicU64,
    /// Responses that clients have refused.
    pub nacks: AtomicU64,
}

impl Server {
    /// Serves what is in the store.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            large: Arc::new(Semaphore::new(LARGE_PUSHES)),
            counts: Arc::default(),
        }
    }

    /// What has been done.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Answers a call of [`DELTA_PATH`](crate::rpc::discovery::DELTA_PATH), and goes on until the client may hear no more. `client`
    /// is what logs call it.
    pub fn answer(
        &self,
        client: String,
        until: CancellationToken,
        call: http::Request<Incoming>,
    ) -> http::Response<Body> {
        let decoder = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default().decoder();
        let requests = Streaming::new_request(decoder, call.into_body(), None, Some(LARGEST_REQUEST));
        push::answer(self.stream(client, until, requests))
    }

    /// Serves one stream.
    fn stream(
        &self,
        client: String,
        until: CancellationToken,
        requests: Streaming<DeltaDiscoveryRequest>,
    ) -> Pushes {
        let (sender, receiver) = mpsc::channel(1);
        let stream = Stream {
            server: self.clone(),
            client,
            until,
            sender,
            subscriptions: Default::default(),
            node: None,
            nonce: 0,
        };
        tokio::spawn(stream.run(requests));
        receiver
    }
}

/// The node that an agent says that it is of.
fn node_name(node: &Node) -> Option<String> {
    let value = node.metadata.as_ref()?.fields.get("NODE_NAME")?;
    match value.kind.as_ref()? {
        prost_types::value::Kind::StringValue(name) => Some(name.clone()),
        _ => None,
    }
}

struct Stream {
    server: Server,
    client: String,
    /// When it may hear no more.
    until: CancellationToken,
    sender: mpsc::Sender<Result<Push, Status>>,
    subscriptions: [Subscription; Kind::ALL.len()],
    /// The node of the agent, which its first request says.
    node: Option<String>,
    nonce: u64,
}

/// Why a stream ends; none when its client has gone.
type Ended = Option<Status>;

impl Stream {
    async fn run(mut self, requests: Streaming<DeltaDiscoveryRequest>) {
        let counts = Arc::clone(&self.server.counts);
        counts.clients.fetch_add(1, Relaxed);
        tracing::info!(client = self.client, "a client has come");
        let ended = self.serve(requests).await;
        tracing::info!(
            client = self.client,
            why = ended.as_ref().map(Status::message),
            "a client has gone"
        );
        if let Some(status) = ended {
            let _ = self.sender.send(Err(status)).await;
        }
        counts.clients.fetch_sub(1, Relaxed);
    }

    async fn serve(&mut self, mut requests: Streaming<DeltaDiscoveryRequest>) -> Ended {
        let mut revision = self.server.store.revision();
        // Nobody is told of half a mesh.
        let complete = async { revision.wait_for(Option::is_some).await.is_ok() };
        tokio::select! {
            complete = complete => if !complete { return None },
            () = self.sender.closed() => return None,
        }
        loop {
            let done = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.request(request).await,
                    Ok(None) | Err(_) => Err(None),
                },
                changed = revision.changed() => match changed {
                    Ok(()) => self.push_changes().await,
                    Err(_) => Err(None),
                },
                () = self.until.cancelled() => Err(Some(Status::permission_denied(
                    "this client may not see the mesh any more",
                ))),
                () = Self::waited_too_long(&self.subscriptions) => {
                    self.stop_waiting();
                    Ok(())
                }
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }

    async fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Ended> {
        let Some(kind) = Kind::of(&request.type_url) else {
            tracing::debug!(
                client = self.client,
                kind = request.type_url,
                "asks for what there is none of"
            );
            return Ok(());
        };
        self.answered(kind, &request);
        if let Some(node) = &request.node {
            self.node = node_name(node);
        }
        let store = self.server.store.clone();
        let subscription = &mut self.subscriptions[kind as usize];
        let first = !subscription.asked;
        subscription.change(&request, self.node.as_deref(), &store, kind);
        if subscription.len() > NAMES {
            return Err(Some(Status::resource_exhausted("too many names; subscribe to *")));
        }
        let names = request.resource_names_subscribe.iter().map(String::as_str);
        let (all, names): (Vec<_>, Vec<_>) = names.partition(|name| *name == "*");
        if (first || !all.is_empty()) && subscription.wildcard {
            let delta = store.against(kind, &request.initial_resource_versions);
            return self.push(kind, delta).await;
        }
        if first || !names.is_empty() {
            let versions = &request.initial_resource_versions;
            // What it has it goes on to hear of.
            let has = versions.keys().map(String::as_str).filter(|_| first);
            let names = names.into_iter().chain(has);
            let mut delta = subscription.named(&store, kind, names, first);
            delta.leave_out(versions);
            if !first {
                // Only of these is it up to date.
                delta.revision = subscription.sent;
            }
            return self.push(kind, delta).await;
        }
        self.push_changes_of(kind).await
    }

    /// An answer to the last response, if it is one.
    fn answered(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) {
        if request.response_nonce.is_empty() {
            return;
        }
        if let Some(error) = &request.error_detail {
            self.server.counts.nacks.fetch_add(1, Relaxed);
            let (client, kind) = (&self.client, kind.type_url());
            tracing::warn!(
                client,
                kind,
                error = error.message,
                "a client refuses what it was sent"
            );
        }
        let subscription = &mut self.subscriptions[kind as usize];
        let last = subscription.unanswered.as_ref();
        if last.is_some_and(|last| last.nonce == request.response_nonce) {
            subscription.unanswered = None;
        }
    }

    async fn push_changes(&mut self) -> Result<(), Ended> {
        for kind in Kind::ALL {
            self.push_changes_of(kind).await?;
        }
        Ok(())
    }

    async fn push_changes_of(&mut self, kind: Kind) -> Result<(), Ended> {
        let subscription = &mut self.subscriptions[kind as usize];
        if !subscription.asked || subscription.unanswered.is_some() {
            return Ok(());
        }
        let Some(mut delta) = self.server.store.since(kind, subscription.sent) else {
            return Err(Some(Status::unavailable(
                "too far behind; come again with what you have",
            )));
        };
        subscription.select(&mut delta, &self.server.store, kind);
        if delta.is_empty() {
            subscription.sent = delta.revision;
            return Ok(());
        }
        self.push(kind, delta).await
    }

    async fn push(&mut self, kind: Kind, delta: Delta) -> Result<(), Ended> {
        self.subscriptions[kind as usize].note(&delta);
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        let (resources, removed, revision) = (delta.resources.len(), delta.removed.len(), delta.revision);
        let Some(push) = Push::new(kind, nonce.clone(), delta) else {
            return Err(Some(Status::resource_exhausted(
                "the mesh is too large for one message",
            )));
        };
        let large = self.large(push.len()).await?;
        tracing::debug!(
            client = self.client,
            kind = kind.type_url(),
            resources,
            removed,
            "sending"
        );
        let subscription = &mut self.subscriptions[kind as usize];
        subscription.sent = revision;
        subscription.unanswered = Some(Unanswered { nonce, large });
        self.server.counts.pushes.fetch_add(1, Relaxed);
        self.sender.send(Ok(push)).await.map_err(|_| None)
    }

    /// Waits its turn, where the response is large.
    async fn large(&self, length: usize) -> Result<Option<(OwnedSemaphorePermit, Instant)>, Ended> {
        if length < LARGE {
            return Ok(None);
        }
        let permit = Arc::clone(&self.server.large).acquire_owned();
        tokio::select! {
            permit = permit => Ok(permit.ok().map(|permit| (permit, Instant::now() + LARGE_WAIT))),
            () = self.sender.closed() => Err(None),
        }
    }

    /// Resolves when a large push has kept others waiting for long enough.
    async fn waited_too_long(subscriptions: &[Subscription]) {
        let large = subscriptions
            .iter()
            .filter_map(|it| it.unanswered.as_ref()?.large.as_ref());
        match large.map(|(_, until)| *until).min() {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    fn stop_waiting(&mut self) {
        let now = Instant::now();
        for unanswered in self
            .subscriptions
            .iter_mut()
            .filter_map(|it| it.unanswered.as_mut())
        {
            unanswered.large.take_if(|(_, until)| *until <= now);
        }
    }
}
