//! Every flag and environment variable of every role and command. Nothing else reads the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand};
use ipnet::IpNet;

use crate::{
    admin::AdminAddrs,
    cli::{
        ca::CaArgs, enroll::EnrollArgs, explain::ExplainArgs, mount_bpffs::MountArgs, release::ReleaseArgs,
        status::StatusArgs, test_app::TestAppArgs, uninstall::UninstallArgs,
    },
    cluster::client::Access,
    controller::{AgentAccount, ControllerConfig, compile::Settings},
    kernel::{load::LoadConfig, pins},
    mesh::{SameNode, TrustDomain},
    node::{LimitSettings, NodeConfig, default_ports},
    svid::TrustFiles,
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
  weft status -o json | jq .pods
  weft explain --from demo/shop-1 --to cart.demo.svc.cluster.local:80

Exit codes: 0 done, healthy or allowed; 1 failed, not healthy or refused; 2 wrong usage or no agent answered.";

/// Roles that run, and commands for people.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node agent: capture this node's pods and carry their connections
    Agent(Box<AgentArgs>),
    /// Run the controller: compile what Kubernetes says into a mesh, serve it to agents, sign their certificates
    Controller(Box<ControllerArgs>),
    /// Show what the agent of this node does: pods, programs, certificates, connections
    Status(StatusArgs),
    /// Say what becomes of a connection and why: its route, identities, encryption, and the policy that decides
    Explain(Box<ExplainArgs>),
    /// Put a namespace's pods in the mesh, or take them out, and wait until that is done
    Enroll(EnrollArgs),
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

/// Flags of `weft agent`.
#[derive(Debug, Args)]
#[command(after_help = AGENT_HELP)]
pub struct AgentArgs {
    /// Name of this node, as the mesh file's workloads give it
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The mesh: workloads, services and policies, as YAML; read again whenever it changes
    #[arg(long, env = "WEFT_MESH_FILE", value_name = "FILE")]
    pub mesh_file: PathBuf,
    /// Root certificate of the mesh, PEM; more roots may follow it. Read again when it or the key changes: every pod gets
    /// a certificate of the new one at once
    #[arg(long, env = "WEFT_CA_CERT", value_name = "FILE")]
    pub ca_cert: PathBuf,
    /// Private key of the root, PEM; the agent signs its pods' 24 h certificates with it
    #[arg(long, env = "WEFT_CA_KEY", value_name = "FILE")]
    pub ca_key: PathBuf,
    /// More roots whose certificates are accepted, PEM, read again whenever it changes: the old and the new one while the
    /// mesh's root is replaced. Connections of a root that is removed are closed
    #[arg(long, env = "TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// Lists of revoked certificates, PEM, read again whenever it changes; connections of what is revoked are closed
    #[arg(long, env = "CRL_PATH", value_name = "FILE")]
    pub crl: Option<PathBuf>,
    /// The cgroup2 folder whose processes are hooked [default: the root of cgroup2, wherever it is mounted]
    #[arg(long, env = "WEFT_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// Where programs and maps are pinned, on bpffs; they outlive the agent, and the next one adopts them
    #[arg(
        long,
        env = "WEFT_PIN_DIR",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/weft",
        value_parser = pins::place
    )]
    pub pin_dir: PathBuf,
    /// The cgroup2 folder under which all pods of the node are: processes of the node that are not in it, such as the
    /// kubelet, reach pods in STRICT too [default: the kubelet's, where there is one]
    #[arg(long, env = "WEFT_PODS_CGROUP", value_name = "DIR")]
    pub pods_cgroup: Option<PathBuf>,
    /// Capture the pods of this node that labels select in the cluster of this kubeconfig, wherever their network
    /// namespaces are, in place of those that the mesh file gives a netns
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The cluster's name, as in the uids of its workloads
    #[arg(long, env = "CLUSTER_ID", value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// The namespace that weft runs in: its pods are never captured
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAME",
        default_value = "weft-system"
    )]
    pub own_namespace: String,
    /// The key of the taint that is taken from this node once its pods are captured, such as weft.dev/agent-not-ready [default:
    /// taints are left alone]
    #[arg(long, env = "WEFT_STARTUP_TAINT", value_name = "KEY")]
    pub startup_taint: Option<String>,
    /// The node's own network namespace
    #[arg(
        long,
        env = "WEFT_NODE_NETNS",
        value_name = "FILE",
        default_value = "/proc/1/ns/net"
    )]
    pub node_netns: PathBuf,
    /// Seconds for which pairs of pods of this node go on from app to app when the agent has gone
    #[arg(long, env = "WEFT_SAME_NODE_LEASE", value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub same_node_lease: u64,
    /// Replace the agent that runs, if one does: it lets go once this one is ready to begin, and no connection is refused
    #[arg(long, env = "WEFT_TAKEOVER")]
    pub takeover: bool,
    /// Seconds that open connections may go on after SIGTERM
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub drain_timeout: u64,
    /// Threads that carry connections [default: a quarter of the cores, at least 2]
    #[arg(long, env = "WEFT_WORKERS", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// Whether pods' DNS queries are answered with the mesh's services; a workload's dnsCapture says otherwise for its pod
    #[arg(
        long,
        env = "WEFT_DNS_CAPTURE",
        value_name = "BOOL",
        default_value_t = true,
        action = ArgAction::Set
    )]
    pub dns_capture: bool,
    /// What bounds peers and pods
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Where people ask: status, log level, shutdown; keep it on loopback
    #[arg(long, value_name = "ADDR", default_value_t = default_ports().admin)]
    pub admin_address: SocketAddr,
    /// Where Prometheus scrapes /metrics
    #[arg(long, value_name = "ADDR", default_value_t = default_ports().metrics)]
    pub metrics_address: SocketAddr,
    /// Where the kubelet asks for /healthz/ready
    #[arg(long, value_name = "ADDR", default_value_t = default_ports().ready)]
    pub ready_address: SocketAddr,
    /// What is logged
    #[command(flatten)]
    pub logging: LogArgs,
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

/// What the mesh is called, for `weft agent` and `weft controller` alike.
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

fn same_node(text: &str) -> Result<SameNode, String> {
    match text {
        "kernel" => Ok(SameNode::Kernel),
        "tunnel" => Ok(SameNode::Tunnel),
        _ => Err("write kernel or tunnel".into()),
    }
}

/// How the Kubernetes API is reached.
#[derive(Clone, Debug, Default, Args)]
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

/// Flags of `weft controller`.
#[derive(Debug, Args)]
#[command(after_help = CONTROLLER_HELP)]
pub struct ControllerArgs {
    /// Where agents ask for the mesh and for certificates, over TLS
    #[arg(
        long,
        env = "WEFT_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:15012"
    )]
    pub listen: SocketAddr,
    /// Where Prometheus asks for /metrics and the kubelet for /healthz/ready
    #[arg(long, env = "WEFT_HTTP", value_name = "ADDR", default_value = "0.0.0.0:15014")]
    pub http: SocketAddr,
    /// The namespace that it runs in
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "weft-system"
    )]
    pub namespace: String,
    /// The Service in front of it: its certificate is for that name
    #[arg(
        long,
        env = "WEFT_SERVICE",
        value_name = "NAME",
        default_value = "weft-controller"
    )]
    pub service: String,
    /// This replica's name, of which one at a time writes to the cluster
    #[arg(
        long,
        env = "POD_NAME",
        value_name = "NAME",
        default_value = "weft-controller"
    )]
    pub replica: String,
    /// The Secret with the mesh's root (tls.crt, tls.key, and ca.crt for more roots); made where there is none
    #[arg(long, env = "WEFT_CA_SECRET", value_name = "NAME", default_value = "weft-ca")]
    pub ca_secret: String,
    /// The ConfigMap that says whom to trust
    #[arg(
        long,
        env = "WEFT_ROOT_CONFIG_MAP",
        value_name = "NAME",
        default_value = "weft-ca-root-cert"
    )]
    pub root_config_map: String,
    /// Tokens are accepted that are for one of these audiences
    #[arg(
        long,
        env = "WEFT_TOKEN_AUDIENCES",
        value_name = "NAME,...",
        value_delimiter = ',',
        default_value = "weft-ca,istio-ca"
    )]
    pub token_audiences: Vec<String>,
    /// Service accounts that may ask for certificates of their node's pods [default: weft-agent of --namespace]
    #[arg(
        long,
        env = "WEFT_TRUSTED_AGENTS",
        value_name = "NAMESPACE/NAME,...",
        value_delimiter = ',',
        value_parser = account
    )]
    pub trusted_agents: Vec<(String, String)>,
    /// What the mesh is called
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// How the Kubernetes API is reached
    #[command(flatten)]
    pub kube: KubeArgs,
    /// What is logged
    #[command(flatten)]
    pub logging: LogArgs,
}

const CONTROLLER_HELP: &str = "\
Runs in the cluster, as the chart in deploy/chart has it. Every replica serves agents; one at a time writes events.
Its service account must be able to list and watch what it compiles, to create TokenReviews, and to keep the Secret,
the ConfigMap and the Lease in its namespace.";

fn account(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("write NAMESPACE/NAME of a service account".into()),
    }
}

impl ControllerArgs {
    /// The controller role's configuration.
    pub fn config(&self) -> ControllerConfig {
        let own = || vec![(self.namespace.as_str().into(), "weft-agent".into())];
        let given = self.trusted_agents.iter();
        let given: Vec<AgentAccount> = given
            .map(|(namespace, name)| (namespace.as_str().into(), name.as_str().into()))
            .collect();
        ControllerConfig {
            access: self.kube.access(),
            listen: self.listen,
            http: self.http,
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            replica: self.replica.clone(),
            settings: Settings {
                trust_domain: self.mesh.trust_domain.clone(),
                cluster: self.mesh.cluster_id.as_str().into(),
                cluster_domain: self.mesh.cluster_domain.to_ascii_lowercase().into(),
                root_namespace: self.mesh.root_namespace.as_str().into(),
                own_namespace: self.namespace.as_str().into(),
                cluster_cidrs: self.mesh.cluster_cidrs.clone(),
                same_node: self.mesh.same_node,
            },
            ca_secret: self.ca_secret.clone(),
            root_config_map: self.root_config_map.clone(),
            audiences: self.token_audiences.clone(),
            agents: if given.is_empty() { own() } else { given },
        }
    }
}

/// Limits of `weft agent`. Each has a series of weft_limit_rejections_total.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Sockets of connections, open at once: one for a connection through a tunnel, two for one in plaintext, one for each
    /// tunnel [default: what the limit of open files leaves; each pod has 32 whatever the others have]
    #[arg(long, env = "WEFT_MAX_SOCKETS", value_name = "COUNT")]
    pub max_sockets: Option<usize>,
    /// The same, of one pod's connections [default: half of --max-sockets]
    #[arg(long, env = "WEFT_MAX_SOCKETS_PER_POD", value_name = "COUNT")]
    pub max_sockets_per_pod: Option<usize>,
    /// Connections of one address to one pod [default: half of --max-sockets-per-pod]
    #[arg(long, env = "WEFT_MAX_CONNECTIONS_PER_PEER", value_name = "COUNT")]
    pub max_connections_per_peer: Option<usize>,
    /// TLS handshakes under way; one pod may have half of them
    #[arg(long, env = "WEFT_MAX_HANDSHAKES", value_name = "COUNT", default_value_t = LimitSettings::default().max_handshakes)]
    pub max_handshakes: usize,
    /// TLS handshakes under way of one address with one pod
    #[arg(long, env = "WEFT_MAX_HANDSHAKES_PER_PEER", value_name = "COUNT", default_value_t = LimitSettings::default().max_handshakes_per_peer)]
    pub max_handshakes_per_peer: usize,
    /// MiB that may wait for apps that read slowly, beyond the 16 MiB that each tunnel may hold (4 from the ninth between
    /// two pods on); then senders wait
    #[arg(long, env = "WEFT_MAX_BUFFERED_MIB", value_name = "MIB", default_value_t = LimitSettings::default().max_buffered >> 20, value_parser = mib)]
    pub max_buffered_mib: usize,
    /// The same, of tunnels between two pods
    #[arg(long, env = "WEFT_MAX_BUFFERED_PER_PEER_MIB", value_name = "MIB", default_value_t = LimitSettings::default().max_buffered_per_peer >> 20, value_parser = mib)]
    pub max_buffered_per_peer_mib: usize,
    /// Seconds that a TLS handshake may take, and then the HTTP/2 preface
    #[arg(long, env = "WEFT_HANDSHAKE_TIMEOUT", value_name = "SECONDS", default_value_t = LimitSettings::default().handshake_timeout.as_secs(), value_parser = clap::value_parser!(u64).range(1..=600))]
    pub handshake_timeout: u64,
    /// Seconds after which a tunnel without a stream is closed
    #[arg(long, env = "WEFT_IDLE_TUNNEL_TIMEOUT", value_name = "SECONDS", default_value_t = LimitSettings::default().idle_tunnel_timeout.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub idle_tunnel_timeout: u64,
}

/// A number of MiB whose bytes can be counted.
fn mib(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 20;
    match text.parse() {
        Ok(mib) if mib <= MOST => Ok(mib),
        _ => Err(format!("not a number of MiB from 0 to {MOST}")),
    }
}

impl LimitArgs {
    fn settings(&self) -> LimitSettings {
        LimitSettings {
            max_sockets: self.max_sockets,
            max_sockets_per_pod: self.max_sockets_per_pod,
            max_connections_per_peer: self.max_connections_per_peer,
            max_handshakes: self.max_handshakes,
            max_handshakes_per_peer: self.max_handshakes_per_peer,
            max_buffered: self.max_buffered_mib << 20,
            max_buffered_per_peer: self.max_buffered_per_peer_mib << 20,
            handshake_timeout: Duration::from_secs(self.handshake_timeout),
            idle_tunnel_timeout: Duration::from_secs(self.idle_tunnel_timeout),
        }
    }
}

const AGENT_HELP: &str = "\
Needs Linux 5.15 or later, cgroup2, bpffs on /sys/fs/bpf, and CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE.
It gives up all others at once, so its user must own the files that it reads, or they must be readable to it.
A pod is captured when its workload in the mesh file has this node's name, tunnelProtocol HBONE and a netns.
When the agent ends, captured pods are refused until the next one runs; nothing is sent in plaintext.
To upgrade, start the new agent with --takeover beside the old one and end the old one once the new one is ready.
To stop for good, end the agent and run `weft release`.";

impl AgentArgs {
    /// The node role's configuration, in a process that may open so many files.
    pub fn config(&self, open_files: usize) -> NodeConfig {
        NodeConfig {
            node: self.node.clone(),
            mesh_file: self.mesh_file.clone(),
            trust: TrustFiles {
                ca_cert: self.ca_cert.clone(),
                ca_key: self.ca_key.clone(),
                bundle: self.trust_bundle.clone(),
                crl: self.crl.clone(),
            },
            load: LoadConfig {
                cgroup_root: self.cgroup_root.clone(),
                pin_dir: self.pin_dir.clone(),
            },
            pods_cgroup: self.pods_cgroup.clone(),
            listing: None,
            node_netns: self.node_netns.clone(),
            same_node_lease: Duration::from_secs(self.same_node_lease),
            takeover: self.takeover,
            drain_timeout: Duration::from_secs(self.drain_timeout),
            workers: self.workers.unwrap_or_else(default_workers),
            dns_capture: self.dns_capture,
            limits: self.limits.settings(),
            open_files,
            admin: AdminAddrs {
                admin: self.admin_address,
                metrics: self.metrics_address,
                ready: self.ready_address,
            },
        }
    }
}

/// A quarter of the cores, at least 2 (as the field's node proxies).
fn default_workers() -> u16 {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    u16::try_from(cores.div_ceil(4)).unwrap_or(64).clamp(2, 64)
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
