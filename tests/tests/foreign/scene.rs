//! A client that is captured, and a server that is the test's.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::ServerConfig;
use serde_json::json;
use tokio::runtime::Runtime;
use weft_tests::{AccessLine, Agent, AgentOptions, Pod, PodSpec, Server, World, app::echo};

use super::{
    certs::{Authority, Svid},
    server::{Conduct, Impostor},
    tls,
    tunnel::runtime,
};

pub(crate) const HBONE: u16 = 15008;
pub(crate) const MARKER: &[u8] = b"WEFT-SECRET-OF-THE-APP";

/// A captured client on node a, and on node b a pod that the mesh says speaks HBONE but that nobody captures: what
/// listens there is the test's.
pub(crate) struct Scene {
    pub(crate) client: Pod,
    pub(crate) web: Pod,
    pub(crate) agent: Agent,
    pub(crate) authority: Authority,
    pub(crate) runtime: Runtime,
    /// The app's port, in clear: nothing may ever come here.
    pub(crate) plain: Server,
    /// Local ports, by which a connection that was reset is told from others.
    pub(crate) ports: AtomicU16,
}

impl Scene {
    pub(crate) fn new(world: &mut World) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web").label("app", "web"))?;
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        Self::with(world, client, web)
    }

    pub(crate) fn with(world: &mut World, client: Pod, web: Pod) -> Result<Self> {
        // One worker, so that all connections to the server can share a tunnel.
        let one = AgentOptions::default().arg("--workers").arg("1");
        let agent = world.start_agent_with("a", one)?;
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

    pub(crate) fn config(&self, svid: &Svid) -> Result<Arc<ServerConfig>> {
        tls::server(svid, &self.authority.roots()?)
    }

    pub(crate) fn good(&self) -> Result<Arc<ServerConfig>> {
        self.config(&self.authority.svid(&self.web.identity())?)
    }

    pub(crate) fn impostor(&self, config: Arc<ServerConfig>, conduct: Conduct) -> Result<Impostor> {
        Impostor::start(&self.runtime, self.web.listen(HBONE)?, config, conduct)
    }

    /// Dials and says something: it must be reset, and its line is handed back.
    pub(crate) fn reset(&self, addr: SocketAddr) -> Result<AccessLine> {
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

    pub(crate) fn line_of(&self, client: SocketAddr) -> Result<AccessLine> {
        let client = client.to_string();
        self.agent
            .wait_for_access(&client, |line| line.field("src.addr") == client)
    }

    pub(crate) fn failed(&self, flags: &str) -> Result<f64> {
        let labels = [("reporter", "source"), ("response_flags", flags)];
        Ok(self
            .agent
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &labels))
    }
}

/// In the mesh by its entry alone.
pub(crate) fn stranger(name: &str) -> PodSpec {
    PodSpec::new(name)
        .service_account(name)
        .outside()
        .field("tunnelProtocol", json!("HBONE"))
}

/// Says something to a connection that must end with a reset, whichever call meets it.
pub(crate) fn ensure_reset(app: &mut TcpStream) -> Result<()> {
    match app.write_all(MARKER).and_then(|()| app.read(&mut [0])) {
        Err(err) if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&err.kind()) => Ok(()),
        Err(err) => bail!("no reset: {err}"),
        Ok(0) => bail!("a clean end instead of a reset"),
        Ok(_) => bail!("an answer instead of a reset"),
    }
}
