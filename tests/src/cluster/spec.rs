//! PURE. What a pod's manifest means to a container runtime, as the kubelet translates it. Limits of memory and CPU are left
//! out: a cgroup hierarchy beside the old ones has no controllers for them.

use std::collections::HashMap;

use serde_json::Value;

use super::messages::{
    Capability, ContainerConfig, ContainerMetadata, ContainerSecurity, DnsConfig, ImageSpec, Int64Value,
    KeyValue, LinuxContainer, LinuxSandbox, Mount, NamespaceOption, SandboxConfig, SandboxMetadata,
    SandboxSecurity, SecurityProfile,
};

/// What the kubelet has masked, and made read-only, in every container that is not privileged.
const MASKED: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A text field, or "".
pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list, none where there is none.
pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

pub(super) fn sandbox(pod: &Value, cgroup_parent: &str, log_directory: String) -> SandboxConfig {
    let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
    let name = text(&metadata["name"]);
    let namespace = text(&metadata["namespace"]);
    SandboxConfig {
        metadata: Some(SandboxMetadata {
            name: name.into(),
            uid: text(&metadata["uid"]).into(),
            namespace: namespace.into(),
            attempt: 0,
        }),
        hostname: match spec["hostNetwork"] == true {
            true => String::new(),
            false => name.chars().take(63).collect(),
        },
        log_directory,
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: ["", "svc.", ""]
                .iter()
                .enumerate()
                .map(|(at, part)| match at {
                    0 => format!("{namespace}.svc.cluster.local"),
                    _ => format!("{part}cluster.local"),
                })
                .collect(),
            options: vec!["ndots:5".into()],
        }),
        labels: pod_labels(pod),
        annotations: HashMap::new(),
        linux: Some(LinuxSandbox {
            cgroup_parent: cgroup_parent.into(),
            security_context: Some(SandboxSecurity {
                namespace_options: Some(namespaces(spec)),
                privileged: containers(spec).any(|one| one["securityContext"]["privileged"] == true),
                seccomp: Some(SecurityProfile::default()),
            }),
        }),
    }
}

/// All containers, those that begin first and those that came later included.
pub(super) fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|of| items(&spec[of]))
}

fn pod_labels(pod: &Value) -> HashMap<String, String> {
    let metadata = &pod["metadata"];
    [
        ("io.kubernetes.pod.name", "name"),
        ("io.kubernetes.pod.namespace", "namespace"),
        ("io.kubernetes.pod.uid", "uid"),
    ]
    .map(|(label, field)| (label.to_owned(), text(&metadata[field]).to_owned()))
    .into()
}

fn namespaces(spec: &Value) -> NamespaceOption {
    let of_node = |field: &str| if spec[field] == true { 2 } else { 0 };
    let shared = spec["shareProcessNamespace"] == true;
    NamespaceOption {
        network: of_node("hostNetwork"),
        pid: match of_node("hostPID") {
            0 if !shared => 1,
            other => other,
        },
        ipc: of_node("hostIPC"),
    }
}

/// A container, started for the `attempt`th time.
pub(super) fn container(
    pod: &Value,
    container: &Value,
    envs: Vec<KeyValue>,
    mounts: Vec<Mount>,
    attempt: u32,
) -> ContainerConfig {
    let name = text(&container["name"]);
    let known: HashMap<&str, &str> = envs
        .iter()
        .map(|env| (env.key.as_str(), env.value.as_str()))
        .collect();
    let words = |field: &str| {
        items(&container[field])
            .map(|word| expand(text(word), &known))
            .collect()
    };
    let mut labels = pod_labels(pod);
    labels.insert("io.kubernetes.container.name".into(), name.into());
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.into(),
            attempt,
        }),
        image: Some(ImageSpec {
            image: text(&container["image"]).into(),
        }),
        command: words("command"),
        args: words("args"),
        working_dir: text(&container["workingDir"]).into(),
        mounts,
        labels,
        log_path: format!("{name}/{attempt}.log"),
        linux: Some(LinuxContainer {
            security_context: Some(security(&pod["spec"], container)),
        }),
        envs,
    }
}

fn security(spec: &Value, container: &Value) -> ContainerSecurity {
    let (own, of_pod) = (&container["securityContext"], &spec["securityContext"]);
    let either = |field: &str| match &own[field] {
        Value::Null => &of_pod[field],
        own => own,
    };
    let number = |field: &str| either(field).as_i64().map(|value| Int64Value { value });
    let words = |of: &Value| items(of).map(|word| text(word).to_owned()).collect();
    let privileged = own["privileged"] == true;
    let paths = |paths: &[&str]| match privileged {
        true => Vec::new(),
        false => paths.iter().map(|path| (*path).to_owned()).collect(),
    };
    ContainerSecurity {
        capabilities: Some(Capability {
            add: words(&own["capabilities"]["add"]),
            drop: words(&own["capabilities"]["drop"]),
        }),
        privileged,
        namespace_options: Some(namespaces(spec)),
        run_as_user: number("runAsUser"),
        run_as_group: number("runAsGroup").filter(|_| either("runAsUser").is_number()),
        readonly_rootfs: own["readOnlyRootFilesystem"] == true,
        no_new_privs: own["allowPrivilegeEscalation"] == false,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(either("seccompProfile"))),
    }
}

/// None is asked for: none is laid on, as long as the kubelet has no default of its own.
fn seccomp(profile: &Value) -> SecurityProfile {
    let (profile_type, localhost_ref) = match text(&profile["type"]) {
        "RuntimeDefault" => (0, String::new()),
        "Localhost" => (2, text(&profile["localhostProfile"]).to_owned()),
        _ => (1, String::new()),
    };
    SecurityProfile {
        profile_type,
        localhost_ref,
    }
}

/// `$(NAME)` is the variable's value where there is one, and itself where there is none; `$$` is a dollar.
pub(super) fn expand(word: &str, known: &HashMap<&str, &str>) -> String {
    let mut out = String::new();
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[test]
fn variables_are_put_in() {
    let known = HashMap::from([("HOST", "10.0.0.1")]);
    for (word, expanded) in [
        ("$(HOST):15012", "10.0.0.1:15012"),
        ("$(NONE):1", "$(NONE):1"),
        ("$$(HOST)", "$(HOST)"),
        ("a$", "a$"),
        ("$(open", "$(open"),
    ] {
        assert_eq!(expand(word, &known), expanded);
    }
}
