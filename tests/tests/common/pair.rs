//! Two pods of one node, and the questions of whether they talk from app to app. Each file uses a part of it.
#![allow(dead_code)]

use std::{
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use weft_tests::{
    AccessLine, Agent, AgentOptions, Host, LIMIT, Pod, PodSpec, World, app::round_trip, wait_until,
};

use super::common::{self, MARKER};

/// What the access line of a connection from app to app says.
pub(super) const KERNEL: &str = "kernel";

/// A client and a server on node a, and its agent.
pub(super) struct Cast {
    pub(super) client: Pod,
    pub(super) web: Pod,
    pub(super) agent: Agent,
}

pub(super) fn cast(world: &mut World) -> Result<Cast> {
    cast_with(world, AgentOptions::default())
}

pub(super) fn cast_with(world: &mut World, options: AgentOptions) -> Result<Cast> {
    let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
    let web = PodSpec::new("web").service_account("web").label("app", "web");
    let web = world.pod("a", web)?;
    let vips = ["10.96.0.10", "fd00:96::10"];
    world.mesh_mut().service("web", &vips, 80, 8080, "web");
    let agent = world.start_agent_with("a", options)?;
    Ok(Cast { client, web, agent })
}

/// The one line of a connection from app to app.
pub(super) fn direct_line(agent: &Agent, client: SocketAddr) -> Result<AccessLine> {
    let line = common::line_of(agent, "outbound", client)?;
    ensure!(line.field("path") == KERNEL, "not from app to app: {line}");
    Ok(line)
}

/// Waits until the pair talks from app to app.
pub(super) fn talk_directly(agent: &Agent, client: &Host, to: SocketAddr) -> Result<()> {
    wait_until(
        &format!("{client:?} to reach {to} from app to app"),
        LIMIT,
        || directly(agent, client, to).unwrap_or(false),
    )
}

/// Whether one connection, which must be answered, goes from app to app.
pub(super) fn directly(agent: &Agent, client: &Host, to: SocketAddr) -> Result<bool> {
    let own = {
        let mut stream = client
            .connect(to)
            .with_context(|| format!("{client:?} dials {to}"))?;
        round_trip_or_greeting(&mut stream)?;
        stream.local_addr()?
    };
    let line = common::line_of(agent, "outbound", own)?;
    Ok(line.field("path") == KERNEL)
}

/// Waits for any answer: of an echo, or of a server that speaks first.
fn round_trip_or_greeting(stream: &mut TcpStream) -> Result<()> {
    std::io::Write::write_all(stream, MARKER)?;
    ensure!(!common::read_some(stream)?.is_empty(), "no answer");
    Ok(())
}

/// A connection from app to app that is open.
pub(super) fn direct_stream(agent: &Agent, client: &Host, to: SocketAddr) -> Result<TcpStream> {
    talk_directly(agent, client, to)?;
    let mut stream = client.connect(to)?;
    round_trip(&mut stream, MARKER)?;
    Ok(stream)
}

/// Threads that dial, echo and close until they are stopped.
pub(super) struct Dialling {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    stop: AtomicBool,
    /// Dials so far; each has its number.
    begun: AtomicU64,
    /// Answered dials so far, and the number of the last of them.
    echoes: AtomicU64,
    numbers: std::sync::Mutex<Vec<u64>>,
}

impl Dialling {
    pub(super) fn start(client: &Pod, to: SocketAddr, threads: usize) -> Result<Self> {
        let state = Arc::new(State::default());
        let dial = |_| {
            let (client, state) = (client.clone(), Arc::clone(&state));
            thread::spawn(move || {
                while !state.stop.load(SeqCst) {
                    let number = state.begun.fetch_add(1, SeqCst);
                    if common::echoed(&client, to).is_ok() {
                        state.echoes.fetch_add(1, SeqCst);
                        if let Ok(mut numbers) = state.numbers.lock() {
                            numbers.push(number);
                        }
                    }
                }
            })
        };
        Ok(Self {
            threads: (0..threads).map(dial).collect(),
            state,
        })
    }

    /// How many dials have begun: the next has this number.
    pub(super) fn begun(&self) -> u64 {
        self.state.begun.load(SeqCst)
    }

    /// How many dials have been answered.
    pub(super) fn echoes(&self) -> u64 {
        self.state.echoes.load(SeqCst)
    }

    /// Stops, and counts the dials that were not answered.
    pub(super) fn stop_and_count_failures(self) -> u64 {
        self.state.stop.store(true, SeqCst);
        for thread in self.threads {
            let _ = thread.join();
        }
        self.state.begun.load(SeqCst) - self.state.echoes.load(SeqCst)
    }

    pub(super) fn wait_for_dials(&self, begun: u64) -> Result<()> {
        wait_until("dials", LIMIT, || self.begun() >= begun)
    }

    pub(super) fn wait_for_echoes(&self, echoes: u64) -> Result<()> {
        wait_until("echoes", LIMIT, || self.echoes() >= echoes)
    }

    /// Stops, and counts the answered dials with this number or a later one.
    pub(super) fn stop_and_count_echoes_since(self, number: u64) -> usize {
        self.state.stop.store(true, SeqCst);
        for thread in self.threads {
            let _ = thread.join();
        }
        let numbers = self.state.numbers.lock();
        numbers.map_or(usize::MAX, |numbers| {
            numbers.iter().filter(|it| **it >= number).count()
        })
    }
}
