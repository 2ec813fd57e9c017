//! The kernel path: two pods of one node, once the agent has allowed it, talk from app to app; and nothing that was promised
//! of carried connections is lost by it.

#[path = "common/mod.rs"]
mod common;
#[path = "common/pair.rs"]
mod pair;

use std::{
    io::Write as _,
    net::{Shutdown, SocketAddr},
};

use anyhow::{Context as _, ensure};
use common::{MARKER, SERVICE4, SERVICE6, addr, ensure_ended, line_of, refused_at_once};
use pair::{Cast, KERNEL, cast, direct_line, direct_stream, talk_directly};
use serde_json::json;
use socket2::SockRef;
use weft_tests::{
    AgentOptions, LIMIT, PodSpec, Server,
    app::{self, ask, echo, round_trip},
    pattern, wait_until, with_world,
};

#[test]
fn the_connections_after_the_first_go_from_app_to_app() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let server = Server::start(web.listen(8080)?, app::witness)?;
        for to in [addr(SERVICE4), addr(SERVICE6), web.addr(8080), web.addr6(8080)] {
            talk_directly(&agent, &client, to)?;
            let stream = client.connect(to)?;
            // The app is shown the client itself, not a word of the agent; the client what it dialled.
            let (own, peer) = (stream.local_addr()?, stream.peer_addr()?);
            assert_eq!(peer, to);
            assert!(client.addresses().contains(&own.ip()), "{own}");
            let told = String::from_utf8(ask(stream, b"")?)?;
            let app = if to.is_ipv4() {
                web.addr(8080)
            } else {
                web.addr6(8080)
            };
            let shown: Vec<_> = told
                .split_whitespace()
                .map(|text| canonical(addr(text)))
                .collect();
            assert_eq!(shown, [own, app]);
            assert_eq!(server.peers().last(), Some(&own));
            let line = direct_line(&agent, own)?;
            assert_eq!(
                line.field("src.identity"),
                "spiffe://cluster.local/ns/demo/sa/client"
            );
            assert_eq!(
                line.field("dst.identity"),
                "spiffe://cluster.local/ns/demo/sa/web"
            );
            assert_eq!(line.field("dst.addr"), app.to_string());
            let service = ["", "web.demo.svc.cluster.local"][usize::from(to != app)];
            assert_eq!(line.field("dst.service"), service, "{line}");
            assert_eq!(line.number("bytes_sent"), Some(0), "{line}");
            assert_eq!(line.number("bytes_recv"), Some(told.len() as u64), "{line}");
        }
        Ok(())
    });
}

/// IPv4 as IPv4, for servers that listen on both families.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

#[test]
fn each_is_logged_once_and_counted_for_both_ends() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        let before = agent.metrics()?;
        let mut stream = client.connect(to)?;
        round_trip(&mut stream, MARKER)?;
        let own = stream.local_addr()?;
        let open = |reporter: &str| {
            let labels = [("reporter", reporter), ("connection_security_policy", "kernel")];
            let now = agent
                .metrics()?
                .sum("istio_tcp_connections_opened_total", &labels);
            anyhow::Ok(now - before.sum("istio_tcp_connections_opened_total", &labels))
        };
        for reporter in ["source", "destination"] {
            wait_until("the open connection to be counted", LIMIT, || {
                open(reporter).is_ok_and(|opened| opened == 1.0)
            })?;
        }
        drop(stream);
        let line = direct_line(&agent, own)?;
        assert_eq!(line.number("bytes_sent"), Some(MARKER.len() as u64));
        assert_eq!(line.number("bytes_recv"), Some(MARKER.len() as u64));
        let lines = agent.access_lines();
        let of_it = lines
            .iter()
            .filter(|line| line.field("src.addr") == own.to_string());
        assert_eq!(of_it.count(), 1);
        for reporter in ["source", "destination"] {
            for (name, expect) in [
                ("istio_tcp_connections_closed_total", 1.0),
                ("istio_tcp_received_bytes_total", MARKER.len() as f64),
                ("istio_tcp_sent_bytes_total", MARKER.len() as f64),
            ] {
                let labels = [
                    ("reporter", reporter),
                    ("connection_security_policy", "kernel"),
                    ("source_workload", "client"),
                    ("destination_workload", "web"),
                ];
                let after = agent.metrics()?.sum(name, &labels);
                assert_eq!(after - before.sum(name, &labels), expect, "{name}, {reporter}");
            }
        }
        Ok(())
    });
}

#[test]
fn bytes_and_half_closes_pass_as_between_any_two_sockets() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let _echo = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        drop(_echo);
        let size = 64 << 20;
        let _sink = Server::start(web.listen(8080)?, app::sink(7))?;
        let mut stream = client.connect(to)?;
        let own = stream.local_addr()?;
        pattern::send(&mut stream, 7, size)?;
        assert_eq!(ask(stream, b"")?, size.to_string().as_bytes());
        assert_eq!(direct_line(&agent, own)?.number("bytes_sent"), Some(size));
        Ok(())
    });
}

#[test]
fn an_app_that_does_not_listen_is_left_to_the_agent_for_a_while() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let server = Server::start(web.listen(8080)?, echo)?;
        talk_directly(&agent, &client, addr(SERVICE4))?;
        drop(server);
        refused_at_once(&client, addr(SERVICE4))?;
        let line = agent.wait_for_access("the refused connection", |line| {
            line.field("path") == KERNEL && !line.is_ok()
        })?;
        assert!(line.field("error").contains("does not take"), "{line}");
        Ok(())
    });
}

#[test]
fn a_policy_that_refuses_ends_what_is_open_and_leaves_the_others() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let other = world.pod("a", PodSpec::new("other").service_account("other"))?;
        world.apply()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        let mut refused = direct_stream(&agent, &client, to)?;
        // An app may do that at any time, and is not to be missed for it.
        let mut bound = direct_stream(&agent, &client, to)?;
        SockRef::from(&bound).bind_device(Some(b"eth0"))?;
        let mut kept = direct_stream(&agent, &other, to)?;
        let rules = json!([{ "from": [{ "principals": ["cluster.local/ns/demo/sa/client"] }] }]);
        world.mesh_mut().policy("not-client", "DENY", "web", rules);
        world.apply()?;
        ensure_ended(&mut refused)?;
        ensure_ended(&mut bound)?;
        let own = refused.local_addr()?;
        let line = line_of(&agent, "outbound", own)?;
        assert_eq!(line.field("path"), KERNEL, "{line}");
        assert!(line.field("error").contains("demo/not-client"), "{line}");
        round_trip(&mut kept, MARKER).context("another client's connection goes on")?;
        common::reset_or_refused(&client, to)?;
        Ok(())
    });
}

#[test]
fn without_its_agent_a_pair_goes_on_until_its_lease_ends() {
    with_world(|world| {
        let options = AgentOptions::default().arg("--same-node-lease").arg("3");
        let Cast {
            client, web, agent, ..
        } = pair::cast_with(world, options)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        let mut open = direct_stream(&agent, &client, to)?;
        agent.kill()?;
        round_trip(&mut open, MARKER).context("what is open goes on")?;
        wait_until("new connections to be refused", LIMIT, || {
            client.connect(to).is_err()
        })?;
        refused_at_once(&client, to)?;
        round_trip(&mut open, MARKER).context("what is open still goes on")?;
        // The next agent knows the connection, and ends it when it is refused.
        agent.start()?;
        wait_until("the open connection to be known", LIMIT, || {
            common::open_connections(&agent).is_some_and(|open| open >= 1)
        })?;
        world.mesh_mut().policy("nobody", "DENY", "web", json!([{}]));
        world.apply()?;
        ensure_ended(&mut open)
    });
}

#[test]
fn a_fast_client_meets_each_change_of_policy() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        for round in 0..8 {
            talk_directly(&agent, &client, to).with_context(|| format!("round {round}"))?;
            let dialling = pair::Dialling::start(&client, to, 2)?;
            dialling.wait_for_echoes(20)?;
            world.mesh_mut().policy("nobody", "DENY", "web", json!([{}]));
            world.apply()?;
            // Everything that begins from here on is refused, whatever a verdict said a moment ago.
            let refused_from = dialling.begun();
            dialling.wait_for_dials(refused_from + 20)?;
            let let_in = dialling.stop_and_count_echoes_since(refused_from);
            ensure!(
                let_in == 0,
                "round {round}: {let_in} connections were let in after DENY"
            );
            world.mesh_mut().policies.clear();
            world.apply()?;
        }
        Ok(())
    });
}

#[test]
fn half_of_a_services_connections_go_to_the_pod_of_the_other_node() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let far = world.pod(
            "b",
            PodSpec::new("web-2").service_account("web").label("app", "web"),
        )?;
        world.apply()?;
        world.start_agent("b")?;
        let near = Server::start(web.listen(8080)?, echo)?;
        let there = Server::start(far.listen(8080)?, echo)?;
        talk_directly(&agent, &client, addr(SERVICE4))?;
        let before = (near.accepted(), there.accepted());
        for _ in 0..200 {
            common::echoed(&client, addr(SERVICE4))?;
        }
        let (near, there) = (near.accepted() - before.0, there.accepted() - before.1);
        assert_eq!(near + there, 200);
        // Six standard deviations.
        assert!((58..=142).contains(&near), "{near} here, {there} there");
        Ok(())
    });
}

#[test]
fn connections_that_are_shut_down_on_both_sides_leave_nothing_behind() {
    with_world(|world| {
        let Cast {
            client, web, agent, ..
        } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        for nth in 0..500 {
            let mut stream = client.connect(to)?;
            if nth % 3 == 0 {
                app::reset(stream)?;
            } else {
                stream.write_all(MARKER)?;
                stream.shutdown(Shutdown::Write)?;
                assert_eq!(ask(stream, b"")?, MARKER);
            }
        }
        wait_until("no connection to be left", LIMIT, || {
            common::open_connections(&agent) == Some(0)
        })
    });
}

#[test]
fn syn_cookies_lose_no_connection() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        // Always: the pod keeps nothing of a SYN, and its lookup is asked again for the ACK.
        web.netns().sysctl(&[("ipv4/tcp_syncookies", "2")])?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        for to in [web.addr(8080), web.addr6(8080)] {
            talk_directly(&agent, &client, to)?;
            for _ in 0..50 {
                common::echoed(&client, to)?;
            }
        }
        Ok(())
    });
}

#[test]
fn no_connection_fails_while_agents_replace_each_other() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        talk_directly(&agent, &client, addr(SERVICE4))?;
        let mut open = client.connect(addr(SERVICE4))?;
        let dialling = pair::Dialling::start(&client, addr(SERVICE4), 2)?;
        let mut before = agent;
        // The same layout of the maps, another one, and back again.
        for binary in ["weft", "weft-next-layout", "weft"] {
            dialling.wait_for_echoes(dialling.echoes() + 50)?;
            let next = world.take_over("a", AgentOptions::default().binary(binary))?;
            dialling.wait_for_echoes(dialling.echoes() + 50)?;
            before.stop()?;
            before = next;
            talk_directly(&before, &client, addr(SERVICE4)).context(binary)?;
            round_trip(&mut open, MARKER).context("what was open goes on")?;
        }
        let failures = dialling.stop_and_count_failures();
        ensure!(failures == 0, "{failures} connections failed");
        Ok(())
    });
}
