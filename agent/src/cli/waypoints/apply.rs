//! `weft apply waypoint`: makes the Gateway, waits until it takes requests, and only then sends the namespace through it: what is
//! bound to a waypoint that is not ready is refused.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    ClusterArgs,
    cluster::Cluster,
    read::{self, Waypoint},
};
use crate::{
    cluster::labels,
    mesh::{HBONE_PORT, values},
};

/// How often the Gateway is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long, where a namespace is to be bound and nothing else is said.
const WAIT: u64 = 60;

/// The flags of `weft apply waypoint`.
#[derive(Clone, Debug, Args)]
#[command(after_help = APPLY_HELP)]
pub struct ApplyWaypointArgs {
    /// The waypoint's name
    #[arg(default_value = "waypoint", value_parser = name)]
    pub name: String,
    /// The namespace that it is in [default: the kubeconfig's]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// What goes through it, by what is dialled: addresses of services, pods' own, both or neither
    #[arg(long = "for", value_enum, value_name = "WHAT")]
    pub waypoint_for: Option<For>,
    /// Its class
    #[arg(long, value_name = "NAME", default_value = labels::WAYPOINT_CLASSES[0])]
    pub class: String,
    /// Send every service of its namespace through it, once it takes requests
    #[arg(long)]
    pub enroll_namespace: bool,
    /// Seconds to wait until it takes requests [default: 60 with --enroll-namespace, otherwise it does not wait]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub wait: Option<u64>,
    /// How to print; yaml prints what would be applied, and does nothing
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Format,
    /// Which cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

const APPLY_HELP: &str = "\
Examples:
  weft apply waypoint -n shop --enroll-namespace
  weft apply waypoint -n shop --for all --wait 120
  weft apply waypoint canary -n shop -o yaml > waypoint.yaml

It makes a Gateway of class weft-waypoint; the controller makes a Deployment and a Service for it. Services are sent through it by
the label istio.io/use-waypoint=NAME on them or on their namespace. Annotations of the Gateway say how it is deployed:
weft.dev/waypoint-replicas, weft.dev/waypoint-cpu, weft.dev/waypoint-memory, and weft.dev/waypoint-max-replicas with
weft.dev/waypoint-min-replicas for a number of pods that follows the load.

Exit codes: 0 it is applied (and takes requests, where it was waited for), 1 it does not take requests in that time, and its
namespace is not sent through it, 2 the cluster did not answer or refused.";

/// What goes through a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs, reason = "the names are Istio's")]
pub enum For {
    Service,
    Workload,
    All,
    None,
}

/// How it is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line for people.
    #[default]
    Table,
    /// One object, for scripts.
    Json,
    /// The Gateway, for a file.
    Yaml,
}

impl For {
    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
            Self::All => "all",
            Self::None => "none",
        }
    }
}

/// A name that a Service may have as well.
fn name(text: &str) -> Result<String, String> {
    let letter = text.starts_with(|it: char| it.is_ascii_lowercase());
    match values::label(text) {
        Ok(_) if letter => Ok(text.to_owned()),
        Ok(_) => Err("must begin with a letter".to_owned()),
        Err(message) => Err(message),
    }
}

/// Applies it.
pub(super) async fn run(args: &ApplyWaypointArgs) -> anyhow::Result<ExitCode> {
    if args.output == Format::Yaml {
        let namespace = args.namespace.as_deref();
        print!("{}", yaml(args, namespace));
        io::stdout().flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::connect(&args.cluster).await?;
    let namespace = args.namespace.as_deref().unwrap_or(cluster.default_namespace());
    cluster.check_namespace(namespace).await?;
    check_class(
        args,
        cluster
            .gateway(namespace, &args.name)
            .await?
            .as_ref()
            .and_then(read::waypoint),
        namespace,
    )?;
    let gateway = gateway(args, namespace, cluster.api_version());
    let applied = cluster.apply_gateway(&gateway).await;
    applied.with_context(|| format!("apply the Gateway {namespace}/{}", args.name))?;
    let wait = args.wait.unwrap_or(if args.enroll_namespace { WAIT } else { 0 });
    let waypoint = wait_for(&cluster, namespace, &args.name, Duration::from_secs(wait)).await?;
    let bound = args.enroll_namespace && waypoint.programmed;
    if bound {
        let bound = cluster.bind_namespace(namespace, &args.name).await;
        bound.with_context(|| format!("label the namespace {namespace}"))?;
    }
    print(args, &waypoint, bound)?;
    let done = waypoint.programmed || (wait == 0 && !args.enroll_namespace);
    Ok(ExitCode::from(u8::from(!done)))
}

/// A Gateway of another class is somebody else's.
fn check_class(args: &ApplyWaypointArgs, there: Option<Waypoint>, namespace: &str) -> anyhow::Result<()> {
    if let Some(there) = there {
        ensure!(
            there.class == args.class,
            "the Gateway {namespace}/{} is of class {}: choose another name, or --class {}",
            args.name,
            there.class,
            there.class
        );
    }
    Ok(())
}

fn gateway(args: &ApplyWaypointArgs, namespace: &str, api_version: &str) -> Value {
    let mut gateway = json!({
        "apiVersion": api_version,
        "kind": "Gateway",
        "metadata": {"name": args.name, "namespace": namespace},
        "spec": {
            "gatewayClassName": args.class,
            "listeners": [{"name": "mesh", "port": HBONE_PORT, "protocol": "HBONE"}],
        },
    });
    if let Some(waypoint_for) = args.waypoint_for {
        gateway["metadata"]["labels"] = json!({labels::WAYPOINT_FOR: waypoint_for.as_str()});
    }
    gateway
}

/// The same as text. The names in it need no quotes: what they may be was checked.
fn yaml(args: &ApplyWaypointArgs, namespace: Option<&str>) -> String {
    let mut text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n".to_owned();
    text += &format!("  name: {}\n", args.name);
    if let Some(namespace) = namespace {
        text += &format!("  namespace: {namespace:?}\n");
    }
    if let Some(waypoint_for) = args.waypoint_for {
        text += &format!(
            "  labels:\n    {}: {:?}\n",
            labels::WAYPOINT_FOR,
            waypoint_for.as_str()
        );
    }
    text += &format!("spec:\n  gatewayClassName: {:?}\n", args.class);
    text + &format!("  listeners:\n    - name: mesh\n      port: {HBONE_PORT}\n      protocol: HBONE\n")
}

/// Until it takes requests, or the time is over.
async fn wait_for(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    wait: Duration,
) -> anyhow::Result<Waypoint> {
    let deadline = Instant::now() + wait;
    loop {
        let Some(waypoint) = cluster
            .gateway(namespace, name)
            .await?
            .as_ref()
            .and_then(read::waypoint)
        else {
            bail!("somebody has deleted the Gateway {namespace}/{name}");
        };
        if waypoint.programmed || Instant::now() >= deadline {
            return Ok(waypoint);
        }
        sleep(LOOK).await;
    }
}

fn print(args: &ApplyWaypointArgs, waypoint: &Waypoint, bound: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match args.output {
        Format::Json => {
            let mut value = serde_json::to_value(waypoint)?;
            value["namespaceBound"] = bound.into();
            for unknown in ["services", "replicas"] {
                value.as_object_mut().map(|fields| fields.remove(unknown));
            }
            writeln!(out, "{value:#}")?;
        }
        _ => out.write_all(said(args, waypoint, bound).as_bytes())?,
    }
    Ok(out.flush()?)
}

/// What came of it.
pub(super) fn said(args: &ApplyWaypointArgs, waypoint: &Waypoint, bound: bool) -> String {
    let Waypoint {
        namespace,
        name,
        reason,
        message,
        ..
    } = waypoint;
    let state = match waypoint.programmed {
        true => format!("waypoint {namespace}/{name} takes requests\n"),
        false => format!(
            "waypoint {namespace}/{name} is applied, and takes no requests yet: {message} ({reason})\n"
        ),
    };
    let binding = match (args.enroll_namespace, bound) {
        (true, true) => format!("the services of namespace {namespace} go through it\n"),
        (true, false) => format!(
            "namespace {namespace} is not sent through it, because it would be refused: run this again with a longer --wait\n"
        ),
        (false, _) => format!(
            "send services through it by their label, or their namespace's: kubectl label namespace {namespace} {}={name}\n",
            labels::USE_WAYPOINT
        ),
    };
    state + &binding
}
