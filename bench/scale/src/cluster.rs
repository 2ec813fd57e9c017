//! A large cluster in a stand-in API server.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_tests::kube::{Options, StandIn};

/// Services of a namespace.
pub(crate) const SERVICES: usize = 5;

pub(crate) struct Cluster {
    pub(crate) api: StandIn,
    pods: usize,
    namespaces: usize,
    nodes: usize,
}

impl Cluster {
    pub(crate) fn make(nodes: usize, pods: usize, namespaces: usize) -> Result<Self> {
        let api = StandIn::start_with(Options {
            endpoint_slices: false,
            ..Options::default()
        })?;
        api.install_crds()?;
        let cluster = Self {
            api,
            pods,
            namespaces,
            nodes,
        };
        cluster.nodes()?;
        for namespace in 0..namespaces {
            cluster.namespace(namespace)?;
        }
        (0..pods).try_for_each(|number| cluster.api.apply(cluster.pod(number, true)))?;
        Ok(cluster)
    }

    fn nodes(&self) -> Result<()> {
        self.api.apply(account("weft-system", "weft-agent"))?;
        for node in 0..self.nodes {
            let labels = json!({"topology.kubernetes.io/zone": format!("z{}", node % 3)});
            self.api.apply(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": format!("node-{node}"), "labels": labels},
            }))?;
            self.api.apply(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": agent(node), "namespace": "weft-system"},
                "spec": {"nodeName": format!("node-{node}"), "serviceAccountName": "weft-agent", "containers": []},
            }))?;
        }
        Ok(())
    }

    fn namespace(&self, number: usize) -> Result<()> {
        let name = format!("ns-{number}");
        self.api.apply(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"istio.io/dataplane-mode": "ambient"}},
        }))?;
        self.api.apply(account(&name, "app"))?;
        for service in 0..SERVICES {
            let ip = format!("10.{}.{}.{}", 200 + number / 250, number % 250, service + 1);
            self.api.apply(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": format!("svc-{service}"), "namespace": name},
                "spec": {
                    "clusterIP": ip, "clusterIPs": [ip], "selector": {"app": format!("app-{service}")},
                    "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
                },
            }))?;
            self.api.apply(self.slice(number, service))?;
        }
        Ok(())
    }

    /// The pods behind a service.
    fn slice(&self, namespace: usize, service: usize) -> Value {
        let of = (namespace..self.pods).step_by(self.namespaces);
        let own = of.filter(|pod| pod / self.namespaces % SERVICES == service);
        let endpoints: Vec<_> = own
            .map(|pod| {
                json!({
                    "addresses": [address(pod)],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "targetRef": {"kind": "Pod", "name": format!("pod-{pod}"), "namespace": format!("ns-{namespace}")},
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("svc-{service}-x"), "namespace": format!("ns-{namespace}"),
                "labels": {"kubernetes.io/service-name": format!("svc-{service}")},
            },
            "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        })
    }

    fn pod(&self, number: usize, ready: bool) -> Value {
        let (namespace, service) = (number % self.namespaces, number / self.namespaces % SERVICES);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": format!("pod-{number}"), "namespace": format!("ns-{namespace}"),
                "labels": {"app": format!("app-{service}"), "version": "v1"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{service}-5d4f8c7b9"),
                    "uid": "0", "controller": true,
                }],
            },
            "spec": {
                "nodeName": format!("node-{}", number % self.nodes), "serviceAccountName": "app",
                "containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}],
            },
            "status": {
                "phase": "Running", "podIP": address(number), "podIPs": [{"ip": address(number)}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        })
    }

    /// A pod's service account is another's from now on: one workload is different.
    pub(crate) fn change(&self, turn: usize) -> Result<()> {
        let mut pod = self.pod(turn * 97 % self.pods, true);
        pod["metadata"]["labels"]["version"] = json!(format!("v{}", turn + 2));
        self.api.apply(pod)
    }

    /// The first pods, each different from what it was: a rollout of all of them.
    pub(crate) fn changes(&self, pods: usize) -> Vec<Value> {
        let changed = (0..pods).map(|number| {
            let mut pod = self.pod(number, true);
            pod["metadata"]["labels"]["service.istio.io/canonical-revision"] = json!("rollout");
            pod
        });
        changed.collect()
    }

    /// The token of a node's agent.
    pub(crate) fn token(&self, node: usize) -> Result<String> {
        self.api
            .token("weft-system", "weft-agent", &["weft-ca"], Some(&agent(node)))
    }

    /// Whom the controller says to trust.
    pub(crate) fn roots(&self) -> Result<String> {
        let map = self.api.get("configmaps", "weft-system", "weft-ca-root-cert");
        let map = map.context("no ConfigMap with the roots")?;
        let pem = map["data"]["root-cert.pem"].as_str();
        Ok(pem.context("no roots in it")?.to_owned())
    }
}

fn agent(node: usize) -> String {
    format!("weft-agent-{node}")
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}})
}

fn address(pod: usize) -> String {
    format!("10.{}.{}.{}", 1 + pod / 62_500, pod / 250 % 250, pod % 250 + 1)
}
