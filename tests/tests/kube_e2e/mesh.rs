//! weft in the cluster: installed, upgraded and uninstalled by the chart with Helm's own library, and what its agents tell.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::Pod,
    },
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use serde_json::{Value, json};
use weft_tests::{AccessLine, access};

use crate::{
    apps::{App, INSIDE, World, pod_ip, words},
    cluster::{Cluster, until},
    options::Options,
};

/// Where it is installed.
pub(crate) const NAMESPACE: &str = "weft-system";
const RELEASE: &str = "weft";
/// How long Helm may take, its uninstall hook included.
const HELM: u64 = 420;
/// How long a rollout may take: the image may have to be pulled, and one agent drains after another.
const ROLLOUT: Duration = Duration::from_secs(300);
const SCRIPT: &str = include_str!("helm.py");

pub(crate) struct Mesh<'a> {
    cluster: &'a Cluster,
    pub(crate) options: &'a Options,
}

impl<'a> Mesh<'a> {
    pub(crate) fn new(cluster: &'a Cluster, options: &'a Options) -> Self {
        Self { cluster, options }
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.cluster.client.clone(), NAMESPACE)
    }

    /// Installs where nothing is, and waits until every node has its agent.
    pub(crate) async fn install(&self) -> Result<()> {
        let there = Api::<DaemonSet>::namespaced(self.cluster.client.clone(), NAMESPACE);
        ensure!(
            there.get_opt("weft-agent").await?.is_none(),
            "weft is installed in {NAMESPACE} already: the suite installs and uninstalls its own"
        );
        self.helm("install", &self.values("1"))?;
        self.ready().await
    }

    /// The same chart with agents that must be replaced, all of them.
    pub(crate) async fn upgrade(&self, turn: &str) -> Result<()> {
        self.helm("upgrade", &self.values(turn))?;
        self.ready().await
    }

    pub(crate) async fn uninstall(&self) -> Result<()> {
        self.helm("uninstall", &json!({}))
    }

    fn values(&self, turn: &str) -> Value {
        let image = &self.options.image;
        let mut values = self.options.values.clone();
        merge(
            &mut values,
            json!({
                "image": {"repository": image.repository, "tag": image.tag, "digest": image.digest},
                "logFormat": "json",
                "agent": {"podAnnotations": {"weft.dev/e2e": turn}},
            }),
        );
        values
    }

    fn helm(&self, action: &str, values: &Value) -> Result<()> {
        let asked = json!({
            "kubeconfig": self.options.kubeconfig, "namespace": NAMESPACE, "release": RELEASE,
            "chart": self.options.chart, "values": values, "timeout": HELM,
        });
        let mut python = Command::new("python3")
            .args(["-c", SCRIPT, action])
            .env("PYTHONPATH", &self.options.helm)
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        if let Some(mut stdin) = python.stdin.take() {
            stdin.write_all(asked.to_string().as_bytes())?;
        }
        let status = python.wait()?;
        ensure!(status.success(), "helm {action} failed ({status}): see above");
        Ok(())
    }

    /// Waits for every agent and controller of the newest revision.
    async fn ready(&self) -> Result<()> {
        let client = &self.cluster.client;
        let agents = Api::<DaemonSet>::namespaced(client.clone(), NAMESPACE);
        let waited = until("an agent that is ready on every node", ROLLOUT, async || {
            Ok(rolled_out(&agents.get("weft-agent").await?).then_some(()))
        });
        if let Err(error) = waited.await {
            bail!("{error:#}; the pods of {NAMESPACE}: {}", self.states().await?);
        }
        let controllers = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
        until("the controllers to be ready", ROLLOUT, async || {
            let found = controllers.get("weft-controller").await?;
            let wanted = found.spec.replicas;
            let status = found.status.unwrap_or_default();
            let current = status.observed_generation >= found.metadata.generation;
            Ok(
                (current && status.available_replicas == wanted && status.updated_replicas == wanted)
                    .then_some(()),
            )
        })
        .await
    }

    /// What the pods of weft wait for, for a person who reads why an install failed.
    async fn states(&self) -> Result<String> {
        let pods = self.pods().list(&ListParams::default()).await?;
        let states = pods.items.iter().map(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            let waiting = status
                .container_statuses
                .unwrap_or_default()
                .into_iter()
                .find_map(|it| it.state?.waiting);
            let why = waiting.and_then(|it| it.reason).unwrap_or_default();
            format!(
                "{} {} {why}",
                pod.metadata.name.as_deref().unwrap_or_default(),
                status.phase.unwrap_or_default()
            )
        });
        Ok(states.collect::<Vec<_>>().join("; "))
    }

    /// The agent's pod on a node.
    pub(crate) async fn agent(&self, node: &str) -> Result<Pod> {
        let of_node = ListParams::default()
            .labels("app.kubernetes.io/name=weft,app.kubernetes.io/component=agent")
            .fields(&format!("spec.nodeName={node}"));
        let pods = self.pods().list(&of_node).await?;
        pods.items
            .into_iter()
            .find(|pod| pod.metadata.deletion_timestamp.is_none())
            .with_context(|| format!("no agent on {node}"))
    }

    /// The connections that a node's agent has logged since then.
    pub(crate) async fn access(&self, node: &str, since: Timestamp) -> Result<Vec<AccessLine>> {
        let name = self.agent(node).await?.metadata.name.unwrap_or_default();
        // The API takes whole seconds, and the client rounds to the next one: what is asked for is more.
        let params = LogParams {
            since_time: Some(since - Duration::from_secs(2)),
            ..LogParams::default()
        };
        let log = self.pods().logs(&name, &params).await?;
        Ok(access::parse(&after(&log, since)))
    }

    /// The metrics of a node's agent, scraped from a pod that is not in the mesh, as Prometheus would.
    pub(crate) async fn metrics(&self, world: &World<'_>, node: &str) -> Result<weft_tests::Samples> {
        let address = pod_ip(&self.agent(node).await?).context("the agent has no address")?;
        let address = if address.contains(':') {
            format!("[{address}]:15020")
        } else {
            format!("{address}:15020")
        };
        let answer = world
            .run(&App {
                namespace: crate::apps::OUTSIDE,
                name: "scraper",
                account: "client",
                node: &world.nodes[0],
                args: words(&["get", &address, "/metrics"]),
            })
            .await?;
        // Some runtimes take carriage returns out of logs.
        let answer = answer.replace('\r', "");
        let (_, body) = answer
            .split_once("\n\n")
            .context("the agent's answer has no body")?;
        weft_tests::Samples::parse(body)
    }
}

/// Lays objects over one another, field by field.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// The lines of a log in JSON that were written from then on.
fn after(log: &str, since: Timestamp) -> String {
    let late = |line: &&str| {
        let line: Option<Value> = serde_json::from_str(line).ok();
        let at = line.and_then(|line| line["timestamp"].as_str()?.parse::<Timestamp>().ok());
        at.is_some_and(|at| at >= since)
    };
    log.split_inclusive('\n')
        .filter(|line| late(&line.trim_end()))
        .collect()
}

#[test]
fn lines_from_before_are_left_out() {
    let line = |second: u8| format!("{{\"timestamp\":\"2026-01-01T00:00:0{second}.500000Z\"}}\n");
    let since = "2026-01-01T00:00:02.400Z".parse().expect("a time");
    assert_eq!(after(&(line(1) + &line(2) + "no line"), since), line(2));
}

/// Whether every node has a pod of the newest revision that is ready, and no other.
fn rolled_out(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wanted = status.desired_number_scheduled;
    status.observed_generation >= set.metadata.generation
        && wanted > 0
        && status.number_ready == wanted
        && status.updated_number_scheduled == Some(wanted)
        && status.number_available == Some(wanted)
}

/// The identity of a service account of the mesh's namespace.
pub(crate) fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/{INSIDE}/sa/{account}")
}

#[test]
fn a_rollout_is_over_when_every_node_has_the_new_one() {
    let set = |observed: i64, updated: i32, ready: i32| -> DaemonSet {
        let status = json!({
            "observedGeneration": observed, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0,
            "numberReady": ready, "updatedNumberScheduled": updated, "numberAvailable": ready,
        });
        serde_json::from_value(json!({"metadata": {"generation": 3}, "status": status})).expect("a DaemonSet")
    };
    assert!(rolled_out(&set(3, 2, 2)));
    assert!(!rolled_out(&set(2, 2, 2)));
    assert!(!rolled_out(&set(3, 1, 2)));
    assert!(!rolled_out(&set(3, 2, 1)));
    assert!(!rolled_out(&DaemonSet::default()));
}
