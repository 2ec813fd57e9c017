//! What a kubelet gives a container besides its image: volumes, the service account's token, variables.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    messages::{KeyValue, Mount},
    spec::{expand, items, text},
};
use crate::kube::StandIn;

/// Where a container finds the token of its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A pod as its node sees it.
pub(super) struct Place<'a> {
    pub(super) api: &'a StandIn,
    pub(super) pod: &'a Value,
    /// Where its volumes are.
    pub(super) dir: &'a Path,
    pub(super) node_address: &'a str,
    pub(super) pod_address: &'a str,
}

impl Place<'_> {
    fn namespace(&self) -> &str {
        text(&self.pod["metadata"]["namespace"])
    }

    fn name(&self) -> &str {
        text(&self.pod["metadata"]["name"])
    }

    fn account(&self) -> &str {
        match text(&self.pod["spec"]["serviceAccountName"]) {
            "" => "default",
            named => named,
        }
    }

    /// The mounts of a container. Volumes are made anew, as the API server has them now.
    pub(super) fn mounts(&self, container: &Value) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        for wanted in items(&container["volumeMounts"]) {
            let name = text(&wanted["name"]);
            let mut volumes = items(&self.pod["spec"]["volumes"]);
            let volume = volumes
                .find(|volume| volume["name"] == name)
                .with_context(|| format!("no volume {name}"))?;
            mounts.push(Mount {
                container_path: text(&wanted["mountPath"]).into(),
                host_path: self.volume(name, volume)?.display().to_string(),
                readonly: wanted["readOnly"] == true,
                propagation: match text(&wanted["mountPropagation"]) {
                    "HostToContainer" => 1,
                    "Bidirectional" => 2,
                    _ => 0,
                },
            });
        }
        if self.wants_token()? && !mounts.iter().any(|mount| mount.container_path == ACCOUNT) {
            let dir = self.dir.join("account");
            self.write(&dir, "token", &self.token("", &[])?)?;
            self.write(&dir, "ca.crt", self.api.certificate())?;
            self.write(&dir, "namespace", self.namespace())?;
            mounts.push(Mount {
                container_path: ACCOUNT.into(),
                host_path: dir.display().to_string(),
                readonly: true,
                propagation: 0,
            });
        }
        let hosts = format!("127.0.0.1 localhost\n{} {}\n", self.pod_address, self.name());
        self.write(self.dir, "hosts", &hosts)?;
        mounts.push(Mount {
            container_path: "/etc/hosts".into(),
            host_path: self.dir.join("hosts").display().to_string(),
            readonly: false,
            propagation: 0,
        });
        Ok(mounts)
    }

    fn wants_token(&self) -> Result<bool> {
        if let Some(said) = self.pod["spec"]["automountServiceAccountToken"].as_bool() {
            return Ok(said);
        }
        let account = self.api.get("ServiceAccount", self.namespace(), self.account());
        let account = account.with_context(|| format!("no service account {}", self.account()))?;
        Ok(account["automountServiceAccountToken"] != false)
    }

    fn token(&self, _path: &str, audiences: &[&str]) -> Result<String> {
        self.api
            .token(self.namespace(), self.account(), audiences, Some(self.name()))
    }

    fn volume(&self, name: &str, volume: &Value) -> Result<PathBuf> {
        if let Some(path) = volume["hostPath"]["path"].as_str() {
            let path = PathBuf::from(path);
            if volume["hostPath"]["type"] == "Directory" {
                ensure!(path.is_dir(), "hostPath {} is no directory", path.display());
            }
            return Ok(path);
        }
        let dir = self.dir.join("volumes").join(name);
        fs::create_dir_all(&dir)?;
        for source in items(&volume["projected"]["sources"]) {
            self.project(&dir, source)?;
        }
        for kind in ["configMap", "secret", "downwardAPI"] {
            if volume[kind].is_object() {
                self.source(&dir, kind, &volume[kind])?;
            }
        }
        let known = ["projected", "configMap", "secret", "downwardAPI", "emptyDir"];
        if !known.iter().any(|kind| volume[*kind].is_object()) {
            bail!("this node has no volumes of this kind: {volume}")
        }
        Ok(dir)
    }

    fn project(&self, dir: &Path, source: &Value) -> Result<()> {
        let token = &source["serviceAccountToken"];
        if token.is_object() {
            let audiences: Vec<&str> = token["audience"].as_str().into_iter().collect();
            let path = text(&token["path"]);
            return self.write(dir, path, &self.token(path, &audiences)?);
        }
        for kind in ["configMap", "secret", "downwardAPI"] {
            if source[kind].is_object() {
                self.source(dir, kind, &source[kind])?;
            }
        }
        Ok(())
    }

    fn source(&self, dir: &Path, kind: &str, source: &Value) -> Result<()> {
        if kind == "downwardAPI" {
            for item in items(&source["items"]) {
                let value = self.field(text(&item["fieldRef"]["fieldPath"]));
                self.write(dir, text(&item["path"]), &value)?;
            }
            return Ok(());
        }
        let name = match text(&source["secretName"]) {
            "" => text(&source["name"]),
            named => named,
        };
        let Some(found) = self
            .api
            .get(&format!("{kind}s").to_lowercase(), self.namespace(), name)
        else {
            ensure!(source["optional"] == true, "{kind} \"{name}\" not found");
            return Ok(());
        };
        let of_items: HashMap<&str, &str> = items(&source["items"])
            .map(|item| (text(&item["key"]), text(&item["path"])))
            .collect();
        for (key, value) in found["data"].as_object().into_iter().flatten() {
            let path = match of_items.get(key.as_str()) {
                Some(path) => path,
                None if of_items.is_empty() => key.as_str(),
                None => continue,
            };
            let content = match kind {
                "secret" => String::from_utf8(STANDARD.decode(text(value))?)?,
                _ => text(value).to_owned(),
            };
            self.write(dir, path, &content)?;
        }
        Ok(())
    }

    fn write(&self, dir: &Path, name: &str, content: &str) -> Result<()> {
        fs::create_dir_all(dir)?;
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    fn field(&self, path: &str) -> String {
        let pod = self.pod;
        if let Some((of, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            let of = of.trim_start_matches("metadata.");
            return text(&pod["metadata"][of][key]).to_owned();
        }
        match path {
            "status.podIP" | "status.podIPs" => self.pod_address.to_owned(),
            "status.hostIP" => self.node_address.to_owned(),
            "metadata.labels" | "metadata.annotations" => {
                let map = pod["metadata"][&path["metadata.".len()..]].as_object();
                let lines = map.into_iter().flatten();
                lines.map(|(key, value)| format!("{key}={value}\n")).collect()
            }
            "spec.serviceAccountName" => self.account().to_owned(),
            _ => {
                let pointer = format!("/{}", path.replace('.', "/"));
                pod.pointer(&pointer)
                    .map(|value| text(value).to_owned())
                    .unwrap_or_default()
            }
        }
    }

    /// The variables of a container: those of Services first, so that its own may name them.
    pub(super) fn variables(&self, container: &Value) -> Result<Vec<KeyValue>> {
        let mut all: Vec<(String, String)> = self.services();
        for env in items(&container["env"]) {
            let value = match env["valueFrom"].is_object() {
                true => self.value_from(&env["valueFrom"])?,
                false => {
                    let known = all
                        .iter()
                        .map(|(key, value)| (key.as_str(), value.as_str()))
                        .collect();
                    expand(text(&env["value"]), &known)
                }
            };
            let name = text(&env["name"]);
            all.retain(|(key, _)| key != name);
            all.push((name.to_owned(), value));
        }
        Ok(all
            .into_iter()
            .map(|(key, value)| KeyValue { key, value })
            .collect())
    }

    fn value_from(&self, from: &Value) -> Result<String> {
        if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
            return Ok(self.field(path));
        }
        let resource = &from["resourceFieldRef"];
        if resource.is_object() {
            return Ok("0".into());
        }
        bail!("this node has no variables from {from}")
    }

    /// What the kubelet says of the Services of the pod's namespace, and always of the API server.
    fn services(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let links = self.pod["spec"]["enableServiceLinks"] != false;
        let own = if links { self.namespace() } else { "default" };
        let mut services = self.api.list("services", own);
        services.retain(|service| links || service["metadata"]["name"] == "kubernetes");
        if own != "default" {
            services.extend(self.api.get("Service", "default", "kubernetes"));
        }
        for service in services {
            let address = text(&service["spec"]["clusterIP"]);
            if ["", "None"].contains(&address) {
                continue;
            }
            let name = text(&service["metadata"]["name"])
                .replace('-', "_")
                .to_uppercase();
            let port = service["spec"]["ports"][0]["port"].to_string();
            all.push((format!("{name}_SERVICE_HOST"), address.to_owned()));
            all.push((format!("{name}_SERVICE_PORT"), port));
        }
        all
    }
}
