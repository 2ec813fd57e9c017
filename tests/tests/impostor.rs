//! The other end of a tunnel is somebody else, or does not do what it should: no byte goes to a server that is not who
//! the mesh says it is, and an app never takes a failure for an end.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod server;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use foreign::{
    certs::{Authority, Svid, Validity},
    server::{Conduct, Impostor},
    tls,
    tunnel::runtime,
};
use http::Method;
use rustls::ServerConfig;
use serde_json::json;
use tokio::runtime::Runtime;
use weft_tests::{
    AccessLine, Agent, LIMIT, Pod, PodSpec, Server, World,
    app::{ask, echo, round_trip},
    wait_until, with_world,
};

const HBONE: u16 = 15008;
const MARKER: &[u8] = b"WEFT-SECRET-OF-THE-APP";

/// A captured client on node a, and on node b a pod that the mesh says speaks HBONE but that nobody captures: what
/// listens there is the test's.
struct Scene {
    client: Pod,
    web: Pod,
    agent: Agent,
    authority: Authority,
    runtime: Runtime,
    /// The app's port, in clear: nothing may ever come here.
    plain: Server,
    /// Local ports, by which a connection that was reset is told from others.
    ports: AtomicU16,
}

impl Scene {
    fn new(world: &mut World) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web").label("app", "web"))?;
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        Self::with(world, client, web)
    }

    fn with(world: &mut World, client: Pod, web: Pod) -> Result<Self> {
        let agent = world.start_agent("a")?;
        let authority = Authority::of(world)?;
        let plain = Server::start(web.listen(8080)?, echo)?;
        Ok(Self {
            client,
            web,
            agent,
            authority,
            runtime: runtime()?,
            plain,
            ports: 20_000.into(),
        })
    }

    fn config(&self, svid: &Svid) -> Result<Arc<ServerConfig>> {
        tls::server(svid, &self.authority.roots()?)
    }

    fn good(&self) -> Result<Arc<ServerConfig>> {
        self.config(&self.authority.svid(&self.web.identity())?)
    }

    fn impostor(&self, config: Arc<ServerConfig>, conduct: Conduct) -> Result<Impostor> {
        Impostor::start(&self.runtime, self.web.listen(HBONE)?, config, conduct)
    }

    /// Dials and says something: it must be reset, and its line is handed back.
    fn reset(&self, addr: SocketAddr) -> Result<AccessLine> {
        let port = self.ports.fetch_add(1, Ordering::SeqCst);
        let local = if addr.is_ipv4() {
            self.client.addr(port)
        } else {
            self.client.addr6(port)
        };
        match self.client.connect_from(local, addr) {
            // A fast no comes before the app has seen that it is connected.
            Err(err) => ensure!(
                err.kind() == ErrorKind::ConnectionReset,
                "connect to {addr}: {err}"
            ),
            Ok(mut app) => ensure_reset(&mut app).with_context(|| addr.to_string())?,
        }
        self.line_of(local)
    }

    fn line_of(&self, client: SocketAddr) -> Result<AccessLine> {
        let client = client.to_string();
        self.agent
            .wait_for_access(&client, |line| line.field("src.addr") == client)
    }

    fn failed(&self, flags: &str) -> Result<f64> {
        let labels = [("reporter", "source"), ("response_flags", flags)];
        Ok(self
            .agent
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &labels))
    }
}

/// In the mesh by its entry alone.
fn stranger(name: &str) -> PodSpec {
    PodSpec::new(name)
        .service_account(name)
        .outside()
        .field("tunnelProtocol", json!("HBONE"))
}

/// Says something to a connection that must end with a reset, whichever call meets it.
fn ensure_reset(app: &mut TcpStream) -> Result<()> {
    match app.write_all(MARKER).and_then(|()| app.read(&mut [0])) {
        Err(err) if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&err.kind()) => Ok(()),
        Err(err) => bail!("no reset: {err}"),
        Ok(0) => bail!("a clean end instead of a reset"),
        Ok(_) => bail!("an answer instead of a reset"),
    }
}

#[test]
fn a_server_with_a_valid_certificate_of_another_service_account_gets_no_byte() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let mallory = "spiffe://cluster.local/ns/demo/sa/mallory";
        let impostor = scene.impostor(scene.config(&scene.authority.svid(mallory)?)?, Conduct::Gather)?;
        let service: SocketAddr = "10.96.0.10:80".parse()?;
        for addr in [scene.web.addr(8080), scene.web.addr6(8080), service] {
            let line = scene.reset(addr)?;
            let wanted = format!(
                "the peer proved to be {mallory}, expected {}",
                scene.web.identity()
            );
            ensure!(line.field("error").contains(&wanted), "{line}");
            ensure!(
                line.level == "ERROR" && line.matches(&[("direction", "outbound"), ("bytes_sent", "0")]),
                "{line}"
            );
            ensure!(
                !line.has("dst.identity"),
                "an identity that nobody proved: {line}"
            );
        }
        ensure!(
            scene.failed("IDENTITY_ERROR")? == 3.0,
            "{} identity errors",
            scene.failed("IDENTITY_ERROR")?
        );
        wait_until("every handshake's end", LIMIT, || {
            let met = impostor.met();
            met.connections >= 3 && met.failed.len() + met.clients.len() == met.connections
        })?;
        {
            let met = impostor.met();
            ensure!(
                met.clients.is_empty() && met.plaintext.is_empty(),
                "it was told something: {met:?}"
            );
            ensure!(met.failed.iter().all(|error| error.contains("alert")), "{met:?}");
        }
        // The same server sees everything once its certificate is the right one.
        impostor.present(scene.good()?, Conduct::Gather);
        scene.reset(scene.web.addr(8080))?;
        ensure!(
            impostor.met().plaintext.starts_with(b"PRI * HTTP/2.0"),
            "{:?}",
            impostor.met()
        );
        ensure!(scene.plain.accepted() == 0, "something came in clear");
        Ok(())
    });
}

#[test]
fn the_right_server_gets_the_connect_as_the_contract_says_and_the_bytes() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        let service: SocketAddr = "10.96.0.10:80".parse()?;
        for (addr, host) in [
            (service, ";host=web.demo.svc.cluster.local"),
            (scene.web.addr(8080), ""),
        ] {
            let app = scene.client.connect(addr)?;
            let local = app.local_addr()?;
            ensure!(ask(app, MARKER)? == MARKER, "{addr}: the echo differs");
            let head = impostor.met().requests.pop().context("no request")?;
            ensure!(head.method == Method::CONNECT, "{head:?}");
            ensure!(
                head.uri.scheme().is_none() && head.uri.path().is_empty(),
                "{head:?}"
            );
            let authority = scene.web.addr(8080).to_string();
            ensure!(
                head.uri.authority().is_some_and(|it| it.as_str() == authority),
                "{head:?}"
            );
            let header = |name| {
                head.headers
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
            };
            ensure!(
                header("forwarded") == format!("for=\"{local}\"{host}"),
                "{head:?}"
            );
            let baggage: Vec<_> = header("baggage").split(',').collect();
            for member in [
                "k8s.cluster.name=Kubernetes",
                "k8s.namespace.name=demo",
                "service.name=client",
            ] {
                ensure!(baggage.contains(&member), "no {member}: {head:?}");
            }
            ensure!(is_traceparent(header("traceparent")), "{head:?}");
            let line = scene.line_of(local)?;
            let sizes = [
                ("bytes_sent", "22"),
                ("bytes_recv", "22"),
                ("dst.identity", &scene.web.identity()),
            ];
            ensure!(line.is_ok() && line.matches(&sizes), "{line}");
        }
        let met = impostor.met();
        ensure!(
            met.connections == 1,
            "{} tunnels where one would do",
            met.connections
        );
        ensure!(!met.named, "the client sent a server name");
        ensure!(
            tls::names(met.clients.first().map(Vec::as_slice), &scene.client.identity()),
            "who is the client?"
        );
        ensure!(scene.plain.accepted() == 0, "something came in clear");
        Ok(())
    });
}

/// W3C Trace Context 3.2.2: version 00, and neither id is all zeros.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
    lengths == [2, 32, 16, 2]
        && parts.iter().all(|part| hex(part))
        && parts[0] == "00"
        && parts[1..3].iter().all(|id| id.bytes().any(|b| b != b'0'))
}

#[test]
fn a_server_without_a_good_certificate_gets_no_byte() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Gather)?;
        let (authority, web) = (&scene.authority, scene.web.identity());
        let other_domain = web.replace("cluster.local", "other.example");
        let issue = |names: &[&str], validity| authority.issue(names, validity);
        let cases = [
            (
                "a foreign root",
                Authority::stranger()?.svid(&web)?,
                "UnknownIssuer",
            ),
            ("expired", issue(&[&web], Validity::Yesterday)?, "expired"),
            (
                "not yet valid",
                issue(&[&web], Validity::Tomorrow)?,
                "not valid yet",
            ),
            (
                "no URI",
                issue(&["web.demo.svc.cluster.local"], Validity::Today)?,
                "no URI among its names",
            ),
            (
                "two URIs",
                issue(&[&web, &other_domain], Validity::Today)?,
                "more than one URI",
            ),
            (
                "another trust domain",
                authority.svid(&other_domain)?,
                "expected spiffe://cluster.local",
            ),
        ];
        for (what, svid, error) in cases {
            impostor.present(scene.config(&svid)?, Conduct::Gather);
            let line = scene.reset(scene.web.addr(8080)).context(what)?;
            ensure!(line.field("error").contains(error), "{what}: {line}");
            ensure!(
                line.field("error").contains(&scene.web.addr(HBONE).to_string()),
                "{what}: {line}"
            );
            wait_until("the handshake's end", LIMIT, || !impostor.met().failed.is_empty())?;
            let met = impostor.met();
            ensure!(
                met.clients.is_empty() && met.plaintext.is_empty(),
                "{what}: {met:?}"
            );
        }
        let flags = (scene.failed("TLS_FAILURE")?, scene.failed("IDENTITY_ERROR")?);
        ensure!(flags == (3.0, 3.0), "{flags:?}");
        ensure!(scene.plain.accepted() == 0, "something came in clear");
        Ok(())
    });
}

#[test]
fn the_access_line_names_the_identity_that_was_proved() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web").label("app", "web"))?;
        let another = "spiffe://cluster.local/ns/demo/sa/another-of-the-service";
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        world.mesh_mut().services[0]["subjectAltNames"] = json!([another]);
        let scene = Scene::with(world, client, web)?;
        scene.impostor(scene.config(&scene.authority.svid(another)?)?, Conduct::Echo)?;
        let app = scene.client.connect("10.96.0.10:80".parse()?)?;
        let local = app.local_addr()?;
        ensure!(ask(app, MARKER)? == MARKER);
        let line = scene.line_of(local)?;
        ensure!(line.is_ok() && line.field("dst.identity") == another, "{line}");
        // What the service adds is not good for the pod's own address.
        let line = scene.reset(scene.web.addr(8080))?;
        ensure!(
            line.field("error").contains(&format!("proved to be {another}")),
            "{line}"
        );
        Ok(())
    });
}

#[test]
fn an_answer_that_is_not_200_resets_the_app_and_is_named() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        for (status, flags) in [
            (400, "CONNECT"),
            (401, "DENY"),
            (503, "CONNECT"),
            (204, "CONNECT"),
            (302, "CONNECT"),
        ] {
            impostor.behave(Conduct::Status(status));
            let before = scene.failed(flags)?;
            let line = scene
                .reset(scene.web.addr(8080))
                .with_context(|| status.to_string())?;
            let wanted = format!("{} answered {status}", scene.web.addr(HBONE));
            ensure!(line.field("error").contains(&wanted), "{line}");
            ensure!(
                scene.failed(flags)? == before + 1.0,
                "{status} is not counted as {flags}"
            );
        }
        impostor.behave(Conduct::Echo);
        ensure!(ask(scene.client.connect(scene.web.addr(8080))?, MARKER)? == MARKER);
        ensure!(impostor.met().connections == 1, "an answer costs the tunnel");
        Ok(())
    });
}

#[test]
fn a_goaway_makes_a_new_tunnel_and_costs_no_stream() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::EchoAndGoAway)?;
        let mut first = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut first, b"one")?;
        let mut second = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut second, b"two")?;
        ensure!(
            impostor.met().connections == 2,
            "{} tunnels",
            impostor.met().connections
        );
        round_trip(&mut first, b"three").context("the first, after its tunnel was told to go")?;
        for app in [first, second] {
            let local = app.local_addr()?;
            ensure!(ask(app, b"end")? == b"end");
            ensure!(scene.line_of(local)?.is_ok());
        }
        Ok(())
    });
}

#[test]
fn a_stream_that_was_turned_away_unseen_is_tried_again() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::RefuseFirst)?;
        ensure!(ask(scene.client.connect(scene.web.addr(8080))?, MARKER)? == MARKER);
        ensure!(
            impostor.met().requests.len() == 2,
            "{} requests",
            impostor.met().requests.len()
        );
        Ok(())
    });
}

#[test]
fn a_stream_or_a_tunnel_that_breaks_resets_the_app_and_nobody_else() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web"))?;
        let fine = world.pod("b", stranger("fine"))?;
        let scene = Scene::with(world, client, web)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        let good = scene.config(&scene.authority.svid(&fine.identity())?)?;
        Impostor::start(&scene.runtime, fine.listen(HBONE)?, good, Conduct::Echo)?;
        let mut other_pod = scene.client.connect(fine.addr(8080))?;
        round_trip(&mut other_pod, b"before")?;
        let mut neighbour = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut neighbour, b"before")?;
        for (conduct, tunnels) in [(Conduct::Reset, 1), (Conduct::Die, 1)] {
            impostor.behave(conduct);
            let mut app = scene.client.connect(scene.web.addr(8080))?;
            let local = app.local_addr()?;
            round_trip(&mut app, b"once").with_context(|| format!("{conduct:?}"))?;
            ensure_reset(&mut app).with_context(|| format!("{conduct:?}"))?;
            let line = scene.line_of(local)?;
            ensure!(
                line.field("error").contains("the tunnel's stream broke"),
                "{conduct:?}: {line}"
            );
            ensure!(
                line.matches(&[("bytes_recv", "4"), ("dst.identity", &scene.web.identity())]),
                "{line}"
            );
            ensure!(
                impostor.met().connections == tunnels,
                "{conduct:?}: {} tunnels",
                impostor.met().connections
            );
            if conduct == Conduct::Reset {
                round_trip(&mut neighbour, b"after").context("the neighbour on the tunnel")?;
            }
        }
        ensure_reset(&mut neighbour).context("the neighbour on the tunnel that died")?;
        impostor.behave(Conduct::Echo);
        ensure!(ask(scene.client.connect(scene.web.addr(8080))?, MARKER)? == MARKER);
        ensure!(
            impostor.met().connections == 2,
            "{} tunnels",
            impostor.met().connections
        );
        round_trip(&mut other_pod, b"after").context("the connection to another pod")?;
        Ok(())
    });
}

#[test]
fn a_server_that_stalls_is_given_up_and_others_go_on() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web"))?;
        let mute = world.pod("b", stranger("mute"))?;
        let fine = world.pod("b", stranger("fine"))?;
        let scene = Scene::with(world, client, web)?;
        scene.impostor(scene.good()?, Conduct::Silence)?;
        for (pod, conduct) in [(&mute, Conduct::StallHandshake), (&fine, Conduct::Echo)] {
            let config = scene.config(&scene.authority.svid(&pod.identity())?)?;
            Impostor::start(&scene.runtime, pod.listen(HBONE)?, config, conduct)?;
        }
        let began = Instant::now();
        let mut no_answer = scene.client.connect(scene.web.addr(8080))?;
        let mut no_handshake = scene.client.connect(mute.addr(8080))?;
        ensure!(ask(scene.client.connect(fine.addr(8080))?, MARKER)? == MARKER);
        let (local, web) = (no_handshake.local_addr()?, no_answer.local_addr()?);
        ensure_reset(&mut no_handshake)?;
        ensure!(
            began.elapsed() >= Duration::from_secs(9),
            "given up after {:?}",
            began.elapsed()
        );
        let line = scene.line_of(local)?;
        ensure!(
            line.field("error")
                .contains("the TLS handshake was not done within 10s"),
            "{line}"
        );
        ensure!(
            line.field("error").contains(&mute.addr(HBONE).to_string()),
            "{line}"
        );
        ensure!(scene.failed("TLS_FAILURE")? == 1.0);
        ensure!(ask(scene.client.connect(fine.addr(8080))?, MARKER)? == MARKER);
        ensure_reset(&mut no_answer)?;
        let line = scene.line_of(web)?;
        ensure!(
            line.field("error")
                .contains("did not answer the CONNECT within 20s"),
            "{line}"
        );
        ensure!(
            began.elapsed() < Duration::from_secs(26),
            "given up after {:?}",
            began.elapsed()
        );
        Ok(())
    });
}
