//! The controller at an API that is not always well: replicas, what is written to the cluster and what that does not wait for,
//! definitions that come and go, what the feed serves after each trouble, and who is believed (`identity`). Against a stand-in API server.

#[path = "controller/feed.rs"]
mod feed;
#[path = "controller/identity.rs"]
mod identity;
#[path = "controller/outage.rs"]
mod outage;
#[path = "controller/world.rs"]
mod world;

use std::{thread::sleep, time::Duration};

use anyhow::{Context as _, Result, ensure};
use feed::{Feed, Resources};
use serde_json::{Value, json};
use weft_tests::{
    LIMIT,
    kube::{Fault, Rule},
    wait_until,
};
use world::World;

/// A policy that cannot be read, or that can.
fn policy(namespace: &str, name: &str, network: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  action: DENY\n  rules: [{{from: [{{source: {{ipBlocks: [{network}]}}}}]}}]\n"
    )
}

const POLICIES: &str = "authorizationpolicies.security.istio.io";

fn is_said(world: &World, namespace: &str, name: &str, status: &str) -> Result<()> {
    wait_until(&format!("{name} of {namespace} to be {status}"), LIMIT, || {
        let (is, _) = world.condition([POLICIES, namespace, name], "ZtunnelAccepted")?;
        (is == status).then_some(())
    })
}

#[test]
fn one_replica_writes_and_another_takes_over_when_it_hears_nothing() -> Result<()> {
    let world = World::new("lease")?;
    let a = world.start("a", &[])?;
    wait_until("a to lead", LIMIT, || a.leads())?;
    let mut b = world.start("b", &[])?;
    world.api.apply_yaml(&policy("shop", "one", "nonsense"))?;
    is_said(&world, "shop", "one", "False")?;
    ensure!(
        a.way.patches() > 0 && b.way.patches() == 0,
        "only the holder writes"
    );
    // Whatever a asks, nothing comes back.
    a.way.silence(true);
    wait_until("a to stop", LIMIT, || !a.leads())?;
    ensure!(!b.leads(), "b leads while a's Lease is good");
    wait_until("b to lead", LIMIT * 2, || {
        assert!(!a.leads(), "both lead");
        b.leads()
    })?;
    world.api.apply_yaml(&policy("shop", "two", "nonsense"))?;
    is_said(&world, "shop", "two", "False")?;
    // a hears of everything again, and is not the one who writes.
    let before = a.way.patches();
    a.way.silence(false);
    world.api.apply_yaml(&policy("shop", "two", "10.0.0.0/8"))?;
    is_said(&world, "shop", "two", "True")?;
    sleep(Duration::from_secs(1));
    ensure!(!a.leads() && b.leads());
    ensure!(a.way.patches() == before, "a wrote though it does not lead");
    // One that ends lets go of it.
    b.stop(&world)?;
    wait_until("a to lead again", Duration::from_secs(10), || a.leads())
}

#[test]
fn a_shutdown_waits_for_no_answer() -> Result<()> {
    let world = World::new("shutdown")?;
    let mut controller = world.start("a", &[])?;
    wait_until("it to lead", LIMIT, || controller.leads())?;
    world.api.faults().hang();
    world.api.apply_yaml(&policy("shop", "one", "nonsense"))?;
    // Long enough that a renewal is under way.
    sleep(Duration::from_secs(5));
    let took = controller.stop(&world)?;
    ensure!(took < Duration::from_secs(6), "it took {took:?}");
    // Nor one that has not got anywhere yet.
    let mut controller = world.launch("b", &[])?;
    sleep(Duration::from_secs(1));
    let took = controller.stop(&world)?;
    ensure!(took < Duration::from_secs(6), "it took {took:?}");
    Ok(())
}

/// Events about an object: reason and note.
fn events(world: &World, namespace: &str, name: &str) -> Vec<(String, String)> {
    let all = world.api.list("events", namespace);
    let of = all.iter().filter(|it| it["involvedObject"]["name"] == name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    of.map(|it| (text(&it["reason"]), text(&it["message"]))).collect()
}

#[test]
fn what_is_wrong_with_an_object_is_an_event_on_it() -> Result<()> {
    let world = World::new("events")?;
    // The first two are not taken.
    world
        .api
        .faults()
        .inject(Rule::new(Fault::Fail(500)).on("events").verb("create").times(2));
    let _controller = world.start("a", &[])?;
    world.api.apply_yaml(&policy("shop", "bad", "nonsense"))?;
    let told = wait_until("the event", LIMIT, || {
        let told = events(&world, "shop", "bad");
        (!told.is_empty()).then_some(told)
    })?;
    ensure!(
        told.iter()
            .any(|(reason, note)| reason == "InvalidField" && note.contains("nonsense")),
        "{told:?}"
    );
    Ok(())
}

#[test]
fn every_mistake_is_an_event_of_its_own_however_many_there_are() -> Result<()> {
    const MANY: usize = 230;
    let world = World::new("mistakes")?;
    // All at once, with no change behind them.
    for number in 0..MANY {
        world
            .api
            .apply_yaml(&policy("many", &format!("p{number}"), "nonsense"))?;
    }
    let _controller = world.start("a", &[])?;
    let mut said = 0;
    wait_until("all of them", LIMIT * 3, || {
        said = world.api.list("events", "many").len();
        said >= MANY
    })
    .with_context(|| format!("{said} of {MANY}"))?;
    // Two mistakes in one object are two.
    let two = policy("shop", "two", "nonsense").replace("[nonsense]", "[rubbish, garbage]");
    world.api.apply_yaml(&two)?;
    wait_until("both mistakes", LIMIT, || {
        let told = events(&world, "shop", "two");
        let is_told = |what: &&str| told.iter().any(|(_, note)| note.contains(what));
        ["rubbish", "garbage"].iter().all(is_told)
    })
}

#[test]
fn what_the_api_refuses_of_one_object_holds_up_no_other() -> Result<()> {
    let world = World::new("refused")?;
    let refused = "peerauthentications.security.istio.io";
    world
        .api
        .faults()
        .inject(Rule::new(Fault::Fail(403)).on(refused).verb("patch"));
    let _controller = world.start("a", &[])?;
    world.api.apply_yaml(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: aaa}\nspec: {mtls: {mode: STRICT}}\n",
    )?;
    world.api.apply_yaml(&policy("bbb", "p", "nonsense"))?;
    is_said(&world, "bbb", "p", "False")?;
    // What was refused is tried again.
    world.api.faults().clear();
    wait_until("the other one", LIMIT * 2, || {
        world
            .condition([refused, "aaa", "p"], "ZtunnelAccepted")
            .is_some()
    })?;
    Ok(())
}

#[test]
fn what_the_api_refuses_of_a_waypoint_holds_up_no_other() -> Result<()> {
    let world = World::new("refused-waypoints")?;
    let _controller = world.start("a", &["--waypoint-image=weft:test"])?;
    world.api.faults().inject(
        Rule::new(Fault::Fail(500))
            .on("serviceaccounts")
            .verb("patch")
            .times(1000),
    );
    class(&world)?;
    gateway(&world, "aaa")?;
    gateway(&world, "bbb")?;
    for namespace in ["aaa", "bbb"] {
        wait_until(&format!("the rest of {namespace}'s waypoint"), LIMIT, || {
            ["services", "deployments"]
                .iter()
                .all(|kind| world.api.get(kind, namespace, "gate").is_some())
        })?;
    }
    ensure!(world.api.get("serviceaccounts", "aaa", "gate").is_none());
    world.api.faults().clear();
    for namespace in ["aaa", "bbb"] {
        wait_until("what was refused", LIMIT, || {
            world.api.get("serviceaccounts", namespace, "gate").is_some()
        })?;
    }
    Ok(())
}

fn class(world: &World) -> Result<()> {
    world.api.apply_yaml(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: weft-waypoint}\nspec: {controllerName: weft.dev/mesh-controller}\n",
    )
}

fn gateway(world: &World, namespace: &str) -> Result<()> {
    world.api.apply_yaml(&format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gate, namespace: {namespace}}}\nspec:\n  gatewayClassName: weft-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n"
    ))
}

#[test]
fn a_moment_without_the_controllers_service_starts_no_waypoint_anew() -> Result<()> {
    let world = World::new("service")?;
    class(&world)?;
    gateway(&world, "aaa")?;
    let _controller = world.start("a", &["--waypoint-image=weft:test"])?;
    let template = |namespace: &str| {
        let deployment = world.api.get("deployments", namespace, "gate")?;
        Some(deployment["spec"]["template"].clone())
    };
    let before = wait_until("the waypoint", LIMIT, || template("aaa"))?;
    let service = world
        .api
        .get("services", "weft-system", "weft-controller")
        .context("the Service")?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("its address")?
        .to_owned();
    ensure!(
        before.to_string().contains(&format!("{address}:15012")),
        "{before}"
    );
    world.api.delete("services", "weft-system", "weft-controller");
    // Another one shows that it was looked at since.
    gateway(&world, "bbb")?;
    let other = wait_until("another waypoint", LIMIT, || template("bbb"))?;
    ensure!(other.to_string().contains(&format!("{address}:15012")), "{other}");
    ensure!(template("aaa").as_ref() == Some(&before), "it is started anew");
    // One that is made anew with another address is followed.
    let mut anew = service;
    anew["spec"]["clusterIP"] = json!("10.96.200.9");
    anew["spec"]["clusterIPs"] = json!(["10.96.200.9"]);
    world.api.apply(anew)?;
    wait_until("the new address", LIMIT, || {
        template("aaa").is_some_and(|it| it.to_string().contains("10.96.200.9:15012"))
    })
}

#[test]
fn definitions_that_come_later_are_picked_up_and_those_that_go_are_gone() -> Result<()> {
    let world = World::bare("definitions")?;
    let controller = world.start("a", &[])?;
    let credentials = world.credentials(&controller, &world.agent_token()?)?;
    world.runtime.block_on(async {
        let mut feed = Feed::open(&credentials).await?;
        world.api.install_crds()?;
        world.api.apply_yaml(&policy("shop", "deny", "10.9.0.0/16"))?;
        let has = |all: &Resources| {
            all.keys()
                .any(|it| it.starts_with("Authorization") && it.contains("deny"))
        };
        feed.until("the policy", LIMIT * 2, has).await?;
        ensure!(world.api.delete("customresourcedefinitions", "", POLICIES));
        feed.until("no policy", LIMIT * 2, |all| !has(all)).await?;
        // And once more.
        world.api.install_istio()?;
        world.api.apply_yaml(&policy("shop", "deny", "10.9.0.0/16"))?;
        feed.until("the policy again", LIMIT * 2, has).await
    })
}

#[test]
fn one_pods_change_is_one_resource_and_many_quick_ones_are_few_pushes() -> Result<()> {
    let world = World::new("pushes")?;
    world.api.apply_yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.20, selector: {app: web}, ports: [{port: 80}]}\n",
    )?;
    for number in 0..20 {
        world.pod("shop", number, &json!({"metadata": {"labels": {"app": "web"}}}))?;
    }
    let controller = world.start("a", &[])?;
    let credentials = world.credentials(&controller, &world.agent_token()?)?;
    world.runtime.block_on(async {
        let mut feed = Feed::open(&credentials).await?;
        feed.settle(Duration::from_secs(2)).await?;
        feed.pushes.clear();
        let labels = json!({"metadata": {"labels": {"app": "web", "version": "v2"}}});
        world.pod("shop", 7, &labels)?;
        feed.settle(Duration::from_secs(2)).await?;
        ensure!(
            feed.pushes.len() == 1 && feed.pushes[0].len() == 1 && feed.pushes[0][0].contains("pod-7"),
            "{:?}",
            feed.pushes
        );
        // A hundred in a row, to a client that takes what comes at once.
        feed.pushes.clear();
        let changes = async {
            for turn in 0..100 {
                let version = json!({"metadata": {"labels": {"app": "web", "version": format!("w{turn}")}}});
                world.pod("shop", turn % 20, &version)?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let (changed, settled) = tokio::join!(changes, feed.settle(Duration::from_secs(2)));
        changed.and(settled)?;
        let pushes = feed.pushes.len();
        ensure!(
            (1..=5).contains(&pushes),
            "{pushes} pushes of 100 changes within half a second"
        );
        Ok(())
    })
}

/// A mesh that has a bit of everything.
fn fill(world: &World) -> Result<()> {
    world.api.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.20, selector: {app: web}, ports: [{port: 80}]}\n",
    )?;
    world.api.apply_yaml(&policy("shop", "deny", "10.9.0.0/16"))?;
    for number in 0..10 {
        world.pod("shop", number, &json!({"metadata": {"labels": {"app": "web"}}}))?;
    }
    Ok(())
}

/// Changes of every sort.
fn churn(world: &World, round: usize) -> Result<()> {
    let version = json!({"metadata": {"labels": {"app": "web", "round": round.to_string()}}});
    for number in [1, 2, 3] {
        world.pod("shop", number, &version)?;
    }
    world.pod("shop", 100 + round, &version)?;
    world.pod("shop", 200 + round, &version)?;
    world.api.delete("pods", "shop", &format!("pod-{}", 200 + round));
    world
        .api
        .apply_yaml(&policy("shop", "deny", &format!("10.{round}.0.0/16")))?;
    world
        .api
        .apply_yaml(&policy("shop", &format!("deny-{round}"), "10.8.0.0/16"))?;
    world.api.apply_yaml(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s{round}, namespace: shop}}\nspec: {{clusterIP: 10.96.1.{round}, selector: {{app: web}}, ports: [{{port: 80}}]}}\n"))
}

/// After each trouble of the API a controller serves what one serves that has never had any.
#[test]
fn after_each_trouble_of_the_api_it_serves_what_a_fresh_one_serves() -> Result<()> {
    let world = World::new("troubles")?;
    fill(&world)?;
    let controller = world.start("a", &[])?;
    let credentials = world.credentials(&controller, &world.agent_token()?)?;
    let stale = world.api.version();
    let troubles: [(&str, &dyn Fn()); 9] = [
        ("nothing", &|| {}),
        ("cut", &|| {
            world
                .api
                .faults()
                .inject(Rule::new(Fault::Cut { after: 2 }).times(40));
            world.api.faults().cut_watches("");
        }),
        ("stale", &|| {
            world
                .api
                .faults()
                .inject(Rule::new(Fault::Stale { version: stale }).times(4));
            world.api.faults().expire_watches("");
        }),
        ("duplicate", &|| {
            world.api.faults().inject(Rule::new(Fault::Duplicate));
            world.api.faults().cut_watches("");
        }),
        ("reorder", &|| {
            world.api.faults().inject(Rule::new(Fault::Reorder));
            world.api.faults().cut_watches("");
        }),
        ("gone", &|| {
            world.api.faults().inject(Rule::new(Fault::Gone).times(30));
            world.api.faults().expire_watches("");
        }),
        ("slow", &|| {
            world
                .api
                .faults()
                .inject(Rule::new(Fault::Slow(Duration::from_millis(700))));
            world.api.faults().cut_watches("");
        }),
        ("fail", &|| {
            world
                .api
                .faults()
                .inject(Rule::new(Fault::Fail(500)).verb("list").times(10));
            world.api.faults().expire_watches("");
        }),
        ("restart", &|| world.api.faults().restart()),
    ];
    world.runtime.block_on(async {
        let mut feed = Feed::open(&credentials).await?;
        for (round, (trouble, begin)) in troubles.into_iter().enumerate() {
            begin();
            churn(&world, round)?;
            churn_more(&world, round)?;
            // What was made last is heard of, whatever happens meanwhile.
            let last = format!("deny-{round}");
            let limit = LIMIT * 3;
            feed.until(trouble, limit, |all| all.keys().any(|it| it.ends_with(&last)))
                .await?;
            world.api.faults().clear();
            let wanted = fresh(&world, round)?;
            let heard = feed
                .until("what a fresh one serves", limit, |all| *all == wanted)
                .await;
            heard.with_context(|| format!("after {trouble}: {:?}", differences(&feed.resources, &wanted)))?;
        }
        Ok(())
    })
}

fn differences(a: &Resources, b: &Resources) -> Vec<String> {
    let shown = |it: Option<&Vec<u8>>| it.map(|it| String::from_utf8_lossy(it).into_owned());
    let names = a.keys().chain(b.keys());
    let differs = names.filter(|name| a.get(*name) != b.get(*name));
    differs
        .map(|name| format!("{name}: {:?} and {:?}", shown(a.get(name)), shown(b.get(name))))
        .collect()
}

/// While the trouble is there.
fn churn_more(world: &World, round: usize) -> Result<()> {
    for turn in 0..5 {
        sleep(Duration::from_millis(100));
        let version = json!({"metadata": {"labels": {"app": "web", "turn": format!("{round}-{turn}")}}});
        world.pod("shop", turn, &version)?;
    }
    world.api.delete("pods", "shop", &format!("pod-{}", 100 + round));
    Ok(())
}

/// What a controller serves that has just been started.
fn fresh(world: &World, round: usize) -> Result<Resources> {
    let controller = world.start(&format!("fresh-{round}"), &[])?;
    let credentials = world.credentials(&controller, &world.agent_token()?)?;
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current().block_on(async { Ok(Feed::open(&credentials).await?.resources) })
    })
}
