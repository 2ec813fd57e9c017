//! weft's commands for people, against the cluster: `enroll`, `analyze --cluster`, those of waypoints, and `status`, which is asked
//! inside of an agent's pod, by a container that comes later (as `kubectl debug` makes it).

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{LogParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use weft::args::{Cli, Command};

use crate::{
    apps::{INSIDE, World},
    cluster::until,
    mesh::Mesh,
};

/// Runs one of weft's commands with the suite's kubeconfig, to an end that is good.
pub(crate) async fn run(mesh: &Mesh<'_>, line: &[&str]) -> Result<()> {
    let kubeconfig = format!("--kubeconfig={}", mesh.options.kubeconfig.display());
    let whole = ["weft"].iter().chain(line).copied().chain([kubeconfig.as_str()]);
    let code = match Cli::try_parse_from(whole)?.command {
        Command::Enroll(args) => Box::pin(weft::cli::enroll::run(args)).await?,
        Command::Analyze(args) => Box::pin(weft::cli::analyze::run(args)).await?,
        Command::Apply(args) => Box::pin(weft::cli::waypoints::apply(args)).await?,
        Command::Delete(args) => Box::pin(weft::cli::waypoints::delete(args)).await?,
        Command::Get(args) => Box::pin(weft::cli::waypoints::get(args)).await?,
        _ => bail!("the suite does not know how to run {line:?}"),
    };
    ensure!(
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS),
        "weft {line:?} ends with {code:?}"
    );
    Ok(())
}

/// What the commands say of a mesh that is well.
pub(crate) async fn ask(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    let server = format!("{INSIDE}/server");
    for node in &world.nodes {
        let status = status(mesh, world, node).await?;
        ensure!(
            status["ready"] == true,
            "the agent of {node} is not ready: {status}"
        );
        let runtime = runtime(world, node).await?;
        let may_be_off = mesh.options.values["agent"]["nri"]["enabled"] == false;
        println!(
            "{node}, {runtime}: {}",
            nri(&runtime, &status["nri"], may_be_off)?
        );
        if *node == world.nodes[1] {
            let mut pods = status["pods"].as_array().into_iter().flatten();
            let row = pods.find(|pod| pod["namespace"] == INSIDE && pod["workload"] == "server");
            let row = row.with_context(|| format!("weft status knows no pod {server}: {status}"))?;
            ensure!(row["state"] == "captured", "weft status says {row}");
        }
    }
    run(mesh, &["analyze", "--cluster", "--namespace", INSIDE]).await?;
    println!("weft status has {server} as captured, and weft analyze finds nothing wrong in {INSIDE}");
    Ok(())
}

/// A node's container runtime, as its kubelet tells it: `containerd://2.1.4`.
async fn runtime(world: &World<'_>, node: &str) -> Result<String> {
    let node = Api::<Node>::all(world.client()).get(node).await?;
    let told = node.status.and_then(|status| status.node_info);
    Ok(told.map_or_else(String::new, |told| told.container_runtime_version))
}

/// What came of asking the runtime to tell of pods that start. One that can do it does, or it is known why not: nobody listens
/// there, or whoever does runs another node's pods, as where nodes of one machine share the socket.
fn nri(runtime: &str, status: &Value, may_be_off: bool) -> Result<String> {
    let (state, socket) = (&status["state"], &status["socket"]);
    let why = status["message"].as_str().unwrap_or_default();
    let can = offers_nri(runtime);
    match state.as_str().unwrap_or_default() {
        "connected" => Ok(format!("{} tells of pods that start (NRI)", status["runtime"])),
        "absent" if !why.is_empty() => Ok(format!("no NRI at {socket}: {why}")),
        "refused" if why.contains("does not run this agent's own pod") => {
            Ok(format!("NRI at {socket} is left alone: {why}"))
        }
        "off" if may_be_off => Ok("NRI is switched off by the values".to_owned()),
        _ if !can => Ok(format!("no NRI of it: {status}")),
        _ => bail!("{runtime} has NRI, and the agent does without, for no good reason: {status}"),
    }
}

/// containerd has had NRI switched on since 2.0.
fn offers_nri(runtime: &str) -> bool {
    let major = runtime
        .strip_prefix("containerd://")
        .and_then(|version| version.trim_start_matches('v').split('.').next());
    major
        .and_then(|major| major.parse::<u32>().ok())
        .is_some_and(|major| major >= 2)
}

#[test]
fn a_runtime_that_has_nri_is_used_or_it_is_said_why_not() {
    let good = |runtime: &str, status: Value| nri(runtime, &status, false).is_ok();
    let (old, new) = ("containerd://1.7.27", "containerd://2.1.4");
    let foreign =
        "the runtime there (containerd 2.1.4) does not run this agent's own pod x: it is another node's";
    assert!(good(
        new,
        json!({"state": "connected", "runtime": "containerd 2.1.4"})
    ));
    assert!(good(new, json!({"state": "refused", "message": foreign})));
    assert!(good(new, json!({"state": "absent", "message": "connect"})));
    assert!(!good(
        new,
        json!({"state": "refused", "message": "what the runtime sends is not NRI"})
    ));
    assert!(good(
        old,
        json!({"state": "refused", "message": "what the runtime sends is not NRI"})
    ));
    assert!(!good(new, json!({"state": "off"})));
    assert!(nri(new, &json!({"state": "off"}), true).is_ok());
}

/// `weft status -o json` in the pod of a node's agent.
async fn status(mesh: &Mesh<'_>, world: &World<'_>, node: &str) -> Result<Value> {
    let name = mesh
        .agent(node)
        .await?
        .metadata
        .name
        .context("a pod without a name")?;
    let container = json!({"name": "status", "image": world.image, "imagePullPolicy": "IfNotPresent",
        "args": ["status", "-o", "json"]});
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": [container]}}));
    mesh.pods()
        .patch_ephemeral_containers(&name, &PatchParams::default(), &patch)
        .await
        .context("put a container into the agent's pod")?;
    until("weft status to have ended", Duration::from_secs(60), async || {
        let pod = mesh.pods().get(&name).await?;
        let statuses = pod.status.and_then(|status| status.ephemeral_container_statuses);
        let ended = statuses
            .into_iter()
            .flatten()
            .any(|one| one.state.is_some_and(|state| state.terminated.is_some()));
        Ok(ended.then_some(()))
    })
    .await?;
    let params = LogParams {
        container: Some("status".to_owned()),
        ..LogParams::default()
    };
    let said = mesh.pods().logs(&name, &params).await?;
    serde_json::from_str(&said).with_context(|| format!("weft status says {said:?}"))
}
