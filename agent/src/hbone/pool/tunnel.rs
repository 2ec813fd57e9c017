//! One tunnel: its state, the places on it, and the task that opens it and keeps it running. Used by the pool only.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::{sync::watch, time::timeout};

use super::{
    super::{
        buffers::Growth,
        keepalive,
        window::{Unread, Window},
    },
    ConnectError, Dialled, Settings,
};
use crate::net::{
    socket::tune_tunnel,
    tls::{self, Session},
    weight::Load,
};

/// What opens streams on a tunnel.
pub(super) type Sender = SendRequest<Bytes>;

#[derive(Debug)]
pub(super) struct Tunnel {
    peer: SocketAddr,
    /// Our own end.
    from: IpAddr,
    state: watch::Sender<State>,
    /// Places taken: streams, and those that wait for the handshake to open one.
    streams: AtomicUsize,
    unread: Unread,
    load: Load,
    /// Places ever taken: tells a tunnel of short streams from an idle one.
    taken: AtomicUsize,
    /// Whether the other end has said that it takes first bytes with a CONNECT.
    takes_early_data: AtomicBool,
}

/// An open tunnel: what opens streams, what is to be driven, and who is there.
type Opened = (Sender, Connection<tls::ClientStream>, Arc<Session>);

enum State {
    Opening,
    /// And who is there. Dropping the sender lets the connection end with its last stream.
    Open(Sender, Arc<Session>),
    Closed(ConnectError),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Opening => "Opening",
            Self::Open(..) => "Open",
            Self::Closed(_) => "Closed",
        })
    }
}

/// A place on a tunnel, given back on drop.
#[derive(Debug)]
pub(in crate::hbone) struct Slot {
    tunnel: Arc<Tunnel>,
}

impl Slot {
    fn new(tunnel: &Arc<Tunnel>) -> Self {
        Self {
            tunnel: tunnel.clone(),
        }
    }

    /// What the tunnel carries.
    pub(super) fn load(&self) -> Load {
        self.tunnel.load.clone()
    }

    /// Where the tunnel's streams count what they have not acknowledged.
    pub(super) fn unread(&self) -> Unread {
        self.tunnel.unread.clone()
    }

    /// Whether the other end takes first bytes with a CONNECT.
    pub(super) fn takes_early_data(&self) -> bool {
        self.tunnel.takes_early_data.load(Relaxed)
    }

    /// The other end has said that it does.
    pub(super) fn early_data_is_taken(&self) {
        self.tunnel.takes_early_data.store(true, Relaxed);
    }

    /// The tunnel's sender and who is there, once it is open.
    pub(super) async fn ready(&self) -> Result<(Sender, Arc<Session>), ConnectError> {
        let mut state = self.tunnel.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, State::Opening)).await;
        match state.as_deref() {
            Ok(State::Open(sender, session)) => Ok((sender.clone(), Arc::clone(session))),
            Ok(State::Closed(err)) => Err(err.clone()),
            Ok(State::Opening) | Err(_) => Err(ConnectError::Closed {
                peer: self.tunnel.peer,
            }),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.tunnel.streams.fetch_sub(1, AcqRel);
    }
}

impl Tunnel {
    /// A tunnel that is about to be opened, with its first place taken.
    pub(super) fn new((peer, from): (SocketAddr, IpAddr)) -> (Arc<Self>, Slot) {
        let tunnel = Arc::new(Self {
            peer,
            from,
            state: watch::Sender::new(State::Opening),
            streams: 1.into(),
            unread: Unread::default(),
            load: Load::new(),
            taken: 1.into(),
            takes_early_data: false.into(),
        });
        let slot = Slot::new(&tunnel);
        (tunnel, slot)
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Acquire)
    }

    /// Whether a stream may still be opened. A connection that was told to go away goes on for its streams, but its
    /// sender says so.
    pub(super) fn is_usable(&self) -> bool {
        match &*self.state.borrow() {
            State::Opening => true,
            State::Open(sender, session) => {
                let mut nobody = Context::from_waker(Waker::noop());
                !session.is_rejected()
                    && !matches!(sender.clone().poll_ready(&mut nobody), Poll::Ready(Err(_)))
            }
            State::Closed(_) => false,
        }
    }

    /// Whether a bulk stream goes on: what is small would wait behind what it has under way.
    pub(super) fn is_heavy(&self) -> bool {
        self.load.is_heavy()
    }

    /// Whether there is a place; `most` or what the other end allows.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let most = match &*self.state.borrow() {
            State::Open(sender, _) => most.min(sender.current_max_send_streams()),
            _ => most,
        };
        self.streams.load(Acquire) < most
    }

    /// A place, if there is one; `most` or what the other end allows. Called under the pool's lock.
    pub(super) fn take_slot(self: &Arc<Self>, most: usize) -> Option<Slot> {
        if !self.has_room(most) {
            return None;
        }
        self.streams.fetch_add(1, AcqRel);
        self.taken.fetch_add(1, AcqRel);
        Some(Slot::new(self))
    }

    /// No more streams; the connection ends with its last one.
    pub(super) fn retire(&self) {
        let peer = self.peer;
        self.state
            .send_replace(State::Closed(ConnectError::Closed { peer }));
    }

    /// Opens the tunnel and keeps it running to its end. `remove` takes it out of the pool.
    pub(super) async fn run<D, F, C>(
        self: &Arc<Self>,
        settings: &Settings,
        client: tls::Client,
        dial: D,
        (remove, is_spare): (impl Fn(), impl Fn() -> bool),
    ) where
        D: FnOnce() -> F + Send,
        F: Future<Output = io::Result<C>> + Send,
        C: Into<Dialled> + Send,
    {
        let growth = settings.buffers.tunnel((self.peer.ip(), self.from));
        let window = growth.window(settings);
        let ((sender, connection, session), _held) =
            match self.handshake(settings, window, client, dial).await {
                Ok(open) => open,
                Err(err) => {
                    remove();
                    self.state.send_replace(State::Closed(err));
                    return;
                }
            };
        let open = self.state.send_if_modified(|state| match state {
            State::Opening => {
                *state = State::Open(sender, Arc::clone(&session));
                true
            }
            _ => false,
        });
        tracing::debug!(peer = %self.peer, open, "tunnel opened");
        self.keep(settings, growth, connection, &session, (remove, is_spare))
            .await;
    }

    async fn handshake<D, F, C>(
        &self,
        settings: &Settings,
        window: u32,
        client: tls::Client,
        dial: D,
    ) -> Result<(Opened, Box<dyn Send>), ConnectError>
    where
        D: FnOnce() -> F,
        F: Future<Output = io::Result<C>>,
        C: Into<Dialled>,
    {
        let peer = self.peer;
        let dialled = timeout(settings.dial_timeout, dial()).await;
        let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let Dialled { tcp, held } = dialled
            .map_err(|source| ConnectError::Dial {
                peer,
                source: source.into(),
            })?
            .into();
        tune_tunnel(&tcp);
        let (stream, session) = tls::connect(tcp, client, peer.ip(), settings.handshake_timeout)
            .await
            .map_err(|source| ConnectError::Tls {
                peer,
                source: source.into(),
            })?;
        let preface = timeout(
            settings.handshake_timeout,
            settings.client(window).handshake(stream),
        );
        let preface = preface.await.map_err(|_| ConnectError::Closed { peer })?;
        let (sender, connection) = preface.map_err(|source| ConnectError::H2 {
            peer,
            source: source.into(),
        })?;
        Ok(((sender, connection, session), held))
    }

    /// Drives the connection until it ends, is not trusted any more, is silent for too long, or has been idle for too long.
    async fn keep(
        &self,
        settings: &Settings,
        growth: Growth,
        mut connection: Connection<tls::ClientStream>,
        session: &Session,
        (remove, is_spare): (impl Fn(), impl Fn() -> bool),
    ) {
        let pings = connection.ping_pong();
        let silence = keepalive::silence(pings, settings);
        let idle = self.idle(settings, is_spare);
        let rejected = session.rejected();
        tokio::pin!(silence, idle, rejected);
        let mut window = Window::new(self.unread.clone(), growth, settings);
        let mut driven = poll_fn(|cx| {
            if let Some(size) = window.change() {
                connection.set_target_window_size(size);
            }
            self.load.choose_lane();
            Pin::new(&mut connection).poll(cx)
        });
        let mut retired = false;
        loop {
            tokio::select! {
                // First: nothing more is read from a peer that is not trusted any more.
                biased;
                why = &mut rejected => {
                    tracing::warn!(peer = %self.peer, %why, "tunnel cut: it is not trusted any more");
                    break;
                }
                ended = &mut driven => {
                    tracing::debug!(peer = %self.peer, result = ?ended, "tunnel ended");
                    break;
                }
                after = &mut silence => {
                    match self.streams() {
                        // So end the tunnels to a pod that has ended: its network is gone before a good-bye could leave it.
                        0 => tracing::debug!(peer = %self.peer, ?after, "tunnel ended: its peer is gone"),
                        streams => {
                            tracing::warn!(peer = %self.peer, ?after, streams, "tunnel given up: no answer to a PING");
                        }
                    }
                    break;
                }
                () = &mut idle, if !retired => {
                    // Out of the pool first: from here on nobody can take a place. One that was taken just before
                    // keeps its sender, and the connection goes on for it.
                    remove();
                    self.retire();
                    retired = true;
                }
            }
        }
        remove();
        self.retire();
    }

    /// Resolves when there has been no stream for as long as is allowed.
    async fn idle(&self, settings: &Settings, is_spare: impl Fn() -> bool) {
        let look = || (self.streams() == 0, self.taken.load(Acquire));
        let look_at_spare = || {
            let (idle, taken) = look();
            (idle && is_spare(), taken)
        };
        tokio::select! {
            () = keepalive::idle(settings.idle_timeout, look) => {}
            () = keepalive::idle(settings.spare_timeout, look_at_spare) => {}
        }
    }
}
