//! Flags of `weft agent`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args};

use super::{KubeArgs, LogArgs, PortArgs, SourceArgs, Who};
use crate::{
    kernel::{load::LoadConfig, pins},
    limits::LimitSettings,
    net::netns,
    node::{NodeConfig, pods::nri::SOCKET},
    rpc::Roots,
};

/// Flags of `weft agent`.
#[derive(Debug, Args)]
#[command(after_help = AGENT_HELP)]
pub struct AgentArgs {
    /// Name of this node, as the mesh file's workloads give it
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Where the mesh and certificates come from
    #[command(flatten)]
    pub from: SourceArgs,
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
    /// How the Kubernetes API is reached. With a mesh file it is asked only if this is given: then the pods of this node are
    /// captured that labels select, wherever their network namespaces are
    #[command(flatten)]
    pub kube: KubeArgs,
    /// The key of the taint that is taken from this node once its pods are captured, such as weft.dev/agent-not-ready [default:
    /// taints are left alone]
    #[arg(long, env = "WEFT_STARTUP_TAINT", value_name = "KEY")]
    pub startup_taint: Option<String>,
    /// The container runtime's NRI socket: it tells of pods that start, and waits until they are captured. Where there is none
    /// they are found by their cgroups; `none` asks nobody
    #[arg(long, env = "WEFT_NRI_SOCKET", value_name = "FILE", default_value = SOCKET)]
    pub nri_socket: String,
    /// The UID of this agent's own pod: an NRI socket behind which that pod does not run is another node's, and is not asked
    #[arg(long, env = "POD_UID", value_name = "UID")]
    pub pod_uid: Option<String>,
    /// The node's own network namespace [default: in a container that of the runtime that started it, else that of process 1]
    #[arg(
        long,
        env = "WEFT_NODE_NETNS",
        value_name = "FILE",
        default_value_os_t = netns::of_the_node(),
        hide_default_value = true
    )]
    pub node_netns: PathBuf,
    /// An address of the node: where --node-netns does not have it, the namespace of a process that has it is taken
    #[arg(long, env = "WEFT_NODE_IP", value_name = "ADDR")]
    pub node_ip: Option<IpAddr>,
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
    /// Where its own ports are
    #[command(flatten)]
    pub ports: PortArgs,
    /// What is logged
    #[command(flatten)]
    pub logging: LogArgs,
}

/// Limits of `weft agent` and `weft waypoint`. Each has a series of weft_limit_rejections_total.
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
    pub(super) fn settings(&self) -> LimitSettings {
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
With a mesh file a pod is captured when its workload has this node's name, tunnelProtocol HBONE and a netns; with a
controller when it runs on this node and labels say so (istio.io/dataplane-mode=ambient).
When the agent ends, captured pods are refused until the next one runs; nothing is sent in plaintext.
To upgrade, start the new agent with --takeover beside the old one and end the old one once the new one is ready.
To stop for good, end the agent and run `weft release`.";

impl AgentArgs {
    /// The node role's configuration, in a process that may open so many files. `roots` are those that a controller's
    /// certificate may end in.
    pub fn config(&self, open_files: usize, roots: Roots) -> NodeConfig {
        NodeConfig {
            node: self.node.clone(),
            source: self.from.config(
                &Who {
                    role: "ztunnel",
                    sees_requests: false,
                    namespace: &self.from.link.own_namespace,
                    node: &self.node,
                },
                roots,
            ),
            load: LoadConfig {
                cgroup_root: self.cgroup_root.clone(),
                pin_dir: self.pin_dir.clone(),
            },
            pods_cgroup: self.pods_cgroup.clone(),
            listing: None,
            nri_socket: Some(&self.nri_socket)
                .filter(|socket| !["", "none"].contains(&socket.as_str()))
                .map(PathBuf::from),
            pod_uid: self.pod_uid.clone().filter(|uid| !uid.is_empty()),
            node_netns: self.node_netns.clone(),
            node_ip: self.node_ip,
            same_node_lease: Duration::from_secs(self.same_node_lease),
            takeover: self.takeover,
            drain_timeout: Duration::from_secs(self.drain_timeout),
            workers: self.workers.unwrap_or_else(default_workers),
            dns_capture: self.dns_capture,
            limits: self.limits.settings(),
            open_files,
            admin: self.ports.addrs(),
        }
    }
}

impl AgentArgs {
    /// Whether the Kubernetes API is asked which pods are to be captured.
    pub fn asks_kubernetes(&self) -> bool {
        self.from.controller.is_some() || self.kube != KubeArgs::default()
    }
}

/// A quarter of the cores, at least 2 (as the field's node proxies).
fn default_workers() -> u16 {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    u16::try_from(cores.div_ceil(4)).unwrap_or(64).clamp(2, 64)
}
