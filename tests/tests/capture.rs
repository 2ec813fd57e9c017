//! What is captured, and what is not: TCP of enrolled pods that leaves the pod, and nothing else. What the mesh does
//! not know is refused where it should know it, and left alone where it need not.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use socket2::{Domain, Protocol, Type};
use weft_tests::{
    Agent, Host, LIMIT, Pod, PodSpec, Server,
    app::{self, echo, round_trip},
    capture::contains,
    pause::SocketSpec,
    wait_until, with_world,
};

mod common;
use common::{
    MARKER, SERVICE4, SERVICE6, addr, client_and_web, destination, echoed, error_line, line_of, read_some,
    refused_at_once, reset_or_refused, ways,
};

/// The ports that are weft's own inside a pod.
const OWN_PORTS: [u16; 3] = [15001, 15006, 15008];

#[test]
fn what_the_mesh_should_know_and_does_not_is_refused() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        // One service leads to nobody, the other to a pod that is not healthy.
        world.mesh_mut().services.push(json!({
            "name": "empty", "namespace": "demo", "vips": ["10.96.0.20", "fd00:96::20"],
            "ports": [{ "port": 80, "targetPort": 8080 }], "endpoints": [],
        }));
        let sick = PodSpec::new("sick")
            .label("app", "sick")
            .field("healthy", json!(false));
        let sick = world.pod("b", sick)?;
        let vips = ["10.96.0.21", "fd00:96::21"];
        world.mesh_mut().service("sick", &vips, 80, 8080, "sick");
        // It is there and listens, but the mesh has never heard of it.
        let stranger = world.pod("b", PodSpec::new("stranger").unlisted())?;
        let [a, b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let unheard = Server::start(stranger.listen(8080)?, echo)?;
        let unasked = Server::start(sick.listen(8080)?, echo)?;
        let refusals = [
            (stranger.addr(8080), "no workload or service has it"),
            (stranger.addr6(8080), "no workload or service has it"),
            (addr("10.244.2.250:80"), "no workload or service has it"),
            (addr("10.96.0.99:80"), "no workload or service has it"),
            (addr("10.96.0.10:81"), "has no port 81"),
            (addr("[fd00:96::10]:8080"), "has no port 8080"),
            (addr("10.96.0.20:80"), "has no healthy endpoint"),
            (addr("[fd00:96::20]:80"), "has no healthy endpoint"),
            (addr("10.96.0.21:80"), "has no healthy endpoint"),
            (addr("[fd00:96::21]:80"), "has no healthy endpoint"),
        ];
        for (to, why) in refusals {
            reset_or_refused(&client, to)?;
            let line = error_line(&a, "outbound", to, why)?;
            ensure!(
                line.matches(&[("bytes_sent", "0"), ("src.workload", "client")]),
                "{line}"
            );
        }
        let failed = a
            .metrics()?
            .sum("istio_tcp_connections_failed_total", &[("reporter", "source")]);
        ensure!(failed == refusals.len() as f64, "{failed} failures are counted");
        ensure!(
            unheard.accepted() + unasked.accepted() == 0,
            "{unheard:?}, {unasked:?}"
        );
        ensure!(b.access_lines().is_empty(), "{:?}", b.access_lines());
        Ok(())
    });
}

#[test]
fn what_is_outside_of_the_cluster_passes_as_plain_tcp() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        // The pods of node b are now outside, as the internet is.
        world.mesh_mut().cluster_cidrs = vec!["10.96.0.0/12".into(), "fd00:96::/32".into()];
        let internet = world.pod("b", PodSpec::new("internet").unlisted())?;
        let [a, b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let server = Server::start(internet.listen(443)?, app::banner(b"hello "))?;
        let capture = world.capture_link()?;
        for to in [internet.addr(443), internet.addr6(443)] {
            let stream = client.connect(to)?;
            let local = stream.local_addr()?;
            ensure!(
                stream.peer_addr()? == to,
                "the client sees {:?}",
                stream.peer_addr()
            );
            ensure!(
                app::ask(stream, MARKER)? == [b"hello ", MARKER].concat(),
                "by {to}"
            );
            let line = line_of(&a, "outbound", local)?;
            ensure!(
                line.is_ok() && !line.has("dst.identity") && !line.has("src.identity"),
                "{line}"
            );
            ensure!(
                line.matches(&[("bytes_sent", "26"), ("bytes_recv", "32")]),
                "{line}"
            );
            ensure!(line.field("dst.addr") == to.to_string(), "{line}");
        }
        let peers = server.peers();
        ensure!(
            peers.iter().all(|peer| client.addresses().contains(&peer.ip())),
            "{peers:?}"
        );
        ensure!(contains(&capture.stop()?, MARKER), "it is plain TCP on the link");
        reset_or_refused(&client, internet.addr(80))?;
        error_line(&a, "outbound", internet.addr(80), "Connection refused")?;
        ensure!(b.access_lines().is_empty(), "{:?}", b.access_lines());
        Ok(())
    });
}

#[test]
fn udp_that_is_not_dns_is_left_alone() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let stranger = world.pod("b", PodSpec::new("stranger").unlisted())?;
        let [a, b] = world.start_agents()?;
        for (from, to) in [
            (&client, &web),
            (&web, &client),
            (&client, &stranger),
            (&stranger, &client),
        ] {
            for port in [54, 5000, 15001, 15006, 15008, 15053] {
                ask_by_udp(from, from.addr(0), to, to.addr(port))?;
                ask_by_udp(from, from.addr6(0), to, to.addr6(port))?;
            }
        }
        ensure!(
            a.access_lines().is_empty() && b.access_lines().is_empty(),
            "UDP has no access lines"
        );
        Ok(())
    });
}

/// One datagram each way, with a socket that is connected and one that is not; both ends see who the other is.
fn ask_by_udp(from: &Host, local: SocketAddr, to: &Host, addr: SocketAddr) -> Result<()> {
    let server = to.udp(addr)?;
    let mut buffer = [0; 64];
    for connected in [false, true] {
        let client = from.udp(local)?;
        if connected {
            client.connect(addr)?;
            ensure!(
                client.peer_addr()? == addr,
                "connected to {:?}",
                client.peer_addr()
            );
            client.send(MARKER)?;
        } else {
            client.send_to(MARKER, addr)?;
        }
        let (size, peer) = server
            .recv_from(&mut buffer)
            .with_context(|| format!("at {addr}"))?;
        ensure!(
            &buffer[..size] == MARKER && peer == client.local_addr()?,
            "{addr} heard from {peer}"
        );
        server.send_to(b"answer", peer)?;
        let (size, peer) = client
            .recv_from(&mut buffer)
            .with_context(|| format!("from {addr}"))?;
        ensure!(
            &buffer[..size] == b"answer" && peer == addr,
            "{peer} answered for {addr}"
        );
    }
    Ok(())
}

#[test]
fn what_stays_in_the_pod_is_left_alone() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let own = Server::start(client.listen(8080)?, echo)?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let local = [
            addr("127.0.0.1:8080"),
            addr("127.9.9.9:8080"),
            addr("[::1]:8080"),
            addr("[::ffff:127.0.0.1]:8080"),
            client.addr(8080),
            client.addr6(8080),
        ];
        for to in local {
            let mut stream = client.connect(to).with_context(|| format!("connect to {to}"))?;
            round_trip(&mut stream, MARKER)?;
            ensure!(
                stream.peer_addr()? == to,
                "{to} is shown as {:?}",
                stream.peer_addr()
            );
            let us = stream.local_addr()?;
            let us = SocketAddr::new(us.ip().to_canonical(), us.port());
            let seen = own.peers().pop().context("the server saw nobody")?;
            ensure!(seen == us, "the server sees {seen} instead of {us} by {to}");
        }
        // A dead port of one's own is refused by the kernel itself.
        for to in [
            addr("127.0.0.1:81"),
            addr("[::1]:81"),
            client.addr(81),
            client.addr6(81),
        ] {
            refused_at_once(&client, to)?;
        }
        // The log is written in order: what follows shows that there was nothing before.
        let through = echoed(&client, addr(SERVICE4))?;
        line_of(&a, "outbound", through)?;
        ensure!(a.access_lines().len() == 1, "{:?}", a.access_lines());
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_by_its_own_service() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let capture = world.capture_link()?;
        for to in [SERVICE4, SERVICE6].map(addr) {
            let mut stream = web.connect(to)?;
            round_trip(&mut stream, MARKER)?;
            ensure!(
                stream.peer_addr()? == to,
                "the client sees {:?}",
                stream.peer_addr()
            );
            let local = stream.local_addr()?;
            ensure!(
                web.addresses().contains(&local.ip()),
                "its own address is {local}"
            );
            let seen = server.peers().pop().context("the server saw nobody")?;
            ensure!(seen == local, "the server sees {seen} instead of {local}");
            drop(stream);
            let line = line_of(&b, "outbound", local)?;
            ensure!(
                line.is_ok() && line.matches(&[("dst.workload", "web"), ("bytes_sent", "26")]),
                "{line}"
            );
        }
        ensure!(a.access_lines().is_empty(), "{:?}", a.access_lines());
        ensure!(!contains(&capture.stop()?, MARKER), "it never left the node");
        drop(client);
        Ok(())
    });
}

#[test]
fn our_own_ports_lead_nowhere() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let neighbour = world.pod("a", PodSpec::new("neighbour"))?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let [a, b] = world.start_agents()?;
        for port in OWN_PORTS {
            let loopback = [
                (Ipv4Addr::LOCALHOST, port).into(),
                (Ipv6Addr::LOCALHOST, port).into(),
            ];
            for own in loopback
                .into_iter()
                .chain([client.addr(port), client.addr6(port)])
            {
                refused_at_once(&client, own)?;
            }
            for to in [&web, &neighbour]
                .into_iter()
                .flat_map(|pod| [pod.addr(port), pod.addr6(port)])
            {
                reset_or_refused(&client, to)?;
                error_line(&a, "outbound", to, "one of weft's own")?;
            }
            for vip in ["10.96.0.10", "fd00:96::10"] {
                let to = SocketAddr::new(vip.parse()?, port);
                reset_or_refused(&client, to)?;
                error_line(&a, "outbound", to, "one of weft's own")?;
            }
        }
        ensure!(
            b.access_lines().is_empty(),
            "nothing of it was sent to node b: {:?}",
            b.access_lines()
        );
        // A pod that is not in the mesh gets to the listeners, and no further.
        for to in [
            web.addr(15001),
            web.addr6(15001),
            web.addr(15006),
            web.addr6(15006),
        ] {
            reset_or_refused(&stranger, to)?;
            error_line(&b, "inbound", to, "")?;
        }
        Ok(())
    });
}

#[test]
fn nobody_can_dial_the_agents_listeners_in_a_pod() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let listeners = listeners(&client)?;
        ensure!(listeners.len() >= 6, "three kinds in two families: {listeners:?}");
        let own: [IpAddr; 4] = [
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            client.v4().into(),
            client.v6().into(),
        ];
        let ports: BTreeSet<_> = listeners.iter().map(SocketAddr::port).collect();
        for (port, ip) in ports.iter().flat_map(|port| own.map(|ip| (*port, ip))) {
            refused_at_once(&client, SocketAddr::new(ip, port))?;
        }
        ensure!(
            a.access_lines().is_empty(),
            "an agent took one: {:?}",
            a.access_lines()
        );
        for to in &listeners {
            // It is an address like any other, of somebody who is not there: the agent dials it for the app, and no
            // listener of its own is what it finds.
            for from in [&client, &stranger] {
                let reached = from
                    .connect_within(*to, Duration::from_secs(2))
                    .and_then(|mut stream| {
                        stream.write_all(MARKER)?;
                        read_some(&mut stream)
                    });
                ensure!(reached.is_err(), "{to} answered {reached:?} to {from:?}");
            }
        }
        // All goes on.
        echoed(&client, addr(SERVICE4))?;
        Ok(())
    });
}

/// The TCP sockets that listen in a pod, as `/proc/net/tcp` shows them: the agent's.
fn listeners(pod: &Host) -> Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let table = pod
            .netns()
            .run(move || fs::read_to_string(format!("/proc/thread-self/net/{table}")))??;
        for line in table.lines().skip(1) {
            // slot, local address and port in hex, remote, state; 0A is LISTEN.
            let fields: Vec<_> = line.split_whitespace().collect();
            if let [_, local, _, "0A", ..] = fields.as_slice() {
                found.push(socket_addr(local).with_context(|| format!("the address {local}"))?);
            }
        }
    }
    Ok(found)
}

/// From words in the machine's order, in hex.
fn socket_addr(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let octets: Vec<u8> = (0..words.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(words.get(at..at + 8)?, 16).ok())
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    let ip: IpAddr = match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(v4) => v4.into(),
        Err(_) => <[u8; 16]>::try_from(octets.as_slice()).ok()?.into(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[test]
fn an_app_may_listen_on_our_ports_itself() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, echo)?;
        let says = |text: &'static [u8]| app::banner(text);
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let mut servers = Vec::new();
        for port in [15001, 15006, 15008] {
            for ip in loopback {
                servers.push(Server::start(
                    client.listen_on((ip, port).into())?,
                    says(b"its own"),
                )?);
            }
            for local in client.addresses() {
                servers.push(Server::start(
                    client.listen_on((local, port).into())?,
                    says(b"its own"),
                )?);
            }
        }
        for port in [15001, 15006, 15008] {
            for ip in loopback.into_iter().chain(client.addresses()) {
                let answer = app::ask(client.connect((ip, port).into())?, b"");
                ensure!(answer? == b"its own", "{ip} port {port}");
            }
            // From the pod's own address to loopback: the way that steered sockets go.
            for (from, to) in [(client.addr(0), loopback[0]), (client.addr6(0), loopback[1])] {
                let answer = app::ask(client.connect_from(from, (to, port).into())?, b"");
                ensure!(answer? == b"its own", "{from} to {to} port {port}");
            }
        }
        let served = |servers: &[Server]| servers.iter().map(Server::accepted).sum::<u64>();
        let before = served(&servers);
        for to in ways(&web) {
            let mut stream = client.connect(to)?;
            round_trip(&mut stream, MARKER).with_context(|| format!("by {to}"))?;
        }
        ensure!(
            served(&servers) == before,
            "a captured connection went to an app's listener"
        );
        wait_until("four access lines", LIMIT, || a.access_lines().len() == 4)
            .with_context(|| format!("{:?}", a.access_lines()))?;
        Ok(())
    });
}

#[test]
fn a_pod_that_is_not_enrolled_speaks_plain_tcp_both_ways() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let outside = world.pod("a", PodSpec::new("outside").outside())?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let theirs = Server::start(outside.listen(8080)?, echo)?;
        // Into the mesh, which is PERMISSIVE.
        for pod in [&outside, &stranger] {
            for to in [web.addr(8080), web.addr6(8080)] {
                let local = echoed(pod, to)?;
                let seen = server.peers().pop().context("the server saw nobody")?;
                ensure!(seen == local, "the server sees {seen} instead of {local}");
                let line = line_of(&b, "inbound", local)?;
                ensure!(
                    line.is_ok() && line.matches(&[("bytes_recv", "26"), ("bytes_sent", "26")]),
                    "{line}"
                );
                ensure!(!line.has("src.identity") && !line.has("dst.identity"), "{line}");
                ensure!(line.field("dst.addr") == to.to_string(), "{line}");
                let known = line.field("src.workload") == "outside";
                ensure!(known == (pod.name() == "outside"), "{line}");
            }
        }
        ensure!(
            a.access_lines().is_empty(),
            "it is not captured: {:?}",
            a.access_lines()
        );
        // Out of the mesh, from the same node and from the other one.
        for (from, agent) in [(&client, &a), (&web, &b)] {
            for to in [outside.addr(8080), outside.addr6(8080)] {
                let local = echoed(from, to)?;
                let seen = theirs.peers().pop().context("the server saw nobody")?;
                ensure!(
                    seen.ip() == local.ip(),
                    "the server sees {seen} instead of {local}"
                );
                let line = line_of(agent, "outbound", local)?;
                ensure!(line.is_ok() && line.field("dst.workload") == "outside", "{line}");
                ensure!(!line.has("src.identity") && !line.has("dst.identity"), "{line}");
            }
        }
        Ok(())
    });
}

#[test]
fn pods_of_any_user_are_captured() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client").uid(65535))?;
        let web = PodSpec::new("web")
            .service_account("web")
            .label("app", "web")
            .uid(65535);
        let web = world.pod("b", web)?;
        world
            .mesh_mut()
            .service("web", &["10.96.0.10", "fd00:96::10"], 80, 8080, "web");
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        for to in ways(&web) {
            let local = echoed(&client, to)?;
            ensure!(server.peers().pop() == Some(local), "{:?}", server.peers());
            check_identities(&a, "outbound", local, &client, &web)?;
            check_identities(&b, "inbound", local, &client, &web)?;
        }
        Ok(())
    });
}

fn check_identities(
    agent: &Agent,
    direction: &str,
    local: SocketAddr,
    client: &Pod,
    web: &Pod,
) -> Result<()> {
    let line = line_of(agent, direction, local)?;
    let both = [
        ("src.identity", client.identity()),
        ("dst.identity", web.identity()),
    ];
    let named = both.iter().all(|(name, identity)| line.field(name) == *identity);
    ensure!(named && line.is_ok(), "{line}");
    Ok(())
}

#[test]
fn a_socket_sees_the_addresses_it_would_see_without_us() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let by_service: [SocketAddr; 2] = [addr(SERVICE4), addr(SERVICE6)];
        // Bound to the pod's address, and to a port as well.
        for (local, to) in [
            (client.addr(0), 0),
            (client.addr6(0), 1),
            (client.addr(4444), 0),
            (client.addr6(4444), 1),
        ] {
            check_addresses(
                &client.connect_from(local, by_service[to])?.into(),
                local,
                by_service[to],
            )?;
        }
        // Bound to a device: it cannot go by loopback.
        for (own, to) in [(client.addr(0), by_service[0]), (client.addr6(0), by_service[1])] {
            let spec = SocketSpec::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
            let socket = client.socket(spec)?;
            socket.bind_device(Some(b"eth0"))?;
            socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
            check_addresses(&socket, own, to)?;
        }
        // AF_INET6 that dials IPv4: each address is shown as IPv4 in IPv6.
        let mapped = |addr: SocketAddr| match addr.ip() {
            IpAddr::V4(ip) => SocketAddr::from((ip.to_ipv6_mapped(), addr.port())),
            IpAddr::V6(_) => addr,
        };
        for to in [addr(SERVICE4), web.addr(8080)] {
            let stream = client.connect(mapped(to))?;
            check_addresses(&stream.into(), mapped(client.addr(0)), mapped(to))?;
            let bound = client.connect_from(mapped(client.addr(0)), mapped(to))?;
            check_addresses(&bound.into(), mapped(client.addr(0)), mapped(to))?;
            let lines = wait_until("its access line", LIMIT, || {
                let lines = a.access_lines();
                lines
                    .iter()
                    .any(|line| destination(line) == web.addr(8080).to_string())
                    .then_some(lines)
            })?;
            ensure!(
                lines
                    .iter()
                    .all(|line| line.is_ok() && !line.to_string().contains("ffff:")),
                "{lines:?}"
            );
        }
        let peers = server.peers();
        ensure!(peers.len() == 10, "{peers:?}");
        ensure!(
            peers.iter().all(|peer| client.addresses().contains(&peer.ip())),
            "{peers:?}"
        );
        ensure!(
            peers.iter().filter(|peer| peer.port() == 4444).count() == 2,
            "{peers:?}"
        );
        Ok(())
    });
}

/// Fails unless getsockname(2) says `local`, whose port 0 stands for any, and getpeername(2) `peer`; and it works.
fn check_addresses(socket: &socket2::Socket, local: SocketAddr, peer: SocketAddr) -> Result<()> {
    let (us, them) = (socket.local_addr()?.as_socket(), socket.peer_addr()?.as_socket());
    let (Some(us), Some(them)) = (us, them) else {
        bail!("{us:?} and {them:?} are no addresses")
    };
    ensure!(
        us.ip() == local.ip() && (local.port() == 0 || us.port() == local.port()),
        "{us} instead of {local}"
    );
    ensure!(them == peer, "{them} instead of {peer}");
    round_trip(&mut socket.try_clone()?.into(), MARKER).with_context(|| format!("{us} speaks to {peer}"))
}

/// `MSG_FASTOPEN` of linux/socket.h: sendto(2) connects, and the SYN carries data.
const FAST_OPEN: i32 = 0x2000_0000;

#[test]
fn there_is_no_way_around_by_fast_open_or_multipath_tcp() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        // Data in the SYN also without a cookie of the server's (net.ipv4.tcp_fastopen: 1 client, 4 without a cookie).
        client.netns().sysctl(&[("ipv4/tcp_fastopen", "5")])?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let capture = world.capture_link()?;
        for to in ways(&web) {
            let fast = client.socket(SocketSpec::new(Domain::for_address(to), Type::STREAM, None))?;
            let sent = fast
                .send_to_with_flags(MARKER, &to.into(), FAST_OPEN)
                .with_context(|| format!("fast open to {to}"))?;
            ensure!(sent == MARKER.len(), "{sent} bytes were sent");
            let mut answer = [0; MARKER.len()];
            std::net::TcpStream::from(fast.try_clone()?).read_exact(&mut answer)?;
            ensure!(answer == MARKER, "{answer:?}");
            ensure!(
                fast.peer_addr()?.as_socket() == Some(to),
                "{:?}",
                fast.peer_addr()
            );
            let spec = SocketSpec::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP));
            let multipath = client.socket(spec).context("a socket of multipath TCP")?;
            multipath
                .connect(&to.into())
                .with_context(|| format!("multipath TCP to {to}"))?;
            let mut stream = std::net::TcpStream::from(multipath);
            round_trip(&mut stream, MARKER).with_context(|| format!("multipath TCP to {to}"))?;
        }
        ensure!(
            !contains(&capture.stop()?, MARKER),
            "the marker crossed the link in clear"
        );
        ensure!(
            server
                .peers()
                .iter()
                .all(|peer| client.addresses().contains(&peer.ip())),
            "{:?}",
            server.peers()
        );
        for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
            let ended = || {
                let lines = agent.access_lines();
                (lines.len() == 8).then_some(lines)
            };
            let lines = wait_until("eight access lines", LIMIT, ended)?;
            let wanted = [("direction", direction), ("src.identity", &client.identity())];
            ensure!(
                lines.iter().all(|line| line.is_ok() && line.matches(&wanted)),
                "{lines:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_socket_that_is_connected_again_is_captured_again() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let own = Server::start(client.listen(8080)?, echo)?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let spec = SocketSpec::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP));
        let socket = client.socket(spec)?;
        let limit = Duration::from_secs(5);
        for (to, served) in [
            (addr(SERVICE4), &server),
            (addr("127.0.0.1:8080"), &own),
            (web.addr(8080), &server),
        ] {
            let before = served.accepted();
            socket
                .connect_timeout(&to.into(), limit)
                .with_context(|| format!("connect to {to}"))?;
            ensure!(
                socket.peer_addr()?.as_socket() == Some(to),
                "{:?} instead of {to}",
                socket.peer_addr()
            );
            round_trip(&mut socket.try_clone()?.into(), MARKER)?;
            ensure!(served.accepted() == before + 1, "{to} went elsewhere");
            disconnect(&socket)?;
        }
        wait_until("two access lines", LIMIT, || a.access_lines().len() == 2)?;
        Ok(())
    });
}

/// `connect` to AF_UNSPEC: ends the connection and frees the socket for another (connect(2)).
fn disconnect(socket: &socket2::Socket) -> Result<()> {
    rustix::net::connect_unspec(socket).context("disconnect")
}
