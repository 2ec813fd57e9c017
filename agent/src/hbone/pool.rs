//! Tunnels to other agents, shared: who dials, who waits, and which tunnel carries the next stream.
//!
//! One pool per worker thread. A pair of workloads has one warm tunnel until it is full; whoever comes while it is
//! being opened waits for it. A tunnel:
//!
//! ```text
//! Opening --dial, TLS, preface--> Open --died | GOAWAY | idle--> Closed
//!     \-------- failed: all that wait are told the same --------/
//! ```
//!
//! It knows nothing of routes: the role says whom to dial, from where and as whom. Called by the roles.

mod error;
mod tunnel;

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use h2::SendStream;
use http::{HeaderValue, Method, Uri, Version};
use tokio::{net::TcpStream, time::timeout};

use super::{Authority, Forwarded, Settings, Stream, TraceParent, headers};
use crate::{
    mesh::SpiffeId,
    net::{
        lanes::Lanes,
        tls::{self, TlsError},
    },
};

pub use error::ConnectError;
pub(super) use tunnel::Slot;
use tunnel::Tunnel;

/// What tunnels may be shared by: all that has to be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Who dials: the pod's identity, whose certificate is presented.
    pub source: SpiffeId,
    /// The certificate's generation (`Svid::generation`): a renewed certificate makes new tunnels, the old ones end
    /// with their streams.
    pub generation: u64,
    /// The identities of which the other end must prove one.
    pub accept: Arc<[SpiffeId]>,
    /// The pod's network namespace (its cookie): a pod that was made anew has another, also with the same address.
    pub netns: u64,
    /// The pod's address, which the tunnel leaves from.
    pub source_ip: IpAddr,
    /// Where the other end takes tunnels.
    pub gateway: SocketAddr,
}

/// What a CONNECT says.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// Where it leads, once it is at the other end.
    pub authority: Authority,
    /// `Baggage::of(workload).header()`; made once per workload.
    pub baggage: Option<HeaderValue>,
    /// The client's address, and the service that was dialled.
    pub forwarded: Option<Forwarded>,
    /// The trace that the connection is part of.
    pub traceparent: Option<TraceParent>,
    /// The app's first bytes, as far as they are there. They go out right behind the CONNECT where the other end takes them so,
    /// and after its answer otherwise.
    pub first: Bytes,
}

/// A connection for a tunnel, and what its owner wants to be held for as long as it is open.
pub struct Dialled {
    /// With TCP_NODELAY.
    pub tcp: TcpStream,
    /// Dropped with the tunnel.
    pub held: Box<dyn Send>,
}

impl From<TcpStream> for Dialled {
    fn from(tcp: TcpStream) -> Self {
        let held = Box::new(());
        Self { tcp, held }
    }
}

/// The tunnels of one worker. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// Where tunnels run.
    lanes: Lanes,
    /// Tunnels that may be picked. The lock is held for a few lines and never across an await.
    tunnels: Mutex<HashMap<TunnelKey, Vec<Arc<Tunnel>>>>,
}

/// How often a stream that a tunnel turned away unseen (GOAWAY, REFUSED_STREAM) is tried on another.
const ATTEMPTS: usize = 3;

impl Pool {
    /// An empty pool, whose tunnels run in `lanes`.
    pub fn new(settings: Settings, lanes: Lanes) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                lanes,
                tunnels: Mutex::default(),
            }),
        }
    }

    /// Opens a stream to `request.authority` through a tunnel that fits `key`, dialling one where there is none.
    ///
    /// `tls` and `dial` are called only for a new tunnel, in a task of their own: they outlive the caller, because
    /// others may be waiting for the same handshake. `dial` connects to `key.gateway` from `key.source_ip` and sets
    /// TCP_NODELAY.
    ///
    /// # Errors
    /// When no tunnel can be opened or the other end does not answer 200. No byte has reached an app then, but for
    /// [`ConnectError::InDoubt`].
    pub fn connect<T, D, F, C>(
        &self,
        key: TunnelKey,
        tls: T,
        dial: D,
        request: ConnectRequest,
    ) -> impl Future<Output = Result<Stream, ConnectError>>
    where
        T: FnOnce() -> Result<tls::Client, TlsError>,
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = io::Result<C>> + Send + 'static,
        C: Into<Dialled> + Send,
    {
        // Outside of the future: an `async fn` keeps its arguments twice, and a thousand connections may wait here at once.
        let encoded = encode(&request);
        let first = request.first;
        let mut new = Some((tls, dial));
        let mut turned_away = ConnectError::Closed { peer: key.gateway };
        async move {
            let request = encoded.as_ref().map_err(Clone::clone)?;
            for _ in 0..ATTEMPTS {
                let slot = match self.shared.pick(&key) {
                    Some(slot) => slot,
                    None => {
                        // Our own tunnel has turned us away as well: it is no use to go on.
                        let Some((tls, dial)) = new.take() else {
                            return Err(turned_away);
                        };
                        let client = tls().map_err(|source| ConnectError::Certificate {
                            source: source.into(),
                        })?;
                        self.shared.open(&key, client, dial)
                    }
                };
                match self.shared.ask(&key, slot, request, &first).await {
                    Err(err @ ConnectError::Closed { .. }) => turned_away = err,
                    answer => return answer,
                }
            }
            Err(turned_away)
        }
    }

    /// How many streams are open in the tunnels that fit `key`.
    pub fn streams(&self, key: &TunnelKey) -> usize {
        let tunnels = self.shared.lock();
        let fitting = tunnels.get(key).into_iter().flatten();
        fitting.map(|tunnel| tunnel.streams()).sum()
    }

    /// No tunnel is picked any more; each ends with its last stream.
    pub fn drain(&self) {
        for tunnel in self.shared.lock().drain().flat_map(|(_, tunnels)| tunnels) {
            tunnel.retire();
        }
    }

    /// Tunnels that may be picked, and the streams on them: for status and metrics.
    pub fn counts(&self) -> (usize, usize) {
        let tunnels = self.shared.lock();
        let open = || tunnels.values().flatten();
        (open().count(), open().map(|tunnel| tunnel.streams()).sum())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TunnelKey, Vec<Arc<Tunnel>>>> {
        // A panic elsewhere leaves the map whole: every change of it is one call.
        self.tunnels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on a tunnel that is open or about to be. The first one that has room: few warm tunnels are faster than
    /// many; but not one that a bulk stream uses, as long as there may be another. One that has ended or has been told to go
    /// away is dropped here.
    fn pick(&self, key: &TunnelKey) -> Option<Slot> {
        let mut tunnels = self.lock();
        let fitting = tunnels.get_mut(key)?;
        fitting.retain(|tunnel| tunnel.is_usable());
        let take = |tunnel: &Arc<Tunnel>| tunnel.take_slot(self.settings.max_streams);
        let light = fitting.iter().filter(|tunnel| !tunnel.is_heavy()).find_map(take);
        let mut heavy = fitting.iter().filter(|tunnel| tunnel.is_heavy());
        if light.is_some() || heavy.clone().count() <= self.settings.heavy_tunnels {
            return light;
        }
        heavy.find_map(take)
    }

    /// A new tunnel with one place taken. It is in the map at once, so that others wait for it.
    fn open<D, F, C>(self: &Arc<Self>, key: &TunnelKey, client: tls::Client, dial: D) -> Slot
    where
        D: FnOnce() -> F + Send + 'static,
        F: Future<Output = io::Result<C>> + Send + 'static,
        C: Into<Dialled> + Send,
    {
        let (tunnel, slot) = Tunnel::new((key.gateway, key.source_ip));
        self.lock().entry(key.clone()).or_default().push(tunnel.clone());
        let (shared, key) = (self.clone(), key.clone());
        self.lanes.spawn(async move {
            let (remove, is_spare) = (|| shared.remove(&key, &tunnel), || shared.is_spare(&key, &tunnel));
            tunnel
                .run(&shared.settings, client, dial, (remove, is_spare))
                .await;
        });
        slot
    }

    /// Whether the next streams go to one that is before it.
    fn is_spare(&self, key: &TunnelKey, tunnel: &Arc<Tunnel>) -> bool {
        let tunnels = self.lock();
        let fitting = tunnels.get(key).into_iter().flatten();
        let mut before = fitting.take_while(|other| !Arc::ptr_eq(other, tunnel));
        before
            .any(|other| other.is_usable() && !other.is_heavy() && other.has_room(self.settings.max_streams))
    }

    fn remove(&self, key: &TunnelKey, tunnel: &Arc<Tunnel>) {
        let mut tunnels = self.lock();
        if let Some(fitting) = tunnels.get_mut(key) {
            fitting.retain(|other| !Arc::ptr_eq(other, tunnel));
            if fitting.is_empty() {
                tunnels.remove(key);
            }
        }
    }

    async fn ask(
        &self,
        key: &TunnelKey,
        slot: Slot,
        request: &http::Request<()>,
        first: &Bytes,
    ) -> Result<Stream, ConnectError> {
        let peer = key.gateway;
        let (sender, session) = slot.ready().await?;
        let mut has_first = false;
        let failed = |source| match session.is_rejected() {
            // Cut by us: another tunnel's peer may have a better certificate.
            true => ConnectError::Closed { peer },
            false => error::of_stream(peer, source),
        };
        let answered = timeout(self.settings.answer_timeout, async {
            let mut sender = sender.ready().await.map_err(failed)?;
            let (answer, mut send) = sender.send_request(request.clone(), false).map_err(failed)?;
            if slot.takes_early_data() {
                has_first = send_first(&mut send, first.clone());
            }
            Ok((answer.await.map_err(failed)?, send))
        });
        let unanswered = ConnectError::Unanswered {
            peer,
            after: self.settings.answer_timeout,
        };
        let answered = answered.await.unwrap_or(Err(unanswered));
        let (answer, send) = answered.map_err(|error| error.having_sent(has_first, session.is_rejected()))?;
        let (head, recv) = answer.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(ConnectError::Refused {
                peer,
                status: head.status.as_u16(),
            });
        }
        if head.headers.contains_key(headers::EARLY_DATA) {
            slot.early_data_is_taken();
        }
        Ok(Stream {
            send,
            recv,
            session: Some(Arc::clone(&session)),
            unread: slot.unread(),
            load: slot.load(),
            slot: Some(slot),
            served: None,
            has_first,
        })
    }
}

/// Whether there were any, and they are on their way. What the window has no room for yet waits inside h2; it is one read at most.
fn send_first(send: &mut SendStream<Bytes>, first: Bytes) -> bool {
    !first.is_empty() && send.send_data(first, false).is_ok()
}

/// RFC 9113 8.5: CONNECT has an authority and neither scheme nor path.
fn encode(request: &ConnectRequest) -> Result<http::Request<()>, ConnectError> {
    let malformed = |_| ConnectError::Authority(request.authority.clone());
    let authority: http::uri::Authority = request
        .authority
        .to_string()
        .parse()
        .map_err(|_| ConnectError::Authority(request.authority.clone()))?;
    let mut connect = http::Request::builder()
        .method(Method::CONNECT)
        .version(Version::HTTP_2)
        .uri(Uri::from(authority))
        .body(())
        .map_err(malformed)?;
    let values = [
        (headers::BAGGAGE, request.baggage.clone()),
        (
            headers::FORWARDED,
            request.forwarded.as_ref().and_then(Forwarded::header),
        ),
        (
            headers::TRACEPARENT,
            request.traceparent.as_ref().and_then(TraceParent::header),
        ),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            connect.headers_mut().insert(name, value);
        }
    }
    Ok(connect)
}
