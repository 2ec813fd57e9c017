//! An agent is replaced by another one, of the same or of another layout of its maps, while connections come all the
//! time: none is refused, none is lost. And whatever is killed in the middle of it, what is left goes on or refuses.
//!
//! Needs `weft-next-layout`, the same program with larger map values, which `cargo xtask test` builds.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use weft_tests::{
    Agent, AgentOptions, LIMIT, Membership, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    capture::contains,
    wait_until, with_world,
};

mod common;
use common::{MARKER, SERVICE4, addr, client_and_web, echoed, refused_at_once, ways};

/// New connections a second, in all.
const RATE: u32 = 500;
/// Threads that make them: each waits for its connection's end before the next.
const CLIENTS: u32 = 25;

/// The build whose maps have another layout.
const OTHER: &str = "weft-next-layout";

/// Clients that connect, have an echo checked and close, at a fixed rate, until they are stopped.
struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
    since: Instant,
}

impl Traffic {
    fn start(from: &Pod, to: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let since = Instant::now();
        let client = |number: u32| {
            let (from, to) = (from.clone(), to[number as usize % to.len()]);
            let (stop, done, failures) = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failures));
            thread::spawn(move || {
                client(number, since, &stop, &|| match echoed(&from, to) {
                    Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => failed(&failures, format!("after {:?}: {error:#}", since.elapsed())),
                });
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self {
            stop,
            done,
            failures,
            clients,
            since,
        }
    }

    /// Waits until so many more connections have come to a good end.
    fn wait_for(&self, more: u64) -> Result<()> {
        let until = self.done.load(Ordering::Relaxed) + more;
        wait_until("more connections", LIMIT, || {
            self.done.load(Ordering::Relaxed) >= until
        })
        .with_context(|| format!("failures: {:?}", self.failures()))
    }

    fn failures(&self) -> Vec<String> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.clone()
    }

    /// Ends it; how many connections there were, and what failed.
    fn stop(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = Arc::clone(&self.failures);
        let panics = self.clients.into_iter().filter_map(|client| client.join().err());
        panics.for_each(|_| failed(&failures, "a client panicked".to_owned()));
        let done = self.done.load(Ordering::Relaxed);
        let seconds = self.since.elapsed().as_secs_f64();
        println!(
            "{done} connections in {seconds:.1} s: {:.0} a second",
            done as f64 / seconds
        );
        let failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
        (done, failures.clone())
    }
}

/// Keeps to its schedule: one that was held up catches up, so that a pause of the mesh is not a pause of the traffic.
fn client(number: u32, since: Instant, stop: &AtomicBool, connection: &dyn Fn()) {
    let period = Duration::from_secs(1) * CLIENTS / RATE;
    let mut next = since + period * number / CLIENTS;
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        connection();
        next += period;
    }
}

fn failed(failures: &Mutex<Vec<String>>, what: String) {
    failures.lock().unwrap_or_else(PoisonError::into_inner).push(what);
}

/// Both nodes' pods, each with a server: what is broken on a node shows outbound and inbound.
struct Pair {
    client: Pod,
    web: Pod,
    _servers: [Server; 2],
}

impl Pair {
    fn new(world: &mut World) -> Result<Self> {
        let (client, web) = client_and_web(world)?;
        let servers = [
            Server::start(web.listen(8080)?, echo)?,
            Server::start(client.listen(8080)?, echo)?,
        ];
        Ok(Self {
            client,
            web,
            _servers: servers,
        })
    }

    /// Connections in both directions are carried.
    fn talks(&self) -> Result<()> {
        let back = [self.client.addr(8080), self.client.addr6(8080)];
        for to in ways(&self.web) {
            echoed(&self.client, to)?;
        }
        for to in back {
            echoed(&self.web, to)?;
        }
        Ok(())
    }
}

fn opened(from: &Pod, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = from.connect(to)?;
    round_trip(&mut stream, MARKER)?;
    Ok(stream)
}

/// Replaces `old` by another agent while a connection is open, and ends it.
fn upgrade(world: &mut World, old: &Agent, options: AgentOptions, client: &Pod) -> Result<Agent> {
    let mut open = opened(client, addr(SERVICE4))?;
    let new = world.take_over(old.node(), options)?;
    round_trip(&mut open, MARKER).context("a connection of the replaced agent goes on")?;
    ensure!(
        open.peer_addr()? == addr(SERVICE4),
        "it still shows its peer: {}",
        open.peer_addr()?
    );
    drop(open);
    old.stop()?;
    Ok(new)
}

#[test]
fn ten_upgrades_at_500_connections_a_second_fail_none() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [mut a, mut b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let traffic = Traffic::start(&client, &ways(&web));
        traffic.wait_for(100)?;
        for (round, binary) in ["weft", OTHER, "weft", "weft", OTHER].into_iter().enumerate() {
            // The number of workers changes too: SYNs must never go to one that is not there.
            let options = |workers: usize| {
                let options = AgentOptions::default().binary(binary);
                options.arg("--workers").arg(&workers.to_string())
            };
            a = upgrade(world, &a, options(1 + (round + 1) % 3), &client)?;
            traffic.wait_for(50)?;
            b = upgrade(world, &b, options(1 + round % 3), &client)?;
            traffic.wait_for(50)?;
            println!("{} upgrades done", 2 * (round + 1));
        }
        let (done, failures) = traffic.stop();
        ensure!(
            failures.is_empty(),
            "{} of {done} failed: {failures:#?}",
            failures.len()
        );
        Ok(())
    });
}

#[test]
fn a_takeover_that_is_killed_leaves_the_running_agent_in_charge() {
    with_world(|world| {
        let pair = Pair::new(world)?;
        let [a, _] = world.start_agents()?;
        let capture = world.capture_link()?;
        for (binary, stage) in [
            ("weft", "mesh taken"),
            (OTHER, "mesh taken"),
            (OTHER, "pod captured"),
            ("weft", "pod captured"),
        ] {
            let new = world.prepare_takeover("a", AgentOptions::default().binary(binary))?;
            new.spawn()?;
            new.wait_for_log(stage, |line| line.contains(stage))?;
            new.kill()?;
            a.wait_until_in_charge()?;
            pair.talks()
                .with_context(|| format!("after {binary} was killed at '{stage}'"))?;
        }
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear on the link");
        Ok(())
    });
}

#[test]
fn a_replaced_agent_goes_on_when_its_successor_dies() {
    with_world(|world| {
        let pair = Pair::new(world)?;
        let [a, _] = world.start_agents()?;
        for binary in ["weft", OTHER] {
            let mut open = opened(&pair.client, addr(SERVICE4))?;
            let new = world.take_over("a", AgentOptions::default().binary(binary))?;
            a.wait_for_log("it is replaced", |line| {
                line.contains("another agent has taken over")
            })?;
            pair.talks().context("through the successor")?;
            new.kill()?;
            a.wait_until_in_charge()?;
            pair.talks().with_context(|| format!("after {binary} died"))?;
            round_trip(&mut open, MARKER).context("the replaced agent's connection goes on")?;
        }
        Ok(())
    });
}

#[test]
fn agents_replace_each_other_while_all_of_them_live() {
    with_world(|world| {
        let pair = Pair::new(world)?;
        let [mut a, _] = world.start_agents()?;
        let mut older = Vec::new();
        for binary in [OTHER, "weft", OTHER, "weft"] {
            let open = opened(&pair.client, addr(SERVICE4))?;
            let new = world.take_over("a", AgentOptions::default().binary(binary))?;
            pair.talks()
                .with_context(|| format!("through {binary}, with {} older ones", older.len() + 1))?;
            older.push((std::mem::replace(&mut a, new), open));
            for (_, open) in &mut older {
                round_trip(open, MARKER).context("connections of all go on")?;
            }
        }
        for (agent, _) in older {
            agent.stop()?;
            pair.talks().context("when an older one has ended")?;
        }
        Ok(())
    });
}

#[test]
fn the_next_agent_need_not_wait_for_the_last_connection() {
    with_world(|world| {
        let pair = Pair::new(world)?;
        world.start_agent("b")?;
        let slow = AgentOptions::default().arg("--drain-timeout").arg("15");
        let a = world.start_agent_with("a", slow)?;
        let mut open = opened(&pair.client, addr(SERVICE4))?;
        a.signal(Signal::TERM)?;
        let _next = world.start_agent("a")?;
        ensure!(a.running(), "it ended before its connection did");
        pair.talks()?;
        round_trip(&mut open, MARKER).context("the connection of the agent that ends")?;
        drop(open);
        wait_until("it to end with its last connection", LIMIT, || !a.running())
    });
}

#[test]
fn a_pod_that_leaves_while_two_layouts_are_attached_is_let_go_by_both() {
    with_world(|world| {
        let pair = Pair::new(world)?;
        let stranger = world.pod("b", PodSpec::new("stranger").unlisted())?;
        let [_a, _] = world.start_agents()?;
        let _new = world.take_over("a", AgentOptions::default().binary(OTHER))?;
        pair.talks()?;
        world.set_membership(&pair.client, Membership::Outside);
        world.apply()?;
        let back = [pair.client.addr(8080), pair.client.addr6(8080)];
        back.into_iter()
            .try_for_each(|to| echoed(&stranger, to).map(drop))
    });
}

#[test]
fn a_takeover_that_is_killed_at_any_moment_leaves_no_pod_open() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let capture = world.capture_link()?;
        let traffic = Traffic::start(&client, &ways(&web));
        for round in 0..8_u32 {
            let binary = if round % 2 == 0 { OTHER } else { "weft" };
            let new = world.prepare_takeover("a", AgentOptions::default().binary(binary))?;
            new.spawn()?;
            // Not a wait for something: the moments are spread over the start.
            thread::sleep(Duration::from_millis(60) * round);
            new.kill()?;
        }
        a.wait_until_in_charge()?;
        traffic.wait_for(200).context("it goes on")?;
        let (_, failures) = traffic.stop();
        println!("{} connections failed meanwhile", failures.len());
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear on the link");
        Ok(())
    });
}

#[test]
fn the_replaced_agent_is_killed_and_the_new_one_goes_on() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let capture = world.capture_link()?;
        let new = world.prepare_takeover("a", AgentOptions::default().binary(OTHER))?;
        new.spawn()?;
        a.wait_for_log("it lets go", |line| line.contains("another agent takes over"))?;
        a.kill()?;
        new.wait_until_in_charge()?;
        for to in ways(&web) {
            echoed(&client, to).context("through the new agent")?;
        }
        new.kill()?;
        for to in ways(&web) {
            refused_at_once(&client, to).context("nobody is left")?;
        }
        a.start()
            .context("the first layout again, after a crash of the other")?;
        for to in ways(&web) {
            echoed(&client, to).context("through the first layout again")?;
        }
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear on the link");
        Ok(())
    });
}

/// The one generation of maps that is in force in a node's pin directory.
fn generation(pin_dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(pin_dir)?.filter_map(Result::ok);
    let mut generations = entries.map(|entry| entry.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("maps-") && !name.ends_with("-unfinished")
    });
    let first = generations.next().context("there is no generation")?;
    ensure!(
        generations.next().is_none(),
        "there are two generations in {}",
        pin_dir.display()
    );
    Ok(first)
}

/// Breaks the pins of a killed agent as a crash of another version may have left them, and starts the agent again.
fn recovers_from(world: &mut World, what: &str, break_pins: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let pair = Pair::new(world)?;
    let [a, _] = world.start_agents()?;
    let capture = world.capture_link()?;
    let pins = world.node("a").pin_dir().to_owned();
    a.kill()?;
    break_pins(&pins).with_context(|| format!("break the pins: {what}"))?;
    refused_at_once(&pair.client, pair.web.addr(8080))
        .with_context(|| format!("{what}: closed meanwhile"))?;
    a.start().context(what.to_owned())?;
    pair.talks().context(what.to_owned())?;
    generation(&pins)?;
    ensure!(
        !contains(&capture.stop()?, MARKER),
        "{what}: it was in clear on the link"
    );
    Ok(())
}

#[test]
fn pins_that_were_left_half_made_are_replaced() {
    with_world(|world| {
        recovers_from(world, "another generation was being made", |pins| {
            let unfinished = pins.join("maps-1-deadbeef-unfinished");
            let of = generation(pins)?;
            fs::create_dir(&unfinished)?;
            fs::rename(of.join("CONFIG"), unfinished.join("CONFIG"))?;
            Ok(())
        })
    });
}

#[test]
fn pins_of_a_generation_that_lacks_a_map_are_replaced() {
    with_world(|world| {
        recovers_from(world, "a map is missing", |pins| {
            Ok(fs::remove_file(generation(pins)?.join("PORT_MODES"))?)
        })
    });
}

#[test]
fn pins_with_a_map_of_another_size_are_replaced() {
    with_world(|world| {
        recovers_from(world, "a map has the wrong size", |pins| {
            let generation = generation(pins)?;
            Ok(fs::rename(generation.join("CONFIG"), generation.join("PODS"))?)
        })
    });
}

#[test]
fn pins_of_a_version_that_kept_them_elsewhere_are_replaced() {
    with_world(|world| {
        recovers_from(world, "everything lies in the folder itself", |pins| {
            let generation = generation(pins)?;
            for entry in fs::read_dir(&generation)? {
                let entry = entry?;
                fs::rename(entry.path(), pins.join(entry.file_name()))?;
            }
            Ok(fs::remove_dir(generation)?)
        })
    });
}

#[test]
fn pins_that_were_retired_by_half_are_replaced() {
    with_world(|world| {
        recovers_from(
            world,
            "everything of a retired generation is still attached",
            |pins| Ok(fs::rename(generation(pins)?, pins.join("retired-1"))?),
        )
    });
}

#[test]
fn a_third_agent_does_not_come_between_two() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        // The test asks for the place and takes it, as an agent would.
        let folder = world.node("a").pin_dir().join("takeover");
        if !folder.exists() {
            fs::create_dir(&folder)?;
        }
        let request = fs::File::open(&folder)?;
        flock(&request, FlockOperation::NonBlockingLockExclusive)?;
        let pins = fs::File::open(world.node("a").pin_dir())?;
        wait_until("it to let go", LIMIT, || {
            flock(&pins, FlockOperation::NonBlockingLockExclusive)
        })?;
        let third = world.prepare_takeover("a", AgentOptions::default())?;
        third.spawn()?;
        third.wait_for_log("it says why", |line| {
            line.contains("another weft agent is about to take over")
        })?;
        wait_until("it to leave", LIMIT, || !third.running())?;
        for to in ways(&web) {
            echoed(&client, to).context("the first agent's listeners go on meanwhile")?;
        }
        drop(request);
        drop(pins);
        a.wait_until_in_charge()?;
        for to in ways(&web) {
            echoed(&client, to)?;
        }
        Ok(())
    });
}

/// Runs `weft release` for a node; whether it said yes, and what it said.
fn release(world: &World, node: &str) -> Result<(bool, String)> {
    let node = world.node(node);
    let output = node
        .command(weft_tests::machine::binary("weft", "WEFT_BIN")?)
        .arg("release")
        .arg("--pin-dir")
        .arg(node.pin_dir())
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn release_leaves_every_pod_as_it_was() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let mut open = opened(&client, web.addr(8080))?;
        let (done, said) = release(world, "a")?;
        ensure!(
            !done && said.contains("a weft agent (pid"),
            "an agent runs: {said}"
        );
        round_trip(&mut open, MARKER).context("it has released nothing")?;

        // Two generations: the second agent leaves what the first one made.
        a.kill()?;
        let other = world.start_agent_with("a", AgentOptions::default().binary(OTHER))?;
        other.kill()?;
        b.stop()?;
        refused_at_once(&client, web.addr(8080)).context("closed until it is released")?;
        for node in ["a", "b"] {
            let (done, said) = release(world, node)?;
            ensure!(done && said.contains("released: 1 pods"), "{said}");
            ensure!(!world.node(node).pin_dir().exists(), "pins are left");
            let (done, said) = release(world, node)?;
            ensure!(done && said.contains("nothing to release"), "{said}");
        }
        let capture = world.capture_link()?;
        for to in [web.addr(8080), web.addr6(8080)] {
            let stream = opened(&client, to)?;
            ensure!(stream.peer_addr()? == to);
        }
        ensure!(contains(&capture.stop()?, MARKER), "it is plain TCP again");
        Ok(())
    });
}

#[test]
fn release_waits_for_an_agent_that_was_replaced() {
    with_world(|world| {
        let pair = Pair::new(world)?;
        let [a, _] = world.start_agents()?;
        let new = world.take_over("a", AgentOptions::default())?;
        a.wait_for_log("it is replaced", |line| {
            line.contains("another agent has taken over")
        })?;
        a.signal(Signal::STOP)?;
        new.kill()?;
        let (done, said) = release(world, "a")?;
        ensure!(
            !done && said.contains("an agent that another one has replaced"),
            "{said}"
        );
        a.signal(Signal::CONT)?;
        a.wait_until_in_charge()?;
        pair.talks()
    });
}

#[test]
fn what_is_left_of_other_layouts_is_bounded() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [mut a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        for binary in [OTHER, "weft", OTHER, "weft"] {
            a = upgrade(world, &a, AgentOptions::default().binary(binary), &client)?;
            let pins = world.node("a").pin_dir().to_owned();
            wait_until("one generation to be left", LIMIT, || generation(&pins))?;
            // A generation, a lock and two retired ones.
            wait_until("no more than four folders to be left", LIMIT, || {
                let entries = fs::read_dir(&pins).into_iter().flatten().filter_map(Result::ok);
                let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
                entries.filter(is_folder).count() <= 4
            })?;
        }
        Ok(())
    });
}
