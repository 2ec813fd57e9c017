//! A cluster without kubelets: a stand-in API server in node a's network, a controller beside it, and pods that the test
//! makes and tells the API of.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{
    Agent, AgentOptions, LIMIT, Pod, PodSpec, World,
    kube::{Options, StandIn},
    machine,
    process::Process,
    wait_until,
};

/// Node a, where both nodes reach it.
const NODE_A: &str = "192.168.77.1";
const PORT: u16 = 15012;
const HTTP_PORT: u16 = 15014;

pub(crate) struct Cluster<'w> {
    pub(crate) world: &'w mut World,
    pub(crate) api: StandIn,
    controller: Option<Process>,
    pods: usize,
}

impl<'w> Cluster<'w> {
    /// An API that knows the nodes and weft's service accounts, and a controller that is ready.
    pub(crate) fn start(world: &'w mut World) -> Result<Self> {
        let listener = world.node("a").listen_on(SocketAddr::new(NODE_A.parse()?, 0))?;
        let api = StandIn::start_on(listener, Options::default())?;
        api.install_crds()?;
        for node in ["a", "b"] {
            api.apply_yaml(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}"))?;
            for (kind, name) in [
                ("ServiceAccount", "weft-agent".to_owned()),
                ("Pod", format!("weft-agent-{node}")),
            ] {
                api.apply(json!({
                    "apiVersion": "v1",
                    "kind": kind,
                    "metadata": {"name": name, "namespace": "weft-system"},
                    "spec": {"nodeName": node, "serviceAccountName": "weft-agent", "containers": []},
                }))?;
            }
        }
        let mut cluster = Self {
            world,
            api,
            controller: None,
            pods: 0,
        };
        fs::write(cluster.kubeconfig(), cluster.api.kubeconfig())?;
        cluster.start_controller()?;
        Ok(cluster)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.world.dir().join("kubeconfig")
    }

    fn log(&self) -> PathBuf {
        self.world.dir().join("controller.log")
    }

    pub(crate) fn start_controller(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let node = self.world.node("a");
        let mut command = node.command(machine::binary("weft", "WEFT_BIN")?);
        command
            .arg("controller")
            .args([
                "--listen",
                &format!("{NODE_A}:{PORT}"),
                "--http",
                &format!("{NODE_A}:{HTTP_PORT}"),
            ])
            .args(["--log", "debug"])
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log);
        self.controller = Some(Process::spawn(&mut command, "the controller")?);
        let ready = SocketAddr::new(NODE_A.parse()?, PORT);
        let node = self.world.node("a");
        wait_until("the controller to serve", LIMIT, || node.connect(ready).ok())
            .with_context(|| fs::read_to_string(self.log()).unwrap_or_default())?;
        Ok(())
    }

    pub(crate) fn stop_controller(&mut self) -> Result<()> {
        if let Some(mut controller) = self.controller.take() {
            controller.terminate(LIMIT)?;
        }
        Ok(())
    }

    /// Both nodes' agents.
    pub(crate) fn start_agents(&mut self) -> Result<[Agent; 2]> {
        Ok([self.start_agent("a")?, self.start_agent("b")?])
    }

    fn start_agent(&mut self, node: &str) -> Result<Agent> {
        let pod = format!("weft-agent-{node}");
        let token = self
            .api
            .token("weft-system", "weft-agent", &["weft-ca"], Some(&pod))?;
        let options = self.options(node, &token)?;
        let started = self.world.start_agent_with(node, options);
        started.with_context(|| fs::read_to_string(self.log()).unwrap_or_default())
    }

    /// An agent that says by this token who it is; not started.
    pub(crate) fn agent_with_token(&mut self, node: &str, token: &str) -> Result<Agent> {
        let options = self.options(node, token)?;
        self.world.prepare_takeover(node, options)
    }

    fn options(&self, node: &str, token: &str) -> Result<AgentOptions> {
        let file = self.world.dir().join(format!("token-{node}"));
        fs::write(&file, token)?;
        let address = SocketAddr::new(NODE_A.parse()?, PORT);
        let options = AgentOptions::default().controller(address, &self.kubeconfig(), &file);
        let options = options.arg("--cluster-cidrs").arg("10.244.0.0/16,10.96.0.0/16");
        Ok(options.env("POD_NAME", &format!("weft-agent-{node}")))
    }

    /// Makes a pod, and tells the API of it as a kubelet would.
    pub(crate) fn pod(&mut self, node: &'static str, spec: PodSpec) -> Result<Pod> {
        self.pods += 1;
        let uid = format!("12345678-9abc-def0-1234-{:012}", self.pods);
        let pod = self
            .world
            .pod(node, spec.cgroup(&format!("burstable/pod{uid}/a")).unlisted())?;
        let entry = pod.as_kubernetes();
        let (name, account) = (
            entry["metadata"]["name"].clone(),
            entry["spec"]["serviceAccountName"].clone(),
        );
        self.api.apply(json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": "demo"},
        }))?;
        let mut object = entry;
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["name"] = name;
        self.api.apply(object)?;
        Ok(pod)
    }

    /// Labels a namespace, and waits until the agents say that its pods are captured.
    pub(crate) fn enroll(&self, namespace: &str) -> Result<()> {
        let label = json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}});
        self.api.merge("namespaces", "", namespace, &label)?;
        self.wait_for_capture(namespace)
    }

    /// Of every pod that did not opt out.
    pub(crate) fn wait_for_capture(&self, namespace: &str) -> Result<()> {
        wait_until("the pods to be captured", LIMIT, || {
            let pods = self.api.list("pods", namespace);
            let captured = |pod: &Value| {
                pod["metadata"]["labels"]["istio.io/dataplane-mode"] == "none"
                    || pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled"
            };
            pods.iter().all(captured)
        })
        .with_context(|| fs::read_to_string(self.log()).unwrap_or_default())
    }

    /// Another root: its certificate and its key.
    pub(crate) fn new_root(&self) -> Result<(String, String)> {
        let dir = self.world.dir().join("another-root");
        let made = Command::new(machine::binary("weft", "WEFT_BIN")?)
            .args(["ca", "new", "--out"])
            .arg(&dir)
            .output()?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let read = |name: &str| fs::read_to_string(dir.join(name));
        Ok((read("root.pem")?, read("root-key.pem")?))
    }
}
