//! What carries bulk goes on on a thread of its own (`weft-bulk-*`) and comes back, and no byte of it is lost: not while messages
//! go beside it, not when an agent ends, dies or is replaced meanwhile, not when a policy or an app cuts it.

use std::{
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use socket2::SockRef;
use weft_tests::{
    Agent, AgentOptions, Host, LIMIT, Pod, Server, World,
    app::{self, echo, round_trip},
    pattern, wait_until, with_world,
};

mod common;
use common::{MARKER, addr, client_and_web, echoed, open_connections};

const SEED: u64 = 11;
/// Where bulk is read, where messages are answered, and where bulk comes from.
const SINK: u16 = 8080;
const ECHO: u16 = 8081;
const SOURCE: u16 = 8082;
/// How long a stream counts as bulk without going on.
const QUIET: Duration = Duration::from_secs(1);
const CHUNK: usize = 256 * 1024;

/// A client on node a and the server's three ports on node b.
struct Scene {
    client: Pod,
    web: Pod,
    a: Agent,
    b: Agent,
    servers: Vec<Server>,
}

impl Scene {
    fn new(world: &mut World) -> Result<Self> {
        Self::with(world, &AgentOptions::default())
    }

    fn with(world: &mut World, options: &AgentOptions) -> Result<Self> {
        let (client, web) = client_and_web(world)?;
        let a = world.start_agent_with("a", options.clone())?;
        let b = world.start_agent_with("b", options.clone())?;
        let servers = vec![
            Server::start(web.listen(SINK)?, app::sink(SEED))?,
            Server::start(web.listen(ECHO)?, echo)?,
            Server::start(web.listen(SOURCE)?, app::source(SEED, 1 << 30))?,
        ];
        let scene = Self {
            client,
            web,
            a,
            b,
            servers,
        };
        echoed(&scene.client, scene.web.addr(ECHO))?;
        Ok(scene)
    }

    fn agents(&self) -> [&Agent; 2] {
        [&self.a, &self.b]
    }

    fn pump(&self) -> Result<Pump> {
        Pump::start(&self.client, self.web.addr(SINK))
    }

    /// Waits until both agents carry bulk on the second thread.
    fn wait_until_moved(&self) -> Result<()> {
        self.agents().into_iter().try_for_each(|agent| {
            let before = ran(agent, BULK)?;
            wait_until("bulk to have its own thread", LIMIT, || {
                ran(agent, BULK).is_ok_and(|now| now > before + Duration::from_millis(100))
            })
            .with_context(|| format!("agent {}", agent.node()))
        })
    }

    fn no_panic(&self) -> Result<()> {
        self.agents().into_iter().try_for_each(no_panic)
    }
}

/// Waits longer for what is open than anything here takes.
fn slow() -> AgentOptions {
    AgentOptions::default().arg("--drain-timeout=60")
}

fn no_panic(agent: &Agent) -> Result<()> {
    ensure!(!agent.log().contains("panicked"), "{}", agent.log_tail());
    Ok(())
}

/// The beginning of the threads' names.
const BULK: &str = "weft-bulk-";
const TALK: &str = "weft-worker-";

/// How long an agent's threads of this name have run on a core.
fn ran(agent: &Agent, name: &str) -> Result<Duration> {
    let pid = agent.pid().context("the agent runs")?;
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        // One that ends meanwhile.
        let (Ok(comm), Ok(stat)) = (
            fs::read_to_string(task.join("comm")),
            fs::read_to_string(task.join("schedstat")),
        ) else {
            continue;
        };
        if comm.starts_with(name) {
            let first = stat.split(' ').next().unwrap_or_default();
            nanos += first
                .parse::<u64>()
                .with_context(|| format!("schedstat {stat:?}"))?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

fn open_files(agent: &Agent) -> Result<usize> {
    let pid = agent.pid().context("the agent runs")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// How far an agent may raise its limit of open files; nothing where there is no end to it.
fn most_files(agent: &Agent) -> Result<Option<u64>> {
    let pid = agent.pid().context("the agent runs")?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let most = line.and_then(|line| line.split_whitespace().nth(4));
    Ok(most.context("no limit of open files")?.parse().ok())
}

/// What a pump does at the moment.
const FLOOD: u8 = 0;
const TRICKLE: u8 = 1;
const END: u8 = 2;

/// A client that sends a stream that can be checked, as fast as it goes or in small messages, until it is told to end.
struct Pump {
    does: Arc<AtomicU8>,
    sent: Arc<AtomicU64>,
    /// How many bytes it has sent, and how many the server says that it has checked.
    sending: JoinHandle<io::Result<(u64, String)>>,
}

impl Pump {
    fn start(from: &Host, to: SocketAddr) -> Result<Self> {
        let stream = from.connect(to)?;
        let (does, sent) = (Arc::new(AtomicU8::new(FLOOD)), Arc::default());
        let (told, count) = (Arc::clone(&does), Arc::clone(&sent));
        let sending = thread::spawn(move || send(stream, &told, &count));
        Ok(Self { does, sent, sending })
    }

    fn does(&self, what: u8) {
        self.does.store(what, SeqCst);
    }

    /// Waits until some more has been sent.
    fn goes_on(&self) -> Result<()> {
        let before = self.sent.load(SeqCst);
        wait_until("bulk to go on", LIMIT, || {
            self.sent.load(SeqCst) > before + (32 << 20)
        })
    }

    /// Ends it, and checks that all has arrived.
    fn finish(self) -> Result<u64> {
        self.does(END);
        let (sent, checked) = self.ended().context("the bulk stream broke")?;
        ensure!(
            sent.to_string() == checked,
            "sent {sent}, the server says {checked:?}"
        );
        Ok(sent)
    }

    fn ended(self) -> io::Result<(u64, String)> {
        self.sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the pump panicked")))
    }

    /// Fails unless the stream breaks with a reset.
    fn ensure_cut(self) -> Result<()> {
        let since = Instant::now();
        let ended = self.ended();
        let kind = ended.as_ref().map_err(io::Error::kind);
        let cut = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
        ensure!(
            kind.is_err_and(|kind| cut.contains(&kind)),
            "not cut, but {ended:?}"
        );
        ensure!(
            since.elapsed() < Duration::from_secs(2),
            "cut after {:?}",
            since.elapsed()
        );
        Ok(())
    }
}

fn send(mut stream: TcpStream, does: &AtomicU8, sent: &AtomicU64) -> io::Result<(u64, String)> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    loop {
        let size = match does.load(SeqCst) {
            FLOOD => CHUNK,
            TRICKLE => {
                thread::sleep(Duration::from_millis(10));
                512
            }
            _ => break,
        };
        pattern::fill(&mut buffer[..size], SEED, position);
        stream.write_all(&buffer[..size])?;
        position += size as u64;
        sent.store(position, SeqCst);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((position, answer))
}

#[test]
fn bulk_goes_to_its_thread_and_back_and_messages_go_beside_it() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let mut beside = scene.client.connect(scene.web.addr(ECHO))?;
        let pump = scene.pump()?;
        let mut down = scene.client.connect(scene.web.addr(SOURCE))?;
        let down = thread::spawn(move || pattern::check(&mut down, SEED));
        scene.wait_until_moved()?;
        let mut slowest = Duration::ZERO;
        for _ in 0..200 {
            let since = Instant::now();
            round_trip(&mut beside, MARKER)?;
            slowest = slowest.max(since.elapsed());
        }
        let received = down.join().ok().context("the reader panicked")??;
        ensure!(received == 1 << 30, "{received} of 1 GiB came down");
        for turn in 0..3 {
            pump.does(TRICKLE);
            thread::sleep(QUIET + QUIET / 2);
            for agent in scene.agents() {
                let (bulk, talk) = (ran(agent, BULK)?, ran(agent, TALK)?);
                thread::sleep(QUIET / 2);
                let (bulk, talk) = (ran(agent, BULK)? - bulk, ran(agent, TALK)? - talk);
                ensure!(
                    bulk < Duration::from_millis(2) && talk > bulk,
                    "agent {}, turn {turn}: it has not come back: bulk {bulk:?}, talk {talk:?}",
                    agent.node()
                );
            }
            pump.does(FLOOD);
            scene.wait_until_moved()?;
            round_trip(&mut beside, MARKER)?;
        }
        let sent = pump.finish()?;
        eprintln!(
            "{} MiB up, 1 GiB down; a message took {slowest:?} at most",
            sent >> 20
        );
        ensure!(slowest < LIMIT, "a message took {slowest:?}");
        for server in &scene.servers {
            ensure!(server.errors().is_empty(), "{:?}", server.errors());
        }
        scene.no_panic()
    });
}

#[test]
fn a_drain_lets_bulk_come_to_its_end() {
    with_world(|world| {
        let scene = Scene::with(world, &slow())?;
        for agent in scene.agents() {
            let pump = scene.pump()?;
            scene.wait_until_moved()?;
            let stopping = agent.clone();
            let stopped = thread::spawn(move || stopping.stop());
            thread::sleep(Duration::from_millis(300));
            pump.goes_on().context("while the agent drains")?;
            pump.finish()?;
            stopped.join().ok().context("a panic")??;
            no_panic(agent)?;
            agent.start()?;
            wait_until("the pods to be captured again", LIMIT, || {
                echoed(&scene.client, scene.web.addr(ECHO)).ok()
            })?;
        }
        Ok(())
    });
}

#[test]
fn a_drain_that_is_over_cuts_bulk_and_an_agent_that_is_killed_as_well() {
    with_world(|world| {
        let scene = Scene::with(world, &AgentOptions::default().arg("--drain-timeout=1"))?;
        for agent in scene.agents() {
            for kill in [false, true] {
                let pumps = [scene.pump()?, scene.pump()?, scene.pump()?];
                scene.wait_until_moved()?;
                if kill {
                    agent.kill()?;
                } else {
                    agent.stop()?;
                }
                pumps.into_iter().try_for_each(Pump::ensure_cut)?;
                no_panic(agent)?;
                agent.start()?;
                wait_until("the pods to be captured again", LIMIT, || {
                    echoed(&scene.client, scene.web.addr(ECHO)).ok()
                })?;
            }
        }
        scene.pump()?.finish()?;
        scene.no_panic()
    });
}

#[test]
fn bulk_goes_on_while_one_agent_replaces_another() {
    with_world(|world| {
        let mut scene = Scene::with(world, &slow())?;
        for node in ["a", "b"] {
            let pump = scene.pump()?;
            scene.wait_until_moved()?;
            let new = world.take_over(node, slow())?;
            let place = if node == "a" { &mut scene.a } else { &mut scene.b };
            let old = std::mem::replace(place, new);
            pump.goes_on().context("after the take-over")?;
            let stopping = old.clone();
            let stopped = thread::spawn(move || stopping.stop());
            thread::sleep(Duration::from_millis(200));
            pump.goes_on().context("while the old agent drains")?;
            let young = scene.pump()?;
            scene.wait_until_moved().context("by the new agent")?;
            pump.finish()?;
            stopped.join().ok().context("a panic")??;
            young.finish()?;
            no_panic(&old)?;
        }
        scene.no_panic()
    });
}

#[test]
fn a_policy_and_the_end_of_a_pod_cut_bulk() {
    with_world(|world| {
        let mut scene = Scene::new(world)?;
        let pumps = [scene.pump()?, scene.pump()?];
        scene.wait_until_moved()?;
        let rules = json!([{ "to": [{ "ports": [SINK.to_string()] }] }]);
        world.mesh_mut().policy("no-bulk", "DENY", "web", rules);
        world.apply()?;
        pumps.into_iter().try_for_each(Pump::ensure_cut)?;
        echoed(&scene.client, scene.web.addr(ECHO)).context("what is not refused goes on")?;
        world.mesh_mut().policies.clear();
        world.apply()?;
        wait_until("bulk to be allowed again", LIMIT, || {
            scene.pump().and_then(Pump::finish).ok()
        })?;
        let before = scene.b.status()?["pods"].as_array().map_or(0, Vec::len);
        let pump = scene.pump()?;
        scene.wait_until_moved()?;
        let gone = scene.web.clone();
        world.remove_pod(&gone)?;
        world.apply()?;
        wait_until("the pod to be released", LIMIT, || {
            let status = scene.b.status().ok()?;
            (status["pods"].as_array().map_or(0, Vec::len) < before).then_some(())
        })?;
        // As its processes end with it.
        scene.servers.clear();
        wait_until("the agent to have ended what it carried", LIMIT, || {
            open_connections(&scene.b) == Some(0)
        })
        .with_context(|| scene.b.log_tail())?;
        drop(pump);
        scene.no_panic()
    });
}

#[test]
fn without_a_free_file_sockets_stay_where_they_are_and_bulk_goes_on() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let pumps = [scene.pump()?, scene.pump()?];
        // The threads are there.
        scene.wait_until_moved()?;
        for turn in 0..2 {
            pumps.iter().for_each(|pump| pump.does(TRICKLE));
            thread::sleep(QUIET + QUIET / 2);
            let mut before = Vec::new();
            for agent in scene.agents() {
                let pid = agent.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
                // Not a file is free below the limit: those that are open stay.
                let none = Rlimit {
                    current: Some(3),
                    maximum: most_files(agent)?,
                };
                before.push((pid, prlimit(pid, Resource::Nofile, none)?));
            }
            pumps.iter().for_each(|pump| pump.does(FLOOD));
            scene.wait_until_moved().with_context(|| format!("turn {turn}"))?;
            pumps.iter().try_for_each(Pump::goes_on)?;
            for (pid, limit) in before {
                prlimit(pid, Resource::Nofile, limit)?;
            }
            // And back with their sockets where they were.
            pumps.iter().for_each(|pump| pump.does(TRICKLE));
            thread::sleep(QUIET + QUIET / 2);
            echoed(&scene.client, scene.web.addr(ECHO))?;
            pumps.iter().for_each(|pump| pump.does(FLOOD));
            pumps.iter().try_for_each(Pump::goes_on)?;
        }
        pumps.into_iter().try_for_each(|pump| pump.finish().map(drop))?;
        scene.no_panic()
    });
}

/// What a client does when its stream has become bulk.
#[derive(Clone, Copy)]
enum Whim {
    Reset,
    HalfClose,
    Trickle,
    Vanish,
}

/// A burst, and then a whim; how many bytes of it must arrive in any case.
fn whim(from: &Host, to: SocketAddr, whim: Whim, burst: u64) -> Result<()> {
    let mut stream = from.connect(to)?;
    pattern::send(&mut stream, SEED, burst)?;
    match whim {
        Whim::Reset => {
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
        Whim::Vanish => return Ok(()),
        Whim::Trickle => {
            let mut bytes = vec![0; 64];
            for step in 0..20 {
                pattern::fill(&mut bytes, SEED, burst + step * 64);
                stream.write_all(&bytes)?;
                thread::sleep(Duration::from_millis(1));
            }
        }
        Whim::HalfClose => {}
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let more = if matches!(whim, Whim::Trickle) { 20 * 64 } else { 0 };
    if answer != (burst + more).to_string() {
        bail!("the server has checked {answer:?} of {}", burst + more);
    }
    Ok(())
}

#[test]
fn streams_that_flap_end_as_their_apps_end_them_and_leave_nothing() {
    const ROUNDS: u64 = 25;
    with_world(|world| {
        let scene = Scene::new(world)?;
        // The tunnels that a pair comes to have, so that what is counted after is what streams leave.
        let warm = [scene.pump()?, scene.pump()?, scene.pump()?, scene.pump()?];
        scene.wait_until_moved()?;
        warm.into_iter().try_for_each(|pump| pump.finish().map(drop))?;
        let quiet = || {
            scene
                .agents()
                .into_iter()
                .all(|agent| open_connections(agent) == Some(0))
        };
        wait_until("the agents to be quiet", LIMIT, quiet)?;
        let files = [open_files(&scene.a)?, open_files(&scene.b)?];
        let (client, to) = (&scene.client, scene.web.addr(SINK));
        thread::scope(|scope| -> Result<()> {
            let whims = [Whim::Reset, Whim::HalfClose, Whim::Trickle, Whim::Vanish];
            let running: Vec<_> = (0..8)
                .map(|number: usize| {
                    scope.spawn(move || -> Result<()> {
                        for round in 0..ROUNDS {
                            let next = whims[(number + round as usize) % whims.len()];
                            // On this side and on that of what makes a stream bulk.
                            whim(client, to, next, (3 << 20) + round * (1 << 18))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            for thread in running {
                thread.join().ok().context("a client panicked")??;
            }
            Ok(())
        })?;
        wait_until("every connection to have ended", LIMIT, quiet).with_context(|| scene.b.log_tail())?;
        for (agent, before) in scene.agents().into_iter().zip(files) {
            // Tunnels: at most eight of a pair, each a file.
            wait_until("files to be closed", LIMIT, || {
                open_files(agent).is_ok_and(|now| now <= before + 8)
            })
            .with_context(|| {
                format!(
                    "agent {}: {before} before, {:?} now",
                    agent.node(),
                    open_files(agent)
                )
            })?;
        }
        echoed(&scene.client, addr(common::SERVICE4)).ok();
        scene.pump()?.finish()?;
        scene.no_panic()
    });
}
