//! What is tried again, and what never is.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpListener};

use super::world::{App, Plan, World, body, get, post, soon, text, to_web};

/// An app that answers the first requests with this status, and then with what it was sent.
async fn failing(times: usize, status: u16) -> App {
    let left = Arc::new(AtomicUsize::new(times));
    App::new(move |request| {
        let left = Arc::clone(&left);
        Box::pin(async move {
            let sent = request.into_body().collect().await.unwrap().to_bytes();
            let fails = left
                .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
                .is_ok();
            let status = if fails { status } else { 200 };
            Response::builder().status(status).body(body(sent)).unwrap()
        })
    })
    .await
}

async fn world(apps: &[&App], retry: Value) -> World {
    let mut plan = Plan::new();
    plan.web(apps);
    let mut rule = to_web("all");
    if !retry.is_null() {
        rule["retry"] = retry;
    }
    rule["timeouts"] = json!({ "backend_ms": 200 });
    plan.rules(json!([{ "rule": 0 }]), json!([rule]));
    plan.start().await
}

fn retry(attempts: u32, on: Value) -> Value {
    json!({ "attempts": attempts, "on": on, "backoff_ms": 1, "max_backoff_ms": 2 })
}

/// What becomes of a request to an app that fails so often with a status, and how often it was asked.
async fn check(fails: (usize, u16), retry: Value, request: Request<Full<Bytes>>, expect: (u16, usize)) {
    let app = failing(fails.0, fails.1).await;
    let world = world(&[&app], retry.clone()).await;
    let status = world.ask(request).await.status().as_u16();
    assert_eq!((status, app.count()), expect, "{fails:?} {retry}");
}

#[tokio::test]
async fn a_response_is_tried_again_as_often_and_for_what_the_rule_says() {
    let server_error = json!({ "server_error": true });
    check((1, 503), retry(2, server_error.clone()), get("/"), (200, 2)).await;
    check((2, 500), retry(2, server_error.clone()), get("/"), (200, 3)).await;
    check((3, 503), retry(2, server_error.clone()), get("/"), (503, 3)).await;
    check((1, 503), retry(0, server_error), get("/"), (503, 1)).await;
    check(
        (1, 500),
        retry(2, json!({ "gateway_error": true })),
        get("/"),
        (500, 1),
    )
    .await;
    check(
        (1, 502),
        retry(2, json!({ "gateway_error": true })),
        get("/"),
        (200, 2),
    )
    .await;
    check(
        (1, 409),
        retry(2, json!({ "retriable_4xx": true })),
        get("/"),
        (200, 2),
    )
    .await;
    check(
        (1, 404),
        retry(2, json!({ "retriable_4xx": true })),
        get("/"),
        (404, 1),
    )
    .await;
    check(
        (1, 429),
        retry(2, json!({ "statuses": [429] })),
        get("/"),
        (200, 2),
    )
    .await;
    // Nothing is said: only what no app can have seen.
    check((1, 503), Value::Null, get("/"), (503, 1)).await;
}

#[tokio::test]
async fn a_body_is_sent_again_whole_or_never() {
    let on = json!({ "server_error": true });
    for (length, expect) in [(10, (200, 2)), (64 * 1024, (200, 2)), (64 * 1024 + 1, (503, 1))] {
        let app = failing(1, 503).await;
        let world = world(&[&app], retry(3, on.clone())).await;
        let sent: Bytes = (0..length).map(|nth| (nth % 251) as u8).collect();
        let response = world.ask(post("/", sent.clone())).await;
        assert_eq!((response.status().as_u16(), app.count()), expect, "{length}");
        assert_eq!(response.body(), &sent);
    }
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_passed_by() {
    let gone = App::named("gone").await;
    let there = App::named("there").await;
    // Nobody listens there any more.
    let gone = App {
        addr: std::net::SocketAddr::new(gone.addr.ip(), 9),
        ..gone
    };
    let world = world(&[&gone, &there], Value::Null).await;
    for _ in 0..8 {
        let response = world.get("/").await;
        assert_eq!((response.status().as_u16(), text(&response)), (200, "there"));
    }
}

#[tokio::test]
async fn endpoints_that_were_tried_are_avoided() {
    let (bad, good) = (failing(100, 503).await, failing(0, 503).await);
    let world = world(&[&bad, &good], retry(1, json!({ "server_error": true }))).await;
    for _ in 0..10 {
        assert_eq!(world.get("/").await.status(), 200);
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_followed_by_another() {
    let slow = App::new(|_| Box::pin(std::future::pending())).await;
    let quick = App::named("quick").await;
    let world = world(&[&slow, &quick], retry(1, json!({ "server_error": true }))).await;
    for _ in 0..3 {
        let response = soon(world.get("/")).await;
        assert_eq!((response.status().as_u16(), text(&response)), (200, "quick"));
    }
}

#[tokio::test]
async fn what_was_begun_to_be_answered_is_never_sent_again() {
    let app = App::named("never asked").await;
    let listener = TcpListener::bind((app.addr.ip(), 0)).await.unwrap();
    let half = App {
        addr: listener.local_addr().unwrap(),
        ..app
    };
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            count.fetch_add(1, SeqCst);
            let mut head = [0; 16];
            let _ = tcp.read(&mut head).await;
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
            tokio::io::AsyncWriteExt::write_all(&mut tcp, begun)
                .await
                .unwrap();
        }
    });
    let world = world(&[&half], retry(3, json!({ "server_error": true, "reset": true }))).await;
    let mut sender = world.http1().await;
    let response = soon(sender.send_request(get("/"))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(soon(response.into_body().collect()).await.is_err());
    assert_eq!(taken.load(SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_was_idle_costs_no_request() {
    let app = App::named("never asked").await;
    let listener = TcpListener::bind((app.addr.ip(), 0)).await.unwrap();
    let once = App {
        addr: listener.local_addr().unwrap(),
        ..app
    };
    tokio::spawn(async move {
        // Each connection answers once, says that it goes on, and closes.
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = tcp.read(&mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let _ = tokio::io::AsyncWriteExt::write_all(&mut tcp, answer).await;
        }
    });
    let world = world(&[&once], Value::Null).await;
    for _ in 0..20 {
        let response = world.get("/").await;
        assert_eq!((response.status().as_u16(), text(&response)), (200, "ok"));
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_too_often_is_left_out_for_a_while() {
    let (bad, good) = (failing(1000, 503).await, failing(0, 503).await);
    let mut plan = Plan::new();
    plan.web(&[&bad, &good]);
    let outliers = json!({
        "consecutive_5xx": 3, "consecutive_gateway_errors": 0, "interval_ms": 1000, "base_ejection_ms": 60_000,
        "max_ejection_percent": 50, "min_health_percent": 0,
    });
    plan.routes(json!({ "traffic": { "policy": { "outliers": outliers, "balancer": "roundRobin" } } }));
    let world = plan.start().await;
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(world.get("/").await.status() == 503);
    }
    assert_eq!((failed, bad.count()), (3, 3));
}

#[tokio::test]
async fn each_request_is_counted_once_whatever_becomes_of_it() {
    let app = failing(2, 503).await;
    let world = world(&[&app], retry(1, json!({ "server_error": true }))).await;
    // Two attempts that fail, then one that does not.
    for status in [503, 200] {
        assert_eq!(world.ask(post("/", "abc")).await.status().as_u16(), status);
    }
    let text = world.shared.metrics.encode();
    let of = |status: u16, flags: &str| {
        let is_it = |line: &&str| {
            line.starts_with("istio_requests_total{")
                && line.contains(&format!("response_code=\"{status}\""))
                && line.contains(&format!("response_flags=\"{flags}\""))
        };
        text.lines()
            .filter(is_it)
            .map(|line| line.rsplit(' ').next().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (of(503, "URX"), of(200, "-")),
        (vec!["1".to_owned()], vec!["1".to_owned()]),
        "{text}"
    );
}
