//! What is no HTTP: TLS that is passed through, by the name that the client asks for, and any other TCP.
//!
//! It is routed, authorized by what a connection has, carried, and recorded as one `Flow`. A policy that asks for what only a
//! request has refuses it where it denies, and does not let it through where it allows. A change of the mesh asks again.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use socket2::SockRef;
use tokio::{io::copy_bidirectional_with_sizes, sync::Notify};
use tokio_util::io::InspectReader;

use super::{
    Seen,
    balance::{Cluster, To},
    client::{Client, Here},
    draw,
    sniff::Spoken,
    tunnel::record,
    upstream::{Leg, open},
};
use crate::{
    hbone::{Baggage, Io, Responder},
    mesh::{
        Bound, FailureKind, Flow, Inbound, Mesh, Outcome, Party, PolicyKey, Refusal, Verdict,
        authorize_from_waypoint, authorize_service_connection,
        http::{Backend, Destination, TlsDecision},
    },
    net::copy::Count as _,
    telemetry::{chain, log},
};

/// Endpoints of a service that are tried before the client is refused.
const ATTEMPTS: usize = 3;
/// What one read may bring.
const BUFFER: usize = 32 * 1024;

/// A connection on a port on which nothing else is spoken: answered when the endpoint was reached.
pub(super) async fn serve(client: Client, mut respond: Responder, since: Instant) {
    let mut flow = client.tunnel.flow(client.addr);
    let reached = tokio::select! {
        reached = Box::pin(reach(&client, None, &mut flow)) => reached,
        () = respond.cancelled() => {
            Err(Outcome::Failed(FailureKind::Broken, "the client gave up before the answer".to_owned()))
        }
    };
    match reached {
        Ok(reached) => {
            let baggage = Baggage::of(&reached.here.seen.own).header();
            let Ok(stream) = respond.accept(Some(&baggage)) else {
                let gone = Outcome::Failed(FailureKind::Broken, "the client has gone".to_owned());
                return record(client.worker(), flow, gone, since);
            };
            run(&client, Io::from(stream), reached, flow, since).await;
        }
        Err(outcome) => {
            respond.refuse(match &outcome {
                Outcome::Refused(refusal) => refusal.http_status(),
                Outcome::Complete | Outcome::Failed(..) => 503,
            });
            record(client.worker(), flow, outcome, since);
        }
    }
}

/// A connection that turned out to be no HTTP. Dropping the stream resets it: nothing was reached.
pub(super) async fn carry(client: Client, mut io: Io, spoken: Spoken, since: Instant) {
    let mut flow = client.tunnel.flow(client.addr);
    let sni = match spoken {
        Spoken::Tls => server_name(&mut io).await,
        _ => None,
    };
    let tls = (spoken == Spoken::Tls).then_some(sni.as_deref());
    match Box::pin(reach(&client, tls, &mut flow)).await {
        Ok(reached) => run(&client, io, reached, flow, since).await,
        Err(outcome) => record(client.worker(), flow, outcome, since),
    }
}

/// The longest beginning of a TLS connection that is read for the name in it.
const LONGEST_HELLO: usize = 32 * 1024;

/// The name that the client asks for (RFC 6066 3); none where its first message cannot be read.
async fn server_name(io: &mut Io) -> Option<String> {
    let mut wanted = 1;
    loop {
        let seen = io.peek(wanted).await.ok()?;
        let (is_all, seen) = (seen.len() < wanted, io.first(LONGEST_HELLO));
        let mut acceptor = rustls::server::Acceptor::default();
        acceptor.read_tls(&mut &*seen).ok()?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_ascii_lowercase);
                return name;
            }
            Ok(None) if !is_all && seen.len() < LONGEST_HELLO => wanted = seen.len() + 1,
            Ok(None) | Err(_) => return None,
        }
    }
}

/// An endpoint that was reached.
struct Reached {
    leg: Leg,
    here: Arc<Here>,
    asked: Question,
}

/// What was asked of the mesh when a connection was opened.
struct Question {
    bound: Bound,
    dialled: Inbound,
    uid: Arc<str>,
    conn: Inbound,
}

impl Question {
    /// What the policies say of the service and of the workload.
    fn ask(&self, mesh: &Mesh) -> Result<Option<PolicyKey>, Refusal> {
        let policies = self.bound.demands(mesh)?.policies;
        let of_service = allowed(authorize_service_connection(mesh, &policies, &self.dialled))?;
        let workload = mesh.workload(&self.uid).ok_or(Refusal::UnknownWorkload)?;
        Ok(allowed(authorize_from_waypoint(mesh, workload, &self.conn))?.or(of_service))
    }
}

fn allowed(verdict: Verdict) -> Result<Option<PolicyKey>, Refusal> {
    match verdict {
        Verdict::Allow { policy } => Ok(policy),
        Verdict::Deny(refusal) => Err(refusal),
    }
}

/// Gets where the client wants to go. `tls` is there where TLS is spoken, with the name that is asked for.
async fn reach(client: &Client, tls: Option<Option<&str>>, flow: &mut Flow) -> Result<Reached, Outcome> {
    let here = client.here()?;
    flow.source.workload = here.source.clone();
    flow.service = here.bound.service().cloned();
    flow.destination.addr = Some(here.dialled);
    let backend = route(&here, tls)?;
    let to = destination(&here, backend)?;
    let worker = client.worker();
    let cluster = worker.upstreams.cluster(&here.seen, to)?;
    let mut tried = Vec::new();
    loop {
        match reach_once(client, &here, &cluster, &mut tried, flow).await {
            Err((_, true)) if tried.len() < ATTEMPTS => {}
            Err((outcome, _)) => return Err(outcome),
            Ok((leg, asked)) => return Ok(Reached { leg, here, asked }),
        }
    }
}

/// One attempt. The second part of a failure is whether another endpoint may be tried.
async fn reach_once(
    client: &Client,
    here: &Here,
    cluster: &Cluster,
    tried: &mut Vec<SocketAddr>,
    flow: &mut Flow,
) -> Result<(Leg, Question), (Outcome, bool)> {
    let refused = |refusal: Refusal| (Outcome::Refused(refusal), false);
    let none = || {
        let service = here.bound.service().map(|service| service.key.clone());
        refused(service.map_or(
            Refusal::UnknownDestination(here.dialled),
            Refusal::NoHealthyEndpoint,
        ))
    };
    let member = cluster.pick(draw(), tried, false).ok_or_else(none)?;
    tried.push(member.endpoint.addr);
    let inbound = |destination| Inbound {
        peer: Some(client.identity().clone()),
        source_ip: client.addr.ip(),
        destination,
    };
    let workload = &member.endpoint.workload;
    flow.destination = Party {
        addr: Some(member.endpoint.addr),
        workload: Some(Arc::clone(workload)),
        identity: None,
    };
    let question = Question {
        bound: here.bound.clone(),
        dialled: inbound(here.dialled),
        uid: Arc::clone(&workload.uid),
        conn: inbound(member.endpoint.addr),
    };
    flow.policy = question.ask(&here.seen.mesh).map_err(refused)?;
    let wait = cluster.policy.connect_timeout_ms;
    let opened = open(client.worker(), &member.upstream.hop, Some(client.addr), wait).await;
    let leg = opened.map_err(|error| {
        let may_retry = error.may_retry();
        (Outcome::Failed(error.kind(), chain(&error)), may_retry)
    })?;
    if let Leg::Tunnel(io) = &leg {
        flow.destination.identity = io.session().map(|session| session.peer.clone());
    }
    Ok((leg, question))
}

/// The backend that routes give; none where there are none.
fn route<'a>(here: &'a Here, tls: Option<Option<&str>>) -> Result<Option<&'a Backend>, Refusal> {
    let Some(routes) = &here.routes else {
        return Ok(None);
    };
    let port = here.bound.port();
    let nobody = || Refusal::NoHealthyEndpoint(routes.values().service.clone());
    if let Some(sni) = tls {
        match routes.tls(port, sni) {
            TlsDecision::Rule(rule) => return rule.backend(draw()).map(Some).ok_or_else(nobody),
            TlsDecision::NotFound => return Err(nobody()),
            TlsDecision::Unrouted => {}
        }
    }
    match routes.tcp(port) {
        Some(route) => route.backend(draw()).map(Some).ok_or_else(nobody),
        None => Ok(None),
    }
}

fn destination<'a>(here: &'a Here, backend: Option<&'a Backend>) -> Result<To<'a>, Refusal> {
    match (backend.map(|backend| &backend.to), &here.bound) {
        (Some(Destination::Service { service, subset, .. }), Bound::Workload { addr, of, .. })
            if subset.is_none() && of.as_ref().is_some_and(|(of, _)| of.key == *service) =>
        {
            Ok(To::Pod(*addr))
        }
        (
            Some(Destination::Service {
                service,
                port,
                subset,
            }),
            _,
        ) => Ok(To::Service(service, *port, subset.as_ref())),
        (Some(Destination::Nowhere(_)), _) => {
            let service = here.bound.service().map(|service| service.key.clone());
            Err(service.map_or(
                Refusal::UnknownDestination(here.dialled),
                Refusal::NoHealthyEndpoint,
            ))
        }
        (None, Bound::Service { service, port }) => Ok(To::Service(&service.key, *port, None)),
        (None, Bound::Workload { addr, .. }) => Ok(To::Pod(*addr)),
    }
}

/// Copies until both sides have ended, or a change of the mesh refuses the connection.
async fn run(client: &Client, io: Io, reached: Reached, flow: Flow, since: Instant) {
    let shared = &client.worker().shared;
    log::opened(&flow);
    let counts = shared.metrics.open(&flow);
    let open = Arc::new(Open {
        asked: reached.asked,
        refused: OnceLock::new(),
        wake: Notify::new(),
    });
    let listed = shared.connections.list(Arc::clone(&open));
    // The mesh may have changed while the endpoint was dialled.
    if let Some(seen) = &*shared.seen.load() {
        open.reconsider(&seen.mesh);
    }
    if let Leg::Tcp(tcp, _) = &reached.leg {
        // A connection that is cut short must not look finished.
        let _ = tcp.set_zero_linger();
    }
    let mut near = InspectReader::new(io, |bytes: &[u8]| counts.up(bytes.len() as u64));
    let mut far = InspectReader::new(reached.leg, |bytes: &[u8]| counts.down(bytes.len() as u64));
    let outcome = tokio::select! {
        biased;
        refusal = open.refused() => Outcome::Refused(refusal),
        ended = client.tunnel.session.rejected() => Outcome::Failed(FailureKind::Tls, ended.to_string()),
        copied = copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER) => match copied {
            Ok(_) => Outcome::Complete,
            Err(error) => Outcome::Failed(FailureKind::Broken, chain(&error)),
        },
    };
    if let (Outcome::Complete, Leg::Tcp(tcp, _)) = (&outcome, far.get_ref()) {
        let _ = SockRef::from(tcp).set_linger(None);
    }
    drop((near, far, listed));
    let mut flow = flow;
    flow.outcome = outcome;
    flow.request_bytes = counts.request_total();
    flow.response_bytes = counts.response_total();
    flow.duration = since.elapsed();
    counts.close(&flow);
    log::access(&flow);
}

/// A connection that is open.
struct Open {
    asked: Question,
    refused: OnceLock<Refusal>,
    wake: Notify,
}

impl Open {
    /// Waits until a change of the mesh refuses it.
    async fn refused(&self) -> Refusal {
        loop {
            let woken = self.wake.notified();
            if let Some(refusal) = self.refused.get() {
                return refusal.clone();
            }
            woken.await;
        }
    }

    fn reconsider(&self, mesh: &Mesh) {
        if let Err(refusal) = self.asked.ask(mesh) {
            // Refused once is refused for good.
            let _ = self.refused.set(refusal);
            self.wake.notify_waiters();
        }
    }
}

/// All connections that are open and no requests.
#[derive(Default)]
pub(super) struct Connections {
    open: Mutex<HashMap<u64, Arc<Open>>>,
    next: AtomicU64,
}

/// One of them, until it is dropped.
struct Listed<'a> {
    of: &'a Connections,
    id: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.of.lock().remove(&self.id);
    }
}

impl Connections {
    fn list(&self, open: Arc<Open>) -> Listed<'_> {
        let id = self.next.fetch_add(1, Relaxed);
        self.lock().insert(id, open);
        Listed { of: self, id }
    }

    /// Asks again for each, and ends those that are refused now.
    pub(super) fn reconsider(&self, seen: &Seen) {
        // Copied out, so that connections can end while the policies are evaluated.
        let open: Vec<_> = self.lock().values().cloned().collect();
        for open in open {
            open.reconsider(&seen.mesh);
        }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
