//! A cluster to rehearse in, where no Kubernetes is: the stand-in API server with RBAC ([`crate::kube`]), and two nodes on which
//! pods really run, in containers of containerd and runc, with networks of CNI's own plug-ins. What a kubelet, a
//! kube-controller-manager, a scheduler and kube-proxy do is stood in for, as far as weft's chart and its end-to-end suite ask
//! for it. `cargo xtask test kube --rehearse` uses it.
//!
//! Not rehearsed, since nothing here does it, or does it only as we think that Kubernetes does: [`NOT_REHEARSED`].
//!
//! ```text
//!   node a  192.168.77.1  pods 10.244.1.0/24        API server: 192.168.77.1:6443, 10.96.0.1:443, and loopback of the machine
//!   node b  192.168.77.2  pods 10.244.2.0/24
//! ```

mod container;
mod controllers;
mod cri;
mod kubelet;
mod messages;
mod node;
mod proxy;
mod spec;
mod status;
mod volumes;
mod worker;

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use self::node::Node;
use crate::{
    kube::{Options, StandIn},
    machine,
    netns::Netns,
    network,
    run::RunId,
};

/// What a run here says nothing about.
pub const NOT_REHEARSED: &[&str] = &[
    "the kubelet: what starts pods, probes them and has their cgroups here is stood in for",
    "NRI, unless this machine's containerd is 2.0 or later",
    "the DaemonSet controller, and those of Deployments, Jobs and Services: stood in for, by what was read of them",
    "admission: the policy that holds agents to their own node (CEL), priority classes, quotas",
    "limits of memory and CPU: the containers have none",
    "AppArmor and SELinux",
    "CustomResourceDefinitions with the projects' own schemas: those here take anything",
    "tokens and volumes that change while a pod runs",
    "horizontal pod autoscalers and pod disruption budgets: written, and nobody acts on them",
    "nodes that come, go, and restart",
];

/// The networks of pods and of services.
const CIDRS: [&str; 2] = ["10.244.0.0/16", "10.96.0.0/12"];
/// Where pods find the API server.
const API: &str = "10.96.0.1";
const API_PORT: u16 = 6443;

/// A running cluster; it ends when this is dropped.
pub struct Cluster {
    run: RunId,
    /// The root of the machine's cgroups, where each node has one.
    cgroups: PathBuf,
    api: Option<Arc<StandIn>>,
    nodes: Vec<Arc<Node>>,
    runtime: Option<Runtime>,
    keep_files: bool,
}

impl Cluster {
    /// Two nodes with these images, ready for pods. `pause` is the image of a program that does nothing.
    ///
    /// # Errors
    /// Without root, containerd, runc, iptables, CNI's plug-ins; when something does not come up.
    pub fn start(images: &[&Path]) -> Result<Self> {
        machine::require_root()?;
        machine::raise_file_limit();
        machine::mount_bpffs()?;
        let cgroups = machine::cgroup2_root()?;
        let run = RunId::claim()?;
        let mut cluster = Self {
            cgroups,
            run,
            api: None,
            nodes: Vec::new(),
            runtime: None,
            keep_files: false,
        };
        cluster.build(images)?;
        Ok(cluster)
    }

    fn build(&mut self, images: &[&Path]) -> Result<()> {
        let namespaces = Netns::create(&["a", "b"].map(|node| self.run.netns_name(node)))?;
        network::connect_nodes(&namespaces)?;
        // In the node's network, where pods reach it; the suite comes by loopback of the machine.
        let inside = SocketAddr::from((network::node_v4(1), API_PORT));
        let inside = namespaces[0].run(|| TcpListener::bind(inside))??;
        let api = Arc::new(StandIn::start_on(
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            Options {
                tls: true,
                nodes_end_pods: true,
                // What the nodes of another run have must not be taken for this one's.
                seed: std::process::id().into(),
                names: vec![
                    API.to_owned(),
                    network::node_v4(1).to_string(),
                    "kubernetes.default.svc".to_owned(),
                ],
                ..Options::default()
            },
        )?);
        inside.set_nonblocking(true)?;
        api.listen_on(inside);
        for (number, netns) in (1..).zip(namespaces) {
            let letter = if number == 1 { "a" } else { "b" };
            // Nodes are called as the run, and so is what they pin: what is left behind is known by its name.
            let run = self.run.to_string();
            let name = format!("{}-{letter}", run.trim_start_matches(crate::run::PREFIX));
            let cgroup = self.cgroups.join(format!("{run}-{letter}"));
            let dir = self.run.temp_dir().join(letter);
            let node = Node::start(name, number, netns, cgroup, dir)?;
            for image in images {
                node.import(image)?;
            }
            self.nodes.push(Arc::new(node));
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("cluster")
            .enable_all()
            .build()?;
        for node in &self.nodes {
            let version = runtime.block_on(node.runtime.version());
            furnish(&api, node, &version.context("containerd's CRI")?)?;
        }
        service(&api)?;
        for node in &self.nodes {
            runtime.spawn(kubelet::run(api.clone(), node.clone()));
        }
        runtime.spawn(controllers::run(api.clone()));
        runtime.spawn(proxy::run(api.clone(), self.nodes.clone()));
        let nodes = self.nodes.clone();
        api.logs_from(move |pod, wanted| {
            let node = nodes
                .iter()
                .find(|node| pod["spec"]["nodeName"] == node.name.as_str());
            kubelet::log(node.context("it is on no node")?, pod, wanted)
        });
        (self.api, self.runtime) = (Some(api), Some(runtime));
        Ok(())
    }

    /// Of somebody who may everything, by way of loopback.
    pub fn kubeconfig(&self) -> String {
        self.api.as_ref().map(|api| api.kubeconfig()).unwrap_or_default()
    }

    /// Values of the chart as README has them installed. Both agents hook the machine's root, and each finds what is its own.
    pub fn values(&self) -> String {
        json!({"clusterCIDRs": CIDRS}).to_string()
    }

    /// The API server, for what no client can do.
    pub fn api(&self) -> Option<&StandIn> {
        self.api.as_deref()
    }

    /// Where logs and volumes are.
    pub fn dir(&self) -> PathBuf {
        self.run.temp_dir()
    }

    /// Leaves the logs where [`Cluster::dir`] was, under another name that is given back.
    pub fn keep_files(&mut self) -> PathBuf {
        self.keep_files = true;
        self.run.kept_dir()
    }
}

/// A node, with this version of containerd.
fn furnish(api: &StandIn, node: &Node, version: &str) -> Result<()> {
    api.apply(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64"}},
        "spec": {"podCIDR": format!("10.244.{}.0/24", node.number), "podCIDRs": [format!("10.244.{}.0/24", node.number)],
            "taints": [{"key": "weft.dev/agent-not-ready", "effect": "NoSchedule"}]},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            "addresses": [{"type": "InternalIP", "address": node.address()}, {"type": "Hostname", "address": node.name}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "containerRuntimeVersion": format!("containerd://{version}"),
                "operatingSystem": "linux", "architecture": "amd64"},
        },
    }))
}

/// The API server's own Service.
fn service(api: &StandIn) -> Result<()> {
    api.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": API, "ports": [{"name": "https", "port": 443, "targetPort": API_PORT, "protocol": "TCP"}]},
    }))?;
    api.apply(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4", "ports": [{"name": "https", "port": API_PORT, "protocol": "TCP"}],
        "endpoints": [{"addresses": [network::node_v4(1).to_string()], "conditions": {"ready": true}}],
    }))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.api = None;
        // Containers and their shims first: they are in the nodes' cgroups.
        for letter in ["a", "b"] {
            let cgroup = self.cgroups.join(format!("{}-{letter}", self.run));
            if let Err(error) = crate::cgroup::remove_tree(&cgroup) {
                eprintln!("clean up: {error:#}");
            }
        }
        self.nodes.clear();
        if self.keep_files {
            let _ = std::fs::rename(self.run.temp_dir(), self.run.kept_dir());
        }
        for outcome in crate::sweep::remove_run(&self.run, &self.cgroups.join(self.run.to_string())) {
            if let Err(error) = outcome {
                eprintln!("clean up: {error:#}");
            }
        }
    }
}

#[test]
fn what_is_rehearsed_is_what_readme_installs() {
    let line = format!("    --set 'clusterCIDRs={{{}}}'", CIDRS.join(","));
    assert!(include_str!("../../../README.md").contains(&line), "{line}");
}
