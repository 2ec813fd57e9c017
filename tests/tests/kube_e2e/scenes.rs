//! The scenes: each does one thing as a person would and holds what it sees against what is promised.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    apps::{App, INSIDE, OUTSIDE, PATIENCE, World, restarts, words},
    cluster::{delete, until},
    commands,
    mesh::{Mesh, identity},
    waypoints,
};

pub(crate) const SECURITY: &str = "security.istio.io";
/// Pods of the scene of many starts, and how many of them at a time.
const STARTS: i32 = 200;
const AT_A_TIME: i32 = 20;

/// The server has run since before the mesh; nothing of it is started again.
pub(crate) async fn enrol(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    let before = world.pods(INSIDE).get("server").await?;
    commands::run(mesh, &["enroll", INSIDE, "--wait", "60"]).await?;
    let after = world.captured("server", true).await?;
    ensure!(
        before.metadata.uid == after.metadata.uid,
        "the server's pod is another one"
    );
    ensure!(restarts(&after) == 0, "the server was started again");
    println!("the running pod {INSIDE}/server is captured, and was not started again");
    Ok(())
}

/// By the service's address, so that the agent chooses the endpoint.
pub(crate) async fn traffic(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    const CALLS: u32 = 50;
    let since = mesh.mark(&world.nodes[1]).await?;
    let target = world.service().await?;
    let tally = world.call(INSIDE, "client", &target, CALLS).await?;
    ensure!(
        tally.failed == 0,
        "{} of {CALLS} connections failed: {:?}",
        tally.failed,
        tally.failures
    );
    let (client, server) = (identity("client"), identity("server"));
    let wanted = [
        ("direction", "inbound"),
        ("src.identity", client.as_str()),
        ("dst.identity", server.as_str()),
    ];
    until(
        "the server's agent to have logged every connection",
        Duration::from_secs(30),
        async || {
            let lines = mesh.access(&world.nodes[1], &since).await?;
            let tunnelled = lines
                .iter()
                .filter(|line| line.is_ok() && line.matches(&wanted))
                .count();
            Ok((tunnelled >= CALLS as usize).then_some(()))
        },
    )
    .await?;
    let samples = mesh.metrics(world, &world.nodes[1]).await?;
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", client.as_str()),
    ];
    let counted = samples.sum("istio_tcp_connections_opened_total", &labels);
    ensure!(
        counted >= f64::from(CALLS),
        "the server's agent has counted {counted} connections under mutual TLS of {client}"
    );
    println!(
        "{CALLS} connections of {client} to {server}: logged and counted as mutual TLS where they arrived"
    );
    Ok(())
}

pub(crate) async fn policy(world: &World<'_>) -> Result<()> {
    let defined = world
        .cluster
        .define(
            SECURITY,
            "AuthorizationPolicy",
            "authorizationpolicies",
            "Namespaced",
        )
        .await?;
    told(defined, "AuthorizationPolicy");
    let target = world.service().await?;
    world.call_until(INSIDE, "stranger", &target, true).await?;
    let principal = identity("stranger").replace("spiffe://", "");
    let spec = json!({"action": "DENY", "rules": [{"from": [{"source": {"principals": [principal]}}]}]});
    let policies = objects(world, SECURITY, "AuthorizationPolicy", "authorizationpolicies");
    make(&policies, SECURITY, "AuthorizationPolicy", "no-strangers", &spec).await?;
    world.call_until(INSIDE, "stranger", &target, false).await?;
    let tally = world.call(INSIDE, "client", &target, 20).await?;
    ensure!(
        tally.failed == 0,
        "the policy refuses somebody else too: {:?}",
        tally.failures
    );
    delete(&policies, "no-strangers").await?;
    world.call_until(INSIDE, "stranger", &target, true).await
}

pub(crate) async fn strict(world: &World<'_>) -> Result<()> {
    let defined = world
        .cluster
        .define(
            SECURITY,
            "PeerAuthentication",
            "peerauthentications",
            "Namespaced",
        )
        .await?;
    told(defined, "PeerAuthentication");
    let (service, server) = (world.service().await?, world.server().await?);
    world.call_until(OUTSIDE, "client", &server, true).await?;
    let policies = objects(world, SECURITY, "PeerAuthentication", "peerauthentications");
    let spec = json!({"mtls": {"mode": "STRICT"}});
    make(&policies, SECURITY, "PeerAuthentication", "default", &spec).await?;
    for target in [&server, &service] {
        world.call_until(OUTSIDE, "client", target, false).await?;
    }
    let tally = world.call(INSIDE, "client", &service, 20).await?;
    ensure!(
        tally.failed == 0,
        "STRICT refuses the mesh's own: {:?}",
        tally.failures
    );
    world.probed().await?;
    println!("STRICT refuses who is outside, and lets in who is inside and the kubelet's probes");
    delete(&policies, "default").await?;
    world.call_until(OUTSIDE, "client", &server, true).await
}

/// Each pod's first instruction is a connection: it may wait until it is captured, or be refused for a moment where the runtime has
/// no NRI; it must not go out in plaintext.
pub(crate) async fn starts(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    let since = mesh.mark(&world.nodes[1]).await?;
    let target = world.service().await?;
    let mut pod = world.pod(&App {
        namespace: INSIDE,
        name: "start",
        account: "client",
        node: &world.nodes[0],
        args: words(&["call", &target, "--count", "1", "--patience", PATIENCE]),
    });
    pod["metadata"]["name"].take();
    let job = serde_json::from_value(json!({
        "metadata": {"name": "starts"},
        "spec": {"completions": STARTS, "parallelism": AT_A_TIME, "backoffLimit": 0, "template": pod},
    }))?;
    let jobs = Api::<Job>::namespaced(world.client(), INSIDE);
    jobs.create(&PostParams::default(), &job).await?;
    let (succeeded, failed) = until(
        "all of the pods to have ended",
        Duration::from_mins(15),
        async || {
            let status = jobs.get("starts").await?.status.unwrap_or_default();
            let (succeeded, failed) = (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0));
            Ok((failed > 0 || succeeded >= STARTS).then_some((succeeded, failed)))
        },
    )
    .await?;
    let client = identity("client");
    let mut lines = Vec::new();
    let logged = until(
        "the server's agent to have logged them",
        Duration::from_secs(30),
        async || {
            lines = mesh.access(&world.nodes[1], &since).await?;
            let wanted = [("direction", "inbound"), ("src.identity", client.as_str())];
            let tunnelled = lines.iter().filter(|line| line.matches(&wanted));
            Ok((tunnelled.count() >= usize::try_from(succeeded)?).then_some(()))
        },
    )
    .await;
    let inbound = lines.iter().filter(|line| line.field("direction") == "inbound");
    let (tunnelled, others): (Vec<_>, Vec<_>) =
        inbound.partition(|line| line.field("src.identity") == client);
    println!(
        "{succeeded} pods connected, {failed} did not; {} came through a tunnel, {} did not",
        tunnelled.len(),
        others.len()
    );
    ensure!(failed == 0, "{failed} pods could not connect at their start");
    ensure!(
        others.is_empty(),
        "in plaintext or as somebody else: {}",
        others[0]
    );
    logged?;
    ensure!(
        i32::try_from(tunnelled.len())? >= STARTS,
        "fewer than {STARTS} of them came through a tunnel"
    );
    let orphans = kube::api::DeleteParams::background();
    jobs.delete("starts", &orphans).await?;
    until("their pods to be gone", Duration::from_mins(5), async || {
        let left = world
            .pods(INSIDE)
            .list_metadata(&ListParams::default().labels("app=start"))
            .await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await
}

/// New agents on every node, new controllers and a new waypoint while pods connect fifty times a second, one of them through the
/// waypoint.
pub(crate) async fn upgrade(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    let through = waypoints::bind(mesh, world).await?;
    let loads = [("load", world.service().await?), ("load-waypoint", through)];
    for (name, target) in &loads {
        let args = ["call", target, "--count", "0", "--every", "20"];
        world
            .start(&App {
                namespace: INSIDE,
                name,
                account: "client",
                node: &world.nodes[0],
                args: words(&[&args[..], &["--patience", PATIENCE]].concat()),
            })
            .await?;
        world.captured(name, true).await?;
    }
    let (own, waypoint) = (mesh.own().await?, waypoints::pods(world).await?);
    mesh.upgrade().await?;
    waypoints::rolled(world, &waypoint).await?;
    let stays = mesh.own().await?.into_iter().find(|uid| own.contains(uid));
    ensure!(
        stays.is_none(),
        "a pod of weft's is still one of before: {stays:?}"
    );
    let mut costs = Vec::new();
    for (name, _) in &loads {
        let tally = world.stop(INSIDE, name).await?;
        println!(
            "{name}: {} connections meanwhile, {} failed",
            tally.done, tally.failed
        );
        costs.extend(tally.failures);
    }
    ensure!(costs.is_empty(), "an upgrade costs connections: {costs:?}");
    waypoints::unbind(mesh, world).await
}

pub(crate) async fn unenrol(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    let target = world.service().await?;
    world
        .start(&App {
            namespace: INSIDE,
            name: "holder",
            account: "client",
            node: &world.nodes[0],
            args: words(&["hold", &target, "--patience", PATIENCE]),
        })
        .await?;
    world.captured("holder", true).await?;
    commands::run(mesh, &["enroll", INSIDE, "--undo", "--wait", "60"]).await?;
    for name in ["server", "holder"] {
        world.captured(name, false).await?;
    }
    // New connections are plain ones now, and that each goes well says that time has passed for the one that is held.
    let tally = world.call(INSIDE, "client", &target, 100).await?;
    ensure!(
        tally.failed == 0,
        "released pods do not reach each other: {:?}",
        tally.failures
    );
    let held = world.stop(INSIDE, "holder").await?;
    println!(
        "{} lines on the connection that was open, {} failed",
        held.done, held.failed
    );
    ensure!(
        held.failed == 0,
        "the open connection was cut: {:?}",
        held.failures
    );
    Ok(())
}

pub(crate) fn told(defined: bool, kind: &str) {
    if defined {
        println!("the cluster knew no {kind}: a definition without rules was made for it");
    }
}

pub(crate) fn objects(world: &World<'_>, group: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
    Api::namespaced_with(world.client(), INSIDE, &resource)
}

pub(crate) async fn make(
    api: &Api<DynamicObject>,
    group: &str,
    kind: &str,
    name: &str,
    spec: &Value,
) -> Result<()> {
    let object = json!({
        "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    api.create(&PostParams::default(), &serde_json::from_value(object)?)
        .await?;
    Ok(())
}
