//! `weft get waypoints`: what waypoints there are, whether they take requests, and who is sent through them.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::{
    ClusterArgs,
    cluster::Cluster,
    read,
    read::{Replicas, Waypoint},
    table,
};

/// The flags of `weft get waypoints`.
#[derive(Clone, Debug, Args)]
#[command(after_help = GET_HELP)]
pub struct GetWaypointsArgs {
    /// The namespace that they are in [default: the kubeconfig's]
    #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Those of every namespace
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Output,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

const GET_HELP: &str = "\
Examples:
  weft get waypoints -A
  weft get waypoints -n shop -o json | jq '.[] | select(.programmed | not) | .message'

REPLICAS are its pods that are ready, of how many there are to be. SERVICES are those that are sent through it, by the label
istio.io/use-waypoint of their own or of their namespace, in all namespaces.

Exit codes: 0 done, 2 the cluster did not answer or refused.";

/// How it is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A line for each.
    #[default]
    Table,
    /// A list of objects, for scripts.
    Json,
}

/// Shows them.
pub(super) async fn run(args: &GetWaypointsArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let namespace = match args.all_namespaces {
        true => None,
        false => Some(args.namespace.as_deref().unwrap_or(cluster.default_namespace())),
    };
    let waypoints = waypoints(&cluster, namespace).await?;
    let text = match args.output {
        Output::Json => format!("{:#}\n", json!(waypoints)),
        Output::Table => table::render(&waypoints, namespace),
    };
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    super::super::exit_code(printed.map(|()| ExitCode::SUCCESS), "cannot print the waypoints")
}

/// Those of a namespace, or of all, with all that is known of them.
async fn waypoints(cluster: &Cluster, namespace: Option<&str>) -> anyhow::Result<Vec<Waypoint>> {
    let gateways = cluster.all_gateways(namespace).await?;
    let mut waypoints: Vec<_> = gateways.iter().filter_map(read::waypoint).collect();
    if waypoints.is_empty() {
        return Ok(waypoints);
    }
    let deployments = cluster.deployments(namespace).await?;
    let (services, namespaces) = cluster.services().await?;
    let mut bound = read::bound(&services, &namespaces);
    for waypoint in &mut waypoints {
        let is_its = |it: &&k8s_openapi::api::apps::v1::Deployment| {
            it.metadata.namespace.as_ref() == Some(&waypoint.namespace)
                && it.metadata.name.as_ref() == Some(&waypoint.name)
        };
        waypoint.replicas = deployments.iter().find(is_its).map(|it| {
            let ready = it.status.as_ref().and_then(|it| it.ready_replicas);
            let wanted = it.spec.replicas;
            Replicas {
                ready: ready.unwrap_or_default(),
                wanted: wanted.unwrap_or(1),
            }
        });
        let key = (waypoint.namespace.clone(), waypoint.name.clone());
        waypoint.services = bound.remove(&key).unwrap_or_default();
    }
    waypoints.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Ok(waypoints)
}
