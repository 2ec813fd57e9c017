//! The other end of a tunnel is somebody else: no byte goes to a server that is not who the mesh says it is. The right
//! one gets the CONNECT as the field's contract has it.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod scene;
    pub(crate) mod server;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use foreign::{
    certs::{Authority, Validity},
    scene::{HBONE, MARKER, Scene, stranger},
    server::Conduct,
    tls,
};
use http::Method;
use serde_json::json;
use weft_tests::{LIMIT, PodSpec, app::ask, wait_until, with_world};

#[test]
fn a_server_with_a_valid_certificate_of_another_service_account_gets_no_byte() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let mallory = "spiffe://cluster.local/ns/demo/sa/mallory";
        let impostor = scene.impostor(scene.config(&scene.authority.svid(mallory)?)?, Conduct::Gather)?;
        let service: SocketAddr = "10.96.0.10:80".parse()?;
        for addr in [scene.web.addr(8080), scene.web.addr6(8080), service] {
            let line = scene.reset(addr)?;
            let wanted = format!(
                "the peer proved to be {mallory}, expected {}",
                scene.web.identity()
            );
            ensure!(line.field("error").contains(&wanted), "{line}");
            ensure!(
                line.level == "ERROR" && line.matches(&[("direction", "outbound"), ("bytes_sent", "0")]),
                "{line}"
            );
            ensure!(
                !line.has("dst.identity"),
                "an identity that nobody proved: {line}"
            );
        }
        ensure!(
            scene.failed("IDENTITY_ERROR")? == 3.0,
            "{} identity errors",
            scene.failed("IDENTITY_ERROR")?
        );
        wait_until("every handshake's end", LIMIT, || {
            let met = impostor.met();
            met.connections >= 3 && met.failed.len() + met.clients.len() == met.connections
        })?;
        {
            let met = impostor.met();
            ensure!(
                met.clients.is_empty() && met.plaintext.is_empty(),
                "it was told something: {met:?}"
            );
            ensure!(met.failed.iter().all(|error| error.contains("alert")), "{met:?}");
        }
        // The same server sees everything once its certificate is the right one.
        impostor.present(scene.good()?, Conduct::Gather);
        scene.reset(scene.web.addr(8080))?;
        ensure!(
            impostor.met().plaintext.starts_with(b"PRI * HTTP/2.0"),
            "{:?}",
            impostor.met()
        );
        ensure!(scene.plain.accepted() == 0, "something came in clear");
        Ok(())
    });
}

#[test]
fn the_right_server_gets_the_connect_as_the_contract_says_and_the_bytes() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        let service: SocketAddr = "10.96.0.10:80".parse()?;
        for (addr, host) in [
            (service, ";host=web.demo.svc.cluster.local"),
            (scene.web.addr(8080), ""),
        ] {
            let app = scene.client.connect(addr)?;
            let local = app.local_addr()?;
            ensure!(ask(app, MARKER)? == MARKER, "{addr}: the echo differs");
            let head = impostor.met().requests.pop().context("no request")?;
            ensure!(head.method == Method::CONNECT, "{head:?}");
            ensure!(
                head.uri.scheme().is_none() && head.uri.path().is_empty(),
                "{head:?}"
            );
            let authority = scene.web.addr(8080).to_string();
            ensure!(
                head.uri.authority().is_some_and(|it| it.as_str() == authority),
                "{head:?}"
            );
            let header = |name| {
                head.headers
                    .get(name)
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
            };
            ensure!(
                header("forwarded") == format!("for=\"{local}\"{host}"),
                "{head:?}"
            );
            let baggage: Vec<_> = header("baggage").split(',').collect();
            for member in [
                "k8s.cluster.name=Kubernetes",
                "k8s.namespace.name=demo",
                "service.name=client",
            ] {
                ensure!(baggage.contains(&member), "no {member}: {head:?}");
            }
            ensure!(is_traceparent(header("traceparent")), "{head:?}");
            let line = scene.line_of(local)?;
            let sizes = [
                ("bytes_sent", "22"),
                ("bytes_recv", "22"),
                ("dst.identity", &scene.web.identity()),
            ];
            ensure!(line.is_ok() && line.matches(&sizes), "{line}");
        }
        let met = impostor.met();
        ensure!(
            met.connections == 1,
            "{} tunnels where one would do",
            met.connections
        );
        ensure!(!met.named, "the client sent a server name");
        ensure!(
            tls::names(met.clients.first().map(Vec::as_slice), &scene.client.identity()),
            "who is the client?"
        );
        ensure!(scene.plain.accepted() == 0, "something came in clear");
        Ok(())
    });
}

/// W3C Trace Context 3.2.2: version 00, and neither id is all zeros.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
    lengths == [2, 32, 16, 2]
        && parts.iter().all(|part| hex(part))
        && parts[0] == "00"
        && parts[1..3].iter().all(|id| id.bytes().any(|b| b != b'0'))
}

#[test]
fn a_server_without_a_good_certificate_gets_no_byte() {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let impostor = scene.impostor(scene.good()?, Conduct::Gather)?;
        let (authority, web) = (&scene.authority, scene.web.identity());
        let other_domain = web.replace("cluster.local", "other.example");
        let issue = |names: &[&str], validity| authority.issue(names, validity);
        let cases = [
            (
                "a foreign root",
                Authority::stranger()?.svid(&web)?,
                "UnknownIssuer",
            ),
            ("expired", issue(&[&web], Validity::Yesterday)?, "expired"),
            (
                "not yet valid",
                issue(&[&web], Validity::Tomorrow)?,
                "not valid yet",
            ),
            (
                "no URI",
                issue(&["web.demo.svc.cluster.local"], Validity::Today)?,
                "no URI among its names",
            ),
            (
                "two URIs",
                issue(&[&web, &other_domain], Validity::Today)?,
                "more than one URI",
            ),
            (
                "another trust domain",
                authority.svid(&other_domain)?,
                "expected spiffe://cluster.local",
            ),
        ];
        for (what, svid, error) in cases {
            impostor.present(scene.config(&svid)?, Conduct::Gather);
            let line = scene.reset(scene.web.addr(8080)).context(what)?;
            ensure!(line.field("error").contains(error), "{what}: {line}");
            ensure!(
                line.field("error").contains(&scene.web.addr(HBONE).to_string()),
                "{what}: {line}"
            );
            wait_until("the handshake's end", LIMIT, || !impostor.met().failed.is_empty())?;
            let met = impostor.met();
            ensure!(
                met.clients.is_empty() && met.plaintext.is_empty(),
                "{what}: {met:?}"
            );
        }
        let flags = (scene.failed("TLS_FAILURE")?, scene.failed("IDENTITY_ERROR")?);
        ensure!(flags == (3.0, 3.0), "{flags:?}");
        ensure!(scene.plain.accepted() == 0, "something came in clear");
        Ok(())
    });
}

#[test]
fn the_access_line_names_the_identity_that_was_proved() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let web = world.pod("b", stranger("web").label("app", "web"))?;
        let another = "spiffe://cluster.local/ns/demo/sa/another-of-the-service";
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        world.mesh_mut().services[0]["subjectAltNames"] = json!([another]);
        let scene = Scene::with(world, client, web)?;
        scene.impostor(scene.config(&scene.authority.svid(another)?)?, Conduct::Echo)?;
        let app = scene.client.connect("10.96.0.10:80".parse()?)?;
        let local = app.local_addr()?;
        ensure!(ask(app, MARKER)? == MARKER);
        let line = scene.line_of(local)?;
        ensure!(line.is_ok() && line.field("dst.identity") == another, "{line}");
        // What the service adds is not good for the pod's own address.
        let line = scene.reset(scene.web.addr(8080))?;
        ensure!(
            line.field("error").contains(&format!("proved to be {another}")),
            "{line}"
        );
        Ok(())
    });
}
