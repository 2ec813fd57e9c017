//! The kernel path lets nothing through that the agent would not: not to whoever has a pod's address now, not for whoever
//! claims to have it, not past a waypoint, and not where the way may leave the node.

#[path = "common/mod.rs"]
mod common;
#[path = "common/pair.rs"]
mod pair;

use std::{io::Write as _, net::SocketAddr, thread};

use anyhow::{Context as _, Result, ensure};
use common::{MARKER, SERVICE4, addr, echoed, line_of};
use pair::{Cast, KERNEL, cast, direct_stream, talk_directly};
use serde_json::{Value, json};
use weft_tests::{
    Agent, Host, LIMIT, Membership, PodSpec, Server,
    app::{self, echo},
    wait_until, with_world,
};

/// What the agent says of the pairs from `client`: the reason for which each goes through it, `None` where none does.
fn reasons(agent: &Agent) -> Result<Vec<Option<String>>> {
    let status = agent.status()?;
    let list = status.pointer("/sameNode/list").and_then(Value::as_array);
    let reason = |pair: &Value| {
        pair.get("throughAgent")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    Ok(list
        .context("the status lists pairs")?
        .iter()
        .map(reason)
        .collect())
}

/// Connects until the agent has an opinion of the pair, which must be a reason with `expect`; and then the connections go
/// through the agent.
fn goes_through_the_agent(agent: &Agent, client: &Host, to: SocketAddr, expect: &str) -> Result<()> {
    let knows = || {
        let told = reasons(agent).unwrap_or_default();
        told.iter().flatten().any(|reason| reason.contains(expect))
    };
    wait_until(
        &format!("a pair that goes through the agent: {expect}"),
        LIMIT,
        || echoed(client, to).is_ok() && knows(),
    )?;
    stays_with_the_agent(agent, client, to)
}

fn stays_with_the_agent(agent: &Agent, client: &Host, to: SocketAddr) -> Result<()> {
    for _ in 0..5 {
        let line = line_of(agent, "outbound", echoed(client, to)?)?;
        ensure!(line.field("path") != KERNEL, "from app to app: {line}");
    }
    Ok(())
}

#[test]
fn whoever_has_a_pods_address_now_gets_nothing() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        // The agent is gone, so that nobody takes its verdicts back; they end with their lease.
        agent.kill()?;
        drop(server);
        world.remove_pod(&web)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted().address_of(&web))?;
        let theirs = Server::start(stranger.listen(8080)?, app::count)?;
        // The client has an answer to its SYN; but what its socket sends from then on does not leave its pod.
        let mut stream = client.connect(to)?;
        stream.write_all(MARKER)?;
        let neighbour = world.pod("a", PodSpec::new("neighbour").unlisted())?;
        assert_eq!(
            app::ask(neighbour.connect(to)?, b"12345")?,
            b"5",
            "the stranger does serve"
        );
        assert_eq!(theirs.accepted(), 1, "the neighbour, and not the client");
        // The next agent ends it, and says why.
        agent.start()?;
        common::ensure_ended(&mut stream)?;
        let own = stream.local_addr()?;
        let line = line_of(&agent, "outbound", own)?;
        assert!(!line.is_ok(), "{line}");
        assert_eq!(theirs.accepted(), 1);
        Ok(())
    });
}

#[test]
fn a_recycled_address_is_its_new_pods_and_its_policies_hold() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        drop(server);
        world.remove_pod(&web)?;
        let vault = PodSpec::new("vault")
            .service_account("vault")
            .label("app", "vault");
        let vault = world.pod("a", vault.address_of(&web))?;
        let theirs = Server::start(vault.listen(8080)?, echo)?;
        world.mesh_mut().policy("nobody", "DENY", "vault", json!([{}]));
        world.apply()?;
        common::reset_or_refused(&client, to)?;
        assert_eq!(theirs.accepted(), 0);
        let line = agent.wait_for_access("the refusal", |line| line.field("dst.workload") == "vault")?;
        assert!(!line.is_ok(), "{line}");
        world.mesh_mut().policies.clear();
        world.apply()?;
        talk_directly(&agent, &client, to)
    });
}

#[test]
fn a_pod_that_claims_the_clients_address_is_not_the_client() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        world.mesh_mut().mtls("demo", "STRICT");
        let thief = world.pod("a", PodSpec::new("thief").unlisted())?;
        world.apply()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        let kept = direct_stream(&agent, &client, to)?;
        let accepted = server.accepted();
        // The same address, and for one of them the very tuple of a connection that is open.
        thief
            .netns()
            .ip(&format!("addr add {}/32 dev eth0\n", client.v4()))?;
        for port in [kept.local_addr()?.port(), 39_999] {
            let own = SocketAddr::new(client.v4().into(), port);
            let claimed = thief.netns().run(|| std::net::TcpListener::bind(own))?;
            drop(claimed);
            let dialled = thief.connect_from(own, to).and_then(|mut stream| {
                stream.write_all(MARKER)?;
                common::read_some(&mut stream)
            });
            ensure!(dialled.as_ref().is_err(), "from {own}: {dialled:?}");
        }
        assert_eq!(server.accepted(), accepted);
        drop(kept);
        Ok(())
    });
}

#[test]
fn what_is_set_to_tunnel_goes_through_the_tunnel() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        world.mesh_mut().same_node = Some("tunnel");
        world.apply()?;
        goes_through_the_agent(&agent, &client, to, "sameNode: tunnel")?;
        world.mesh_mut().same_node = None;
        world.mesh_mut().namespaces = vec![json!({ "name": "demo", "sameNode": "tunnel" })];
        world.apply()?;
        goes_through_the_agent(&agent, &client, to, "sameNode: tunnel")?;
        world.mesh_mut().namespaces.clear();
        world.apply()?;
        talk_directly(&agent, &client, to)
    });
}

#[test]
fn a_waypoint_is_not_passed_by() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        talk_directly(&agent, &client, addr(SERVICE4))?;
        let waypoint = world.pod("a", PodSpec::new("waypoint").service_account("waypoint"))?;
        let service = world.mesh_mut().services.last_mut().context("the service")?;
        service["waypoint"] = json!({ "address": waypoint.v4() });
        world.apply()?;
        // There is nobody at the waypoint, so that nothing can arrive.
        common::reset_or_refused(&client, addr(SERVICE4))?;
        let line = agent.wait_for_access("the way through the waypoint", |line| !line.is_ok())?;
        assert_ne!(line.field("path"), KERNEL, "{line}");
        Ok(())
    });
}

#[test]
fn pods_that_leave_the_mesh_leave_the_path() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        world.mesh_mut().mtls("demo", "STRICT");
        world.apply()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        world.set_membership(&client, Membership::Outside);
        world.apply()?;
        // A STRICT port, and no identity any more.
        common::refused_at_once(&client, to)
    });
}

#[test]
fn a_way_that_leaves_the_node_is_not_for_the_kernel() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        world.start_agent("b")?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        // As a cloud does that shows traffic inside a node to its own network: by way of the other node, and back.
        let node = world.node("a").netns();
        node.sysctl(&[
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/link0/rp_filter", "0"),
        ])?;
        node.ip(&format!(
            "route add {}/32 via 192.168.77.2 table 77\nrule add iif pod{} to {} lookup 77\n",
            web.v4(),
            client.v4().octets()[3],
            web.v4(),
        ))?;
        goes_through_the_agent(&agent, &client, to, "not proved")?;
        node.ip(&format!(
            "rule del iif pod{} to {} lookup 77\n",
            client.v4().octets()[3],
            web.v4()
        ))?;
        talk_directly(&agent, &client, to)
    });
}

#[test]
fn a_filter_that_lets_only_tunnels_through_sends_the_pair_back_to_the_agent() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        let node = world.node("a").netns();
        node.ip(&format!(
            "rule add to {} ipproto tcp dport 8080 blackhole\n",
            web.v4()
        ))?;
        let first = {
            let client = client.clone();
            thread::spawn(move || client.connect(to).map(drop))
        };
        wait_until("the pair to be the agent's again", LIMIT, || {
            reasons(&agent).is_ok_and(|told| told.iter().flatten().any(|why| why.contains("NetworkPolicy")))
        })?;
        echoed(&client, to).context("through the tunnel")?;
        stays_with_the_agent(&agent, &client, to)?;
        agent.wait_for_log("what an operator is told", |line| {
            line.contains("does a NetworkPolicy")
        })?;
        node.ip(&format!(
            "rule del to {} ipproto tcp dport 8080 blackhole\n",
            web.v4()
        ))?;
        let first = first.join();
        ensure!(
            first.is_ok_and(|dialled| dialled.is_ok()),
            "the first goes on once it may"
        );
        Ok(())
    });
}

#[test]
fn a_socket_that_is_bound_elsewhere_goes_through_the_agent() {
    with_world(|world| {
        let Cast { client, web, agent } = cast(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let to = web.addr(8080);
        talk_directly(&agent, &client, to)?;
        let second = "10.244.1.99";
        client.netns().ip(&format!("addr add {second}/32 dev eth0\n"))?;
        let node = world.node("a").netns();
        node.ip(&format!(
            "route add {second}/32 dev pod{}\n",
            client.v4().octets()[3]
        ))?;
        let own: SocketAddr = addr(&format!("{second}:0"));
        let mut stream = client.connect_from(own, to)?;
        app::round_trip(&mut stream, MARKER)?;
        let own = stream.local_addr()?;
        drop(stream);
        let line = line_of(&agent, "outbound", own)?;
        ensure!(line.field("path") != KERNEL, "{line}");
        Ok(())
    });
}
