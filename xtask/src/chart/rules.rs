//! What every object of the chart must hold to, whatever its values: as little as it can do with.

use serde_json::{Map, Value};

/// What a container that works on its node may have.
const CAPABILITIES: [&str; 4] = ["BPF", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"];
/// Whose containers those are.
const ON_NODES: [&str; 2] = ["DaemonSet weft-agent", "DaemonSet weft-release"];
/// Verbs that give more than their rule says.
const GRANTING: [&str; 5] = ["*", "escalate", "bind", "impersonate", "deletecollection"];
/// Secrets and what runs code in other pods: never in every namespace.
const NEVER_CLUSTER_WIDE: [&str; 4] = ["secrets", "configmaps", "pods/exec", "pods/ephemeralcontainers"];

/// How an object is called here.
pub(super) fn title(object: &Value) -> String {
    format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn words(value: &Value) -> Vec<&str> {
    items(value).iter().map(text).collect()
}

/// The arguments of each of its containers.
pub(super) fn arguments(object: &Value) -> Vec<Vec<&str>> {
    let pod = &object["spec"]["template"]["spec"];
    let containers = ["initContainers", "containers"].map(|kind| items(&pod[kind]));
    let args = containers
        .into_iter()
        .flatten()
        .map(|container| words(&container["args"]));
    args.filter(|args| !args.is_empty()).collect()
}

/// Checks one object, installed with these values.
pub(super) fn check(object: &Value, namespace: &str, values: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    match text(&object["kind"]) {
        "DaemonSet" | "Deployment" | "Job" => findings.extend(workload(object, values)),
        "Role" | "ClusterRole" => findings.extend(role(object)),
        // Helm's own.
        "Namespace" => return findings,
        _ => {}
    }
    let metadata = &object["metadata"];
    if metadata["labels"]["app.kubernetes.io/name"] != "weft" {
        findings.push("it has not the labels of weft's objects".to_owned());
    }
    if metadata.get("namespace").is_some_and(|name| name != namespace) {
        findings.push(format!("it is not in {namespace}"));
    }
    let title = title(object);
    findings
        .into_iter()
        .map(|finding| format!("{title}: {finding}"))
        .collect()
}

/// Where system priority classes take a quota: whether each of these objects, made in this order, finds one for its pods.
pub(super) fn quotas(made: &[Value]) -> Vec<String> {
    let mut named = Vec::new();
    let mut findings = Vec::new();
    for object in made {
        if object["kind"] == "ResourceQuota" {
            let scopes = items(&object["spec"]["scopeSelector"]["matchExpressions"]);
            named.extend(scopes.iter().flat_map(|scope| words(&scope["values"])));
        }
        let class = &object["spec"]["template"]["spec"]["priorityClassName"];
        if class.as_str().is_some_and(|class| !named.contains(&class)) {
            let title = title(object);
            findings.push(format!(
                "{title}: no quota lets its pods have the priority {class}"
            ));
        }
    }
    findings
}

/// Where the uninstall's one pod may be: on a node that can run it, and is alive.
fn placed(pod: &Value, values: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let anywhere = values["controller"].get("nodeSelector").is_none();
    if anywhere && pod["nodeSelector"]["kubernetes.io/os"] != "linux" {
        findings.push("it may be put on a node without Linux".to_owned());
    }
    let asked_for = items(&values["controller"]["tolerations"]);
    for toleration in items(&pod["tolerations"]) {
        let dead = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
        let of_the_dead = toleration.get("key").is_none_or(|key| dead.contains(&text(key)));
        if of_the_dead && toleration.get("tolerationSeconds").is_none() && !asked_for.contains(toleration) {
            findings.push(format!("it may be put on a node that is dead: {toleration}"));
        }
    }
    findings
}

fn workload(object: &Value, values: &Value) -> Vec<String> {
    let title = title(object);
    let on_node = ON_NODES.contains(&title.as_str());
    let pod = &object["spec"]["template"]["spec"];
    let mut findings = Vec::new();
    let mut rule = |held: bool, what: &str| {
        if !held {
            findings.push(what.to_owned());
        }
    };
    rule(pod.get("hostNetwork").is_none(), "hostNetwork");
    rule(pod.get("hostIPC").is_none(), "hostIPC");
    rule(
        pod.get("hostPID").is_none() || title == "DaemonSet weft-agent",
        "hostPID is the agent's alone",
    );
    rule(
        object["spec"]["template"]["metadata"]["labels"]["istio.io/dataplane-mode"] == "none",
        "its own pods would be captured in a namespace of the mesh",
    );
    let security = &pod["securityContext"];
    rule(
        security["seccompProfile"]["type"].is_string(),
        "no seccomp profile",
    );
    rule(
        on_node || (security["runAsNonRoot"] == true && security["runAsUser"] == 65532),
        "it may run as root",
    );
    if title == "DaemonSet weft-agent" {
        let update = &object["spec"]["updateStrategy"]["rollingUpdate"];
        rule(
            update["maxSurge"] == 1 && update["maxUnavailable"] == 0,
            "an upgrade would leave a node without its agent",
        );
        rule(
            items(&pod["volumes"]).iter().any(|volume| {
                volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] == 43200
            }),
            "no token",
        );
    }
    if title == "Job weft-uninstall" {
        findings.extend(placed(pod, values));
    }
    findings.extend(asked(&title, pod, values));
    for container in items(&pod["containers"]) {
        findings.extend(self::container(container, on_node, values));
    }
    for container in items(&pod["initContainers"]) {
        let asked_for = values["agent"]["node"]["mountBpffs"] == true;
        if !(asked_for && container["name"] == "mount-bpffs") {
            findings.push(format!(
                "the init container {} is not asked for",
                container["name"]
            ));
        }
        findings.extend(image(container, values));
    }
    findings
}

/// Whom an agent asks and believes, and whom a controller: as the values say.
fn asked(title: &str, pod: &Value, values: &Value) -> Vec<String> {
    let args = words(&pod["containers"][0]["args"]);
    let value_of = |flag: &str| {
        args.iter()
            .find_map(|arg| arg.strip_prefix(flag)?.strip_prefix('='))
    };
    let differs = |flag: &str, expected: Option<&str>| {
        let found = value_of(flag);
        (found != expected).then(|| format!("{flag} is {found:?}, and not {expected:?}"))
    };
    let (agent, controller) = (&values["agent"], &values["controller"]);
    let mut findings = Vec::new();
    if title == "DaemonSet weft-agent" {
        let service = "$(WEFT_CONTROLLER_SERVICE_HOST):15012";
        let address = agent["controllerAddress"].as_str().unwrap_or(service);
        findings.extend(differs("--controller", Some(address)));
        findings.extend(differs("--controller-name", agent["controllerName"].as_str()));
        let map = agent["rootConfigMap"].as_str();
        let file = map.map(|_| "/var/run/secrets/roots/root-cert.pem");
        findings.extend(differs("--ca-root", file));
        let of = |list: &Value| items(list).iter().find(|it| it["name"] == "roots").cloned();
        let (volume, mount) = (of(&pod["volumes"]), of(&pod["containers"][0]["volumeMounts"]));
        let named = volume.as_ref().and_then(|it| it["configMap"]["name"].as_str());
        let mounted = mount.as_ref().and_then(|it| it["mountPath"].as_str());
        if named != map || mounted != map.map(|_| "/var/run/secrets/roots") {
            findings.push(format!("the roots are not those of the ConfigMap {map:?}"));
        }
    }
    if title == "Deployment weft-controller" {
        let others = words(&controller["trustedAgents"]);
        let all = [&["$(POD_NAMESPACE)/weft-agent"], others.as_slice()]
            .concat()
            .join(",");
        findings.extend(differs(
            "--trusted-agents",
            (!others.is_empty()).then_some(all.as_str()),
        ));
    }
    findings
}

fn container(container: &Value, on_node: bool, values: &Value) -> Vec<String> {
    let security = &container["securityContext"];
    let mut findings: Vec<String> = image(container, values).into_iter().collect();
    let mut rule = |held: bool, what: &str| {
        if !held {
            findings.push(what.to_owned());
        }
    };
    rule(
        security["readOnlyRootFilesystem"] == true,
        "it may write to its image",
    );
    rule(
        security
            .get("privileged")
            .is_none_or(|privileged| privileged == false),
        "it is privileged",
    );
    rule(
        words(&security["capabilities"]["drop"]) == ["ALL"],
        "it keeps capabilities that it does not name",
    );
    let added = words(&security["capabilities"]["add"]);
    let expected: &[&str] = if on_node { &CAPABILITIES } else { &[] };
    rule(added == expected, "its capabilities are not those that it needs");
    rule(
        on_node || security["allowPrivilegeEscalation"] == false,
        "it may get more rights than it has",
    );
    let resources = &container["resources"];
    let requests = resources["requests"].as_object().map_or(0, Map::len);
    rule(requests == 2, "no requests: it would be the first to be evicted");
    rule(resources["limits"]["memory"].is_string(), "no limit of memory");
    rule(
        resources["limits"].get("cpu").is_none(),
        "a limit of CPU, which throttles every pod of the node",
    );
    for arg in words(&container["args"]) {
        rule(
            !arg.ends_with('=') && !arg.contains("<no value>") && !arg.contains("%!"),
            "an argument without its value",
        );
    }
    findings
}

fn image(container: &Value, values: &Value) -> Option<String> {
    let given = &values["image"];
    let repository = given["repository"].as_str().unwrap_or("weft");
    let expected = match given["digest"].as_str() {
        Some(digest) => format!("{repository}@{digest}"),
        None => format!(
            "{repository}:{}",
            given["tag"].as_str().unwrap_or(env!("CARGO_PKG_VERSION"))
        ),
    };
    let policy = given["pullPolicy"].as_str().unwrap_or("IfNotPresent");
    let right = container["image"] == expected && container["imagePullPolicy"] == policy;
    (!right).then(|| {
        format!(
            "its image is {} ({}), and not {expected} ({policy})",
            container["image"], container["imagePullPolicy"]
        )
    })
}

fn role(object: &Value) -> Vec<String> {
    let cluster_wide = object["kind"] == "ClusterRole";
    let mut findings = Vec::new();
    for rule in items(&object["rules"]) {
        let (groups, resources, verbs) = (
            words(&rule["apiGroups"]),
            words(&rule["resources"]),
            words(&rule["verbs"]),
        );
        if groups.is_empty()
            || [&groups, &resources]
                .into_iter()
                .any(|names| names.contains(&"*"))
        {
            findings.push(format!("a rule for everything: {rule}"));
        }
        if verbs.iter().any(|verb| GRANTING.contains(verb)) {
            findings.push(format!("a rule that grants more than it says: {rule}"));
        }
        if cluster_wide && resources.iter().any(|name| NEVER_CLUSTER_WIDE.contains(name)) {
            findings.push(format!("a rule for every namespace: {rule}"));
        }
        // Who may create cannot be told by name; everything else can.
        let named = !items(&rule["resourceNames"]).is_empty();
        if !cluster_wide && !named && verbs != ["create"] {
            findings.push(format!("a rule without names: {rule}"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn agent() -> Value {
        let container = json!({
            "name": "agent", "image": format!("weft:{}", env!("CARGO_PKG_VERSION")), "imagePullPolicy": "IfNotPresent",
            "args": ["agent", "--controller=$(WEFT_CONTROLLER_SERVICE_HOST):15012"],
            "securityContext": {"readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"], "add": CAPABILITIES}},
            "resources": {"requests": {"cpu": "1", "memory": "1"}, "limits": {"memory": "1"}},
        });
        let token =
            json!({"projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 43200}}]}});
        let labels = json!({"istio.io/dataplane-mode": "none"});
        let spec = json!({"hostPID": true, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}, "containers": [container], "volumes": [token]});
        json!({
            "kind": "DaemonSet", "metadata": {"name": "weft-agent", "namespace": "n", "labels": {"app.kubernetes.io/name": "weft"}},
            "spec": {"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}, "template": {"metadata": {"labels": labels}, "spec": spec}},
        })
    }

    #[test]
    fn each_rule_can_fail() {
        let none = Value::Null;
        assert_eq!(check(&agent(), "n", &none), Vec::<String>::new());
        let spec = "/spec/template/spec";
        for (at, value) in [
            (format!("{spec}/hostNetwork"), json!(true)),
            (format!("{spec}/containers/0/image"), json!("weft:other")),
            (
                format!("{spec}/containers/0/securityContext/privileged"),
                json!(true),
            ),
            (
                format!("{spec}/containers/0/securityContext/capabilities/add/0"),
                json!("SYS_RESOURCE"),
            ),
            (format!("{spec}/containers/0/resources/limits/cpu"), json!("1")),
            (format!("{spec}/containers/0/args/0"), json!("--node=")),
            (
                format!("{spec}/containers/0/args/1"),
                json!("--controller=other:1"),
            ),
            (
                format!("{spec}/containers/0/args/0"),
                json!("--controller-name=other"),
            ),
            ("/metadata/namespace".to_owned(), json!("other")),
            ("/spec/updateStrategy/rollingUpdate/maxSurge".to_owned(), json!(0)),
        ] {
            let mut changed = agent();
            let (parent, key) = at.rsplit_once('/').unwrap();
            match changed.pointer_mut(parent).unwrap() {
                Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
                object => object[key] = value,
            }
            assert_eq!(check(&changed, "n", &none).len(), 1, "{at}");
        }
    }

    #[test]
    fn a_priority_without_its_quota_is_found() {
        let pod = json!({"priorityClassName": "system-node-critical"});
        let set =
            json!({"kind": "DaemonSet", "metadata": {"name": "x"}, "spec": {"template": {"spec": pod}}});
        let quota = |class: &str| {
            let scope = json!({"scopeName": "PriorityClass", "operator": "In", "values": [class]});
            json!({"kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"scopeSelector": {"matchExpressions": [scope]}}})
        };
        let (right, other) = (quota("system-node-critical"), quota("high"));
        assert_eq!(quotas(&[right.clone(), set.clone()]), Vec::<String>::new());
        for made in [vec![set.clone()], vec![other, set.clone()], vec![set, right]] {
            assert_eq!(quotas(&made).len(), 1, "{made:?}");
        }
    }

    #[test]
    fn an_uninstall_on_a_dead_node_is_found() {
        let pod = |toleration: Value| json!({"nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [toleration]});
        let all = json!({"operator": "Exists"});
        let dead = |more: Value| {
            let mut it =
                json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"});
            it.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            it
        };
        let none = Value::Null;
        assert_eq!(
            placed(&pod(json!({"key": "x", "operator": "Exists"})), &none).len(),
            0
        );
        assert_eq!(
            placed(&pod(dead(json!({"tolerationSeconds": 15}))), &none).len(),
            0
        );
        assert_eq!(placed(&pod(dead(json!({}))), &none).len(), 1);
        assert_eq!(placed(&pod(all.clone()), &none).len(), 1);
        let values = json!({"controller": {"tolerations": [all]}});
        assert_eq!(placed(&pod(all.clone()), &values).len(), 0, "asked for");
        assert_eq!(placed(&json!({}), &none).len(), 1, "any system");
    }

    #[test]
    fn a_role_for_more_than_it_needs_is_found() {
        let role = |kind: &str, rule: Value| {
            let labels = json!({"app.kubernetes.io/name": "weft"});
            let object = json!({"kind": kind, "metadata": {"name": "x", "labels": labels}, "rules": [rule]});
            check(&object, "n", &Value::Null).len()
        };
        let rule = |resources: &str, verbs: &str| json!({"apiGroups": [""], "resources": [resources], "verbs": [verbs]});
        assert_eq!(role("ClusterRole", rule("pods", "list")), 0);
        assert_eq!(role("ClusterRole", rule("*", "list")), 1);
        assert_eq!(role("ClusterRole", rule("pods", "*")), 1);
        assert_eq!(role("ClusterRole", rule("secrets", "get")), 1);
        assert_eq!(role("Role", rule("secrets", "get")), 1);
        assert_eq!(role("Role", rule("secrets", "create")), 0);
    }
}
