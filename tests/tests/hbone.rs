//! The tunnel's port, seen by somebody else's implementation: the good case as the field's contract has it, every
//! answer that is not 200, and every peer that does not get as far as an answer.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod hello;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use foreign::{
    certs::{Authority, Svid, Validity},
    hello::tls12_hello,
    tls,
    tunnel::{Tunnel, connect, handshake, runtime},
};
use http::{Method, Request};
use rustls::{ClientConfig, ProtocolVersion};
use serde_json::json;
use weft_tests::{AccessLine, Agent, Pod, PodSpec, Server, World, app::echo, with_world};

const HBONE: u16 = 15008;

/// A pod that weft knows nothing of, and the pod of the mesh that it dials.
struct Scene {
    stranger: Pod,
    web: Pod,
    other: Pod,
    agent: Agent,
    server: Server,
    authority: Authority,
}

impl Scene {
    fn new(world: &mut World) -> Result<Self> {
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let web = world.pod(
            "b",
            PodSpec::new("web").service_account("web").label("app", "web"),
        )?;
        let other = world.pod("b", PodSpec::new("other").label("app", "other"))?;
        let mesh = world.mesh_mut();
        mesh.service("web", &["10.96.0.10", "fd00:96::10"], 80, 8080, "web");
        mesh.service("other", &["10.96.0.20"], 80, 8080, "other");
        let denied = json!([{ "from": [{ "principals": ["cluster.local/ns/demo/sa/denied"] }] }]);
        mesh.policy("not-denied", "DENY", "web", denied);
        let agent = world.start_agent("b")?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let authority = Authority::of(world)?;
        Ok(Self {
            stranger,
            web,
            other,
            agent,
            server,
            authority,
        })
    }

    fn dial(&self) -> Result<TcpStream> {
        self.stranger
            .connect(self.web.addr(HBONE))
            .context("dial the tunnel's port")
    }

    fn config(&self, service_account: &str) -> Result<Arc<ClientConfig>> {
        let svid = self.authority.svid(&spiffe(service_account))?;
        tls::client(Some(&svid), &self.authority.roots()?, tls::H2)
    }

    async fn tunnel(&self, service_account: &str) -> Result<Tunnel> {
        Tunnel::open(handshake(self.dial()?, &self.config(service_account)?).await?).await
    }

    /// The client that a CONNECT is for: the stranger, from a port that tells this CONNECT from others.
    fn client(&self, port: u16) -> String {
        self.stranger.addr(port).to_string()
    }

    fn line_of(&self, client: &str) -> Result<AccessLine> {
        self.agent
            .wait_for_access(client, |line| line.field("src.addr") == client)
    }
}

fn spiffe(service_account: &str) -> String {
    format!("spiffe://cluster.local/ns/demo/sa/{service_account}")
}

#[test]
fn another_implementation_opens_a_tunnel_as_the_contract_says() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(contract(&scene))
    });
}

async fn contract(scene: &Scene) -> Result<()> {
    let stream = handshake(scene.dial()?, &scene.config("client")?).await?;
    let session = stream.get_ref().1;
    ensure!(session.protocol_version() == Some(ProtocolVersion::TLSv1_3));
    ensure!(session.alpn_protocol() == Some(&b"h2"[..]));
    let certs = session.peer_certificates();
    ensure!(
        tls::names(certs, &scene.web.identity()),
        "the server is not {}",
        scene.web.identity()
    );
    let tunnel = Tunnel::open(stream).await?;
    let (client, target) = (scene.client(40_000), scene.web.addr(8080).to_string());
    let request = connect(&target)?
        .header(
            "baggage",
            "k8s.cluster.name=c1,k8s.namespace.name=demo,k8s.deployment.name=client,service.name=client",
        )
        .header(
            "forwarded",
            format!("for=\"{client}\";host=web.demo.svc.cluster.local"),
        )
        .header(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        );
    let (head, stream) = tunnel.request(request.body(())?).await?;
    ensure!(head.status == 200, "{head:?}");
    let baggage = head
        .headers
        .get("baggage")
        .context("no baggage in the answer")?
        .to_str()?;
    for member in ["k8s.namespace.name=demo", ".name=web,", "service.name=web"] {
        ensure!(baggage.contains(member), "no {member} in {baggage}");
    }
    stream.echo(b"hello").await?;
    let line = scene.line_of(&client)?;
    let wanted = [
        ("direction", "inbound"),
        ("src.identity", &spiffe("client")),
        ("dst.identity", &scene.web.identity()),
        ("dst.addr", &scene.web.addr(HBONE).to_string()),
        ("dst.hbone_addr", &target),
        ("dst.workload", "web"),
        ("bytes_recv", "5"),
        ("bytes_sent", "5"),
    ];
    ensure!(line.is_ok() && line.matches(&wanted), "{line}");
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let received = scene
        .agent
        .metrics()?
        .sum("istio_tcp_received_bytes_total", &labels);
    ensure!(received == 5.0, "{received} bytes received");
    ensure!(
        scene.server.peers()[0].to_string() == client,
        "the app sees {:?}",
        scene.server.peers()
    );
    Ok(())
}

#[test]
fn every_authority_that_names_this_pod_leads_to_its_app() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(async {
            let tunnel = scene.tunnel("client").await?;
            let (v4, v6) = (
                scene.web.addr(8080).to_string(),
                scene.web.addr6(8080).to_string(),
            );
            let name = "web.demo.svc.cluster.local:80";
            let authorities = [
                &v4,
                &v6,
                "10.96.0.10:80",
                "[fd00:96::10]:80",
                name,
                &name.to_uppercase(),
            ];
            for (port, authority) in (41_000..).zip(authorities) {
                let client = scene.client(port);
                tunnel.echo(authority, &client, b"hello").await?;
                let line = scene.line_of(&client)?;
                ensure!(
                    line.is_ok() && line.field("dst.workload") == "web",
                    "{authority}: {line}"
                );
                let leads_to = line.field("dst.hbone_addr");
                ensure!(
                    [&v4, &v6].iter().any(|addr| *addr == leads_to),
                    "{authority} led to {leads_to}"
                );
            }
            Ok(())
        })
    });
}

#[test]
fn forwarded_is_believed_for_the_port_and_never_for_the_address() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(async {
            let tcp = scene.dial()?;
            let own = tcp.local_addr()?;
            let tunnel = Tunnel::open(handshake(tcp, &scene.config("client")?).await?).await?;
            let target = scene.web.addr(8080).to_string();
            tunnel
                .echo(&target, &scene.other.addr(7).to_string(), b"hello")
                .await?;
            ensure!(
                scene.server.peers() == [own],
                "the app sees {:?}, not {own}",
                scene.server.peers()
            );
            let line = scene.line_of(&own.to_string())?;
            ensure!(line.is_ok() && line.field("src.workload").is_empty(), "{line}");
            Ok(())
        })
    });
}

#[test]
fn a_connect_that_cannot_be_served_gets_the_status_that_says_why() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(async {
            let tunnel = scene.tunnel("client").await?;
            for (port, (authority, status, error)) in (42_000..).zip(refused(&scene)) {
                let client = scene.client(port);
                let (head, _) = tunnel
                    .connect(&authority, &client)
                    .await
                    .context(authority.clone())?;
                ensure!(head.status == status, "{authority}: {}", head.status);
                let line = scene.line_of(&client)?;
                ensure!(
                    !line.is_ok() && line.field("error").contains(error),
                    "{authority}: {line}"
                );
                ensure!(
                    line.field("src.identity") == spiffe("client"),
                    "{authority}: {line}"
                );
            }
            let get = Request::builder().method(Method::GET).uri("http://web.demo/");
            let client = scene.client(42_100);
            let get = get.header("forwarded", format!("for=\"{client}\"")).body(())?;
            let (head, _) = tunnel.request(get).await?;
            ensure!(head.status == 400, "GET: {}", head.status);
            ensure!(scene.line_of(&client)?.field("error") == "only CONNECT is answered here");
            ensure!(scene.server.accepted() == 0, "the app was reached");
            let labels = [("reporter", "destination"), ("response_flags", "CONNECT")];
            let failed = scene
                .agent
                .metrics()?
                .sum("istio_tcp_connections_failed_total", &labels);
            ensure!(failed == refused(&scene).len() as f64 + 1.0, "{failed} failed");
            tunnel
                .echo(
                    &scene.web.addr(8080).to_string(),
                    &scene.client(42_200),
                    b"still there",
                )
                .await
        })
    });
}

fn refused(scene: &Scene) -> Vec<(String, u16, &'static str)> {
    let web = |port| scene.web.addr(port).to_string();
    let elsewhere = "is not this workload";
    let malformed = "names no address and port";
    let own = "is one of weft's own";
    let mut refused = vec![
        (scene.other.addr(8080).to_string(), 400, elsewhere),
        ("127.0.0.1:8080".into(), 400, elsewhere),
        ("[::1]:8080".into(), 400, elsewhere),
        ("192.168.77.2:8080".into(), 400, elsewhere),
        ("10.96.0.20:80".into(), 400, elsewhere),
        ("other.demo.svc.cluster.local:80".into(), 400, elsewhere),
        ("localhost:8080".into(), 400, elsewhere),
        ("web".into(), 400, malformed),
        (scene.web.v4().to_string(), 400, malformed),
        ("10.244.2.300:8080".into(), 400, malformed),
        ("10.96.0.10:81".into(), 503, "has no port 81"),
        (web(8081), 503, "the app does not take"),
    ];
    refused.extend([15001, 15006, 15008, 15053].map(|port| (web(port), 400, own)));
    refused
}

#[test]
fn a_policy_that_denies_is_answered_401_and_named() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(async {
            let (client, target) = (scene.client(43_000), scene.web.addr(8080).to_string());
            let (head, _) = scene.tunnel("denied").await?.connect(&target, &client).await?;
            ensure!(head.status == 401, "{}", head.status);
            let line = scene.line_of(&client)?;
            ensure!(line.field("src.identity") == spiffe("denied"), "{line}");
            ensure!(
                line.field("error").contains("denied by policy demo/not-denied"),
                "{line}"
            );
            ensure!(scene.server.accepted() == 0, "the app was reached");
            let labels = [("reporter", "destination"), ("response_flags", "DENY")];
            ensure!(
                scene
                    .agent
                    .metrics()?
                    .sum("istio_tcp_connections_failed_total", &labels)
                    == 1.0
            );
            scene
                .tunnel("client")
                .await?
                .echo(&target, &scene.client(43_001), b"hello")
                .await
        })
    });
}

#[test]
fn what_comes_with_a_connect_reaches_an_app_that_it_may_reach_and_no_other() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(async {
            let target = scene.web.addr(8080).to_string();
            let denied = scene.tunnel("denied").await?;
            for port in 44_000..44_020 {
                let client = scene.client(port);
                let (head, _) = denied.connect_with(&target, &client, b"secret").await?;
                ensure!(head.status == 401, "{}", head.status);
            }
            ensure!(scene.server.accepted() == 0, "the app was reached");
            let tunnel = scene.tunnel("client").await?;
            for port in 44_100..44_110 {
                let client = scene.client(port);
                let (head, mut stream) = tunnel.connect_with(&target, &client, b"first").await?;
                ensure!(head.status == 200, "{}", head.status);
                ensure!(head.headers.contains_key("weft-early-data"), "{head:?}");
                let first = stream.recv.data().await.context("no echo")??;
                stream.recv.flow_control().release_capacity(first.len())?;
                ensure!(first == b"first"[..], "{first:?}");
                stream.echo(b" and second").await?;
                let line = scene.line_of(&client)?;
                let wanted = [("bytes_recv", "16"), ("bytes_sent", "16")];
                ensure!(line.is_ok() && line.matches(&wanted), "{line}");
            }
            Ok(())
        })
    });
}

#[test]
fn a_client_without_a_good_certificate_and_h2_gets_no_answer() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        runtime()?.block_on(async {
            for (what, config, error) in bad_clients(&scene)? {
                let tcp = scene.dial()?;
                let client = tcp.local_addr()?.to_string();
                let answer = served(tcp, &config, &scene.web.addr(8080).to_string()).await;
                ensure!(answer.is_err(), "{what}: it was served");
                let line = scene.line_of(&client)?;
                ensure!(line.field("error").contains(error), "{what}: {line}");
                ensure!(
                    line.level == "ERROR" && line.field("dst.workload") == "web",
                    "{what}: {line}"
                );
                ensure!(!line.has("src.identity"), "{what} has an identity: {line}");
            }
            ensure!(scene.server.accepted() == 0, "the app was reached");
            let failed = |flags| {
                let labels = [("reporter", "destination"), ("response_flags", flags)];
                Ok::<_, anyhow::Error>(
                    scene
                        .agent
                        .metrics()?
                        .sum("istio_tcp_connections_failed_total", &labels),
                )
            };
            let (identity, tls) = (failed("IDENTITY_ERROR")?, failed("TLS_FAILURE")?);
            ensure!(
                (identity, tls) == (4.0, 7.0),
                "{identity} identities, {tls} handshakes"
            );
            scene
                .tunnel("client")
                .await?
                .echo("10.96.0.10:80", &scene.client(44_000), b"hello")
                .await
        })
    });
}

async fn served(tcp: TcpStream, config: &Arc<ClientConfig>, target: &str) -> Result<()> {
    let tunnel = Tunnel::open(handshake(tcp, config).await?).await?;
    tunnel.echo(target, "10.0.0.1:1", b"hello").await
}

type BadClient = (&'static str, Arc<ClientConfig>, &'static str);

fn bad_clients(scene: &Scene) -> Result<Vec<BadClient>> {
    let (authority, roots) = (&scene.authority, scene.authority.roots()?);
    let good = spiffe("client");
    let with = |svid: Svid| tls::client(Some(&svid), &roots, tls::H2);
    let speaking = |alpn: &[&[u8]]| tls::client(Some(&authority.svid(&good)?), &roots, alpn);
    let named = |names: &[&str]| with(authority.issue(names, Validity::Today)?);
    let other_domain = "spiffe://other.example/ns/demo/sa/client";
    Ok(vec![
        (
            "no certificate",
            tls::client(None, &roots, tls::H2)?,
            "peer sent no certificates",
        ),
        (
            "a foreign root",
            with(Authority::stranger()?.svid(&good)?)?,
            "UnknownIssuer",
        ),
        (
            "expired",
            with(authority.issue(&[&good], Validity::Yesterday)?)?,
            "expired",
        ),
        (
            "not yet valid",
            with(authority.issue(&[&good], Validity::Tomorrow)?)?,
            "not valid yet",
        ),
        (
            "another trust domain",
            named(&[other_domain])?,
            "is not of a trust domain that is accepted here",
        ),
        ("no URI", named(&["web.demo"])?, "has no URI among its names"),
        ("two URIs", named(&[&good, &spiffe("web")])?, "more than one URI"),
        (
            "no workload's URI",
            named(&["spiffe://cluster.local/node/a"])?,
            "is not of the form",
        ),
        ("no ALPN", speaking(&[])?, "ALPN"),
        (
            "HTTP/1.1",
            speaking(&[b"http/1.1"])?,
            "doesn't support any known protocol",
        ),
        ("gRPC only", speaking(&[b"grpc-exp", b"h2c"])?, "known protocol"),
    ])
}

#[test]
fn what_is_no_tls_1_3_is_turned_away_and_named() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let alert = |description: u8| vec![0x15, 3, 3, 0, 2, 2, description];
        let cases = [
            ("TLS 1.2", tls12_hello(), alert(70)),
            (
                "HTTP/1.1",
                b"GET / HTTP/1.1\r\nhost: web\r\n\r\n".to_vec(),
                Vec::new(),
            ),
            (
                "HTTP/2 in clear",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
                Vec::new(),
            ),
            ("noise", (0..=255).cycle().take(64 * 1024).collect(), Vec::new()),
            (
                "an endless record",
                [b"\x16\x03\x01\xff\xff".to_vec(), vec![7; 70_000]].concat(),
                Vec::new(),
            ),
        ];
        for (what, bytes, wanted) in cases {
            let mut tcp = scene.dial()?;
            let client = tcp.local_addr()?.to_string();
            let answer = answer(&mut tcp, &bytes).context(what)?;
            ensure!(answer.starts_with(&wanted), "{what}: {answer:02x?}");
            ensure!(
                answer.is_empty() || answer[0] == 0x15,
                "{what} is answered {answer:02x?}"
            );
            let line = scene.line_of(&client)?;
            ensure!(
                line.field("error").contains("the TLS handshake failed: "),
                "{what}: {line}"
            );
        }
        ensure!(scene.server.accepted() == 0, "the app was reached");
        runtime()?.block_on(async {
            scene
                .tunnel("client")
                .await?
                .echo("10.96.0.10:80", &scene.client(45_000), b"hello")
                .await
        })
    });
}

/// Everything up to the end, which may be a reset: the agent closes before it has read all.
fn answer(tcp: &mut TcpStream, bytes: &[u8]) -> Result<Vec<u8>> {
    // Refused in the middle of it, mostly.
    let _ = tcp.write_all(bytes);
    let mut answer = Vec::new();
    match tcp.read_to_end(&mut answer) {
        Ok(_) => Ok(answer),
        Err(err) if err.kind() == std::io::ErrorKind::ConnectionReset => Ok(answer),
        Err(err) => bail!("it is not ended: {err}"),
    }
}
