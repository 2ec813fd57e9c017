//! Two pods on two nodes talk through the tunnel: by service and by address, IPv4 and IPv6, and nothing crosses the link
//! in clear.

use anyhow::{Context as _, Result, ensure};
use weft_tests::{
    Pod, PodSpec, Server, World,
    app::{ask, echo},
    with_world,
};

const MARKER: &[u8] = b"WEFT-PLAINTEXT-MARKER-7d1f";

/// A client on node a and a server with label `app: web` on node b.
fn client_and_web(world: &mut World) -> Result<(Pod, Pod)> {
    let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
    let web = world.pod(
        "b",
        PodSpec::new("web").service_account("web").label("app", "web"),
    )?;
    world
        .mesh_mut()
        .service("web", &["10.96.0.10", "fd00:96::10"], 80, 8080, "web");
    Ok((client, web))
}

#[test]
fn an_echo_by_service_and_by_address_over_ipv4_and_ipv6() {
    with_world(|world| {
        let (client, web) = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let capture = world.capture_link()?;
        for addr in [
            "10.96.0.10:80",
            "[fd00:96::10]:80",
            &web.addr(8080).to_string(),
            &web.addr6(8080).to_string(),
        ] {
            let stream = client
                .connect(addr.parse()?)
                .with_context(|| format!("connect to {addr}"))?;
            ensure!(
                stream.peer_addr()?.to_string() == addr,
                "the client sees {:?}",
                stream.peer_addr()
            );
            let local = stream.local_addr()?;
            ensure!(
                client.addresses().contains(&local.ip()),
                "the client's own address is {local}"
            );
            let answer = ask(stream, MARKER).with_context(|| format!("echo by {addr}"))?;
            ensure!(answer == MARKER, "{addr}: {answer:?}");
            let from_a = a.wait_for_access("outbound", |line| line.field("src.addr") == local.to_string())?;
            ensure!(
                from_a.matches(&[
                    ("direction", "outbound"),
                    ("src.identity", &client.identity()),
                    ("dst.identity", &web.identity()),
                    ("bytes_sent", "26"),
                    ("bytes_recv", "26"),
                ]),
                "{from_a:?}"
            );
            let at_b = b.wait_for_access("inbound", |line| line.field("src.addr") == local.to_string())?;
            ensure!(
                at_b.matches(&[
                    ("direction", "inbound"),
                    ("src.identity", &client.identity()),
                    ("dst.identity", &web.identity()),
                ]),
                "{at_b:?}"
            );
        }
        let peers = server.peers();
        ensure!(peers.len() == 4, "{peers:?}");
        ensure!(
            peers.iter().all(|peer| client.addresses().contains(&peer.ip())),
            "the server sees {peers:?}"
        );
        let bytes = capture.stop()?;
        ensure!(
            !weft_tests::capture::contains(&bytes, MARKER),
            "the marker crossed the link in clear"
        );
        Ok(())
    });
}
