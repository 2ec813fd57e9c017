//! The agent's and the waypoint's side of the discovery service: keeps a stream to the controller, and makes a mesh of what it says.
//!
//! The last mesh stays in force when the controller is away; when it is back, only what is new is sent. A resource that
//! cannot be read is refused (NACK), what it was before stays, and the others are taken; but of routes that cannot be read
//! nothing stays, and the mesh says so.

mod received;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use prost_types::Struct;
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, client::Grpc};
use tonic_prost::ProstCodec;

pub use self::received::MeshSettings;
use self::received::Received;
use super::{Lookup, store::Kind, wds::Sees};
use crate::{
    mesh::Mesh,
    net::chain,
    rpc::{
        self, ChannelError, Credentials,
        discovery::{self, CONTROL_PLANE, DELTA_PATH, DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
};

/// The pause after a stream has ended; it doubles up to the longest one.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A stream that lived for so long was a good one.
const GOOD: Duration = Duration::from_secs(30);
/// How long the server may take until it answers the call at all.
const ANSWER: Duration = Duration::from_secs(15);
/// The largest response that is taken, in bytes: 100,000 workloads and more.
const LARGEST: usize = 256 << 20;
/// How long is waited for more before a mesh is made.
const QUIET: Duration = Duration::from_millis(10);
/// Meshes that wait to be taken.
const MESHES: usize = 1;
/// Look-ups that wait.
const LOOKUPS: usize = 64;
/// For how long a look-up is remembered that the server has not answered.
const LOOKUP: Duration = Duration::from_secs(3);
/// For how long a mesh is held back in which a pod of this node names a policy that has not arrived: istiod sends workloads first
/// and policies in a response of their own, and without its policy a pod refuses everybody.
const POLICIES: Duration = Duration::from_secs(2);

/// Who this agent is to the server.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Whom to ask.
    pub credentials: Credentials,
    /// A unique name: `ztunnel~<address>~<pod>.<namespace>~<namespace>.svc.cluster.local` for istiod.
    pub id: String,
    /// The node's name.
    pub node: String,
    /// What resources leave out.
    pub settings: MeshSettings,
    /// Whether to ask for what waypoints do with requests as well, and to read what policies and workloads say of it. There is no
    /// mesh before that has arrived too.
    pub subscribe_http: bool,
}

/// A mesh, and what it answers.
#[derive(Debug)]
pub struct Answered {
    /// The mesh.
    pub mesh: Mesh,
    /// Look-ups, to be dropped once the mesh is in force.
    pub lookups: Vec<Lookup>,
}

/// How things stand with the server.
#[derive(Clone, Debug, Default)]
pub struct FeedState {
    /// Whether there is a stream.
    pub connected: bool,
    /// When the server was last heard of, or the stream was lost.
    pub heard: Option<SystemTime>,
    /// Why there is no stream, or what of the last response could not be read.
    pub error: Option<String>,
}

/// The agent's end of the feed. The stream ends when it is dropped.
#[derive(Debug)]
pub struct Client {
    meshes: mpsc::Receiver<Answered>,
    lookups: mpsc::Sender<Lookup>,
    state: Arc<Mutex<FeedState>>,
    task: JoinHandle<()>,
}

impl Client {
    /// Begins to ask, and goes on until it is dropped.
    pub fn spawn(config: ClientConfig) -> Self {
        let (sender, meshes) = mpsc::channel(MESHES);
        let (lookups, asked) = mpsc::channel(LOOKUPS);
        let state = Arc::<Mutex<FeedState>>::default();
        let sees = match config.subscribe_http {
            true => Sees::Requests,
            false => Sees::Connections,
        };
        let asking = Asking {
            config,
            received: Arc::new(Received::new(sees)),
            sender,
            asked,
            waiting: Vec::new(),
            is_weft: false,
            held: None,
            unpublished: false,
            state: Arc::clone(&state),
        };
        let task = tokio::spawn(asking.run());
        Self {
            meshes,
            lookups,
            state,
            task,
        }
    }

    /// The next mesh. May be dropped and called again at any time.
    pub async fn changed(&mut self) -> Answered {
        match self.meshes.recv().await {
            Some(answered) => answered,
            // The task ends only with us.
            None => std::future::pending().await,
        }
    }

    /// Asks the server for an address that is dialled and not known. With too many under way it is answered at once.
    pub fn look_up(&self, lookup: Lookup) {
        drop(self.lookups.try_send(lookup));
    }

    /// How things stand.
    pub fn state(&self) -> Arc<Mutex<FeedState>> {
        Arc::clone(&self.state)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a stream ended.
#[derive(Debug, Error)]
enum SessionError {
    #[error("no connection")]
    Channel(#[source] ChannelError),
    #[error("the connection broke before the call")]
    Ready(#[source] tonic::transport::Error),
    #[error("the controller refused the stream: {}", .0.message())]
    Refused(Box<Status>),
    #[error("the controller did not answer within {ANSWER:?}")]
    TimedOut,
    #[error("the stream broke: {}", .0.message())]
    Broken(Box<Status>),
    #[error("the controller ended the stream")]
    Ended,
}

/// The task.
struct Asking {
    config: ClientConfig,
    received: Arc<Received>,
    sender: mpsc::Sender<Answered>,
    asked: mpsc::Receiver<Lookup>,
    /// Look-ups that the server has not answered, or only the next mesh does.
    waiting: Vec<Waiting>,
    /// Whether the server is weft's own.
    is_weft: bool,
    /// Until when a mesh is held back, or was.
    held: Option<tokio::time::Instant>,
    /// Whether something has arrived of which no mesh was made yet.
    unpublished: bool,
    state: Arc<Mutex<FeedState>>,
}

/// A look-up that waits.
struct Waiting {
    lookup: Lookup,
    since: Instant,
    /// It has been said that the address is nobody's.
    answered: bool,
}

impl Waiting {
    fn is_waited_for(&self) -> bool {
        self.since.elapsed() < LOOKUP && !self.lookup.is_given_up()
    }
}

type Requests = mpsc::Sender<DeltaDiscoveryRequest>;

impl Asking {
    async fn run(mut self) {
        let mut pause = PAUSE;
        loop {
            let since = Instant::now();
            let Err(error) = self.session().await else { return };
            let error = chain(&error);
            let address = &self.config.credentials.address;
            tracing::warn!(
                controller = address,
                error,
                "no feed: the last mesh stays in force; trying again"
            );
            self.note(|state| {
                // Until then, or half a minute before, it was there and had nothing to say.
                if std::mem::take(&mut state.connected) {
                    state.heard = Some(SystemTime::now());
                }
                state.error = Some(error);
            });
            // Nobody is there to ask.
            self.waiting.clear();
            if since.elapsed() >= GOOD {
                pause = PAUSE;
            }
            sleep(jittered(pause)).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// One stream, to its end. Ends well only when nobody wants a mesh any more.
    async fn session(&mut self) -> Result<(), SessionError> {
        let (requests, mut responses) = self.open().await?;
        tracing::info!(
            controller = self.config.credentials.address,
            "the feed's stream is open"
        );
        self.note(|state| {
            state.connected = true;
            state.error = None;
        });
        // What the last stream brought and nobody has made a mesh of is not sent again.
        let mut due = self.unpublished.then(tokio::time::Instant::now);
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = response.map_err(|status| SessionError::Broken(Box::new(status)))?;
                    if self.take(response.ok_or(SessionError::Ended)?, &requests).await? {
                        let soon = tokio::time::Instant::now() + QUIET;
                        due = Some(due.map_or(soon, |at| at.min(soon)));
                        self.unpublished = true;
                    }
                }
                Some(lookup) = self.asked.recv() => self.ask(lookup, &requests).await?,
                // A server that has nothing new to say says nothing.
                () = sleep(LOOKUP), if !self.waiting.is_empty() => self.waiting.retain(Waiting::is_waited_for),
                () = at(due) => {
                    due = self.held_until();
                    if due.is_none() && !self.publish().await {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn open(&self) -> Result<(Requests, Streaming<DeltaDiscoveryResponse>), SessionError> {
        let channel = rpc::connect(&self.config.credentials)
            .await
            .map_err(SessionError::Channel)?;
        let (requests, queue) = mpsc::channel(Kind::ALL.len() + LOOKUPS);
        for kind in self.received.kinds() {
            // There is room.
            let _ = requests.send(self.subscription(*kind)).await;
        }
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        // A certificate is enough to hear; a token would be asked about instead.
        if self.config.credentials.cert.is_none() {
            let signed = self.config.credentials.sign(request.metadata_mut()).await;
            signed.map_err(SessionError::Channel)?;
        }
        let mut client = Grpc::new(channel).max_decoding_message_size(LARGEST);
        client.ready().await.map_err(SessionError::Ready)?;
        let path = http::uri::PathAndQuery::from_static(DELTA_PATH);
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let answer = timeout(ANSWER, client.streaming(request, path, codec)).await;
        let answer = answer.map_err(|_| SessionError::TimedOut)?;
        let responses = answer.map_err(|status| SessionError::Refused(Box::new(status)))?;
        Ok((requests, responses.into_inner()))
    }

    fn subscription(&self, kind: Kind) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest {
            node: Some(discovery::Node {
                id: self.config.id.clone(),
                cluster: self.config.settings.cluster.to_string(),
                metadata: Some(metadata(&self.config)),
            }),
            type_url: kind.type_url().to_owned(),
            resource_names_subscribe: vec!["*".to_owned()],
            initial_resource_versions: self.received.versions(kind),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes a response in, and answers it. Whether it says anything new: that an address is nobody's makes no other mesh.
    async fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        requests: &Requests,
    ) -> Result<bool, SessionError> {
        let mut answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        let gone: Vec<_> = response.removed_resources.clone();
        let server = response.control_plane.as_ref();
        self.is_weft = server.is_some_and(|it| it.identifier == CONTROL_PLANE);
        let kind = Kind::of(&response.type_url).filter(|kind| self.received.kinds().contains(kind));
        let is_new = kind.is_some_and(|kind| self.received.would_change(kind, &response));
        let problems = match kind {
            Some(kind) => Arc::make_mut(&mut self.received).take(kind, response, &self.config.settings),
            None => vec![format!("{} is no type that was asked for", response.type_url)],
        };
        self.waiting.retain_mut(|it| {
            // What came with the answer may have the address by another name: the mesh that is made of it says so.
            it.answered |= gone.contains(&lookup_name(&it.lookup));
            (is_new || !it.answered) && it.is_waited_for()
        });
        let error = (!problems.is_empty()).then(|| summary(&problems));
        if let Some(error) = &error {
            tracing::warn!(
                error,
                "the controller sent what cannot be read; what was there before stays"
            );
            answer.error_detail = Some(discovery::Status {
                code: tonic::Code::InvalidArgument as i32,
                message: error.clone(),
            });
        }
        self.note(|state| {
            state.heard = Some(SystemTime::now());
            state.error = error;
        });
        requests.send(answer).await.map_err(|_| SessionError::Ended)?;
        Ok(is_new)
    }

    /// Other servers than weft's tell whoever has asked for everything of each address by themselves, and answer a question with
    /// all that they have: there the next mesh is waited for.
    async fn ask(&mut self, lookup: Lookup, requests: &Requests) -> Result<(), SessionError> {
        let request = DeltaDiscoveryRequest {
            type_url: Kind::Address.type_url().to_owned(),
            resource_names_subscribe: vec![lookup_name(&lookup)],
            ..DeltaDiscoveryRequest::default()
        };
        let (since, answered) = (Instant::now(), false);
        self.waiting.push(Waiting {
            lookup,
            since,
            answered,
        });
        match self.is_weft {
            true => requests.send(request).await.map_err(|_| SessionError::Ended),
            false => Ok(()),
        }
    }

    /// Until when the mesh that has arrived is to wait for a policy. Once that time is over it is not asked for more, until all have
    /// been there.
    fn held_until(&mut self) -> Option<tokio::time::Instant> {
        if !self.received.lacks_a_policy(&self.config.node) {
            self.held = None;
            return None;
        }
        let now = tokio::time::Instant::now();
        let until = *self.held.get_or_insert(now + POLICIES);
        (now < until).then_some(until)
    }

    /// Makes a mesh of what has arrived, once everything has. Answers whether anybody wants it.
    async fn publish(&mut self) -> bool {
        if !self.received.is_complete() {
            return true;
        }
        self.unpublished = false;
        let (received, settings) = (Arc::clone(&self.received), self.config.settings.clone());
        let Ok(mesh) = tokio::task::spawn_blocking(move || received.mesh(&settings)).await else {
            tracing::error!("a mesh could not be made: this is a fault of weft");
            return true;
        };
        let settled = |it: &mut Waiting| {
            let address = it.lookup.address();
            it.answered || mesh.workload_at(address).is_some() || mesh.service_at(address).is_some()
        };
        let settled = self.waiting.extract_if(.., settled);
        let lookups = settled.map(|it| it.lookup).collect();
        self.sender.send(Answered { mesh, lookups }).await.is_ok()
    }

    fn note(&self, change: impl FnOnce(&mut FeedState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

async fn at(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// As addresses are asked for: the network, which is the only one, and the address.
fn lookup_name(lookup: &Lookup) -> String {
    format!("/{}", lookup.address())
}

fn metadata(config: &ClientConfig) -> Struct {
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let fields = [
        ("NODE_NAME", config.node.as_str()),
        ("CLUSTER_ID", &config.settings.cluster),
    ];
    Struct {
        fields: fields.map(|(name, value)| (name.to_owned(), text(value))).into(),
    }
}

/// The first few, and how many more there are.
fn summary(problems: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = problems
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    match problems.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown}; and {more} more"),
    }
}

/// A thousand agents that lose their controller at once must not come back at once.
fn jittered(pause: Duration) -> Duration {
    let [draw] = crate::net::tls::random::<1>().unwrap_or_default();
    pause / 2 + pause * u32::from(draw) / 255
}
