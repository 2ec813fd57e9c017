//! What is not the mesh's is asked of the very server that the pod asked, from the pod itself, and its response passed on
//! as it is. A server that fails, lies or keeps silent costs the pod no more than without a mesh.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod names {
    pub(crate) mod dig;
    pub(crate) mod dnsmasq;
    pub(crate) mod scene;
    pub(crate) mod scripted;
    pub(crate) mod wire;
}

use std::{
    collections::HashSet,
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use names::{
    dig::dig,
    dnsmasq::Dnsmasq,
    scene::{Scene, services},
    scripted::Scripted,
    wire,
};
use weft_tests::{LIMIT, Pod, PodSpec, Server, World, wait_until, with_world};

const OUTSIDE: &str = "host.outside.test";
const WEB: &str = "web.demo.svc.cluster.local";

#[test]
fn what_a_server_says_is_passed_on_as_it_is() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        for server in scene.servers() {
            for how in ["", "+tcp"] {
                let ask = |args: &str| dig(&scene.client, server, &format!("{how} {args}"));
                let found = ask(&format!("{OUTSIDE} A"))?;
                ensure!(
                    found.status == "NOERROR" && found.records("A") == ["192.0.2.1"],
                    "{}",
                    found.text
                );
                let other = ask(&format!("{OUTSIDE} MX"))?;
                ensure!(other.records("MX") == ["10 mail.outside.test."], "{}", other.text);
                let alias = ask("alias.outside.test AAAA")?;
                ensure!(alias.records("CNAME") == ["host.outside.test."], "{}", alias.text);
                ensure!(alias.records("AAAA") == ["2001:db8::1"], "{}", alias.text);
                let none = ask("v4.outside.test AAAA")?;
                ensure!(
                    none.status == "NOERROR" && none.answer.is_empty(),
                    "{}",
                    none.text
                );
                let unknown = ask("nobody.outside.test A")?;
                ensure!(
                    unknown.status == "NXDOMAIN" && unknown.answer.is_empty(),
                    "{}",
                    unknown.text
                );
                let refused = ask("elsewhere.test A")?;
                ensure!(refused.status == "REFUSED", "{}", refused.text);
                let chaos = ask("version.bind TXT CH")?;
                ensure!(chaos.answer[0].contains("dnsmasq-"), "{}", chaos.text);
                // A name that no service can have.
                let odd = ask("a\\.b\\032c.outside.test A")?;
                ensure!(odd.status == "NXDOMAIN", "{}", odd.text);
            }
        }
        // The server sees the pod, as without a mesh.
        let queries = scene.dnsmasq.queries();
        let from = |ip: &IpAddr| {
            queries
                .iter()
                .filter(|line| line.ends_with(&format!(" from {ip}")))
                .count()
        };
        let [v4, v6] = scene.client.addresses();
        ensure!(
            from(&v4) == from(&v6) && from(&v4) + from(&v6) == queries.len(),
            "{queries:?}"
        );
        let metrics = scene.agent.metrics()?;
        for protocol in ["udp", "tcp"] {
            let labels = [
                ("request_protocol", protocol),
                ("source_canonical_service", "client"),
            ];
            let sum = |name: &str| metrics.sum(name, &labels);
            ensure!(
                sum("istio_dns_requests_total") == 16.0,
                "{}",
                sum("istio_dns_requests_total")
            );
            ensure!(
                sum("istio_dns_upstream_requests_total") == 16.0,
                "not all were passed on"
            );
            ensure!(sum("istio_dns_upstream_failures_total") == 0.0, "some failed");
            ensure!(
                sum("istio_dns_upstream_request_duration_seconds_count") == 16.0,
                "not all were timed"
            );
        }
        Ok(())
    });
}

#[test]
fn a_response_that_the_server_truncates_is_asked_for_over_tcp() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        for server in scene.servers() {
            let cut = dig(&scene.client, server, "big.outside.test TXT +noedns +ignore")?;
            ensure!(cut.has("tc") && cut.records("TXT").len() < 40, "{}", cut.text);
            let cut = dig(
                &scene.client,
                server,
                "big.outside.test TXT +bufsize=4096 +ignore",
            )?;
            ensure!(cut.has("tc") && cut.records("TXT").len() < 40, "{}", cut.text);
            let whole = dig(&scene.client, server, "big.outside.test TXT")?;
            ensure!(
                !whole.has("tc") && whole.records("TXT").len() == 40,
                "{}",
                whole.text
            );
        }
        Ok(())
    });
}

/// A pod on node b that the mesh does not know, and a UDP socket on its port 53 for both families.
fn scripted_pod(world: &mut World, name: &str) -> Result<(Pod, std::net::UdpSocket)> {
    let pod = world.pod("b", PodSpec::new(name).unlisted())?;
    let socket = pod.udp((Ipv6Addr::UNSPECIFIED, 53).into())?;
    Ok((pod, socket))
}

#[test]
fn each_query_goes_to_the_server_that_was_asked() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let mut servers = Vec::new();
        for number in 1..=3 {
            let pod = world.pod("b", PodSpec::new(&format!("dns-{number}")).unlisted())?;
            let dnsmasq = Dnsmasq::start(world, &pod, &format!("host-record=who.test,192.0.2.{number}"))?;
            servers.push((number, pod, dnsmasq));
        }
        // In turn, so that a server that was noted for an earlier one would show.
        for how in ["", "+tcp", ""] {
            for (number, pod, _) in &servers {
                for server in pod.addresses() {
                    let dug = dig(&scene.client, server, &format!("{how} who.test A"))?;
                    ensure!(
                        dug.records("A") == [format!("192.0.2.{number}")],
                        "{server}: {}",
                        dug.text
                    );
                }
            }
        }
        for (_, _, dnsmasq) in &servers {
            ensure!(dnsmasq.queries().len() == 6, "{:?}", dnsmasq.queries());
        }
        Ok(())
    });
}

#[test]
fn a_server_that_fails_or_is_not_there_is_a_server_failure() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let (failing, socket) = scripted_pod(world, "failing")?;
        let _failing = Scripted::start(socket, |query| vec![wire::response(query, wire::SERVFAIL, None)])?;
        let (silent, socket) = scripted_pod(world, "silent")?;
        let listener = silent.listen(53)?;
        let _silent = Scripted::start(socket, |_| Vec::new())?;
        let nobody = world.pod("b", PodSpec::new("nobody").unlisted())?;
        let check = |server: &Pod, how: &str, took: std::ops::Range<u64>| {
            for server in server.addresses() {
                let since = Instant::now();
                let dug = dig(&scene.client, server, &format!("{how} {OUTSIDE} A"))?;
                ensure!(
                    dug.status == "SERVFAIL" && dug.has("ra"),
                    "{how} {server}: {}",
                    dug.text
                );
                let elapsed = since.elapsed().as_millis() as u64;
                ensure!(took.contains(&elapsed), "{how} {server}: after {elapsed} ms");
            }
            anyhow::Ok(())
        };
        check(&failing, "", 0..2000)?;
        // Said at once: nobody is there.
        check(&nobody, "", 0..2000)?;
        check(&nobody, "+tcp", 0..2000)?;
        std::thread::scope(|scope| {
            let udp = scope.spawn(|| check(&silent, "", 4900..7500));
            let tcp = scope.spawn(|| check(&silent, "+tcp", 4900..7500));
            let joined = [udp.join(), tcp.join()];
            joined
                .into_iter()
                .try_for_each(|it| it.unwrap_or_else(|_| anyhow::bail!("panicked")))
        })?;
        drop(listener);
        let metrics = scene.agent.metrics()?;
        let failures = |protocol| {
            metrics.sum(
                "istio_dns_upstream_failures_total",
                &[("request_protocol", protocol)],
            )
        };
        // What the first one said is a response.
        ensure!(
            (failures("udp"), failures("tcp")) == (4.0, 4.0),
            "{:?}",
            (failures("udp"), failures("tcp"))
        );
        Ok(())
    });
}

#[test]
fn only_the_answer_to_the_very_question_is_believed() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let (lying, socket) = scripted_pod(world, "lying")?;
        let lies = Scripted::start(socket, |query| {
            let mut other_id = wire::response(query, 0, Some([192, 0, 2, 66]));
            other_id[1] = other_id[1].wrapping_add(1);
            let id = u16::from_be_bytes([query[0], query[1]]);
            let other_name = wire::response(
                &wire::query(id, "host.outside.tesu", wire::A),
                0,
                Some([192, 0, 2, 66]),
            );
            let other_type = wire::response(&wire::query(id, OUTSIDE, wire::AAAA), 0, Some([192, 0, 2, 66]));
            let no_response = query.to_vec();
            let cut = wire::response(query, 0, Some([192, 0, 2, 66]))[..20].to_vec();
            let right = wire::response(query, 0, Some([192, 0, 2, 1]));
            vec![other_id, other_name, other_type, no_response, cut, vec![0], right]
        })?;
        let socket = scene.client.udp(scene.client.addr(0))?;
        let mut ids = HashSet::new();
        for server in [lying.addr(53), lying.addr(53)] {
            let query = wire::query(0x1234, OUTSIDE, wire::A);
            let (answer, from) = wire::exchange(&socket, server, &query)?;
            let seen = wire::seen(&answer)?;
            ensure!(from == server && seen.id == 0x1234, "{from}: {seen:?}");
            ensure!(seen.tail == [192, 0, 2, 1], "a lie was believed: {seen:?}");
        }
        ids.extend(lies.asked().iter().map(SocketAddr::port));
        ensure!(
            ids.len() == 2,
            "the same port for two queries: {:?}",
            lies.asked()
        );
        ensure!(!ids.contains(&socket.local_addr()?.port()), "the app's own port");
        Ok(())
    });
}

#[test]
fn a_transfer_of_a_zone_is_passed_on_whole() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let pod = world.pod("b", PodSpec::new("zone").unlisted())?;
        let _zone = Server::start(pod.listen(53)?, |mut stream| {
            let query = wire::read_frame(&mut stream)?;
            for last in 1..=3 {
                wire::write_frame(&mut stream, &wire::response(&query, 0, Some([192, 0, 2, last])))?;
            }
            stream.read(&mut [0; 16]).map(drop)
        })?;
        let mut stream = scene.client.connect(pod.addr(53))?;
        wire::write_frame(&mut stream, &wire::query(99, "outside.test", wire::AXFR))?;
        for last in 1..=3 {
            let seen = wire::seen(&wire::read_frame(&mut stream)?)?;
            ensure!(seen.id == 99 && seen.tail == [192, 0, 2, last], "{seen:?}");
        }
        Ok(())
    });
}

#[test]
fn several_queries_on_one_connection_are_answered_in_turn() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        for server in [scene.dns.addr(53), scene.dns.addr6(53)] {
            let mut stream = scene.client.connect(server)?;
            ensure!(stream.peer_addr()? == server, "{:?}", stream.peer_addr());
            for (id, name) in (1..).zip([WEB, OUTSIDE, WEB, OUTSIDE]) {
                wire::write_frame(&mut stream, &wire::query(id, name, wire::A))?;
            }
            for (id, tail) in (1..).zip([[10, 96, 0, 10], [192, 0, 2, 1], [10, 96, 0, 10], [192, 0, 2, 1]]) {
                let seen = wire::seen(&wire::read_frame(&mut stream)?)?;
                ensure!((seen.id, seen.tail) == (id, tail), "{seen:?}");
            }
            stream.shutdown(std::net::Shutdown::Write)?;
            ensure!(stream.read(&mut [0; 1])? == 0, "no clean end");
        }
        // Half a query is no clean end.
        let mut stream = scene.client.connect(scene.dns.addr(53))?;
        std::io::Write::write_all(&mut stream, &[0, 30, 1, 2, 3])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let ended = stream.read(&mut [0; 1]).map_err(|error| error.kind());
        ensure!(ended == Err(ErrorKind::ConnectionReset), "{ended:?}");
        Ok(())
    });
}

#[test]
fn a_pod_that_floods_a_silent_server_is_bounded_and_harms_no_other() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let other = world.pod("a", PodSpec::new("other"))?;
        world.apply()?;
        let (silent, socket) = scripted_pod(world, "silent")?;
        let asked = Scripted::start(socket, |_| Vec::new())?;
        let socket = scene.client.udp(scene.client.addr(0))?;
        let server = silent.addr(53);
        // 256 may wait for their servers. In small groups: a socket's buffer has room for some hundred.
        for group in 0..4 {
            for id in 0..64 {
                socket.send_to(&wire::query(group * 64 + id, OUTSIDE, wire::A), server)?;
            }
            let arrived = (usize::from(group) + 1) * 64;
            wait_until("the queries at the server", LIMIT, || {
                asked.asked().len() == arrived
            })?;
        }
        // The rest is told at once.
        let more = scene.client.udp(scene.client.addr(0))?;
        for id in 256..300 {
            let (answer, _) = wire::exchange(&more, server, &wire::query(id, OUTSIDE, wire::A))?;
            let seen = wire::seen(&answer)?;
            ensure!(seen.id == id && seen.rcode == wire::SERVFAIL, "{seen:?}");
        }
        // The mesh's own names cost no place.
        let (answer, _) = wire::exchange(&more, server, &wire::query(500, WEB, wire::A))?;
        ensure!(
            wire::seen(&answer)?.tail == [10, 96, 0, 10],
            "{:?}",
            wire::seen(&answer)
        );
        let dug = dig(&other, scene.servers()[0], &format!("{OUTSIDE} A"))?;
        ensure!(dug.records("A") == ["192.0.2.1"], "{}", dug.text);
        ensure!(
            asked.asked().len() == 256,
            "{} queries at the server",
            asked.asked().len()
        );
        // Places come back: all of them are told in the end.
        for _ in 0..256 {
            let seen = wire::seen(&wire::receive(&socket)?.0)?;
            ensure!(seen.rcode == wire::SERVFAIL, "{seen:?}");
        }
        let dug = dig(&scene.client, scene.servers()[0], &format!("{OUTSIDE} A"))?;
        ensure!(dug.records("A") == ["192.0.2.1"], "{}", dug.text);
        Ok(())
    });
}

#[test]
fn a_pods_dns_connections_are_bounded() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let server = scene.dns.addr(53);
        let ask = |stream: &mut std::net::TcpStream| {
            wire::write_frame(stream, &wire::query(1, WEB, wire::A))?;
            wire::read_frame(stream)
        };
        let mut open = Vec::new();
        for number in 0..64 {
            let mut stream = scene.client.connect(server)?;
            ask(&mut stream).with_context(|| format!("connection {number}"))?;
            open.push(stream);
        }
        let one_more = || {
            scene
                .client
                .connect(server)
                .and_then(|mut stream| ask(&mut stream))
        };
        let refused = one_more().map_err(|error| error.kind());
        ensure!(
            matches!(
                refused,
                Err(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
            ),
            "{refused:?}"
        );
        drop(open.pop());
        wait_until("a place", LIMIT, one_more)?;
        Ok(())
    });
}

/// A DNS server in the mesh, behind a virtual address that only the mesh knows over TCP, and the network over UDP: over
/// TCP it is asked through a tunnel.
#[test]
fn a_server_in_the_mesh_is_asked_through_the_mesh_over_tcp() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let dns = PodSpec::new("dns").service_account("dns").label("app", "dns");
        let dns = world.pod("b", dns)?;
        let vip = "10.96.0.53";
        services(world);
        world
            .mesh_mut()
            .service("kube-dns", &[vip], 53, 53, "dns")
            .mtls("demo", "STRICT");
        dns.netns().ip(&format!("addr add {vip}/32 dev lo\n"))?;
        let [a, b] = [world.node("a"), world.node("b")];
        let link = b.v4();
        a.netns().ip(&format!("route add {vip}/32 via {link}\n"))?;
        b.netns().ip(&format!("route add {vip}/32 via {}\n", dns.v4()))?;
        let dnsmasq = Dnsmasq::start(world, &dns, "")?;
        let [a, b] = world.start_agents()?;
        let vip: IpAddr = vip.parse()?;
        for how in ["", "+tcp"] {
            let dug = dig(&client, vip, &format!("{how} {OUTSIDE} A"))?;
            ensure!(dug.records("A") == ["192.0.2.1"], "{how}: {}", dug.text);
            let dug = dig(&client, vip, &format!("{how} {WEB} A"))?;
            ensure!(dug.records("A") == ["10.96.0.10"], "{how}: {}", dug.text);
        }
        ensure!(dnsmasq.queries().len() == 2, "{:?}", dnsmasq.queries());
        let tunnelled = [
            ("src.identity", client.identity()),
            ("dst.identity", dns.identity()),
        ];
        for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
            let line =
                agent.wait_for_access("the query over TCP", |line| line.field("direction") == direction)?;
            let identities = tunnelled
                .iter()
                .all(|(name, identity)| line.field(name) == *identity);
            ensure!(line.is_ok() && identities, "{line}");
            ensure!(agent.access_lines().len() == 1, "{:?}", agent.access_lines());
        }
        // Its own address as well.
        let dug = dig(&client, dns.v4().into(), &format!("+tcp {OUTSIDE} A"))?;
        ensure!(dug.records("A") == ["192.0.2.1"], "{}", dug.text);
        Ok(())
    });
}

#[test]
fn pods_that_are_not_captured_and_the_node_ask_their_servers_themselves() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let name = "four.demo.svc.cluster.local";
        for from in [&*stranger, &**world.node("a")] {
            for how in ["", "+tcp"] {
                let dug = dig(from, scene.servers()[0], &format!("{how} {name} A"))?;
                ensure!(dug.status == "NXDOMAIN", "{from:?}: {}", dug.text);
            }
        }
        let counted = scene.agent.metrics()?.sum("istio_dns_requests_total", &[]);
        ensure!(counted == 0.0, "{counted} queries of captured pods");
        Ok(())
    });
}
