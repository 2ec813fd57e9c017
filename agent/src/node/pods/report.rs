//! What the agent tells the API: on each of its pods whether it is captured, and on its node that pods may come.
//!
//! Level-triggered: what should be said is compared with what the API shows, so that a lost answer, a conflict and a restart
//! are all the same. Never more than some requests a second: the API is everybody's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{ApiPod, Listing};
use crate::cluster::{client::explain, enrolment::REDIRECTION};

/// The least time between two requests.
const PACE: Duration = Duration::from_millis(50);
/// How long the API may take to show what was said; and when it is tried again after a failure.
const SHOWN: Duration = Duration::from_secs(10);
/// Who writes, in the fields' list of managers.
const WRITER: &str = "weft-agent";

/// What the agent has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The pods that should be captured, by their workloads' uids, and whether they are.
    pub pods: BTreeMap<Arc<str>, bool>,
}

/// Where to say it.
pub struct Reporter {
    /// The API.
    pub client: Client,
    /// This node's name in it.
    pub node: String,
    /// The cluster's name, the first part of workloads' uids.
    pub cluster: String,
    /// The key of the taint that is taken from the node once the agent has looked at its pods; none leaves taints alone.
    pub startup_taint: Option<String>,
}

impl Reporter {
    /// Says it until one of the two ends. `reports` has none until the agent has looked at its pods.
    pub async fn run(
        self,
        mut listing: watch::Receiver<Option<Arc<Listing>>>,
        mut reports: watch::Receiver<Option<Arc<Report>>>,
    ) {
        let mut said = BTreeMap::new();
        let mut tainted = self.startup_taint.clone();
        loop {
            let shown = listing.borrow_and_update().clone();
            let report = reports.borrow_and_update().clone();
            let mut again = None;
            if let (Some(shown), Some(report)) = (shown, report) {
                if let Some(key) = tainted.take()
                    && !self.remove_taint(&key).await
                {
                    again = Some(Instant::now() + SHOWN);
                    tainted = Some(key);
                }
                let due = self.annotate(&shown, &report, &mut said).await;
                again = again.into_iter().chain(due).min();
            }
            let again = async {
                match again {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                changed = listing.changed() => changed.is_err(),
                changed = reports.changed() => changed.is_err(),
                () = again => false,
            };
            if ended {
                return;
            }
        }
    }

    /// Answers when it must be looked at again, where the API does not tell.
    async fn annotate(
        &self,
        shown: &Listing,
        report: &Report,
        said: &mut BTreeMap<String, (Option<&'static str>, Instant)>,
    ) -> Option<Instant> {
        let uids: BTreeSet<&str> = shown.pods.iter().map(|pod| pod.uid.as_str()).collect();
        said.retain(|uid, _| uids.contains(uid.as_str()));
        let mut again = None::<Instant>;
        for pod in &shown.pods {
            let Some(wanted) = differs(&self.cluster, pod, report) else {
                said.remove(&pod.uid);
                continue;
            };
            if let Some((last, at)) = said.get(&pod.uid)
                && *last == wanted
                && at.elapsed() < SHOWN
            {
                again = again.into_iter().chain([*at + SHOWN]).min();
                continue;
            }
            self.say(pod, wanted).await;
            let now = Instant::now();
            said.insert(pod.uid.clone(), (wanted, now));
            again = again.into_iter().chain([now + SHOWN]).min();
            sleep(PACE).await;
        }
        again
    }

    async fn say(&self, pod: &ApiPod, wanted: Option<&'static str>) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        // With the UID, so that a pod that was made anew under the name is not meant.
        let patch = json!({"metadata": {"uid": pod.uid, "annotations": {REDIRECTION: wanted}}});
        let params = PatchParams {
            field_manager: Some(WRITER.to_owned()),
            ..PatchParams::default()
        };
        match pods
            .patch_metadata(&pod.name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(_) => {}
            // It has gone, or another one has its name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                let (pod, namespace) = (&pod.name, &pod.namespace);
                tracing::warn!(%pod, %namespace, error = explain(&error), "cannot write on the pod whether it is captured; trying again");
            }
        }
    }

    /// Whether the node has the taint no more.
    async fn remove_taint(&self, key: &str) -> bool {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let removed = async {
            let node = nodes.get(&self.node).await?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let Some(rest) = without(&taints, key) else {
                return Ok(());
            };
            // With the version, so that nobody's change in between is lost.
            let version = node.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": rest}});
            let patched = nodes
                .patch(&self.node, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            patched.map(|_| tracing::info!(taint = key, "the node takes pods: its start-up taint is removed"))
        };
        let removed: Result<(), kube::Error> = removed.await;
        if let Err(error) = &removed {
            tracing::warn!(
                node = self.node,
                taint = key,
                error = explain(error),
                "cannot take the start-up taint from the node; trying again"
            );
        }
        removed.is_ok()
    }
}

/// What a pod's annotation should be, where it is something else: `None` for none at all.
fn differs(cluster: &str, pod: &ApiPod, report: &Report) -> Option<Option<&'static str>> {
    let uid = format!("{cluster}//Pod/{}/{}", pod.namespace, pod.name);
    let wanted = report
        .pods
        .get(uid.as_str())
        .map(|captured| if *captured { "enabled" } else { "pending" });
    let is = pod.annotations.get(REDIRECTION).map(String::as_str);
    // One that has ended is nobody's business any more.
    (wanted != is && !pod.ended).then_some(wanted)
}

fn without(taints: &[Taint], key: &str) -> Option<Vec<Taint>> {
    let rest: Vec<_> = taints.iter().filter(|taint| taint.key != key).cloned().collect();
    (rest.len() < taints.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_written_to_only_where_it_says_something_else() {
        let report = Report {
            pods: [
                ("c//Pod/demo/in".into(), true),
                ("c//Pod/demo/waits".into(), false),
            ]
            .into(),
        };
        let pod = |name: &str, says: &str, ended| ApiPod {
            namespace: "demo".to_owned(),
            name: name.to_owned(),
            annotations: [(REDIRECTION.to_owned(), says.to_owned())]
                .into_iter()
                .filter(|_| !says.is_empty())
                .collect(),
            ended,
            ..ApiPod::default()
        };
        for (pod, expect) in [
            (pod("in", "", false), Some(Some("enabled"))),
            (pod("in", "pending", false), Some(Some("enabled"))),
            (pod("in", "enabled", false), None),
            (pod("waits", "", false), Some(Some("pending"))),
            (pod("waits", "enabled", false), Some(Some("pending"))),
            (pod("out", "", false), None),
            (pod("out", "enabled", false), Some(None)),
            (pod("out", "enabled", true), None),
        ] {
            assert_eq!(differs("c", &pod, &report), expect, "{pod:?}");
        }
    }

    #[test]
    fn only_our_taint_goes() {
        let taint = |key: &str| Taint {
            key: key.to_owned(),
            ..Taint::default()
        };
        let ours = "weft.dev/agent-not-ready";
        let taints = [taint("other"), taint(ours)];
        assert_eq!(without(&taints, ours), Some(vec![taint("other")]));
        assert_eq!(without(&taints[..1], ours), None);
    }
}
