//! A worker of the data plane: a thread with a runtime of its own. It accepts in every pod, and what it accepts it keeps:
//! tunnels, apps and their buffers never change threads, but for what carries bulk, which has a second one (`net::lanes`).

use std::{
    io,
    net::{SocketAddr, TcpStream as StdStream},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustc_hash::FxHashSet;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Shared,
    connections::record_refused,
    dns,
    draws::Draws,
    inbound, outbound,
    outbound::closed::ClosedPorts,
    pod::{Pod, PodListener},
};
use crate::{
    hbone,
    kernel::{
        dns::DnsServers,
        maps::{ListenerKind, SocketStates},
    },
    mesh::Flow,
    net::{lanes::Lanes, schedule, socket::Listener},
};

/// For how long nothing must have come before a listener that gets no more SYNs is closed: a client that had its answer
/// sends the handshake's end within its round trip.
const QUIET: Duration = Duration::from_millis(500);
/// After this it is closed in any case.
const RELEASE_GRACE: Duration = Duration::from_secs(5);
/// Commands that wait for a worker. There is one for each pod that is captured.
const COMMANDS: usize = 64;

/// Tasks that have their turn before the sockets are looked at again. tokio's 61 are 10 ms and more when each moves
/// half a MiB, and so long a small message would not be noticed.
const TURNS: u32 = 8;

/// What enrolment tells a worker.
pub(super) struct Serve {
    pub(super) pod: Arc<Pod>,
    pub(super) listeners: Vec<PodListener>,
    /// Empty but in one worker.
    pub(super) datagrams: Vec<dns::PodSocket>,
    /// Ends the listeners, and tells the peers of tunnels to go elsewhere; connections go on.
    pub(super) released: CancellationToken,
}

/// How the agent shuts down.
#[derive(Clone)]
pub(super) struct Drain {
    /// Set when it begins.
    pub(super) begins: CancellationToken,
    /// How long open connections may go on then.
    pub(super) timeout: Duration,
}

/// The parts of a worker that connections use.
pub(super) struct Worker {
    pub(super) shared: Shared,
    pub(super) sockets: SocketStates,
    /// Where connections and tunnels run.
    pub(super) lanes: Lanes,
    pub(super) tunnels: hbone::Pool,
    /// Of tunnels, in both directions.
    pub(super) tunnel_settings: hbone::Settings,
    pub(super) dns: dns::Dns,
    /// How the agent shuts down.
    pub(super) drain: Drain,
    pub(super) pairs: AskedPairs,
    pub(super) draws: Draws,
    pub(super) closed: ClosedPorts,
}

/// The pairs that this worker has asked the kernel path for, so that it asks for each once while the mesh is the same.
#[derive(Default)]
pub(super) struct AskedPairs(Mutex<(usize, FxHashSet<(u64, SocketAddr)>)>);

impl AskedPairs {
    /// Whether a pair is new; `mesh` tells meshes apart.
    pub(super) fn is_new(&self, mesh: usize, pair: (u64, SocketAddr)) -> bool {
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.0 != mesh || asked.1.len() >= MOST_ASKED {
            *asked = (mesh, FxHashSet::default());
        }
        asked.1.insert(pair)
    }
}

/// Pairs that a worker remembers.
const MOST_ASKED: usize = 16_384;

impl Worker {
    /// Waits until the mesh knows a pod that has just been captured, for as long as it is young.
    pub(super) async fn be_told_of(&self, pod: &Pod) {
        let mut meshes = self.shared.meshes.subscribe();
        let told = async {
            loop {
                let mesh = self.shared.mesh.load_full();
                if mesh.is_some_and(|mesh| mesh.workload(&pod.uid).is_some())
                    || meshes.changed().await.is_err()
                {
                    return;
                }
            }
        };
        let _ = timeout(pod.patience(), told).await;
    }

    /// Writes the one line of a connection that never opened, and counts it.
    pub(super) fn record_refused(&self, mut flow: Box<Flow>, since: Instant) {
        flow.duration = since.elapsed();
        record_refused(&self.shared, &flow);
    }
}

/// A worker that runs.
pub(super) struct Started {
    pub(super) commands: mpsc::Sender<Serve>,
    pub(super) lanes: Lanes,
    pub(super) thread: JoinHandle<()>,
}

/// Starts a worker's thread. It ends when `drain` is set and its connections have ended, or their time is up.
///
/// # Errors
/// When the thread or its runtime cannot be made.
pub(super) fn start(
    number: u16,
    shared: Shared,
    (sockets, servers): (SocketStates, DnsServers),
    tunnel_settings: hbone::Settings,
    drain: Drain,
) -> io::Result<Started> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(TURNS)
        .build()?;
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let lanes = Lanes::new(runtime.handle().clone(), format!("weft-bulk-{number}"));
    let threads = lanes.clone();
    let thread = thread::Builder::new()
        .name(format!("weft-worker-{number}"))
        .spawn(move || {
            schedule::interrupt();
            let worker = Worker {
                shared,
                sockets,
                tunnels: hbone::Pool::new(tunnel_settings.clone(), lanes.clone()),
                lanes: lanes.clone(),
                tunnel_settings,
                dns: dns::Dns::new(servers),
                drain,
                pairs: AskedPairs::default(),
                draws: Draws::new(),
                closed: ClosedPorts::default(),
            };
            runtime.block_on(run(Arc::new(worker), inbox));
            // First: what is left there has timers here.
            lanes.stop();
        })?;
    Ok(Started {
        commands,
        lanes: threads,
        thread,
    })
}

async fn run(worker: Arc<Worker>, mut inbox: mpsc::Receiver<Serve>) {
    let connections = TaskTracker::new();
    loop {
        let serve = tokio::select! {
            () = worker.drain.begins.cancelled() => break,
            command = inbox.recv() => match command { Some(serve) => serve, None => break },
        };
        for listener in serve.listeners {
            let accepting = Accepting {
                worker: Arc::clone(&worker),
                pod: Arc::clone(&serve.pod),
                kind: listener.kind,
                connections: connections.clone(),
            };
            match Listener::new(listener.socket) {
                Ok(socket) => drop(connections.spawn(accepting.run(socket, serve.released.clone()))),
                Err(error) => tracing::error!(%error, pod = %serve.pod.uid, "cannot listen in a pod"),
            }
        }
        if let Some(limits) = &serve.pod.dns {
            for socket in serve.datagrams {
                let datagrams = dns::Datagrams {
                    worker: Arc::clone(&worker),
                    pod: Arc::clone(&serve.pod),
                    limits: limits.clone(),
                    tasks: connections.clone(),
                };
                connections.spawn(datagrams.run(socket, serve.released.clone()));
            }
        }
    }
    connections.close();
    // Those that are left are reset when the runtime is dropped.
    let _ = timeout(worker.drain.timeout, connections.wait()).await;
}

/// One listener's loop.
struct Accepting {
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    kind: ListenerKind,
    connections: TaskTracker,
}

impl Accepting {
    async fn run(self, listener: Listener, released: CancellationToken) {
        loop {
            tokio::select! {
                () = released.cancelled() => break,
                () = self.worker.drain.begins.cancelled() => break,
                accepted = listener.accept() => self.accepted(accepted, &released).await,
            }
        }
        // What is on its way to this listener, and not to one that has taken its place, must not be lost.
        let leftovers = async {
            while let Ok(accepted) = timeout(QUIET, listener.accept()).await {
                self.accepted(accepted, &released).await;
            }
        };
        let _ = timeout(RELEASE_GRACE, leftovers).await;
    }

    async fn accepted(&self, accepted: io::Result<(StdStream, SocketAddr)>, released: &CancellationToken) {
        match accepted {
            Ok((stream, peer)) => self.spawn(stream, canonical(peer), released.clone()),
            Err(error) => {
                tracing::warn!(%error, pod = %self.pod.uid, "cannot accept; raise the agent's limit of open files?");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn spawn(&self, stream: StdStream, peer: SocketAddr, released: CancellationToken) {
        let (worker, pod) = (Arc::clone(&self.worker), Arc::clone(&self.pod));
        match self.kind {
            ListenerKind::Outbound => self.keep(outbound::serve(worker, pod, stream, peer)),
            ListenerKind::Plaintext => {
                if let Some(stream) = self.registered(stream) {
                    self.keep(inbound::serve_plaintext(worker, pod, stream, peer));
                }
            }
            ListenerKind::Hbone => {
                if let Some(stream) = self.registered(stream) {
                    self.keep(inbound::serve_tunnel(worker, pod, stream, peer, released));
                }
            }
            ListenerKind::Dns => {}
        }
    }

    fn registered(&self, stream: StdStream) -> Option<TcpStream> {
        TcpStream::from_std(stream)
            .inspect_err(|error| {
                tracing::warn!(%error, pod = %self.pod.uid, "the agent cannot wait for a connection; is fs.epoll.max_user_watches reached?");
            })
            .ok()
    }

    /// Runs a connection, for which the worker waits when it ends.
    fn keep(&self, connection: impl Future<Output = ()> + Send + 'static) {
        self.worker.lanes.spawn(self.connections.track_future(connection));
    }
}

/// IPv4 as IPv4, however the socket shows it.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_four<A, B, C, D, F: Future>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// What a connection is kept in for as long as it lives, beside its sockets and its stream: a thousand of them are this many
    /// KiB. What only its beginning needs is boxed there.
    #[test]
    fn a_connection_is_kept_in_little() {
        let sizes = [
            of_four(outbound::serve),
            of_four(inbound::serve_plaintext),
            inbound::stream_size(),
        ];
        assert!(sizes.iter().all(|size| *size <= 2048), "{sizes:?}");
        // As long as it waits for its tunnel, which a thousand may do at once.
        let beginning = of_four(outbound::begin);
        assert!(beginning <= 3072, "{beginning}");
    }
}
