//! One connection to the container runtime: registration, what runs already, and then each sandbox that starts or ends.
//!
//! Of a sandbox that starts the runtime waits for an answer, and cuts off a plug-in that takes longer than its time (2 s by
//! default). So the wait for a capture ends before that, and it is short while captures do not end in time: what is not
//! captured by then stays refused by its cgroup, as without NRI. No more than memory and the kernel is asked meanwhile: a
//! controller or an API that is away holds up nobody.

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use prost::Message as _;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Captures, Plugin, Sandboxes,
    api::{
        ConfigureRequest, ConfigureResponse, Event, INVALID, PLUGIN, PodSandbox, RUNTIME,
        RegisterPluginRequest, Request, Response, StateChangeEvent, Status, SynchronizeRequest,
        SynchronizeResponse, UNIMPLEMENTED,
    },
    wire::{Connection, Decoder, Kind, Message, WireError, encode},
};
use crate::{
    net::netns::NetnsSource,
    node::pods::{Pods, Standing},
};

/// Our name, and our place among other plug-ins: nothing that they change matters here.
const NAME: &str = "weft";
const INDEX: &str = "90";
/// Our only call.
const REGISTRATION: u32 = 1;
/// How long the runtime may take until it has told of everything that runs.
const BEGIN: Duration = Duration::from_secs(10);
/// How long a write may take.
const WRITE: Duration = Duration::from_secs(2);
/// The longest wait for a capture. Each that did not end in time halves the next one, until one does; down to the least.
const PATIENCE: Duration = Duration::from_secs(1);
const LEAST: Duration = Duration::from_millis(100);
/// Sandboxes that are waited for at a time. Runtimes start one after the other.
const MOST_WAITING: usize = 64;
/// So much of a text of the runtime's is shown.
const SHOWN: usize = 256;

/// Why a connection has ended, or was not to be had.
#[derive(Debug, Error)]
pub(super) enum SessionError {
    #[error("connect")]
    Connect(#[source] io::Error),
    #[error("whoever listens there is not root, but user {0}")]
    NotRoot(u32),
    #[error("the connection")]
    Io(#[from] io::Error),
    #[error("the runtime has ended the connection")]
    Closed,
    #[error("the runtime refuses the plug-in (code {}): {}", .0.code, .0.message)]
    Refused(Status),
    #[error("the runtime has not told of what runs for {} s", BEGIN.as_secs())]
    Slow,
    #[error(
        "the runtime there ({runtime}) does not run this agent's own pod {pod}: it is another node's; name this node's socket (--nri-socket)"
    )]
    Foreign { runtime: String, pod: String },
    #[error("what the runtime sends is not NRI")]
    Wire(#[from] WireError),
    #[error("a message of the runtime cannot be read")]
    Message(#[from] prost::DecodeError),
}

/// How the wait for a sandbox has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Captured,
    Outside,
    Late,
}

/// A sandbox that the runtime waits for.
type Waiting = FuturesUnordered<BoxFuture<'static, (u32, Outcome)>>;

struct Session<'a> {
    plugin: &'a Plugin,
    write: OwnedWriteHalf,
    waiting: Waiting,
    /// Of a runtime that has not told of everything yet.
    running: Sandboxes,
    runtime: String,
    synchronized: bool,
    /// How many captures have not ended in time, one after the other.
    late: u32,
}

/// Runs until the runtime ends it, or another agent has this one's place.
pub(super) async fn run(plugin: &Plugin, stream: UnixStream) -> Result<(), SessionError> {
    // What it says of namespaces is believed.
    let user = stream.peer_cred()?.uid();
    if user != 0 {
        return Err(SessionError::NotRoot(user));
    }
    talk(plugin, stream).await
}

async fn talk(plugin: &Plugin, stream: UnixStream) -> Result<(), SessionError> {
    let (mut read, write) = stream.into_split();
    let mut session = Session {
        plugin,
        write,
        waiting: Waiting::new(),
        running: Sandboxes::default(),
        runtime: String::new(),
        synchronized: false,
        late: 0,
    };
    session.register().await?;
    let mut captures = plugin.captures.clone();
    let (mut decoder, mut bytes) = (Decoder::default(), vec![0; 16 << 10]);
    let begun = Instant::now();
    loop {
        tokio::select! {
            count = read.read(&mut bytes) => match count? {
                0 => return Err(SessionError::Closed),
                count => for message in decoder.push(&bytes[..count])? {
                    session.take(message).await?;
                },
            },
            Some((stream, outcome)) = session.waiting.next() => session.answer_start(stream, outcome).await?,
            () = sleep(BEGIN.saturating_sub(begun.elapsed())), if !session.synchronized => return Err(SessionError::Slow),
            () = replaced(&mut captures) => return Ok(()),
        }
    }
}

impl Session<'_> {
    async fn register(&mut self) -> Result<(), SessionError> {
        let registration = RegisterPluginRequest {
            plugin_name: NAME.to_owned(),
            plugin_idx: INDEX.to_owned(),
        };
        let request = Request {
            service: RUNTIME.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: registration.encode_to_vec().into(),
            timeout_nano: BEGIN.as_nanos() as i64,
        };
        self.send(
            Connection::Runtime,
            REGISTRATION,
            Kind::Request,
            request.encode_to_vec().into(),
        )
        .await
    }

    async fn take(&mut self, message: Message) -> Result<(), SessionError> {
        match (message.connection, message.kind, message.stream) {
            (Connection::Runtime, Kind::Response, REGISTRATION) => {
                let status = Response::decode(message.payload)?.status;
                match status.filter(|status| status.code != 0) {
                    Some(Status { code, message }) => Err(SessionError::Refused(Status {
                        code,
                        message: shown(message),
                    })),
                    None => Ok(()),
                }
            }
            (Connection::Plugin, Kind::Request, stream) => {
                let request = Request::decode(message.payload)?;
                self.serve(stream, request).await
            }
            _ => Ok(()),
        }
    }

    async fn serve(&mut self, stream: u32, request: Request) -> Result<(), SessionError> {
        let payload = request.payload.clone();
        match (request.service.as_str(), request.method.as_str()) {
            (PLUGIN, "Configure") => {
                let asked = ConfigureRequest::decode(payload)?;
                self.runtime = format!("{} {}", shown(asked.runtime_name), shown(asked.runtime_version));
                let wanted = [
                    Event::RunPodSandbox,
                    Event::StopPodSandbox,
                    Event::RemovePodSandbox,
                ];
                let events = wanted.iter().map(|event| 1 << (*event as i32 - 1)).sum();
                self.reply(stream, &ConfigureResponse { events }).await
            }
            (PLUGIN, "Synchronize") => {
                let part = SynchronizeRequest::decode(payload)?;
                self.synchronize(stream, part).await
            }
            (PLUGIN, "StateChange") => {
                let event = StateChangeEvent::decode(payload)?;
                self.state_changed(stream, event, request.timeout_nano).await
            }
            (PLUGIN, "Shutdown") => self.reply(stream, &()).await,
            _ => {
                self.fail(stream, UNIMPLEMENTED, "not a call of this plug-in")
                    .await
            }
        }
    }

    async fn synchronize(&mut self, stream: u32, part: SynchronizeRequest) -> Result<(), SessionError> {
        // One by one: of each only what is kept of it stays.
        for pod in part.pods {
            self.running.take_running(PodSandbox::decode(pod)?);
        }
        if !part.more {
            let running = std::mem::take(&mut self.running);
            self.check_is_ours(&running)?;
            self.tell(|sandboxes| sandboxes.replace(running));
            if !self.synchronized {
                self.synchronized = true;
                self.plugin.connected(self.runtime.clone());
            }
        }
        self.reply(stream, &SynchronizeResponse { more: part.more }).await
    }

    /// The pods of another node are not ours to hold up, nor to look for.
    fn check_is_ours(&self, running: &Sandboxes) -> Result<(), SessionError> {
        let own = self.plugin.own_pod.as_ref();
        match own.filter(|own| !running.by_uid().contains_key(own.as_str())) {
            None => Ok(()),
            Some(own) => Err(SessionError::Foreign {
                runtime: self.runtime.clone(),
                pod: own.clone(),
            }),
        }
    }

    async fn state_changed(
        &mut self,
        stream: u32,
        event: StateChangeEvent,
        timeout_nano: i64,
    ) -> Result<(), SessionError> {
        let kind = event.event();
        let Some(pod) = event.pod else {
            return self.fail(stream, INVALID, "an event without its pod").await;
        };
        match kind {
            Event::RunPodSandbox => {
                let (namespace, name, uid) = (pod.namespace.clone(), pod.name.clone(), pod.uid.clone());
                let started = self.tell(|sandboxes| sandboxes.start(pod, Instant::now()));
                match started {
                    Some(id) if self.waiting.len() < MOST_WAITING => {
                        let patience = patience(self.late, timeout_nano);
                        self.wait(stream, id, patience, [namespace, name, uid]);
                        Ok(())
                    }
                    _ => {
                        tracing::debug!(namespace, pod = name, uid, "a sandbox is not waited for");
                        self.reply(stream, &()).await
                    }
                }
            }
            Event::StopPodSandbox | Event::RemovePodSandbox => {
                self.tell(|sandboxes| sandboxes.end(&pod.id));
                self.reply(stream, &()).await
            }
            Event::Unknown => self.reply(stream, &()).await,
        }
    }

    fn tell<T>(&self, change: impl FnOnce(&mut Sandboxes) -> T) -> T {
        let mut sandboxes = Sandboxes::clone(&self.plugin.told.borrow());
        let changed = change(&mut sandboxes);
        self.plugin.told.send_replace(std::sync::Arc::new(sandboxes));
        changed
    }

    fn wait(&mut self, stream: u32, id: String, patience: Duration, [namespace, name, uid]: [String; 3]) {
        let (pods, captures) = (self.plugin.pods.clone(), self.plugin.captures.clone());
        let waiting = async move {
            let since = Instant::now();
            let outcome = timeout(patience, settled(pods, captures, &id))
                .await
                .unwrap_or(Outcome::Late);
            let waited_ms = since.elapsed().as_millis() as u64;
            match outcome {
                Outcome::Late => tracing::warn!(
                    namespace,
                    pod = name,
                    uid,
                    waited_ms,
                    "a pod was not captured before its containers start: what they dial is refused until it is (weft status says why)"
                ),
                outcome => tracing::debug!(namespace, pod = name, uid, waited_ms, ?outcome, "a pod starts"),
            }
            (stream, outcome)
        };
        self.waiting.push(waiting.boxed());
    }

    async fn answer_start(&mut self, stream: u32, outcome: Outcome) -> Result<(), SessionError> {
        self.plugin.metrics.nri_sandbox(match outcome {
            Outcome::Captured => "captured",
            Outcome::Outside => "outside",
            Outcome::Late => "late",
        });
        match outcome {
            Outcome::Captured => self.late = 0,
            Outcome::Late => self.late = self.late.saturating_add(1),
            Outcome::Outside => {}
        }
        self.reply(stream, &()).await
    }

    async fn reply(&mut self, stream: u32, message: &impl prost::Message) -> Result<(), SessionError> {
        let response = Response {
            status: None,
            payload: message.encode_to_vec().into(),
        };
        self.send(
            Connection::Plugin,
            stream,
            Kind::Response,
            response.encode_to_vec().into(),
        )
        .await
    }

    async fn fail(&mut self, stream: u32, code: i32, message: &str) -> Result<(), SessionError> {
        let message = message.to_owned();
        let response = Response {
            status: Some(Status { code, message }),
            payload: Bytes::new(),
        };
        self.send(
            Connection::Plugin,
            stream,
            Kind::Response,
            response.encode_to_vec().into(),
        )
        .await
    }

    async fn send(
        &mut self,
        connection: Connection,
        stream: u32,
        kind: Kind,
        payload: Bytes,
    ) -> Result<(), SessionError> {
        let message = Message {
            connection,
            stream,
            kind,
            payload,
        };
        let written = timeout(WRITE, self.write.write_all(&encode(&message))).await;
        Ok(written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
    }
}

/// The beginning of a text that goes into the log and the status.
fn shown(text: String) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((end, _)) => text[..end].to_owned(),
    }
}

/// Waits until another agent has this one's place, or this one ends.
async fn replaced(captures: &mut watch::Receiver<Captures>) {
    let _ = captures.wait_for(Option::is_none).await;
}

/// How long a capture is waited for: half of what the runtime waits, at most.
fn patience(late: u32, timeout_nano: i64) -> Duration {
    let ours = (PATIENCE / (1 << late.min(16))).max(LEAST);
    match u64::try_from(timeout_nano) {
        Ok(nanos) if nanos > 0 => ours.min(Duration::from_nanos(nanos) / 2),
        _ => ours,
    }
}

/// Waits until a sandbox's pod is captured, or known not to be ours.
async fn settled(mut pods: Pods, mut captures: watch::Receiver<Captures>, id: &str) -> Outcome {
    loop {
        let view = pods.view();
        let captured = captures.borrow_and_update().clone();
        match view.as_ref().and_then(|view| view.sandboxes.get(id)) {
            Some(Standing::Outside) => return Outcome::Outside,
            Some(Standing::Awaits(awaited)) => {
                if let (NetnsSource::Held(netns), Some(captured)) = (&awaited.netns, captured)
                    && captured.contains(&netns.cookie())
                {
                    return Outcome::Captured;
                }
            }
            Some(Standing::Unknown) | None => {}
        }
        tokio::select! {
            () = pods.changed() => {}
            changed = captures.changed() => if changed.is_err() {
                return Outcome::Late;
            },
        }
    }
}

#[cfg(test)]
mod tests;
