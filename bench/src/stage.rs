//! The stage: two nodes with their agents, a pair of pods that the mesh does not know, and a pair of its own. It is set
//! once and serves every load of the run.
//!
//! ```text
//!   node a                         node b
//!   client ────── direct ──────── server, nginx     not in the mesh file: plain TCP, untouched
//!   client ── agent ══ agent ──── server, nginx     captured: mutual TLS between the nodes
//!
//!   client ────── server, nginx                     two more pairs, all of them on node a: one that the mesh does
//!   client ────── server, nginx                     not know, and one that is captured and talks from app to app
//! ```

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use socket2::SockRef;
use weft_tests::{Agent, LIMIT, Nginx, Pod, PodSpec, Server, World, app, wait_until};

use crate::bulk;

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
    /// Of a pair on one node that is to talk from app to app: its agent, which says whether it does.
    agent: Option<Agent>,
    /// How often its server has listened.
    turns: AtomicUsize,
}

/// Where the servers of a pair on one node listen, by turns: at each port the first connection is the agent's. A port of a
/// client rests for a minute after its connection to one of them, so there are several.
const NEAR_PORTS: [u16; 4] = [9000, 9001, 9002, 9003];

impl Pair {
    fn set(
        world: &mut World,
        name: &'static str,
        server_node: &str,
        dress: fn(PodSpec) -> PodSpec,
    ) -> Result<Self> {
        let spec = |role| dress(PodSpec::new(&format!("{name}-{role}")).service_account(role));
        let client = world.pod("a", spec("client"))?;
        let server = world.pod(server_node, spec("server"))?;
        let flooded = world.pod(server_node, spec("flooded"))?;
        let nginx = Nginx::start(world, &server, HTTP_PORT, BODY)?;
        Ok(Self {
            name,
            client,
            server,
            flooded,
            captured: name.ends_with("weft"),
            _nginx: nginx,
            agent: None,
            turns: AtomicUsize::new(0),
        })
    }

    /// A listener on the server, and where the client finds it. Waiting for a connection has an end.
    pub(crate) fn listen(&self) -> Result<(TcpListener, SocketAddr)> {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let port = self
            .agent
            .as_ref()
            .map_or(0, |_| NEAR_PORTS[turn % NEAR_PORTS.len()]);
        let listener = self.server.listen(port).context("listen on the server")?;
        SockRef::from(&listener).set_read_timeout(Some(ACCEPT_LIMIT))?;
        let port = listener.local_addr()?.port();
        Ok((listener, self.server.addr(port)))
    }

    /// Makes a pair on one node talk from app to app at every port that loads use.
    fn warm(&self, agent: &Agent) -> Result<()> {
        for port in NEAR_PORTS.into_iter().chain([bulk::PORT]) {
            let listener = self.server.listen(port)?;
            self.connection(&listener, self.server.addr(port))?;
        }
        self.client.connect(self.server.addr(HTTP_PORT))?;
        for port in NEAR_PORTS.into_iter().chain([bulk::PORT, HTTP_PORT]) {
            let to = self.server.addr(port).to_string();
            wait_until("the pair to talk from app to app", LIMIT, || {
                agent.status().is_ok_and(|status| is_direct(&status, &to))
            })?;
        }
        Ok(())
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

/// Whether an agent's status says that a pod reaches this app directly.
fn is_direct(status: &Value, app: &str) -> bool {
    let list = status.pointer("/sameNode/list").and_then(Value::as_array);
    let is = |pair: &Value| {
        let directly = pair["directly"].as_array();
        directly.is_some_and(|directly| directly.iter().any(|it| it == app))
    };
    list.is_some_and(|list| list.iter().any(is))
}

/// Everything that runs. Fields are dropped in this order: the world, last, removes what is left.
pub(crate) struct Stage {
    /// The pair outside of the mesh.
    pub(crate) direct: Pair,
    /// The pair inside.
    pub(crate) weft: Pair,
    /// A pair on one node, outside.
    pub(crate) near_direct: Pair,
    /// A pair on one node, inside.
    pub(crate) near_weft: Pair,
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
        let direct = Pair::set(&mut world, "direct", "b", PodSpec::unlisted)?;
        let weft = Pair::set(&mut world, "weft", "b", |spec| spec)?;
        let near_direct = Pair::set(&mut world, "near-direct", "a", PodSpec::unlisted)?;
        let mut near_weft = Pair::set(&mut world, "near-weft", "a", |spec| spec)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let agents = world.start_agents()?;
        near_weft.agent = Some(agents[0].clone());
        Ok(Self {
            direct,
            weft,
            near_direct,
            near_weft,
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
        greet(&self.near_direct)?;
        self.near_weft.warm(&self.agents[0])
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
