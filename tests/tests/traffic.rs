//! TCP through the mesh is TCP: who speaks first, half-closes, resets, dead ports and every byte arrive as they were
//! sent, in both directions.

use std::{
    io::{ErrorKind, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use weft_tests::{
    Host, LIMIT, PodSpec, Server,
    app::{self, ask, round_trip},
    pattern, wait_until, with_world,
};

mod common;
use common::{
    MARKER, SERVICE4, SERVICE6, addr, client_and_web, ensure_reset, error_line, line_of, read_some,
    reset_or_refused, ways,
};

#[test]
fn a_server_that_speaks_first_is_heard() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, app::banner(b"220 ready\r\n"))?;
        for way in ways(&web) {
            let mut stream = client.connect(way)?;
            let local = stream.local_addr()?;
            let greeting = read_some(&mut stream).with_context(|| format!("the greeting by {way}"))?;
            ensure!(greeting == b"220 ready\r\n", "{greeting:?}");
            ensure!(
                ask(stream, b"QUIT\r\n")? == b"QUIT\r\n",
                "the echo differs by {way}"
            );
            let line = line_of(&a, "outbound", local)?;
            ensure!(
                line.is_ok() && line.matches(&[("bytes_sent", "6"), ("bytes_recv", "17")]),
                "{line}"
            );
            let line = line_of(&b, "inbound", local)?;
            ensure!(
                line.is_ok() && line.matches(&[("bytes_sent", "17"), ("bytes_recv", "6")]),
                "{line}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_half_close_of_the_client_leaves_the_answer_open() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, app::count)?;
        for way in ways(&web) {
            let stream = client.connect(way)?;
            let local = stream.local_addr()?;
            // The answer depends on the end of the question.
            ensure!(ask(stream, MARKER)? == b"26", "by {way}");
            for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
                let line = line_of(agent, direction, local)?;
                ensure!(line.is_ok(), "{line}");
            }
        }
        ensure!(server.errors().is_empty(), "{:?}", server.errors());
        Ok(())
    });
}

#[test]
fn a_half_close_of_the_server_leaves_the_question_open() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let server = Server::start(web.listen(8080)?, move |mut stream| {
            stream.write_all(b"bye")?;
            stream.shutdown(Shutdown::Write)?;
            let size = std::io::copy(&mut stream, &mut std::io::sink())?;
            count.fetch_add(size, Ordering::SeqCst);
            Ok(())
        })?;
        for (nth, way) in (1..).zip(ways(&web)) {
            let mut stream = client.connect(way)?;
            let local = stream.local_addr()?;
            ensure!(read_some(&mut stream)? == b"bye", "by {way}");
            ensure!(read_some(&mut stream)?.is_empty(), "the server's end arrives");
            // Long after the server's end, and more than any buffer on the way holds.
            stream.write_all(&vec![7; 8 << 20])?;
            drop(stream);
            wait_until("the server to read it all", LIMIT, || server.finished() == nth)?;
            ensure!(
                received.load(Ordering::SeqCst) == nth * (8 << 20),
                "{received:?} by {way}"
            );
            for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
                let line = line_of(agent, direction, local)?;
                ensure!(line.is_ok(), "{line}");
            }
        }
        ensure!(server.errors().is_empty(), "{:?}", server.errors());
        Ok(())
    });
}

#[test]
fn a_reset_of_the_server_reaches_the_client_as_a_reset() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, app::reset_after_first_byte)?;
        for way in ways(&web) {
            let mut stream = client.connect(way)?;
            let local = stream.local_addr()?;
            stream.write_all(b"x")?;
            ensure_reset(&mut stream).with_context(|| format!("by {way}"))?;
            for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
                let line = line_of(agent, direction, local)?;
                ensure!(!line.is_ok() && line.has("error"), "{line}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_reset_of_the_client_reaches_the_server_as_a_reset() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, app::echo)?;
        for (nth, way) in (1..).zip(ways(&web)) {
            let mut stream = client.connect(way)?;
            let local = stream.local_addr()?;
            round_trip(&mut stream, MARKER)?;
            app::reset(stream)?;
            wait_until("the server to see the end", LIMIT, || server.finished() == nth)?;
            let errors = server.errors();
            ensure!(
                errors.len() as u64 == nth,
                "a clean end instead of a reset by {way}: {errors:?}"
            );
            ensure!(
                errors.iter().all(|error| error.contains("reset by peer")),
                "{errors:?}"
            );
            for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
                let line = line_of(agent, direction, local)?;
                ensure!(!line.is_ok() && line.has("error"), "{line}");
            }
        }
        Ok(())
    });
}

#[test]
fn bytes_for_an_app_that_has_closed_are_answered_by_a_reset() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, |stream| {
            drop(stream);
            Ok(())
        })?;
        for way in ways(&web) {
            let mut stream = client.connect(way)?;
            ensure!(read_some(&mut stream)?.is_empty(), "the server's end by {way}");
            // The first go into the air, and bring the answer that the next meet.
            let refused = wait_until("the client to be told", Duration::from_secs(5), || {
                stream.write_all(MARKER).err()
            });
            let refused = refused.with_context(|| format!("by {way}"))?.kind();
            ensure!(
                [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&refused),
                "{refused} by {way}"
            );
        }
        Ok(())
    });
}

#[test]
fn half_closes_and_resets_pass_where_one_side_is_not_in_the_mesh() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let outside = world.pod("a", PodSpec::new("outside").outside())?;
        let [a, b] = world.start_agents()?;
        // From the mesh to a plain server, and from a plain client into the mesh.
        let ways = [
            (&client, &outside, &a, "outbound"),
            (&outside, &web, &b, "inbound"),
        ];
        for (from, to, agent, direction) in ways {
            let _count = Server::start(to.listen(1001)?, app::count)?;
            let _finish = Server::start(to.listen(1002)?, app::finish_first(b"bye"))?;
            let _reset = Server::start(to.listen(1003)?, app::reset_after_first_byte)?;
            let echo = Server::start(to.listen(1004)?, app::echo)?;
            for (nth, at) in (1..).zip([Host::addr, Host::addr6]) {
                ensure!(
                    ask(from.connect(at(to, 1001))?, MARKER)? == b"26",
                    "the client's half-close"
                );
                let mut stream = from.connect(at(to, 1002))?;
                let local = stream.local_addr()?;
                ensure!(read_some(&mut stream)? == b"bye" && read_some(&mut stream)?.is_empty());
                stream.write_all(MARKER)?;
                drop(stream);
                let line = line_of(agent, direction, local)?;
                let (up, down) = if direction == "outbound" {
                    ("26", "3")
                } else {
                    ("3", "26")
                };
                ensure!(
                    line.is_ok() && line.matches(&[("bytes_sent", up), ("bytes_recv", down)]),
                    "{line}"
                );
                let mut stream = from.connect(at(to, 1003))?;
                stream.write_all(b"x")?;
                ensure_reset(&mut stream).context("the server's reset")?;
                let mut stream = from.connect(at(to, 1004))?;
                round_trip(&mut stream, MARKER)?;
                app::reset(stream)?;
                wait_until("the server to see the end", LIMIT, || echo.finished() == nth)?;
                ensure!(
                    echo.errors().len() as u64 == nth,
                    "a clean end instead of a reset"
                );
            }
            for to in [to.addr(81), to.addr6(81)] {
                reset_or_refused(from, to)?;
                error_line(agent, direction, to, "Connection refused")?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_dead_port_is_a_reset_and_both_sides_say_so() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        // Nobody listens on 8080; by service the log names the pod that was tried.
        let dialled = [
            (addr(SERVICE4), web.addr(8080)),
            (addr(SERVICE6), web.addr6(8080)),
            (web.addr(81), web.addr(81)),
            (web.addr6(81), web.addr6(81)),
        ];
        for (to, tried) in dialled {
            let since = Instant::now();
            reset_or_refused(&client, to)?;
            let took = since.elapsed();
            ensure!(
                took < Duration::from_secs(3),
                "the app was told after {took:?} only"
            );
            let line = error_line(&a, "outbound", tried, "503")?;
            ensure!(
                line.field("dst.identity").is_empty() || line.field("dst.identity") == web.identity(),
                "{line}"
            );
            let line = error_line(&b, "inbound", tried, "Connection refused")?;
            ensure!(
                line.matches(&[("src.identity", &client.identity()), ("bytes_recv", "0")]),
                "{line}"
            );
        }
        for (agent, reporter) in [(&a, "source"), (&b, "destination")] {
            let failed = agent.metrics()?.sum(
                "istio_tcp_connections_failed_total",
                &[("reporter", reporter), ("response_flags", "CONNECT")],
            );
            ensure!(failed >= 4.0, "agent {} counts {failed} failures", agent.node());
        }
        Ok(())
    });
}

/// The promise is 1 GiB as one stream.
const GIB: u64 = 1 << 30;

#[test]
fn one_gib_to_the_server_arrives_unchanged() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, app::sink(7))?;
        let mut stream = client.connect(addr(SERVICE4))?;
        let local = stream.local_addr()?;
        pattern::send(&mut stream, 7, GIB)?;
        ensure!(
            ask(stream, b"")? == GIB.to_string().as_bytes(),
            "the server counts otherwise"
        );
        for (agent, direction, field) in [(&a, "outbound", "bytes_sent"), (&b, "inbound", "bytes_recv")] {
            let line = line_of(agent, direction, local)?;
            ensure!(line.is_ok() && line.number(field) == Some(GIB), "{line}");
        }
        Ok(())
    });
}

#[test]
fn one_gib_from_the_server_arrives_unchanged() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, app::source(9, GIB))?;
        let mut stream = client.connect(addr(SERVICE6))?;
        let local = stream.local_addr()?;
        ensure!(
            pattern::check(&mut stream, 9)? == GIB,
            "the stream has another length"
        );
        drop(stream);
        for (agent, direction, field) in [(&a, "outbound", "bytes_recv"), (&b, "inbound", "bytes_sent")] {
            let line = line_of(agent, direction, local)?;
            ensure!(line.is_ok() && line.number(field) == Some(GIB), "{line}");
        }
        Ok(())
    });
}

#[test]
fn a_thousand_connections_are_open_at_once() {
    const MANY: u64 = 1_000;
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, app::echo)?;
        let ways = ways(&web);
        let dial = |nth: u64| client.connect(ways[nth as usize % ways.len()]);
        let mut streams: Vec<TcpStream> = (0..MANY).map(dial).collect::<Result<_, _>>()?;
        let text = |nth: usize| format!("{nth:08}").into_bytes();
        // All ask before the first reads, in the other order.
        for (nth, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&text(nth))?;
        }
        for (nth, stream) in streams.iter_mut().enumerate().rev() {
            let answer = read_some(stream).with_context(|| format!("connection {nth}"))?;
            ensure!(answer == text(nth), "connection {nth} got {answer:?}");
        }
        for agent in [&a, &b] {
            let open = common::open_connections(agent);
            ensure!(
                open == Some(MANY),
                "agent {} says that {open:?} are open",
                agent.node()
            );
        }
        drop(streams);
        wait_until("the server to see every end", LIMIT, || server.finished() == MANY)?;
        ensure!(server.errors().is_empty(), "{:?}", server.errors());
        for (agent, reporter) in [(&a, "source"), (&b, "destination")] {
            wait_until("every connection to be closed and counted", LIMIT, || {
                agent.metrics().is_ok_and(|metrics| {
                    let sum = |name| metrics.sum(name, &[("reporter", reporter)]);
                    sum("istio_tcp_connections_opened_total") == MANY as f64
                        && sum("istio_tcp_connections_closed_total") == MANY as f64
                        && sum("istio_tcp_sockets_open") == 0.0
                })
            })?;
        }
        Ok(())
    });
}

#[test]
fn ten_thousand_short_connections_do_not_fail() {
    const THREADS: u64 = 4;
    const EACH: u64 = 2_500;
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, app::echo)?;
        let ways = ways(&web);
        let work = |way| {
            (0..EACH).try_for_each(|nth| {
                let answer = client.connect(way).and_then(|stream| ask(stream, MARKER));
                let answer = answer.with_context(|| format!("connection {nth} by {way}"))?;
                ensure!(answer == MARKER, "connection {nth} by {way}: {answer:?}");
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = ways.map(|way| scope.spawn(move || work(way))).into();
            let mut results = threads.into_iter().map(|thread| thread.join());
            results.try_for_each(|result| result.unwrap_or_else(|_| anyhow::bail!("a client panicked")))
        })?;
        ensure!(server.accepted() == THREADS * EACH, "{server:?}");
        for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
            wait_until("a line for each connection", LIMIT, || {
                agent.access_lines().len() as u64 == THREADS * EACH
            })
            .with_context(|| format!("agent {} wrote {}", agent.node(), agent.access_lines().len()))?;
            let lines = agent.access_lines();
            let wrong = lines.iter().find(|line| {
                !line.is_ok() || !line.matches(&[("direction", direction), ("bytes_sent", "26")])
            });
            ensure!(
                wrong.is_none(),
                "{}",
                wrong.map(ToString::to_string).unwrap_or_default()
            );
        }
        Ok(())
    });
}

#[test]
fn an_app_that_closes_first_uses_its_ports_again() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        // So few ports that each must be used again and again. Whoever closes first leaves its port in TIME-WAIT for a
        // minute, unless the kernel is allowed to reuse it after a second.
        for pod in [&client, &web] {
            pod.netns()
                .sysctl(&[("ipv4/ip_local_port_range", "40000 40063")])?;
        }
        world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, app::echo)?;
        for nth in 0..200 {
            let to = addr(if nth % 2 == 0 { SERVICE4 } else { SERVICE6 });
            let closes_first = || -> Result<()> {
                let mut stream = client.connect(to)?;
                round_trip(&mut stream, MARKER)?;
                stream.shutdown(Shutdown::Write)?;
                ensure!(
                    read_some(&mut stream)?.is_empty(),
                    "the server's end comes second"
                );
                Ok(())
            };
            wait_until("a port to be free again", Duration::from_secs(5), closes_first)
                .with_context(|| format!("connection {nth} to {to}"))?;
        }
        Ok(())
    });
}
