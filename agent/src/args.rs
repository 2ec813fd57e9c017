//! Every flag and environment variable of every role and command. Nothing else reads the environment.

mod address;
mod agent;
mod controller;
mod ports;
mod source;
mod waypoint;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

use self::source::Who;
pub use self::{
    agent::{AgentArgs, LimitArgs},
    controller::ControllerArgs,
    ports::PortArgs,
    source::{LinkArgs, SourceArgs},
    waypoint::{PathNormalization, WaypointArgs},
};
use crate::{
    cli::{
        analyze::AnalyzeArgs,
        ca::CaArgs,
        enroll::EnrollArgs,
        explain::ExplainArgs,
        mount_bpffs::MountArgs,
        release::ReleaseArgs,
        status::StatusArgs,
        test_app::TestAppArgs,
        uninstall::UninstallArgs,
        waypoints::{ApplyArgs, DeleteArgs, GetArgs},
    },
    cluster::client::Access,
    mesh::{SameNode, TrustDomain},
    telemetry::{LogFormat, log},
};

/// A sidecarless service mesh for Kubernetes: mutual TLS, authorization by identity and telemetry, without a proxy in
/// any pod.
#[derive(Debug, Parser)]
#[command(name = "weft", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  weft ca new --out /etc/weft/ca
  weft agent --node node-a --mesh-file mesh.yaml --ca-cert ca/root.pem --ca-key ca/root-key.pem
  weft status
  weft enroll shop --wait 60
  weft apply waypoint -n shop --enroll-namespace
  weft status -o json | jq .pods
  weft analyze manifests/
  weft explain --from demo/shop-1 --to cart.demo.svc.cluster.local:80

Exit codes: 0 done, healthy or allowed; 1 failed, not healthy or refused; 2 wrong usage or no agent answered.";

/// Roles that run, and commands for people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node agent: capture this node's pods and carry their connections
    Agent(Box<AgentArgs>),
    /// Run the controller: compile what Kubernetes says into a mesh, serve it to agents, sign their certificates
    Controller(Box<ControllerArgs>),
    /// Run a waypoint: route and authorize the requests to the services of a namespace
    Waypoint(Box<WaypointArgs>),
    /// Show what the agent of this node does: pods, programs, certificates, connections
    Status(StatusArgs),
    /// Say what becomes of a connection and why: its route, identities, encryption, and the policy that decides
    Explain(Box<ExplainArgs>),
    /// Put a namespace's pods in the mesh, or take them out, and wait until that is done
    Enroll(EnrollArgs),
    /// Make or change a waypoint
    Apply(ApplyArgs),
    /// Show waypoints
    Get(GetArgs),
    /// Delete a waypoint
    Delete(DeleteArgs),
    /// Say what is wrong with manifests or a cluster's objects, or will not do what it seems to
    Analyze(AnalyzeArgs),
    /// Make the root certificate of a local CA
    Ca(CaArgs),
    /// Take weft out of this node's kernel, after its agent has ended for good: pods are as they were without it
    Release(ReleaseArgs),
    /// What `helm uninstall` ends with, in one pod of the cluster
    #[command(hide = true)]
    UninstallHook(UninstallArgs),
    /// Mount bpffs where a node has none
    #[command(hide = true)]
    MountBpffs(MountArgs),
    /// The apps of the end-to-end tests, which have no other image
    #[command(hide = true)]
    TestApp(TestAppArgs),
}

/// Logging of the roles.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// What is logged: a level, or `target=level,...`; the target `access` has one line for each connection
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info", value_parser = log::filter)]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,
}

/// What the mesh is called, for every role alike.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mesh")]
pub struct MeshArgs {
    /// The trust domain of every identity
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME", default_value_t)]
    pub trust_domain: TrustDomain,
    /// The cluster's name, as part of workloads' uids
    #[arg(
        long,
        env = "WEFT_CLUSTER_ID",
        value_name = "NAME",
        default_value = "Kubernetes"
    )]
    pub cluster_id: String,
    /// What services' hostnames end in
    #[arg(
        long,
        env = "WEFT_CLUSTER_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub cluster_domain: String,
    /// The namespace whose policies cover the whole mesh
    #[arg(
        long,
        env = "WEFT_ROOT_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "istio-system"
    )]
    pub root_namespace: String,
    /// Networks of the cluster's pods and services, separated by commas: an address in them that nobody has is refused, and
    /// any other is left alone
    #[arg(
        long,
        env = "WEFT_CLUSTER_CIDRS",
        value_name = "CIDR,...",
        value_delimiter = ','
    )]
    pub cluster_cidrs: Vec<IpNet>,
    /// How connections between pods of one node go where nothing else is said: from app to app, or through a tunnel
    #[arg(long, env = "WEFT_SAME_NODE", value_name = "kernel|tunnel", default_value = "kernel", value_parser = same_node)]
    pub same_node: SameNode,
}

impl MeshArgs {
    /// The same as arguments, for a role that is started for somebody else.
    pub fn as_args(&self) -> Vec<String> {
        let mut args = vec![
            format!("--cluster-id={}", self.cluster_id),
            format!("--trust-domain={}", self.trust_domain),
            format!("--cluster-domain={}", self.cluster_domain),
            format!("--root-namespace={}", self.root_namespace),
        ];
        if !self.cluster_cidrs.is_empty() {
            let networks: Vec<_> = self.cluster_cidrs.iter().map(IpNet::to_string).collect();
            args.push(format!("--cluster-cidrs={}", networks.join(",")));
        }
        args
    }
}

fn same_node(text: &str) -> Result<SameNode, String> {
    match text {
        "kernel" => Ok(SameNode::Kernel),
        "tunnel" => Ok(SameNode::Tunnel),
        _ => Err("write kernel or tunnel".into()),
    }
}

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubeArgs {
    /// The kubeconfig [default: as kubectl, and in a pod its service account]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context in it [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl KubeArgs {
    /// As the client takes it.
    pub fn access(&self) -> Access {
        Access {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
