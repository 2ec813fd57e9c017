//! weft in the cluster: installed, upgraded and uninstalled by the chart with Helm's own library, and what its agents tell.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::Pod,
};
use kube::{
    Api,
    api::{ListParams, LogParams},
};
use serde_json::{Value, json};
use weft_tests::{AccessLine, access};

use crate::{
    apps::{App, INSIDE, World, pod_ip, words},
    cluster::{Cluster, LABEL, until},
    options::Options,
};

/// Where it is installed.
pub(crate) const NAMESPACE: &str = "weft-system";
pub(crate) const RELEASE: &str = "weft";
/// What waypoints have for their last requests, in seconds, unless the chart is told otherwise.
const DRAIN: u32 = 30;
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

    /// Installs where nothing is (the preflight has seen to that), and waits until every node has its agent.
    pub(crate) async fn install(&self) -> Result<()> {
        self.helm("install", &self.values(0))?;
        self.ready().await
    }

    /// The same chart, in which agents, controllers and waypoints differ: all of them must be replaced.
    pub(crate) async fn upgrade(&self) -> Result<()> {
        self.helm("upgrade", &self.values(1))?;
        self.ready().await
    }

    /// Uninstalls; where an install has not come that far there is nothing to do.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        self.helm("uninstall", &json!({}))
    }

    fn values(&self, turn: u32) -> Value {
        let image = &self.options.image;
        let mut values = self.options.values.clone();
        merge(
            &mut values,
            json!({
                "image": {"repository": image.repository, "tag": image.tag, "digest": image.digest},
                "logFormat": "json",
                "agent": {"podAnnotations": {LABEL: turn.to_string()}},
                "controller": {"podAnnotations": {LABEL: turn.to_string()}},
                "waypoints": {"drainTimeoutSeconds": DRAIN + turn},
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
        until("an agent that is ready on every node", ROLLOUT, async || {
            Ok(rolled_out(&agents.get("weft-agent").await?).then_some(()))
        })
        .await?;
        let controllers = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
        until("the controllers to be ready", ROLLOUT, async || {
            Ok(is_rolled(&controllers.get("weft-controller").await?).then_some(()))
        })
        .await
    }

    /// The UIDs of weft's own pods that are to stay.
    pub(crate) async fn own(&self) -> Result<Vec<String>> {
        uids(&self.pods(), "app.kubernetes.io/name=weft").await
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

    /// All that a node's agent has written.
    async fn log(&self, node: &str) -> Result<String> {
        let name = self.agent(node).await?.metadata.name.unwrap_or_default();
        let params = LogParams {
            container: Some("agent".to_owned()),
            ..LogParams::default()
        };
        Ok(self.pods().logs(&name, &params).await?)
    }

    /// Where the log of a node's agent ends now.
    pub(crate) async fn mark(&self, node: &str) -> Result<Mark> {
        Ok(Mark::of(&self.log(node).await?))
    }

    /// The connections that a node's agent has logged since then.
    pub(crate) async fn access(&self, node: &str, since: &Mark) -> Result<Vec<AccessLine>> {
        Ok(access::parse(since.after(&self.log(node).await?)))
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

/// The last line of a log at some time. What comes after it is newer, whatever the clocks of nodes say.
pub(crate) struct Mark(String);

impl Mark {
    fn of(log: &str) -> Self {
        // A line that is still being written is no line.
        let whole = log.rfind('\n').map_or("", |end| &log[..=end]);
        Self(
            whole
                .split_inclusive('\n')
                .next_back()
                .unwrap_or_default()
                .to_owned(),
        )
    }

    /// All of it where the line is not in it: the log is another agent's, or has been rotated.
    fn after<'a>(&self, log: &'a str) -> &'a str {
        let at = log.rfind(&self.0).filter(|_| !self.0.is_empty());
        at.map_or(log, |at| &log[at + self.0.len()..])
    }
}

#[test]
fn what_was_logged_before_is_left_out() {
    for (before, now, new) in [
        ("", "a\nb\n", "a\nb\n"),
        ("a\nb\n", "a\nb\nc\n", "c\n"),
        ("a\nb\n", "a\nb\n", ""),
        ("a\nb", "a\nb c\nd\n", "b c\nd\n"),
        ("a\nb\n", "c\nd\n", "c\nd\n"),
        ("half", "half a line\n", "half a line\n"),
    ] {
        assert_eq!(Mark::of(before).after(now), new, "{before:?} {now:?}");
    }
}

/// The UIDs of pods with such labels that are to stay.
pub(crate) async fn uids(pods: &Api<Pod>, labels: &str) -> Result<Vec<String>> {
    let found = pods.list_metadata(&ListParams::default().labels(labels)).await?;
    let staying = found.items.into_iter().map(|pod| pod.metadata);
    let staying = staying.filter(|pod| pod.deletion_timestamp.is_none());
    Ok(staying.filter_map(|pod| pod.uid).collect())
}

/// Whether a Deployment has its pods, all of the newest template and available.
pub(crate) fn is_rolled(deployment: &Deployment) -> bool {
    let wanted = deployment.spec.replicas;
    let Some(status) = &deployment.status else {
        return false;
    };
    let current = status.observed_generation >= deployment.metadata.generation;
    current
        && wanted.is_some()
        && status.available_replicas == wanted
        && status.updated_replicas == wanted
        && status.replicas == wanted
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
