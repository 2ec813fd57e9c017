//! HTTP/1.1: what passes, what is changed, what is refused.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{App, Plan, get, post, soon, text};

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
        assert_eq!(text(&super::world::whole(response).await), "web");
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
    let _ = get("/");
}
