//! The stage: two nodes with their agents, and for each mode a pair of pods that talks in it. It is set once and serves
//! every load of the run.
//!
//! ```text
//!   node a                         node b
//!   client ────── direct ──────── server, nginx     not in the mesh file: plain TCP, untouched
//!   client, proxy ═══════ proxy, server, nginx      the same, with a proxy beside each app
//!   client ── agent ══ agent ──── server, nginx     captured: mutual TLS between the nodes
//!   client ── agent ══ waypoint ══ agent ── nginx   and requests of a service are routed on the way
//! ```
//!
//! and the same on node a alone, where the captured pair talks from app to app.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::SockRef;
use weft_tests::{
    Agent, AgentOptions, LIMIT, Nginx, Pod, PodSpec, Server, World, app, process::Process, wait_until,
};

use crate::{
    bulk,
    figures::Ground,
    mode::{Mode, Way},
    processes::{self, Cpu},
    sidecar::{self, Side},
    waypoint::Waypoint,
};

/// Where nginx listens.
pub(crate) const HTTP_PORT: u16 = 8080;
/// Where it speaks HTTP/2, from the first byte on.
pub(crate) const HTTP2_PORT: u16 = 8081;
/// What nginx answers with: as small as a health check.
const BODY: &str = "hello from behind the mesh\n";
/// The size of its larger page, in bytes.
const KILOBYTE: usize = 1024;
/// How long a server waits for a connection that the client believes to have.
const ACCEPT_LIMIT: Duration = Duration::from_secs(10);
/// Where the servers of a pair on one node listen, by turns: at each port the first connection is the agent's. A port of a
/// client rests for a minute after its connection to one of them, so there are several.
const NEAR_PORTS: [u16; 4] = [9000, 9001, 9002, 9003];

/// A client and a server that talk in one mode.
pub(crate) struct Pair {
    pub(crate) mode: Mode,
    /// Where loads come from.
    pub(crate) client: Pod,
    /// Where they go.
    pub(crate) server: Pod,
    /// Another pod beside the server, for somebody to attack.
    pub(crate) flooded: Option<Pod>,
    /// The two ends' own, or none.
    sidecars: Vec<Process>,
    /// Between the agents.
    waypoint: Option<Waypoint>,
    /// weft's agents, in its own modes: of the client's node, and of the server's where that is another one.
    agents: Vec<Agent>,
    _nginx: Nginx,
    /// How often its server has listened.
    turns: AtomicUsize,
}

/// Who carries a pair's traffic, by process id. Empty in direct TCP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carriers {
    /// On the client's side, or on both where it is one.
    pub(crate) client: Vec<u32>,
    pub(crate) server: Vec<u32>,
    /// Between the two.
    pub(crate) waypoint: Vec<u32>,
}

impl Carriers {
    pub(crate) fn all(&self) -> impl Iterator<Item = u32> {
        [&self.client, &self.server, &self.waypoint]
            .into_iter()
            .flatten()
            .copied()
    }
}

impl Pair {
    fn set(world: &mut World, mode: Mode, nth: usize) -> Result<Self> {
        let slug = mode.slug();
        let server_node = match mode.ground {
            Ground::TwoNodes => "b",
            Ground::OneNode => "a",
        };
        let spec = |role| {
            dress(
                PodSpec::new(&format!("{slug}-{role}")).service_account(role),
                &mode.way,
            )
        };
        let client = world.pod("a", spec("client"))?;
        let server = world.pod(server_node, spec("server").label("app", &slug))?;
        let flooded = match (mode.ground, &mode.way) {
            (Ground::TwoNodes, Way::Direct | Way::Weft { .. }) => {
                Some(world.pod(server_node, spec("flooded"))?)
            }
            _ => None,
        };
        let nginx = Nginx::start_with(world, &server, HTTP_PORT, Some(HTTP2_PORT), BODY)?;
        nginx.add_page("1k", &"k".repeat(KILOBYTE))?;
        let sidecars = match &mode.way {
            Way::Sidecar(sidecar) => vec![
                sidecar::start(world, sidecar, Side::Client, &client, &server)?,
                sidecar::start(world, sidecar, Side::Server, &server, &client)?,
            ],
            Way::Direct | Way::Weft { .. } | Way::Waypoint(_) => Vec::new(),
        };
        let waypoint = match &mode.way {
            Way::Waypoint(kind) => Some(Waypoint::prepare(world, kind.clone(), &slug, nth)?),
            _ => None,
        };
        Ok(Self {
            mode,
            client,
            server,
            flooded,
            sidecars,
            waypoint,
            agents: Vec::new(),
            _nginx: nginx,
            turns: AtomicUsize::new(0),
        })
    }

    /// Who carries its traffic.
    pub(crate) fn carriers(&self) -> Carriers {
        let agent =
            |nth: usize| -> Vec<u32> { self.agents.get(nth).and_then(Agent::pid).into_iter().collect() };
        match self.sidecars.as_slice() {
            [client, server] => Carriers {
                client: processes::tree(client.id()),
                server: processes::tree(server.id()),
                waypoint: Vec::new(),
            },
            _ => Carriers {
                client: agent(0),
                server: agent(1),
                waypoint: self.waypoint.iter().filter_map(Waypoint::pid).collect(),
            },
        }
    }

    /// Has its agents say how they are, as a kubelet, Prometheus and an operator ask.
    pub(crate) fn ask_agents(&self) -> Result<()> {
        for agent in &self.agents {
            ensure!(agent.ready(), "the agent of node {} is not ready", agent.node());
            agent.metrics()?;
            agent.status()?;
        }
        Ok(())
    }

    /// Whether the mesh has its pods.
    pub(crate) fn captured(&self) -> bool {
        matches!(self.mode.way, Way::Weft { .. } | Way::Waypoint(_))
    }

    /// Whether one process has two sockets of a connection.
    pub(crate) fn has_two_sockets(&self) -> bool {
        let alone = self.mode.ground == Ground::OneNode && !self.in_kernel();
        !self.captured() || alone
    }

    /// Whether its pods talk from app to app once the agent has allowed it.
    fn in_kernel(&self) -> bool {
        self.mode.ground == Ground::OneNode && matches!(self.mode.way, Way::Weft { tunnel: false })
    }

    /// A listener on the server, and where the client finds it. Waiting for a connection has an end.
    pub(crate) fn listen(&self) -> Result<(TcpListener, SocketAddr)> {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let port = if self.in_kernel() {
            NEAR_PORTS[turn % NEAR_PORTS.len()]
        } else {
            0
        };
        let listener = self.server.listen(port).context("listen on the server")?;
        SockRef::from(&listener).set_read_timeout(Some(ACCEPT_LIMIT))?;
        let port = listener.local_addr()?.port();
        Ok((listener, self.server.addr(port)))
    }

    /// Makes a pair on one node talk from app to app at every port that loads use.
    fn warm(&self) -> Result<()> {
        let agent = self.agents.first().context("the pair has no agent")?;
        for port in NEAR_PORTS.into_iter().chain([bulk::PORT]) {
            let listener = self.server.listen(port)?;
            self.connection(&listener, self.server.addr(port))?;
        }
        let nginx = [HTTP_PORT, HTTP2_PORT];
        for port in nginx {
            self.client.connect(self.server.addr(port))?;
        }
        for port in NEAR_PORTS.into_iter().chain([bulk::PORT]).chain(nginx) {
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

    /// A page that nginx serves.
    pub(crate) fn url(&self, port: u16, page: &str) -> String {
        match &self.waypoint {
            Some(waypoint) => format!("http://{}:{port}/{page}", waypoint.vip),
            None => format!("http://{}/{page}", self.server.addr(port)),
        }
    }

    /// One request there and back: the way is open, and warm.
    fn greet(&self) -> Result<()> {
        if self.mode.http_only() {
            return self
                .fetch()
                .with_context(|| format!("the pair {} cannot talk", self.mode));
        }
        let (listener, to) = self.listen()?;
        let _server = Server::start(listener, app::echo)?;
        let greeting = || -> io::Result<()> {
            let mut stream = self.client.connect(to)?;
            app::round_trip(&mut stream, b"is anybody there?")
        };
        greeting().with_context(|| format!("the pair {} cannot talk", self.mode))
    }

    /// The small page, once.
    fn fetch(&self) -> Result<()> {
        let curled = weft_tests::curl(&self.client, &[&self.url(HTTP_PORT, "")])?;
        ensure!(curled.body == BODY, "nginx answers {curled:?}");
        Ok(())
    }
}

/// How the mesh knows the pods of a mode.
pub(crate) fn dress(spec: PodSpec, way: &Way) -> PodSpec {
    match way {
        Way::Weft { tunnel: false } | Way::Waypoint(_) => spec,
        Way::Weft { tunnel: true } => spec.field("sameNode", json!("tunnel")),
        Way::Direct | Way::Sidecar(_) => spec.unlisted(),
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
    /// In the order of the modes.
    pub(crate) pairs: Vec<Pair>,
    /// Somebody on node a whom the mesh does not know.
    pub(crate) stranger: Pod,
    /// Of node a and of node b.
    pub(crate) agents: [Agent; 2],
    pub(crate) world: World,
}

impl Stage {
    /// Brings it up.
    pub(crate) fn set(modes: &[Mode]) -> Result<Self> {
        let mut world = World::two_nodes()?;
        let mut pairs = Vec::new();
        for (nth, mode) in modes.iter().enumerate() {
            println!("  {mode}: {}", mode.about);
            let pair = Pair::set(&mut world, mode.clone(), nth);
            pairs.push(pair.with_context(|| format!("set up the pair {mode}"))?);
        }
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        // One pod has all connections here. An agent's limits follow from how many files it may open, which is little on some
        // machines; a node's usual million allows more than this.
        let options = || {
            let options = AgentOptions::default().arg("--max-sockets-per-pod=12000");
            options.arg("--max-connections-per-peer=12000")
        };
        let agents = [
            world.start_agent_with("a", options())?,
            world.start_agent_with("b", options())?,
        ];
        for pair in &mut pairs {
            pair.agents = match (&pair.mode.way, pair.mode.ground) {
                (Way::Weft { .. } | Way::Waypoint(_), Ground::TwoNodes) => agents.to_vec(),
                (Way::Weft { .. }, Ground::OneNode) => vec![agents[0].clone()],
                _ => Vec::new(),
            };
            if let Some(waypoint) = &mut pair.waypoint {
                waypoint.start(&mut world, &pair.server)?;
            }
        }
        Ok(Self {
            pairs,
            stranger,
            agents,
            world,
        })
    }

    /// Makes sure that the figures will be of what they say: the captured pairs' connections go from agent to agent with
    /// mutual TLS, no other's does, and proxies carry what is theirs. It also warms all ways up.
    pub(crate) fn prove(&self) -> Result<()> {
        for pair in &self.pairs {
            let before = self.tunnelled()?;
            let carriers = pair.carriers();
            let idle = Cpu::used(&carriers)?;
            pair.greet()?;
            ensure!(
                Cpu::used(&carriers)?.has_worked_since(idle),
                "{}: a connection was made, and the proxy of one side did nothing: does it get the pod's connections?",
                pair.mode
            );
            if pair.in_kernel() {
                pair.warm()?;
                continue;
            }
            let expected = if pair.captured() { 1.0 } else { 0.0 };
            if pair.captured() {
                wait_until("the tunnelled connection to be counted", LIMIT, || {
                    self.tunnelled().is_ok_and(|now| now > before)
                })?;
            }
            let counted = self.tunnelled()? - before;
            ensure!(
                (counted - expected).abs() < 0.5,
                "{}: one connection was made, and the agents have counted {counted} with mutual TLS",
                pair.mode
            );
        }
        Ok(())
    }

    /// Connections that the agents have taken in with mutual TLS.
    fn tunnelled(&self) -> Result<f64> {
        let labels = [
            ("reporter", "destination"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let counted = self.agents.iter().map(|agent| {
            Ok(agent
                .metrics()?
                .sum("istio_tcp_connections_opened_total", &labels))
        });
        counted.sum()
    }
}
