//! One pod on its node, from its sandbox to its end.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    container::{Container, Phase},
    kubelet::log_dir,
    messages::{CreateContainer, RunSandbox, SandboxConfig},
    node::Node,
    spec::{self, items, text},
    status,
    volumes::Place,
};
use crate::kube::StandIn;

/// How often the containers are looked at.
const LOOK: Duration = Duration::from_millis(150);
/// How long after a failure a pod's sandbox or container is tried again.
const AGAIN: Duration = Duration::from_secs(2);

pub(super) struct Worker {
    pub(super) api: Arc<StandIn>,
    pub(super) node: Arc<Node>,
    /// The pod as it was last seen.
    pub(super) pod: Value,
    seen: watch::Receiver<Option<Value>>,
    config: SandboxConfig,
    sandbox: String,
    pub(super) address: String,
    cgroup: String,
    dir: PathBuf,
    pub(super) begun: Instant,
    pub(super) initial: Vec<Container>,
    pub(super) containers: Vec<Container>,
    pub(super) ephemeral: Vec<Container>,
    /// Why it has ended before its containers have, such as a deadline.
    pub(super) failed: Option<&'static str>,
}

impl Worker {
    pub(super) fn new(
        api: Arc<StandIn>,
        node: Arc<Node>,
        pod: Value,
        seen: watch::Receiver<Option<Value>>,
    ) -> Self {
        let uid = text(&pod["metadata"]["uid"]);
        let dir = node.dir.join("pods").join(uid);
        let of = |field: &str| items(&pod["spec"][field]).cloned().map(Container::new).collect();
        Self {
            initial: of("initContainers"),
            containers: of("containers"),
            ephemeral: Vec::new(),
            dir,
            api,
            node,
            pod,
            seen,
            config: SandboxConfig::default(),
            sandbox: String::new(),
            address: String::new(),
            cgroup: String::new(),
            begun: Instant::now(),
            failed: None,
        }
    }

    fn id(&self) -> (&str, &str, &str) {
        let of = |field: &str| text(&self.pod["metadata"][field]);
        (of("namespace"), of("name"), of("uid"))
    }

    pub(super) async fn run(mut self) {
        while let Err(error) = self.set_up().await {
            self.say(&format!("cannot begin: {error:#}"));
            sleep(AGAIN).await;
            if self.pause(LOOK).await {
                return self.end().await;
            }
        }
        loop {
            self.look().await;
            self.probe().await;
            self.write();
            if self.ended() {
                // The network goes, the log and the status stay.
                self.release().await;
                while !self.pause(Duration::from_secs(3600)).await {}
                return self.end().await;
            }
            if self.pause(LOOK).await {
                return self.end().await;
            }
        }
    }

    fn say(&self, what: &str) {
        let (namespace, name, _) = self.id();
        eprintln!("[{}] {namespace}/{name}: {what}", self.node.name);
    }

    /// Waits, and says whether the pod is to end.
    async fn pause(&mut self, limit: Duration) -> bool {
        let changed = timeout(limit, self.seen.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            return true;
        }
        let now = self.seen.borrow_and_update().clone();
        let Some(now) = now else { return true };
        self.pod = now;
        if changed.is_ok() {
            // Its own writes come back as changes: no reason to hurry.
            sleep(Duration::from_millis(20)).await;
        }
        self.pod["metadata"]["deletionTimestamp"].is_string()
    }

    async fn set_up(&mut self) -> Result<()> {
        if !self.sandbox.is_empty() {
            return Ok(());
        }
        let (namespace, name, uid) = self.id();
        let started = status::now();
        let host = self.node.address();
        let scheduled = self.api.change(("pods", namespace, name), |pod| {
            pod["status"]["hostIP"] = host.as_str().into();
            pod["status"]["hostIPs"] = json!([{"ip": host}]);
            if pod["status"]["startTime"].is_null() {
                pod["status"]["startTime"] = started.as_str().into();
            }
            status::condition(pod, "PodScheduled", true, &started);
        });
        ensure!(scheduled, "it is gone");
        for one in spec::containers(&self.pod["spec"]) {
            let image = text(&one["image"]);
            ensure!(
                self.node.runtime.has(image).await?,
                "ErrImageNeverPull: the node does not have the image {image}"
            );
        }
        let quality = text(&self.pod["status"]["qosClass"]);
        let cgroup = self.node.pod_cgroup(uid, quality)?;
        let logs = log_dir(&self.node, &self.pod).display().to_string();
        let config = spec::sandbox(&self.pod, &cgroup, logs);
        (self.cgroup, self.config) = (cgroup, config);
        let request = RunSandbox {
            config: Some(self.config.clone()),
        };
        self.sandbox = self.node.runtime.run_sandbox(&request).await?;
        self.address = match self.pod["spec"]["hostNetwork"] == true {
            true => self.node.address(),
            false => self.node.runtime.address(&self.sandbox).await?,
        };
        Ok(())
    }

    /// Starts what is to be started, and asks how the rest is.
    async fn look(&mut self) {
        self.deadline().await;
        let again = match text(&self.pod["spec"]["restartPolicy"]) {
            "Never" => Restart::Never,
            "OnFailure" => Restart::OnFailure,
            _ => Restart::Always,
        };
        let mut initial = std::mem::take(&mut self.initial);
        let mut ready = true;
        for one in &mut initial {
            if ready {
                self.advance(one, again.of_initial()).await;
            }
            ready &= one.succeeded();
        }
        self.initial = initial;
        let mut containers = std::mem::take(&mut self.containers);
        if ready {
            for one in &mut containers {
                self.advance(one, again).await;
            }
        }
        self.containers = containers;
        let mut ephemeral = std::mem::take(&mut self.ephemeral);
        for wanted in items(&self.pod["spec"]["ephemeralContainers"]) {
            if !ephemeral.iter().any(|one| one.spec["name"] == wanted["name"]) {
                ephemeral.push(Container::new(wanted.clone()));
            }
        }
        for one in &mut ephemeral {
            self.advance(one, Restart::Never).await;
        }
        self.ephemeral = ephemeral;
    }

    async fn deadline(&mut self) {
        let limit = self.pod["spec"]["activeDeadlineSeconds"].as_u64();
        let over = limit.is_some_and(|limit| self.begun.elapsed() >= Duration::from_secs(limit));
        if over && self.failed.is_none() {
            self.failed = Some("DeadlineExceeded");
            self.stop().await;
        }
    }

    async fn advance(&self, one: &mut Container, again: Restart) {
        let start = match one.phase {
            Phase::Running => {
                if let Ok(status) = self.node.runtime.status(&one.id).await {
                    one.saw(&status);
                }
                false
            }
            Phase::Ended => one.may_start_again(again),
            Phase::Waiting => one.due(),
        };
        if start && self.failed.is_none() {
            self.start(one).await;
        }
    }

    async fn start(&self, one: &mut Container) {
        match self.try_start(one).await {
            Ok(id) => one.started(id),
            Err(error) => {
                self.say(&format!("container {}: {error:#}", text(&one.spec["name"])));
                one.failed(format!("{error:#}"), AGAIN);
            }
        }
    }

    async fn try_start(&self, one: &Container) -> Result<String> {
        let address = self.node.address();
        let place = Place {
            api: &self.api,
            pod: &self.pod,
            dir: &self.dir,
            node_address: &address,
            pod_address: &self.address,
        };
        let envs = place.variables(&one.spec)?;
        let mounts = place.mounts(&one.spec)?;
        let request = CreateContainer {
            sandbox: self.sandbox.clone(),
            config: Some(spec::container(&self.pod, &one.spec, envs, mounts, one.attempt)),
            sandbox_config: Some(self.config.clone()),
        };
        self.node.runtime.start(&request).await
    }

    async fn probe(&mut self) {
        let mut containers = std::mem::take(&mut self.containers);
        let grace = self.grace();
        for one in &mut containers {
            if one.probe(&self.node, &self.address).await {
                self.say(&format!("container {} is not alive", text(&one.spec["name"])));
                let _ = self.node.runtime.stop(&one.id, grace).await;
            }
        }
        self.containers = containers;
    }

    fn grace(&self) -> i64 {
        let own = &self.pod["metadata"]["deletionGracePeriodSeconds"];
        let spec = &self.pod["spec"]["terminationGracePeriodSeconds"];
        own.as_i64().or(spec.as_i64()).unwrap_or(30)
    }

    /// Whether nothing runs any more, and nothing will.
    fn ended(&self) -> bool {
        let phase = status::phase(self);
        phase == "Succeeded" || phase == "Failed"
    }

    fn write(&self) {
        let (namespace, name, uid) = self.id();
        self.api.change(("pods", namespace, name), |pod| {
            if pod["metadata"]["uid"] == uid {
                status::write(self, pod);
            }
        });
    }

    /// Ends all containers, each within the grace period.
    async fn stop(&mut self) {
        let grace = self.grace();
        let mut ends = Vec::new();
        let all = self.containers.iter().chain(&self.initial).chain(&self.ephemeral);
        for one in all.filter(|one| one.phase == Phase::Running) {
            let (node, id) = (self.node.clone(), one.id.clone());
            ends.push(tokio::spawn(async move { node.runtime.stop(&id, grace).await }));
        }
        // While they end, what they do still counts: such as that they are not ready any more.
        while ends.iter().any(|end| !end.is_finished()) {
            self.probe_only().await;
            self.write();
            sleep(LOOK).await;
        }
        for end in ends {
            if let Ok(Err(error)) = end.await {
                self.say(&format!("cannot stop: {error:#}"));
            }
        }
        let lists = [&mut self.containers, &mut self.initial, &mut self.ephemeral];
        for one in lists
            .into_iter()
            .flatten()
            .filter(|one| one.phase == Phase::Running)
        {
            if let Ok(status) = self.node.runtime.status(&one.id).await {
                one.saw(&status);
            }
        }
    }

    async fn probe_only(&mut self) {
        for one in &mut self.containers {
            let _ = one.probe(&self.node, &self.address).await;
        }
    }

    async fn release(&mut self) {
        if self.sandbox.is_empty() {
            return;
        }
        let sandbox = std::mem::take(&mut self.sandbox);
        let removed = self.node.runtime.remove_sandbox(&sandbox).await;
        if let Err(error) = removed.context("remove the sandbox") {
            self.say(&format!("{error:#}"));
        }
        self.node.remove_pod_cgroup(&self.cgroup);
    }

    async fn end(mut self) {
        if !self.ended() {
            self.stop().await;
            self.failed.get_or_insert("");
            self.write();
        }
        self.release().await;
        let (namespace, name, uid) = self.id();
        self.api.forget_pod(namespace, name, uid);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Whether a container that has ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    /// Those that begin first are not run again when they are done.
    fn of_initial(self) -> Self {
        match self {
            Self::Always => Self::OnFailure,
            other => other,
        }
    }
}
