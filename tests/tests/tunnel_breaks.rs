//! The other end of a tunnel says no, goes away, stalls or dies: the app never takes a failure for an end, and nobody
//! else notices.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod scene;
    pub(crate) mod server;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use foreign::{
    scene::{HBONE, MARKER, Scene, ensure_reset, stranger},
    server::{Conduct, Impostor},
};
use weft_tests::{
    PodSpec,
    app::{ask, round_trip},
    with_world,
};

#[test]
fn an_answer_that_is_not_200_resets_the_app_and_is_named() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        for (status, flags) in [
            (400, "CONNECT"),
            (401, "DENY"),
            (503, "CONNECT"),
            (204, "CONNECT"),
            (302, "CONNECT"),
        ] {
            impostor.behave(Conduct::Status(status));
            let before = scene.failed(flags)?;
            let line = scene
                .reset(scene.web.addr(8080))
                .with_context(|| status.to_string())?;
            let wanted = format!("{} answered {status}", scene.web.addr(HBONE));
            ensure!(line.field("error").contains(&wanted), "{line}");
            ensure!(
                scene.failed(flags)? == before + 1.0,
                "{status} is not counted as {flags}"
            );
        }
        impostor.behave(Conduct::Echo);
        ensure!(ask(scene.client.connect(scene.web.addr(8080))?, MARKER)? == MARKER);
        ensure!(impostor.met().connections == 1, "an answer costs the tunnel");
        Ok(())
    });
}

#[test]
fn a_goaway_makes_a_new_tunnel_and_costs_no_stream() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::EchoAndGoAway)?;
        let mut first = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut first, b"one")?;
        let mut second = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut second, b"two")?;
        ensure!(
            impostor.met().connections == 2,
            "{} tunnels",
            impostor.met().connections
        );
        round_trip(&mut first, b"three").context("the first, after its tunnel was told to go")?;
        for app in [first, second] {
            let local = app.local_addr()?;
            ensure!(ask(app, b"end")? == b"end");
            ensure!(scene.line_of(local)?.is_ok());
        }
        Ok(())
    });
}

#[test]
fn a_stream_that_was_turned_away_unseen_is_tried_again() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::RefuseFirst)?;
        ensure!(ask(scene.client.connect(scene.web.addr(8080))?, MARKER)? == MARKER);
        ensure!(
            impostor.met().requests.len() == 2,
            "{} requests",
            impostor.met().requests.len()
        );
        Ok(())
    });
}

#[test]
fn a_stream_or_a_tunnel_that_breaks_resets_the_app_and_nobody_else() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web"))?;
        let fine = world.pod("b", stranger("fine"))?;
        let scene = Scene::with(world, client, web)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        let good = scene.config(&scene.authority.svid(&fine.identity())?)?;
        Impostor::start(&scene.runtime, fine.listen(HBONE)?, good, Conduct::Echo)?;
        let mut other_pod = scene.client.connect(fine.addr(8080))?;
        round_trip(&mut other_pod, b"before")?;
        let mut neighbour = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut neighbour, b"before")?;
        for (conduct, tunnels) in [(Conduct::Reset, 1), (Conduct::Die, 1)] {
            impostor.behave(conduct);
            let mut app = scene.client.connect(scene.web.addr(8080))?;
            let local = app.local_addr()?;
            round_trip(&mut app, b"once").with_context(|| format!("{conduct:?}"))?;
            ensure_reset(&mut app).with_context(|| format!("{conduct:?}"))?;
            let line = scene.line_of(local)?;
            ensure!(
                line.field("error").contains("the tunnel's stream broke"),
                "{conduct:?}: {line}"
            );
            ensure!(
                line.matches(&[("bytes_recv", "4"), ("dst.identity", &scene.web.identity())]),
                "{line}"
            );
            ensure!(
                impostor.met().connections == tunnels,
                "{conduct:?}: {} tunnels",
                impostor.met().connections
            );
            if conduct == Conduct::Reset {
                round_trip(&mut neighbour, b"after").context("the neighbour on the tunnel")?;
            }
        }
        ensure_reset(&mut neighbour).context("the neighbour on the tunnel that died")?;
        impostor.behave(Conduct::Echo);
        ensure!(ask(scene.client.connect(scene.web.addr(8080))?, MARKER)? == MARKER);
        ensure!(
            impostor.met().connections == 2,
            "{} tunnels",
            impostor.met().connections
        );
        round_trip(&mut other_pod, b"after").context("the connection to another pod")?;
        Ok(())
    });
}

#[test]
fn a_server_that_stalls_is_given_up_and_others_go_on() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web"))?;
        let mute = world.pod("b", stranger("mute"))?;
        let fine = world.pod("b", stranger("fine"))?;
        let scene = Scene::with(world, client, web)?;
        scene.impostor(scene.good()?, Conduct::Silence)?;
        for (pod, conduct) in [(&mute, Conduct::StallHandshake), (&fine, Conduct::Echo)] {
            let config = scene.config(&scene.authority.svid(&pod.identity())?)?;
            Impostor::start(&scene.runtime, pod.listen(HBONE)?, config, conduct)?;
        }
        let began = Instant::now();
        let mut no_answer = scene.client.connect(scene.web.addr(8080))?;
        let mut no_handshake = scene.client.connect(mute.addr(8080))?;
        ensure!(ask(scene.client.connect(fine.addr(8080))?, MARKER)? == MARKER);
        let (local, web) = (no_handshake.local_addr()?, no_answer.local_addr()?);
        ensure_reset(&mut no_handshake)?;
        ensure!(
            began.elapsed() >= Duration::from_secs(9),
            "given up after {:?}",
            began.elapsed()
        );
        let line = scene.line_of(local)?;
        ensure!(
            line.field("error")
                .contains("the TLS handshake was not done within 10s"),
            "{line}"
        );
        ensure!(
            line.field("error").contains(&mute.addr(HBONE).to_string()),
            "{line}"
        );
        ensure!(scene.failed("TLS_FAILURE")? == 1.0);
        ensure!(ask(scene.client.connect(fine.addr(8080))?, MARKER)? == MARKER);
        ensure_reset(&mut no_answer)?;
        let line = scene.line_of(web)?;
        ensure!(
            line.field("error")
                .contains("did not answer the CONNECT within 20s"),
            "{line}"
        );
        ensure!(
            began.elapsed() < Duration::from_secs(26),
            "given up after {:?}",
            began.elapsed()
        );
        Ok(())
    });
}
