//! The life of a release: Helm's own library installs deploy/chart into a stand-in API server, upgrades it with other values and
//! uninstalls it, and what the API has afterwards is looked at, object by object. What the chart starts runs for real where it
//! needs no node: the controller and the uninstall hook, with the arguments that the chart gives them and the rights of the
//! service accounts that it makes. The test plays the kubelets' part. `cargo xtask chart` looks at many more values.

#[path = "chart/release.rs"]
mod release;

use anyhow::{Context as _, Result, ensure};
use release::{NAMESPACE, Release};
use serde_json::{Value, json};
use weft_tests::{LIMIT, wait_until};

const GATEWAY: &str = "Gateway.gateway.networking.k8s.io";
const CLASS: &str = "GatewayClass.gateway.networking.k8s.io";

/// What a release consists of, by kind and name.
const OBJECTS: [&str; 17] = [
    "ClusterRole weft-agent",
    "ClusterRole weft-controller",
    "ClusterRoleBinding weft-agent",
    "ClusterRoleBinding weft-controller",
    "DaemonSet weft-agent",
    "Deployment weft-controller",
    "GatewayClass weft-waypoint",
    "PodDisruptionBudget weft-controller",
    "Role weft-agent",
    "Role weft-controller",
    "RoleBinding weft-agent",
    "RoleBinding weft-controller",
    "Service weft-controller",
    "ServiceAccount weft-agent",
    "ServiceAccount weft-controller",
    "ValidatingAdmissionPolicy weft-agent-own-node",
    "ValidatingAdmissionPolicyBinding weft-agent-own-node",
];

#[test]
fn a_release_is_installed_upgraded_and_uninstalled_and_leaves_nothing() {
    if let Err(error) = life() {
        panic!("{error:#}");
    }
}

fn life() -> Result<()> {
    let mut release = Release::new()?;
    installed(&mut release)?;
    mistakes(&release)?;
    upgraded(&mut release)?;
    said(&release)?;
    uninstalled(&mut release)
}

/// Everything is there, the controller has all the rights that it needs, and makes a waypoint.
fn installed(release: &mut Release) -> Result<()> {
    let notes = release.install(&json!({"clusterCIDRs": ["10.244.0.0/16"]}))?;
    for part in [
        "kubectl -n weft-system rollout status daemonset/weft-agent",
        "weft apply waypoint",
        "helm uninstall weft -n weft-system --timeout 330s",
    ] {
        ensure!(notes.contains(part), "the notes do not say {part:?}:\n{notes}");
    }
    expect(release, &OBJECTS)?;
    ensure!(
        release
            .args("DaemonSet", "weft-agent")?
            .contains("--cluster-cidrs=10.244.0.0/16")
    );
    release.start_controller()?;
    for (kind, name) in [
        ("Secret", "weft-ca"),
        ("ConfigMap", "weft-ca-root-cert"),
        ("Lease", "weft-controller"),
    ] {
        wait_until(name, LIMIT, || release.api.get(kind, NAMESPACE, name)).with_context(|| release.log())?;
    }
    release.api.apply_yaml(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n\
         apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: waypoint, namespace: shop}\n\
         spec: {gatewayClassName: weft-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
    )?;
    waypoint(release, "weft:0.1.0", 2)
}

/// Values that are none change nothing, and the error says which they are.
fn mistakes(release: &Release) -> Result<()> {
    for (values, named) in [
        (json!({"waypoint": {"replicas": 3}}), "'waypoint'"),
        (json!({"waypoints": {"replica": 3}}), "'replica'"),
        (json!({"image": {"tag": 2}}), "/image/tag"),
    ] {
        let error = release
            .upgrade(&values)
            .err()
            .with_context(|| format!("{values} was taken"))?
            .to_string();
        ensure!(error.contains(named), "the error does not name {named}: {error}");
    }
    ensure!(release.revisions() == ["1"], "{:?}", release.revisions());
    Ok(())
}

/// What is not wanted any more goes, what changes is changed where it is, and what the controller made stays.
fn upgraded(release: &mut Release) -> Result<()> {
    let before = release.uids()?;
    let root = release.object("Secret", "weft-ca")?["data"].clone();
    let notes = release.upgrade(&json!({"waypoints": {"enabled": false}, "controller": {"replicas": 1}}))?;
    ensure!(
        notes.contains("takes over from the old one") && !notes.contains("No pod is in the mesh"),
        "{notes}"
    );
    let without = [
        "GatewayClass weft-waypoint",
        "PodDisruptionBudget weft-controller",
    ];
    let fewer: Vec<_> = OBJECTS
        .into_iter()
        .filter(|name| !without.contains(name))
        .collect();
    expect(release, &fewer)?;
    ensure!(
        !release.may("apps", "deployments")?,
        "without waypoints the controller may make Deployments"
    );
    ensure!(
        !release
            .args("Deployment", "weft-controller")?
            .contains("--waypoint")
    );
    release.upgrade(&json!({
        "image": {"repository": "registry.example/weft", "tag": "next"},
        "waypoints": {"replicas": 3, "drainTimeoutSeconds": 60},
        "agent": {"drainTimeoutSeconds": 90},
        "logLevel": "debug",
    }))?;
    expect(release, &OBJECTS)?;
    ensure!(release.may("apps", "deployments")?);
    let after = release.uids()?;
    let made_anew: Vec<_> = before
        .iter()
        .filter(|(name, uid)| !without.contains(&name.as_str()) && after.get(*name) != Some(uid))
        .collect();
    ensure!(
        made_anew.is_empty(),
        "made anew instead of changed: {made_anew:?}"
    );
    let agent = release.object("DaemonSet", "weft-agent")?;
    let pod = &agent["spec"]["template"]["spec"];
    ensure!(
        pod["containers"][0]["image"] == "registry.example/weft:next",
        "{pod}"
    );
    ensure!(pod["terminationGracePeriodSeconds"] == 105, "{pod}");
    // No value of the release before is kept that this one does not have.
    let args = release.args("DaemonSet", "weft-agent")?;
    ensure!(
        args.contains("--drain-timeout=90") && !args.contains("--cluster-cidrs"),
        "{args}"
    );
    ensure!(
        release.object("Secret", "weft-ca")?["data"] == root,
        "another root after an upgrade"
    );
    release.start_controller()?;
    waypoint(release, "registry.example/weft:next", 3)?;
    ensure!(
        release.revisions() == ["1", "2", "3"],
        "{:?}",
        release.revisions()
    );
    Ok(())
}

/// Objects of which the controller has something to say, and others too.
const SPOKEN_OF: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {clusterIP: 10.96.0.40, clusterIPs: [10.96.0.40], ports: [{port: 80, protocol: TCP}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec: {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {hosts: [web.example], addresses: [192.0.2.9], resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.10}]}
";
/// Those of them with what says that the controller was there.
const STATUSES: [(&str, &str, &str, &str); 6] = [
    ("Namespace", "", "shop", "weft.dev/PodsCaptured"),
    ("Service", "shop", "web", "istio.io/WaypointBound"),
    (
        "AuthorizationPolicy.security.istio.io",
        "shop",
        "allow",
        "ZtunnelAccepted",
    ),
    (
        "HTTPRoute.gateway.networking.k8s.io",
        "shop",
        "web",
        "weft.dev/mesh-controller",
    ),
    (
        "ServiceEntry.networking.istio.io",
        "shop",
        "web",
        "istio.io/WaypointBound",
    ),
    (GATEWAY, "shop", "waypoint", "Programmed"),
];

/// The controller says what became of objects, beside what others say.
fn said(release: &Release) -> Result<()> {
    let label = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}});
    release.api.merge("Namespace", "", "shop", &label)?;
    release.api.apply(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "app", "namespace": "shop", "annotations": {"ambient.istio.io/redirection": "enabled", "theirs": "1"}},
        "spec": {"nodeName": "node-a", "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running", "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}]},
    }))?;
    release.api.apply_yaml(SPOKEN_OF)?;
    let says = |(kind, namespace, name, what): (&str, &str, &str, &str)| {
        wait_until(&format!("{kind} {name} to say {what}"), LIMIT, || {
            let object = release.api.get(kind, namespace, name)?;
            object["status"].to_string().contains(what).then_some(object)
        })
        .with_context(|| release.log())
    };
    for status in STATUSES {
        says(status)?;
    }
    // Of these two a list is one writer's.
    let theirs = json!({"type": "Theirs", "status": "True", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let (policy, route) = (STATUSES[2], STATUSES[3]);
    let parent = json!({"parentRef": {"name": "theirs"}, "controllerName": "example.com/theirs", "conditions": [theirs]});
    for ((kind, namespace, name, _), list, more) in
        [(policy, "conditions", &theirs), (route, "parents", &parent)]
    {
        let mut object = release.api.get(kind, namespace, name).context("it is gone")?;
        if let Some(items) = object["status"][list].as_array_mut() {
            items.push(more.clone());
        }
        release
            .api
            .merge(kind, namespace, name, &json!({"status": object["status"]}))?;
    }
    // The policy's next change is the controller's to write again.
    let spec = json!({"spec": {"rules": [{"from": [{"source": {"ipBlocks": ["nonsense"]}}]}]}});
    release.api.merge(policy.0, policy.1, policy.2, &spec)?;
    says((policy.0, policy.1, policy.2, "InvalidField"))?;
    release.no_right_is_missing()
}

/// What others said is all that is said.
fn unsaid(release: &Release) -> Result<()> {
    for (kind, namespace, name, what) in STATUSES {
        let object = release.api.get(kind, namespace, name);
        let status = object.with_context(|| format!("{kind} {name} is gone"))?["status"].clone();
        ensure!(
            !status.to_string().contains(what),
            "{kind} {name} still says: {status}"
        );
        let others = match name {
            "allow" => Some("Theirs"),
            _ if kind.starts_with("HTTPRoute") => Some("example.com/theirs"),
            _ => None,
        };
        ensure!(
            others.is_none_or(|it| status.to_string().contains(it)),
            "{kind} {name} has lost what others said: {status}"
        );
    }
    Ok(())
}

/// The hook waits for the nodes and removes what the controller and agents have made; what is somebody's own stays.
fn uninstalled(release: &mut Release) -> Result<()> {
    release.stop_controller()?;
    let said = release.uninstall()?;
    for part in [
        "1 controllers have not ended",
        "deleted Secret weft-ca",
        "from 1 pods",
        "from the status of 6 objects",
        "every node is released",
    ] {
        ensure!(said.contains(part), "the hook does not say {part:?}: {said}");
    }
    expect(release, &[])?;
    ensure!(release.revisions().is_empty(), "{:?}", release.revisions());
    for (kind, namespace, name) in [
        ("Secret", NAMESPACE, "weft-ca"),
        ("ConfigMap", NAMESPACE, "weft-ca-root-cert"),
        ("Lease", NAMESPACE, "weft-controller"),
        ("Deployment", "shop", "waypoint"),
        ("Service", "shop", "waypoint"),
        ("ServiceAccount", "shop", "waypoint"),
        ("PodDisruptionBudget", "shop", "waypoint"),
    ] {
        ensure!(
            release.api.get(kind, namespace, name).is_none(),
            "{kind} {namespace}/{name} is left; the hook said: {said}"
        );
    }
    ensure!(
        release.api.get(GATEWAY, "shop", "waypoint").is_some(),
        "somebody's Gateway is gone"
    );
    let app = release.api.get("Pod", "shop", "app").context("the pod is gone")?;
    ensure!(app["metadata"]["annotations"] == json!({"theirs": "1"}), "{app}");
    unsaid(release)
}

/// Exactly these objects are the release's, in all of the cluster.
fn expect(release: &Release, expected: &[&str]) -> Result<()> {
    let found: Vec<_> = release.uids()?.into_keys().collect();
    ensure!(
        found == expected,
        "the release has {found:?}, and should have {expected:?}"
    );
    Ok(())
}

/// The controller has made a waypoint of the Gateway in `shop`, with this image and so many pods.
fn waypoint(release: &Release, image: &str, replicas: u64) -> Result<()> {
    let made = |deployment: &Value| {
        let pod = &deployment["spec"]["template"]["spec"];
        pod["containers"][0]["image"] == image && deployment["spec"]["replicas"] == replicas
    };
    wait_until(
        &format!("a waypoint of {replicas} pods of {image}"),
        LIMIT,
        || {
            let found = release.api.get("Deployment", "shop", "waypoint");
            found.filter(made)
        },
    )
    .with_context(|| release.log())?;
    ensure!(release.api.get(CLASS, "", "weft-waypoint").is_some());
    release.no_right_is_missing()
}
