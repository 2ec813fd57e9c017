//! `weft delete waypoint`: deletes its Gateway, with which goes what was made for it. Services that are bound to it are refused
//! from then on, never sent around it: so it asks first.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;

use super::{ClusterArgs, cluster::Cluster, read};
use crate::cluster::labels;

/// The most services that are named.
const MOST_NAMED: usize = 10;

/// The flags of `weft delete waypoint`.
#[derive(Clone, Debug, Args)]
#[command(after_help = DELETE_HELP)]
pub struct DeleteWaypointArgs {
    /// The waypoint's name
    pub name: String,
    /// The namespace that it is in [default: the kubeconfig's]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Delete it although services are bound to it, which are refused then
    #[arg(long, short)]
    pub yes: bool,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

const DELETE_HELP: &str = "\
Examples:
  weft delete waypoint waypoint -n shop
  kubectl label namespace shop istio.io/use-waypoint- && weft delete waypoint waypoint -n shop

Services that are bound to it by the label istio.io/use-waypoint are refused without it. While there are any it asks first, and
without a terminal it wants --yes.

Exit codes: 0 deleted, 1 services are bound to it and nobody said yes, 2 the cluster did not answer or refused, or has no such
waypoint.";

/// Deletes it.
pub(super) async fn run(args: &DeleteWaypointArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&args.cluster).await?;
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    let name = &args.name;
    let found = cluster.gateway(namespace, name).await?;
    match found.as_ref().map(read::waypoint) {
        None => bail!("there is no waypoint {namespace}/{name}: `weft get waypoints -A` lists them"),
        Some(None) => bail!("the Gateway {namespace}/{name} is no waypoint: delete it with kubectl"),
        Some(Some(_)) => {}
    }
    let (services, namespaces) = cluster.services().await?;
    let key = (namespace.to_owned(), name.clone());
    let bound = read::bound(&services, &namespaces)
        .remove(&key)
        .unwrap_or_default();
    if !bound.is_empty() && !args.yes {
        let warning = warning(namespace, name, &bound);
        if !io::stdin().is_terminal() {
            eprint!("weft: {warning}");
            eprintln!(
                "Take their label {} away first, or add --yes.",
                labels::USE_WAYPOINT
            );
            return Ok(ExitCode::from(1));
        }
        if !confirmed(&warning)? {
            println!("nothing is deleted");
            return Ok(ExitCode::from(1));
        }
    }
    let deleted = cluster.delete_gateway(namespace, name).await;
    deleted.with_context(|| format!("delete the Gateway {namespace}/{name}"))?;
    println!("waypoint {namespace}/{name} is deleted");
    Ok(ExitCode::SUCCESS)
}

/// What deleting it does.
pub(super) fn warning(namespace: &str, name: &str, bound: &[String]) -> String {
    let mut named = bound
        .iter()
        .take(MOST_NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if bound.len() > MOST_NAMED {
        named += &format!(" and {} more", bound.len() - MOST_NAMED);
    }
    let count = bound.len();
    format!("{count} services go through waypoint {namespace}/{name}, and are refused without it: {named}.\n")
}

fn confirmed(warning: &str) -> io::Result<bool> {
    let mut out = io::stderr().lock();
    write!(out, "{warning}Delete it? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
