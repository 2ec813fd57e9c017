//! weft's commands for people, against the cluster: `enroll`, `analyze --cluster`, and `status`, which is asked inside of an
//! agent's pod, by a container that comes later (as `kubectl debug` makes it).

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser as _;
use kube::api::{LogParams, Patch, PatchParams};
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
    let status = status(mesh, world, &world.nodes[1]).await?;
    let mut pods = status["pods"].as_array().into_iter().flatten();
    let server = format!("{INSIDE}/server");
    let row = pods.find(|pod| pod["namespace"] == INSIDE && pod["workload"] == "server");
    let row = row.with_context(|| format!("weft status knows no pod {server}: {status}"))?;
    ensure!(row["state"] == "captured", "weft status says {row}");
    ensure!(status["ready"] == true, "the agent is not ready: {status}");
    run(mesh, &["analyze", "--cluster", "--namespace", INSIDE]).await?;
    println!("weft status has {server} as captured, and weft analyze finds nothing wrong in {INSIDE}");
    Ok(())
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
