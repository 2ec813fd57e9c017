//! The scene of waypoints: a Gateway becomes one, routes and a policy work through it, and it is gone when the Gateway is.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service, ServiceAccount},
};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    apps::{App, INSIDE, PORT, World, socket, words},
    cluster::{delete, until},
    commands,
    mesh::{Mesh, is_rolled, uids},
    scenes::{SECURITY, make, objects, told},
};

const GATEWAY_API: &str = "gateway.networking.k8s.io";
const GATE: &str = "gate";
/// A service of the server's that is bound to it.
const BOUND: &str = "server-bound";
/// How long a waypoint may take to be there, or to be gone.
const LIMIT: Duration = Duration::from_secs(180);

/// Before the install, because the chart has a GatewayClass only for a cluster that knows what that is.
pub(crate) async fn define(world: &World<'_>) -> Result<()> {
    for (kind, plural, scope) in [
        ("GatewayClass", "gatewayclasses", "Cluster"),
        ("Gateway", "gateways", "Namespaced"),
        ("HTTPRoute", "httproutes", "Namespaced"),
    ] {
        told(
            world.cluster.define(GATEWAY_API, kind, plural, scope).await?,
            kind,
        );
    }
    Ok(())
}

pub(crate) async fn scene(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    backends(world).await?;
    apply(mesh, world).await?;
    commands::run(mesh, &["get", "waypoints", "-n", INSIDE]).await?;
    routed(world).await?;
    refused(world).await?;
    commands::run(mesh, &["analyze", "--cluster", "--namespace", INSIDE]).await?;
    // A service is bound to it.
    commands::run(mesh, &["delete", "waypoint", GATE, "-n", INSIDE, "--yes"]).await?;
    down(world).await?;
    for name in ["v1", "v2"] {
        delete(&world.pods(INSIDE), name).await?;
    }
    for name in ["web", "web-v1", "web-v2"] {
        delete(&services(world), name).await?;
    }
    Ok(())
}

async fn apply(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    commands::run(mesh, &["apply", "waypoint", GATE, "-n", INSIDE, "--wait", "180"]).await?;
    up(world).await
}

/// A waypoint, and a service of the server's that is bound to it, by its address.
pub(crate) async fn bind(mesh: &Mesh<'_>, world: &World<'_>) -> Result<String> {
    apply(mesh, world).await?;
    let service = json!({
        "metadata": {"name": BOUND, "labels": {"istio.io/use-waypoint": GATE}},
        "spec": {"selector": {"app": "server"}, "ports": [{"name": "tcp", "port": PORT, "targetPort": PORT, "appProtocol": "tcp"}]},
    });
    let made = services(world)
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    let address = made
        .spec
        .and_then(|spec| spec.cluster_ip)
        .context("the service has no address")?;
    Ok(socket(&address))
}

/// Takes away what [`bind`] made.
pub(crate) async fn unbind(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    delete(&services(world), BOUND).await?;
    commands::run(mesh, &["delete", "waypoint", GATE, "-n", INSIDE]).await?;
    down(world).await
}

/// The waypoint's pods that are to stay.
pub(crate) async fn pods(world: &World<'_>) -> Result<Vec<String>> {
    uids(&world.pods(INSIDE), &of_gate()).await
}

/// Waits until none of these pods is the waypoint's, which has all that it needs.
pub(crate) async fn rolled(world: &World<'_>, before: &[String]) -> Result<()> {
    let deployments = Api::<Deployment>::namespaced(world.client(), INSIDE);
    until("the waypoint's pods to be replaced", LIMIT, async || {
        let rolled = is_rolled(&deployments.get(GATE).await?);
        let stays = pods(world).await?.iter().any(|uid| before.contains(uid));
        Ok((rolled && !stays).then_some(()))
    })
    .await
}

fn of_gate() -> String {
    format!("gateway.networking.k8s.io/gateway-name={GATE}")
}

fn services(world: &World<'_>) -> Api<Service> {
    Api::namespaced(world.client(), INSIDE)
}

/// Two versions of one service, the service bound to the waypoint.
async fn backends(world: &World<'_>) -> Result<()> {
    for version in ["v1", "v2"] {
        let listen = format!("0.0.0.0:{PORT}");
        let mut pod = world.pod(&App {
            namespace: INSIDE,
            name: version,
            account: "server",
            node: &world.nodes[1],
            args: words(&["http", "--listen", &listen, "--say", version]),
        });
        pod["metadata"]["labels"]["service"] = "web".into();
        world.start_as(INSIDE, version, pod).await?;
        world.captured(version, true).await?;
    }
    for (name, selector) in [
        ("web", json!({"service": "web"})),
        ("web-v1", json!({"app": "v1"})),
        ("web-v2", json!({"app": "v2"})),
    ] {
        let mut service = json!({
            "metadata": {"name": name},
            "spec": {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": PORT, "appProtocol": "http"}]},
        });
        if name == "web" {
            service["metadata"]["labels"] = json!({"istio.io/use-waypoint": GATE});
        }
        services(world)
            .create(&PostParams::default(), &serde_json::from_value(service)?)
            .await?;
    }
    Ok(())
}

/// The Gateway says that it is programmed, and every pod of its Deployment is there.
async fn up(world: &World<'_>) -> Result<()> {
    let gateways = objects(world, GATEWAY_API, "Gateway", "gateways");
    let deployments = Api::<Deployment>::namespaced(world.client(), INSIDE);
    let waited = until(
        "the Gateway to be programmed, and its pods to be there",
        LIMIT,
        async || {
            let gateway = gateways.get(GATE).await?;
            let is = |kind: &str| {
                let conditions = gateway.data["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                conditions.any(|one| one["type"] == kind && one["status"] == "True")
            };
            let all = deployments.get_opt(GATE).await?.as_ref().is_some_and(is_rolled);
            Ok((is("Accepted") && is("Programmed") && all).then_some(()))
        },
    );
    if let Err(error) = waited.await {
        let status = gateways.get(GATE).await?.data["status"].take();
        return Err(error.context(format!("the Gateway says {status}")));
    }
    ensure!(
        services(world).get_opt(GATE).await?.is_some(),
        "the waypoint has no Service"
    );
    println!("the Gateway {INSIDE}/{GATE} is programmed, its Deployment is available");
    Ok(())
}

/// What is answered to so many requests for the service: the words, one for each; a refusal is its status line.
async fn asked(world: &World<'_>, path: &str, header: Option<&str>, count: u32) -> Result<Vec<String>> {
    let web = services(world).get("web").await?;
    let address = web.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
    let target = match address.contains(':') {
        true => format!("[{address}]:80"),
        false => format!("{address}:80"),
    };
    let count = count.to_string();
    let mut args = vec!["get", target.as_str(), path, "--count", count.as_str()];
    args.extend(header.into_iter().flat_map(|header| ["--header", header]));
    let log = world
        .run(&App {
            namespace: INSIDE,
            name: "browser",
            account: "client",
            node: &world.nodes[0],
            args: words(&args),
        })
        .await?;
    let said = log.lines().map(str::trim).filter(|line| {
        ["v1", "v2"].contains(line) || line.starts_with("HTTP/1.1 ") && !line.starts_with("HTTP/1.1 200")
    });
    Ok(said.map(str::to_owned).collect())
}

/// Asks until the answers are as they should be: a route takes a moment to arrive.
async fn asked_until(
    world: &World<'_>,
    what: &str,
    (path, header): (&str, Option<&str>),
    right: impl Fn(&[String]) -> bool,
) -> Result<()> {
    let mut last = Vec::new();
    let waited = until(what, Duration::from_secs(90), async || {
        last = asked(world, path, header, 40).await?;
        Ok((last.len() == 40 && right(&last)).then_some(()))
    });
    let waited = waited.await;
    waited.with_context(|| format!("last answers: {last:?}"))
}

async fn routed(world: &World<'_>) -> Result<()> {
    let routes = objects(world, GATEWAY_API, "HTTPRoute", "httproutes");
    let parent = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
    let to = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    let by_header: Value = json!({"headers": [{"name": "x-version", "value": "v2"}]});
    let spec = json!({"parentRefs": [parent], "rules": [
        {"matches": [by_header], "backendRefs": [to("web-v2", 1)]},
        {"matches": [{"path": {"type": "PathPrefix", "value": "/only-v1"}}], "backendRefs": [to("web-v1", 1), to("web-v2", 0)]},
        {"backendRefs": [to("web-v1", 1), to("web-v2", 1)]},
    ]});
    make(&routes, GATEWAY_API, "HTTPRoute", "web", &spec).await?;
    let all = |word: &'static str| move |said: &[String]| said.iter().all(|one| one == word);
    let v2 = ("/", Some("x-version: v2"));
    asked_until(world, "a header to choose v2", v2, all("v2")).await?;
    asked_until(
        world,
        "weights of 1 and 0 to choose v1",
        ("/only-v1", None),
        all("v1"),
    )
    .await?;
    let both = |said: &[String]| ["v1", "v2"].iter().all(|word| said.iter().any(|one| one == word));
    asked_until(world, "equal weights to choose both", ("/", None), both).await?;
    println!("an HTTPRoute chooses by header and by weight");
    Ok(())
}

async fn refused(world: &World<'_>) -> Result<()> {
    let policies = objects(world, SECURITY, "AuthorizationPolicy", "authorizationpolicies");
    let spec = json!({
        "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/private*"]}}]}],
    });
    make(&policies, SECURITY, "AuthorizationPolicy", "no-private", &spec).await?;
    let denied = |said: &[String]| said.iter().all(|one| one.starts_with("HTTP/1.1 403"));
    asked_until(world, "a path to be refused", ("/private/x", None), denied).await?;
    let served = |said: &[String]| said.iter().all(|one| !one.starts_with("HTTP/"));
    asked_until(world, "another path to be served", ("/", None), served).await?;
    println!("an AuthorizationPolicy refuses a path with 403, and no other");
    delete(&policies, "no-private").await?;
    delete(&objects(world, GATEWAY_API, "HTTPRoute", "httproutes"), "web").await
}

/// Kubernetes deletes what belonged to the Gateway.
async fn down(world: &World<'_>) -> Result<()> {
    let deployments = Api::<Deployment>::namespaced(world.client(), INSIDE);
    let accounts = Api::<ServiceAccount>::namespaced(world.client(), INSIDE);
    let of_gate = ListParams::default().labels(&of_gate());
    until("the waypoint to be gone", LIMIT, async || {
        let pods = world.pods(INSIDE).list_metadata(&of_gate).await?;
        let gone = deployments.get_opt(GATE).await?.is_none()
            && services(world).get_opt(GATE).await?.is_none()
            && accounts.get_opt(GATE).await?.is_none();
        Ok((gone && pods.items.is_empty()).then_some(()))
    })
    .await?;
    println!("with the Gateway its waypoint is gone");
    Ok(())
}
