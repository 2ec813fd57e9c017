//! A stand-in API server, Helm, and what the chart starts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;
use kube::{
    Api, Client, Config,
    api::PostParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use weft_tests::{
    LIMIT,
    kube::{Options, StandIn},
    machine,
    process::Process,
    wait_until,
};

pub(crate) const NAMESPACE: &str = "weft-system";
/// Also the end-to-end suite's.
const SCRIPT: &str = include_str!("../kube_e2e/helm.py");
/// How long Helm may take for one step, in seconds.
const HELM_LIMIT: u64 = 60;
/// The resources of which the chart may have objects.
const RESOURCES: [&str; 17] = [
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "DaemonSet",
    "Deployment",
    "GatewayClass.gateway.networking.k8s.io",
    "Job",
    "Pod",
    "PodDisruptionBudget",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "Secret",
    "Service",
    "ServiceAccount",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

pub(crate) struct Release {
    pub(crate) api: StandIn,
    dir: PathBuf,
    helm: PathBuf,
    controller: Option<Process>,
}

impl Release {
    pub(crate) fn new() -> Result<Self> {
        let helm = helm_library()?;
        let api = StandIn::start_with(Options {
            tls: true,
            ..Options::default()
        })?;
        api.install_crds()?;
        api.apply_yaml("apiVersion: v1\nkind: Node\nmetadata: {name: node-a}")?;
        let dir = std::env::temp_dir().join(format!("weft-{}-chart", std::process::id()));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("kubeconfig"), api.kubeconfig())?;
        Ok(Self {
            api,
            dir,
            helm,
            controller: None,
        })
    }

    /// What its notes say.
    pub(crate) fn install(&self, values: &Value) -> Result<String> {
        self.helm("install", values)
    }

    pub(crate) fn upgrade(&self, values: &Value) -> Result<String> {
        self.helm("upgrade", values)
    }

    fn helm(&self, action: &str, values: &Value) -> Result<String> {
        let asked = json!({
            "kubeconfig": self.dir.join("kubeconfig"), "namespace": NAMESPACE, "release": "weft",
            "chart": Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart"),
            "values": values, "timeout": HELM_LIMIT,
        });
        let mut python = Command::new("python3")
            .args(["-c", SCRIPT, action])
            .env("PYTHONPATH", &self.helm)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run python3")?;
        if let Some(mut stdin) = python.stdin.take() {
            stdin.write_all(asked.to_string().as_bytes())?;
        }
        let output = python.wait_with_output()?;
        if !output.status.success() {
            bail!("helm {action}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Uninstalls it, as the kubelets of one node would have it; what the hook has said.
    pub(crate) fn uninstall(&self) -> Result<String> {
        thread::scope(|scope| {
            let helm = scope.spawn(|| self.helm("uninstall", &json!({})));
            let hook = self.hook();
            let ended = helm.join().map_err(|_| anyhow::anyhow!("helm panicked"))?;
            // If the hook failed, Helm did as well, and says less.
            let said = hook?;
            ended.map(|_| said)
        })
    }

    fn hook(&self) -> Result<String> {
        let wait = |kind, name| {
            self.api
                .wait_for((kind, NAMESPACE, name), LIMIT, |found| found.is_some())
        };
        let set = wait("DaemonSet", "weft-release")?.unwrap_or_default();
        let released = json!({"status": {
            "observedGeneration": set["metadata"]["generation"], "desiredNumberScheduled": 1, "numberReady": 1,
            "currentNumberScheduled": 1, "numberMisscheduled": 0}});
        self.api
            .merge("DaemonSet", NAMESPACE, "weft-release", &released)?;
        let job = wait("Job", "weft-uninstall")?.unwrap_or_default();
        // A controller that has not ended yet.
        let labels = json!({"app.kubernetes.io/name": "weft", "app.kubernetes.io/component": "controller"});
        self.api.apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late", "namespace": NAMESPACE, "labels": labels},
            "spec": {"containers": [{"name": "controller", "image": "weft"}]},
        }))?;
        let log = self.dir.join("hook.log");
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let file = File::create(&log)?;
        let mut hook = self.program(&job)?;
        let mut hook = hook.stderr(file.try_clone()?).stdout(file).spawn()?;
        let waits = wait_until("the hook to wait for the controller", LIMIT, || {
            said().contains("controllers").then_some(())
        });
        self.api.delete("Pod", NAMESPACE, "late");
        let ended = hook.wait()?;
        let said = said();
        waits.with_context(|| said.clone())?;
        let (kind, succeeded) = match ended.success() {
            true => ("Complete", 1),
            false => ("Failed", 0),
        };
        let conditions = json!([{"type": kind, "status": "True"}]);
        let status =
            json!({"status": {"succeeded": succeeded, "failed": 1 - succeeded, "conditions": conditions}});
        self.api.merge("Job", NAMESPACE, "weft-uninstall", &status)?;
        ensure!(ended.success(), "the hook failed: {said}");
        Ok(said)
    }

    /// What a kubelet would start for a workload: its arguments, as its service account.
    fn program(&self, workload: &Value) -> Result<Command> {
        let pod = &workload["spec"]["template"]["spec"];
        let account = pod["serviceAccountName"].as_str().unwrap_or("default");
        let kubeconfig = self.dir.join(account);
        let token = self.api.token(NAMESPACE, account, &[], None)?;
        fs::write(&kubeconfig, self.api.kubeconfig_of(&token))?;
        let mut command = Command::new(machine::binary("weft", "WEFT_BIN")?);
        for arg in pod["containers"][0]["args"].as_array().into_iter().flatten() {
            let arg = arg.as_str().unwrap_or_default();
            let arg = arg.replace("$(POD_NAMESPACE)", NAMESPACE);
            command.arg(
                arg.replace("0.0.0.0:15012", "127.0.0.1:0")
                    .replace("0.0.0.0:15014", "127.0.0.1:0"),
            );
        }
        command
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Starts the controller as the chart says now, in place of one that runs.
    pub(crate) fn start_controller(&mut self) -> Result<()> {
        self.stop_controller()?;
        let deployment = self.object("Deployment", "weft-controller")?;
        let log = File::create(self.dir.join("controller.log"))?;
        let mut command = self.program(&deployment)?;
        command.stderr(log.try_clone()?).stdout(log);
        self.controller = Some(Process::spawn(&mut command, "the controller")?);
        Ok(())
    }

    pub(crate) fn stop_controller(&mut self) -> Result<()> {
        if let Some(mut controller) = self.controller.take() {
            controller.terminate(LIMIT)?;
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("controller.log")).unwrap_or_default()
    }

    /// Nothing that the controller asked for was refused.
    pub(crate) fn no_right_is_missing(&self) -> Result<()> {
        let log = self.log();
        let refused: Vec<_> = log.lines().filter(|line| line.contains("orbidden")).collect();
        ensure!(refused.is_empty(), "the controller lacks rights: {refused:#?}");
        Ok(())
    }

    /// Whether the controller's service account may make such objects in any namespace.
    pub(crate) fn may(&self, group: &str, resource: &str) -> Result<bool> {
        let token = self.api.token(NAMESPACE, "weft-controller", &[], None)?;
        let file = Kubeconfig::from_yaml(&self.api.kubeconfig_of(&token))?;
        let review: SelfSubjectAccessReview = serde_json::from_value(json!({"spec": {
            "resourceAttributes": {"group": group, "resource": resource, "verb": "create", "namespace": "anywhere"}}}))?;
        let runtime = tokio::runtime::Runtime::new()?;
        let answer = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            let api = Api::all(Client::try_from(config)?);
            anyhow::Ok(api.create(&PostParams::default(), &review).await?)
        })?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    pub(crate) fn object(&self, kind: &str, name: &str) -> Result<Value> {
        let found = self.api.get(kind, NAMESPACE, name);
        found.with_context(|| format!("there is no {kind} {name}"))
    }

    /// The arguments of a workload's container, one a line.
    pub(crate) fn args(&self, kind: &str, name: &str) -> Result<String> {
        let object = self.object(kind, name)?;
        let args = &object["spec"]["template"]["spec"]["containers"][0]["args"];
        let args = args.as_array().into_iter().flatten().filter_map(Value::as_str);
        Ok(args.collect::<Vec<_>>().join("\n"))
    }

    /// The release's objects in all of the cluster, hooks included, by kind and name.
    pub(crate) fn uids(&self) -> Result<BTreeMap<String, String>> {
        let mut found = BTreeMap::new();
        for kind in RESOURCES {
            for object in self.api.list(kind, "") {
                let metadata = &object["metadata"];
                if metadata["labels"]["app.kubernetes.io/instance"] != "weft" {
                    continue;
                }
                let name = metadata["name"].as_str().unwrap_or_default();
                let kind = kind.split('.').next().unwrap_or(kind);
                let uid = metadata["uid"].as_str().context("an object without a uid")?;
                found.insert(format!("{kind} {name}"), uid.to_owned());
            }
        }
        Ok(found)
    }

    /// Helm's own records, by the number of the revision.
    pub(crate) fn revisions(&self) -> Vec<String> {
        let secrets = self.api.list("Secret", NAMESPACE);
        let owned = secrets
            .iter()
            .filter(|secret| secret["metadata"]["labels"]["owner"] == "helm");
        let numbers = owned.filter_map(|secret| secret["metadata"]["labels"]["version"].as_str());
        numbers.map(str::to_owned).collect()
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let _ = self.stop_controller();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Where Helm's library was unpacked.
fn helm_library() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let entries = fs::read_dir(&target).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("helm-sdkpy-"))
        .map(|entry| entry.path())
        .filter(|path| path.join("helm_sdkpy/_ffi.py").exists())
        .collect();
    found.sort();
    found
        .pop()
        .context("Helm's library is not in target/helm-sdkpy-*: run `cargo xtask setup`, which installs it")
}
