//! Flags of `weft waypoint`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::{KubeArgs, LimitArgs, LogArgs, PortArgs, SourceArgs, Who};
use crate::{
    mesh::{http::Normalization, values},
    rpc::Roots,
    waypoint::{GatewayName, Settings, WaypointConfig, default_listen},
};

/// Flags of `weft waypoint`.
#[derive(Debug, Args)]
#[command(after_help = WAYPOINT_HELP)]
pub struct WaypointArgs {
    /// The Gateway whose waypoint this is: its service and its service account have its name
    #[arg(long, env = "WEFT_GATEWAY", value_name = "NAMESPACE/NAME", value_parser = gateway)]
    pub gateway: GatewayName,
    /// This pod's own addresses, separated by commas: by them it is found in the mesh
    #[arg(
        long,
        env = "POD_IP",
        value_name = "ADDR,...",
        value_delimiter = ',',
        required = true
    )]
    pub address: Vec<IpAddr>,
    /// Where tunnels are taken
    #[arg(long, env = "WEFT_LISTEN", value_name = "ADDR", default_value_t = default_listen())]
    pub listen: SocketAddr,
    /// Where the mesh and certificates come from
    #[command(flatten)]
    pub from: SourceArgs,
    /// How the Kubernetes API is reached, which is asked for the roots that the controller's certificate may end in
    #[command(flatten)]
    pub kube: KubeArgs,
    /// Threads that carry requests [default: the cores, at most 64]
    #[arg(long, env = "WEFT_WORKERS", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: Option<u16>,
    /// Seconds that requests under way may go on after SIGTERM
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", value_name = "SECONDS", default_value_t = Settings::default().drain_timeout.as_secs(), value_parser = clap::value_parser!(u64).range(..=3600))]
    pub drain_timeout: u64,
    /// Seconds after which a client's connection is told to go elsewhere, so that new replicas get their share; up to a tenth
    /// less
    #[arg(long, env = "WEFT_MAX_CONNECTION_AGE", value_name = "SECONDS", default_value_t = Settings::default().max_connection_age.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub max_connection_age: u64,
    /// Milliseconds for which a client may say nothing on a port of which no protocol is known: then it waits for the server's
    /// first word, and the connection is TCP
    #[arg(long, env = "WEFT_SNIFF_TIMEOUT", value_name = "MILLISECONDS", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub sniff_timeout: u64,
    /// Seconds that the head of a request may take
    #[arg(long, env = "WEFT_HEADER_TIMEOUT", value_name = "SECONDS", default_value_t = Settings::default().header_timeout.as_secs(), value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub header_timeout: u64,
    /// Seconds after which a client's connection without a request is closed
    #[arg(long, env = "WEFT_CLIENT_IDLE_TIMEOUT", value_name = "SECONDS", default_value_t = Settings::default().idle_timeout.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub client_idle_timeout: u64,
    /// How paths are made the same before routes and policies look at them (Istio's pathNormalization)
    #[arg(
        long,
        env = "WEFT_PATH_NORMALIZATION",
        value_enum,
        default_value = "MERGE_SLASHES"
    )]
    pub path_normalization: PathNormalization,
    /// What bounds peers
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Where its own ports are
    #[command(flatten)]
    pub ports: PortArgs,
    /// What is logged
    #[command(flatten)]
    pub logging: LogArgs,
}

const WAYPOINT_HELP: &str = "\
Needs no capability, and gives up those that it has.
It is ready when it has found itself in the mesh, has its certificate, and takes tunnels. What is not bound to this waypoint
is refused: it leads nowhere else.";

/// How paths are made the same, by Istio's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// Escapes alone
    None,
    /// Backslashes are slashes; . and .. are followed
    Base,
    /// And slashes beside each other are one
    MergeSlashes,
    /// And %2F and %5C are slashes
    DecodeAndMergeSlashes,
}

impl From<PathNormalization> for Normalization {
    fn from(how: PathNormalization) -> Self {
        match how {
            PathNormalization::None => Self::None,
            PathNormalization::Base => Self::Base,
            PathNormalization::MergeSlashes => Self::MergeSlashes,
            PathNormalization::DecodeAndMergeSlashes => Self::DecodeAndMergeSlashes,
        }
    }
}

fn gateway(text: &str) -> Result<GatewayName, String> {
    let (namespace, name) = text.split_once('/').ok_or("write <namespace>/<name>")?;
    Ok(GatewayName {
        namespace: values::label(namespace)?,
        name: values::name(name)?,
    })
}

impl WaypointArgs {
    /// The role's configuration, in a process that may open so many files. `roots` are those that a controller's certificate may
    /// end in.
    pub fn config(&self, open_files: usize, roots: Roots) -> WaypointConfig {
        let who = Who {
            role: "waypoint",
            sees_requests: true,
            namespace: &self.gateway.namespace,
            node: "",
        };
        WaypointConfig {
            gateway: self.gateway.clone(),
            addresses: self.address.clone(),
            listen: self.listen,
            source: self.from.config(&who, roots),
            workers: self.workers.unwrap_or_else(default_workers),
            settings: Settings {
                drain_timeout: Duration::from_secs(self.drain_timeout),
                max_connection_age: Duration::from_secs(self.max_connection_age),
                sniff_timeout: Duration::from_millis(self.sniff_timeout),
                header_timeout: Duration::from_secs(self.header_timeout),
                idle_timeout: Duration::from_secs(self.client_idle_timeout),
                normalization: self.path_normalization.into(),
            },
            limits: self.limits.settings(),
            open_files,
            admin: self.ports.addrs(),
        }
    }

    /// Whether the Kubernetes API is asked for the controller's roots.
    pub fn asks_kubernetes(&self) -> bool {
        self.from.controller.is_some() && self.from.link.ca_root.is_none()
    }
}

/// All that there are: a waypoint has its pod's share of a node for itself.
fn default_workers() -> u16 {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    u16::try_from(cores).unwrap_or(64).clamp(1, 64)
}
