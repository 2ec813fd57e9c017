//! A connection that arrives at a captured pod: through a tunnel from another agent, or in plaintext.
//!
//! Both end the same way: `authorize`, dial the app from inside the pod, copy. Policy is enforced here, at the
//! destination, whatever the other side did or did not do.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    connections::{Asked, Carried},
    dial::{Caller, dial_app},
    pod::Pod,
    target,
    worker::Worker,
};
use crate::{
    hbone::{self, AppSide, Authority, Forwarded, Request, Responder, Settings},
    limits::Place,
    mesh::{
        Direction, FailureKind, Flow, Inbound, Mesh, Outcome, Party, Refusal, Security, Verdict, Workload,
        authorize, dry_run_matches,
    },
    net::{
        copy::copy_tcp,
        socket::{abort_on_close, tune_tunnel},
        tls::{self, Session},
    },
    telemetry::chain,
};

/// Serves one plaintext connection, from accept to close, and records it once.
pub(super) async fn serve_plaintext(worker: Arc<Worker>, pod: Arc<Pod>, client: TcpStream, peer: SocketAddr) {
    let since = Instant::now();
    let source = Party {
        addr: Some(peer),
        ..Party::default()
    };
    let mut flow = Box::new(Flow::new(Direction::Inbound, source, Party::default()));
    match admit_plaintext(&worker, &pod, &client, peer, &mut flow).await {
        Ok(Admitted { app, asked, _places }) => {
            let carried = Carried::open(&worker.shared, flow, since, Some(asked), None);
            let copied = {
                let copy = pin!(copy_tcp(client, app, Bytes::new(), carried.counts()));
                carried.unless_refused(copy).await
            };
            carried.close(copied);
        }
        Err(outcome) => {
            abort_on_close(&client);
            flow.outcome = outcome;
            worker.record_refused(flow, since);
        }
    }
}

async fn admit_plaintext(
    worker: &Worker,
    pod: &Pod,
    client: &TcpStream,
    peer: SocketAddr,
    flow: &mut Flow,
) -> Result<Admitted, Outcome> {
    let accepted = pod.places.socket()?;
    let destination = client
        .local_addr()
        .map(super::worker::canonical)
        .map_err(|_| Refusal::NotCaptured)?;
    flow.destination.addr = Some(destination);
    let mesh = worker.shared.mesh.load_full().ok_or(Refusal::NoMesh)?;
    let workload = mesh.workload(&pod.uid).ok_or(Refusal::UnknownWorkload)?;
    flow.destination.workload = Some(Arc::clone(workload));
    flow.source.workload = mesh.workload_at(peer.ip()).cloned();
    flow.service = target::of_port(&mesh, workload, destination.port(), None);
    if !pod.addresses.contains(&destination.ip()) {
        // An app of the pod that dialled our listener itself.
        return Err(Refusal::NotThisWorkload(destination.to_string()).into());
    }
    let question = Inbound {
        peer: None,
        source_ip: peer.ip(),
        destination,
    };
    let caller = Caller {
        client: peer,
        has_spoken: false,
    };
    let mut admitted = admit(worker, pod, (&mesh, workload), question, caller, flow).await?;
    admitted._places.push(accepted);
    Ok(admitted)
}

/// Serves one tunnel: the handshake, and then each of its streams as a connection of its own.
///
/// When `released` is cancelled its peer is told to open new streams elsewhere.
pub(super) async fn serve_tunnel(
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    tcp: TcpStream,
    peer: SocketAddr,
    released: CancellationToken,
) {
    let since = Instant::now();
    let gateway = tcp.local_addr().ok().map(super::worker::canonical);
    match accept_tunnel(&worker, &pod, tcp, peer).await {
        Ok(Accepted {
            stream,
            session,
            replaced,
            _places,
        }) => {
            let tunnel = Arc::new(InboundTunnel {
                worker: Arc::clone(&worker),
                pod,
                peer,
                gateway,
                session,
                replaced,
            });
            tunnel.serve(stream, released).await;
        }
        Err(outcome) => {
            let source = Party {
                addr: Some(peer),
                ..Party::default()
            };
            let mut flow = Box::new(Flow::new(Direction::Inbound, source, Party::default()));
            let mesh = worker.shared.mesh.load_full();
            flow.destination.workload = mesh.and_then(|mesh| mesh.workload(&pod.uid).cloned());
            flow.gateway = gateway;
            flow.outcome = outcome;
            worker.record_refused(flow, since);
        }
    }
}

/// A tunnel after its handshake.
struct Accepted {
    stream: tls::ServerStream,
    session: Arc<Session>,
    /// Set when our certificate is not the pod's any more.
    replaced: CancellationToken,
    _places: [Place; 2],
}

/// TLS with the certificate of the pod that was dialled.
async fn accept_tunnel(
    worker: &Worker,
    pod: &Pod,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Result<Accepted, Outcome> {
    let begun = pod
        .places
        .socket()
        .and_then(|socket| Ok((socket, pod.places.handshake(peer.ip())?)));
    // A flood leaves nothing behind in the pod, not even sockets that wait for their end.
    let (socket, _underway) = begun.inspect_err(|_| abort_on_close(&tcp))?;
    let (server, replaced) = server(worker, pod).await?;
    tune_tunnel(&tcp);
    let accepted = tls::accept(tcp, server, worker.tunnel_settings.handshake_timeout).await;
    let (stream, session) = accepted.map_err(|error| Outcome::Failed(error.kind(), chain(&error)))?;
    Ok(Accepted {
        stream,
        session,
        replaced,
        _places: [socket, pod.places.tunnel(peer.ip())?],
    })
}

/// TLS as the pod that was dialled speaks it, and until when it does. A pod that has just been captured is waited for: other nodes may
/// know of it before its own has its certificate.
async fn server(worker: &Worker, pod: &Pod) -> Result<(tls::Server, CancellationToken), Outcome> {
    worker.be_told_of(pod).await;
    let mesh = worker.shared.mesh.load_full().ok_or(Refusal::NoMesh)?;
    let workload = mesh.workload(&pod.uid).ok_or(Refusal::UnknownWorkload)?;
    let svids = &worker.shared.svids;
    let svid = svids.ready(&workload.identity, pod.patience()).await;
    let svid = svid.ok_or_else(|| {
        Outcome::Failed(
            FailureKind::Identity,
            format!("no certificate for {} yet", workload.identity),
        )
    })?;
    let trust_domains = std::slice::from_ref(mesh.trust_domain());
    let server = tls::server(
        worker.shared.svids.sessions(),
        Arc::clone(&svid.cert),
        trust_domains,
    )
    .map_err(|error| Outcome::Failed(FailureKind::Tls, chain(&error)))?;
    Ok((server, svid.replaced.clone()))
}

/// A tunnel whose peer has proved who it is.
struct InboundTunnel {
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    peer: SocketAddr,
    /// The address that the peer dialled.
    gateway: Option<SocketAddr>,
    session: Arc<Session>,
    replaced: CancellationToken,
}

impl InboundTunnel {
    async fn serve(self: Arc<Self>, stream: tls::ServerStream, released: CancellationToken) {
        let goaway = released.child_token();
        let drain = hbone::Drain {
            goaway: goaway.clone(),
            begins: self.worker.drain.begins.clone(),
        };
        let settings = Settings {
            drain_timeout: self.worker.drain.timeout,
            ..self.worker.tunnel_settings.clone()
        };
        let here = self.gateway.map_or(self.peer.ip(), |gateway| gateway.ip());
        let pair = (self.peer.ip(), here);
        let each = |request| {
            let stream = Arc::clone(&self).serve_stream(Box::new(request));
            self.worker.lanes.spawn(stream);
        };
        // New streams are for a tunnel with the new certificate; open ones go on.
        let renewed = async {
            self.replaced.cancelled().await;
            goaway.cancel();
            std::future::pending::<Infallible>().await
        };
        let (peer, identity, pod) = (self.peer, &self.session.peer, &self.pod.uid);
        tokio::select! {
            // First: nothing more is read from a peer that is not trusted any more.
            biased;
            why = self.session.rejected() => {
                tracing::warn!(%peer, %pod, %why, "a tunnel was cut: it is not trusted any more");
            }
            served = hbone::serve(stream, &settings, pair, drain, each) => match served {
                Err(error) if error.is_usual() => {
                    tracing::debug!(%peer, %identity, %pod, error = chain(&error), "a tunnel ended");
                }
                Err(error) => {
                    tracing::warn!(%peer, %identity, %pod, error = chain(&error), "a tunnel ended before its time");
                }
                Ok(()) => {}
            },
            never = renewed => match never {},
        }
    }

    /// One stream, from CONNECT to close, recorded once.
    async fn serve_stream(self: Arc<Self>, mut request: Box<Request>) {
        let since = Instant::now();
        let client = self.client(request.forwarded.as_ref());
        let source = Party {
            addr: Some(client),
            workload: None,
            identity: Some(self.session.peer.clone()),
        };
        let mut flow = Box::new(Flow::new(Direction::Inbound, source, Party::default()));
        flow.security = Security::MutualTls;
        flow.gateway = self.gateway;
        let target = request.target.clone();
        let host = request
            .forwarded
            .as_ref()
            .and_then(|forwarded| forwarded.host.clone());
        let caller = Caller {
            client,
            has_spoken: request.respond.has_first_bytes(),
        };
        let admitted = tokio::select! {
            // Boxed: what it needs would otherwise be kept for as long as the stream lives.
            admitted = Box::pin(self.admit_stream(target, host, caller, &mut flow)) => admitted,
            () = request.respond.cancelled() => {
                Err(Outcome::Failed(FailureKind::Broken, "the client gave up before the answer".to_owned()))
            }
        };
        // Of the request nothing else is kept.
        let respond = request.into_responder();
        match admitted {
            Ok(admitted) => self.carry(respond, admitted, flow, since).await,
            Err(outcome) => {
                respond.refuse(status_of(&outcome));
                flow.outcome = outcome;
                self.worker.record_refused(flow, since);
            }
        }
    }

    /// The client that the app is to see. The address is the tunnel's own, which cannot be forged; the port is what
    /// the other agent says, as long as it speaks of the same address.
    fn client(&self, forwarded: Option<&Forwarded>) -> SocketAddr {
        let said = forwarded.map(|forwarded| super::worker::canonical(forwarded.client));
        said.filter(|said| said.ip() == self.peer.ip())
            .unwrap_or(self.peer)
    }

    async fn admit_stream(
        &self,
        target: Result<Authority, Refusal>,
        host: Option<String>,
        caller: Caller,
        flow: &mut Flow,
    ) -> Result<Admitted, Outcome> {
        let mesh = self.worker.shared.mesh.load_full().ok_or(Refusal::NoMesh)?;
        let workload = mesh.workload(&self.pod.uid).ok_or(Refusal::UnknownWorkload)?;
        flow.destination.workload = Some(Arc::clone(workload));
        flow.destination.identity = Some(workload.identity.clone());
        flow.source.workload = mesh.workload_at(self.peer.ip()).cloned();
        let target = target::of_authority(
            &mesh,
            workload,
            &self.pod,
            &target?,
            (caller.client.ip(), host.as_deref()),
        )?;
        let destination = target.addr;
        flow.destination.addr = Some(destination);
        flow.service = target.service;
        let question = Inbound {
            peer: Some(self.session.peer.clone()),
            source_ip: self.peer.ip(),
            destination,
        };
        admit(&self.worker, &self.pod, (&mesh, workload), question, caller, flow).await
    }

    async fn carry(&self, respond: Responder, admitted: Admitted, flow: Box<Flow>, since: Instant) {
        let Admitted { app, asked, _places } = admitted;
        let workload = flow.destination.workload.as_ref();
        let baggage = workload.map(|workload| self.pod.baggage(workload));
        let session = Some(Arc::clone(&self.session));
        let carried = Carried::open(&self.worker.shared, flow, since, Some(asked), session);
        let copied = match respond.accept(baggage.as_ref()) {
            Ok(stream) => {
                let copy = pin!(hbone::copy(
                    app,
                    (stream, Bytes::new()),
                    AppSide::Answered,
                    carried.counts()
                ));
                carried.unless_refused(copy).await
            }
            Err(error) => {
                abort_on_close(&app);
                Outcome::Failed(FailureKind::Broken, chain(&error))
            }
        };
        carried.close(copied);
    }
}

/// A connection whose way is clear.
struct Admitted {
    app: TcpStream,
    asked: Asked,
    /// Held for as long as it is open.
    _places: Vec<Place>,
}

/// Asks `authorize`, and dials the app when the answer is yes.
async fn admit(
    worker: &Worker,
    pod: &Pod,
    (mesh, workload): (&Mesh, &Workload),
    question: Inbound,
    caller: Caller,
    flow: &mut Flow,
) -> Result<Admitted, Outcome> {
    tell_of_dry_runs(&worker.shared, mesh, workload, &question, caller.client);
    match authorize(mesh, workload, &question) {
        Verdict::Allow { policy } => flow.policy = policy,
        Verdict::Deny(refusal) => return Err(refusal.into()),
    }
    // The client's own address may be anything; who is asked about is whom the kernel saw.
    let places = vec![pod.places.connection(question.source_ip)?, pod.places.socket()?];
    let destination = question.destination;
    let app = dial_app(&worker.sockets, pod, destination, caller)
        .await
        .map_err(|error| {
            Outcome::Failed(
                FailureKind::Connect,
                format!("the app does not take {destination}: {error}"),
            )
        })?;
    let uid = Arc::clone(&pod.uid);
    Ok(Admitted {
        app,
        asked: Asked { uid, question },
        _places: places,
    })
}

/// Logs and counts what policies that are only tried out would have done.
pub(super) fn tell_of_dry_runs(
    shared: &Shared,
    mesh: &Mesh,
    workload: &Workload,
    question: &Inbound,
    client: SocketAddr,
) {
    for policy in dry_run_matches(mesh, workload, question) {
        shared.metrics.dry_run_matched(policy);
        let (policy, action) = (&policy.key, policy.action);
        tracing::info!(%policy, %action, src = %client, dst = %question.destination, "a dry-run policy matched");
    }
}

/// The answer to a CONNECT that was not admitted.
fn status_of(outcome: &Outcome) -> u16 {
    match outcome {
        Outcome::Refused(refusal) => refusal.http_status(),
        Outcome::Complete | Outcome::Failed(..) => 503,
    }
}

#[cfg(test)]
pub(super) fn stream_size() -> usize {
    fn of_two<A, B, F: Future>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    of_two(InboundTunnel::serve_stream)
}
