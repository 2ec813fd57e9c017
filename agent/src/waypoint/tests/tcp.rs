//! What is no HTTP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::world::{App, Plan, key, soon, to_web, until};
use crate::mesh::{
    Action, AppProtocol, Clause, Match, Policy, PolicyKey, PortMapping, Rule, Scope, StringMatch,
};

/// An app that greets first, and sends back what it gets.
async fn greeter(plan: &Plan, host: u8) -> SocketAddr {
    let listener = TcpListener::bind((plan.ip(host), 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                tcp.write_all(b"220 hello\r\n").await.unwrap();
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

/// Puts a pod at this address behind a service.
fn back(plan: &mut Plan, service: &str, addr: SocketAddr) {
    let mut pod = plan.pod(&format!("{service}-{}", addr.port()), 0);
    pod.addresses = vec![addr.ip()];
    let port = PortMapping {
        service_port: 80,
        target_port: addr.port(),
    };
    pod.services.insert(key(service), vec![port]);
    plan.parts.workloads.push(pod);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    for declared in [None, Some(AppProtocol::Tcp)] {
        let mut plan = Plan::new();
        plan.web(&[]);
        let addr = greeter(&plan, 60).await;
        back(&mut plan, "web", addr);
        let web = plan.parts.services.last_mut().unwrap();
        web.app_protocols.extend(declared.map(|it| (80, it)));
        let world = plan.start().await;
        let mut io = world.connect(world.web).await.unwrap();
        let mut greeting = [0; 11];
        soon(io.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(greeting, *b"220 hello\r\n");
        io.write_all(b"QUIT").await.unwrap();
        io.shutdown().await.unwrap();
        let mut rest = String::new();
        soon(io.read_to_string(&mut rest)).await.unwrap();
        assert_eq!(rest, "QUIT");
        until(|| world.shared.connections.len() == 0).await;
        let counted = world.shared.metrics.encode();
        for (name, value) in [
            ("connections_opened", 1),
            ("sent_bytes", 15),
            ("received_bytes", 4),
        ] {
            let begins = format!("istio_tcp_{name}_total{{reporter=\"waypoint\",source_workload=\"curl\",");
            let ends = format!("}} {value}");
            let line = |line: &str| line.starts_with(&begins) && line.ends_with(&ends);
            assert!(counted.lines().any(line), "{begins} {ends}\n{counted}");
        }
        let agents = ["reporter=\"source\"", "reporter=\"destination\""];
        assert!(!agents.iter().any(|it| counted.contains(it)), "{counted}");
    }
}

#[tokio::test]
async fn where_nothing_but_tcp_is_spoken_a_client_is_told_that_nobody_is_there() {
    let mut plan = Plan::new();
    plan.web(&[]);
    let nobody = SocketAddr::new(plan.ip(61), 9);
    back(&mut plan, "web", nobody);
    let web = plan.parts.services.last_mut().unwrap();
    web.app_protocols.insert(80, AppProtocol::Tcp);
    let world = plan.start().await;
    let refused = world.connect(world.web).await.err().unwrap().to_string();
    assert!(refused.ends_with("answered 503"), "{refused}");
}

/// The first message of a TLS client that asks for this name.
fn hello(name: &'static str) -> Vec<u8> {
    let provider = crate::net::tls::crypto_provider();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn tls_goes_where_its_name_says_untouched() {
    let mut plan = Plan::new();
    plan.web(&[]);
    let (one, two) = (greeter(&plan, 60).await, greeter(&plan, 61).await);
    back(&mut plan, "web", one);
    let other = plan.service("other", 101, &[80]);
    plan.parts.services.push(other);
    back(&mut plan, "other", two);
    let to = |name| json!([{ "to": { "service": { "service": key(name), "port": 80 } }, "weight": 1 }]);
    plan.routes(json!({ "tls": { "80": [
        { "name": "one", "hosts": [{ "exact": "one.example" }], "backends": to("web") },
        { "name": "two", "hosts": [{ "under": ".two.example" }], "backends": to("other") },
    ] } }));
    let world = plan.start().await;
    for (name, leads) in [
        ("one.example", true),
        ("a.two.example", true),
        ("three.example", false),
    ] {
        let mut io = world.connect(world.web).await.unwrap();
        let sent = hello(name);
        io.write_all(&sent).await.unwrap();
        let mut echoed = vec![0; 11 + sent.len()];
        let read = soon(io.read_exact(&mut echoed)).await;
        assert_eq!(read.is_ok(), leads, "{name}");
        if leads {
            assert_eq!(echoed[11..], sent);
        }
    }
}

#[tokio::test]
async fn a_change_of_policy_ends_what_it_refuses() {
    let mut plan = Plan::new();
    plan.web(&[]);
    let addr = greeter(&plan, 60).await;
    back(&mut plan, "web", addr);
    let before = plan.parts.clone();
    let world = plan.start().await;
    let mut io = world.connect(world.web).await.unwrap();
    let mut greeting = [0; 11];
    soon(io.read_exact(&mut greeting)).await.unwrap();
    let mut after = before.clone();
    after.policies.push(deny_curl("demo/no-curl"));
    world.take(after);
    assert!(soon(io.read_exact(&mut greeting)).await.is_err());
    // And it is not let in again, until the policy is gone.
    let mut io = world.connect(world.web).await.unwrap();
    assert!(soon(io.read_exact(&mut greeting)).await.is_err());
    world.take(before);
    let mut io = world.connect(world.web).await.unwrap();
    soon(io.read_exact(&mut greeting)).await.unwrap();
}

fn deny_curl(key: &str) -> Policy {
    let (namespace, name) = key.split_once('/').unwrap();
    let principal = StringMatch::Exact("cluster.local/ns/demo/sa/curl".into());
    let matches = vec![Match {
        principals: vec![principal],
        ..Match::default()
    }];
    Policy {
        key: PolicyKey {
            namespace: namespace.into(),
            name: name.into(),
        },
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Rule {
            clauses: vec![Clause { matches }],
        }],
        dry_run: false,
    }
}

#[tokio::test]
async fn silence_on_a_port_of_http_is_no_tcp() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    plan.settings.sniff_timeout = Duration::from_millis(1);
    let web = plan.parts.services.last_mut().unwrap();
    web.app_protocols.insert(80, AppProtocol::Http11);
    plan.rules(json!([{ "rule": 0 }]), json!([to_web("all")]));
    let world = plan.start().await;
    let mut sender = world.http1().await;
    until(|| world.pool.counts().1 == 1).await;
    let response = soon(sender.send_request(super::world::get("/"))).await.unwrap();
    assert_eq!(response.status(), 200);
}
