//! The cluster: whether the suite can run there, and waiting for what it says.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::{
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::Node,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Resource,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

/// How often the API is asked while something is waited for.
const PAUSE: Duration = Duration::from_millis(250);

pub(crate) struct Cluster {
    pub(crate) client: Client,
}

impl Cluster {
    pub(crate) async fn connect(kubeconfig: &Path) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let version = client
            .apiserver_version()
            .await
            .with_context(|| format!("no API server answers at what {} names", kubeconfig.display()))?;
        println!("Kubernetes {}", version.git_version);
        Ok(Self { client })
    }

    /// Two nodes that take pods, by name.
    pub(crate) async fn preflight(&self) -> Result<[String; 2]> {
        for (group, resource, verb) in [
            ("rbac.authorization.k8s.io", "clusterroles", "create"),
            ("apps", "daemonsets", "create"),
            ("", "namespaces", "create"),
            ("", "secrets", "create"),
        ] {
            ensure!(
                self.may(group, resource, verb).await?,
                "this kubeconfig may not {verb} {resource}: the suite needs an administrator's"
            );
        }
        let nodes = Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await?;
        let mut ready: Vec<_> = nodes
            .items
            .iter()
            .filter(|node| takes_pods(node))
            .filter_map(name)
            .collect();
        ready.sort();
        let mut ready = ready.into_iter();
        match (ready.next(), ready.next()) {
            (Some(first), Some(second)) => Ok([first, second]),
            _ => bail!(
                "fewer than two of the {} nodes are ready and take pods: traffic between nodes cannot be tried",
                nodes.items.len()
            ),
        }
    }

    async fn may(&self, group: &str, resource: &str, verb: &str) -> Result<bool> {
        let attributes = ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            verb: Some(verb.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let answer = Api::all(self.client.clone())
            .create(&PostParams::default(), &review)
            .await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    /// Makes sure that the cluster knows a kind of Istio's or of Gateway API, if only as a shape without rules. Whether it had to
    /// be made.
    pub(crate) async fn define(&self, group: &str, kind: &str, plural: &str, scope: &str) -> Result<bool> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        let name = format!("{plural}.{group}");
        if api.get_opt(&name).await?.is_some() {
            return Ok(false);
        }
        let schema = serde_json::json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        let definition = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"weft.dev/e2e": "true"},
                // Without it, groups of Kubernetes' own are refused.
                "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"}},
            "spec": {
                "group": group, "scope": scope,
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}}}],
            },
        }))?;
        api.create(&PostParams::default(), &definition).await?;
        until(
            &format!("the API to serve {name}"),
            Duration::from_secs(60),
            async || {
                let found = api.get(&name).await?;
                let conditions = found
                    .status
                    .and_then(|status| status.conditions)
                    .unwrap_or_default();
                Ok(conditions
                    .iter()
                    .any(|it| it.type_ == "Established" && it.status == "True")
                    .then_some(()))
            },
        )
        .await?;
        Ok(true)
    }
}

/// Deletes an object and waits until it is gone; one that is not there is fine.
pub(crate) async fn delete<K>(api: &Api<K>, name: &str) -> Result<()>
where
    K: Resource + Clone + fmt::Debug + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        other => other.with_context(|| format!("delete {name}"))?,
    };
    until(
        &format!("{name} to be gone"),
        Duration::from_secs(180),
        async || Ok(api.get_opt(name).await?.is_none().then_some(())),
    )
    .await
}

/// Asks until there is an answer.
///
/// # Errors
/// When there is none within `limit`, or the question fails.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await.with_context(|| format!("waiting for {what}"))? {
            return Ok(answer);
        }
        ensure!(
            Instant::now() < deadline,
            "waited {} s in vain for {what}",
            limit.as_secs()
        );
        sleep(PAUSE).await;
    }
}

fn name(node: &Node) -> Option<String> {
    node.metadata.name.clone()
}

/// Ready, not cordoned, and without a taint that keeps plain pods away (the start-up taint of weft goes by itself).
fn takes_pods(node: &Node) -> bool {
    let spec = node.spec.clone().unwrap_or_default();
    let taints = spec.taints.unwrap_or_default();
    let kept_away = taints
        .iter()
        .any(|taint| taint.effect != "PreferNoSchedule" && taint.key != "weft.dev/agent-not-ready");
    let conditions = node
        .status
        .clone()
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let ready = conditions
        .iter()
        .any(|it| it.type_ == "Ready" && it.status == "True");
    ready && !kept_away && spec.unschedulable != Some(true)
}

#[test]
fn nodes_that_take_no_pods_are_passed_over() {
    let node = |json: serde_json::Value| serde_json::from_value::<Node>(json).expect("a node");
    let ready = serde_json::json!({"conditions": [{"type": "Ready", "status": "True"}]});
    let with =
        |spec: serde_json::Value| takes_pods(&node(serde_json::json!({"spec": spec, "status": ready})));
    let taint = |key: &str, effect: &str| serde_json::json!({"taints": [{"key": key, "effect": effect}]});
    assert!(with(serde_json::json!({})));
    assert!(with(taint("weft.dev/agent-not-ready", "NoSchedule")));
    assert!(with(taint("x", "PreferNoSchedule")));
    assert!(!with(taint(
        "node-role.kubernetes.io/control-plane",
        "NoSchedule"
    )));
    assert!(!with(serde_json::json!({"unschedulable": true})));
    assert!(!takes_pods(&node(serde_json::json!({}))));
}
