//! A tunnel from an agent or a gateway: the handshake, and what each of its streams asks for.
//!
//! Who the client is, its certificate says; where it is, the tunnel's own source address. The `forwarded` header is believed
//! for the port alone, as the agent does.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Instant};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Seen,
    client::Client,
    downstream, draw,
    listen::{Worker, canonical},
    sniff::{self, Spoken},
    tcp,
};
use crate::{
    hbone::{self, Authority, Baggage, Forwarded, Io, Request},
    limits::Place,
    mesh::{
        AppProtocol, Bound, Direction, FailureKind, Flow, Outcome, Party, Refusal, Security, Sought, bound,
    },
    net::{
        socket::{abort_on_close, tune_tunnel},
        tls::{self, Session},
    },
    telemetry::{chain, log},
};

/// Serves one tunnel: the handshake, and then each of its streams as a connection of its own.
pub(super) async fn serve(worker: Arc<Worker>, tcp: TcpStream, peer: SocketAddr) {
    let since = Instant::now();
    let gateway = tcp.local_addr().ok().map(canonical);
    match accept(&worker, tcp, peer).await {
        Ok(accepted) => {
            let tunnel = Arc::new(Tunnel {
                worker,
                peer,
                gateway,
                session: accepted.session,
                replaced: accepted.replaced,
            });
            tunnel.serve(accepted.stream).await;
        }
        Err(outcome) => {
            let mut flow = flow_of(peer, gateway);
            let seen = worker.shared.seen.load_full();
            flow.destination.workload = seen.map(|seen| Arc::clone(&seen.own));
            record(&worker, flow, outcome, since);
        }
    }
}

/// A tunnel after its handshake.
struct Accepted {
    stream: tls::ServerStream,
    session: Arc<Session>,
    /// Set when our certificate is not the waypoint's any more.
    replaced: CancellationToken,
    _places: [Place; 2],
}

async fn accept(worker: &Worker, tcp: TcpStream, peer: SocketAddr) -> Result<Accepted, Outcome> {
    let places = &worker.shared.places;
    let begun = places
        .socket()
        .and_then(|socket| Ok((socket, places.handshake(peer.ip())?)));
    let (socket, _underway) = begun.inspect_err(|_| abort_on_close(&tcp))?;
    let (server, replaced) = server(worker)?;
    tune_tunnel(&tcp);
    let accepted = tls::accept(tcp, server, worker.shared.tunnel_settings.handshake_timeout).await;
    let (stream, session) = accepted.map_err(|error| Outcome::Failed(error.kind(), chain(&error)))?;
    Ok(Accepted {
        stream,
        session,
        replaced,
        _places: [socket, places.tunnel(peer.ip())?],
    })
}

/// TLS as this waypoint speaks it, and until when it does.
fn server(worker: &Worker) -> Result<(tls::Server, CancellationToken), Outcome> {
    let seen = worker.shared.seen.load_full().ok_or(Refusal::NoMesh)?;
    let svids = &worker.shared.svids;
    let svid = svids.current(&seen.identity).ok_or_else(|| {
        let why = format!("no certificate for {} yet", seen.identity);
        Outcome::Failed(FailureKind::Identity, why)
    })?;
    let trust_domains = std::slice::from_ref(seen.mesh.trust_domain());
    let server = tls::server(svids.sessions(), Arc::clone(&svid.cert), trust_domains)
        .map_err(|error| Outcome::Failed(FailureKind::Tls, chain(&error)))?;
    Ok((server, svid.replaced.clone()))
}

/// A tunnel whose peer has proved who it is.
pub(super) struct Tunnel {
    pub(super) worker: Arc<Worker>,
    pub(super) peer: SocketAddr,
    /// The address that the peer dialled.
    pub(super) gateway: Option<SocketAddr>,
    pub(super) session: Arc<Session>,
    replaced: CancellationToken,
}

impl Tunnel {
    async fn serve(self: Arc<Self>, stream: tls::ServerStream) {
        let goaway = CancellationToken::new();
        let drain = hbone::Drain {
            goaway: goaway.clone(),
            begins: self.worker.drain.clone(),
        };
        let here = self.gateway.map_or(self.peer.ip(), |gateway| gateway.ip());
        let pair = (self.peer.ip(), here);
        let each = |request| {
            let stream = Arc::clone(&self).serve_stream(request);
            drop(self.worker.tasks.spawn(stream));
        };
        // New streams are for a tunnel with the new certificate, or to another replica; open ones go on.
        let age = downstream::age(&self.worker.shared.settings, draw());
        let retired = async {
            tokio::select! {
                () = self.replaced.cancelled() => {}
                () = sleep(age) => {}
            }
            goaway.cancel();
            std::future::pending::<Infallible>().await
        };
        let (peer, identity) = (self.peer, &self.session.peer);
        let settings = &self.worker.shared.tunnel_settings;
        tokio::select! {
            // First: nothing more is read from a peer that is not trusted any more.
            biased;
            why = self.session.rejected() => {
                tracing::warn!(%peer, %why, "a tunnel was cut: it is not trusted any more");
            }
            served = hbone::serve(stream, settings, pair, drain, each) => match served {
                Err(error) if error.is_usual() => {
                    tracing::debug!(%peer, %identity, error = chain(&error), "a tunnel ended");
                }
                Err(error) => {
                    tracing::warn!(%peer, %identity, error = chain(&error), "a tunnel ended before its time");
                }
                Ok(()) => {}
            },
            never = retired => match never {},
        }
    }

    /// One stream, from CONNECT to its end.
    async fn serve_stream(self: Arc<Self>, request: Request) {
        let since = Instant::now();
        let client = self.client(request.forwarded.as_ref());
        let place = self.worker.shared.places.connection(self.peer.ip());
        let asked = place.and_then(|place| Ok((self.admit(&request)?, place)));
        let ((seen, authority, bound), _place) = match asked {
            Ok(asked) => asked,
            Err(refusal) => {
                request.respond.refuse(refusal.http_status());
                let mut flow = self.flow(client);
                flow.destination.workload = self
                    .worker
                    .shared
                    .seen
                    .load_full()
                    .map(|seen| Arc::clone(&seen.own));
                return record(&self.worker, flow, refusal.into(), since);
            }
        };
        let declared = declared(&bound);
        let client = Client::new(self, client, authority);
        if declared == Some(AppProtocol::Tcp) {
            // Nothing need be read to know where it goes: a client is told whether that can be reached.
            return tcp::serve(client, request.respond, since).await;
        }
        let baggage = Baggage::of(&seen.own).header();
        let Ok(stream) = request.respond.accept(Some(&baggage)) else {
            return;
        };
        drop((seen, bound));
        client.serve(Io::from(stream), declared, since).await;
    }

    fn admit(&self, request: &Request) -> Result<(Arc<Seen>, Authority, Bound), Refusal> {
        let seen = self.worker.shared.seen.load_full().ok_or(Refusal::NoMesh)?;
        let authority = request.target.clone()?;
        let bound = bound(&seen.mesh, &seen.own, sought(&authority))?;
        Ok((seen, authority, bound))
    }

    /// The client's address. It is the tunnel's own, which cannot be forged; the port is what the other agent says, as long as it
    /// speaks of the same address.
    fn client(&self, forwarded: Option<&Forwarded>) -> SocketAddr {
        let said = forwarded.map(|forwarded| canonical(forwarded.client));
        said.filter(|said| said.ip() == self.peer.ip())
            .unwrap_or(self.peer)
    }

    /// The record of a stream of this tunnel, begun.
    pub(super) fn flow(&self, client: SocketAddr) -> Flow {
        let mut flow = flow_of(client, self.gateway);
        flow.source.identity = Some(self.session.peer.clone());
        flow.security = Security::MutualTls;
        flow
    }
}

impl Client {
    /// A connection of which it is not known yet what is spoken in it.
    async fn serve(self, mut io: Io, declared: Option<AppProtocol>, since: Instant) {
        let silence = self.worker().shared.settings.sniff_timeout;
        let spoken = tokio::select! {
            spoken = sniff::spoken(&mut io, declared, silence) => spoken,
            () = downstream::unused(&self) => {
                // An end, and no reset: nothing was asked.
                let _ = io.shutdown().await;
                return;
            }
        };
        let Ok(spoken) = spoken else { return };
        match spoken {
            Spoken::Http1 => downstream::serve(Arc::new(self), io, http::Version::HTTP_11).await,
            Spoken::Http2 => downstream::serve(Arc::new(self), io, http::Version::HTTP_2).await,
            Spoken::Tls | Spoken::Tcp => tcp::carry(self, io, spoken, since).await,
        }
    }
}

/// What the CONNECT names, as the mesh is asked.
pub(super) fn sought(authority: &Authority) -> Sought<'_> {
    match authority {
        Authority::Addr(addr) => Sought::Addr(*addr),
        Authority::Host(host, port) => Sought::Host(host, *port),
    }
}

fn declared(bound: &Bound) -> Option<AppProtocol> {
    let service = bound.service()?;
    service.app_protocols.get(&bound.port()).copied()
}

fn flow_of(client: SocketAddr, gateway: Option<SocketAddr>) -> Flow {
    let source = Party {
        addr: Some(client),
        ..Party::default()
    };
    let mut flow = Flow::new(Direction::Inbound, source, Party::default());
    flow.gateway = gateway;
    flow
}

/// Writes the one line of a connection that never opened, and counts it.
pub(super) fn record(worker: &Worker, mut flow: Flow, outcome: Outcome, since: Instant) {
    flow.outcome = outcome;
    flow.duration = since.elapsed();
    worker.shared.metrics.refused(&flow);
    log::access(&flow);
}
