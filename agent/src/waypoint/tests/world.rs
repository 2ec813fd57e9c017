//! A waypoint without a kernel: a client's tunnels on one side, apps on the other, on addresses of loopback that no other test has.

use std::{
    collections::HashSet,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http1, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket},
    runtime::Handle,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    hbone::{self, Authority, ConnectError, ConnectRequest, Io, TunnelKey},
    limits::{LimitSettings, Limits, Places},
    mesh::{
        HBONE_PORT, Mesh, MeshParts, PortMapping, Service, SpiffeId, TrustDomain, TunnelProtocol, Workload,
        http::Routes, sample,
    },
    net::{lanes::Lanes, socket::listen_shared, tls},
    svid::{LocalCa, Sources, StoreSettings, SvidStore},
    telemetry::{DroppedLines, Metrics},
    waypoint::{
        Seen, Settings, Shared,
        jwt::{Authenticator, Fetcher},
        listen,
        tcp::Connections,
    },
};

/// Nothing in these tests takes longer unless it hangs.
pub(super) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(10), future).await.expect("it hangs")
}

/// Waits until `condition` holds.
pub(super) async fn until(condition: impl Fn() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A network of loopback that nobody else uses: tests run beside each other, in several processes.
fn network() -> [u8; 3] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let nth = NEXT.fetch_add(1, SeqCst);
    let process = std::process::id() as u16;
    [127, 1 + (process % 120) as u8, (nth % 256) as u8]
}

pub(super) fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "demo", account).unwrap()
}

pub(super) use sample::service_key as key;

/// What a test makes of the mesh before it is in force.
pub(super) struct Plan {
    network: [u8; 3],
    pub(super) parts: MeshParts,
    pub(super) settings: Settings,
}

impl Plan {
    pub(super) fn new() -> Self {
        let network = network();
        let mut plan = Self {
            network,
            parts: parts(),
            settings: Settings::default(),
        };
        let client = plan.pod("curl", 2);
        let mut waypoint = plan.pod("waypoint", 3);
        waypoint.services.insert(key("waypoint"), Vec::new());
        waypoint.native_tunnel = true;
        plan.parts.workloads.extend([client, waypoint]);
        let mut gateway = plan.service("waypoint", 200, &[]);
        gateway.waypoint = None;
        plan.parts.services.push(gateway);
        plan
    }

    pub(super) fn ip(&self, host: u8) -> IpAddr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, host).into()
    }

    /// A pod that is not in the mesh, at this address.
    pub(super) fn pod(&self, name: &str, host: u8) -> Workload {
        Workload {
            identity: id(name),
            addresses: vec![self.ip(host)],
            tunnel_protocol: TunnelProtocol::None,
            ..sample::pod(name, &[])
        }
    }

    /// A service that is bound to the waypoint.
    pub(super) fn service(&self, name: &str, host: u8, ports: &[u16]) -> Service {
        let mapping = |port: &u16| PortMapping {
            service_port: *port,
            target_port: *port,
        };
        Service {
            vips: vec![self.ip(host)],
            ports: ports.iter().map(mapping).collect(),
            waypoint: sample::waypoint_service("waypoint"),
            ..sample::service(name, &[])
        }
    }

    /// Service `web` on port 80, in front of these apps.
    pub(super) fn web(&mut self, apps: &[&App]) {
        let web = self.service("web", 100, &[80]);
        self.parts.services.push(web);
        for (nth, app) in (0..).zip(apps) {
            let mut pod = self.pod(&format!("web-{nth}"), 0);
            pod.addresses = vec![app.addr.ip()];
            let port = PortMapping {
                service_port: 80,
                target_port: app.addr.port(),
            };
            pod.services.insert(key("web"), vec![port]);
            self.parts.workloads.push(pod);
        }
    }

    /// What is done with requests to `web`, on port 80.
    pub(super) fn rules(&mut self, entries: Value, rules: Value) {
        self.routes(json!({ "http": { "80": { "producer": { "entries": entries, "rules": rules } } } }));
    }

    /// The same, as the feed has it, without the service's name.
    pub(super) fn routes(&mut self, mut values: Value) {
        values["service"] = serde_json::to_value(key("web")).unwrap();
        let routes = Routes::new(serde_json::from_value(values).unwrap()).unwrap();
        self.parts.http.routes.insert(0, Arc::new(routes));
    }

    pub(super) async fn start(self) -> World {
        World::start(self).await
    }
}

/// An empty mesh that has no addresses of its own: those of loopback are somebody else's.
fn parts() -> MeshParts {
    MeshParts {
        cluster_cidrs: Vec::new(),
        ..sample::parts()
    }
}

/// A rule that sends everything to `web`.
pub(super) fn to_web(name: &str) -> Value {
    let to = json!({ "service": { "service": key("web"), "port": 80 } });
    json!({ "name": name, "action": { "forward": [{ "to": to, "weight": 1 }] } })
}

pub(super) struct World {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: hbone::Pool,
    pub(super) drain: CancellationToken,
    pub(super) worker: JoinHandle<()>,
    pub(super) web: SocketAddr,
    pub(super) waypoint: SocketAddr,
    client: IpAddr,
}

impl World {
    async fn start(plan: Plan) -> Self {
        let (cert, private) = LocalCa::create(&TrustDomain::default()).unwrap();
        let ca = LocalCa::from_pem(
            cert.as_bytes(),
            private.as_bytes(),
            Path::new("cert"),
            Path::new("key"),
        )
        .unwrap();
        let svids = SvidStore::spawn(Sources::of(Arc::new(ca)), StoreSettings::default());
        svids.desire(HashSet::from(["curl", "waypoint"].map(id)));
        for account in ["curl", "waypoint"] {
            svids.ready(&id(account), Duration::from_secs(10)).await.unwrap();
        }
        let (web, waypoint, client) = (plan.ip(100), plan.ip(3), plan.ip(2));
        let waypoint = SocketAddr::new(waypoint, HBONE_PORT);
        let tunnel_settings = hbone::Settings {
            drain_timeout: plan.settings.drain_timeout,
            ..hbone::Settings::default()
        };
        let limits = Limits::new(&LimitSettings::default(), 1 << 16).0;
        let shared = Arc::new(Shared {
            seen: ArcSwapOption::empty(),
            svids,
            metrics: Metrics::of_waypoint("test", DroppedLines::default()),
            settings: plan.settings,
            tunnel_settings: tunnel_settings.clone(),
            places: Places::new(limits).of_pod(),
            authenticator: Authenticator::new(Fetcher::new(Handle::current(), []).unwrap()),
            connections: Connections::default(),
        });
        let drain = CancellationToken::new();
        let listener = listen_shared(waypoint).unwrap();
        let worker = tokio::spawn(listen::run(listener, Arc::clone(&shared), drain.clone()));
        let world = Self {
            shared,
            pool: hbone::Pool::new(tunnel_settings, Lanes::default()),
            drain,
            worker,
            web: SocketAddr::new(web, 80),
            waypoint,
            client,
        };
        world.take(plan.parts);
        world
    }

    /// Puts a mesh in force.
    pub(super) fn take(&self, mut parts: MeshParts) {
        // As the feed does: of services of which nothing was said, that there is nothing.
        for service in &parts.services {
            let nothing = serde_json::from_value(json!({ "service": service.key })).unwrap();
            parts.http.routes.push(Arc::new(Routes::new(nothing).unwrap()));
        }
        let mesh = Arc::new(Mesh::new(parts));
        let own = mesh.workload_at(self.waypoint.ip()).cloned().unwrap();
        self.shared.authenticator.update(mesh.request_authentications());
        let seen = Arc::new(Seen {
            mesh,
            own,
            identity: id("waypoint"),
        });
        self.shared.seen.store(Some(Arc::clone(&seen)));
        self.shared.connections.reconsider(&seen);
    }

    /// A stream of the client's tunnel to `target`.
    pub(super) async fn connect(&self, target: impl Into<Authority>) -> Result<Io, ConnectError> {
        let svid = self.shared.svids.current(&id("curl")).unwrap();
        let accept: Arc<[SpiffeId]> = [id("waypoint")].into();
        let key = TunnelKey {
            source: id("curl"),
            generation: svid.generation,
            accept: Arc::clone(&accept),
            netns: 0,
            source_ip: self.client,
            gateway: self.waypoint,
        };
        let request = ConnectRequest {
            authority: target.into(),
            baggage: None,
            forwarded: None,
            traceparent: None,
            first: Bytes::new(),
        };
        let side = || tls::client(self.shared.svids.sessions(), Arc::clone(&svid.cert), accept);
        let (client, waypoint) = (self.client, self.waypoint);
        let dial = move || async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(client, 0))?;
            socket.connect(waypoint).await
        };
        let stream = soon(self.pool.connect(key, side, dial, request)).await?;
        Ok(Io::from(stream))
    }

    /// An HTTP/1.1 connection to `web`.
    pub(super) async fn http1(&self) -> http1::SendRequest<Full<Bytes>> {
        let io = self.connect(self.web).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// One request to `web` on a connection of its own.
    pub(super) async fn ask(&self, request: Request<Full<Bytes>>) -> Response<Bytes> {
        let mut sender = self.http1().await;
        whole(soon(sender.send_request(request)).await.unwrap()).await
    }

    pub(super) async fn get(&self, path: &str) -> Response<Bytes> {
        self.ask(get(path)).await
    }
}

pub(super) fn get(path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(path).header("host", "web.demo");
    request.body(Full::default()).unwrap()
}

pub(super) fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "web.demo");
    request.body(Full::new(body.into())).unwrap()
}

/// A response with all of its body.
pub(super) async fn whole(response: Response<Incoming>) -> Response<Bytes> {
    let (parts, body) = response.into_parts();
    let body = soon(body.collect()).await.unwrap().to_bytes();
    Response::from_parts(parts, body)
}

pub(super) fn text(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

pub(super) type Answer = Response<BoxBody<Bytes, hyper::Error>>;

pub(super) fn body(bytes: impl Into<Bytes>) -> BoxBody<Bytes, hyper::Error> {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// An app that speaks HTTP, and what it was asked.
pub(super) struct App {
    pub(super) addr: SocketAddr,
    pub(super) asked: Arc<Mutex<Vec<http::request::Parts>>>,
    /// Connections that it took.
    pub(super) connections: Arc<AtomicU16>,
}

impl App {
    /// Answers with its name.
    pub(super) async fn named(name: &'static str) -> Self {
        Self::new(move |_| Box::pin(async move { Response::new(body(name)) })).await
    }

    pub(super) async fn new<F>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
    {
        let [a, b, c] = network();
        let listener = TcpListener::bind((Ipv4Addr::new(a, b, c, 50), 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (asked, connections) = (Arc::default(), Arc::<AtomicU16>::default());
        let app = Self {
            addr,
            asked: Arc::clone(&asked),
            connections: Arc::clone(&connections),
        };
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                connections.fetch_add(1, SeqCst);
                let (answer, asked): (Arc<F>, Arc<Mutex<Vec<_>>>) = (Arc::clone(&answer), Arc::clone(&asked));
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let (parts, body) = request.into_parts();
                        let mut kept = parts.clone();
                        kept.extensions.clear();
                        asked.lock().unwrap().push(kept);
                        let answered = answer(Request::from_parts(parts, body));
                        async move { Ok::<_, Infallible>(answered.await) }
                    });
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let served = builder.serve_connection_with_upgrades(TokioIo::new(tcp), service);
                    let _ = served.await;
                });
            }
        });
        app
    }

    pub(super) fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    pub(super) fn last(&self) -> http::request::Parts {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }
}
