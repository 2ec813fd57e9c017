//! Whatever socket a program asks DNS over, it sees the server that it asked and nothing of the mesh; and no other datagram
//! is touched.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod names {
    pub(crate) mod ask;
    pub(crate) mod dig;
    pub(crate) mod dnsmasq;
    pub(crate) mod libc;
    pub(crate) mod scene;
    pub(crate) mod scripted;
    pub(crate) mod wire;
}

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use names::{
    ask::{WEB, ask_connected, echo_at, mapped, says, unbound},
    libc::{Library, Lookup},
    scene::{SEARCH, Scene},
    scripted::Scripted,
    wire,
};

use weft_tests::{Pod, PodSpec, with_world};

const OUTSIDE: &str = "host.outside.test";

#[test]
fn a_connected_socket_shows_the_server_and_the_pods_own_address() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let (client, (server, asked)) = (&scene.client, says(world, 7)?);
        let pairs = [
            (server.addr(53), client.addr(0)),
            (server.addr6(53), client.addr6(0)),
            (mapped(server.addr(53)), mapped(client.addr(0))),
        ];
        for (to, own) in pairs {
            let any: SocketAddr = match own.ip() {
                IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let to_device = unbound(client, to)?;
            socket2::SockRef::from(&to_device).bind_device(Some(b"eth0"))?;
            let sockets = [
                ("unbound", unbound(client, to)?),
                ("bound to any address", client.udp(any)?),
                ("bound to the pod's address", client.udp(own)?),
                ("bound to a device", to_device),
            ];
            for (how, socket) in sockets {
                socket
                    .connect(to)
                    .with_context(|| format!("{how}: connect to {to}"))?;
                ensure!(
                    socket.peer_addr()? == to,
                    "{how}: getpeername says {:?}",
                    socket.peer_addr()
                );
                let local = socket.local_addr()?;
                ensure!(local.ip() == own.ip(), "{how}: getsockname says {local}");
                ask_connected(&socket, 7).with_context(|| format!("{how}: {to} from {local}"))?;
            }
        }
        let from = asked.asked();
        ensure!(
            from.iter().all(|from| client.addresses().contains(&from.ip())),
            "{from:?}"
        );
        Ok(())
    });
}

#[test]
fn a_socket_that_is_connected_again_asks_the_other_server() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let ((one, _one), (two, _two)) = (says(world, 1)?, says(world, 2)?);
        let echo = echo_at(&two, 5353)?;
        for v6 in [false, true] {
            let at = |pod: &Pod, port| if v6 { pod.addr6(port) } else { pod.addr(port) };
            let socket = unbound(&scene.client, at(&one, 53))?;
            for _ in 0..2 {
                for (server, last) in [(&one, 1), (&two, 2)] {
                    socket.connect(at(server, 53))?;
                    ensure!(socket.peer_addr()? == at(server, 53), "{:?}", socket.peer_addr());
                    ask_connected(&socket, last)?;
                }
                // To what is no DNS server.
                socket.connect(at(&two, 5353))?;
                ensure!(socket.peer_addr()? == at(&two, 5353), "{:?}", socket.peer_addr());
                socket.send(b"echo")?;
                let (echoed, from) = wire::receive(&socket)?;
                ensure!(
                    echoed == b"echo" && from == at(&two, 5353),
                    "{echoed:?} from {from}"
                );
                // An IPv6 socket that was connected once hears nobody else any more, with and without a mesh.
                if v6 {
                    continue;
                }
                rustix::net::connect_unspec(&socket)?;
                let (answer, from) =
                    wire::exchange(&socket, at(&one, 53), &wire::query(9, "some.test", wire::A))?;
                ensure!(
                    from == at(&one, 53) && wire::seen(&answer)?.tail == [192, 0, 2, 1],
                    "{from}"
                );
            }
        }
        drop(echo);
        Ok(())
    });
}

/// As musl does it: each server is asked at once, and answers are told apart by where they come from.
#[test]
fn queries_to_several_servers_from_one_socket_stay_apart() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let mut servers = Vec::new();
        for last in 1..=3 {
            servers.push(says(world, last)?);
        }
        let pods: Vec<_> = servers.iter().map(|(pod, _)| pod).collect();
        let v4: Vec<_> = pods.iter().map(|pod| pod.addr(53)).collect();
        let v6: Vec<_> = pods.iter().map(|pod| pod.addr6(53)).collect();
        // IPv4 servers, IPv6 servers, and IPv4 servers among IPv6 ones, over an IPv6 socket.
        let mixed: Vec<_> = [mapped(v4[0]), v6[1], mapped(v4[2])].into();
        for asked in [v4, v6, mixed] {
            let socket = unbound(&scene.client, asked[0])?;
            for round in 0..20 {
                for (id, server) in (0..).zip(&asked) {
                    socket.send_to(&wire::query(id, "some.test", wire::A), server)?;
                    socket.send_to(&wire::query(10 + id, WEB, wire::A), server)?;
                }
                for _ in 0..2 * asked.len() {
                    let (answer, from) = wire::receive(&socket)?;
                    let seen = wire::seen(&answer)?;
                    let Some(number) = asked.iter().position(|server| *server == from) else {
                        bail!("round {round}: an answer from {from}, which was not asked: {seen:?}");
                    };
                    let expect = match seen.id {
                        10.. => [10, 96, 0, 10],
                        _ => [192, 0, 2, number as u8 + 1],
                    };
                    ensure!(
                        usize::from(seen.id % 10) == number && seen.tail == expect,
                        "{from}: {seen:?}"
                    );
                }
            }
        }
        Ok(())
    });
}

#[test]
fn glibc_and_musl_ask_servers_of_both_families() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let [v4, v6] = scene.servers();
        // One that is asked first and is not there.
        let nobody = world.pod("b", PodSpec::new("nobody").unlisted())?.v4();
        for library in [Library::Glibc, Library::Musl] {
            let lookup = Lookup::build(world, library)?;
            for servers in [
                vec![v4],
                vec![v6],
                vec![v4, v6],
                vec![v6, v4],
                vec![nobody.into(), v4],
                vec![nobody.into(), v6],
            ] {
                let conf: String = servers.iter().map(|ip| format!("nameserver {ip}\n")).collect();
                let conf = conf + SEARCH;
                for (name, expect) in [
                    ("web", ["10.96.0.10", "fd00:96::10"]),
                    (OUTSIDE, ["192.0.2.1", "2001:db8::1"]),
                ] {
                    let found = lookup.ask(world, &scene.client, &conf, name)?;
                    ensure!(found == expect, "{library:?} by {servers:?}: {name}: {found:?}");
                }
            }
        }
        let from_both = scene.dnsmasq.queries();
        for ip in scene.client.addresses() {
            ensure!(
                from_both.iter().any(|line| line.ends_with(&format!(" {ip}"))),
                "never by {ip}"
            );
        }
        Ok(())
    });
}

#[test]
fn other_datagrams_are_not_touched() {
    with_world(|world| {
        let scene = Scene::start(world)?;
        let client = &scene.client;
        let other = world.pod("b", PodSpec::new("other").unlisted())?;
        // The ports that queries are steered to, as an app of another pod has them, are ports like others.
        let _echoes: Vec<_> = [5353, 15053, 15060]
            .into_iter()
            .map(|port| echo_at(&other, port))
            .collect::<Result<_>>()?;
        for port in [5353, 15053, 15060] {
            for to in [other.addr(port), other.addr6(port), mapped(other.addr(port))] {
                let socket = unbound(client, to)?;
                let (echoed, from) = wire::exchange(&socket, to, b"echo")?;
                ensure!(echoed == b"echo" && from == to, "{to}: {echoed:?} from {from}");
                socket.connect(to)?;
                ensure!(socket.peer_addr()? == to, "{:?}", socket.peer_addr());
                socket.send(b"again")?;
                ensure!(wire::receive(&socket)? == (b"again".to_vec(), to), "{to}");
            }
        }
        // A DNS server in the pod itself, by its own address and by loopback.
        let own = Scripted::start(client.udp((Ipv6Addr::UNSPECIFIED, 53).into())?, |query| {
            vec![wire::response(query, 0, Some([192, 0, 2, 99]))]
        })?;
        let by: [SocketAddr; 4] = [
            client.addr(53),
            client.addr6(53),
            (Ipv4Addr::LOCALHOST, 53).into(),
            (Ipv6Addr::LOCALHOST, 53).into(),
        ];
        for to in by {
            let socket = unbound(client, to)?;
            let (answer, from) = wire::exchange(&socket, to, &wire::query(3, WEB, wire::A))?;
            ensure!(
                from == to && wire::seen(&answer)?.tail == [192, 0, 2, 99],
                "{to}: from {from}"
            );
        }
        // It answers others, whom it sees, and asks others from port 53.
        let asker = unbound(&other, client.addr(53))?;
        let (answer, from) = wire::exchange(&asker, client.addr(53), &wire::query(4, WEB, wire::A))?;
        ensure!(
            from == client.addr(53) && wire::seen(&answer)?.tail == [192, 0, 2, 99],
            "from {from}"
        );
        ensure!(
            own.asked().last().map(SocketAddr::ip) == Some(other.v4().into()),
            "{:?}",
            own.asked()
        );
        drop(own);
        let from_53 = client.udp((client.v4(), 53).into())?;
        let to = scene.dns.addr(53);
        let (answer, from) = wire::exchange(&from_53, to, &wire::query(5, WEB, wire::A))?;
        ensure!(
            from == to && wire::seen(&answer)?.tail == [10, 96, 0, 10],
            "from {from}"
        );
        Ok(())
    });
}
