//! An outage of the API of minutes: what agents have they keep and are served, what needs the API says so and works again when it is
//! back, and what changed meanwhile is caught up with.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;
use weft_tests::{LIMIT, wait_until};

use super::{
    POLICIES,
    feed::Feed,
    fill,
    identity::{AGENT, refusal, signed},
    policy,
    world::{Controller, World},
};

/// How long nobody listens, and how long nobody answers after that: long past every deadline and pause of the controller.
const EACH: Duration = Duration::from_secs(70);
/// How soon after it what has changed is heard of, at most: each watch is tried again after 30 to 60 s by then, as those of
/// Kubernetes' own controllers are.
const BACK: Duration = Duration::from_secs(90);

#[test]
fn an_outage_of_minutes_takes_nothing_from_agents_and_is_caught_up_with() -> Result<()> {
    let world = World::new("outage")?;
    fill(&world)?;
    let controller = world.start("a", &[])?;
    wait_until("it to lead", LIMIT, || controller.leads())?;
    let token = world.agent_token()?;
    let credentials = world.credentials(&controller, &token)?;
    let mut feed = world.runtime.block_on(Feed::open(&credentials))?;
    let before = feed.resources.clone();

    world.api.faults().refuse();
    world.api.apply_yaml(&policy("shop", "deny", "nonsense"))?;
    world.api.delete("pods", "shop", "pod-1");
    world.pod("shop", 2, &json!({"metadata": {"labels": {"app": "other"}}}))?;
    endures(&world, &controller, &mut feed)?;
    world.api.faults().hang();
    world.pod("shop", 200, &json!({"metadata": {"labels": {"app": "web"}}}))?;
    endures(&world, &controller, &mut feed)?;
    ensure!(feed.resources == before, "an agent has lost or won something");

    let back = Instant::now();
    world.api.faults().recover();
    world.runtime.block_on(async {
        let all = |all: &super::Resources| {
            let has = |pod: &str| all.keys().any(|it| it.ends_with(&format!("/{pod}")));
            has("pod-200") && !has("pod-1")
        };
        feed.until("what changed meanwhile", BACK, all).await
    })?;
    println!("caught up after {:?}", back.elapsed());
    wait_until("a policy's new status", BACK, || {
        let (is, _) = world.condition([POLICIES, "shop", "deny"], "ZtunnelAccepted")?;
        (is == "False").then_some(())
    })?;
    ensure!(controller.leads(), "who writes a status leads");
    let signed = signed(&world, &controller, &world.agent_token()?)?;
    ensure!(signed.is_ok(), "{signed:?}");
    // Each kind's watch is back at a time of its own: by now all of them are that have something new.
    world.runtime.block_on(feed.settle(Duration::from_secs(1)))?;
    let fresh = world.runtime.block_on(async { super::fresh(&world, 0) })?;
    ensure!(
        feed.resources == fresh,
        "{:?}",
        super::differences(&feed.resources, &fresh)
    );
    Ok(())
}

/// One part of the outage, to its end.
fn endures(world: &World, controller: &Controller, feed: &mut Feed) -> Result<()> {
    let since = Instant::now();
    wait_until("it to stop leading", LIMIT * 2, || !controller.leads())?;
    // A new token is nobody's as long as nobody can be asked, and is said to be neither good nor bad.
    let refusal = refusal(
        world,
        controller,
        &format!("token-{}", since.elapsed().as_nanos()),
    )?;
    ensure!(refusal.contains("could not be verified"), "{AGENT}: {refusal}");
    controller.wait_until_ready()?;
    while since.elapsed() < EACH {
        sleep(Duration::from_secs(1));
    }
    // The stream is the one of before, and nothing has come over it.
    world.runtime.block_on(feed.settle(Duration::from_millis(100)))
}
