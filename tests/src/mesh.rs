//! The mesh file as tests write it: the pods' entries are generated, the rest is JSON, which is YAML.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Everything in the mesh file but the pods of the world.
#[derive(Clone, Debug)]
pub struct MeshSpec {
    /// The trust domain.
    pub trust_domain: String,
    /// Addresses that belong to the cluster, known or not.
    pub cluster_cidrs: Vec<String>,
    /// How connections inside a node go, where it is not the default.
    pub same_node: Option<&'static str>,
    /// Settings of namespaces.
    pub namespaces: Vec<Value>,
    /// Workloads besides the world's pods.
    pub workloads: Vec<Value>,
    /// Services.
    pub services: Vec<Value>,
    /// Authorization policies.
    pub policies: Vec<Value>,
    /// Peer authentications.
    pub peer_authentications: Vec<Value>,
    /// Files with manifests of Istio and the Gateway API.
    pub manifests: Vec<PathBuf>,
}

impl Default for MeshSpec {
    fn default() -> Self {
        let cidrs = ["10.244.0.0/16", "10.96.0.0/12", "fd00:244::/32", "fd00:96::/32"];
        Self {
            trust_domain: "cluster.local".to_owned(),
            cluster_cidrs: cidrs.map(str::to_owned).to_vec(),
            same_node: None,
            namespaces: Vec::new(),
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            peer_authentications: Vec::new(),
            manifests: Vec::new(),
        }
    }
}

impl MeshSpec {
    /// Adds a service of namespace `demo` that leads `port` at `vips` to `target_port` of the pods with label
    /// `app: <app>`.
    pub fn service(
        &mut self,
        name: &str,
        vips: &[&str],
        port: u16,
        target_port: u16,
        app: &str,
    ) -> &mut Self {
        self.services.push(json!({
            "name": name,
            "namespace": "demo",
            "vips": vips,
            "ports": [{ "port": port, "targetPort": target_port }],
            "selector": { "app": app },
        }));
        self
    }

    /// Adds an authorization policy of namespace `demo` for the pods with label `app: <app>`.
    pub fn policy(&mut self, name: &str, action: &str, app: &str, rules: Value) -> &mut Self {
        self.policies.push(json!({
            "name": name,
            "namespace": "demo",
            "action": action,
            "selector": { "app": app },
            "rules": rules,
        }));
        self
    }

    /// Adds a peer authentication that sets the mode (`STRICT`, `PERMISSIVE`) of a whole namespace.
    pub fn mtls(&mut self, namespace: &str, mode: &str) -> &mut Self {
        self.peer_authentications
            .push(json!({ "namespace": namespace, "mode": mode }));
        self
    }

    /// The file's text, with the pods' entries first.
    pub(crate) fn text(&self, pods: Vec<Value>) -> String {
        let workloads: Vec<_> = pods.into_iter().chain(self.workloads.iter().cloned()).collect();
        let mut file = json!({
            "trustDomain": self.trust_domain,
            "clusterCidrs": self.cluster_cidrs,
            "workloads": workloads,
            "services": self.services,
            "policies": self.policies,
            "peerAuthentications": self.peer_authentications,
        });
        if let Some(same_node) = self.same_node {
            file["sameNode"] = same_node.into();
        }
        if !self.manifests.is_empty() {
            file["manifests"] = json!(self.manifests);
        }
        if !self.namespaces.is_empty() {
            file["namespaces"] = self.namespaces.clone().into();
        }
        format!("{file:#}\n")
    }
}

/// Replaces a file in one step, so that a reader sees the old text or the new and nothing between.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, text).with_context(|| format!("write {}", next.display()))?;
    fs::rename(&next, path).with_context(|| format!("rename {} to {}", next.display(), path.display()))
}
