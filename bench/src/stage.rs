//! The stage: two nodes with their agents, a pair of pods that the mesh does not know, and a pair of its own. It is set
//! once and serves every load of the run.
//!
//! ```text
//!   node a                         node b
//!   client ────── direct ──────── server, nginx     not in the mesh file: plain TCP, untouched
//!   client ── agent ══ agent ──── server, nginx     captured: mutual TLS between the nodes
//! ```

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use weft_tests::{Agent, LIMIT, Nginx, Pod, PodSpec, Server, World, app, wait_until};

/// Where nginx listens.
const HTTP_PORT: u16 = 8080;
/// What nginx answers with: as small as a health check.
const BODY: &str = "hello from behind the mesh\n";
/// How long a server waits for a connection that the client believes to have.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);

/// A client on node a and a server on node b.
pub(crate) struct Pair {
    /// What it is called in names of pods and in errors.
    name: &'static str,
    /// Where loads come from.
    pub(crate) client: Pod,
    /// Where they go.
    pub(crate) server: Pod,
    /// Another pod beside the server, for somebody to attack.
    pub(crate) flooded: Pod,
    /// Whether the mesh has these pods.
    pub(crate) captured: bool,
    _nginx: Nginx,
}

impl Pair {
    fn set(world: &mut World, name: &'static str, dress: fn(PodSpec) -> PodSpec) -> Result<Self> {
        let spec = |role| dress(PodSpec::new(&format!("{name}-{role}")).service_account(role));
        let client = world.pod("a", spec("client"))?;
        let server = world.pod("b", spec("server"))?;
        let flooded = world.pod("b", spec("flooded"))?;
        let nginx = Nginx::start(world, &server, HTTP_PORT, BODY)?;
        Ok(Self {
            name,
            client,
            server,
            flooded,
            captured: name == "weft",
            _nginx: nginx,
        })
    }

    /// A listener on the server, and where the client finds it. Waiting for a connection has an end.
    pub(crate) fn listen(&self) -> Result<(TcpListener, SocketAddr)> {
        let listener = self.server.listen(0).context("listen on the server")?;
        SockRef::from(&listener).set_read_timeout(Some(ACCEPT_LIMIT))?;
        let port = listener.local_addr()?.port();
        Ok((listener, self.server.addr(port)))
    }

    /// Both ends of one connection without delay of small writes.
    pub(crate) fn connection(
        &self,
        listener: &TcpListener,
        to: SocketAddr,
    ) -> Result<(TcpStream, TcpStream)> {
        let client = self
            .client
            .connect(to)
            .with_context(|| format!("connect to {to}"))?;
        let (server, _) = listener.accept().context("no connection arrived at the server")?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(ACCEPT_LIMIT))?;
            end.set_write_timeout(Some(ACCEPT_LIMIT))?;
        }
        Ok((client, server))
    }

    /// The page that nginx serves.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.server.addr(HTTP_PORT))
    }
}

/// Everything that runs. Fields are dropped in this order: the world, last, removes what is left.
pub(crate) struct Stage {
    /// The pair outside of the mesh.
    pub(crate) direct: Pair,
    /// The pair inside.
    pub(crate) weft: Pair,
    /// Somebody on node a whom the mesh does not know.
    pub(crate) stranger: Pod,
    /// Of node a and of node b.
    pub(crate) agents: [Agent; 2],
    _world: World,
}

impl Stage {
    /// Brings it up.
    pub(crate) fn set() -> Result<Self> {
        let mut world = World::two_nodes()?;
        let direct = Pair::set(&mut world, "direct", PodSpec::unlisted)?;
        let weft = Pair::set(&mut world, "weft", |spec| spec)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let agents = world.start_agents()?;
        Ok(Self {
            direct,
            weft,
            stranger,
            agents,
            _world: world,
        })
    }

    /// Makes sure that the figures will be of what they say: the one pair's connection goes from agent to agent with
    /// mutual TLS, the other pair's by no agent. It also warms both ways up.
    pub(crate) fn prove(&self) -> Result<()> {
        let before = self.tunnelled()?;
        greet(&self.direct)?;
        greet(&self.weft)?;
        wait_until("the tunnelled connection to be counted", LIMIT, || {
            self.tunnelled().is_ok_and(|now| now > before)
        })?;
        let counted = self.tunnelled()? - before;
        ensure!(
            (counted - 1.0).abs() < 0.5,
            "one tunnelled connection was made, and {counted} were counted: the direct pair is not direct"
        );
        Ok(())
    }

    /// Connections that node b's agent has taken in with mutual TLS.
    fn tunnelled(&self) -> Result<f64> {
        let [_, b] = &self.agents;
        let labels = [
            ("reporter", "destination"),
            ("connection_security_policy", "mutual_tls"),
        ];
        Ok(b.metrics()?.sum("istio_tcp_connections_opened_total", &labels))
    }
}

/// One connection there and back.
fn greet(pair: &Pair) -> Result<()> {
    let (listener, to) = pair.listen()?;
    let _server = Server::start(listener, app::echo)?;
    let greeting = || -> io::Result<()> {
        let mut stream = pair.client.connect(to)?;
        app::round_trip(&mut stream, b"is anybody there?")
    };
    greeting().with_context(|| format!("the pair {} cannot talk", pair.name))
}
