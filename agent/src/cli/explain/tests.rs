//! The page, the exit codes, mesh files, and agents that answer otherwise.

use clap::Parser;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::telemetry::explain::{DryRunMatch, End, EndpointStanding, Hop, HopKind, Judgement, Security, Way};

fn end(name: &str, address: &str, node: &str) -> End {
    End {
        workload: Some(format!("demo/{name}-1")),
        address: address.parse().ok(),
        node: node.to_owned(),
        identity: format!("spiffe://cluster.local/ns/demo/sa/{name}"),
    }
}

fn tunnel(verdict: Judgement) -> Hop {
    Hop {
        to: Some(end("web", "10.2.0.1", "b")),
        kind: HopKind::Tunnel,
        destination: "10.2.0.1:8080".parse().ok(),
        gateway: "10.2.0.1:15008".parse().ok(),
        reason: "both ends are in the mesh".to_owned(),
        identities: vec!["spiffe://cluster.local/ns/demo/sa/web".to_owned()],
        security: Security::MutualTls,
        same_node: None,
        network_policy: Some("must let 10.1.0.1 reach 10.2.0.1 on TCP port 15008".to_owned()),
        verdict: Some(verdict),
    }
}

fn explanation(ways: Vec<Way>) -> Explanation {
    Explanation {
        source: end("curl", "10.1.0.1", "a"),
        asked: "web:80".to_owned(),
        dialled: vec![SocketAddr::from(([10, 96, 0, 1], 80))],
        service: Some("demo/web.demo.svc.cluster.local".to_owned()),
        allowed: ways.iter().all(|way| way.allowed),
        endpoints: Vec::new(),
        more_endpoints: 0,
        ways,
        more_ways: 0,
    }
}

fn allowed() -> Way {
    Way {
        allowed: true,
        hops: vec![tunnel(Judgement {
            allowed: true,
            reason: "allowed by policy demo/web".to_owned(),
            policy: Some("demo/web".to_owned()),
            unseen: Vec::new(),
            dry_run_matches: vec![DryRunMatch {
                policy: "demo/trial".to_owned(),
                action: "DENY".to_owned(),
            }],
            if_enforced: Some("denied by policy demo/trial".to_owned()),
        })],
    }
}

#[test]
fn a_connection_that_is_allowed() {
    assert_eq!(
        table::render(&explanation(vec![allowed()]), false),
        "\
✓ demo/curl-1 may reach web:80

SOURCE
    workload    demo/curl-1 on node a
    address     10.1.0.1
    identity    spiffe://cluster.local/ns/demo/sa/curl

ROUTE  10.96.0.1:80: service demo/web.demo.svc.cluster.local
✓ demo/web-1 at 10.2.0.1:8080
    route       tunnel to 10.2.0.1:15008, mutual TLS: both ends are in the mesh
    must prove  spiffe://cluster.local/ns/demo/sa/web
    node        b
    network     a NetworkPolicy must let 10.1.0.1 reach 10.2.0.1 on TCP port 15008
    verdict     allowed by policy demo/web
    dry run     DENY policy demo/trial matches
    dry run     if it were enforced: denied by policy demo/trial
"
    );
}

#[test]
fn connections_that_are_refused() {
    let denied = Way {
        allowed: false,
        hops: vec![Hop {
            same_node: Some("tunnel".to_owned()),
            ..tunnel(Judgement {
                reason: "no ALLOW policy matched: demo/a, demo/b".to_owned(),
                unseen: vec!["demo/b: paths".to_owned()],
                ..Judgement::default()
            })
        }],
    };
    let early = Way {
        allowed: false,
        hops: vec![Hop {
            kind: HopKind::Refused,
            reason: "no healthy endpoint".to_owned(),
            security: Security::Nothing,
            ..Hop::default()
        }],
    };
    let mut mixed = explanation(vec![denied, early, allowed()]);
    mixed.more_ways = 3;
    mixed.source.identity = String::new();
    let endpoint = |name: &str, address: &str, standing: &str| EndpointStanding {
        workload: format!("demo/{name}"),
        address: address.parse().ok(),
        chosen: standing == "chosen",
        standing: standing.to_owned(),
    };
    mixed.endpoints = vec![
        endpoint("web-1", "10.2.0.1:8080", "chosen"),
        endpoint("web-10", "", "it is not healthy"),
    ];
    mixed.more_endpoints = 2;
    let text = table::render(&mixed, false);
    for expect in [
        "\nENDPOINTS\n  WORKLOAD     ADDRESS        STANDING\n\
         ✓ demo/web-1   10.2.0.1:8080  chosen\n\
         … demo/web-10  -              it is not healthy\n… and 2 more\n",
        "✗ demo/curl-1 is refused on 2 of 6 ways to web:80\n",
        "    identity    none: it is not in the mesh, so it can prove nothing\n",
        "✗ demo/web-1 at 10.2.0.1:8080\n",
        "    same node   tunnel\n",
        "    verdict     no ALLOW policy matched: demo/a, demo/b\n",
        "    unseen      demo/b: paths (only a waypoint sees what these look at)\n",
        "✗ refused before it leaves the source\n    route       no healthy endpoint\n",
        "✓ demo/web-1 at 10.2.0.1:8080\n",
        "… and 3 more ways\n",
    ] {
        assert!(text.contains(expect), "no {expect:?} in\n{text}");
    }
    let none = explanation(vec![Way::default()]);
    assert!(table::render(&none, false).starts_with("✗ demo/curl-1 is refused at web:80\n"));
}

#[test]
fn odd_values_do_not_steer_the_terminal() {
    let mut odd = explanation(vec![allowed()]);
    odd.asked = "\u{1b}]0;title\u{7}\n✓ forged".to_owned();
    odd.ways[0].hops[0].reason = "\u{1b}[31m\n✓ forged".to_owned();
    let text = table::render(&odd, false);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("✓ forged")), "{text}");
}

/// The flags as a person gives them.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    explain: ExplainArgs,
}

fn args(flags: &[&str]) -> Option<ExplainArgs> {
    let line = std::iter::once("weft").chain(flags.iter().copied());
    Cli::try_parse_from(line).map(|cli| cli.explain).ok()
}

/// What `weft explain` prints on stdout and stderr, and how it ends.
async fn printed(flags: &[&str]) -> (String, String, Answer) {
    let args = args(flags).expect("good flags");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let answer = print(&args, false, &mut out, &mut err)
        .await
        .expect("a vector takes everything");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out), text(&err), answer)
}

#[test]
fn flags_and_exit_codes() {
    assert!(args(&["--from", "a/b"]).is_none() && args(&["--to", "c:1"]).is_none());
    let both = [
        "--from",
        "a/b",
        "--to",
        "c:1",
        "--mesh-file",
        "m",
        "--address",
        "[::1]:1",
    ];
    assert!(args(&both).is_none() && args(&both[..6]).is_some());
    let code = |answer: Answer| format!("{:?}", ExitCode::from(answer));
    let expect = [0, 1, 2].map(|code| format!("{:?}", ExitCode::from(code)));
    assert_eq!([Answer::Allowed, Answer::Refused, Answer::None].map(code), expect);
}

#[tokio::test]
async fn a_mesh_file_answers_without_an_agent() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mesh.example.yaml");
    let ask = async |from, to| printed(&["--mesh-file", example, "--from", from, "--to", to]).await;
    let (out, err, answer) = ask("demo/shop-1", "10.96.0.10:80").await;
    assert_eq!((err.as_str(), answer), ("", Answer::Allowed));
    assert!(out.contains("allowed by policy demo/cart-from-shop"), "{out}");
    let (out, _, answer) = ask("demo/shop-1", "10.244.2.10:9999").await;
    assert_eq!(answer, Answer::Refused);
    assert!(
        out.contains("no ALLOW policy matched: demo/cart-from-shop"),
        "{out}"
    );
    let (out, err, answer) = ask("demo/nobody", "10.96.0.10:80").await;
    assert_eq!((out.as_str(), answer), ("", Answer::None));
    assert!(err.starts_with("the mesh has no workload `demo/nobody`"), "{err}");
    let (_, err, answer) = printed(&["--mesh-file", "/nowhere", "--from", "a/b", "--to", "c:1"]).await;
    assert_eq!(answer, Answer::None);
    assert!(err.starts_with("cannot read the mesh file /nowhere"), "{err}");
}

/// Answers one connection with `answer`; what was asked comes back.
async fn agent(answer: String) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let asked = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("the client comes");
        let mut request = [0; 1024];
        let size = client.read(&mut request).await.unwrap_or_default();
        let _ = client.write_all(answer.as_bytes()).await;
        String::from_utf8_lossy(&request[..size]).into_owned()
    });
    (addr, asked)
}

async fn asked(code: &str, body: &str) -> (String, String, Answer, String) {
    let length = body.len();
    let (addr, asked) = agent(format!(
        "HTTP/1.1 {code}\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
    .await;
    let addr = addr.to_string();
    let (out, err, answer) = printed(&[
        "--address",
        &addr,
        "--from",
        "a/b",
        "--to",
        "[::1]:1",
        "-o",
        "json",
    ])
    .await;
    (out, err, answer, asked.await.expect("the agent ends"))
}

#[tokio::test]
async fn an_agent_answers() {
    let said = serde_json::to_string(&explanation(vec![allowed()])).expect("serialises");
    let (out, err, answer, asked) = asked("200 OK", &said).await;
    assert_eq!((err.as_str(), answer), ("", Answer::Allowed));
    assert!(
        asked.starts_with("GET /explain?from=a/b&to=%5B::1%5D:1 HTTP/1.1\r\n"),
        "{asked}"
    );
    let read: Explanation = serde_json::from_str(&out).expect("JSON");
    assert_eq!(read, explanation(vec![allowed()]));
}

#[tokio::test]
async fn an_agent_that_does_not_know_ends_in_2() {
    for (code, body, expect) in [
        ("400 Bad Request", "no workload\n", "no workload\n"),
        (
            "404 Not Found",
            "",
            "answered 404 Not Found: it is not an agent's admin port",
        ),
        ("200 OK", "<html>", "is not understood"),
    ] {
        let (out, err, answer, _) = asked(code, body).await;
        assert_eq!((out.as_str(), answer), ("", Answer::None));
        assert!(err.contains(expect), "{err}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let (_, err, answer) = printed(&["--address", &addr, "--from", "a/b", "--to", "c:1"]).await;
    assert_eq!(answer, Answer::None);
    assert!(
        err.contains("no agent answers on") && err.contains("weft explain --address"),
        "{err}"
    );
}
