//! The cluster: whether the suite can run there, and waiting for what it says.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context as _, Error, Result, anyhow, bail, ensure};
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::{Namespace, Node, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::Resource,
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{
    apps::{INSIDE, OUTSIDE},
    mesh::{NAMESPACE, RELEASE},
};

/// How often the API is asked while something is waited for.
const PAUSE: Duration = Duration::from_millis(250);
/// How long one answer of the API may take.
const ANSWER: Duration = Duration::from_secs(30);
/// The label of what the suite makes beside weft, so that a later run knows what one that died has left.
pub(crate) const LABEL: &str = "weft.dev/e2e";

pub(crate) struct Cluster {
    pub(crate) client: Client,
}

impl Cluster {
    pub(crate) async fn connect(kubeconfig: &Path) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        // An API server that is gone must not hold up a wait beyond its deadline for ever.
        (config.read_timeout, config.reset_reader_on_write) = (Some(ANSWER), true);
        let client = Client::try_from(config)?;
        let version = client
            .apiserver_version()
            .await
            .with_context(|| format!("no API server answers at what {} names", kubeconfig.display()))?;
        println!("Kubernetes {}", version.git_version);
        Ok(Self { client })
    }

    /// Two nodes that take pods, by name. Nothing is made, and nothing is taken away.
    ///
    /// # Errors
    /// When the suite cannot run here, or must not: it uninstalls what it has installed, and that may be nobody's mesh.
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
        self.vacant().await?;
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

    /// That weft is not installed, and that the suite's namespaces are nobody else's.
    async fn vacant(&self) -> Result<()> {
        let sets = Api::<DaemonSet>::all(self.client.clone());
        let sets = sets.list_metadata(&ListParams::default()).await?;
        if let Some(set) = sets.items.iter().find(|set| is_weft(&set.metadata)) {
            let of = &set.metadata;
            let (namespace, name) = (of.namespace.as_deref(), of.name.as_deref());
            bail!(
                "this cluster has weft already (DaemonSet {}/{}), and nothing is done to it: the suite installs and uninstalls its \
                 own, so it needs a cluster without. Of an earlier run with --keep it is rid by `helm uninstall {RELEASE} -n \
                 {NAMESPACE}`",
                namespace.unwrap_or_default(),
                name.unwrap_or_default()
            );
        }
        let of_helm = ListParams::default().labels(&format!("owner=helm,name={RELEASE}"));
        let releases = Api::<Secret>::namespaced(self.client.clone(), NAMESPACE);
        ensure!(
            releases.list_metadata(&of_helm).await?.items.is_empty(),
            "Helm has a release {RELEASE} in {NAMESPACE}, and nothing is done to it: look at `helm status {RELEASE} -n \
             {NAMESPACE}`, and if nobody needs it, `helm uninstall {RELEASE} -n {NAMESPACE}`"
        );
        for name in [INSIDE, OUTSIDE] {
            let found = Api::<Namespace>::all(self.client.clone()).get_opt(name).await?;
            let foreign = found.is_some_and(|found| {
                let labels = found.metadata.labels.unwrap_or_default();
                !labels.contains_key(LABEL)
            });
            ensure!(
                !foreign,
                "there is a namespace {name} that the suite has not made"
            );
        }
        Ok(())
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
            "metadata": {"name": name, "labels": {LABEL: "true"},
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

    /// Takes away the kinds that [`Cluster::define`] made, in this run or in another.
    pub(crate) async fn undefine(&self) -> Result<()> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        let made = ListParams::default().labels(&format!("{LABEL}=true"));
        for one in api.list_metadata(&made).await?.items {
            delete(&api, &one.metadata.name.unwrap_or_default()).await?;
        }
        Ok(())
    }
}

/// Whether a DaemonSet is weft's: the chart's, whatever its release is called and wherever it is, or by its name.
fn is_weft(of: &ObjectMeta) -> bool {
    let label = of
        .labels
        .as_ref()
        .and_then(|all| all.get("app.kubernetes.io/name"));
    of.name.as_deref() == Some("weft-agent") || label.is_some_and(|name| name == "weft")
}

/// All that has failed, as one; what is done at the end is done whole.
pub(crate) fn together(outcomes: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failed = outcomes.into_iter().filter_map(Result::err);
    let failed: Vec<String> = failed.map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
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

/// Asks until there is an answer. An API that does not answer, or says that it is busy, is asked again.
///
/// # Errors
/// When there is none within `limit`, the question fails for another reason, or the API says that we may not ask.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        let failed = match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) if may_pass(&error) => Some(error),
            Err(error) => return Err(error.context(format!("waiting for {what}"))),
        };
        if Instant::now() >= deadline {
            let vain = format!("waited {} s in vain for {what}", limit.as_secs());
            return Err(match failed {
                Some(error) => error.context(vain),
                None => anyhow!(vain),
            });
        }
        sleep(PAUSE).await;
    }
}

/// Whether it is the API's trouble, which may be another a moment later.
fn may_pass(error: &Error) -> bool {
    let of_api = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<kube::Error>());
    match of_api {
        Some(kube::Error::Api(status)) => ![401, 403].contains(&status.code),
        other => other.is_some(),
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

#[test]
fn weft_is_known_wherever_it_is_installed() {
    let of = |json: serde_json::Value| serde_json::from_value::<ObjectMeta>(json).expect("metadata");
    let labels = |name: &str| serde_json::json!({"name": "x", "labels": {"app.kubernetes.io/name": name}});
    assert!(is_weft(&of(serde_json::json!({"name": "weft-agent"}))));
    assert!(is_weft(&of(labels("weft"))));
    assert!(!is_weft(&of(labels("kube-proxy"))));
}

#[tokio::test]
async fn what_the_api_fails_to_answer_is_asked_again_unless_we_may_not() {
    let refusal = |code: u16| -> kube::Error {
        let status = serde_json::json!({"status": "Failure", "message": "no", "code": code});
        kube::Error::Api(serde_json::from_value(status).expect("a status"))
    };
    let limit = Duration::from_secs(1);
    let mut left = vec![Ok(Some(1)), Ok(None), Err(refusal(500)), Err(refusal(429))];
    let answer = until("it", limit, async || Ok(left.pop().expect("one more")?)).await;
    assert_eq!(answer.expect("an answer"), 1);
    let mut asked = 0;
    let forbidden = until::<()>("it", limit, async || {
        asked += 1;
        Err(refusal(403).into())
    });
    assert!(forbidden.await.is_err());
    assert_eq!(asked, 1);
    let vain = until::<()>("it", limit, async || Err(refusal(503).into()));
    let vain = format!("{:#}", vain.await.expect_err("nobody answers"));
    assert!(
        vain.starts_with("waited 1 s in vain for it") && vain.contains("no"),
        "{vain}"
    );
}

#[test]
fn everything_that_fails_is_told() {
    assert!(together([Ok(()), Ok(())]).is_ok());
    let told = together([Err(anyhow!("one")), Ok(()), Err(anyhow!("two"))]).expect_err("two of them");
    assert_eq!(told.to_string(), "one; two");
}
