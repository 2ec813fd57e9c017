//! The table, the exit codes, and agents that misbehave.

use clap::Parser;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::telemetry::status::{
    CertificateStatus, ConnectionStatus, ConnectionsStatus, MeshStatus, NriState, NriStatus, PodState,
    PodStatus, ProgramStatus, SameNodeStatus, StartingState, StartingStatus, TrustStatus,
};

fn pod(workload: &str, address: &str, state: PodState, message: Option<&str>) -> PodStatus {
    PodStatus {
        workload: workload.to_owned(),
        namespace: "demo".to_owned(),
        addresses: address.parse().into_iter().collect(),
        netns: format!("/run/netns/{workload}"),
        identity: format!("spiffe://cluster.local/ns/demo/sa/{workload}"),
        state,
        message: message.map(str::to_owned),
    }
}

fn healthy() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        pid: 7,
        node: "a".to_owned(),
        uptime_seconds: 11_520,
        ready: true,
        reason: None,
        workers: 2,
        mesh: MeshStatus {
            source: "mesh.yaml".to_owned(),
            revision: 3,
            loaded_at: Some("2026-08-20T11:05:09Z".to_owned()),
            age_seconds: Some(12),
            workloads: 5,
            services: 1,
            policies: 0,
            last_error: None,
        },
        programs: vec![ProgramStatus {
            name: "connect4".to_owned(),
            kind: "cgroup_sock_addr".to_owned(),
            attached_to: "/sys/fs/cgroup".to_owned(),
            id: 71,
        }],
        expected_pods: 2,
        captured_pods: 2,
        pods: vec![
            pod("web", "fd00:244:1::11", PodState::Captured, None),
            pod("curl", "10.244.1.2", PodState::Captured, None),
        ],
        certificates: vec![CertificateStatus {
            identity: "spiffe://cluster.local/ns/demo/sa/curl".to_owned(),
            serial: "0a1b".to_owned(),
            age_seconds: 3_600,
            expires_in_seconds: 82_800,
            ..CertificateStatus::default()
        }],
        trust: TrustStatus {
            roots: 1,
            ..TrustStatus::default()
        },
        connections: ConnectionsStatus {
            open: 2,
            list: vec![ConnectionStatus {
                direction: "outbound".to_owned(),
                source: "10.244.1.2:41000".parse().ok(),
                destination: "10.244.2.2:8080".parse().ok(),
                service: Some("web.demo.svc.cluster.local".to_owned()),
                identity: None,
                open_seconds: 75,
                request_bytes: 84,
                response_bytes: 3_500_000,
            }],
        },
        same_node: SameNodeStatus::default(),
        nri: NriStatus::default(),
        starting: StartingStatus::default(),
    }
}

#[test]
fn the_table_says_from_when_on_pods_that_start_are_held() {
    let line = |state, message: Option<&str>| {
        let status = Status {
            starting: StartingStatus {
                state,
                message: message.map(str::to_owned),
            },
            ..healthy()
        };
        let text = table::render(&status, false);
        text.lines()
            .find(|line| line.contains("that start"))
            .map(str::to_owned)
    };
    for (line, expect) in [
        (line(StartingState::Off, None), None),
        (
            line(StartingState::Unseen, None),
            Some("✓ pods that start are held until their capture"),
        ),
        (
            line(StartingState::Seen, Some("they lie elsewhere")),
            Some(
                "… pods that start are held once they are seen, and an app may be faster: they lie elsewhere",
            ),
        ),
        (
            line(StartingState::Failed, Some("too many")),
            Some("✗ pods that start are not all held: too many"),
        ),
    ] {
        assert_eq!(line.as_deref(), expect);
    }
}

#[test]
fn the_table_says_whether_the_runtime_waits_for_captures() {
    let line = |state, runtime: Option<&str>, message: Option<&str>| {
        let status = Status {
            nri: NriStatus {
                state,
                socket: "/run/nri.sock".to_owned(),
                runtime: runtime.map(str::to_owned),
                message: message.map(str::to_owned),
            },
            ..healthy()
        };
        let text = table::render(&status, false);
        text.lines().find(|line| line.contains("NRI")).map(str::to_owned)
    };
    for (line, expect) in [
        (line(NriState::Off, None, None), None),
        (
            line(NriState::Connected, Some("containerd 2.1"), None),
            Some("✓ containerd 2.1 waits for the capture of pods that start (NRI)"),
        ),
        (
            line(NriState::Absent, None, Some("connect")),
            Some("✓ no NRI at /run/nri.sock: what pods dial while they start is refused until their capture"),
        ),
        (
            line(
                NriState::Refused,
                None,
                Some("the runtime has ended the connection"),
            ),
            Some("… no NRI at /run/nri.sock: the runtime has ended the connection"),
        ),
    ] {
        assert_eq!(line.as_deref(), expect);
    }
}

#[test]
fn the_table_of_a_healthy_agent() {
    assert_eq!(
        table::render(&healthy(), false),
        "\
✓ weft 0.1.0 on node a, pid 7, up 3h12m, 2 workers: ready

MESH
✓ mesh.yaml, loaded 12s ago: 5 workloads, 1 service, 0 policies

PODS  2 of 2 captured
  NAMESPACE  WORKLOAD  ADDRESSES       IDENTITY                                STATE
✓ demo       curl      10.244.1.2      spiffe://cluster.local/ns/demo/sa/curl  captured
✓ demo       web       fd00:244:1::11  spiffe://cluster.local/ns/demo/sa/web   captured

PROGRAMS
  NAME      KIND              ATTACHED TO     ID
✓ connect4  cgroup_sock_addr  /sys/fs/cgroup  71

CERTIFICATES
  IDENTITY                                AGE    EXPIRES IN  SERIAL
✓ spiffe://cluster.local/ns/demo/sa/curl  1h00m  23h00m      0a1b

CONNECTIONS  2 open
  DIRECTION  SOURCE            DESTINATION      SERVICE                     PEER  OPEN   REQUEST  RESPONSE
✓ outbound   10.244.1.2:41000  10.244.2.2:8080  web.demo.svc.cluster.local  -     1m15s  84 B     3.3 MiB
  and 1 more (-o json)
"
    );
}

#[test]
fn the_table_of_an_agent_in_trouble() {
    let status = Status {
        ready: false,
        reason: Some("1 of 2 pods is not captured".to_owned()),
        workers: 1,
        expected_pods: 2,
        captured_pods: 1,
        pods: vec![
            pod("late", "", PodState::Failed, Some("no such namespace")),
            pod("next", "", PodState::Pending, None),
        ],
        mesh: MeshStatus {
            source: "mesh.yaml".to_owned(),
            last_error: Some("mesh.yaml:3:1: no".to_owned()),
            ..MeshStatus::default()
        },
        programs: vec![ProgramStatus {
            name: "connect4".to_owned(),
            ..ProgramStatus::default()
        }],
        certificates: vec![CertificateStatus {
            expires_in_seconds: -5,
            ..CertificateStatus::default()
        }],
        connections: ConnectionsStatus::default(),
        ..healthy()
    };
    assert_eq!(
        table::render(&status, false),
        "\
✗ weft 0.1.0 on node a, pid 7, up 3h12m, 1 worker: not ready: 1 of 2 pods is not captured

MESH
✗ mesh.yaml: nothing loaded yet
✗ the newest was not taken: mesh.yaml:3:1: no

PODS  1 of 2 captured
  NAMESPACE  WORKLOAD  ADDRESSES  IDENTITY                                STATE
✗ demo       late      -          spiffe://cluster.local/ns/demo/sa/late  failed: no such namespace
… demo       next      -          spiffe://cluster.local/ns/demo/sa/next  pending

PROGRAMS
  NAME      KIND  ATTACHED TO   ID
✗ connect4  -     not attached  0

CERTIFICATES
  IDENTITY  AGE  EXPIRES IN  SERIAL
✗ -         0s   expired     -

CONNECTIONS  0 open
  none
"
    );
}

#[test]
fn colours_are_on_the_marks_only_where_asked() {
    let plain = table::render(&healthy(), false);
    assert!(!plain.contains('\u{1b}'));
    let coloured = table::render(&healthy(), true);
    assert!(coloured.starts_with("\u{1b}[32m✓\u{1b}[0m weft"), "{coloured}");
    let stripped = ["\u{1b}[32m", "\u{1b}[1m", "\u{1b}[0m"]
        .iter()
        .fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn odd_values_do_not_steer_the_terminal_or_panic() {
    let mut status = healthy();
    status.node = "\u{1b}]0;title\u{7}\n✓ forged".to_owned();
    status.uptime_seconds = u64::MAX;
    status.pods[0].workload = "ワークロード\r\n".repeat(50);
    status.certificates[0].expires_in_seconds = i64::MIN;
    status.certificates[0].age_seconds = u64::MAX;
    status.connections.open = usize::MAX;
    status.connections.list[0].request_bytes = u64::MAX;
    let text = table::render(&status, false);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("✓ forged")), "{text}");
    assert!(text.contains("16.0 EiB"), "{text}");
    let _ = table::render(&Status::default(), true);
}

#[test]
fn ages_and_sizes() {
    for (seconds, expect) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m00s"),
        (3_599, "59m59s"),
        (3_600, "1h00m"),
        (86_399, "23h59m"),
        (86_400, "1d00h"),
        (190_000, "2d04h"),
    ] {
        assert_eq!(table::age(seconds), expect);
    }
    for (bytes, expect) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3_500_000, "3.3 MiB"),
        (1 << 40, "1.0 TiB"),
    ] {
        assert_eq!(table::size(bytes), expect);
    }
}

/// The flags as a person gives them.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    status: StatusArgs,
}

fn args(flags: &[&str]) -> StatusArgs {
    let line = std::iter::once("weft").chain(flags.iter().copied());
    Cli::try_parse_from(line)
        .map(|cli| cli.status)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn flags() {
    let default = args(&[]);
    assert_eq!(
        (default.address.to_string().as_str(), default.output),
        ("127.0.0.1:15000", Output::Table)
    );
    assert_eq!(args(&["-o", "json"]).output, Output::Json);
    assert!(args(&["--no-color"]).no_color);
    assert_eq!(args(&["--address", "[::1]:1"]).address.port(), 1);
    assert!(Cli::try_parse_from(["weft", "--address", "nowhere"]).is_err());
}

/// Answers one connection with `answer` and gives its address.
async fn agent(answer: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("the client comes");
        let mut request = [0; 1024];
        let _ = client.read(&mut request).await;
        let _ = client.write_all(answer.as_bytes()).await;
    });
    addr
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What `weft status` prints on stdout and stderr, and how it ends.
async fn printed(address: SocketAddr, output: Output) -> (String, String, Health) {
    let args = StatusArgs {
        address,
        output,
        no_color: false,
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let health = print(&args, false, &mut out, &mut err)
        .await
        .expect("a vector takes everything");
    (
        String::from_utf8_lossy(&out).into_owned(),
        String::from_utf8_lossy(&err).into_owned(),
        health,
    )
}

fn json(status: &Status) -> String {
    serde_json::to_string(status).expect("serialises")
}

#[tokio::test]
async fn a_healthy_agent_ends_in_0() {
    let addr = agent(http("200 OK", &json(&healthy()))).await;
    let (out, err, health) = printed(addr, Output::Table).await;
    assert_eq!(
        (out, err, health),
        (table::render(&healthy(), false), String::new(), Health::Healthy)
    );
}

#[tokio::test]
async fn json_is_the_answer_as_it_came() {
    let answer = json(&healthy()).replacen('{', "{\"newer\":[1,2],", 1);
    let addr = agent(http("200 OK", &answer)).await;
    let (out, _, health) = printed(addr, Output::Json).await;
    assert_eq!((out, health), (answer, Health::Healthy));
}

#[tokio::test]
async fn a_pod_that_is_not_captured_ends_in_1() {
    let status = Status {
        captured_pods: 1,
        ..healthy()
    };
    let addr = agent(http("200 OK", &json(&status))).await;
    assert_eq!(printed(addr, Output::Table).await.2, Health::Unhealthy);
    let status = Status {
        ready: false,
        ..healthy()
    };
    let addr = agent(http("200 OK", &json(&status))).await;
    assert_eq!(printed(addr, Output::Json).await.2, Health::Unhealthy);
}

#[tokio::test]
async fn no_agent_ends_in_2_with_the_mend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    drop(listener);
    let (out, err, health) = printed(addr, Output::Table).await;
    assert_eq!((out.as_str(), health), ("", Health::NoAgent));
    assert!(
        err.starts_with(&format!("no agent answers on {addr}: Connection refused")),
        "{err}"
    );
    assert!(err.contains("Is the agent running?"), "{err}");
}

#[tokio::test]
async fn whatever_else_answers_ends_in_2() {
    let half = http("200 OK", &json(&healthy()));
    let half = half[..half.len() / 2].to_owned();
    for (answer, why) in [
        (
            http("404 Not Found", ""),
            "answered 404 Not Found: it is not an agent's admin port",
        ),
        (http("200 OK", "<html>"), "is not understood"),
        (http("200 OK", "[1]"), "is not understood"),
        ("220 mail ready\r\n".to_owned(), "broke"),
        (half, "cannot be read"),
        (String::new(), "broke"),
    ] {
        let addr = agent(answer).await;
        let (out, err, health) = printed(addr, Output::Table).await;
        assert_eq!((out.as_str(), health), ("", Health::NoAgent), "{why}: {err}");
        assert!(err.contains(why), "{why}: {err}");
    }
}

#[test]
fn exit_codes() {
    let code = |health: Health| format!("{:?}", ExitCode::from(health));
    assert_eq!(code(Health::Healthy), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(code(Health::Unhealthy), format!("{:?}", ExitCode::from(1)));
    assert_eq!(code(Health::NoAgent), format!("{:?}", ExitCode::from(2)));
}
