//! Every bound: what reaches it is refused with a line and counted, and nobody else notices. And what an agent holds with
//! 15,000 connections open.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use weft_tests::{
    Agent, AgentOptions, Crowd, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    wait_until, with_world,
};

const REJECTIONS: &str = "weft_limit_rejections_total";

fn counted(agent: &Agent, limit: &str) -> Result<f64> {
    Ok(agent.metrics()?.sum(REJECTIONS, &[("limit", limit)]))
}

/// Waits for an access line and a count of one more than before.
fn wait_for_refusal(agent: &Agent, before: f64, limit: &str, error: &str) -> Result<()> {
    agent.wait_for_access(error, |line| line.field("error").contains(error))?;
    wait_until(&format!("a count of {limit}"), LIMIT, || {
        counted(agent, limit).is_ok_and(|now| now > before)
    })
}

/// Opens connections, each of which works, until one is refused.
fn open_until_refused(from: &Pod, to: SocketAddr, most: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::new();
    while open.len() < most {
        let Ok(mut stream) = from.connect(to) else { break };
        match round_trip(&mut stream, b"hello") {
            Ok(()) => open.push(stream),
            Err(error) => {
                ensure!(
                    error.kind() != io::ErrorKind::UnexpectedEof,
                    "a clean end, not a reset"
                );
                break;
            }
        }
    }
    Ok(open)
}

/// Two clients on node a, two servers on node b.
struct Scene {
    clients: [Pod; 2],
    servers: [Pod; 2],
    agents: [Agent; 2],
    _echoes: [Server; 2],
}

impl Scene {
    fn new(world: &mut World, a: AgentOptions, b: AgentOptions) -> Result<Self> {
        let clients = [
            world.pod("a", PodSpec::new("client-1"))?,
            world.pod("a", PodSpec::new("client-2"))?,
        ];
        let servers = [
            world.pod("b", PodSpec::new("server-1"))?,
            world.pod("b", PodSpec::new("server-2"))?,
        ];
        let agents = [world.start_agent_with("a", a)?, world.start_agent_with("b", b)?];
        let echoes = [
            Server::start(servers[0].listen(8080)?, echo)?,
            Server::start(servers[1].listen(8080)?, echo)?,
        ];
        Ok(Self {
            clients,
            servers,
            agents,
            _echoes: echoes,
        })
    }
}

#[test]
fn every_limit_has_a_series_from_the_start() {
    with_world(|world| {
        let agent = world.start_agent("a")?;
        let metrics = agent.metrics()?;
        let samples = metrics.find(REJECTIONS, &[]);
        let labels: BTreeSet<_> = samples.iter().map(|it| it.labels["limit"].as_str()).collect();
        let expected = weft::mesh::Limit::ALL.map(weft::mesh::Limit::label);
        ensure!(labels == BTreeSet::from(expected), "{labels:?}");
        ensure!(samples.iter().all(|it| it.value == 0.0), "{samples:?}");
        Ok(())
    });
}

#[test]
fn a_pod_that_dials_too_much_is_refused_and_another_pod_goes_on() {
    with_world(|world| {
        let few = AgentOptions::default().arg("--max-sockets-per-pod=60");
        let scene = Scene::new(world, few, AgentOptions::default())?;
        let [agent, _] = &scene.agents;
        let before = counted(agent, "pod_sockets")?;
        let mut open = open_until_refused(&scene.clients[0], scene.servers[0].addr(8080), 100)?;
        // Its tunnel has a socket as well.
        ensure!((50..60).contains(&open.len()), "{} connections", open.len());
        wait_for_refusal(agent, before, "pod_sockets", "--max-sockets-per-pod")?;
        let mut other = scene.clients[1].connect(scene.servers[0].addr(8080))?;
        round_trip(&mut other, b"other").context("another pod")?;
        for stream in &mut open {
            round_trip(stream, b"again").context("a connection from before")?;
        }
        drop(open);
        wait_until("places that are free again", LIMIT, || {
            let mut stream = scene.clients[0].connect(scene.servers[0].addr(8080))?;
            round_trip(&mut stream, b"after")
        })
    });
}

#[test]
fn a_peer_with_too_many_connections_is_refused_and_another_peer_goes_on() {
    with_world(|world| {
        let few = AgentOptions::default().arg("--max-connections-per-peer=40");
        let scene = Scene::new(world, AgentOptions::default(), few)?;
        let [_, agent] = &scene.agents;
        let before = counted(agent, "peer_connections")?;
        let open = open_until_refused(&scene.clients[0], scene.servers[0].addr(8080), 100)?;
        ensure!(open.len() == 40, "{} connections", open.len());
        wait_for_refusal(agent, before, "peer_connections", "--max-connections-per-peer")?;
        let mut other = scene.clients[1].connect(scene.servers[0].addr(8080))?;
        round_trip(&mut other, b"other").context("another peer")?;
        let mut elsewhere = scene.clients[0].connect(scene.servers[1].addr(8080))?;
        round_trip(&mut elsewhere, b"elsewhere").context("the same peer at another pod")?;
        Ok(())
    });
}

#[test]
fn plaintext_connections_are_bounded_too() {
    with_world(|world| {
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let other = world.pod("a", PodSpec::new("other").unlisted())?;
        let few = AgentOptions::default()
            .arg("--max-sockets-per-pod=100")
            .arg("--max-connections-per-peer=30");
        let scene = Scene::new(world, AgentOptions::default(), few)?;
        let [_, agent] = &scene.agents;
        let before = counted(agent, "peer_connections")?;
        let open = open_until_refused(&stranger, scene.servers[0].addr(8080), 100)?;
        ensure!(open.len() == 30, "{} connections of a peer", open.len());
        wait_for_refusal(agent, before, "peer_connections", "--max-connections-per-peer")?;
        // Each has two sockets, so that 50 are all that the pod may have.
        let before = counted(agent, "pod_sockets")?;
        let more = open_until_refused(&other, scene.servers[0].addr(8080), 100)?;
        ensure!(more.len() == 20, "{} connections of another peer", more.len());
        wait_for_refusal(agent, before, "pod_sockets", "--max-sockets-per-pod")?;
        let mut elsewhere = other.connect(scene.servers[1].addr(8080))?;
        round_trip(&mut elsewhere, b"elsewhere").context("another pod")?;
        Ok(())
    });
}

#[test]
fn pods_that_take_every_socket_leave_each_pod_some() {
    with_world(|world| {
        // Two pods of which each takes 80 off for itself: 40 to share, beside 32 of each pod's own.
        let few = AgentOptions::default()
            .arg("--max-sockets=200")
            .arg("--max-sockets-per-pod=200");
        let scene = Scene::new(world, few, AgentOptions::default())?;
        let [agent, _] = &scene.agents;
        let before = counted(agent, "sockets")?;
        let greedy = open_until_refused(&scene.clients[0], scene.servers[0].addr(8080), 200)?;
        ensure!((65..75).contains(&greedy.len()), "{} connections", greedy.len());
        wait_for_refusal(agent, before, "sockets", "--max-sockets)")?;
        let others = open_until_refused(&scene.clients[1], scene.servers[0].addr(8080), 20)?;
        ensure!(
            others.len() == 20,
            "the other pod has {} connections",
            others.len()
        );
        Ok(())
    });
}

#[test]
fn a_tunnel_without_a_stream_is_closed_after_its_time() {
    with_world(|world| {
        let soon = || AgentOptions::default().arg("--idle-tunnel-timeout=1");
        let scene = Scene::new(world, soon(), soon())?;
        let mut stream = scene.clients[0].connect(scene.servers[0].addr(8080))?;
        round_trip(&mut stream, b"hello")?;
        let tunnels = || scene.clients[0].netns().connections_to(15008);
        ensure!(tunnels() == 1, "{} tunnels", tunnels());
        drop(stream);
        wait_until("the tunnel's end", LIMIT, || tunnels() == 0)?;
        let mut again = scene.clients[0].connect(scene.servers[0].addr(8080))?;
        round_trip(&mut again, b"again").context("a connection after it")?;
        Ok(())
    });
}

/// Connections that are open at once.
const CROWD: usize = 15_000;

#[test]
fn fifteen_thousand_connections_are_open_at_once() {
    with_world(|world| {
        let pods = |world: &mut World, node, names: [&str; 2]| {
            let [one, other] = names;
            Ok::<_, anyhow::Error>([
                world.pod(node, PodSpec::new(one))?,
                world.pod(node, PodSpec::new(other))?,
            ])
        };
        let clients = pods(world, "a", ["client-1", "client-2"])?;
        let servers = pods(world, "b", ["server-1", "server-2"])?;
        let agents = world.start_agents()?;
        let before = agents.each_ref().map(open_files);
        let addrs = servers.each_ref().map(|server| server.addr(8080));
        let _serving = [
            Crowd::serve(&servers[0], addrs[0])?,
            Crowd::serve(&servers[1], addrs[1])?,
        ];
        let mut crowds = [
            Crowd::hold(&clients[0], CROWD / 4, &addrs)?,
            Crowd::hold(&clients[1], CROWD / 4, &addrs)?,
        ];
        crowds.iter_mut().try_for_each(Crowd::opened)?;
        for (agent, before) in agents.iter().zip(before) {
            let open = agent.metrics()?.sum("istio_tcp_sockets_open", &[]);
            ensure!(
                open == CROWD as f64,
                "agent {} has {open} connections",
                agent.node()
            );
            // One each: an app's socket here, and a hundred of them share a tunnel's.
            let files = open_files(agent)? - before?;
            println!("agent {}: {files} files more", agent.node());
            ensure!(
                files < CROWD + CROWD / 50,
                "agent {}: {files} files more",
                agent.node()
            );
        }
        crowds.iter_mut().try_for_each(Crowd::round)?;
        Ok(())
    });
}

fn open_files(agent: &Agent) -> Result<usize> {
    let pid = agent.pid().context("the agent runs")?;
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Connections whose server never reads.
const SLOW: usize = 400;
/// MiB that may wait for them beyond the tunnels' own windows.
const BUFFERED: u64 = 32;
/// MiB that the agent may grow by: that, the windows of the tunnels that a pair may have at their full width (8 of 16 MiB),
/// and what every connection costs in any case.
const GROWTH: u64 = BUFFERED + 8 * 16 + 64;

#[test]
fn readers_that_stop_cost_bounded_memory_and_others_go_on() {
    with_world(|world| {
        let little = || AgentOptions::default().arg(&format!("--max-buffered-per-peer-mib={BUFFERED}"));
        let scene = Scene::new(world, little(), little())?;
        let _deaf = scene.servers[0].listen(8081)?;
        let before = scene.agents.each_ref().map(|agent| memory(agent, "VmRSS:"));
        let mut writers = Vec::new();
        for _ in 0..SLOW {
            let stream = scene.clients[0].connect(scene.servers[0].addr(8081))?;
            stream.set_nonblocking(true)?;
            writers.push(stream);
        }
        let count = counted(&scene.agents[1], "peer_buffered_bytes")?;
        let mut sent = 0;
        wait_until("the budget's end", LIMIT * 3, || {
            let pass: usize = writers.iter_mut().map(fill).sum();
            sent += pass;
            pass == 0 && counted(&scene.agents[1], "peer_buffered_bytes").is_ok_and(|now| now > count)
        })?;
        for (agent, before) in scene.agents.iter().zip(before) {
            let grown = memory(agent, "VmHWM:")?.saturating_sub(before?) / 1024;
            println!(
                "agent {}: {grown} MiB more with {} MiB under way",
                agent.node(),
                sent >> 20
            );
            ensure!(grown < GROWTH, "agent {} grew by {grown} MiB", agent.node());
        }
        let mut other = scene.clients[1].connect(scene.servers[0].addr(8080))?;
        round_trip(&mut other, b"other").context("another pod's connection")?;
        let mut elsewhere = scene.clients[0].connect(scene.servers[1].addr(8080))?;
        round_trip(&mut elsewhere, b"elsewhere").context("a connection to another pod")?;
        Ok(())
    });
}

/// Writes as much as the socket takes now.
fn fill(stream: &mut TcpStream) -> usize {
    let chunk = [0; 64 * 1024];
    let mut sent = 0;
    while let Ok(some) = stream.write(&chunk) {
        sent += some;
    }
    sent
}

/// A number of KiB from /proc/<pid>/status.
fn memory(agent: &Agent, field: &str) -> Result<u64> {
    let pid = agent.pid().context("the agent runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .context("no such field")?;
    Ok(number.parse()?)
}
