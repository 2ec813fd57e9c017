//! HTTP/1.1: what passes, what is changed, what is refused.

use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{App, Plan, World, body, get, post, soon, text, whole};

#[tokio::test]
async fn a_request_passes_and_says_who_sent_it() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let world = plan.start().await;
    let response = world.get("/a//b?c=d").await;
    assert_eq!((response.status().as_u16(), text(&response)), (200, "web"));
    let asked = app.last();
    assert_eq!(asked.uri, "/a/b?c=d");
    assert_eq!(asked.headers["host"], "web.demo");
    let client = asked.headers["x-forwarded-client-cert"].to_str().unwrap();
    assert_eq!(
        client,
        "By=spiffe://cluster.local/ns/demo/sa/waypoint;URI=spiffe://cluster.local/ns/demo/sa/curl"
    );
}

#[tokio::test]
async fn a_connection_is_kept_on_both_sides() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let world = plan.start().await;
    let mut sender = world.http1().await;
    for _ in 0..5 {
        soon(sender.ready()).await.unwrap();
        let response = soon(sender.send_request(post("/", "body"))).await.unwrap();
        assert_eq!(text(&whole(response).await), "web");
    }
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(app.count(), 5);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let world = plan.start().await;
    let mut io = world.connect(world.web).await.unwrap();
    let one = "GET /1 HTTP/1.1\r\nHost: web\r\n\r\n";
    let last = "GET /2 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
    io.write_all(format!("{one}{last}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(io.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    let paths: Vec<_> = app
        .asked
        .lock()
        .unwrap()
        .iter()
        .map(|it| it.uri.to_string())
        .collect();
    assert_eq!(paths, ["/1", "/2"]);
}

#[tokio::test]
async fn nothing_but_what_is_bound_to_the_waypoint_is_reached() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let mut other = plan.service("other", 101, &[80]);
    other.waypoint = None;
    plan.parts.services.push(other);
    let other = plan.ip(101);
    let world = plan.start().await;
    let port = |port| std::net::SocketAddr::new(world.web.ip(), port);
    for (target, status) in [
        (std::net::SocketAddr::new(other, 80), 400),
        (app.addr, 400),
        (world.waypoint, 400),
        (port(15008), 400),
        (port(81), 503),
        (([192, 0, 2, 1], 80).into(), 400),
    ] {
        let refused = world.connect(target).await.err().unwrap().to_string();
        assert!(
            refused.ends_with(&format!("answered {status}")),
            "{target}: {refused}"
        );
    }
    assert_eq!(world.get("/").await.status(), 200);
}

/// A world with one app that answers with what it was sent.
async fn echo_world() -> (App, World) {
    let app = App::new(|request| {
        Box::pin(async move {
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(body(sent))
        })
    });
    let app = app.await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    (app, plan.start().await)
}

/// Sends these bytes and reads to the end.
async fn raw(world: &World, bytes: &str) -> String {
    let mut io = world.connect(world.web).await.unwrap();
    io.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good an end.
    let _ = soon(io.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_chunked_body_passes() {
    let (app, world) = echo_world().await;
    let head = "POST / HTTP/1.1\r\nHost: web\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let answer = raw(&world, &format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("abcde"), "{answer}");
    assert!(!app.last().headers.contains_key("content-length"));
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_and_only_where_somebody_reads() {
    let (_app, world) = echo_world().await;
    let mut io = world.connect(world.web).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    io.write_all(head.as_bytes()).await.unwrap();
    let mut goon = [0; 25];
    soon(io.read_exact(&mut goon)).await.unwrap();
    assert_eq!(goon, *b"HTTP/1.1 100 Continue\r\n\r\n");
    io.write_all(b"hi").await.unwrap();
    let mut answer = [0; 15];
    soon(io.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, *b"HTTP/1.1 200 OK");
    let refused = "POST /.. HTTP/1.1\r\nHost: web\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let answer = raw(&world, refused).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let (app, world) = echo_world().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET / HTTP/1.1\r\n", 400),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n", 400),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n", 400),
        ("GET /../x HTTP/1.1\r\nHost: a\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n", 405),
        ("GET / HTTP/1.1\r\nHost : a\r\n", 400),
        ("NONSENSE\r\n", 400),
    ] {
        // What follows would be a request of its own to whoever reads it the other way.
        let bytes = format!("{request}Connection: close\r\n\r\n0\r\n\r\n");
        // Not a method that says HTTP: the port must say it.
        let answer = raw(&world, &bytes).await;
        let expect = format!("HTTP/1.1 {status}");
        assert!(
            answer.starts_with(&expect) || request == "NONSENSE\r\n",
            "{request}: {answer}"
        );
    }
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn heads_have_a_bound() {
    let (app, world) = echo_world().await;
    for (request, status) in [
        (
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n", "x".repeat(17_000)),
            "414",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n", "x".repeat(70_000)),
            "431",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{}", "X: 1\r\n".repeat(101)),
            "431",
        ),
    ] {
        let answer = raw(&world, &format!("{request}Connection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{status}: {answer}"
        );
    }
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn what_is_meant_for_one_hop_ends_there_and_claims_are_replaced() {
    let (app, world) = echo_world().await;
    let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: close, x-secret\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
                   X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/a/sa/admin\r\n\r\n";
    assert!(raw(&world, request).await.starts_with("HTTP/1.1 200"));
    let headers = app.last().headers;
    for gone in ["connection", "x-secret", "keep-alive"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    assert_ne!(headers["x-forwarded-for"], "1.2.3.4");
    let cert = headers["x-forwarded-client-cert"].to_str().unwrap();
    assert!(cert.ends_with("/sa/curl") && headers.get_all("x-forwarded-client-cert").iter().count() == 1);
}

#[tokio::test]
async fn a_websocket_is_carried_both_ways() {
    let app = App::new(|mut request| {
        Box::pin(async move {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 4];
                io.read_exact(&mut bytes).await.unwrap();
                io.write_all(&bytes.map(|byte| byte.to_ascii_uppercase()))
                    .await
                    .unwrap();
                io.shutdown().await.unwrap();
            });
            let answer = Response::builder().status(101).header("connection", "upgrade");
            answer.header("upgrade", "websocket").body(body("")).unwrap()
        })
    });
    let app = app.await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let world = plan.start().await;
    let mut sender = world.http1().await;
    let mut request = get("/chat");
    request
        .headers_mut()
        .insert("connection", "upgrade".parse().unwrap());
    request
        .headers_mut()
        .insert("upgrade", "websocket".parse().unwrap());
    let mut response = soon(sender.send_request(request)).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let mut io = TokioIo::new(soon(hyper::upgrade::on(&mut response)).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut answer = String::new();
    soon(io.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "PING");
}

#[tokio::test]
async fn a_head_that_does_not_end_costs_its_connection() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    plan.settings.header_timeout = Duration::from_millis(200);
    let world = plan.start().await;
    let mut idle = world.http1().await;
    assert_eq!(
        whole(soon(idle.send_request(get("/"))).await.unwrap())
            .await
            .status(),
        200
    );
    let mut slow = world.connect(world.web).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: w").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(slow.read_to_end(&mut answer)).await;
    assert!(answer.is_empty());
    // Nobody has begun anything there.
    assert_eq!(
        whole(soon(idle.send_request(get("/"))).await.unwrap())
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn of_two_lengths_the_chunks_count_and_nobody_else_sees_the_other() {
    let (app, world) = echo_world().await;
    let head = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let answer = raw(
        &world,
        &format!("{head}3\r\nabc\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("abc"),
        "{answer}"
    );
    assert_eq!(app.count(), 1);
    assert!(!app.last().headers.contains_key("content-length"));
}

#[tokio::test]
async fn nobody_goes_on_with_http2_that_nobody_would_judge() {
    let (app, world) = echo_world().await;
    let request = "GET / HTTP/1.1\r\nHost: web\r\nConnection: upgrade, http2-settings, close\r\nUpgrade: h2c\r\n\
                   HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n";
    let answer = raw(&world, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let headers = app.last().headers;
    assert!(!headers.contains_key("upgrade") && !headers.contains_key("http2-settings"));
}
