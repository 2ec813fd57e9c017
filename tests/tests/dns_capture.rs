//! Whose DNS queries are captured, and what is sure of those that are: nobody in the pod or outside of it gets them, an agent
//! that is gone answers none, and one that replaces another loses none.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod names {
    pub(crate) mod ask;
    pub(crate) mod dig;
    pub(crate) mod dnsmasq;
    pub(crate) mod scene;
    pub(crate) mod scripted;
    pub(crate) mod wire;
}

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, Result, bail, ensure};
use names::{
    ask::{WEB, ask_connected, echo_at, says, unbound},
    dig::dig,
    dnsmasq::Dnsmasq,
    scene::{Scene, services},
    scripted::Scripted,
    wire,
};
use serde_json::json;
use socket2::{Domain, Type};
use weft_tests::{
    AgentOptions, LIMIT, Membership, Pod, PodSpec, Server,
    app::{echo, round_trip},
    pause::SocketSpec,
    wait_until, with_world,
};

#[test]
fn a_pod_may_ask_its_servers_itself() {
    with_world(|world| {
        let quiet = world.pod("a", PodSpec::new("quiet").field("dnsCapture", json!(false)))?;
        let scene = Scene::start(world)?;
        // Over TCP such a pod reaches what the mesh knows, as any other connection does.
        world.set_membership(&scene.dns, Membership::Outside);
        world.apply()?;
        let four = "four.demo.svc.cluster.local";
        let answers = |from: &Pod, expect: &str| {
            for server in scene.servers() {
                for how in ["", "+tcp"] {
                    let dug = dig(from, server, &format!("{how} {four} A"))?;
                    ensure!(dug.status == expect, "{from:?} {how} {server}: {}", dug.text);
                }
            }
            anyhow::Ok(())
        };
        answers(&quiet, "NXDOMAIN")?;
        answers(&scene.client, "NOERROR")?;
        let opened = scene.agent.metrics()?.sum("istio_dns_requests_total", &[]);
        ensure!(opened == 4.0, "{opened} queries were captured");
        // It changes while the pod runs.
        let text = world.mesh_text();
        world.apply_text(
            "a",
            &text.replace("\"dnsCapture\": false", "\"dnsCapture\": true"),
        )?;
        wait_until("the pod's queries are captured", LIMIT, || {
            answers(&quiet, "NOERROR")
        })?;
        world.apply_text("a", &text)?;
        wait_until("they are not any more", LIMIT, || answers(&quiet, "NXDOMAIN"))?;
        answers(&scene.client, "NOERROR")
    });
}

#[test]
fn an_agent_captures_no_queries_where_it_is_told_so_unless_a_pod_wants_it() {
    with_world(|world| {
        let loud = world.pod("a", PodSpec::new("loud").field("dnsCapture", json!(true)))?;
        let client = world.pod("a", PodSpec::new("client"))?;
        let dns = world.pod("b", PodSpec::new("dns").unlisted())?;
        let _dnsmasq = Dnsmasq::start(world, &dns, "")?;
        services(world);
        world.start_agent_with("a", AgentOptions::default().env("WEFT_DNS_CAPTURE", "false"))?;
        for (from, expect) in [(&client, "NXDOMAIN"), (&loud, "NOERROR")] {
            let dug = dig(from, dns.v4().into(), "four.demo.svc.cluster.local A")?;
            ensure!(dug.status == expect, "{from:?}: {}", dug.text);
        }
        Ok(())
    });
}

#[test]
fn an_app_that_has_one_of_the_ports_keeps_it_and_its_pod_is_in_the_mesh_all_the_same() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = PodSpec::new("web").service_account("web").label("app", "web");
        let web = world.pod("b", web)?;
        let dns = world.pod("b", PodSpec::new("dns").unlisted())?;
        let _dnsmasq = Dnsmasq::start(world, &dns, "")?;
        services(world);
        let _echo = echo_at(&client, 15057)?;
        let [a, b] = world.start_agents()?;
        a.wait_for_log("which port it is", |line| {
            line.contains("15057") && line.contains("WARN")
        })?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let mut stream = client.connect("10.96.0.10:80".parse()?)?;
        round_trip(&mut stream, b"in the mesh")?;
        drop(stream);
        let wanted = [
            ("src.identity", client.identity()),
            ("direction", "inbound".to_owned()),
        ];
        b.wait_for_access("the client's identity", |line| {
            wanted.iter().all(|(name, value)| line.field(name) == *value)
        })?;
        ensure!(server.accepted() == 1, "{server:?}");
        let dug = dig(&client, dns.v4().into(), "four.demo.svc.cluster.local A")?;
        ensure!(dug.status == "NXDOMAIN", "{}", dug.text);
        let to = client.addr(15057);
        let (echoed, from) = wire::exchange(&unbound(&client, to)?, to, b"echo")?;
        ensure!(echoed == b"echo" && from == to, "{echoed:?} from {from}");
        Ok(())
    });
}

#[test]
fn a_pod_that_asks_more_servers_than_can_be_told_apart_asks_the_others_itself() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let client = &scene.client;
        let pod = world.pod("b", PodSpec::new("many").unlisted())?;
        let addresses: Vec<_> = (1..=12).map(|last| Ipv4Addr::new(10, 250, 0, last)).collect();
        for ip in &addresses {
            pod.netns().ip(&format!("addr add {ip}/32 dev lo\n"))?;
        }
        let (a, b) = (world.node("a"), world.node("b"));
        a.netns()
            .ip(&format!("route add 10.250.0.0/24 via {}\n", b.v4()))?;
        b.netns()
            .ip(&format!("route add 10.250.0.0/24 via {}\n", pod.v4()))?;
        let _servers: Vec<_> = addresses
            .iter()
            .map(|ip| {
                let last = ip.octets()[3];
                let socket = pod.udp((*ip, 53).into())?;
                Scripted::start(socket, move |query| {
                    vec![wire::response(query, 0, Some([192, 0, 2, last]))]
                })
            })
            .collect::<Result<_>>()?;
        let socket = unbound(client, (addresses[0], 53).into())?;
        let mut captured = 0;
        for round in 0..3 {
            captured = 0;
            for ip in &addresses {
                let server = SocketAddr::from((*ip, 53));
                let (answer, from) = wire::exchange(&socket, server, &wire::query(1, "some.test", wire::A))?;
                let expect = [192, 0, 2, ip.octets()[3]];
                ensure!(
                    from == server && wire::seen(&answer)?.tail == expect,
                    "round {round}: {from} for {server}"
                );
                let (answer, _) = wire::exchange(&socket, server, &wire::query(2, WEB, wire::A))?;
                captured += usize::from(wire::seen(&answer)?.tail == [10, 96, 0, 10]);
            }
        }
        ensure!(
            captured == 8,
            "{captured} of {} servers are told apart",
            addresses.len()
        );
        Ok(())
    });
}

#[test]
fn nobody_outside_of_a_pod_reaches_its_dns_ports() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let outside = world.pod("b", PodSpec::new("outside").unlisted())?;
        // Each of these is told that nobody is there, as often as it asks.
        scene.client.netns().sysctl(&[("ipv4/icmp_ratelimit", "0")])?;
        // They are open: the pod itself is answered.
        dig(&scene.client, scene.servers()[0], &format!("{WEB} A"))?;
        dig(&scene.client, scene.servers()[1], &format!("{WEB} A"))?;
        for port in 15053..15061 {
            for from in [&*outside, &**world.node("a")] {
                let socket =
                    UdpSocket::from(from.socket(SocketSpec::new(Domain::IPV4, Type::DGRAM, None))?);
                socket.set_read_timeout(Some(LIMIT))?;
                socket.connect(scene.client.addr(port))?;
                socket.send(&wire::query(1, WEB, wire::A))?;
                let refused = wire::receive(&socket).map_err(|error| error.kind());
                ensure!(
                    matches!(refused, Err(ErrorKind::ConnectionRefused)),
                    "{from:?} {port}: {refused:?}"
                );
            }
        }
        Ok(())
    });
}

/// Whatever listens in the pod on the ports that queries are steered to, with the agent and without it.
#[test]
fn an_app_of_the_pod_does_not_get_its_queries() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let (client, (server, _asked)) = (&scene.client, says(world, 7)?);
        let thieves: Vec<_> = (15053..15061)
            .flat_map(|port| [client.addr(port), client.addr6(port)])
            .map(|at| {
                Scripted::start(client.udp(at)?, |query| {
                    vec![wire::response(query, 0, Some([192, 0, 2, 66]))]
                })
            })
            .collect::<Result<_>>()?;
        let sockets: Vec<_> = [server.addr(53), server.addr6(53)]
            .into_iter()
            .map(|to| {
                let socket = unbound(client, to)?;
                socket.connect(to)?;
                ask_connected(&socket, 7)?;
                anyhow::Ok(socket)
            })
            .collect::<Result<_>>()?;
        scene.agent.kill()?;
        for socket in &sockets {
            socket.send(&wire::query(1, WEB, wire::A))?;
        }
        // Refused at once over IPv4; over IPv6 that is lost, so what was sent before must do.
        let refused = wire::receive(&sockets[0]).map_err(|error| error.kind());
        ensure!(
            matches!(refused, Err(ErrorKind::ConnectionRefused)),
            "{refused:?}"
        );
        let own = unbound(client, client.addr6(15060))?;
        wire::exchange(&own, client.addr6(15060), &wire::query(1, WEB, wire::A))
            .context("the app's own datagram")?;
        let stolen: usize = thieves.iter().map(|thief| thief.asked().len()).sum();
        ensure!(stolen == 1, "apps of the pod were asked {stolen} times, not once");
        Ok(())
    });
}

#[test]
fn without_its_agent_a_pod_gets_no_answer_and_the_server_is_not_asked() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let (client, (server, asked)) = (&scene.client, says(world, 7)?);
        let echo = echo_at(&server, 5353)?;
        let connected: Vec<_> = [server.addr(53), server.addr6(53)]
            .into_iter()
            .map(|to| {
                let socket = unbound(client, to)?;
                socket.connect(to)?;
                ask_connected(&socket, 7)?;
                anyhow::Ok(socket)
            })
            .collect::<Result<_>>()?;
        let before = asked.asked().len();
        scene.agent.kill()?;
        let query = wire::query(1, "some.test", wire::A);
        // The old socket, and a new one: told at once that nobody is there.
        let fresh = unbound(client, server.addr(53))?;
        fresh.connect(server.addr(53))?;
        for socket in [&connected[0], &fresh] {
            socket.send(&query)?;
            let error = wire::receive(socket).map_err(|error| error.kind());
            ensure!(matches!(error, Err(ErrorKind::ConnectionRefused)), "{error:?}");
        }
        connected[1].send(&query)?;
        let tcp = client.connect(server.addr(53)).map_err(|error| error.kind());
        ensure!(matches!(tcp, Err(ErrorKind::ConnectionRefused)), "{tcp:?}");
        let socket = unbound(client, server.addr(53))?;
        socket.send_to(&query, server.addr(53))?;
        // What is not DNS goes on; and what came after the queries has arrived.
        for to in [server.addr(5353), server.addr6(5353)] {
            let socket = unbound(client, to)?;
            let (echoed, from) = wire::exchange(&socket, to, b"echo")?;
            ensure!(echoed == b"echo" && from == to, "{echoed:?} from {from}");
        }
        ensure!(
            asked.asked().len() == before,
            "the server was asked: {:?}",
            asked.asked()
        );
        scene.agent.start()?;
        // The very sockets from before.
        for socket in connected.iter().chain([&fresh]) {
            // What the kernel may still have to say of the old times.
            let _ = socket.take_error()?;
            ask_connected(socket, 7)?;
        }
        drop(echo);
        Ok(())
    });
}

#[test]
fn no_query_is_lost_when_one_agent_replaces_another() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let (server, _asked) = says(world, 7)?;
        let sockets: Vec<_> = [server.addr(53), server.addr6(53)]
            .into_iter()
            .map(|to| {
                let socket = unbound(&scene.client, to)?;
                socket.connect(to)?;
                anyhow::Ok(socket)
            })
            .collect::<Result<_>>()?;
        let mut agent = scene.agent.clone();
        for binary in ["weft", "weft-next-layout", "weft"] {
            let new = std::thread::scope(|scope| {
                let (stop, stopped) = std::sync::mpsc::channel::<()>();
                let sockets = &sockets;
                let client = &scene.client;
                let to = server.addr(53);
                let asking = scope.spawn(move || {
                    let mut rounds = 0_u32;
                    while stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                        sockets.iter().try_for_each(|socket| ask_connected(socket, 7))?;
                        let fresh = unbound(client, to)?;
                        let (answer, from) =
                            wire::exchange(&fresh, to, &wire::query(3, "some.test", wire::A))?;
                        ensure!(
                            from == to && wire::seen(&answer)?.tail == [192, 0, 2, 7],
                            "from {from}"
                        );
                        rounds += 1;
                    }
                    anyhow::Ok(rounds)
                });
                let new = world.take_over("a", AgentOptions::default().binary(binary));
                let ended = agent.stop();
                drop(stop);
                // One that was not there has lost them all, which says less than that it was not there.
                let new = new?;
                let rounds = match asking.join() {
                    Ok(rounds) => rounds.with_context(|| format!("while {binary} took over"))?,
                    Err(_) => bail!("the client panicked"),
                };
                ensure!(rounds > 0, "nothing was asked");
                ended?;
                anyhow::Ok(new)
            })?;
            agent = new;
        }
        Ok(())
    });
}
