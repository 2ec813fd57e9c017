//! A node's agent: the real `weft agent`, in the node's namespace and cgroup, and what it says about itself. A waypoint, which
//! answers on the same ports, is one in a pod.

mod arguments;

use std::{
    env,
    ffi::OsStr,
    fmt,
    fs::{self, File, OpenOptions},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    access::{self, AccessLine},
    cgroup::Cgroup,
    http::{Response, exchange},
    machine,
    metrics::Samples,
    netns::Netns,
    pod::Pod,
    process::{Place, Process},
    topology::{Node, World},
    wait::{LIMIT, wait_until},
};

/// Admin, on localhost.
pub const ADMIN_PORT: u16 = 15000;
/// Prometheus metrics.
pub const METRICS_PORT: u16 = 15020;
/// `/healthz/ready`.
pub const READY_PORT: u16 = 15021;

/// How long an agent may take to end by itself after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// How an agent is started, beyond what every agent is given.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    json_log: bool,
    args: Vec<String>,
    without: Vec<&'static str>,
    envs: Vec<(String, String)>,
    ca: Option<PathBuf>,
    binary: &'static str,
    in_container: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            json_log: true,
            args: Vec::new(),
            without: Vec::new(),
            envs: Vec::new(),
            ca: None,
            binary: "weft",
            in_container: false,
        }
    }
}

impl AgentOptions {
    /// Logs as people see it instead of as JSON.
    pub fn text_log(mut self) -> Self {
        self.json_log = false;
        self
    }

    /// One more argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Under a controller at `address`, in place of a mesh file and a CA of its own. `token` says who it is.
    pub fn controller(self, address: SocketAddr, kubeconfig: &Path, token: &Path) -> Self {
        let files = ["--mesh-file", "--ca-cert", "--ca-key"];
        let without = files.into_iter().fold(self, Self::without);
        without
            .arg("--controller")
            .arg(&address.to_string())
            .arg("--kubeconfig")
            .arg(&kubeconfig.display().to_string())
            .arg("--token-file")
            .arg(&token.display().to_string())
    }

    /// Without a flag that every agent is given.
    pub fn without(mut self, flag: &'static str) -> Self {
        self.without.push(flag);
        self
    }

    /// One more environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.envs.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Another build of weft, beside the usual one: `weft-next-layout`.
    pub fn binary(mut self, name: &'static str) -> Self {
        self.binary = name;
        self
    }

    /// As on a node that is a container itself: the node's cgroup is the root of all that can be seen, and the agent is in a pod of it.
    pub fn in_container(mut self) -> Self {
        self.in_container = true;
        self
    }

    /// Signs with the `root.pem` and `root-key.pem` of another directory than the world's.
    pub fn ca(mut self, dir: PathBuf) -> Self {
        self.ca = Some(dir);
        self
    }
}

/// Which mesh an agent has.
pub(crate) struct MeshStatus {
    revision: u64,
    last_error: Option<String>,
}

/// An agent, running or not. A handle, cheap to clone; the world ends the process when it is dropped.
#[derive(Clone)]
pub struct Agent(Arc<Inner>);

struct Inner {
    node: &'static str,
    place: Place,
    /// Before the program's own name: what else is to be run.
    wrapper: Vec<String>,
    binary: PathBuf,
    args: Vec<String>,
    envs: Vec<(String, String)>,
    log: PathBuf,
    process: Mutex<Option<Process>>,
}

impl Agent {
    /// Everything but the start.
    pub(crate) fn prepare(world: &World, node: &Node, options: AgentOptions) -> Result<Self> {
        let serial = (1..)
            .find(|serial| !cgroup_of(node, *serial).exists())
            .context("no free name for an agent")?;
        let cgroup = Cgroup::create(cgroup_of(node, serial))?;
        let place = Place {
            cgroup: Arc::new(cgroup),
            ..node.place().clone()
        };
        Ok(Self(Arc::new(Inner {
            node: node.node_name(),
            place,
            binary: match options.binary {
                "weft" => machine::binary("weft", "WEFT_BIN")?,
                // Not to be replaced by a person's own build, which would have the usual layout.
                other => machine::binary(other, "WEFT_BIN_OF_ANOTHER_LAYOUT")?,
            },
            wrapper: match options.in_container {
                true => arguments::in_container(node)?,
                false => Vec::new(),
            },
            args: arguments::of_agent(world, node, &options)?,
            envs: options.envs,
            log: world
                .dir()
                .join(format!("agent-{}{}.log", node.node_name(), suffix(serial))),
            process: Mutex::new(None),
        })))
    }

    /// A waypoint in a pod of its own, which reads its node's mesh file: the Gateway has the pod's namespace and service account.
    pub(crate) fn prepare_waypoint(world: &World, pod: &Pod, options: AgentOptions) -> Result<Self> {
        let node = world.node(pod.node());
        Ok(Self(Arc::new(Inner {
            node: node.node_name(),
            place: pod.place().clone(),
            binary: machine::binary("weft", "WEFT_BIN")?,
            wrapper: Vec::new(),
            args: arguments::of_waypoint(world, pod, &options)?,
            envs: options.envs,
            log: world.dir().join(format!("{}.log", pod.name())),
            process: Mutex::new(None),
        })))
    }

    /// The node it is the agent of.
    pub fn node(&self) -> &str {
        self.0.node
    }

    /// The command that starts it, for a test that wants to see it fail.
    pub fn command(&self) -> Result<Command> {
        let log = self.open_log()?;
        let words = self
            .0
            .wrapper
            .iter()
            .map(OsStr::new)
            .chain([self.0.binary.as_os_str()]);
        let mut words = words.collect::<Vec<_>>().into_iter();
        let mut command = self.0.place.command(words.next().context("no program")?);
        command.args(words);
        // What the person running the tests has set for their own agents is not for these.
        for (name, _) in env::vars_os() {
            let own = name.as_encoded_bytes().starts_with(b"WEFT_");
            let others = ["RUST_LOG", "LOG_FORMAT", "CRL_PATH", "TRUST_BUNDLE", "POD_UID"];
            if own || others.iter().any(|other| name == *other) {
                command.env_remove(name);
            }
        }
        command.args(&self.0.args).envs(self.0.envs.iter().cloned());
        command
            .stdin(Stdio::null())
            .stderr(log.try_clone().context("share the log file")?)
            .stdout(log);
        Ok(command)
    }

    fn open_log(&self) -> Result<File> {
        let log = &self.0.log;
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))
    }

    /// Starts it and waits until it says that it is ready.
    pub fn start(&self) -> Result<()> {
        ensure!(!self.running(), "agent {} runs already", self.node());
        let process = Process::spawn(&mut self.command()?, &format!("agent {}", self.node()))?;
        *self.process() = Some(process);
        self.wait_until_ready()
    }

    /// Waits until `/healthz/ready` says 200; fails at once when the process ends.
    pub fn wait_until_ready(&self) -> Result<()> {
        let outcome = wait_until("the agent to be ready", LIMIT, || match self.exit_status() {
            Some(status) => Some(Err(format!("it ended: {status}"))),
            None => self.ready().then_some(Ok(())),
        });
        let failure = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(ended)) => ended,
            Err(waited) => waited.to_string(),
        };
        bail!(
            "agent {} is not ready: {failure}; the end of its log:\n{}",
            self.node(),
            self.log_tail()
        );
    }

    /// Starts it, and leaves waiting to the caller.
    pub fn spawn(&self) -> Result<()> {
        let process = Process::spawn(&mut self.command()?, &format!("agent {}", self.node()))?;
        *self.process() = Some(process);
        Ok(())
    }

    /// Waits until it is the agent that answers on the node's ports, and says that it is ready: another one may have
    /// them before it.
    pub fn wait_until_in_charge(&self) -> Result<()> {
        let pid = u64::from(self.pid().context("the agent was not started")?);
        wait_until("the agent to be in charge", LIMIT, || {
            let in_charge = self
                .status()
                .is_ok_and(|status| status["pid"] == pid && status["ready"] == true);
            in_charge
                .then_some(Ok(()))
                .or_else(|| self.exit_status().map(Err))
        })
        .map_err(|error| format!("{error}"))
        .and_then(|outcome| outcome.map_err(|ended| format!("it ended: {ended}")))
        .map_err(|error| {
            anyhow::anyhow!(
                "agent {}: {error}; the end of its log:\n{}",
                self.node(),
                self.log_tail()
            )
        })
    }

    /// Whether it says right now that it is ready.
    pub fn ready(&self) -> bool {
        self.request("GET", READY_PORT, "/healthz/ready")
            .is_ok_and(|response| response.status == 200)
    }

    /// Its process id, if it was started and not ended by us.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::id)
    }

    /// Whether its process lives.
    pub fn running(&self) -> bool {
        self.process()
            .as_mut()
            .is_some_and(|process| process.exited().is_none())
    }

    fn exit_status(&self) -> Option<String> {
        self.process()
            .as_mut()
            .and_then(Process::exited)
            .map(|status| status.to_string())
    }

    /// SIGKILL: it cleans up nothing.
    pub fn kill(&self) -> Result<()> {
        let mut process = self
            .process()
            .take()
            .with_context(|| format!("agent {} does not run", self.node()))?;
        process.kill().map(drop)
    }

    /// SIGTERM, and waits for it to end by itself; having to kill it is a failure.
    pub fn stop(&self) -> Result<()> {
        let mut process = self
            .process()
            .take()
            .with_context(|| format!("agent {} does not run", self.node()))?;
        let by_itself = process.terminate(STOP_LIMIT)?;
        ensure!(
            by_itself,
            "agent {} did not end within {STOP_LIMIT:?} of SIGTERM",
            self.node()
        );
        Ok(())
    }

    /// Any other signal, such as SIGSTOP.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let mut process = self.process();
        let process = process
            .as_mut()
            .with_context(|| format!("agent {} does not run", self.node()))?;
        process.signal(signal).context("signal the agent")
    }

    /// Stops it where it runs, and starts it again with the same arguments and the same log.
    pub fn restart(&self) -> Result<()> {
        if self.running() {
            self.stop()?;
        }
        self.start()
    }

    /// Ends it in any case, for the world's end.
    pub(crate) fn end(&self) {
        drop(self.process().take());
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.0.log).unwrap_or_default()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits until some line of the log satisfies `wanted`.
    pub fn wait_for_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let found = || self.log().lines().find(|line| wanted(line)).map(str::to_owned);
        wait_until(what, LIMIT, found).with_context(|| format!("the end of the log:\n{}", self.log_tail()))
    }

    /// The access lines it has written, oldest first.
    pub fn access_lines(&self) -> Vec<AccessLine> {
        access::parse(&self.log())
    }

    /// Waits for an access line that satisfies `wanted`.
    pub fn wait_for_access(&self, what: &str, wanted: impl Fn(&AccessLine) -> bool) -> Result<AccessLine> {
        let found = || self.access_lines().into_iter().find(|line| wanted(line));
        wait_until(&format!("an access line: {what}"), LIMIT, found).with_context(|| {
            let seen: String = self
                .access_lines()
                .iter()
                .map(|line| format!("{line}\n"))
                .collect();
            format!("agent {} wrote these access lines:\n{seen}", self.node())
        })
    }

    /// What it counts.
    pub fn metrics(&self) -> Result<Samples> {
        Samples::parse(&self.body(METRICS_PORT, "/metrics")?)
    }

    /// `weft status -o json`, from the admin port.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.body(ADMIN_PORT, "/status")?).context("the status is not JSON")
    }

    /// The part of the status that tells which mesh is in force.
    pub(crate) fn mesh_status(&self) -> Result<MeshStatus> {
        let status = self
            .status()
            .with_context(|| format!("ask agent {} which mesh it has", self.node()))?;
        let mesh = status.get("mesh").context("the status has no mesh")?;
        let revision = mesh
            .get("revision")
            .and_then(Value::as_u64)
            .context("the mesh has no revision")?;
        let last_error = mesh.get("lastError").and_then(Value::as_str).map(str::to_owned);
        Ok(MeshStatus { revision, last_error })
    }

    /// Waits until it has taken a mesh after `before` and is ready again; fails at once when it rejects one.
    pub(crate) fn wait_for_mesh(&self, before: &MeshStatus) -> Result<()> {
        let taken = || {
            let now = self.mesh_status().ok()?;
            let rejected = now
                .last_error
                .filter(|error| before.last_error.as_ref() != Some(error));
            let taken = now.revision > before.revision && self.ready();
            rejected.map(Err).or(taken.then_some(Ok(())))
        };
        match wait_until("the mesh to be taken", LIMIT, taken) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(rejected)) => bail!("agent {} rejects the mesh: {rejected}", self.node()),
            Err(waited) => bail!(
                "agent {}: {waited}; the end of its log:\n{}",
                self.node(),
                self.log_tail()
            ),
        }
    }

    /// A request to one of its own ports, on localhost inside the node's namespace.
    pub fn request(&self, method: &str, port: u16, path: &str) -> Result<Response> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = self
            .netns()
            .connect(addr, LIMIT)
            .with_context(|| format!("connect to {addr}"))?;
        exchange(stream, method, path).with_context(|| format!("{method} {path} on port {port}"))
    }

    fn body(&self, port: u16, path: &str) -> Result<String> {
        let response = self.request("GET", port, path)?;
        ensure!(
            response.status == 200,
            "{path}: status {}: {}",
            response.status,
            response.body
        );
        Ok(response.body)
    }

    fn netns(&self) -> &Netns {
        &self.0.place.netns
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.0.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agent {} ({:?})", self.node(), self.pid())
    }
}

/// A node's first agent is `agent`, one beside it `agent-2`.
fn cgroup_of(node: &Node, serial: u32) -> PathBuf {
    node.cgroup_root().join(format!("agent{}", suffix(serial)))
}

fn suffix(serial: u32) -> String {
    if serial == 1 {
        String::new()
    } else {
        format!("-{serial}")
    }
}
