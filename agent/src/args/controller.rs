//! Flags of `weft controller`.

use std::net::SocketAddr;

use clap::Args;

use super::{KubeArgs, LogArgs, MeshArgs, address};
use crate::controller::{AgentAccount, ControllerConfig, compile::Settings, waypoints};
use crate::telemetry::LogFormat;

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
    /// Waypoints
    #[command(flatten)]
    pub waypoints: WaypointArgs,
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

/// How `weft controller` makes waypoints.
#[derive(Debug, Args)]
#[command(next_help_heading = "Waypoints")]
pub struct WaypointArgs {
    /// The image of waypoints; without it Gateways become none
    #[arg(long, env = "WEFT_WAYPOINT_IMAGE", value_name = "IMAGE")]
    pub waypoint_image: Option<String>,
    /// When their image is pulled: IfNotPresent, Always or Never
    #[arg(long, value_name = "POLICY", default_value = "IfNotPresent", value_parser = ["IfNotPresent", "Always", "Never"])]
    pub waypoint_pull_policy: String,
    /// Where waypoints reach the controller [default: the address of the Service --service]
    #[arg(long, value_name = "HOST:PORT", value_parser = address::host_port)]
    pub waypoint_controller: Option<String>,
    /// Pods of a waypoint; its Gateway's annotation weft.dev/waypoint-replicas says otherwise
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub waypoint_replicas: u32,
    /// Their container's resources, JSON; the annotations weft.dev/waypoint-cpu and weft.dev/waypoint-memory say otherwise
    #[arg(long, value_name = "JSON", default_value = WAYPOINT_RESOURCES, value_parser = waypoints::resources)]
    pub waypoint_resources: serde_json::Value,
    /// More of their pods, JSON: affinity, imagePullSecrets, nodeSelector, priorityClassName, tolerations
    #[arg(long, value_name = "JSON", default_value = "{}", value_parser = waypoints::pod_fields)]
    pub waypoint_pod: PodFields,
    /// Seconds that requests may go on after a pod of a waypoint was told to end
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=3600))]
    pub waypoint_drain_timeout: u64,
}

/// Fields of a pod.
type PodFields = serde_json::Map<String, serde_json::Value>;

const WAYPOINT_RESOURCES: &str = r#"{"requests":{"cpu":"100m","memory":"128Mi"},"limits":{"memory":"1Gi"}}"#;

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
            waypoints: self.waypoints(),
        }
    }

    fn waypoints(&self) -> Option<waypoints::Settings> {
        let args = &self.waypoints;
        Some(waypoints::Settings {
            image: args.waypoint_image.clone().filter(|image| !image.is_empty())?,
            pull_policy: args.waypoint_pull_policy.clone(),
            controller: args.waypoint_controller.clone(),
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            audience: self.token_audiences.first().cloned().unwrap_or_default(),
            replicas: args.waypoint_replicas,
            resources: args.waypoint_resources.clone(),
            pod: args.waypoint_pod.clone(),
            drain_timeout: args.waypoint_drain_timeout,
            listen_address: self.http.ip(),
            mesh: self.mesh.as_args(),
            log: vec![
                format!("--log={}", self.logging.log),
                match self.logging.log_format {
                    LogFormat::Text => "--log-format=text".to_owned(),
                    LogFormat::Json => "--log-format=json".to_owned(),
                },
            ],
        })
    }
}
