//! Who may ask for what; and what is refused because nobody knows.

use std::sync::Arc;

use serde_json::json;

use super::world::{App, Plan, get, text};
use crate::mesh::{
    Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch,
    http::{PathPattern, RequestMatch},
};

fn named(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "demo".into(),
        name: name.into(),
    }
}

/// A policy about requests for this path and what begins like it.
fn about(name: &str, action: Action, path: &str) -> Policy {
    let request = RequestMatch {
        paths: vec![PathPattern::Text(StringMatch::Prefix(path.into()))],
        ..RequestMatch::default()
    };
    let matches = vec![Match {
        unseen: vec!["paths".into()],
        request: Some(Arc::new(request)),
        ..Match::default()
    }];
    Policy {
        key: named(name),
        scope: Scope::Selector,
        action,
        rules: vec![Rule {
            clauses: vec![Clause { matches }],
        }],
        dry_run: false,
    }
}

async fn check(policies: Vec<Policy>, of_service: &[&str], of_pod: &[&str], expect: &[(&str, u16)]) {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    let of_service: Vec<_> = of_service.iter().map(|name| named(name)).collect();
    plan.routes(json!({ "policies": of_service }));
    let pod = plan.parts.workloads.last_mut().unwrap();
    pod.policies = of_pod.iter().map(|name| named(name)).collect();
    plan.parts.policies = policies;
    let world = plan.start().await;
    for (path, status) in expect {
        let response = world.get(path).await;
        assert_eq!(response.status().as_u16(), *status, "{path}");
        if *status == 403 {
            assert_eq!(text(&response), "RBAC: access denied");
        }
    }
    let passed = expect.iter().filter(|(_, status)| *status == 200).count();
    assert_eq!(app.count(), passed);
}

#[tokio::test]
async fn policies_of_the_service_and_of_the_pod_are_judged_by_what_is_asked() {
    let admin = about("no-admin", Action::Deny, "/admin");
    // Before and after normalisation, and however it is written.
    let spellings = [
        ("/", 200),
        ("/admin", 403),
        ("/admin/x", 403),
        ("//admin", 403),
        ("/x/../admin", 403),
        ("/%61dmin", 403),
        ("/ADMIN", 200),
    ];
    check(vec![admin.clone()], &["no-admin"], &[], &spellings).await;
    check(vec![admin], &[], &["no-admin"], &spellings).await;
    let public = about("public", Action::Allow, "/public");
    let some = [("/public/x", 200), ("/", 403), ("/public/../x", 403)];
    check(vec![public.clone()], &["public"], &[], &some).await;
    check(vec![public], &[], &["public"], &some).await;
}

#[tokio::test]
async fn a_policy_that_has_not_arrived_refuses() {
    check(Vec::new(), &["missing"], &[], &[("/", 403)]).await;
    check(Vec::new(), &[], &["missing"], &[("/", 403)]).await;
}

#[tokio::test]
async fn a_request_authentication_that_has_not_arrived_refuses() {
    let app = App::named("web").await;
    let mut plan = Plan::new();
    plan.web(&[&app]);
    plan.routes(json!({ "authentications": [named("missing")] }));
    let world = plan.start().await;
    assert_eq!(world.ask(get("/")).await.status(), 503);
    assert_eq!(app.count(), 0);
}
