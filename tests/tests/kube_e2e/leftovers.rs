//! What an uninstall may not leave: objects of the API, marks on pods, and programs in the nodes' kernels.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::ListParams,
    core::{ClusterResourceScope, NamespaceResourceScope, Resource},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    apps::{App, OUTSIDE, REDIRECTION, World, words},
    cluster::{delete, until},
    mesh::NAMESPACE,
};

/// Where the chart has agents pin.
const BPFFS: &str = "/sys/fs/bpf";

pub(crate) async fn none(world: &World<'_>) -> Result<()> {
    // Pods that Helm has deleted take a moment to end.
    until("weft's pods to be gone", Duration::from_secs(120), async || {
        let pods = Api::<Pod>::namespaced(world.client(), NAMESPACE);
        let left = pods
            .list_metadata(&ListParams::default().labels("app.kubernetes.io/name=weft"))
            .await?;
        Ok(left.items.is_empty().then_some(()))
    })
    .await?;
    let left = objects(&world.client()).await?;
    ensure!(left.is_empty(), "the uninstall leaves {left:?}");
    let marked = Api::<Pod>::all(world.client())
        .list_metadata(&ListParams::default())
        .await?;
    let marked = marked.items.iter().filter(|pod| {
        pod.metadata
            .annotations
            .as_ref()
            .is_some_and(|all| all.contains_key(REDIRECTION))
    });
    ensure!(marked.count() == 0, "pods still say that they are captured");
    for node in &world.nodes {
        let pins = pins(world, node).await?;
        ensure!(pins.is_empty(), "on {node} is still pinned: {pins:?}");
        println!("{node}: no program of weft's is pinned");
    }
    // Those that the suite made, if it made any.
    let definitions = Api::<CustomResourceDefinition>::all(world.client());
    for made in definitions
        .list(&ListParams::default().labels("weft.dev/e2e=true"))
        .await?
        .items
    {
        delete(&definitions, &made.metadata.name.unwrap_or_default()).await?;
    }
    Ok(())
}

async fn objects(client: &Client) -> Result<Vec<String>> {
    let mut left = Vec::new();
    left.extend(named::<DaemonSet>(client).await?);
    left.extend(named::<Deployment>(client).await?);
    left.extend(named::<Job>(client).await?);
    left.extend(named::<Service>(client).await?);
    left.extend(named::<ServiceAccount>(client).await?);
    left.extend(named::<ConfigMap>(client).await?);
    left.extend(named::<Secret>(client).await?);
    left.extend(named::<Lease>(client).await?);
    left.extend(named::<PodDisruptionBudget>(client).await?);
    left.extend(named::<Role>(client).await?);
    left.extend(named::<RoleBinding>(client).await?);
    left.extend(cluster_wide::<ClusterRole>(client).await?);
    left.extend(cluster_wide::<ClusterRoleBinding>(client).await?);
    Ok(left)
}

async fn named<K>(client: &Client) -> Result<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    ours(&Api::<K>::namespaced(client.clone(), NAMESPACE)).await
}

async fn cluster_wide<K>(client: &Client) -> Result<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    ours(&Api::<K>::all(client.clone())).await
}

/// By name, since what the controller makes has no labels.
async fn ours<K>(api: &Api<K>) -> Result<Vec<String>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let found = api.list_metadata(&ListParams::default()).await?;
    let names = found.items.into_iter().filter_map(|object| object.metadata.name);
    Ok(names
        .filter(|name| is_ours(name))
        .map(|name| format!("{} {name}", K::kind(&())))
        .collect())
}

fn is_ours(name: &str) -> bool {
    name == "weft" || name.starts_with("weft-") || name.starts_with("sh.helm.release.v1.weft.")
}

/// What a node has pinned of weft, as a pod there sees it.
async fn pins(world: &World<'_>, node: &str) -> Result<Vec<String>> {
    let mut pod = world.pod(&App {
        namespace: OUTSIDE,
        name: "pins",
        account: "client",
        node,
        args: words(&["list", BPFFS]),
    });
    let spec = &mut pod["spec"];
    spec["volumes"] = json!([{"name": "bpffs", "hostPath": {"path": BPFFS}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "bpffs", "mountPath": BPFFS, "readOnly": true}]);
    // The folder is root's.
    spec["containers"][0]["securityContext"] = json!({"runAsUser": 0});
    world.start_as(OUTSIDE, "pins", pod).await?;
    let listed = world.ended(OUTSIDE, "pins").await?;
    Ok(listed
        .lines()
        .filter(|name| is_ours(name))
        .map(str::to_owned)
        .collect())
}

#[test]
fn what_is_wefts_is_known_by_its_name() {
    for name in ["weft", "weft-agent", "weft-node-a", "sh.helm.release.v1.weft.v1"] {
        assert!(is_ours(name), "{name}");
    }
    for name in ["kube-root-ca.crt", "default", "maps.debug", "wefting"] {
        assert!(!is_ours(name), "{name}");
    }
}
