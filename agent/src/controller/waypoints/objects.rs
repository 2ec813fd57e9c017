//! PURE. The Kubernetes objects of one waypoint, as they are applied: every field here is ours to decide, and every other one is
//! left to whoever sets it.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::{
    Settings, Surroundings,
    parts::{Key, Part},
};
use crate::{cluster::labels, controller::compile::WaypointGateway};

/// Where the controller's roots are put in a pod.
const ROOTS_DIR: &str = "/var/run/secrets/weft";
/// The pod's annotation that they come from.
const ROOTS: &str = "weft.dev/root-cert";
/// Where its token is.
const TOKEN_DIR: &str = "/var/run/secrets/tokens";
/// What a pod may take to end beyond its last requests.
const GRACE: u64 = 15;
/// The user that a waypoint runs as: nobody.
const USER: u32 = 65532;
/// The use of CPU that pods are added for, in percent of what each asks for.
const TARGET_CPU: u32 = 70;

/// Everything that is made for a waypoint, in the order in which it is made.
pub(super) fn objects(it: &WaypointGateway, settings: &Settings, around: &Surroundings) -> Vec<(Key, Value)> {
    let made = Making { it, settings, around };
    let account = json!({"automountServiceAccountToken": false});
    let mut all = vec![
        (Part::ServiceAccount, account),
        (Part::Service, json!({"spec": made.service()})),
        (Part::Deployment, json!({"spec": made.deployment()})),
        (Part::DisruptionBudget, json!({"spec": made.disruption_budget()})),
    ];
    if let Some((least, most)) = it.wishes.scale {
        let least = least.unwrap_or(settings.replicas).min(most);
        all.push((Part::Autoscaler, json!({"spec": made.autoscaler(least, most)})));
    }
    let key = |part| Key {
        namespace: it.gateway.namespace.clone(),
        name: it.gateway.name.clone(),
        part,
    };
    all.into_iter()
        .map(|(part, body)| (key(part), made.object(part, body)))
        .collect()
}

struct Making<'a> {
    it: &'a WaypointGateway,
    settings: &'a Settings,
    around: &'a Surroundings,
}

impl Making<'_> {
    /// With what every one of them has.
    fn object(&self, part: Part, mut body: Value) -> Value {
        let gateway = &self.it.gateway;
        let kind = part.kind();
        body["apiVersion"] = kind.api_version.into();
        body["kind"] = kind.kind.into();
        body["metadata"] = json!({
            "name": gateway.name,
            "namespace": gateway.namespace,
            "labels": self.labels(),
            // Who deletes the Gateway deletes this.
            "ownerReferences": [{
                "apiVersion": format!("{}/{}", gateway.group(), gateway.version()),
                "kind": "Gateway",
                "name": gateway.name,
                "uid": gateway.uid,
                "controller": true,
            }],
        });
        if !self.it.wishes.annotations.is_empty() {
            body["metadata"]["annotations"] = json!(self.it.wishes.annotations);
        }
        body
    }

    /// The Gateway's, under those that mean something.
    fn labels(&self) -> Value {
        let mut all = self.it.wishes.labels.clone();
        let own = [
            ("app.kubernetes.io/name", "weft"),
            ("app.kubernetes.io/component", "waypoint"),
            labels::WAYPOINT_MANAGED_BY,
            labels::MANAGED,
            (labels::GATEWAY_NAME, &self.it.gateway.name),
            (labels::GATEWAY_CLASS_NAME, &self.it.class),
        ];
        all.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        json!(all)
    }

    /// Whom the Service and the others mean. Never changes: a Deployment's cannot.
    fn selector(&self) -> Value {
        json!({ labels::GATEWAY_NAME: self.it.gateway.name })
    }

    fn service(&self) -> Value {
        let mut spec = json!({
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": self.selector(),
            "ports": [{
                "name": "hbone",
                "port": self.it.hbone_port,
                "targetPort": self.it.hbone_port,
                "protocol": "TCP",
                "appProtocol": "hbone",
            }],
        });
        if let Some(address) = self.it.wishes.address {
            spec["clusterIP"] = address.to_string().into();
        }
        spec
    }

    fn deployment(&self) -> Value {
        let mut spec = json!({
            "selector": {"matchLabels": self.selector()},
            // A new one is there before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": self.pod_metadata(), "spec": self.pod()},
        });
        // Otherwise their number is the autoscaler's.
        if self.it.wishes.scale.is_none() {
            spec["replicas"] = self.it.wishes.replicas.unwrap_or(self.settings.replicas).into();
        }
        spec
    }

    fn pod_metadata(&self) -> Value {
        let mut labels = self.labels();
        // It speaks HBONE itself.
        labels["istio.io/dataplane-mode"] = "none".into();
        labels["sidecar.istio.io/inject"] = "false".into();
        let mut annotations = self.it.wishes.annotations.clone();
        let own = [
            ("prometheus.io/scrape", "true"),
            ("prometheus.io/port", "15020"),
            ("prometheus.io/path", "/metrics"),
            // The file that it reads is this.
            (ROOTS, &self.around.roots),
        ];
        annotations.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
        json!({"labels": labels, "annotations": annotations})
    }

    fn pod(&self) -> Value {
        let spread = |topology: &str| {
            json!({
                "maxSkew": 1,
                "topologyKey": topology,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": self.selector()},
            })
        };
        let mut pod = json!({
            "serviceAccountName": self.it.gateway.name,
            // It asks nothing of Kubernetes.
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": self.settings.drain_timeout + GRACE,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": [spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")],
            "containers": [self.container()],
            "volumes": [
                {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                    "path": "weft-token",
                    "audience": self.settings.audience,
                    "expirationSeconds": 43200,
                }}]}},
                {"name": "roots", "downwardAPI": {"items": [{
                    "path": "root-cert.pem",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": format!("metadata.annotations['{ROOTS}']")},
                }]}},
            ],
        });
        merge(&mut pod, &self.settings.pod);
        pod
    }

    fn container(&self) -> Value {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
        let port = |name: &str, port: u16| json!({"name": name, "containerPort": port, "protocol": "TCP"});
        json!({
            "name": "waypoint",
            "image": self.settings.image,
            "imagePullPolicy": self.settings.pull_policy,
            "args": self.args(),
            "env": [
                field("NODE_NAME", "spec.nodeName"),
                field("POD_NAME", "metadata.name"),
                field("POD_IP", "status.podIP"),
                field("POD_IPS", "status.podIPs"),
            ],
            "ports": [port("hbone", self.it.hbone_port), port("metrics", 15020), port("ready", 15021)],
            "readinessProbe": {
                "httpGet": {"path": "/healthz/ready", "port": "ready"},
                "periodSeconds": 2,
                "timeoutSeconds": 2,
                "failureThreshold": 3,
            },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "resources": self.resources(),
            "volumeMounts": [
                {"name": "token", "mountPath": TOKEN_DIR, "readOnly": true},
                {"name": "roots", "mountPath": ROOTS_DIR, "readOnly": true},
            ],
        })
    }

    fn args(&self) -> Vec<String> {
        let Settings {
            namespace,
            service,
            mesh,
            ..
        } = self.settings;
        let gateway = &self.it.gateway;
        let mut args = vec![
            "waypoint".to_owned(),
            format!("--gateway={}/{}", gateway.namespace, gateway.name),
            format!("--controller={}", self.around.controller),
            format!("--controller-name={service}.{namespace}.svc"),
            format!("--own-namespace={namespace}"),
            format!("--token-file={TOKEN_DIR}/weft-token"),
            format!("--ca-root={ROOTS_DIR}/root-cert.pem"),
        ];
        args.extend(mesh.iter().cloned());
        args.push(format!("--drain-timeout={}", self.settings.drain_timeout));
        let at = |port| SocketAddr::new(self.settings.listen_address, port);
        args.push("--address=$(POD_IPS)".to_owned());
        args.push(format!("--listen={}", at(self.it.hbone_port)));
        args.push(format!("--metrics-address={}", at(15020)));
        args.push(format!("--ready-address={}", at(15021)));
        args.extend(self.settings.log.iter().cloned());
        args
    }

    fn resources(&self) -> Value {
        let mut resources = self.settings.resources.clone();
        let wishes = &self.it.wishes;
        if let Some(cpu) = &wishes.cpu {
            resources["requests"]["cpu"] = cpu.as_str().into();
        }
        if let Some(memory) = &wishes.memory {
            resources["requests"]["memory"] = memory.as_str().into();
            resources["limits"]["memory"] = memory.as_str().into();
        }
        resources
    }

    fn disruption_budget(&self) -> Value {
        json!({
            "maxUnavailable": 1,
            "selector": {"matchLabels": self.selector()},
            // One that is not ready serves nobody.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        })
    }

    fn autoscaler(&self, least: u32, most: u32) -> Value {
        json!({
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": self.it.gateway.name},
            "minReplicas": least,
            "maxReplicas": most,
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": TARGET_CPU},
            }}],
        })
    }
}

/// Adds what the installation says of pods. Which fields that may be, [`Settings`] checks.
fn merge(pod: &mut Value, more: &Map<String, Value>) {
    for (field, value) in more {
        pod[field.as_str()] = value.clone();
    }
}
