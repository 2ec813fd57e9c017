//! Flags of `weft controller`.

use std::net::SocketAddr;

use clap::Args;

use super::{KubeArgs, LogArgs, MeshArgs};
use crate::controller::{AgentAccount, ControllerConfig, compile::Settings};

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
