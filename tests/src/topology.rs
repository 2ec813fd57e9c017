//! The world: two nodes joined by a link, and pods on them, routed as a cluster's network routes them.
//!
//! ```text
//!   pod ──veth── node a ──link── node b ──veth── pod
//!        10.244.1.x   192.168.77.1/2     10.244.2.x
//!      fd00:244:1::x   fd00:77::1/2     fd00:244:2::x
//! ```
//!
//! A pod has a /32 and a /128 and a default route by way of its node; the node has a route to each of its pods, a route
//! to the other node's pods, and forwards. Every world has namespaces of its own, so equal addresses do not clash.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    thread,
};

use anyhow::{Context, Result, ensure};

use crate::{
    agent::{Agent, AgentOptions},
    capture::Capture,
    cgroup::{self, Cgroup},
    host::Host,
    machine,
    mesh::{self, MeshSpec},
    netns::{self, Netns},
    network,
    pod::{Membership, Pod, PodSpec},
    process::{Place, Process},
    run::RunId,
    wait::{LIMIT, wait_until},
};

/// The two nodes.
pub const NODES: [&str; 2] = ["a", "b"];

/// The last part of the first pod's address on each node.
const FIRST_POD: u8 = 10;

/// One node: a network namespace, and a cgroup under which its agent and pods are. As a [`Host`] it is a process of the
/// node itself that belongs to no pod, such as the kubelet.
#[derive(Debug)]
pub struct Node {
    name: &'static str,
    /// 1 for a, 2 for b; the part of every address that tells the nodes apart.
    number: u8,
    host: Host,
    netns: Arc<Netns>,
    cgroup: Cgroup,
    pin_dir: PathBuf,
    pods: u8,
}

impl Node {
    /// The node's cgroup, under which an agent attaches.
    pub fn cgroup_root(&self) -> &Path {
        self.cgroup.path()
    }

    /// The cgroup under which all of its pods are.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.path().join("pods")
    }

    /// Where its agent pins programs and maps.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// What `weft agent --node` is given.
    pub fn node_name(&self) -> &'static str {
        self.name
    }
}

impl Deref for Node {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Two nodes, their pods, and everything that a test runs on them. Dropping it removes all of it.
#[derive(Debug)]
pub struct World {
    run: RunId,
    /// The world's own cgroup, parent of the nodes'.
    cgroup: PathBuf,
    tools: Arc<Cgroup>,
    nodes: Vec<Node>,
    pods: Vec<(Pod, Membership)>,
    agents: Vec<Agent>,
    mesh: MeshSpec,
    ca: OnceLock<PathBuf>,
    /// The processes that lend sockets.
    pauses: Vec<Process>,
    keep: bool,
}

impl World {
    /// Nodes `a` and `b`, with no pods yet.
    pub fn two_nodes() -> Result<Self> {
        machine::require_root()?;
        machine::raise_file_limit();
        let cgroup_root = machine::cgroup2_root()?;
        let bpffs = machine::mount_bpffs()?;
        let run = RunId::claim()?;
        let cgroup = cgroup_root.join(run.to_string());
        let leftovers = Leftovers {
            run: run.clone(),
            cgroup: cgroup.clone(),
            armed: true,
        };
        let world = Self::build(run, cgroup, &bpffs)?;
        leftovers.defuse();
        Ok(world)
    }

    fn build(run: RunId, cgroup: PathBuf, bpffs: &Path) -> Result<Self> {
        Cgroup::create(cgroup.clone())?;
        let tools = Arc::new(Cgroup::create(cgroup.join("tools"))?);
        let namespaces = Netns::create(&NODES.map(|node| run.netns_name(node)))?;
        network::connect_nodes(&namespaces)?;
        let mut world = Self {
            run,
            cgroup,
            tools,
            nodes: Vec::new(),
            pods: Vec::new(),
            agents: Vec::new(),
            mesh: MeshSpec::default(),
            ca: OnceLock::new(),
            pauses: Vec::new(),
            keep: false,
        };
        for (number, netns) in (1..).zip(namespaces) {
            world.add_node(number, netns, bpffs)?;
        }
        Ok(world)
    }

    fn add_node(&mut self, number: u8, netns: Netns, bpffs: &Path) -> Result<()> {
        let name = NODES[usize::from(number) - 1];
        let cgroup = Cgroup::create(self.cgroup.join(format!("node-{name}")))?;
        let netns = Arc::new(netns);
        let place = Place {
            netns: Arc::clone(&netns),
            cgroup: Arc::new(Cgroup::create(cgroup.path().join("host"))?),
            uid: 0,
        };
        Cgroup::create(cgroup.path().join("pods"))?;
        let (host, pause) = Host::start(
            &format!("node-{name}"),
            network::node_v4(number),
            network::node_v6(number),
            place,
        )?;
        let pin_dir = self.run.pin_dir(bpffs, name);
        self.pauses.push(pause);
        self.nodes.push(Node {
            name,
            number,
            host,
            netns,
            cgroup,
            pin_dir,
            pods: 0,
        });
        Ok(())
    }

    /// The node of that name. Panics where there is none: a test's own mistake.
    pub fn node(&self, name: &str) -> &Node {
        let node = self.nodes.iter().find(|node| node.name == name);
        node.unwrap_or_else(|| panic!("no node {name:?} in this world: it has {NODES:?}"))
    }

    /// Makes a pod on a node and starts it. The mesh knows it from the next [`World::apply`] on.
    pub fn pod(&mut self, node: &str, spec: PodSpec) -> Result<Pod> {
        let index = NODES
            .iter()
            .position(|name| *name == node)
            .with_context(|| format!("no node {node:?}"))?;
        let node = &mut self.nodes[index];
        let usual = format!("pod-{}-{}", spec.namespace, spec.name);
        let cgroup = node.pods_cgroup().join(spec.cgroup.as_ref().unwrap_or(&usual));
        if let Some(parent) = cgroup.parent() {
            fs::create_dir_all(parent).with_context(|| format!("create cgroup {}", parent.display()))?;
        }
        let cgroup = Cgroup::create(cgroup)?;
        let (netns, v4, v6) = if spec.host_network {
            (Arc::clone(&node.netns), node.host.v4(), node.host.v6())
        } else {
            let last = spec.address.unwrap_or(FIRST_POD + node.pods);
            node.pods += u8::from(spec.address.is_none());
            let name = self
                .run
                .netns_name(&format!("{}-{}-{}", node.name, spec.namespace, spec.name));
            let (v4, v6) = (
                network::pod_v4(node.number, last),
                network::pod_v6(node.number, last),
            );
            (
                Arc::new(network::connect_pod(&node.netns, node.number, last, &name)?),
                v4,
                v6,
            )
        };
        let place = Place {
            netns,
            cgroup: Arc::new(cgroup),
            uid: spec.uid,
        };
        let (host, pause) = Host::start(&spec.name, v4, v6, place)?;
        self.pauses.push(pause);
        let pod = Pod {
            host: Arc::new(host),
            spec: Arc::new(spec),
            node: node.name.into(),
        };
        self.pods.push((pod.clone(), pod.spec.membership));
        Ok(pod)
    }

    /// Removes a pod as a cluster does: its processes, its network, its entry in the mesh (at the next
    /// [`World::apply`]).
    pub fn remove_pod(&mut self, pod: &Pod) -> Result<()> {
        self.pods
            .retain(|(known, _)| !Arc::ptr_eq(&known.host, &pod.host));
        cgroup::remove_tree(&pod.cgroup())?;
        if pod.spec.host_network {
            return Ok(());
        }
        // As a CNI plug-in does: whoever still holds the namespace has no network any more, and the name is free.
        let node = self.node(&pod.node);
        node.netns
            .ip(&format!("link del pod{}\n", pod.v4().octets()[3]))?;
        netns::delete(pod.netns().name())
    }

    /// Enrols a pod, unenrols it, or makes the mesh forget it; at the next [`World::apply`].
    pub fn set_membership(&mut self, pod: &Pod, membership: Membership) {
        let known = self
            .pods
            .iter_mut()
            .filter(|(known, _)| Arc::ptr_eq(&known.host, &pod.host));
        known.for_each(|(_, current)| *current = membership);
    }

    /// The mesh besides the pods: services, policies, modes. Written by [`World::apply`].
    pub fn mesh_mut(&mut self) -> &mut MeshSpec {
        &mut self.mesh
    }

    /// The mesh file's text as it would be written now.
    pub fn mesh_text(&self) -> String {
        self.mesh.text(
            self.pods
                .iter()
                .filter_map(|(pod, membership)| pod.entry(*membership))
                .collect(),
        )
    }

    /// Writes the mesh for both nodes, and waits until every running agent has taken it and captured its pods.
    pub fn apply(&self) -> Result<()> {
        let text = self.mesh_text();
        let mut taking = Vec::new();
        for node in &self.nodes {
            let file = self.mesh_file(node.name);
            if fs::read_to_string(&file).is_ok_and(|current| current == text) {
                continue;
            }
            let running = self
                .agents
                .iter()
                .filter(|agent| agent.node() == node.name && agent.running());
            for agent in running {
                taking.push((agent, agent.mesh_status()?));
            }
            mesh::replace(&file, &text)?;
        }
        taking
            .iter()
            .try_for_each(|(agent, before)| agent.wait_for_mesh(before))
    }

    /// Writes any text as one agent's mesh file, and waits for nothing: a bad one, or one that differs from the other
    /// node's.
    pub fn apply_text(&self, node: &str, text: &str) -> Result<()> {
        mesh::replace(&self.mesh_file(node), text)
    }

    /// Where a node's agent reads its mesh.
    pub fn mesh_file(&self, node: &str) -> PathBuf {
        self.dir().join(format!("mesh-{node}.yaml"))
    }

    /// Where a node's container runtime would offer NRI; nobody does unless a test starts one.
    pub fn nri_socket(&self, node: &str) -> PathBuf {
        self.dir().join(format!("nri-{node}.sock"))
    }

    /// The directory of this world's files: mesh, certificates, logs, whatever a test adds.
    pub fn dir(&self) -> PathBuf {
        self.run.temp_dir()
    }

    /// The directory that holds the root certificate and key (`root.pem`, `root-key.pem`), made when first asked for.
    pub fn ca(&self) -> Result<&Path> {
        if self.ca.get().is_none() {
            let dir = self.dir().join("ca");
            make_ca(&dir, &self.mesh.trust_domain)?;
            let _ = self.ca.set(dir);
        }
        self.ca
            .get()
            .map(PathBuf::as_path)
            .context("the certificate authority was just made")
    }

    /// Starts a node's agent and waits until it is ready. The mesh is written first, if it never was.
    pub fn start_agent(&mut self, node: &str) -> Result<Agent> {
        self.start_agent_with(node, AgentOptions::default())
    }

    /// The same with other flags or environment.
    pub fn start_agent_with(&mut self, node: &str, options: AgentOptions) -> Result<Agent> {
        if !self.mesh_file(node).exists() {
            self.apply()?;
        }
        let agent = Agent::prepare(self, self.node(node), options)?;
        self.agents.push(agent.clone());
        agent.start()?;
        Ok(agent)
    }

    /// Starts a waypoint in a pod, and waits until it is ready. The mesh is written first, if it never was.
    pub fn start_waypoint(&mut self, pod: &Pod, options: AgentOptions) -> Result<Agent> {
        if !self.mesh_file(pod.node()).exists() {
            self.apply()?;
        }
        let waypoint = Agent::prepare_waypoint(self, pod, options)?;
        self.agents.push(waypoint.clone());
        waypoint.start()?;
        Ok(waypoint)
    }

    /// Starts an agent that is to replace the one that runs, and waits until it has.
    pub fn take_over(&mut self, node: &str, options: AgentOptions) -> Result<Agent> {
        let agent = self.prepare_takeover(node, options)?;
        agent.spawn()?;
        agent.wait_until_in_charge()?;
        Ok(agent)
    }

    /// The same, not started yet.
    pub fn prepare_takeover(&mut self, node: &str, options: AgentOptions) -> Result<Agent> {
        let agent = Agent::prepare(self, self.node(node), options.arg("--takeover"))?;
        self.agents.push(agent.clone());
        Ok(agent)
    }

    /// Starts both agents.
    pub fn start_agents(&mut self) -> Result<[Agent; 2]> {
        let [a, b] = NODES;
        Ok([self.start_agent(a)?, self.start_agent(b)?])
    }

    /// Waits until the status of every running agent satisfies `holds`.
    pub fn wait_for_status(&self, what: &str, holds: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        self.agents
            .iter()
            .filter(|agent| agent.running())
            .try_for_each(|agent| {
                let what = format!("{what} in the status of agent {}", agent.node());
                wait_until(&what, LIMIT, || agent.status().is_ok_and(|status| holds(&status)))
            })
    }

    /// Records every packet between the nodes from now on.
    pub fn capture_link(&self) -> Result<Capture> {
        let tools = Place {
            netns: Arc::clone(&self.nodes[0].netns),
            cgroup: Arc::clone(&self.tools),
            uid: 0,
        };
        Capture::start(tools, self.nodes[1].host.addr(9), &self.dir())
    }

    /// Keeps the files of this world when it ends, as a failed test does.
    pub fn keep_files(&mut self) {
        self.keep = true;
    }

    /// The last lines of every agent's log, for a failure's report.
    pub fn log_tails(&self) -> String {
        self.agents
            .iter()
            .map(|agent| format!("--- agent {}\n{}\n", agent.node(), agent.log_tail()))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for agent in &self.agents {
            agent.end();
        }
        self.pauses.clear();
        if self.keep || thread::panicking() {
            let (kept, tails) = (self.run.kept_dir(), self.log_tails());
            match fs::rename(self.dir(), &kept) {
                Ok(()) => eprintln!("{tails}the files of this world are kept in {}", kept.display()),
                Err(err) => eprintln!("cannot keep {}: {err}", self.dir().display()),
            }
        }
        remove(&self.run, &self.cgroup);
    }
}

/// Runs a test in a world of its own; when it fails, shows the agents' last words and keeps the files.
pub fn with_world(test: impl FnOnce(&mut World) -> Result<()>) {
    let mut world = World::two_nodes().unwrap_or_else(|err| panic!("make a world: {err:#}"));
    if let Err(err) = test(&mut world) {
        panic!("{err:#}");
    }
}

/// What a world leaves if making it fails halfway.
struct Leftovers {
    run: RunId,
    cgroup: PathBuf,
    armed: bool,
}

impl Leftovers {
    fn defuse(mut self) {
        self.armed = false;
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if self.armed {
            remove(&self.run, &self.cgroup);
        }
    }
}

/// Removes everything that carries the run's name, and says what it could not remove.
fn remove(run: &RunId, cgroup: &Path) {
    for outcome in crate::sweep::remove_run(run, cgroup) {
        if let Err(err) = outcome {
            eprintln!("clean up {run}: {err:#}");
        }
    }
}

/// `weft ca new`: a root certificate and key of this world alone.
fn make_ca(dir: &Path, trust_domain: &str) -> Result<()> {
    let mut command = Command::new(machine::binary("weft", "WEFT_BIN")?);
    command
        .args(["ca", "new", "--trust-domain", trust_domain, "--out"])
        .arg(dir);
    let output = command.output().context("run weft ca new")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "weft ca new: {}: {}",
        output.status,
        complaint.trim()
    );
    Ok(())
}
