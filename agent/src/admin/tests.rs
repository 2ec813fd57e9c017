//! The ports over loopback, asked byte by byte.

use std::sync::Mutex;

use http::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::{answer::query, *};
use crate::telemetry::{DroppedLines, sample, status::PodStatus};

/// A source whose readiness the test sets.
struct Source(Mutex<Result<(), String>>);

impl StatusSource for Source {
    fn status(&self) -> Status {
        let pods = vec![PodStatus {
            workload: "web".to_owned(),
            ..PodStatus::default()
        }];
        Status {
            node: "a".to_owned(),
            ready: self.ready().is_ok(),
            pods,
            ..Status::default()
        }
    }

    fn ready(&self) -> Result<(), String> {
        self.0.lock().map_err(|_| "poisoned".to_owned())?.clone()
    }

    fn explain(&self, from: &str, to: &str) -> Result<Explanation, ExplainError> {
        let asked = format!("{from} {to}");
        match from {
            "nobody" => Err(ExplainError::NoSuchWorkload(asked)),
            _ => Ok(Explanation {
                asked,
                ..Explanation::default()
            }),
        }
    }

    fn config(&self) -> serde_json::Value {
        serde_json::json!({ "workers": 2 })
    }
}

/// Three ports that are served.
struct Served {
    addrs: AdminAddrs,
    source: Arc<Source>,
    admin: Admin,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn served() -> Served {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let wanted = AdminAddrs {
        admin: any,
        metrics: any,
        ready: any,
    };
    let listeners = Listeners::bind(&wanted).await.expect("loopback has free ports");
    let addrs = listeners.addrs().expect("bound");
    let source = Arc::new(Source(Mutex::new(Ok(()))));
    let admin = Admin {
        source: source.clone(),
        metrics: Metrics::new("test", DroppedLines::default()),
        filter: None,
        quit: CancellationToken::new(),
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(listeners.serve(admin.clone(), shutdown.clone()));
    Served {
        addrs,
        source,
        admin,
        shutdown,
        task,
    }
}

/// Sends `request` as it is and reads until the port closes.
async fn exchange(addr: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("the port is open");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end: what matters is what was read.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status code, the header and the body.
async fn ask(addr: SocketAddr, method: &str, target: &str) -> (u16, String, String) {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = exchange(addr, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a header");
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status code");
    (code, head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn readiness_follows_the_source_and_says_why_not() {
    let served = served().await;
    let ready = served.addrs.ready;
    let (code, _, body) = ask(ready, "GET", "/healthz/ready").await;
    assert_eq!((code, body.as_str()), (200, "ready\n"));
    *served.source.0.lock().expect("unpoisoned") = Err("no mesh has been loaded yet".to_owned());
    let (code, _, body) = ask(ready, "GET", "/healthz/ready").await;
    assert_eq!(
        (code, body.as_str()),
        (503, "not ready: no mesh has been loaded yet\n")
    );
}

#[tokio::test]
async fn metrics_are_what_prometheus_scrapes() {
    let served = served().await;
    drop(served.admin.metrics.open(&sample::outbound()));
    for path in ["/metrics", "/stats/prometheus"] {
        let (code, head, body) = ask(served.addrs.metrics, "GET", path).await;
        assert_eq!(code, 200);
        let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert!(head.contains(content_type), "{head}");
        assert!(
            body.contains("istio_tcp_connections_opened_total{reporter=\"source\""),
            "{body}"
        );
        assert!(body.ends_with("# EOF\n"));
    }
}

#[tokio::test]
async fn status_and_config_are_json() {
    let served = served().await;
    let (code, head, body) = ask(served.addrs.admin, "GET", "/status").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: application/json"), "{head}");
    let status: Status = serde_json::from_str(&body).expect("a status");
    assert_eq!(status, served.source.status());
    let (_, _, body) = ask(served.addrs.admin, "GET", "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (&dump["config"]["workers"], &dump["status"]["node"]),
        (&2.into(), &"a".into())
    );
}

#[tokio::test]
async fn a_connection_is_explained_or_the_question_is_refused() {
    let served = served().await;
    let (code, head, body) = ask(served.addrs.admin, "GET", "/explain?from=demo/a&to=%5B::1%5D:1").await;
    assert!(code == 200 && head.contains("application/json"), "{head}");
    let explanation: Explanation = serde_json::from_str(&body).expect("JSON");
    assert_eq!(explanation.asked, "demo/a [::1]:1");
    for (target, expect) in [
        ("/explain", "write /explain?from="),
        ("/explain?from=a", "write /explain?from="),
        ("/explain?from=nobody&to=b:1", "the mesh has no workload"),
    ] {
        let (code, _, body) = ask(served.addrs.admin, "GET", target).await;
        assert!(code == 400 && body.starts_with(expect), "{target}: {code} {body}");
    }
    let (code, ..) = ask(served.addrs.admin, "POST", "/explain?from=a&to=b:1").await;
    assert_eq!(code, 405);
}

#[tokio::test]
async fn what_is_where() {
    let served = served().await;
    let AdminAddrs {
        admin,
        metrics,
        ready,
    } = served.addrs;
    for (addr, method, target, expect) in [
        (admin, "GET", "/", 200),
        (admin, "HEAD", "/status", 200),
        (admin, "GET", "/status?pretty", 200),
        (admin, "GET", "/metrics", 404),
        (admin, "POST", "/status", 405),
        (admin, "GET", "/quitquitquit", 405),
        (admin, "DELETE", "/logging", 405),
        (admin, "GET", "/healthz/ready", 404),
        (admin, "GET", "/../status", 404),
        (metrics, "GET", "/", 404),
        (metrics, "POST", "/metrics", 405),
        (metrics, "POST", "/quitquitquit", 404),
        (metrics, "GET", "/config_dump", 404),
        (ready, "HEAD", "/healthz/ready", 200),
        (ready, "PUT", "/healthz/ready", 405),
        (ready, "POST", "/quitquitquit", 404),
        (ready, "GET", "/status", 404),
    ] {
        let (code, head, body) = ask(addr, method, target).await;
        assert_eq!(code, expect, "{method} {target}");
        assert_eq!(
            head.contains("\r\nallow: "),
            expect == 405,
            "{method} {target}: {head}"
        );
        assert_eq!(body.is_empty(), method == "HEAD", "{method} {target}: {body}");
    }
    assert!(!served.admin.quit.is_cancelled());
}

#[tokio::test]
async fn quitquitquit_asks_to_stop_and_is_answered() {
    let served = served().await;
    let (code, _, body) = ask(served.addrs.admin, "POST", "/quitquitquit").await;
    assert_eq!((code, body.as_str()), (200, "stopping\n"));
    assert!(served.admin.quit.is_cancelled());
}

#[tokio::test]
async fn shutdown_closes_the_ports() {
    let served = served().await;
    // A client that never finishes its request does not hold the shutdown up.
    let mut stalled = TcpStream::connect(served.addrs.admin).await.expect("open");
    stalled.write_all(b"GET / HT").await.expect("sent");
    served.shutdown.cancel();
    timeout(Duration::from_secs(5), served.task)
        .await
        .expect("ends in time")
        .expect("no panic");
    for addr in [served.addrs.admin, served.addrs.metrics, served.addrs.ready] {
        assert!(TcpStream::connect(addr).await.is_err(), "{addr} is still open");
    }
}

#[tokio::test]
async fn a_port_that_is_taken_says_which_and_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = taken.local_addr().expect("bound");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let error = Listeners::bind(&AdminAddrs {
        admin: any,
        metrics: addr,
        ready: any,
    })
    .await;
    let text = error.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(
        text.starts_with(&format!("cannot listen on {addr} for metrics: ")),
        "{text}"
    );
    assert!(text.contains("choose another address"), "{text}");
}

#[tokio::test]
async fn garbage_is_answered_with_400_or_nothing_and_others_are_served() {
    let served = served().await;
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(64 * 1024));
    for garbage in [
        "\r\n\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}",
        "GET",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &long,
    ] {
        let mut stream = TcpStream::connect(served.addrs.admin).await.expect("open");
        // The port may close while a long request is still being written.
        let _ = stream.write_all(garbage.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let refused = ["", "HTTP/1.1 400", "HTTP/1.1 414", "HTTP/1.1 431"];
        assert!(refused.iter().any(|start| answer.starts_with(start)), "{answer}");
        assert!(
            !answer.starts_with("HTTP/1.1 200"),
            "{garbage} was answered: {answer}"
        );
    }
    assert_eq!(ask(served.addrs.admin, "GET", "/").await.0, 200);
}

#[tokio::test]
async fn a_client_that_stalls_is_cut_off_and_the_slots_come_back() {
    let served = served().await;
    let mut stalled = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        let mut stream = TcpStream::connect(served.addrs.ready).await.expect("open");
        stream
            .write_all(b"GET /healthz/ready HTTP/1.1\r\n")
            .await
            .expect("sent");
        stalled.push(stream);
    }
    // The other ports are not affected, and this one answers once the header deadline has passed.
    assert_eq!(ask(served.addrs.admin, "GET", "/").await.0, 200);
    let patience = HEADER_DEADLINE + Duration::from_secs(5);
    let answer = timeout(patience, ask(served.addrs.ready, "GET", "/healthz/ready")).await;
    assert_eq!(answer.expect("a slot came back").0, 200);
}

#[test]
fn logging_reads_with_get_and_sets_with_post() {
    use tracing_subscriber::{EnvFilter, Registry, layer::SubscriberExt, reload};

    let (layer, handle) = reload::Layer::new(EnvFilter::new("info"));
    let _subscriber = Registry::default().with(layer);
    let admin = Admin {
        source: Arc::new(Source(Mutex::new(Ok(())))),
        metrics: Metrics::new("test", DroppedLines::default()),
        filter: Some(LogFilter::from(handle)),
        quit: CancellationToken::new(),
    };
    let ask = |method: Method, target: &str| {
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().expect("a target");
        answer(Port::Admin, &request, &admin).status().as_u16()
    };
    let current = || admin.filter.as_ref().map(LogFilter::current).unwrap_or_default();
    assert_eq!(
        (ask(Method::GET, "/logging"), current()),
        (200, "info".to_owned())
    );
    assert_eq!(
        (ask(Method::GET, "/logging?level=debug"), current()),
        (405, "info".to_owned())
    );
    assert_eq!(
        (ask(Method::POST, "/logging?level=debug"), current()),
        (200, "debug".to_owned())
    );
    assert_eq!(
        (ask(Method::POST, "/logging?level=loud"), current()),
        (400, "debug".to_owned())
    );
    assert_eq!(
        ask(Method::POST, "/logging?level=info,weft%3A%3Ahbone%3Ddebug"),
        200
    );
    assert!(current().contains("weft::hbone=debug"), "{}", current());
    assert_eq!(ask(Method::POST, "/logging?other=1"), 200);
}

#[test]
fn queries_are_decoded_without_panics() {
    let check = |text: &str, level: Option<&str>| {
        assert_eq!(query(text).get("level").map(String::as_str), level, "{text}");
    };
    check("", None);
    check("level", None);
    check("level=", Some(""));
    check("a=b&level=x%2Cy", Some("x,y"));
    check("level=%", Some("%"));
    check("level=%4", Some("%4"));
    check("level=%zz%41", Some("%zzA"));
    check("level=%ff", Some("\u{fffd}"));
}
