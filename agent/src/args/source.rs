//! Where a role has its mesh and its certificates from: flags of `weft agent` and `weft waypoint`.

use std::path::PathBuf;

use clap::Args;

use super::{MeshArgs, address};
use crate::{
    feed::client::{ClientConfig, MeshSettings},
    mesh::SameNodes,
    rpc::{CertFiles, Credentials, Roots},
    source::SourceConfig,
    svid::TrustFiles,
};

/// Files, or a controller.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The controller, or another server of the same protocols, as host:port: it says what is in the mesh, and signs
    #[arg(
        long,
        env = "WEFT_CONTROLLER",
        value_name = "HOST:PORT",
        value_parser = address::host_port,
        conflicts_with = "mesh_file"
    )]
    pub controller: Option<String>,
    /// The mesh: workloads, services and policies, as YAML; read again whenever it changes
    #[arg(
        long,
        env = "WEFT_MESH_FILE",
        value_name = "FILE",
        required_unless_present = "controller",
        requires_all = ["ca_cert", "ca_key"]
    )]
    pub mesh_file: Option<PathBuf>,
    /// Root certificate of the mesh, PEM; more roots may follow it. Read again when it or the key changes: every
    /// certificate is made anew at once
    #[arg(long, env = "WEFT_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// Private key of the root, PEM; 24 h certificates are signed with it
    #[arg(long, env = "WEFT_CA_KEY", value_name = "FILE")]
    pub ca_key: Option<PathBuf>,
    /// More roots whose certificates are accepted, PEM, read again whenever it changes: the old and the new one while the
    /// mesh's root is replaced. Connections of a root that is removed are closed
    #[arg(long, env = "TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,
    /// Lists of revoked certificates, PEM, read again whenever it changes; connections of what is revoked are closed
    #[arg(long, env = "CRL_PATH", value_name = "FILE")]
    pub crl: Option<PathBuf>,
    /// With a controller
    #[command(flatten)]
    pub link: LinkArgs,
    /// What the mesh is called, where a controller says what is in it; a mesh file says it itself
    #[command(flatten)]
    pub mesh: MeshArgs,
}

/// How a role and its controller know each other.
#[derive(Debug, Args)]
#[command(next_help_heading = "With a controller")]
pub struct LinkArgs {
    /// The namespace that weft runs in: its pods are never captured
    #[arg(
        long,
        env = "POD_NAMESPACE",
        value_name = "NAMESPACE",
        default_value = "weft-system"
    )]
    pub own_namespace: String,
    /// The DNS name that the controller's certificate must have [default: weft-controller.<own namespace>.svc]
    #[arg(long, env = "WEFT_CONTROLLER_NAME", value_name = "NAME")]
    pub controller_name: Option<String>,
    /// The token that says to the controller who we are; a projected one, for the audience that it accepts
    #[arg(
        long,
        env = "WEFT_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/tokens/weft-token"
    )]
    pub token_file: PathBuf,
    /// A certificate of the mesh with which the mesh is asked for in place of the token, PEM, leaf first; read again for each
    /// connection. Certificates of pods are signed for the token alone
    #[arg(long, env = "WEFT_CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, env = "WEFT_CLIENT_KEY", value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// Roots that the controller's certificate may end in, PEM [default: the ConfigMap weft-ca-root-cert]
    #[arg(long, env = "WEFT_CA_ROOT", value_name = "FILE")]
    pub ca_root: Option<PathBuf>,
    /// This pod's own name and address, by which the controller knows it
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "weft-agent")]
    pub own_name: String,
    /// See --own-name
    #[arg(long, env = "POD_IP", value_name = "ADDR", default_value = "127.0.0.1")]
    pub own_address: String,
}

impl LinkArgs {
    fn cert(&self) -> Option<CertFiles> {
        let (chain, key) = (self.client_cert.clone()?, self.client_key.clone()?);
        Some(CertFiles { chain, key })
    }
}

/// Who asks a controller.
pub(super) struct Who<'a> {
    /// As istiod calls it: `ztunnel` or `waypoint`.
    pub(super) role: &'static str,
    /// Whether it sees requests, and needs to know what becomes of them.
    pub(super) sees_requests: bool,
    /// The pod's namespace.
    pub(super) namespace: &'a str,
    /// The node that it is of; empty for one that is of none.
    pub(super) node: &'a str,
}

impl SourceArgs {
    /// As it is opened. `roots` are those that a controller's certificate may end in.
    pub(super) fn config(&self, who: &Who<'_>, roots: Roots) -> SourceConfig {
        match &self.controller {
            Some(address) => SourceConfig::Controller(Box::new(self.client(address, who, roots))),
            None => self.files(),
        }
    }

    fn files(&self) -> SourceConfig {
        // clap asks for these where there is no controller.
        let given = |path: &Option<PathBuf>| path.clone().unwrap_or_default();
        SourceConfig::Files {
            mesh: given(&self.mesh_file),
            trust: TrustFiles {
                ca_cert: given(&self.ca_cert),
                ca_key: given(&self.ca_key),
                bundle: self.trust_bundle.clone(),
                crl: self.crl.clone(),
            },
        }
    }

    fn client(&self, address: &str, who: &Who<'_>, roots: Roots) -> ClientConfig {
        let LinkArgs {
            own_namespace,
            own_name,
            own_address,
            ..
        } = &self.link;
        let name = self.link.controller_name.clone();
        // POD_IP may be all addresses of the pod.
        let address_of_pod = own_address.split(',').next().unwrap_or_default();
        ClientConfig {
            credentials: Credentials {
                address: address.to_owned(),
                server_name: name.unwrap_or_else(|| format!("weft-controller.{own_namespace}.svc")),
                roots,
                token: self.link.token_file.clone(),
                cert: self.link.cert(),
                cluster: self.mesh.cluster_id.clone(),
            },
            // The form that istiod reads.
            id: format!(
                "{}~{address_of_pod}~{own_name}.{}~{}.svc.{}",
                who.role, who.namespace, who.namespace, self.mesh.cluster_domain
            ),
            node: who.node.to_owned(),
            settings: MeshSettings {
                trust_domain: self.mesh.trust_domain.clone(),
                cluster: self.mesh.cluster_id.as_str().into(),
                cluster_domain: self.mesh.cluster_domain.to_ascii_lowercase().into(),
                root_namespace: self.mesh.root_namespace.as_str().into(),
                cluster_cidrs: self.mesh.cluster_cidrs.clone(),
                same_nodes: SameNodes {
                    mesh: self.mesh.same_node,
                    ..SameNodes::default()
                },
            },
            subscribe_http: who.sees_requests,
        }
    }
}
