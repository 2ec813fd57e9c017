//! A connection that an app in a captured pod makes: from the steered socket to the other node's agent.

pub(super) mod closed;
mod unreached;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{net::TcpStream, time::timeout};

use self::unreached::Unreached;
use super::{
    connections::Carried,
    dial::{Caller, dial, dial_app},
    dns,
    pod::Pod,
    same_node::Pair,
    worker::Worker,
};
use crate::{
    feed::Answer,
    hbone::{self, AppSide, Authority, ConnectRequest, Dialled, Forwarded, TraceParent, TunnelKey},
    kernel::maps::Steered,
    limits::Place,
    mesh::{
        Direction, FailureKind, Flow, Mesh, NextHop, Outbound, Outcome, Party, Refusal, Route, Security,
        Tunnel, Workload, reroute, route,
    },
    net::{
        copy::{copy_tcp, first_bytes},
        socket::abort_on_close,
        tls::{self, Session},
    },
};

/// Endpoints of a service that are tried before the app is refused.
const ATTEMPTS: usize = 3;
/// Between two looks at a port of tunnels that is closed, where no new mesh comes.
const AGAIN: Duration = Duration::from_millis(100);

/// What a connection was carried over to.
pub(super) enum Upstream {
    /// And the place that its socket has.
    Tcp(TcpStream, Place),
    Tunnel(hbone::Stream),
}

impl Upstream {
    /// The TLS session that a tunnel is inside of.
    fn session(&self) -> Option<Arc<Session>> {
        match self {
            Self::Tunnel(stream) => stream.session().cloned(),
            Self::Tcp(..) => None,
        }
    }
}

/// A connection whose way is clear.
pub(super) struct Begun {
    app: TcpStream,
    /// What the app has sent already.
    first: Bytes,
    upstream: Upstream,
    flow: Box<Flow>,
    /// Held for as long as it is open.
    _place: Place,
}

/// Serves one connection, from accept to close, and records it once.
pub(super) async fn serve(worker: Arc<Worker>, pod: Arc<Pod>, app: std::net::TcpStream, client: SocketAddr) {
    let since = Instant::now();
    // Boxed: what the beginning needs would otherwise be kept for as long as the connection lives.
    if let Some(begun) = Box::pin(begin(&worker, &pod, app, (client, since))).await {
        carry(&worker, begun, since).await;
    }
}

/// Opens its way. A connection that is over by then has been recorded.
pub(super) async fn begin(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    app: std::net::TcpStream,
    (client, since): (SocketAddr, Instant),
) -> Option<Box<Begun>> {
    let steered = worker.sockets.steered(&app);
    let place = pod.places.socket();
    let source = Party {
        addr: Some(client),
        ..Party::default()
    };
    let destination = Party {
        addr: steered.map(|steered| steered.destination),
        ..Party::default()
    };
    let for_dns = destination.addr.filter(|it| it.port() == dns::SERVER_PORT);
    let dns = place.as_ref().ok().and(pod.dns.clone()).zip(for_dns);
    let mut flow = Box::new(Flow::new(Direction::Outbound, source, destination));
    let (app, first) = match take(app, dns.is_none()) {
        Ok(taken) => taken,
        Err(outcome) => {
            flow.outcome = outcome;
            worker.record_refused(flow, since);
            return None;
        }
    };
    if let Some((limits, server)) = dns {
        let (worker, pod) = (Arc::clone(worker), Arc::clone(pod));
        // Boxed: it is three times what all others need to begin.
        Box::pin(dns::serve_stream(worker, pod, limits, app, (client, server))).await;
        return None;
    }
    let reached = match (place, steered) {
        (Ok(place), Some(Steered { destination, draw })) => {
            // The kernel may have drawn already, to see whether it has to ask us.
            let draw = draw.unwrap_or_else(|| worker.draws.next(destination));
            let reached = reach(worker, pod, (destination, draw, &first), &mut flow).await;
            reached.map(|upstream| (upstream, place))
        }
        (Ok(_), None) => Err(Refusal::NotCaptured.into()),
        (Err(refusal), _) => Err(refusal.into()),
    };
    match reached {
        Ok((upstream, _place)) => Some(Box::new(Begun {
            app,
            first,
            upstream,
            flow,
            _place,
        })),
        Err(outcome) => {
            // The app gets RST, not a clean end: nothing was reached.
            abort_on_close(&app);
            flow.outcome = outcome;
            worker.record_refused(flow, since);
            None
        }
    }
}

/// Gives a connection to the runtime. What the app has sent already is read before (`look`), so that the runtime does not tell of
/// those bytes again.
fn take(app: std::net::TcpStream, look: bool) -> Result<(TcpStream, Bytes), Outcome> {
    let failed =
        |what| move |error: io::Error| Outcome::Failed(FailureKind::Broken, format!("{what}: {error}"));
    let first = match look {
        true => first_bytes(&app).map_err(failed("the app has gone"))?,
        false => Bytes::new(),
    };
    let app = TcpStream::from_std(app).map_err(failed("the agent cannot wait for the app"))?;
    Ok((app, first))
}

/// Gets where the app wants to go, and its first bytes with it where a tunnel takes them. A closed port of tunnels is waited for,
/// and the mesh asked anew: it may say by then that there is none.
pub(super) async fn reach(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    (destination, draw, first): (SocketAddr, u64, &Bytes),
    flow: &mut Flow,
) -> Result<Upstream, Outcome> {
    let until = Instant::now() + closed::PATIENCE;
    let mut turn = 0;
    loop {
        // Of the last turn nothing stays: the mesh may say something else now.
        flow.destination = Party {
            addr: Some(destination),
            ..Party::default()
        };
        (flow.gateway, flow.service) = (None, None);
        let draw = draw.wrapping_add(turn);
        turn += 1;
        let asked = ask_or_look_up(worker, pod, destination, draw).await?;
        match reach_any(worker, pod, (asked, draw, first), flow).await {
            Err(unreached) if unreached.is_closed && may_open(worker, flow, until) => {
                let mut meshes = worker.shared.meshes.subscribe();
                let _ = timeout(AGAIN, meshes.changed()).await;
            }
            reached => return reached.map_err(|unreached| unreached.outcome),
        }
    }
}

/// Whether the port of tunnels that is closed may open in time.
fn may_open(worker: &Worker, flow: &Flow, until: Instant) -> bool {
    let now = Instant::now();
    now < until && flow.gateway.is_none_or(|port| worker.closed.may_open(port, now))
}

/// Where a next hop cannot be reached another endpoint is tried, as long as there is one and no byte may have reached an app.
async fn reach_any(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    ((mesh, question, answer), draw, first): (Asked, u64, &Bytes),
    flow: &mut Flow,
) -> Result<Upstream, Unreached> {
    let destination = question.destination;
    flow.source.workload = Some(Arc::clone(&question.source));
    let client = flow.source.addr.unwrap_or(destination).ip();
    let mut next = less_busy((worker, pod, client), (&mesh, &question, draw), answer);
    let mut tried = Vec::with_capacity(ATTEMPTS);
    loop {
        tried.extend(next.next.addr());
        match reach_once(worker, pod, (&question, first), next, flow).await {
            Err(unreached) if unreached.retry && tried.len() < ATTEMPTS => {
                next = reroute(&mesh, &question, draw, &tried).ok_or(unreached)?;
            }
            reached => return reached,
        }
    }
}

/// The mesh in force, what it is asked, and its answer.
type Asked = (Arc<Mesh>, Outbound, Route);

/// Where the app's connection goes. An address of the cluster that the mesh does not have is looked up first: its pod may be
/// so young that the feed has not told of it.
async fn ask_or_look_up(
    worker: &Worker,
    pod: &Pod,
    destination: SocketAddr,
    draw: u64,
) -> Result<Asked, Refusal> {
    let asked = match ask(worker, pod, destination, draw) {
        Err(Refusal::UnknownWorkload) => {
            worker.be_told_of(pod).await;
            ask(worker, pod, destination, draw)?
        }
        asked => asked?,
    };
    if !is_unknown(&asked) {
        return Ok(asked);
    }
    let looked_up = worker
        .shared
        .on_demand
        .look_up(&pod.uid, destination.ip().to_canonical())
        .await;
    let asked = ask(worker, pod, destination, draw)?;
    worker.shared.metrics.looked_up(match looked_up {
        _ if !is_unknown(&asked) => "found",
        Answer::Answered => "unknown",
        Answer::TimedOut => "timed_out",
        Answer::TooMany => "too_many",
    });
    Ok(asked)
}

fn ask(worker: &Worker, pod: &Pod, destination: SocketAddr, draw: u64) -> Result<Asked, Refusal> {
    let mesh = worker.shared.mesh.load_full().ok_or(Refusal::NoMesh)?;
    let source = mesh.workload(&pod.uid).ok_or(Refusal::UnknownWorkload)?;
    let question = Outbound {
        source: Arc::clone(source),
        destination,
    };
    let answer = route(&mesh, &question, draw);
    Ok((mesh, question, answer))
}

/// Of two pods of a waypoint, the one to which this pod has fewer streams open. What goes through a waypoint often stays open
/// for long, and turns alone would leave idle whichever pod has lost its connections.
fn less_busy(
    (worker, pod, client): (&Worker, &Pod, IpAddr),
    (mesh, question, draw): (&Mesh, &Outbound, u64),
    first: Route,
) -> Route {
    let streams = |route: &Route| match &route.next {
        NextHop::Tunnel(tunnel) if tunnel.via_waypoint => {
            let svid = worker.shared.svids.current(&question.source.identity)?;
            let key = tunnel_key(&question.source, svid.generation, tunnel, pod, client);
            Some(worker.tunnels.streams(&key))
        }
        _ => None,
    };
    match streams(&first) {
        None | Some(0) => first,
        Some(busy) => {
            let second = route(mesh, question, draw.wrapping_add(1));
            match streams(&second) {
                Some(other) if other < busy => second,
                _ => first,
            }
        }
    }
}

fn is_unknown((_, _, route): &Asked) -> bool {
    matches!(route.next, NextHop::Refuse(Refusal::UnknownDestination(_)))
}

/// One attempt.
async fn reach_once(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    (question, first): (&Outbound, &Bytes),
    route: Route,
    flow: &mut Flow,
) -> Result<Upstream, Unreached> {
    flow.service = route.service;
    match route.next {
        NextHop::Refuse(refusal) => Err(Unreached::for_good(refusal)),
        NextHop::Direct { addr, workload } => {
            flow.destination = Party {
                addr: Some(addr),
                workload,
                identity: None,
            };
            flow.gateway = None;
            dial_direct(worker, pod, addr, flow).await
        }
        NextHop::Tunnel(tunnel) => {
            flow.destination = Party {
                addr: Some(tunnel.destination),
                workload: Some(Arc::clone(&tunnel.workload)),
                identity: None,
            };
            flow.gateway = Some(tunnel.addr);
            let stream = dial_tunnel(worker, pod, (question, first), &tunnel, flow).await?;
            ask_for_the_kernel(worker, pod, question, &tunnel);
            Ok(Upstream::Tunnel(stream))
        }
    }
}

/// A connection that did not leave the node: the next ones of the pair may go from app to app.
fn ask_for_the_kernel(worker: &Worker, pod: &Pod, question: &Outbound, tunnel: &Tunnel) {
    let (source, workload) = (&question.source, &tunnel.workload);
    if tunnel.via_waypoint || source.node.is_empty() || source.node != workload.node {
        return;
    }
    let mesh = worker.shared.mesh.load();
    let mesh = mesh.as_ref().map_or(0, |mesh| Arc::as_ptr(mesh) as usize);
    if worker
        .pairs
        .is_new(mesh, (pod.netns.cookie(), question.destination))
    {
        // Where too many wait, a later connection asks again when the mesh has changed.
        let _ = worker.shared.asking.try_send(Pair {
            source: Arc::clone(&pod.uid),
            destination: question.destination,
        });
    }
}

/// Plain TCP, from inside the pod; to the pod's own app when it dialled itself through its service.
async fn dial_direct(
    worker: &Worker,
    pod: &Pod,
    addr: SocketAddr,
    flow: &Flow,
) -> Result<Upstream, Unreached> {
    let place = pod.places.socket().map_err(Unreached::for_good)?;
    let itself = flow
        .destination
        .workload
        .as_ref()
        .is_some_and(|workload| workload.uid == pod.uid);
    let dialled = match flow.source.addr {
        Some(client) if itself => {
            let caller = Caller {
                client,
                has_spoken: false,
            };
            dial_app(&worker.sockets, pod, addr, caller).await
        }
        client => {
            let source = client.map_or(addr.ip(), |client| client.ip());
            dial(&worker.sockets, pod, source, addr).await
        }
    };
    let tcp = dialled.map_err(|error| Unreached {
        outcome: Outcome::Failed(FailureKind::Connect, format!("{addr} cannot be reached: {error}")),
        retry: true,
        is_closed: false,
    })?;
    Ok(Upstream::Tcp(tcp, place))
}

/// A stream to the workload or waypoint at the tunnel's end, over a tunnel that is there or over a new one.
async fn dial_tunnel(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    (question, first): (&Outbound, &Bytes),
    tunnel: &Tunnel,
    flow: &mut Flow,
) -> Result<hbone::Stream, Unreached> {
    let source = &question.source;
    let svid = worker
        .shared
        .svids
        .ready(&source.identity, pod.patience())
        .await
        .ok_or_else(|| Unreached {
            outcome: Outcome::Failed(
                FailureKind::Identity,
                format!("no certificate for {} yet", source.identity),
            ),
            retry: false,
            is_closed: false,
        })?;
    let client = flow.source.addr.unwrap_or(question.destination);
    let key = tunnel_key(source, svid.generation, tunnel, pod, client.ip());
    let request = ConnectRequest {
        authority: Authority::Addr(tunnel.authority),
        baggage: Some(pod.baggage(source)),
        forwarded: Some(Forwarded {
            client,
            host: flow.service.as_ref().map(|it| it.key.hostname.to_string()),
        }),
        traceparent: tls::random().ok().map(|random| TraceParent::new(random, false)),
        first: first.clone(),
    };
    let sessions = worker.shared.svids.sessions();
    let side = || tls::client(sessions, Arc::clone(&svid.cert), Arc::clone(&tunnel.identities));
    let (dialler, from, gateway) = (Arc::clone(worker), Arc::clone(pod), tunnel.addr);
    let source_ip = client.ip();
    let dial = move || async move {
        let place = from.places.socket().map_err(io::Error::other)?;
        let tcp = dial(&dialler.sockets, &from, source_ip, gateway).await?;
        let held = Box::new(place);
        Ok(Dialled { tcp, held })
    };
    let stream = worker
        .tunnels
        .connect(key, side, dial, request)
        .await
        .map_err(|error| Unreached::through(&error))?;
    flow.security = Security::MutualTls;
    flow.source.identity = Some(source.identity.clone());
    flow.destination.identity = stream.session().map(|session| session.peer.clone());
    Ok(stream)
}

/// Which tunnels lead there from a pod.
fn tunnel_key(
    source: &Workload,
    generation: u64,
    tunnel: &Tunnel,
    pod: &Pod,
    source_ip: IpAddr,
) -> TunnelKey {
    TunnelKey {
        source: source.identity.clone(),
        generation,
        accept: Arc::clone(&tunnel.identities),
        netns: pod.netns.cookie(),
        source_ip,
        gateway: tunnel.addr,
    }
}

/// Copies until both sides have ended.
async fn carry(worker: &Worker, begun: Box<Begun>, since: Instant) {
    let Begun {
        app,
        first,
        upstream,
        flow,
        _place,
    } = *begun;
    let carried = Carried::open(&worker.shared, flow, since, None, upstream.session());
    let copied = match upstream {
        Upstream::Tcp(upstream, _place) => {
            // Boxed: it is larger than what most connections need, which go through tunnels.
            let copy = Box::pin(copy_tcp(app, upstream, first, carried.counts()));
            carried.unless_refused(copy).await
        }
        Upstream::Tunnel(stream) => {
            let copy = pin!(hbone::copy(
                app,
                (stream, first),
                AppSide::Dialled,
                carried.counts()
            ));
            carried.unless_refused(copy).await
        }
    };
    carried.close(copied);
}
