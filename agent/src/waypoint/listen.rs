//! A worker: one thread with a runtime and a listener of its own. What it accepts it keeps: tunnels, requests and the
//! connections to endpoints never change threads.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Shared, WaypointConfig, tunnel, upstream::Upstreams};
use crate::{
    hbone,
    net::{lanes::Lanes, schedule, socket::listen_shared},
};

/// Tasks that have their turn before the sockets are looked at again, as the agent's workers have it.
const TURNS: u32 = 8;
/// For how long nothing must have come before a listener is closed: a client that had its answer sends the handshake's end
/// within its round trip.
const QUIET: Duration = Duration::from_millis(500);
/// After this it is closed in any case.
const RELEASE_GRACE: Duration = Duration::from_secs(5);

/// The parts of a worker that requests use.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) tunnels: hbone::Pool,
    pub(super) upstreams: Upstreams,
    /// Everything that runs for a client and is to end before the worker does.
    pub(super) tasks: TaskTracker,
    /// Set when the shutdown begins.
    pub(super) drain: CancellationToken,
}

/// The data plane's threads.
pub(super) struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Their runtimes.
    handles: Vec<Handle>,
}

impl Workers {
    /// Opens the listeners and starts the threads.
    ///
    /// # Errors
    /// When the address is not ours, or a thread cannot be made.
    pub(super) fn start(
        config: &WaypointConfig,
        shared: &Arc<Shared>,
        drain: &CancellationToken,
    ) -> io::Result<Self> {
        let mut listeners = vec![open(config.listen)?];
        let addr = listeners.iter().find_map(|first| first.local_addr().ok());
        let addr = addr.unwrap_or(config.listen);
        for _ in 1..config.workers.max(1) {
            listeners.push(listen_shared(addr)?);
        }
        let started = listeners
            .into_iter()
            .zip(0_u16..)
            .map(|(listener, number)| start(number, listener, Arc::clone(shared), drain.clone()));
        let started = started.collect::<io::Result<Vec<_>>>()?;
        let (threads, handles) = started.into_iter().unzip();
        Ok(Self { threads, handles })
    }

    /// Runs what it is given on each of them, between two tasks.
    pub(super) fn on_each(&self) -> impl Fn(fn()) + Send + 'static {
        let handles = self.handles.clone();
        move |work| {
            for handle in &handles {
                handle.spawn(async move { work() });
            }
        }
    }

    /// Waits for their end.
    pub(super) fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

/// A pod may have no IPv6 at all.
fn open(addr: SocketAddr) -> io::Result<StdListener> {
    match listen_shared(addr) {
        Err(error)
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                && addr.is_ipv6()
                && addr.ip().is_unspecified() =>
        {
            listen_shared(SocketAddr::from(([0, 0, 0, 0], addr.port())))
        }
        opened => opened,
    }
}

fn start(
    number: u16,
    listener: StdListener,
    shared: Arc<Shared>,
    drain: CancellationToken,
) -> io::Result<(JoinHandle<()>, Handle)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(TURNS)
        .build()?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new()
        .name(format!("weft-worker-{number}"))
        .spawn(move || {
            schedule::interrupt();
            runtime.block_on(run(listener, shared, drain));
        })?;
    Ok((thread, handle))
}

/// A worker's life. It ends when `drain` is set and its connections have ended, or their time is up.
pub(super) async fn run(listener: StdListener, shared: Arc<Shared>, drain: CancellationToken) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "a worker cannot listen"),
    };
    let worker = Arc::new(Worker {
        tunnels: hbone::Pool::new(shared.tunnel_settings.clone(), Lanes::default()),
        upstreams: Upstreams::default(),
        tasks: TaskTracker::new(),
        drain,
        shared,
    });
    tokio::spawn(Upstreams::sweep(Arc::downgrade(&worker)));
    loop {
        tokio::select! {
            () = worker.drain.cancelled() => break,
            accepted = listener.accept() => take(&worker, accepted).await,
        }
    }
    // What is on its way to this listener must not be lost.
    let leftovers = async {
        while let Ok(accepted) = timeout(QUIET, listener.accept()).await {
            take(&worker, accepted).await;
        }
    };
    let _ = timeout(RELEASE_GRACE, leftovers).await;
    drop(listener);
    worker.tasks.close();
    // Those that are left are reset when the runtime is dropped.
    let _ = timeout(worker.shared.settings.drain_timeout, worker.tasks.wait()).await;
    // Endpoints are told, rather than left with connections that end in the middle of nothing.
    worker.upstreams.clusters.forget(None);
    worker.tunnels.drain();
    sleep(FAREWELL).await;
}

/// What the ends of idle connections may take to be sent.
const FAREWELL: Duration = Duration::from_millis(50);

async fn take(worker: &Arc<Worker>, accepted: io::Result<(TcpStream, SocketAddr)>) {
    match accepted {
        Ok((stream, peer)) => {
            let peer = canonical(peer);
            worker
                .tasks
                .spawn(tunnel::serve(Arc::clone(worker), stream, peer));
        }
        Err(error) => {
            tracing::warn!(%error, "cannot accept; raise the waypoint's limit of open files?");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// IPv4 as IPv4, however the socket shows it.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
