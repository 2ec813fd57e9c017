//! Pods and agents come and go under running apps: enrolment and its end, an agent that is killed, restarted, stopped,
//! or started twice.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use socket2::{Domain, Type};
use weft_tests::{
    Agent, Host, LIMIT, Membership, Node, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    capture::contains,
    pause::SocketSpec,
    wait_until, with_world,
};

mod common;
use common::{
    MARKER, SERVICE4, SERVICE6, addr, client_and_web, echoed, ensure_reset, line_of, open_connections,
    refused_at_once, reset_or_refused, ways,
};

/// A connection that has been used.
fn opened(from: &Host, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = from.connect(to).with_context(|| format!("{from:?} dials {to}"))?;
    round_trip(&mut stream, MARKER)?;
    Ok(stream)
}

#[test]
fn a_running_client_is_enrolled_and_unenrolled() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        world.set_membership(&client, Membership::Outside);
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let mut before = opened(&client, web.addr(8080))?;
        let made_before = client.socket(SocketSpec::new(Domain::IPV4, Type::STREAM, None))?;

        world.set_membership(&client, Membership::Mesh);
        world.apply()?;
        round_trip(&mut before, MARKER).context("the connection from before the enrolment goes on")?;
        let mut during = opened(&client, web.addr(8080))?;
        let mut by_service = opened(&client, addr(SERVICE6))?;
        made_before.connect(&addr(SERVICE4).into())?;
        let mut made_before = TcpStream::from(made_before);
        round_trip(&mut made_before, MARKER).context("a socket from before the enrolment is captured")?;

        world.set_membership(&client, Membership::Outside);
        world.apply()?;
        for stream in [&mut before, &mut during, &mut by_service, &mut made_before] {
            round_trip(stream, MARKER).context("the connections from before go on")?;
        }
        let after = opened(&client, web.addr(8080))?;
        ensure!(
            client
                .connect_within(addr(SERVICE4), Duration::from_secs(1))
                .is_err(),
            "nobody serves it now"
        );

        let streams = [
            (before, false),
            (during, true),
            (by_service, true),
            (made_before, true),
            (after, false),
        ];
        for (stream, captured) in streams {
            let local = stream.local_addr()?;
            drop(stream);
            let line = line_of(&b, "inbound", local)?;
            let identity = if captured {
                client.identity()
            } else {
                String::new()
            };
            ensure!(line.is_ok() && line.field("src.identity") == identity, "{line}");
            if captured {
                ensure!(line_of(&a, "outbound", local)?.is_ok());
            }
        }
        ensure!(a.access_lines().len() == 3, "{:?}", a.access_lines());
        ensure!(server.errors().is_empty(), "{:?}", server.errors());
        Ok(())
    });
}

#[test]
fn a_running_server_is_enrolled_and_unenrolled() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        world.set_membership(&web, Membership::Outside);
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let capture = world.capture_link()?;
        let mut open = vec![
            opened(&client, addr(SERVICE4))?,
            opened(&stranger, web.addr6(8080))?,
        ];
        ensure!(
            contains(&capture.stop()?, MARKER),
            "it is plain TCP before the enrolment"
        );

        world.set_membership(&web, Membership::Mesh);
        world.apply()?;
        for stream in &mut open {
            round_trip(stream, MARKER).context("the connections from before the enrolment go on")?;
        }
        let capture = world.capture_link()?;
        let tunnelled = opened(&client, addr(SERVICE4))?;
        let local = tunnelled.local_addr()?;
        open.push(tunnelled);
        ensure!(
            !contains(&capture.stop()?, MARKER),
            "the new one goes through a tunnel"
        );
        open.push(opened(&stranger, web.addr(8080))?);
        wait_until("both to be carried by agent b", LIMIT, || {
            open_connections(&b) == Some(2)
        })?;

        world.set_membership(&web, Membership::Outside);
        world.apply()?;
        for stream in &mut open {
            round_trip(stream, MARKER).context("the connections from before go on")?;
        }
        open.push(opened(&client, addr(SERVICE4))?);
        open.push(opened(&stranger, web.addr(8080))?);
        ensure!(open_connections(&b) == Some(2), "the new ones are not agent b's");
        drop(open);
        for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
            let line = line_of(agent, direction, local)?;
            ensure!(
                line.is_ok() && line.field("dst.identity") == web.identity(),
                "{line}"
            );
        }
        wait_until("the server to see every end", LIMIT, || server.finished() == 6)?;
        ensure!(server.errors().is_empty(), "{:?}", server.errors());
        Ok(())
    });
}

/// Between two nodes there is always a moment in which one knows already that a pod is captured, or let go, and the other not yet.
#[test]
fn a_server_that_enters_or_leaves_the_mesh_refuses_nobody_meanwhile() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let inside = world.mesh_text();
        world.set_membership(&web, Membership::Outside);
        let outside = world.mesh_text();
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let captured = |agent: &Agent| captured_pods(agent).unwrap_or_default();
        let before = captured(&b);
        // Each node's turn, and who carries the connection by then: a tunnel to a pod that is not captured yet, or no more.
        for (text, sooner, later, count, tunnelled) in [
            (&inside, "a", "b", before + 1, true),
            (&outside, "b", "a", before, false),
        ] {
            let taken = a.status()?["mesh"]["revision"].clone();
            world.apply_text(sooner, text)?;
            match sooner {
                "a" => wait_until("agent a's mesh", LIMIT, || {
                    a.status().is_ok_and(|status| status["mesh"]["revision"] != taken)
                })?,
                _ => wait_until("agent b's pods", LIMIT, || captured(&b) == count)?,
            }
            thread::scope(|scope| -> Result<()> {
                let dials = scope.spawn(|| opened(&client, addr(SERVICE4)));
                thread::sleep(Duration::from_millis(100));
                ensure!(!dials.is_finished(), "nobody waited: {:?}", dials.join());
                world.apply_text(later, text)?;
                let stream = dials.join().expect("no panic")?;
                let local = stream.local_addr()?;
                drop(stream);
                let line = line_of(&a, "outbound", local)?;
                let identity = line.field("dst.identity");
                ensure!(line.is_ok() && identity.is_empty() != tunnelled, "{line}");
                Ok(())
            })?;
            wait_until("agent b's pods", LIMIT, || captured(&b) == count)?;
        }
        Ok(())
    });
}

fn captured_pods(agent: &Agent) -> Result<u64> {
    let status = agent.status()?;
    status["capturedPods"].as_u64().context("no count in the status")
}

#[test]
fn an_agent_that_is_killed_leaves_its_pods_closed_and_a_new_one_opens_them() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        // Each agent has a server and a client of the mesh, so that both ways can be tried with either one dead.
        let near = PodSpec::new("near").service_account("near").label("app", "near");
        let near = world.pod("a", near)?;
        world
            .mesh_mut()
            .service("near", &["10.96.0.11", "fd00:96::11"], 80, 8080, "near");
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let [a, _] = world.start_agents()?;
        let servers = [
            Server::start(web.listen(8080)?, echo)?,
            Server::start(near.listen(8080)?, echo)?,
        ];
        let out = ways(&web);
        let inward = [
            addr("10.96.0.11:80"),
            addr("[fd00:96::11]:80"),
            near.addr(8080),
            near.addr6(8080),
        ];
        let all_work = || -> Result<()> {
            out.iter().try_for_each(|to| echoed(&client, *to).map(drop))?;
            inward.iter().try_for_each(|to| echoed(&web, *to).map(drop))?;
            echoed(&stranger, near.addr(8080)).map(drop)
        };
        all_work()?;
        let accepted = || servers.iter().map(Server::accepted).sum::<u64>();
        let before = accepted();

        let capture = world.capture_link()?;
        a.kill()?;
        for to in out {
            refused_at_once(&client, to)?;
        }
        for to in inward {
            reset_or_refused(&web, to)?;
        }
        for to in [near.addr(8080), near.addr6(8080)] {
            // A pod of the same node, the other node, and a pod of the mesh on the same node. (The node itself is the kubelet:
            // see probes.rs.)
            for from in [&*stranger, &**world.node("b"), &*client] {
                refused_at_once(from, to)?;
            }
        }
        ensure!(accepted() == before, "an app was reached without an agent");
        ensure!(
            !contains(&capture.stop()?, MARKER),
            "the marker was on the link in clear"
        );

        a.start()?;
        all_work()
    });
}

#[test]
fn an_agent_that_is_killed_looks_to_apps_like_a_reset_never_like_a_clean_end() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let outside = world.pod("b", PodSpec::new("outside").outside())?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let plain = Server::start(outside.listen(8080)?, echo)?;
        let open_all = || -> Result<Vec<TcpStream>> {
            let to = ways(&web)
                .into_iter()
                .chain([outside.addr(8080), outside.addr6(8080)]);
            to.map(|to| opened(&client, to)).collect()
        };
        for (nth, agent) in (1..).zip([&a, &b]) {
            let mut open = open_all()?;
            // Those to the pod outside of the mesh know nothing of agent b.
            let carried = if nth == 1 { 6 } else { 4 };
            agent.kill()?;
            for stream in &mut open[..carried] {
                ensure_reset(stream).with_context(|| format!("agent {} was killed", agent.node()))?;
            }
            wait_until("the server to see every end", LIMIT, || {
                server.finished() == nth * 4
            })?;
            drop(open);
            let errors = server.errors();
            ensure!(
                errors.len() as u64 == nth * 4,
                "a clean end instead of a reset: {errors:?}"
            );
            agent.start()?;
        }
        wait_until("the plain server to see every end", LIMIT, || {
            plain.finished() == 4
        })?;
        ensure!(
            plain.errors().len() == 2,
            "reset when agent a was killed: {:?}",
            plain.errors()
        );
        Ok(())
    });
}

#[test]
fn a_new_agent_finds_pods_that_left_and_pods_that_came() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let leaving = world.pod("a", PodSpec::new("leaving"))?;
        let released = world.pod("a", PodSpec::new("released"))?;
        let [a, b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        for pod in [&client, &leaving, &released] {
            echoed(pod, addr(SERVICE4))?;
        }
        ensure!(
            lookups(world.node("a"))?.len() == 3,
            "{:?}",
            lookups(world.node("a"))?
        );

        a.kill()?;
        world.remove_pod(&leaving)?;
        world.set_membership(&released, Membership::Outside);
        let coming = world.pod("a", PodSpec::new("coming").service_account("coming"))?;
        world.apply()?;
        refused_at_once(&released, web.addr(8080)).context("until the next agent nothing changes")?;
        a.start()?;

        let local = echoed(&coming, addr(SERVICE4))?;
        ensure!(line_of(&b, "inbound", local)?.field("src.identity") == coming.identity());
        let local = echoed(&client, addr(SERVICE6))?;
        ensure!(line_of(&b, "inbound", local)?.field("src.identity") == client.identity());
        let own = Server::start(coming.listen(8080)?, echo)?;
        let local = echoed(&web, coming.addr(8080))?;
        ensure!(line_of(&a, "inbound", local)?.field("dst.identity") == coming.identity());
        ensure!(own.accepted() == 1, "{own:?}");
        // Let go of by the agent that found it captured.
        let local = echoed(&released, web.addr(8080))?;
        ensure!(line_of(&b, "inbound", local)?.field("src.identity").is_empty());
        ensure!(
            lookups(world.node("a"))?.len() == 2,
            "{:?}",
            lookups(world.node("a"))?
        );
        Ok(())
    });
}

/// The pins of pods that are captured, in whichever generation they are.
fn lookups(node: &Node) -> Result<BTreeSet<String>> {
    let mut lookups = BTreeSet::new();
    for folder in fs::read_dir(node.pin_dir()).context("read the pins")? {
        let folder = folder?;
        if folder.file_type()?.is_dir() {
            let pins = fs::read_dir(folder.path())?.filter_map(Result::ok);
            let names = pins.map(|pin| pin.file_name().to_string_lossy().into_owned());
            lookups.extend(names.filter(|name| name.starts_with("lookup-")));
        }
    }
    Ok(lookups)
}

#[test]
fn a_pod_that_leaves_and_one_that_comes_are_noticed_by_a_running_agent() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let leaving = world.pod("a", PodSpec::new("leaving"))?;
        let [_, b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        echoed(&leaving, addr(SERVICE4))?;
        world.remove_pod(&leaving)?;
        let coming = world.pod("a", PodSpec::new("coming").service_account("coming"))?;
        world.apply()?;
        for (pod, identity) in [(&coming, coming.identity()), (&client, client.identity())] {
            let local = echoed(pod, addr(SERVICE4))?;
            ensure!(line_of(&b, "inbound", local)?.field("src.identity") == identity);
        }
        ensure!(
            lookups(world.node("a"))?.len() == 2,
            "{:?}",
            lookups(world.node("a"))?
        );
        Ok(())
    });
}

#[test]
fn an_agent_that_is_told_to_stop_lets_open_connections_finish() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        for (nth, agent) in (1..).zip([&b, &a]) {
            let mut stream = opened(&client, addr(SERVICE4))?;
            let local = stream.local_addr()?;
            agent.signal(Signal::TERM)?;
            wait_until("the agent to begin", LIMIT, || {
                agent.log().contains("shutting down")
            })?;
            for _ in 0..100 {
                round_trip(&mut stream, MARKER).context("the open connection goes on")?;
            }
            ensure!(agent.running(), "it waits for the connection");
            drop(stream);
            wait_until("the agent to end", LIMIT, || !agent.running())?;
            wait_until("the server to see the end", LIMIT, || server.finished() == nth)?;
            let direction = if agent.node() == "a" {
                "outbound"
            } else {
                "inbound"
            };
            let line = line_of(agent, direction, local)?;
            ensure!(
                line.is_ok() && line.number("bytes_sent") == Some(101 * MARKER.len() as u64),
                "{line}"
            );
            reset_or_refused(&client, addr(SERVICE4)).context("it takes no new connection")?;
            agent.stop()?;
            agent.start()?;
        }
        ensure!(server.errors().is_empty(), "{:?}", server.errors());
        echoed(&client, addr(SERVICE6)).map(drop)
    });
}

#[test]
fn an_agent_that_is_told_to_stop_waits_no_longer_than_its_limit() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let mut open: Vec<_> = ways(&web)
            .into_iter()
            .map(|to| opened(&client, to))
            .collect::<Result<_>>()?;
        let since = Instant::now();
        a.stop()?;
        let took = since.elapsed();
        ensure!(
            took > Duration::from_secs(3),
            "it waited only {took:?} for open connections"
        );
        for stream in &mut open {
            ensure_reset(stream).context("cut off, which is no clean end")?;
        }
        wait_until("the server to see every end", LIMIT, || server.finished() == 4)?;
        ensure!(
            server.errors().len() == 4,
            "a clean end instead of a reset: {:?}",
            server.errors()
        );
        Ok(())
    });
}

#[test]
fn a_second_agent_with_the_same_pins_says_so_and_leaves() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let mut open = opened(&client, addr(SERVICE4))?;
        // The same in all but the ports, so that nothing else stops it.
        let mut second = a.command()?;
        for (flag, port) in [("admin", 25000), ("metrics", 25020), ("ready", 25021)] {
            second.args([format!("--{flag}-address"), format!("127.0.0.1:{port}")]);
        }
        let second = second
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start it again")?;
        let ended = ended(second)?;
        let said =
            String::from_utf8_lossy(&ended.stderr).into_owned() + &String::from_utf8_lossy(&ended.stdout);
        ensure!(ended.status.code() == Some(1), "{:?}: {said}", ended.status);
        let pins = world.node("a").pin_dir().display().to_string();
        ensure!(
            said.contains("another weft agent (pid") && said.contains("--takeover") && said.contains(&pins),
            "{said}"
        );
        ensure!(said.trim().lines().count() == 1, "one clear line, not:\n{said}");
        round_trip(&mut open, MARKER).context("the first goes on")?;
        for to in ways(&web) {
            echoed(&client, to)?;
        }
        ensure!(a.running() && a.ready(), "the first goes on");
        Ok(())
    });
}

/// What a process said, when it ends by itself in time.
fn ended(mut child: std::process::Child) -> Result<std::process::Output> {
    let ended = wait_until("the process to end by itself", LIMIT, || {
        child.try_wait().ok().flatten()
    });
    if let Err(err) = ended {
        child.kill().context("end it")?;
        bail!(err);
    }
    child.wait_with_output().context("read what it said")
}

#[test]
fn connections_made_without_a_pause_fail_only_while_no_agent_runs() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let try_all = |world: &World, agent: &Agent, client: &Pod| -> Result<()> {
            ensure!(agent.ready(), "the agent was ready when the world was");
            // Ready means that every pod is captured and has its certificate: from then on nothing fails.
            for to in [SERVICE4, SERVICE6].map(addr) {
                echoed(client, to).with_context(|| format!("in {}", world.dir().display()))?;
            }
            Ok(())
        };
        for _ in 0..3 {
            a.kill()?;
            thread::scope(|scope| {
                let starting = scope.spawn(|| a.start());
                // Refused, until it works; and never anything else.
                let works = || match client.connect(addr(SERVICE4)).and_then(|mut stream| {
                    stream.write_all(MARKER)?;
                    let mut answer = vec![0; MARKER.len()];
                    std::io::Read::read_exact(&mut stream, &mut answer)?;
                    Ok(answer)
                }) {
                    Ok(answer) => Some(if answer == MARKER {
                        Ok(())
                    } else {
                        Err(format!("{answer:?}"))
                    }),
                    Err(err) if err.kind() == std::io::ErrorKind::UnexpectedEof => {
                        Some(Err("a clean end".into()))
                    }
                    Err(_) => None,
                };
                let worked = wait_until("the first connection to work", LIMIT, works)?;
                worked.map_err(anyhow::Error::msg)?;
                starting.join().unwrap_or_else(|_| bail!("the start panicked"))
            })?;
            try_all(world, &a, &client)?;
        }
        Ok(())
    });
}
