//! Two agents of the image, one for each node of a test world: containers as the chart's DaemonSet has them (root with four
//! capabilities, the runtime's usual seccomp profile, a network of their own, the node's processes, cgroup2 and bpffs). What must
//! hold: they get ready, capture their pods and carry what those say; `weft status` inside answers; they end when they are told
//! to, and `weft release` gives everything back. The mesh is a file's: there is no cluster here.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use weft_tests::{LIMIT, Nginx, Node, Pod, PodSpec, World, curl, machine, wait_until};

use super::{
    archive,
    runtime::{Container, Runtime},
};
use crate::test::step;

/// What the DaemonSet of the chart adds (`weft.nodeContainer`).
const CAPABILITIES: [&str; 4] = ["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"];
/// What containerd gives where nothing is said, all of which the chart drops.
const USUAL: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// The address of the service, and what it answers.
const WEB: &str = "10.96.0.10";
const PAGE: &str = "a page that two containers have carried";

/// Starts them, sends a request, and ends them.
///
/// # Errors
/// Something of that does not work.
pub(super) fn check(runtime: &Runtime, image: &archive::Image<'_>) -> Result<()> {
    step("two agents of the image, and two pods");
    // ctr cannot say who runs a container; the kubelet can, and says root.
    let name = format!("{}-as-root", image.name);
    let image = archive::Image {
        name: &name,
        user: "0:0",
        ..*image
    };
    let mut world = World::two_nodes()?;
    let cgroups = [cgroup(world.node("a"))?, cgroup(world.node("b"))?];
    let outcome = play(runtime, &image, &mut world);
    forget(&cgroups);
    outcome
}

fn play(runtime: &Runtime, image: &archive::Image<'_>, world: &mut World) -> Result<()> {
    let client = world.pod("a", PodSpec::new("client"))?;
    let web = world.pod("b", PodSpec::new("web").label("app", "web"))?;
    world.mesh_mut().service("web", &[WEB], 80, 8080, "web");
    world.apply()?;
    let archive = world.dir().join("as-root.tar");
    archive::write(&archive, image)?;
    runtime.import(&archive)?;
    let _nginx = Nginx::start(world, &web, 8080, PAGE)?;
    let agents = [
        start(runtime, image.name, world, world.node("a"), &client)?,
        start(runtime, image.name, world, world.node("b"), &web)?,
    ];
    let page = curl(&client, &[&format!("http://{WEB}/")])?;
    ensure!(
        page.body == PAGE,
        "a request through both agents got {page:?}; their logs:\n{}",
        agents.iter().map(Container::log).collect::<String>()
    );
    println!("✓ a request goes from pod to pod through both");
    for agent in &agents {
        carried(agent, &client, &web)?;
    }
    println!("✓ by mutual TLS, as both of them say");
    for agent in agents {
        let said = agent.end()?;
        ensure!(
            said.code == Some(0),
            "an agent ended with {:?}: {}",
            said.code,
            said.text
        );
    }
    println!("✓ they end when they are told to");
    for node in ["a", "b"] {
        release(runtime, image.name, world, world.node(node))?;
    }
    println!("✓ release gives the pods back");
    Ok(())
}

/// A node's agent, ready, with its pod captured.
fn start<'a>(
    runtime: &'a Runtime,
    image: &str,
    world: &World,
    node: &Node,
    pod: &Pod,
) -> Result<Container<'a>> {
    let name = node.node_name();
    let ca = world.ca()?;
    let pairs = [
        ("--node", Path::new(name)),
        ("--mesh-file", &world.mesh_file(name)),
        ("--ca-cert", &ca.join("root.pem")),
        ("--ca-key", &ca.join("root-key.pem")),
        ("--cgroup-root", node.cgroup_root()),
        ("--pods-cgroup", &node.pods_cgroup()),
        ("--node-netns", &node.netns().path()),
        ("--pin-dir", node.pin_dir()),
    ];
    let pairs = pairs
        .iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), value.display().to_string()]);
    let args: Vec<_> = ["agent".to_owned()].into_iter().chain(pairs).collect();
    let mut options = options(world);
    // The programs of its node must see an agent, as they do where the kubelet starts it.
    let cgroup = cgroup(node)?.join("agent").display().to_string();
    options.extend(["--cgroup".to_owned(), cgroup]);
    let mut agent = runtime.spawn(image, &format!("agent-{name}"), &options, &args)?;
    let (mut looks, mut last) = (0, String::new());
    let answered = wait_until("it to have captured its pod", LIMIT, || {
        looks += 1;
        let said = agent.exec(&format!("status-{looks}"), &["status"]);
        last = said
            .as_ref()
            .map_or_else(ToString::to_string, |said| said.text.clone());
        let done = said.is_ok_and(|said| said.code == Some(0)) && last.contains(pod.name());
        (done || !agent.runs()).then_some(done)
    });
    ensure!(
        answered.is_ok_and(|done| done),
        "the agent of node {name} is not ready; `weft status` inside says:\n{last}\nits log:\n{}",
        agent.log()
    );
    println!(
        "✓ the agent of node {name} is ready, and `weft status` inside says that {} is captured",
        pod.name()
    );
    Ok(agent)
}

/// As the chart says it to the kubelet, for ctr.
fn options(world: &World) -> Vec<String> {
    let mut options = vec!["--seccomp".to_owned()];
    let more = |flag: &str, values: &[&str]| -> Vec<String> {
        values
            .iter()
            .flat_map(|value| [flag.to_owned(), (*value).to_owned()])
            .collect()
    };
    options.extend(more("--cap-drop", &USUAL));
    options.extend(more("--cap-add", &CAPABILITIES));
    // hostPID. By this process: not every machine lets root look at process 1.
    let processes = format!("pid:/proc/{}/ns/pid", std::process::id());
    options.extend(more("--with-ns", &[&processes]));
    let files = world.dir().display().to_string();
    let mounts = [
        ("/sys/fs/cgroup", "ro"),
        ("/sys/fs/bpf", "rw"),
        // In place of what finds pods in a cluster: the mesh file, and the namespaces that it names.
        ("/run/netns", "ro"),
        (files.as_str(), "ro"),
    ];
    for (path, mode) in mounts {
        let mount = format!("type=bind,src={path},dst={path},options=rbind:{mode}");
        options.extend(more("--mount", &[&mount]));
    }
    options
}

/// A node's cgroup, as runc is told it: from the root of cgroups.
fn cgroup(node: &Node) -> Result<PathBuf> {
    let root = machine::cgroup2_root()?;
    Ok(Path::new("/").join(node.cgroup_root().strip_prefix(root)?))
}

/// Where a machine has cgroups of version 1 as well, runc makes the same folders in all of them and leaves them there.
fn forget(cgroups: &[PathBuf]) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    for hierarchy in hierarchies {
        for cgroup in cgroups {
            for folder in cgroup.ancestors().filter(|folder| folder.parent().is_some()) {
                let _ = fs::remove_dir(hierarchy.path().join(folder.strip_prefix("/").unwrap_or(folder)));
            }
        }
    }
}

/// An agent's log has the request, with both identities.
fn carried(agent: &Container<'_>, client: &Pod, web: &Pod) -> Result<()> {
    let identities = [client.identity(), web.identity()];
    wait_until("the request's line in an agent's log", LIMIT, || {
        let log = agent.log();
        log.lines()
            .any(|line| identities.iter().all(|identity| line.contains(identity)))
    })
    .with_context(|| agent.log())
}

/// What the chart's uninstall hook does on a node.
fn release(runtime: &Runtime, image: &str, world: &World, node: &Node) -> Result<()> {
    let pins = node.pin_dir();
    let args = [
        "release".to_owned(),
        "--pin-dir".to_owned(),
        pins.display().to_string(),
    ];
    let said = runtime.run(image, &options(world), &args)?;
    ensure!(
        said.code == Some(0) && !pins.exists(),
        "release on node {} ended with {:?}, said {:?}, and {} is {}",
        node.node_name(),
        said.code,
        said.text,
        pins.display(),
        if pins.exists() { "still there" } else { "gone" }
    );
    Ok(())
}
