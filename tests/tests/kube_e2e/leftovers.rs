//! What an uninstall may not leave: objects of the API in any namespace, what statuses say, marks on pods, and programs in the
//! nodes' kernels.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{DaemonSet, Deployment},
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::Job,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Pod, ResourceQuota, Secret, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
    core::{ClusterResourceScope, NamespaceResourceScope, Resource},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    apps::{App, INSIDE, OUTSIDE, REDIRECTION, World, words},
    cluster::{together, until},
    commands,
    mesh::{Mesh, NAMESPACE},
    scenes::{SECURITY, make, objects},
};

/// Where the chart has agents pin.
const BPFFS: &str = "/sys/fs/bpf";
/// What the controller makes in other namespaces has this label.
const MADE: &str = "app.kubernetes.io/managed-by=weft";
const NETWORKING: &str = "networking.istio.io";
const GATEWAY_API: &str = "gateway.networking.k8s.io";
/// Kinds of which the controller writes a status: group, kind and plural.
const SPOKEN_OF: [(&str, &str, &str); 15] = [
    ("", "Namespace", "namespaces"),
    ("", "Service", "services"),
    (GATEWAY_API, "GatewayClass", "gatewayclasses"),
    (GATEWAY_API, "Gateway", "gateways"),
    (GATEWAY_API, "HTTPRoute", "httproutes"),
    (GATEWAY_API, "GRPCRoute", "grpcroutes"),
    (GATEWAY_API, "TCPRoute", "tcproutes"),
    (GATEWAY_API, "TLSRoute", "tlsroutes"),
    (SECURITY, "AuthorizationPolicy", "authorizationpolicies"),
    (SECURITY, "PeerAuthentication", "peerauthentications"),
    (SECURITY, "RequestAuthentication", "requestauthentications"),
    (NETWORKING, "ServiceEntry", "serviceentries"),
    (NETWORKING, "WorkloadEntry", "workloadentries"),
    (NETWORKING, "VirtualService", "virtualservices"),
    (NETWORKING, "DestinationRule", "destinationrules"),
];
/// How long the controller may take to say what became of an object.
const SAID: Duration = Duration::from_secs(60);
/// How long what an uninstall has deleted may take to be gone.
const GONE: Duration = Duration::from_secs(120);

/// Gives the uninstall something to undo: pods in the mesh, a policy in force and a waypoint.
pub(crate) async fn begin(mesh: &Mesh<'_>, world: &World<'_>) -> Result<()> {
    commands::run(mesh, &["enroll", INSIDE, "--wait", "60"]).await?;
    let policies = objects(world, SECURITY, "AuthorizationPolicy", "authorizationpolicies");
    let spec = json!({"action": "DENY", "rules": [{"from": [{"source": {"principals": ["nobody"]}}]}]});
    make(&policies, SECURITY, "AuthorizationPolicy", "stays", &spec).await?;
    world
        .cluster
        .define(NETWORKING, "DestinationRule", "destinationrules", "Namespaced")
        .await?;
    let rules = objects(world, NETWORKING, "DestinationRule", "destinationrules");
    make(
        &rules,
        NETWORKING,
        "DestinationRule",
        "stays",
        &json!({"host": "stays"}),
    )
    .await?;
    let gateways = objects(world, GATEWAY_API, "Gateway", "gateways");
    let listener = json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
    let spec = json!({"gatewayClassName": "weft-waypoint", "listeners": [listener]});
    make(&gateways, GATEWAY_API, "Gateway", "stays", &spec).await?;
    until("the controller to say what became of them", SAID, async || {
        let said = statuses(&world.client()).await?;
        let of = |what: &str| said.iter().any(|it| it.contains(what));
        let kinds = [
            "Namespace ",
            "AuthorizationPolicy ",
            "DestinationRule ",
            "Gateway ",
        ];
        let all = kinds.into_iter().all(of);
        let made = made::<Deployment>(&world.client()).await?;
        Ok((all && !made.is_empty()).then_some(()))
    })
    .await
}

/// Looks for all of it, and tells of all that is left.
pub(crate) async fn none(world: &World<'_>) -> Result<()> {
    together([
        objects_gone(world).await,
        unsaid(world).await,
        unmarked(world).await,
        unpinned(world, &world.nodes[0]).await,
        unpinned(world, &world.nodes[1]).await,
    ])
}

/// Pods that Helm has deleted take a moment to end, and so does what the garbage collector takes.
async fn objects_gone(world: &World<'_>) -> Result<()> {
    let client = world.client();
    let mut left = Vec::new();
    let gone = until("what is weft's to be gone", GONE, async || {
        let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
        let of_weft = ListParams::default().labels("app.kubernetes.io/name=weft");
        let pods = pods.list_metadata(&of_weft).await?;
        left = ours_anywhere(&client).await?;
        left.extend(pods.items.into_iter().filter_map(|pod| pod.metadata.name));
        Ok(left.is_empty().then_some(()))
    });
    let gone = gone.await;
    gone.with_context(|| format!("the uninstall leaves {left:?}"))
}

async fn unsaid(world: &World<'_>) -> Result<()> {
    let said = statuses(&world.client()).await?;
    ensure!(said.is_empty(), "a status still says what weft did: {said:?}");
    Ok(())
}

async fn unmarked(world: &World<'_>) -> Result<()> {
    let pods = Api::<Pod>::all(world.client());
    let marked = pods.list_metadata(&ListParams::default()).await?;
    let marked = marked.items.into_iter().map(|pod| pod.metadata).filter(|pod| {
        let annotations = pod.annotations.as_ref();
        annotations.is_some_and(|all| all.contains_key(REDIRECTION))
    });
    let marked: Vec<_> = marked.filter_map(|pod| pod.name).collect();
    ensure!(
        marked.is_empty(),
        "pods still say that they are captured: {marked:?}"
    );
    Ok(())
}

async fn unpinned(world: &World<'_>, node: &str) -> Result<()> {
    let pins = pins(world, node).await?;
    ensure!(pins.is_empty(), "on {node} is still pinned: {pins:?}");
    println!("{node}: no program of weft's is pinned");
    Ok(())
}

async fn ours_anywhere(client: &Client) -> Result<Vec<String>> {
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
    left.extend(named::<ResourceQuota>(client).await?);
    left.extend(cluster_wide::<ValidatingAdmissionPolicy>(client).await?);
    left.extend(cluster_wide::<ValidatingAdmissionPolicyBinding>(client).await?);
    let classes = of_any(client, GATEWAY_API, "GatewayClass", "gatewayclasses").await?;
    let classes = classes.iter().filter_map(|class| class.metadata.name.as_deref());
    left.extend(
        classes
            .filter(|name| is_ours(name))
            .map(|name| format!("GatewayClass {name}")),
    );
    // Waypoints', wherever they were.
    left.extend(made::<Deployment>(client).await?);
    left.extend(made::<Service>(client).await?);
    left.extend(made::<ServiceAccount>(client).await?);
    left.extend(made::<PodDisruptionBudget>(client).await?);
    left.extend(made::<HorizontalPodAutoscaler>(client).await?);
    Ok(left)
}

/// What the controller has made of a kind, in all namespaces.
async fn made<K>(client: &Client) -> Result<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let of = ListParams::default().labels(MADE);
    let found = Api::<K>::all(client.clone()).list_metadata(&of).await?;
    let found = found.items.into_iter().map(|object| object.metadata);
    let titles = found.map(|it| {
        let (namespace, name) = (it.namespace.unwrap_or_default(), it.name.unwrap_or_default());
        format!("{} {namespace}/{name}", K::kind(&()))
    });
    Ok(titles.collect())
}

/// All objects of a kind that the cluster may not know.
async fn of_any(client: &Client, group: &str, kind: &str, plural: &str) -> Result<Vec<DynamicObject>> {
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    match api.list(&ListParams::default()).await {
        Ok(found) => Ok(found.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What statuses say of weft, by object.
async fn statuses(client: &Client) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for (group, kind, plural) in SPOKEN_OF {
        for object in of_any(client, group, kind, plural).await? {
            let (metadata, status) = (&object.metadata, &object.data["status"]);
            let namespace = metadata.namespace.as_deref().unwrap_or_default();
            // Another mesh may say the same words of what is not the suite's.
            let is_suites = [INSIDE, OUTSIDE].contains(&namespace);
            if says_weft(kind, status, is_suites) {
                let name = metadata.name.as_deref().unwrap_or_default();
                said.push(format!("{kind} {namespace}/{name}: {status}"));
            }
        }
    }
    Ok(said)
}

/// Whether a status is weft's, or part of it.
fn says_weft(kind: &str, status: &Value, is_suites: bool) -> bool {
    let items = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let of_type = |words: &[&str]| {
        let mut conditions = items("conditions").into_iter();
        conditions
            .any(|it| it["type"].as_str().is_some_and(|it| words.contains(&it)) && it["status"] != "Unknown")
    };
    let words: &[&str] = match kind {
        "Gateway" => &["Accepted", "Programmed", "ResolvedRefs"],
        _ => &["ZtunnelAccepted", "WaypointAccepted", "istio.io/WaypointBound"],
    };
    of_type(&["weft.dev/PodsCaptured"])
        || items("parents")
            .iter()
            .any(|it| it["controllerName"] == "weft.dev/mesh-controller")
        || is_suites
            && (of_type(words)
                || !items("listeners").is_empty()
                || kind == "Gateway" && !items("addresses").is_empty())
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

#[test]
fn what_a_status_says_of_weft_is_found() {
    let condition = |type_: &str, status: &str| json!({"conditions": [{"type": type_, "status": status}]});
    let captured = condition("weft.dev/PodsCaptured", "True");
    assert!(says_weft("Namespace", &captured, false));
    let accepted = condition("ZtunnelAccepted", "True");
    assert!(says_weft("AuthorizationPolicy", &accepted, true));
    assert!(
        !says_weft("AuthorizationPolicy", &accepted, false),
        "another mesh's"
    );
    let parents = |name: &str| json!({"parents": [{"controllerName": name}]});
    assert!(says_weft(
        "HTTPRoute",
        &parents("weft.dev/mesh-controller"),
        false
    ));
    assert!(!says_weft("HTTPRoute", &parents("theirs"), true));
    assert!(says_weft("Gateway", &condition("Programmed", "True"), true));
    assert!(says_weft(
        "Gateway",
        &json!({"addresses": [{"value": "10.0.0.1"}]}),
        true
    ));
    // As the API has it of a Gateway that nobody has looked at.
    assert!(!says_weft("Gateway", &condition("Programmed", "Unknown"), true));
    assert!(!says_weft("Service", &json!({"loadBalancer": {}}), true));
}
