//! Source ports do not run out: not for an app that makes short connections as fast as it can, whoever closes first,
//! nor for the agent that dials apps on behalf of others; and as many connections can be open at once as without a mesh.
//!
//! A client has some 28,000 ports for one destination. Without a mesh each rests for a minute after a connection that
//! the client closed first, so that it makes 500 connections a second for long, and no more.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{Shutdown, shutdown};
use socket2::{Domain, Protocol, Socket, Type};
use weft_tests::{
    Agent, AgentOptions, Host, LIMIT, Pod, PodSpec, Server, World, app, pause::SocketSpec, wait_until,
    with_world,
};

mod common;
use common::{SERVICE4, SERVICE6, addr, client_and_web, open_connections};

/// What goes there and back on each connection.
const MESSAGE: usize = 32;
/// Clients at a time.
const CLIENTS: u64 = 16;
/// More than the clients: a server is busy until the client's close has reached it.
const SERVERS: usize = 48;
/// Enough for a server, which keeps one message.
const STACK: usize = 64 * 1024;
/// How long any step of a connection may take.
const STEP: Duration = Duration::from_secs(15);

/// Who closes first, and so keeps the port for a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Client,
    Server,
}

/// A bare socket of the pod. It is connected from here: what counts is whose it is.
fn socket(from: &Host, to: SocketAddr) -> io::Result<Socket> {
    let spec = SocketSpec::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
    let socket = from.socket(spec)?;
    // Of sending, and so of connecting.
    socket.set_write_timeout(Some(STEP))?;
    socket.set_read_timeout(Some(STEP))?;
    Ok(socket)
}

/// The message of one connection: no other has the same.
fn message(nth: u64) -> [u8; MESSAGE] {
    let mut message = [0; MESSAGE];
    for (at, byte) in message.iter_mut().enumerate() {
        *byte = nth.to_le_bytes()[at % 8] ^ at as u8;
    }
    message
}

/// Sends a message and reads it back.
fn echo(socket: &mut (impl Read + Write), nth: u64) -> io::Result<()> {
    let mut answer = [0; MESSAGE];
    socket.write_all(&message(nth))?;
    socket.read_exact(&mut answer)?;
    if answer == message(nth) {
        Ok(())
    } else {
        Err(io::Error::new(ErrorKind::InvalidData, "the echo differs"))
    }
}

/// One connection, from socket to close.
fn one(from: &Host, to: SocketAddr, nth: u64, first: First) -> io::Result<()> {
    let mut socket = socket(from, to)?;
    socket.connect(&to.into())?;
    echo(&mut socket, nth)?;
    if first == First::Server && socket.read(&mut [0])? != 0 {
        return Err(io::Error::new(ErrorKind::InvalidData, "more than the echo"));
    }
    Ok(())
}

/// Serves one connection after the other until the listener is shut down.
fn serve(listener: &TcpListener, first: First) {
    while let Ok((mut stream, _)) = listener.accept() {
        let answer = |stream: &mut TcpStream| -> io::Result<()> {
            let mut message = [0; MESSAGE];
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
            match first {
                // Until the client closes.
                First::Client => stream.read(&mut message).map(drop),
                First::Server => Ok(()),
            }
        };
        // A failure is the client's to tell: it misses its answer.
        let _ = answer(&mut stream);
    }
}

/// Runs `work` while servers answer at `listener`.
fn served<T>(listener: &TcpListener, first: First, work: impl FnOnce() -> Result<T>) -> Result<T> {
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            let server = thread::Builder::new().stack_size(STACK);
            server.spawn_scoped(scope, || serve(listener, first))?;
        }
        let outcome = work();
        // This wakes the servers, whether it went well or not.
        shutdown(listener, Shutdown::Both)?;
        outcome
    })
}

/// Makes `count` connections at full rate; stops at the first that fails.
fn storm(from: &Host, to: SocketAddr, count: u64, first: First) -> Result<()> {
    let (next, since) = (AtomicU64::new(0), Instant::now());
    let client = || -> Result<()> {
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= count {
                return Ok(());
            }
            if let Err(error) = one(from, to, nth, first) {
                next.store(count, Ordering::Relaxed);
                return Err(error).with_context(|| {
                    let seconds = since.elapsed().as_secs_f64();
                    format!(
                        "connection {nth} of {count} to {to}, {first:?} closes first, after {seconds:.1} s"
                    )
                });
            }
            if (nth + 1) % 10_000 == 0 {
                eprintln!(
                    "{} connections to {to} in {:.1} s",
                    nth + 1,
                    since.elapsed().as_secs_f64()
                );
            }
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| match client.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("a client panicked"),
        })
    })
}

/// Agents that write no line for each connection: there are too many.
fn start_quiet_agents(world: &mut World) -> Result<[Agent; 2]> {
    let quiet = || AgentOptions::default().env("RUST_LOG", "warn");
    Ok([
        world.start_agent_with("a", quiet())?,
        world.start_agent_with("b", quiet())?,
    ])
}

/// Waits until both agents have counted `count` connections, each of which came to a good end.
fn ensure_all_counted(agents: &[Agent; 2], count: u64) -> Result<()> {
    for (agent, reporter) in agents.iter().zip(["source", "destination"]) {
        let sum = |name: &str| -> Result<f64> { Ok(agent.metrics()?.sum(name, &[("reporter", reporter)])) };
        wait_until("every connection to be counted", LIMIT, || {
            sum("istio_tcp_connections_closed_total").is_ok_and(|closed| closed >= count as f64)
        })?;
        let closed = sum("istio_tcp_connections_closed_total")?;
        let failed = sum("istio_tcp_connections_failed_total")?;
        ensure!(
            closed == count as f64 && failed == 0.0,
            "agent {} counts {closed} connections, {failed} failed",
            agent.node()
        );
    }
    Ok(())
}

#[test]
fn a_hundred_thousand_short_connections_from_one_pod_to_one_destination_are_all_served() {
    const MANY: u64 = 100_000;
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let agents = start_quiet_agents(world)?;
        let listener = web.listen(8080)?;
        served(&listener, First::Client, || {
            storm(&client, addr(SERVICE4), MANY, First::Client)
        })?;
        ensure_all_counted(&agents, MANY)
    });
}

#[test]
fn ports_are_used_again_whoever_closes_first() {
    // More than there are ports, in less than the minute for which they rest.
    const MORE: u64 = 32_000;
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let agents = start_quiet_agents(world)?;
        let ways = [
            (SERVICE4, First::Server),
            (SERVICE6, First::Client),
            (SERVICE6, First::Server),
        ];
        for (to, first) in ways {
            // Where the server closes first the ports rest on its side.
            let listener = web.listen(8080)?;
            served(&listener, first, || storm(&client, addr(to), MORE, first))?;
        }
        ensure_all_counted(&agents, MORE * ways.len() as u64)
    });
}

/// So few ports that a test can use them all.
const FEW: usize = 256;
/// Where a count stops at the latest.
const ENOUGH: usize = FEW + 32;
/// Ports of a pod that the agent needs for itself: for tunnels, and for listeners.
const AGENTS: usize = 16;

/// Leaves the pod few ports to dial from.
fn few_ports(pod: &Host) -> Result<()> {
    let range = format!("40000 {}", 40000 + FEW - 1);
    pod.netns().sysctl(&[("ipv4/ip_local_port_range", &range)])
}

/// What an app does to a socket before it connects it.
#[derive(Clone, Copy, Debug)]
enum Prepared {
    /// Nothing.
    Plain,
    /// Binds it to the pod's address, and has a port from then on.
    Bound,
    /// Binds it to the pod's device.
    Device,
}

impl Prepared {
    fn open(self, from: &Host, to: SocketAddr) -> io::Result<Socket> {
        let mut socket = socket(from, to)?;
        match self {
            Self::Plain => {}
            Self::Bound => {
                let ip: IpAddr = if to.is_ipv4() {
                    from.v4().into()
                } else {
                    from.v6().into()
                };
                socket.bind(&SocketAddr::new(ip, 0).into())?;
            }
            Self::Device => socket.bind_device(Some(b"eth0"))?,
        }
        socket.connect(&to.into())?;
        echo(&mut socket, to.port().into())?;
        Ok(socket)
    }

    /// How many connections can be open at once to each of these destinations, opened one after the other.
    fn count(self, from: &Host, to: &[SocketAddr]) -> Result<Vec<usize>> {
        let (mut open, mut counts) = (Vec::new(), Vec::new());
        for to in to {
            let before = open.len();
            while open.len() - before < ENOUGH {
                match self.open(from, *to) {
                    Ok(socket) => open.push(socket),
                    Err(error) if is_exhausted(&error) => break,
                    Err(error) => {
                        let nth = open.len() - before;
                        return Err(error).with_context(|| format!("{self:?} connection {nth} to {to}"));
                    }
                }
            }
            counts.push(open.len() - before);
        }
        // By reset: no port is to rest.
        open.iter()
            .try_for_each(|socket| socket.set_linger(Some(Duration::ZERO)))?;
        Ok(counts)
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    [ErrorKind::AddrNotAvailable, ErrorKind::AddrInUse].contains(&error.kind())
}

/// A pair of pods that the mesh does not know, beside the pair that it has.
fn direct_pair(world: &mut World) -> Result<(Pod, Pod)> {
    let client = world.pod("a", PodSpec::new("direct-client").unlisted())?;
    let web = world.pod("b", PodSpec::new("direct-web").unlisted())?;
    Ok((client, web))
}

/// Two destinations at a pod.
fn two(web: &Host, v4: bool) -> [SocketAddr; 2] {
    [8080, 8081].map(|port| if v4 { web.addr(port) } else { web.addr6(port) })
}

#[test]
fn as_many_connections_can_be_open_as_without_a_mesh() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let (direct_client, direct_web) = direct_pair(world)?;
        let agents = world.start_agents()?;
        for pod in [&client, &web, &direct_client, &direct_web] {
            few_ports(pod)?;
        }
        let mut servers = Vec::new();
        for (web, port) in [
            (&web, 8080),
            (&web, 8081),
            (&direct_web, 8080),
            (&direct_web, 8081),
        ] {
            servers.push(Server::start(web.listen(port)?, app::echo)?);
        }
        let mut worse = Vec::new();
        for prepared in [Prepared::Plain, Prepared::Bound, Prepared::Device] {
            for v4 in [true, false] {
                let direct = prepared.count(&direct_client, &two(&direct_web, v4))?;
                let meshed = prepared.count(&client, &two(&web, v4))?;
                eprintln!("{prepared:?}, IPv4 {v4}: {direct:?} direct, {meshed:?} through the mesh");
                let sum = |counts: &[usize]| counts.iter().sum::<usize>();
                ensure!(
                    sum(&direct) >= FEW && sum(&direct) <= 2 * FEW,
                    "{direct:?} directly"
                );
                if meshed
                    .iter()
                    .zip(&direct)
                    .any(|(meshed, direct)| meshed + AGENTS < *direct)
                {
                    worse.push(format!(
                        "{prepared:?}, IPv4 {v4}: {meshed:?} instead of {direct:?}"
                    ));
                }
                wait_until("all connections to be closed", LIMIT, || {
                    agents.iter().all(|agent| open_connections(agent) == Some(0))
                })?;
            }
        }
        ensure!(worse.is_empty(), "worse than without a mesh: {worse:#?}");
        Ok(())
    });
}

#[test]
fn an_app_that_shares_its_port_reaches_as_many_destinations_as_without_a_mesh() {
    const PORTS: std::ops::Range<u16> = 8080..8088;
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let (direct_client, direct_web) = direct_pair(world)?;
        world.start_agents()?;
        let mut servers = Vec::new();
        for (web, port) in [&web, &direct_web]
            .into_iter()
            .flat_map(|web| PORTS.map(move |port| (web, port)))
        {
            servers.push(Server::start(web.listen(port)?, app::echo)?);
        }
        // One port of all addresses, and one of the pod's own.
        for (from, web) in [(&direct_client, &direct_web), (&client, &web)] {
            let locals: [(IpAddr, u16); 4] = [
                (Ipv4Addr::UNSPECIFIED.into(), 5000),
                (Ipv6Addr::UNSPECIFIED.into(), 5001),
                (from.v4().into(), 5002),
                (from.v6().into(), 5003),
            ];
            for local in locals {
                let mut open = Vec::new();
                for port in PORTS {
                    let to = if local.0.is_ipv4() {
                        web.addr(port)
                    } else {
                        web.addr6(port)
                    };
                    let from = from.connect_from(local.into(), to);
                    let mut stream = from.with_context(|| format!("{local:?} dials {to}"))?;
                    echo(&mut stream, port.into()).with_context(|| format!("{local:?} speaks to {to}"))?;
                    open.push(stream);
                }
            }
        }
        Ok(())
    });
}

#[test]
fn clients_of_one_app_do_not_share_a_range_of_ports() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let second = world.pod("a", PodSpec::new("second").service_account("client"))?;
        let [_a, b] = world.start_agents()?;
        for pod in [&client, &second, &web] {
            few_ports(pod)?;
        }
        let _server = Server::start(web.listen(8080)?, app::echo)?;
        for to in [web.addr(8080), web.addr6(8080)] {
            let mut open = Vec::new();
            for from in [&client, &second] {
                for nth in 0..FEW - AGENTS {
                    let opened = Prepared::Plain.open(from, to);
                    open.push(
                        opened.with_context(|| format!("connection {nth} of {} to {to}", from.name()))?,
                    );
                }
            }
            // The agent takes no port that an app of the pod could want to listen on.
            let listened = (40000..40000 + FEW as u16)
                .step_by(16)
                .map(|port| web.listen(port));
            listened
                .collect::<io::Result<Vec<_>>>()
                .with_context(|| format!("listen while {} connections to {to} are open", open.len()))?;
            drop(open);
            wait_until("all connections to be closed", LIMIT, || {
                open_connections(&b) == Some(0)
            })?;
        }
        Ok(())
    });
}

/// The ports of the pod's own address that sockets are steered to.
const SHARED: std::ops::RangeInclusive<u16> = 65_472..=65_535;

#[test]
fn apps_may_listen_on_the_ports_that_sockets_are_steered_to() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, app::echo)?;
        // Dialled on behalf of a client, at such a port.
        let _there = Server::start(web.listen(*SHARED.start())?, app::echo)?;
        for to in [web.addr(*SHARED.start()), web.addr6(*SHARED.start())] {
            Prepared::Plain
                .open(&client, to)
                .with_context(|| format!("{to}"))?;
        }
        let own: Vec<_> = SHARED
            .map(|port| {
                // The agent's end of a connection before may have it for a moment.
                let listener = wait_until("a free port", LIMIT, || client.listen(port).ok())?;
                Ok(Server::start(listener, app::finish_first(b"its own"))?)
            })
            .collect::<Result<_>>()?;
        // Steered: each port is drawn several times.
        for (nth, prepared) in [Prepared::Plain, Prepared::Device, Prepared::Bound]
            .into_iter()
            .cycle()
            .take(300)
            .enumerate()
        {
            let to = if nth % 2 == 0 {
                addr(SERVICE6)
            } else {
                web.addr(8080)
            };
            prepared
                .open(&client, to)
                .with_context(|| format!("{prepared:?} to {to}"))?;
        }
        let accepted = || own.iter().map(Server::accepted).sum::<u64>();
        ensure!(
            accepted() == 0,
            "an app accepted {} steered connections itself",
            accepted()
        );
        // Not steered: inside the pod.
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for ip in loopback {
            let answer = app::ask(client.connect((ip, *SHARED.end()).into())?, b"")?;
            ensure!(answer == b"its own", "{answer:?} at {ip}");
        }
        ensure!(accepted() == 2, "{}", accepted());
        Ok(())
    });
}
