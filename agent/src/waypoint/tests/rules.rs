//! What routes make of requests.

use serde_json::{Value, json};

use super::world::{App, Plan, World, get, key, soon, text, to_web};

/// A world in which `rules` are those of `web`, each for the path of its name.
async fn world(apps: &[&App], rules: Vec<Value>) -> World {
    let mut plan = Plan::new();
    plan.web(apps);
    let entries = rules.iter().enumerate().map(|(nth, rule)| {
        json!({ "test": { "path": { "under": format!("/{}", rule["name"].as_str().unwrap()) } }, "rule": nth })
    });
    let entries: Vec<_> = entries.collect();
    plan.rules(json!(entries), json!(rules));
    plan.start().await
}

fn rule(name: &str, action: Value) -> Value {
    json!({ "name": name, "action": action })
}

#[tokio::test]
async fn a_rule_answers_or_sends_on_and_what_none_is_for_is_404() {
    let app = App::named("web").await;
    let nowhere = json!({ "forward": [{ "to": { "nowhere": "no such service" }, "weight": 1 }] });
    let subset = json!({ "service": { "service": key("web"), "port": 80, "subset": "v2" } });
    let rules = vec![
        to_web("app"),
        rule(
            "direct",
            json!({ "respond": { "status": 418, "body": "teapot" } }),
        ),
        rule(
            "moved",
            json!({ "redirect": { "host": "shop.example", "status": 301 } }),
        ),
        rule("nowhere", nowhere),
        rule("nobody", json!({ "forward": [] })),
        rule("subset", json!({ "forward": [{ "to": subset, "weight": 1 }] })),
    ];
    let world = world(&[&app], rules).await;
    for (path, status, body) in [
        ("/app/x", 200, "web"),
        ("/direct", 418, "teapot"),
        ("/moved", 301, ""),
        ("/nowhere", 500, ""),
        ("/nobody", 500, ""),
        ("/subset", 503, "no healthy upstream"),
        ("/other", 404, ""),
        ("/", 404, ""),
    ] {
        let response = world.get(path).await;
        assert_eq!(
            (response.status().as_u16(), text(&response)),
            (status, body),
            "{path}"
        );
        if path == "/moved" {
            assert_eq!(response.headers()["location"], "http://shop.example/moved");
        }
    }
    assert_eq!(app.count(), 1);
}

#[tokio::test]
async fn heads_are_changed_as_a_rule_and_its_backend_say() {
    let app = App::named("web").await;
    let mut changed = to_web("old");
    changed["rewrite"] = json!({ "path": { "prefix": "/new" }, "authority": "inside.demo" });
    changed["request_headers"] = json!({ "set": [["x-rule", "1"]], "remove": ["x-gone"] });
    changed["response_headers"] = json!({ "add": [["x-answered", "rule"]] });
    let backend = &mut changed["action"]["forward"][0];
    backend["request_headers"] = json!({ "add": [["x-rule", "2"]] });
    backend["response_headers"] = json!({ "add": [["x-answered", "backend"]] });
    let world = world(&[&app], vec![changed]).await;
    let mut request = get("/old/path?q=1");
    request.headers_mut().insert("x-gone", "1".parse().unwrap());
    let response = world.ask(request).await;
    let asked = app.last();
    assert_eq!(asked.uri, "/new/path?q=1");
    assert_eq!(asked.headers["host"], "inside.demo");
    let values: Vec<_> = asked.headers.get_all("x-rule").iter().cloned().collect();
    assert_eq!(values, ["1", "2"]);
    assert!(!asked.headers.contains_key("x-gone"));
    let answered: Vec<_> = response.headers().get_all("x-answered").iter().cloned().collect();
    assert_eq!(answered, ["backend", "rule"]);
}

#[tokio::test]
async fn failures_on_purpose_happen() {
    let app = App::named("web").await;
    let mut aborted = to_web("abort");
    aborted["fault"] = json!({ "abort": { "per_10_000": 10_000, "http_status": 555 } });
    let mut delayed = to_web("delay");
    delayed["fault"] = json!({ "delay": { "per_10_000": 10_000, "delay_ms": 50 } });
    let world = world(&[&app], vec![aborted, delayed]).await;
    let response = world.get("/abort").await;
    assert_eq!(
        (response.status().as_u16(), text(&response)),
        (555, "fault filter abort")
    );
    let begun = std::time::Instant::now();
    assert_eq!(world.get("/delay").await.status(), 200);
    assert!(begun.elapsed().as_millis() >= 50);
    assert_eq!(app.count(), 1);
}

#[tokio::test]
async fn a_copy_goes_to_the_mirror_and_its_answer_to_nobody() {
    let (app, shadow) = (App::named("web").await, App::named("shadow").await);
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let mirror = plan.service("shadow", 101, &[80]);
    plan.parts.services.push(mirror);
    let mut pod = plan.pod("shadow-1", 0);
    pod.addresses = vec![shadow.addr.ip()];
    let port = crate::mesh::PortMapping {
        service_port: 80,
        target_port: shadow.addr.port(),
    };
    pod.services.insert(key("shadow"), vec![port]);
    plan.parts.workloads.push(pod);
    let mut copied = to_web("all");
    let to = json!({ "service": { "service": key("shadow"), "port": 80 } });
    copied["mirrors"] = json!([{ "to": to, "per_10_000": 10_000 }]);
    plan.rules(json!([{ "rule": 0 }]), json!([copied]));
    let world = plan.start().await;
    for request in [get("/a"), super::world::post("/b", "body")] {
        let response = world.ask(request).await;
        assert_eq!(text(&response), "web");
    }
    super::world::until(|| shadow.count() == 2).await;
    let asked = shadow.asked.lock().unwrap();
    assert!(asked.iter().all(|it| it.headers["host"] == "web.demo-shadow"));
    assert_eq!(app.count(), 2);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_given_up() {
    let app = App::new(|_| Box::pin(std::future::pending())).await;
    let mut whole = to_web("whole");
    whole["timeouts"] = json!({ "request_ms": 50 });
    let mut attempt = to_web("attempt");
    attempt["timeouts"] = json!({ "backend_ms": 50 });
    let world = world(&[&app], vec![whole, attempt]).await;
    for path in ["/whole", "/attempt"] {
        let response = soon(world.get(path)).await;
        assert_eq!(
            (response.status().as_u16(), text(&response)),
            (504, "upstream request timeout"),
            "{path}"
        );
    }
}
