//! No way around the mesh: what an app may try, and what an operator may get wrong, ends in a refusal and never in the
//! open.

mod common;

use std::{
    io::{ErrorKind, Read as _, Write as _},
    time::Duration,
};

use anyhow::ensure;
use common::{SERVICE4, SERVICE6, addr, client_and_web};
use serde_json::json;
use weft_tests::{LIMIT, PodSpec, Server, app, wait_until, with_world};

#[test]
fn an_app_that_listens_on_15001_never_accepts_a_steered_connection() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, app::echo)?;
        let listeners = [
            client.listen_on(addr("0.0.0.0:15001"))?,
            client
                .listen_on(addr("[::]:15001"))
                .or_else(|_| client.listen_on(client.addr6(15001)))?,
        ];
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        // Bound to loopback, so that the pod's own address is where they are steered to.
        for (from, to) in [("127.0.0.1:0", SERVICE4), ("[::1]:0", SERVICE6)] {
            if let Ok(stream) = client.connect_from(addr(from), addr(to)) {
                ensure!(
                    app::ask(stream, b"x")? == b"x",
                    "it reached something else than web"
                );
            }
            for listener in &listeners {
                let accepted = listener.accept();
                let none = accepted
                    .as_ref()
                    .is_err_and(|err| err.kind() == ErrorKind::WouldBlock);
                ensure!(none, "the app accepted a connection to {to} itself: {accepted:?}");
            }
        }
        Ok(())
    });
}

#[test]
fn a_pod_that_a_restarted_agent_cannot_capture_goes_on_refusing() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, app::echo)?;
        ensure!(app::ask(client.connect(addr(SERVICE4))?, b"x")? == b"x");
        a.kill()?;
        // The new agent is told a namespace that is not there.
        let netns = client.netns().path().display().to_string();
        world.apply_text(
            "a",
            &world.mesh_text().replace(&netns, "/run/netns/weft-not-there"),
        )?;
        a.start()?;
        let failed = |a: &weft_tests::Agent| {
            a.status()
                .is_ok_and(|status| status["pods"][0]["state"] == "failed")
        };
        wait_until("the capture to fail", LIMIT, || failed(&a))?;
        for to in [addr(SERVICE4), web.addr(8080), web.addr6(8080)] {
            let connected = client.connect(to);
            ensure!(
                connected
                    .as_ref()
                    .is_err_and(|err| err.kind() == ErrorKind::ConnectionRefused),
                "{to}: {connected:?}"
            );
        }
        // And once it is told the right one it is captured.
        world.apply_text("a", &world.mesh_text())?;
        wait_until("the capture", LIMIT, || {
            a.status().is_ok_and(|status| status["capturedPods"] == 1)
        })?;
        ensure!(app::ask(client.connect(addr(SERVICE4))?, b"x")? == b"x");
        Ok(())
    });
}

#[test]
fn a_pod_without_the_address_that_the_mesh_gives_it_is_not_captured_and_named() {
    with_world(|world| {
        let spec = PodSpec::new("moved").field("addresses", json!(["10.244.1.99"]));
        world.pod("a", spec)?;
        let a = world.start_agent("a")?;
        let message =
            |status: &serde_json::Value| status["pods"][0]["message"].as_str().unwrap_or("").to_owned();
        wait_until("the message", LIMIT, || {
            a.status()
                .is_ok_and(|status| message(&status).contains("10.244.1.99"))
        })?;
        Ok(())
    });
}

#[test]
fn a_pod_whose_addresses_change_is_captured_all_along() {
    with_world(|world| {
        let web = world.pod("b", PodSpec::new("web").label("app", "web"))?;
        let client = world.pod("a", PodSpec::new("client"))?;
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        let [a, b] = world.start_agents()?;
        let _web = Server::start(web.listen(8080)?, app::echo)?;
        let mut open = client.connect(addr(SERVICE4))?;
        app::round_trip(&mut open, b"before")?;
        let captured = |log: &str| log.matches("pod captured").count();
        let before = captured(&b.log());
        // The pod loses its IPv6 address in the mesh.
        let only_v4 = world
            .mesh_text()
            .replace(&format!(",\n        \"{}\"", web.v6()), "");
        ensure!(only_v4 != world.mesh_text(), "the mesh file's form has changed");
        for node in ["a", "b"] {
            world.apply_text(node, &only_v4)?;
        }
        wait_until("the pod to be captured anew", LIMIT, || {
            captured(&b.log()) > before
        })?;
        ensure!(!b.log().contains("pod released"), "it was released in between");
        app::round_trip(&mut open, b"after")?;
        ensure!(app::ask(client.connect(addr(SERVICE4))?, b"new")? == b"new");
        ensure!(
            a.access_lines().iter().all(|line| line.is_ok()),
            "{:?}",
            a.access_lines()
        );
        Ok(())
    });
}

#[test]
fn an_answer_that_comes_just_before_a_reset_arrives() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        world.start_agents()?;
        // It answers without having read all of the question, and closes: the kernel resets after the answer.
        let server = Server::start(web.listen(8080)?, |mut stream| {
            stream.read_exact(&mut [0])?;
            stream.write_all(b"413 too large")?;
            app::reset(stream)
        })?;
        for round in 0..20 {
            let mut stream = client.connect(addr(SERVICE4))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"a long question")?;
            let mut answer = [0; 13];
            let read = stream.read_exact(&mut answer);
            ensure!(
                read.is_ok() && &answer == b"413 too large",
                "round {round}: {read:?} {answer:?}"
            );
        }
        ensure!(server.accepted() == 20, "{}", server.accepted());
        Ok(())
    });
}
