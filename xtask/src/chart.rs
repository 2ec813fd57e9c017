//! `chart`: holds deploy/chart to what it promises, with Helm's own library. It lints it, installs and uninstalls it under
//! several values against an API server that remembers what it is sent (`chart/helm.py`), and checks every object that
//! comes (`chart/rules.rs`, `chart/rights.rs`). It runs nothing on a cluster: `test kube` does.

mod mistakes;
mod rights;
mod rules;

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{build, setup, shell};

const NAMESPACE: &str = "weft-system";
const SCRIPT: &str = include_str!("chart/helm.py");

/// One install.
struct Case {
    name: &'static str,
    values: Value,
    /// The API server's version.
    kubernetes: &'static str,
    /// Kinds that the API server has besides the usual ones.
    kinds: &'static [&'static str],
    expect: Expect,
}

enum Expect {
    /// It installs, with these objects besides those of [`ALWAYS`], without those behind a `-`; and the notes say this.
    Installed(&'static [&'static str], &'static [&'static str]),
    /// It does not, and the error names these.
    Refused(&'static [&'static str]),
}

/// What every install makes.
const ALWAYS: [&str; 14] = [
    "ServiceAccount weft-agent",
    "ClusterRole weft-agent",
    "ClusterRoleBinding weft-agent",
    "Role weft-agent",
    "RoleBinding weft-agent",
    "DaemonSet weft-agent",
    "ServiceAccount weft-controller",
    "ClusterRole weft-controller",
    "ClusterRoleBinding weft-controller",
    "Role weft-controller",
    "RoleBinding weft-controller",
    "Deployment weft-controller",
    "Service weft-controller",
    "PodDisruptionBudget weft-controller",
];

/// What every uninstall makes, in this order, and removes again: rights, then the release of every node, then the wait for it.
const HOOKS: [&str; 7] = [
    "ServiceAccount weft-uninstall",
    "ClusterRole weft-uninstall",
    "Role weft-uninstall",
    "ClusterRoleBinding weft-uninstall",
    "RoleBinding weft-uninstall",
    "DaemonSet weft-release",
    "Job weft-uninstall",
];

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1/GatewayClass";
const ISTIO_API: &str = "security.istio.io/v1/PeerAuthentication";
const ADMISSION: [&str; 2] = [
    "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy",
    "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicyBinding",
];

/// Checks the chart.
///
/// # Errors
/// A promise is not held, and has been printed, or Helm cannot be run.
pub(crate) fn run(install: bool) -> Result<()> {
    setup::helm(install)?;
    build::product(false)?;
    check()
}

/// The same, where Helm's library is known to be there and weft is built.
///
/// # Errors
/// The same.
pub(crate) fn check() -> Result<()> {
    let weft = shell::target_dir().join("debug/weft");
    let cases = cases();
    let answers = helm(&cases)?;
    ensure!(
        answers.len() == cases.len(),
        "Helm answered {} of {} cases",
        answers.len(),
        cases.len()
    );
    let mut broken = 0;
    for (case, answer) in cases.iter().zip(&answers) {
        let mut findings = judge(case, answer);
        for kind in ["installed", "uninstalled"] {
            for object in answer[kind].as_array().into_iter().flatten() {
                findings.extend(arguments(object, &weft));
            }
        }
        println!("{} {}", if findings.is_empty() { "✓" } else { "✗" }, case.name);
        for finding in &findings {
            println!("    {finding}");
        }
        broken += findings.len();
    }
    ensure!(broken == 0, "chart: {broken} findings");
    println!("chart: {} cases, nothing to say", cases.len());
    Ok(())
}

/// Values with which it installs.
fn installs(
    name: &'static str,
    values: Value,
    kinds: &'static [&'static str],
    more: &'static [&'static str],
    notes: &'static [&'static str],
) -> Case {
    Case {
        name,
        values,
        kubernetes: "v1.36.2",
        kinds,
        expect: Expect::Installed(more, notes),
    }
}

/// Values of one's own for waypoints.
fn own_waypoints() -> Value {
    json!({"image": {"pullSecrets": ["registry"]}, "waypoints": {
        "replicas": 3, "drainTimeoutSeconds": 60, "priorityClassName": "mesh", "nodeSelector": {"pool": "mesh"},
        "tolerations": [{"operator": "Exists"}], "affinity": {"nodeAffinity": {}},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}}})
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        installs(
            "default values",
            json!({}),
            &[],
            &[],
            &["istio.io/dataplane-mode=ambient", "Gateway API", "istio/base"],
        ),
        installs(
            "with the Gateway API, Istio's kinds and admission policies",
            json!({}),
            &[GATEWAY_API, ISTIO_API, ADMISSION[0], ADMISSION[1]],
            &[
                "GatewayClass weft-waypoint",
                "ValidatingAdmissionPolicy weft-agent-own-node",
                "ValidatingAdmissionPolicyBinding weft-agent-own-node",
            ],
            &[
                "helm uninstall weft -n weft-system",
                "weft apply waypoint",
                "weft-waypoint",
            ],
        ),
        installs(
            "waypoints of one's own",
            own_waypoints(),
            &[GATEWAY_API],
            &["GatewayClass weft-waypoint"],
            &[],
        ),
        installs(
            "every value",
            everything(),
            &[
                GATEWAY_API,
                ADMISSION[0],
                ADMISSION[1],
                "monitoring.coreos.com/v1/PodMonitor",
            ],
            &[
                "PodMonitor weft-agent",
                "PodMonitor weft-controller",
                "ResourceQuota weft-priority",
                "- PodDisruptionBudget weft-controller",
            ],
            &[],
        ),
        installs(
            "a root of one's own",
            json!({"ca": {"existingSecret": "our-root"}}),
            &[],
            &[],
            &[],
        ),
    ];
    cases.extend(versions());
    cases.extend(others());
    cases.extend(mistakes::refused());
    cases
}

/// The oldest Kubernetes that will do, and one that will not.
fn versions() -> [Case; 2] {
    let quota: &[_] = &["ResourceQuota weft-priority"];
    let oldest = Case {
        kubernetes: "v1.30.3-gke.100",
        ..installs("the oldest one, of GKE", json!({}), &[], quota, &[])
    };
    let older = Case {
        name: "a Kubernetes that is too old",
        values: json!({}),
        kubernetes: "v1.29.14",
        kinds: &[],
        expect: Expect::Refused(&["1.30.0", "1.29.14"]),
    };
    [oldest, older]
}

/// Agents under another server of the same protocol, and others' node proxies under our controller.
fn others() -> [Case; 2] {
    let under_istiod = json!({
        "tokenAudience": "istio-ca",
        "controller": {"enabled": false},
        "agent": {
            "controllerAddress": "istiod.istio-system.svc:15012", "controllerName": "istiod.istio-system.svc",
            "rootConfigMap": "istio-ca-root-cert",
        },
    });
    let without: &[_] = &[
        "- ServiceAccount weft-controller",
        "- ClusterRole weft-controller",
        "- ClusterRoleBinding weft-controller",
        "- Role weft-controller",
        "- RoleBinding weft-controller",
        "- Deployment weft-controller",
        "- Service weft-controller",
        "- PodDisruptionBudget weft-controller",
        "- Role weft-agent",
        "- RoleBinding weft-agent",
    ];
    let trusted =
        json!({"controller": {"trustedAgents": ["istio-system/ztunnel", "kube-system/node-proxy.a"]}});
    let notes: &[_] = &["istiod.istio-system.svc:15012"];
    [
        installs(
            "agents under istiod",
            under_istiod,
            &[GATEWAY_API],
            without,
            notes,
        ),
        installs("other node proxies under the controller", trusted, &[], &[], &[]),
    ]
}

/// Every argument must be one that the program knows, with a value that it takes: `--help` at their end makes it say so without
/// doing anything.
fn arguments(object: &Value, weft: &Path) -> Vec<String> {
    let mut findings = Vec::new();
    for args in rules::arguments(object) {
        // A cluster has either.
        for address in ["192.0.2.1", "2001:db8::1"] {
            let known = args.iter().map(|arg| filled(arg, address));
            let known = known.chain(["--help".to_owned()]);
            match Command::new(weft).args(known).env_clear().output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    let said = said.lines().next().unwrap_or_default().to_owned();
                    findings.push(format!(
                        "{}: weft {} does not take its arguments: {said}",
                        rules::title(object),
                        args[0]
                    ));
                }
                Err(error) => findings.push(format!("cannot run {}: {error}", weft.display())),
            }
        }
    }
    findings
}

/// As the kubelet fills it in, where the controller's Service has this address.
fn filled(arg: &str, address: &str) -> String {
    arg.replace("$(WEFT_CONTROLLER_SERVICE_HOST)", address)
        .replace("$(POD_NAMESPACE)", NAMESPACE)
}

/// Everything that is not as it is by default.
fn everything() -> Value {
    json!({
        "image": {"repository": "registry.example:5000/mesh/weft", "digest": format!("sha256:{}", "0".repeat(64)), "pullPolicy": "Always", "pullSecrets": ["registry"]},
        "trustDomain": "prod.example", "clusterId": "east-1", "clusterDomain": "corp.internal", "rootNamespace": "policies",
        "clusterCIDRs": ["10.244.0.0/16", "fd00:10::/64"], "tokenAudience": "istio-ca", "sameNode": "tunnel", "logLevel": "info,access=off", "logFormat": "json",
        "agent": {
            "controllerAddress": "[fd00::1]:15012", "workers": 4, "dnsCapture": false, "drainTimeoutSeconds": 60, "listenAddress": "::",
            "node": {"cgroupRoot": "/sys/fs/cgroup/node-a", "podsCgroup": "/sys/fs/cgroup/node-a/kubepods", "netns": "/proc/1/ns/net", "mountBpffs": true},
            "startupTaint": {"enabled": false}, "nri": {"enabled": false}, "priorityClassName": "mesh", "nodeSelector": {"pool": "mesh"},
            "tolerations": [{"key": "only", "operator": "Exists", "effect": "NoSchedule"}],
            "extraEnv": [{"name": "KUBERNETES_SERVICE_HOST", "value": "192.0.2.1"}], "podLabels": {"team": "mesh"}, "podAnnotations": {"a": "b"},
            "seccompProfile": "Localhost/weft.json"
        },
        "controller": {"replicas": 1, "extraEnv": [{"name": "A", "value": "b"}], "tolerations": [{"operator": "Exists"}], "podLabels": {"team": "mesh"}},
        "waypoints": {"enabled": false}, "admissionPolicy": {"enabled": false}, "uninstall": {"timeoutSeconds": 60}, "priorityQuota": true,
        "podMonitor": {"enabled": true, "interval": "15s", "labels": {"release": "prometheus"}}
    })
}

/// Asks Helm's library about each case.
fn helm(cases: &[Case]) -> Result<Vec<Value>> {
    let cases: Vec<_> = cases
        .iter()
        .map(|case| json!({"name": case.name, "values": case.values, "kubernetes": case.kubernetes, "kinds": case.kinds}))
        .collect();
    let chart = shell::root().join("deploy/chart");
    let asked = json!({"chart": chart, "namespace": NAMESPACE, "cases": cases});
    let mut python = Command::new("python3")
        .args(["-c", SCRIPT])
        .env("PYTHONPATH", setup::helm_dir())
        // Helm keeps its records of releases in memory: as Secrets they would come as protobuf.
        .env("HELM_DRIVER", "memory")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run python3")?;
    if let Some(mut stdin) = python.stdin.take() {
        stdin.write_all(asked.to_string().as_bytes())?;
    }
    let output = python.wait_with_output()?;
    if !output.status.success() {
        bail!("Helm's library failed ({}): see above", output.status);
    }
    let lines = String::from_utf8(output.stdout)?;
    let answers = lines.lines().map(serde_json::from_str);
    Ok(answers.collect::<Result<_, _>>()?)
}

fn judge(case: &Case, answer: &Value) -> Vec<String> {
    let mut findings = lint(&answer["lint"]);
    let error = answer["error"].as_str();
    match (&case.expect, error) {
        (Expect::Installed(more, notes), None) => {
            findings.extend(installed(case, answer, more));
            let text = answer["notes"].as_str().unwrap_or_default();
            findings.extend(
                notes
                    .iter()
                    .filter(|part| !text.contains(**part))
                    .map(|part| format!("the notes do not say {part:?}")),
            );
        }
        (Expect::Installed(..), Some(error)) => findings.push(format!("it does not install: {error}")),
        (Expect::Refused(_), None) => findings.push("it installs, and should not".to_owned()),
        (Expect::Refused(named), Some(error)) => {
            findings.extend(
                named
                    .iter()
                    .filter(|name| !error.contains(**name))
                    .map(|name| format!("the error does not name {name}: {error}")),
            );
        }
    }
    findings
}

/// Warnings (2) and errors (3); that there is no icon is no more than a remark.
fn lint(lint: &Value) -> Vec<String> {
    let messages = lint["Messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let grave = messages
        .iter()
        .filter(|message| message["Severity"].as_u64() > Some(1));
    grave.map(|message| format!("lint: {message}")).collect()
}

fn installed(case: &Case, answer: &Value, more: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    let made = |what: &str| answer[what].as_array().cloned().unwrap_or_default();
    let (installed, hooks) = (made("installed"), made("uninstalled"));
    let mut expected: Vec<_> = ALWAYS.into_iter().chain(more.iter().copied()).collect();
    expected.retain(|name| !name.starts_with('-') && !more.contains(&format!("- {name}").as_str()));
    expected.push("Namespace weft-system");
    for name in &expected {
        if !installed.iter().any(|object| rules::title(object) == *name) {
            findings.push(format!("there is no {name}"));
        }
    }
    let titles: Vec<_> = installed.iter().map(rules::title).collect();
    findings.extend(
        titles
            .iter()
            .filter(|title| !expected.contains(&title.as_str()))
            .map(|title| format!("{title} is not expected")),
    );
    let order: Vec<_> = hooks.iter().map(rules::title).collect();
    let quota = expected.contains(&"ResourceQuota weft-priority");
    let quota = quota.then_some("ResourceQuota weft-release");
    let should: Vec<_> = quota.into_iter().chain(HOOKS).collect();
    if order != should {
        findings.push(format!(
            "the uninstall hook makes {order:?}, and should make {should:?}"
        ));
    }
    if quota.is_some() {
        // What is installed has gone before hooks are made.
        findings.extend(
            [&installed, &hooks]
                .into_iter()
                .flat_map(|made| rules::quotas(made)),
        );
    }
    let left: Vec<_> = made("left")
        .iter()
        .map(rules::title)
        .filter(|title| title != "Namespace weft-system")
        .collect();
    if !left.is_empty() {
        findings.push(format!("an uninstall leaves {left:?}"));
    }
    let all = [installed.as_slice(), &hooks].concat();
    findings.extend(rights::unused(&all));
    if case.values == json!({}) {
        findings.extend(rights::missing(&all));
    }
    for object in &all {
        findings.extend(rules::check(object, NAMESPACE, &case.values));
    }
    findings
}
