//! The apps: pods of weft's own image, whose hidden command `test-app` serves, calls and holds connections. What they saw is the
//! last line of their log.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use kube::{
    Api, Client,
    api::{LogParams, Patch, PatchParams, PostParams},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, LABEL, delete, together, until},
    options::Image,
};

/// The namespace that is put into the mesh.
pub(crate) const INSIDE: &str = "weft-e2e";
/// The one that is not.
pub(crate) const OUTSIDE: &str = "weft-e2e-outside";
/// What an agent says on a pod that it has captured.
pub(crate) const REDIRECTION: &str = "ambient.istio.io/redirection";
/// How long a pod may take to start, an image that has to be pulled included.
const START: Duration = Duration::from_secs(180);
/// Seconds for which the first connection of a pod may be refused and is tried again: where the container runtime has no NRI it is,
/// until the pod is captured.
pub(crate) const PATIENCE: &str = "30";
/// The port of servers.
pub(crate) const PORT: u16 = 8080;

/// Where the apps live.
pub(crate) struct World<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) image: String,
    /// Clients are on the first, servers on the second.
    pub(crate) nodes: [String; 2],
}

/// What a caller or holder ends with.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) failures: Vec<String>,
}

/// A pod to run.
pub(crate) struct App<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// Its service account, which is its identity.
    pub(crate) account: &'a str,
    pub(crate) node: &'a str,
    pub(crate) args: Vec<String>,
}

impl<'a> World<'a> {
    pub(crate) fn new(cluster: &'a Cluster, image: &Image, nodes: [String; 2]) -> Self {
        Self {
            cluster,
            image: image.reference(),
            nodes,
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.cluster.client.clone()
    }

    pub(crate) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }

    /// The namespaces, their service accounts, and the server: running before there is a mesh.
    pub(crate) async fn begin(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client());
        for namespace in [INSIDE, OUTSIDE] {
            // The suite's own, as the preflight has seen: an earlier run has died, or was told to keep it.
            delete(&namespaces, namespace).await?;
            let made =
                serde_json::from_value(json!({"metadata": {"name": namespace, "labels": {LABEL: "true"}}}))?;
            namespaces
                .create(&PostParams::default(), &made)
                .await
                .with_context(|| format!("make the namespace {namespace}"))?;
            for account in ["server", "client", "stranger"] {
                let made = serde_json::from_value(json!({"metadata": {"name": account}}))?;
                Api::<ServiceAccount>::namespaced(self.client(), namespace)
                    .create(&PostParams::default(), &made)
                    .await?;
            }
        }
        let listen = format!("0.0.0.0:{PORT}");
        let mut server = self.pod(&App {
            namespace: INSIDE,
            name: "server",
            account: "server",
            node: &self.nodes[1],
            args: words(&["serve", "--listen", &listen]),
        });
        // Patient, since nothing here is about a node that is slow.
        server["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": PORT}, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 6});
        self.start_as(INSIDE, "server", server).await?;
        let service = serde_json::from_value(json!({
            "metadata": {"name": "server"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": PORT, "targetPort": PORT}]},
        }))?;
        Api::<Service>::namespaced(self.client(), INSIDE)
            .create(&PostParams::default(), &service)
            .await?;
        until(
            "the kubelet to have reached the server, before there is a mesh",
            START,
            async || Ok(is_ready(&self.pods(INSIDE).get("server").await?).then_some(())),
        )
        .await
    }

    /// Takes away all that the suite has made beside weft.
    pub(crate) async fn end(&self) -> Result<()> {
        let namespaces = Api::<Namespace>::all(self.client());
        together([
            delete(&namespaces, INSIDE).await,
            delete(&namespaces, OUTSIDE).await,
            self.cluster.undefine().await,
        ])
    }

    /// Waits until the kubelet has reached the server twice more. Nobody else may dial it meanwhile: it tells of each connection.
    pub(crate) async fn probed(&self) -> Result<()> {
        let pods = self.pods(INSIDE);
        let told = async || -> Result<usize> {
            let log = pods.logs("server", &LogParams::default()).await?;
            Ok(log.lines().filter(|line| line.contains("\"peer\"")).count())
        };
        let before = told().await?;
        until(
            "the kubelet's probes to reach the server",
            Duration::from_secs(60),
            async || Ok((told().await? >= before + 2).then_some(())),
        )
        .await?;
        let ready = is_ready(&pods.get("server").await?);
        ensure!(ready, "the server is not ready, though probes reach it");
        Ok(())
    }

    /// The server's virtual address.
    pub(crate) async fn service(&self) -> Result<String> {
        let service = Api::<Service>::namespaced(self.client(), INSIDE)
            .get("server")
            .await?;
        let address = service
            .spec
            .and_then(|spec| spec.cluster_ip)
            .context("the service has no address")?;
        Ok(socket(&address))
    }

    /// The server's own address.
    pub(crate) async fn server(&self) -> Result<String> {
        let pod = self.pods(INSIDE).get("server").await?;
        Ok(socket(&pod_ip(&pod).context("the server has no address")?))
    }

    /// A pod's manifest.
    pub(crate) fn pod(&self, app: &App<'_>) -> Value {
        let args: Vec<_> = ["test-app"]
            .into_iter()
            .chain(app.args.iter().map(String::as_str))
            .collect();
        json!({
            "metadata": {"name": app.name, "labels": {"app": app.name}},
            "spec": {
                "serviceAccountName": app.account,
                "nodeName": app.node,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 5,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "app", "image": self.image, "imagePullPolicy": "IfNotPresent", "args": args,
                    "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}},
                }],
            },
        })
    }

    /// Starts a pod, and waits until it runs or has run.
    pub(crate) async fn start(&self, app: &App<'_>) -> Result<Pod> {
        self.start_as(app.namespace, app.name, self.pod(app)).await
    }

    pub(crate) async fn start_as(&self, namespace: &str, name: &str, pod: Value) -> Result<Pod> {
        let pods = self.pods(namespace);
        let pod = serde_json::from_value(pod)?;
        let mut made = pods.create(&PostParams::default(), &pod).await;
        if matches!(&made, Err(kube::Error::Api(status)) if status.code == 409) {
            // Of an attempt that has failed on its way.
            delete(&pods, name).await?;
            made = pods.create(&PostParams::default(), &pod).await;
        }
        made.with_context(|| format!("make the pod {name}"))?;
        until(
            &format!("the pod {namespace}/{name} to run: is the image there?"),
            START,
            async || {
                let pod = pods.get(name).await?;
                if let Some(why) = imageless(&pod) {
                    bail!("the image {} is not to be had: {why}", self.image);
                }
                Ok(matches!(phase(&pod), "Running" | "Succeeded" | "Failed").then_some(pod))
            },
        )
        .await
    }

    /// Runs a pod to its end, and says what it wrote.
    pub(crate) async fn run(&self, app: &App<'_>) -> Result<String> {
        self.start(app).await?;
        self.ended(app.namespace, app.name).await
    }

    /// Waits for a pod's end, says what it wrote, and removes it.
    pub(crate) async fn ended(&self, namespace: &str, name: &str) -> Result<String> {
        let pods = self.pods(namespace);
        until(&format!("the pod {namespace}/{name} to end"), START, async || {
            Ok(matches!(phase(&pods.get(name).await?), "Succeeded" | "Failed").then_some(()))
        })
        .await?;
        let log = pods.logs(name, &LogParams::default()).await?;
        delete(&pods, name).await?;
        Ok(log)
    }

    /// Ends a pod that would go on, so that its log stays: as its deadline would.
    pub(crate) async fn stop(&self, namespace: &str, name: &str) -> Result<Tally> {
        let deadline = Patch::Merge(json!({"spec": {"activeDeadlineSeconds": 1}}));
        self.pods(namespace)
            .patch(name, &PatchParams::default(), &deadline)
            .await?;
        tally(&self.ended(namespace, name).await?)
    }

    /// Calls the target from a pod of the first node.
    pub(crate) async fn call(
        &self,
        namespace: &str,
        account: &str,
        target: &str,
        count: u32,
    ) -> Result<Tally> {
        self.caller(namespace, account, &[target, "--patience", PATIENCE], count)
            .await
    }

    async fn caller(&self, namespace: &str, account: &str, how: &[&str], count: u32) -> Result<Tally> {
        let count = count.to_string();
        let args = [&["call", "--count", &count, "--every", "10"], how].concat();
        let app = App {
            namespace,
            name: "caller",
            account,
            node: &self.nodes[0],
            args: words(&args),
        };
        tally(&self.run(&app).await?)
    }

    /// Waits until one call ends as expected: a policy takes a moment to arrive everywhere.
    pub(crate) async fn call_until(
        &self,
        namespace: &str,
        account: &str,
        target: &str,
        allowed: bool,
    ) -> Result<()> {
        let what = format!(
            "{namespace}/{account} to be {}",
            if allowed { "let in" } else { "refused" }
        );
        until(&what, Duration::from_secs(90), async || {
            let tally = self.caller(namespace, account, &[target], 3).await?;
            let as_expected = if allowed {
                tally.failed == 0
            } else {
                tally.done == 0
            };
            Ok(as_expected.then_some(()))
        })
        .await
    }

    /// Waits until a pod's agent says that it is captured, or no more.
    pub(crate) async fn captured(&self, name: &str, wanted: bool) -> Result<Pod> {
        let pods = self.pods(INSIDE);
        until(
            &format!("{name} to be {}", if wanted { "captured" } else { "released" }),
            Duration::from_secs(60),
            async || {
                let pod = pods.get(name).await?;
                let says = pod
                    .metadata
                    .annotations
                    .as_ref()
                    .and_then(|all| all.get(REDIRECTION));
                let captured = says.is_some_and(|value| value == "enabled");
                Ok((if wanted { captured } else { says.is_none() }).then_some(pod))
            },
        )
        .await
    }
}

pub(crate) fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Why the kubelet has given up on a pod's image for now: it is on no node, and cannot be pulled.
fn imageless(pod: &Pod) -> Option<String> {
    const GIVEN_UP: [&str; 3] = ["ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName"];
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let waiting = containers
        .iter()
        .filter_map(|one| one.state.as_ref()?.waiting.as_ref());
    let mut of_images = waiting.filter(|it| it.reason.as_deref().is_some_and(|it| GIVEN_UP.contains(&it)));
    let found = of_images.next()?;
    Some(found.message.clone().or(found.reason.clone()).unwrap_or_default())
}

#[test]
fn an_image_that_is_not_there_is_not_waited_for() {
    let waiting = |reason: &str| -> Pod {
        let state = json!({"waiting": {"reason": reason, "message": "no such host"}});
        let container = json!({"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state});
        serde_json::from_value(json!({"status": {"containerStatuses": [container]}})).expect("a pod")
    };
    assert_eq!(
        imageless(&waiting("ImagePullBackOff")).as_deref(),
        Some("no such host")
    );
    assert_eq!(imageless(&waiting("ContainerCreating")), None);
    assert_eq!(imageless(&Pod::default()), None);
}

pub(crate) fn pod_ip(pod: &Pod) -> Option<String> {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone())
}

/// Times that its container was started again.
pub(crate) fn restarts(pod: &Pod) -> i32 {
    let containers = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    containers
        .into_iter()
        .flatten()
        .map(|container| container.restart_count)
        .sum()
}

pub(crate) fn socket(address: &str) -> String {
    if address.contains(':') {
        format!("[{address}]:{PORT}")
    } else {
        format!("{address}:{PORT}")
    }
}

/// The tally that a log ends with.
pub(crate) fn tally(log: &str) -> Result<Tally> {
    let last = log.lines().rev().find(|line| line.contains("\"done\""));
    let last = last.with_context(|| format!("the app did not say how it went: {log:?}"))?;
    let tally: Tally = serde_json::from_str(last)?;
    ensure!(tally.done + tally.failed > 0, "the app did nothing");
    Ok(tally)
}

#[test]
fn the_last_line_of_an_app_is_its_tally() {
    let said =
        tally("{\"open\":true}\n{\"done\":3,\"failed\":1,\"failures\":[\"refused\"]}\n").expect("a tally");
    assert_eq!((said.done, said.failed, said.failures.len()), (3, 1, 1));
    assert!(tally("{\"open\":true}\n").is_err());
    assert!(tally("{\"done\":0,\"failed\":0,\"failures\":[]}\n").is_err());
}

#[test]
fn addresses_of_both_families_get_their_port() {
    assert_eq!(socket("10.0.0.1"), "10.0.0.1:8080");
    assert_eq!(socket("fd00::1"), "[fd00::1]:8080");
}
