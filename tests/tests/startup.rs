//! An agent that cannot start says why and how to mend it, in one line, and leaves nothing behind; and what it needs of
//! the machine is no more than it says.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use weft_tests::{
    Agent, LIMIT, PodSpec, Server, World,
    agent::{METRICS_PORT, READY_PORT},
    app::{echo, round_trip},
    http::exchange,
    machine,
    process::Process,
    wait_until, with_world,
};

const MARKER: &[u8] = b"WEFT-STARTUP-MARKER";

/// `weft agent` as it would be right on node a: flags by name, to be spoilt one at a time.
struct Start {
    wrapper: Vec<String>,
    flags: Vec<(&'static str, String)>,
}

impl Start {
    fn right(world: &World) -> Result<Self> {
        world.apply()?;
        let (node, ca) = (world.node("a"), world.ca()?);
        let text = |path: &Path| path.display().to_string();
        Ok(Self {
            wrapper: Vec::new(),
            flags: vec![
                ("--node", "a".to_owned()),
                ("--mesh-file", text(&world.mesh_file("a"))),
                ("--ca-cert", text(&ca.join("root.pem"))),
                ("--ca-key", text(&ca.join("root-key.pem"))),
                ("--cgroup-root", text(node.cgroup_root())),
                ("--pin-dir", text(node.pin_dir())),
            ],
        })
    }

    fn with(mut self, flag: &'static str, value: impl Into<String>) -> Self {
        self.flags.retain(|(name, _)| *name != flag);
        self.flags.push((flag, value.into()));
        self
    }

    fn without(mut self, flag: &'static str) -> Self {
        self.flags.retain(|(name, _)| *name != flag);
        self
    }

    /// Started by another program, such as setpriv, which takes away what it needs.
    fn by(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&arg| arg.to_owned()).collect();
        self
    }

    fn command(&self, world: &World, log: &Path) -> Result<Command> {
        let binary = machine::binary("weft", "WEFT_BIN")?.display().to_string();
        let words: Vec<_> = self
            .wrapper
            .iter()
            .cloned()
            .chain([binary, "agent".to_owned()])
            .collect();
        let [program, args @ ..] = &words[..] else {
            unreachable!("there is a binary")
        };
        let mut command = world.node("a").command(program);
        for name in ["RUST_LOG", "LOG_FORMAT", "WEFT_WORKERS", "NODE_NAME"] {
            command.env_remove(name);
        }
        command.args(args).args(
            self.flags
                .iter()
                .flat_map(|(name, value)| [*name, value.as_str()]),
        );
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// Must end by itself: its exit code and everything it said.
    fn fail(&self, world: &World) -> Result<(i32, String)> {
        let log = world.dir().join("start.log");
        let mut process = Process::spawn(&mut self.command(world, &log)?, "an agent that cannot start")?;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let status = wait_until("the agent to give up", LIMIT, || process.exited())
            .with_context(|| format!("{:?} {:?} said: {}", self.wrapper, self.flags, said()))?;
        Ok((status.code().unwrap_or(-1), said()))
    }

    /// Fails with code 1, says all of `expect` in one line, and has attached and pinned nothing.
    fn ensure_fails(&self, world: &World, expect: &[&str]) -> Result<()> {
        let (code, said) = self.fail(world)?;
        ensure!(code == 1, "exit code {code}: {said}");
        let line = said.trim_end();
        ensure!(
            line.starts_with("weft: ") && line.lines().count() == 1,
            "one line: {said}"
        );
        let missing: Vec<_> = expect.iter().filter(|part| !line.contains(**part)).collect();
        ensure!(missing.is_empty(), "{missing:?} not in: {line}");
        let pins = fs::read_dir(world.node("a").pin_dir()).map_or(0, Iterator::count);
        ensure!(pins == 0, "{pins} pins are left after: {line}");
        Ok(())
    }
}

/// Only what the help text says.
const NEEDED: &str = "--bounding-set=-all,+bpf,+net_admin,+sys_admin,+sys_ptrace";

#[test]
fn a_missing_capability_is_named_with_its_mend() {
    with_world(|world| {
        world.pod("a", PodSpec::new("client"))?;
        for (capability, flag) in [
            ("CAP_BPF", "--bounding-set=-bpf"),
            ("CAP_NET_ADMIN", "--bounding-set=-net_admin"),
            ("CAP_SYS_ADMIN", "--bounding-set=-sys_admin"),
            ("CAP_SYS_PTRACE", "--bounding-set=-sys_ptrace"),
        ] {
            let start = Start::right(world)?.by(&["setpriv", flag]);
            start.ensure_fails(
                world,
                &[
                    capability,
                    "is missing",
                    "run as root",
                    "securityContext.capabilities.add",
                ],
            )?;
        }
        let nobody =
            Start::right(world)?.by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
        nobody.ensure_fails(world, &["CAP_", "is missing", "run as root"])
    });
}

#[test]
fn the_capabilities_of_the_help_text_suffice() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        // Pods of other users are no different.
        world.pod("a", PodSpec::new("unprivileged").uid(1234))?;
        let web = world.pod("b", PodSpec::new("web").service_account("web"))?;
        world.apply()?;
        world.start_agent("b")?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let log = world.dir().join("start.log");
        // Without CAP_SYS_RESOURCE, and without locked memory to spare.
        let start = Start::right(world)?.by(&["prlimit", "--memlock=65536:65536", "setpriv", NEEDED]);
        let _agent = Process::spawn(&mut start.command(world, &log)?, "an agent of few rights")?;
        let netns = world.node("a").netns();
        wait_until("the agent to be ready", LIMIT, || {
            let stream = netns.connect(([127, 0, 0, 1], READY_PORT).into(), LIMIT)?;
            let answer = exchange(stream, "GET", "/healthz/ready")?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
        .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        let mut stream = client.connect(web.addr(8080))?;
        round_trip(&mut stream, MARKER).with_context(|| fs::read_to_string(&log).unwrap_or_default())
    });
}

#[test]
fn a_wrong_cgroup_root_or_pin_dir_is_named_with_its_mend() {
    with_world(|world| {
        let stray = world.dir().join("pins");
        for path in [
            world.dir(),
            world.node("a").cgroup_root().join("nowhere"),
            PathBuf::from("/proc"),
        ] {
            let path = path.display().to_string();
            let start = Start::right(world)?.with("--cgroup-root", path.as_str());
            start.ensure_fails(
                world,
                &["--cgroup-root", &path, "not a folder of a cgroup2 file system"],
            )?;
        }
        for path in [world.dir(), stray.clone(), stray.join("deeper")] {
            let path = path.display().to_string();
            let start = Start::right(world)?.with("--pin-dir", path.as_str());
            start.ensure_fails(
                world,
                &["--pin-dir", &path, "not on bpffs", "mount -t bpf bpf /sys/fs/bpf"],
            )?;
        }
        ensure!(!stray.exists(), "{} was made", stray.display());
        let shared = Start::right(world)?.with("--pin-dir", "/sys/fs/bpf");
        shared.ensure_fails(world, &["--pin-dir", "/sys/fs/bpf", "is a mount point"])?;
        Ok(())
    });
}

#[test]
fn a_wrong_certificate_or_key_is_named_with_its_mend() {
    with_world(|world| {
        let ca = world.ca()?.to_owned();
        let (cert, key) = (ca.join("root.pem"), ca.join("root-key.pem"));
        let text = |path: &Path| path.display().to_string();
        let missing = text(&ca.join("none.pem"));
        let mend = "weft ca new";
        Start::right(world)?
            .with("--ca-cert", &missing)
            .ensure_fails(world, &[&missing, "cannot be read", mend])?;
        Start::right(world)?
            .with("--ca-key", &missing)
            .ensure_fails(world, &[&missing, "cannot be read", mend])?;

        let other = world.dir().join("other-ca");
        let made = Command::new(machine::binary("weft", "WEFT_BIN")?)
            .args(["ca", "new", "--out"])
            .arg(&other)
            .output()?;
        ensure!(made.status.success(), "{made:?}");
        let other_key = text(&other.join("root-key.pem"));
        let expect = [&other_key, &text(&cert), "is not that of the first certificate"];
        Start::right(world)?
            .with("--ca-key", &other_key)
            .ensure_fails(world, &expect)?;

        let swapped = Start::right(world)?
            .with("--ca-cert", text(&key))
            .with("--ca-key", text(&cert));
        swapped.ensure_fails(world, &[&text(&key), "cannot be used as a CA certificate"])?;
        let twice = Start::right(world)?.with("--ca-key", text(&cert));
        twice.ensure_fails(world, &[&text(&cert), "is not an unencrypted private key in PEM"])?;
        let directory = Start::right(world)?.with("--ca-cert", text(&ca));
        directory.ensure_fails(world, &[&text(&ca), "Is a directory"])?;
        Ok(())
    });
}

#[test]
fn a_port_in_use_and_a_second_agent_are_named_with_their_mend() {
    with_world(|world| {
        let taken = world.node("a").listen(METRICS_PORT)?;
        let expect = ["0.0.0.0:15020", "metrics", "in use", "ss -ltnp"];
        Start::right(world)?.ensure_fails(world, &expect)?;
        drop(taken);

        world.start_agent("a")?;
        let second = Start::right(world)?
            .with("--admin-address", "127.0.0.1:25000")
            .with("--metrics-address", "127.0.0.1:25020")
            .with("--ready-address", "127.0.0.1:25021");
        let (code, said) = second.fail(world)?;
        ensure!(
            code == 1 && said.contains("another weft agent (pid") && said.contains("--pin-dir"),
            "{code}: {said}"
        );
        Ok(())
    });
}

#[test]
fn a_node_name_that_the_mesh_does_not_know_is_a_warning() {
    with_world(|world| {
        world.pod("a", PodSpec::new("client"))?;
        world.apply()?;
        // The mesh gives `client` the node a; this agent is of node b, where nothing runs.
        let agent = world.start_agent("b")?;
        let warned = warning(&agent)?;
        ensure!(
            warned.contains("no workload of the mesh is on node b: is --node right?"),
            "{warned}"
        );
        ensure!(
            warned.contains("nodes a\""),
            "it names the nodes that there are: {warned}"
        );
        let status = agent.status()?;
        ensure!(
            status["ready"] == true && status["expectedPods"] == 0,
            "{status:#}"
        );

        // Nothing to warn of on a node that has pods.
        let a = world.start_agent("a")?;
        ensure!(!a.log().contains("is --node right?"), "{}", a.log_tail());
        Ok(())
    });
}

fn warning(agent: &Agent) -> Result<String> {
    agent.wait_for_log("a warning", |line| line.contains("WARN"))
}

#[test]
fn wrong_flags_end_with_code_2_and_say_which() {
    with_world(|world| {
        for (start, expect) in [
            (Start::right(world)?.with("--frobnicate", "yes"), "--frobnicate"),
            (Start::right(world)?.without("--mesh-file"), "--mesh-file <FILE>"),
            (Start::right(world)?.without("--node"), "--node <NODE>"),
            (Start::right(world)?.with("--workers", "0"), "0 is not in 1..=64"),
            (Start::right(world)?.with("--workers", "many"), "--workers"),
            (
                Start::right(world)?.with("--admin-address", "localhost"),
                "--admin-address",
            ),
            (
                Start::right(world)?.with("--log-format", "yaml"),
                "[possible values: text, json]",
            ),
            (
                Start::right(world)?.with("--log", "verbose"),
                "`verbose` is not a log filter",
            ),
        ] {
            let (code, said) = start.fail(world)?;
            ensure!(
                code == 2 && said.contains(expect),
                "{expect}: exit code {code}: {said}"
            );
        }
        Ok(())
    });
}
