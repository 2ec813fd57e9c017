//! Without its agent a captured pod is closed: nothing goes in or out of it in plaintext, and pods outside the mesh are
//! not touched.

use std::{io, net::SocketAddr};

use anyhow::{Result, ensure};
use weft_tests::{
    Host, PodSpec, Server, World,
    app::{echo, round_trip},
    with_world,
};

const MARKER: &[u8] = b"WEFT-FAIL-CLOSED-MARKER";

/// Dials, and says how a connection that must not come to be ended.
fn refusal(from: &Host, to: SocketAddr) -> Option<io::ErrorKind> {
    from.connect(to).err().map(|error| error.kind())
}

fn ensure_refused(from: &Host, to: SocketAddr) -> Result<()> {
    let refusal = refusal(from, to);
    ensure!(
        refusal == Some(io::ErrorKind::ConnectionRefused),
        "{from:?} to {to}: {refusal:?}"
    );
    Ok(())
}

fn ensure_echo(world: &World, from: &Host, to: SocketAddr) -> Result<()> {
    let echo = from
        .connect(to)
        .and_then(|mut stream| round_trip(&mut stream, MARKER));
    ensure!(echo.is_ok(), "{from:?} to {to}: {echo:?}\n{}", world.log_tails());
    Ok(())
}

#[test]
fn a_captured_pod_without_an_agent_refuses_plaintext() {
    with_world(|world| {
        let outside = world.pod("a", PodSpec::new("outside").unlisted())?;
        let near = world.pod("b", PodSpec::new("near").unlisted())?;
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod(
            "b",
            PodSpec::new("web").service_account("web").label("app", "web"),
        )?;
        let [_, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let untouched = Server::start(near.listen(8080)?, echo)?;
        for to in [web.addr(8080), web.addr6(8080)] {
            ensure_echo(world, &outside, to)?;
        }
        let accepted = server.accepted();

        b.kill()?;
        for to in [web.addr(8080), web.addr6(8080)] {
            // Its own node's processes are the kubelet: see probes.rs.
            for from in [&*outside, &*near, &**world.node("a")] {
                ensure_refused(from, to)?;
            }
            // Its own agent lives and accepts; the other one is not there.
            let met = client
                .connect(to)
                .and_then(|mut stream| round_trip(&mut stream, MARKER));
            let met = met.map_err(|error| error.kind());
            ensure!(
                matches!(
                    met,
                    Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
                ),
                "{met:?}"
            );
        }
        ensure!(
            server.accepted() == accepted,
            "the app saw a connection that no agent let in"
        );
        // A pod on the same node that was never captured is none of the agent's business.
        for to in [near.addr(8080), near.addr6(8080)] {
            ensure_echo(world, &outside, to)?;
        }
        ensure!(untouched.accepted() == 2, "{untouched:?}");

        b.start()?;
        for to in [web.addr(8080), web.addr6(8080)] {
            ensure_echo(world, &outside, to)?;
            ensure_echo(world, &client, to)?;
        }
        Ok(())
    });
}

#[test]
fn a_captured_pod_without_an_agent_cannot_dial_out() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let outside = world.pod("b", PodSpec::new("outside").unlisted())?;
        let web = world.pod(
            "b",
            PodSpec::new("web").service_account("web").label("app", "web"),
        )?;
        world
            .mesh_mut()
            .service("web", &["10.96.0.10", "fd00:96::10"], 80, 8080, "web");
        let [a, _] = world.start_agents()?;
        let servers = [
            Server::start(web.listen(8080)?, echo)?,
            Server::start(outside.listen(8080)?, echo)?,
        ];
        ensure_echo(world, &client, web.addr(8080))?;
        let accepted = servers[0].accepted();

        a.kill()?;
        let services = ["10.96.0.10:80".parse()?, "[fd00:96::10]:80".parse()?];
        let pods = [
            web.addr(8080),
            web.addr6(8080),
            outside.addr(8080),
            outside.addr6(8080),
        ];
        let capture = world.capture_link()?;
        for to in services.into_iter().chain(pods) {
            ensure_refused(&client, to)?;
        }
        let packets = capture.stop()?;
        for ip in [client.v4().octets().to_vec(), client.v6().octets().to_vec()] {
            ensure!(
                !weft_tests::capture::contains(&packets, &ip),
                "a packet of the pod left the node"
            );
        }
        ensure!(
            servers[0].accepted() == accepted && servers[1].accepted() == 0,
            "{servers:?}"
        );
        ensure_echo(world, &stranger, outside.addr(8080))
    });
}
