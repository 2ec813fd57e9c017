//! `weft uninstall-hook`: what the chart's uninstall ends with, in one pod of the cluster. It waits until no agent and no
//! controller is left and every node has been released (`weft release --stay` there), then deletes what the controller made, takes
//! back what it said in the statuses of objects, and the marks that agents left on pods. Not for people: `helm uninstall` runs it.

use std::{collections::BTreeSet, fmt, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    core::{NamespaceResourceScope, Resource},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{
    cluster::labels::{GATEWAY_NAME, WAYPOINT_MANAGED_BY},
    controller::cleared::{self, Cleared},
};

/// How often it looks.
const PAUSE: Duration = Duration::from_secs(1);
/// Pods that are listed at a time.
const PAGE: u32 = 500;
/// What agents write on pods.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Objects that an error names.
const MOST_NAMED: usize = 5;

/// Flags of `weft uninstall-hook`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// The namespace that weft was installed in
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// The DaemonSet whose pods release their nodes
    #[arg(long, default_value = "weft-release")]
    pub daemonset: String,
    /// The Secret that the controller made; none is deleted without it
    #[arg(long)]
    pub ca_secret: Option<String>,
    /// Delete what was made for Gateways that were waypoints
    #[arg(long)]
    pub waypoints: bool,
    /// Seconds that nodes may take
    #[arg(long, default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,
}

/// Runs `weft uninstall-hook`.
///
/// # Errors
/// When nodes could not be released in time, and what the API server says.
pub async fn run(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    let client = Client::try_default()
        .await
        .context("find the API server: this runs in a pod of the cluster, or with a kubeconfig")?;
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    let mut said = None;
    loop {
        let left = left(&client, args).await?;
        if left.is_none() {
            break;
        }
        if said != left {
            said = left;
            println!("{}", said.as_ref().map(ToString::to_string).unwrap_or_default());
        }
        if Instant::now() > deadline {
            let what = said.map(|left| left.to_string()).unwrap_or_default();
            bail!(
                "after {} s {what}; the DaemonSet {} stays and goes on, delete it when it is done",
                args.timeout,
                args.daemonset
            );
        }
        sleep(PAUSE).await;
    }
    clean(&client, args).await?;
    println!("every node is released");
    Ok(ExitCode::SUCCESS)
}

/// What the uninstall waits for.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    /// Agents that have not ended.
    Agents(usize),
    /// Controllers that have not: they would make anew what is deleted.
    Controllers(usize),
    /// Nobody has looked at the DaemonSet yet.
    Start,
    /// Nodes that are not released, by name where their pods are there.
    Nodes {
        released: i32,
        of: i32,
        missing: BTreeSet<String>,
    },
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agents(count) => write!(f, "{count} agents have not ended"),
            Self::Controllers(count) => write!(f, "{count} controllers have not ended"),
            Self::Start => f.write_str("the pods that release nodes are not there"),
            Self::Nodes {
                released,
                of,
                missing,
            } => {
                write!(f, "{released} of {of} nodes are released")?;
                let mut before = ", not ";
                for node in missing {
                    write!(f, "{before}{node}")?;
                    before = ", ";
                }
                Ok(())
            }
        }
    }
}

async fn left(client: &Client, args: &UninstallArgs) -> anyhow::Result<Option<Left>> {
    let pods = Api::<Pod>::namespaced(client.clone(), &args.namespace);
    let of = |component: &str| {
        ListParams::default().labels(&format!(
            "app.kubernetes.io/name=weft,app.kubernetes.io/component={component}"
        ))
    };
    let count = async |component| {
        let found = pods.list_metadata(&of(component)).await;
        let found = found.with_context(|| format!("list the {component}s"))?;
        anyhow::Ok(found.items.len())
    };
    // Before its last agent has gone a node may be captured again.
    match count("agent").await? {
        0 => {}
        agents => return Ok(Some(Left::Agents(agents))),
    }
    match count("controller").await? {
        0 => {}
        controllers => return Ok(Some(Left::Controllers(controllers))),
    }
    let sets = Api::<DaemonSet>::namespaced(client.clone(), &args.namespace);
    let set = sets
        .get(&args.daemonset)
        .await
        .context("look at the nodes' release")?;
    let Some((released, of_all)) = progress(&set) else {
        return Ok(Some(Left::Start));
    };
    if released >= of_all {
        return Ok(None);
    }
    let releasing = pods
        .list(&of("release"))
        .await
        .context("list the nodes' release")?;
    Ok(Some(Left::Nodes {
        released,
        of: of_all,
        missing: releasing
            .items
            .iter()
            .filter(|pod| !ready(pod))
            .filter_map(node)
            .collect(),
    }))
}

/// How many pods are ready, and how many there are to be; none before the DaemonSet has been looked at.
fn progress(set: &DaemonSet) -> Option<(i32, i32)> {
    let status = set.status.as_ref()?;
    let current =
        status.observed_generation >= set.metadata.generation && status.observed_generation.is_some();
    current.then_some((status.number_ready, status.desired_number_scheduled))
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node(pod: &Pod) -> Option<String> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone())
}

/// Deletes what Helm does not know of.
async fn clean(client: &Client, args: &UninstallArgs) -> anyhow::Result<()> {
    if let Some(secret) = &args.ca_secret {
        delete::<Secret>(client, &args.namespace, secret).await?;
    }
    delete::<ConfigMap>(client, &args.namespace, "weft-ca-root-cert").await?;
    delete::<Lease>(client, &args.namespace, "weft-controller").await?;
    if args.waypoints {
        delete_waypoints::<HorizontalPodAutoscaler>(client).await?;
        delete_waypoints::<PodDisruptionBudget>(client).await?;
        delete_waypoints::<Deployment>(client).await?;
        delete_waypoints::<Service>(client).await?;
        delete_waypoints::<ServiceAccount>(client).await?;
    }
    let marked = unmark(client).await?;
    println!("took the annotation {REDIRECTION} from {marked} pods");
    let cleared = cleared::clear(client).await;
    told(&cleared.context("list what has a status of weft's")?)
}

/// Says which statuses are as without weft.
///
/// # Errors
/// When some are not.
fn told(cleared: &Cleared) -> anyhow::Result<()> {
    println!(
        "took what weft said from the status of {} objects",
        cleared.written
    );
    if cleared.refused.is_empty() {
        return Ok(());
    }
    let named = &cleared.refused[..cleared.refused.len().min(MOST_NAMED)];
    bail!(
        "{} objects still have a status that weft wrote, such as {}",
        cleared.refused.len(),
        named.join("; ")
    )
}

async fn delete<K>(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + fmt::Debug + DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => println!("deleted {} {name}", K::kind(&())),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error).with_context(|| format!("delete {} {name}", K::kind(&()))),
    }
    Ok(())
}

/// Deletes the objects of a kind that waypoints are made of. Their Gateways are somebody's own, and stay.
async fn delete_waypoints<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + fmt::Debug + DeserializeOwned,
{
    let (key, value) = WAYPOINT_MANAGED_BY;
    let selector = format!("{key}={value},{GATEWAY_NAME}");
    let of = ListParams::default().labels(&selector);
    let found = Api::<K>::all(client.clone()).list_metadata(&of).await;
    let found = found.with_context(|| format!("list {}s of waypoints", K::kind(&())))?;
    for object in found.items {
        if let (Some(namespace), Some(name)) = (object.metadata.namespace, object.metadata.name) {
            delete::<K>(client, &namespace, &name).await?;
        }
    }
    Ok(())
}

/// Takes the agents' marks from pods: another mesh would believe them.
async fn unmark(client: &Client) -> anyhow::Result<usize> {
    let all = Api::<Pod>::all(client.clone());
    let remove = Patch::Merge(serde_json::json!({"metadata": {"annotations": {REDIRECTION: null}}}));
    let mut page = ListParams::default().limit(PAGE);
    let mut marked = 0;
    loop {
        let pods = all.list_metadata(&page).await.context("list pods")?;
        for pod in pods.items {
            let annotations = pod.metadata.annotations.unwrap_or_default();
            let (Some(name), Some(namespace)) = (pod.metadata.name, pod.metadata.namespace) else {
                continue;
            };
            if !annotations.contains_key(REDIRECTION) {
                continue;
            }
            let api = Api::<Pod>::namespaced(client.clone(), &namespace);
            match api.patch_metadata(&name, &PatchParams::default(), &remove).await {
                Ok(_) => marked += 1,
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error).with_context(|| format!("change pod {namespace}/{name}")),
            }
        }
        match pods.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(marked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(json: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json).expect("a DaemonSet")
    }

    #[test]
    fn nobody_is_released_before_the_daemonset_has_been_looked_at() {
        let status = |observed: i64| {
            set(serde_json::json!({
                "metadata": {"generation": 2},
                "status": {"observedGeneration": observed, "numberReady": 1, "desiredNumberScheduled": 2,
                           "currentNumberScheduled": 2, "numberMisscheduled": 0},
            }))
        };
        assert_eq!(
            progress(&set(serde_json::json!({"metadata": {"generation": 1}}))),
            None
        );
        assert_eq!(progress(&status(1)), None);
        assert_eq!(progress(&status(2)), Some((1, 2)));
        let empty = serde_json::json!({"metadata": {"generation": 1}, "status": {
            "numberReady": 0, "desiredNumberScheduled": 0, "currentNumberScheduled": 0, "numberMisscheduled": 0}});
        assert_eq!(progress(&set(empty)), None, "a status that nobody has written");
    }

    #[test]
    fn what_is_missing_is_named() {
        let left = Left::Nodes {
            released: 1,
            of: 3,
            missing: ["b".to_owned(), "c".to_owned()].into(),
        };
        assert_eq!(left.to_string(), "1 of 3 nodes are released, not b, c");
        assert_eq!(Left::Agents(2).to_string(), "2 agents have not ended");
    }

    #[test]
    fn a_status_that_could_not_be_changed_fails_it_by_name() {
        let cleared = |refused: &[&str]| {
            told(&Cleared {
                written: 3,
                refused: refused.iter().map(|it| (*it).to_owned()).collect(),
            })
        };
        cleared(&[]).expect("nothing is left");
        let error = cleared(&["Namespace shop: no"])
            .expect_err("one is left")
            .to_string();
        assert!(
            error.contains("1 objects") && error.ends_with("Namespace shop: no"),
            "{error}"
        );
    }
}
