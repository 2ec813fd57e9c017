//! How a waypoint ends, and how its clients' connections do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::Response;
use tokio::sync::Notify;

use super::world::{App, Plan, World, body, get, soon, text, until, whole};

/// A world with an app that answers when it is told.
async fn world(settings: impl FnOnce(&mut crate::waypoint::Settings)) -> (App, Arc<Notify>, World) {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let app = App::new(move |_| {
        let told = Arc::clone(&told);
        Box::pin(async move {
            told.notified().await;
            Response::new(body("late"))
        })
    });
    let app = app.await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    settings(&mut plan.settings);
    (app, go, plan.start().await)
}

#[tokio::test]
async fn a_request_under_way_goes_on_and_the_worker_ends_with_it() {
    let (app, go, world) = world(|_| {}).await;
    let mut sender = world.http1().await;
    let asked = tokio::spawn(sender.send_request(get("/")));
    until(|| app.count() == 1).await;
    world.drain.cancel();
    go.notify_one();
    let response = soon(asked).await.unwrap().unwrap();
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(text(&whole(response).await), "late");
    soon(world.worker).await.unwrap();
}

#[tokio::test]
async fn what_goes_on_after_the_deadline_is_cut() {
    let (app, _go, world) = world(|settings| settings.drain_timeout = Duration::from_millis(100)).await;
    let mut sender = world.http1().await;
    let asked = tokio::spawn(sender.send_request(get("/")));
    until(|| app.count() == 1).await;
    world.drain.cancel();
    soon(world.worker).await.unwrap();
    assert!(soon(asked).await.unwrap().is_err());
}

#[tokio::test]
async fn an_old_connection_is_told_to_go_elsewhere_with_its_next_response() {
    let (_app, go, world) = world(|settings| settings.max_connection_age = Duration::from_millis(100)).await;
    let mut sender = world.http1().await;
    let asked = tokio::spawn(sender.send_request(get("/")));
    let begun = Instant::now();
    until(|| begun.elapsed() > Duration::from_millis(150)).await;
    go.notify_one();
    let response = soon(asked).await.unwrap().unwrap();
    assert_eq!(response.headers()["connection"], "close");
    whole(response).await;
    // And so is its tunnel: the next connection is on another.
    go.notify_one();
    let response = world.get("/").await;
    assert_eq!(text(&response), "late");
}
