//! `demo`: two nodes, real programs, and the evidence that the mesh does what it says. Each scene shows what was run,
//! what came back, and a tick or a cross; the last line is `N passed, N failed`, and the exit code agrees.
//!
//! ```text
//!   node a: curl, batch (pods of the mesh)      node b: web (nginx), queue (pods of the mesh)
//!           legacy (a pod outside the mesh)
//! ```

mod scenes;
mod waypoint;

use std::{fmt::Write as _, net::TcpStream, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::json;
use weft_tests::{Agent, Nginx, Pod, PodSpec, Server, World, app};

use crate::{
    build, preflight, setup,
    test::{Failed, Interrupt, step},
};

/// What nginx answers with, and what a capture of the link looks for.
const MARKER: &str = "weft-demo-plaintext-marker-c0ffee";
/// The service address of nginx.
const WEB: &str = "10.96.0.10";
/// The service address of the TCP server that speaks first.
const QUEUE: &str = "10.96.0.20";
/// What that server says.
const BANNER: &[u8] = b"220 queue ready\r\n";

/// Runs the demo; with `keep` it stays until Ctrl-C.
///
/// # Errors
/// A scene failed, or the stage could not be set.
pub(crate) fn run(keep: bool, install: bool) -> Result<()> {
    setup::run(setup::Options {
        install,
        tests: false,
        dev: false,
    })?;
    preflight::run()?;
    step("building weft and its eBPF programs");
    build::product(false)?;
    for gone in weft_tests::sweep()? {
        println!("swept {gone}, which a run that died had left");
    }
    let interrupt = Interrupt::listen()?;
    step("two nodes, two pods each, one pod outside the mesh");
    let mut stage = Stage::set()?;
    let mut show = Show::default();
    scenes::play(&mut stage, &mut show);
    waypoint::play(&mut stage, &mut show);
    if keep && !interrupt.came() {
        stage.invite();
        while !interrupt.came() {
            thread::sleep(Duration::from_millis(100));
        }
    }
    drop(stage);
    println!("\n{} passed, {} failed", show.passed, show.failed);
    if show.failed == 0 {
        Ok(())
    } else {
        Err(Failed.into())
    }
}

/// Everything that is on the stage.
struct Stage {
    curl: Pod,
    batch: Pod,
    web: Pod,
    legacy: Pod,
    nginx: Nginx,
    _queue_server: Server,
    agents: Option<[Agent; 2]>,
    /// A connection that goes from app to app.
    direct: Option<TcpStream>,
    // Last, so that everything else has ended when it is removed.
    world: World,
}

impl Stage {
    fn set() -> Result<Self> {
        let mut world = World::two_nodes()?;
        let curl = world.pod("a", PodSpec::new("curl").service_account("curl"))?;
        let batch = world.pod("a", PodSpec::new("batch").service_account("batch"))?;
        let legacy = world.pod("a", PodSpec::new("legacy").outside())?;
        let web = world.pod(
            "b",
            PodSpec::new("web").service_account("web").label("app", "web"),
        )?;
        let queue = world.pod(
            "b",
            PodSpec::new("queue")
                .service_account("queue")
                .label("app", "queue"),
        )?;
        world.mesh_mut().service("web", &[WEB], 80, 8080, "web");
        world.mesh_mut().service("queue", &[QUEUE], 25, 2525, "queue");
        let nginx = Nginx::start(&world, &web, 8080, MARKER)?;
        let queue_server = Server::start(queue.listen(2525)?, app::banner(BANNER))?;
        println!(
            "   node a: curl {}, batch {}, legacy {} (outside)",
            curl.v4(),
            batch.v4(),
            legacy.v4()
        );
        println!(
            "   node b: web (nginx) {}, queue (TCP, speaks first) {}",
            web.v4(),
            queue.v4()
        );
        println!("   services: web {WEB}:80, queue {QUEUE}:25");
        Ok(Self {
            curl,
            batch,
            web,
            legacy,
            nginx,
            _queue_server: queue_server,
            agents: None,
            direct: None,
            world,
        })
    }

    fn agents(&self) -> Result<&[Agent; 2]> {
        self.agents.as_ref().context("the agents did not start")
    }

    /// Puts a policy in force that lets only `curl` reach nginx.
    fn allow_only_curl(&mut self) -> Result<()> {
        let principal = self.curl.identity().replace("spiffe://", "");
        let rules = json!([{ "from": [{ "principals": [principal] }] }]);
        self.world.mesh_mut().policy("only-curl", "ALLOW", "web", rules);
        self.world.apply()
    }

    /// What to try while it is running.
    fn invite(&self) {
        let enter = |pod: &Pod| format!("nsenter --net={}", pod.netns().path().display());
        let (cgroup, log) = (self.curl.cgroup(), self.world.dir().join("agent-b.log"));
        let node = self.world.node("b").netns().path().display().to_string();
        let mut text = String::new();
        let _ = writeln!(text, "\n== running; things to try in another terminal, as root");
        let _ = writeln!(text, "   # a shell in the pod curl: its cgroup and its network");
        let join = format!("echo $$ > {}/cgroup.procs", cgroup.display());
        let _ = writeln!(text, "   sh -c '{join}; exec {} bash'", enter(&self.curl));
        let _ = writeln!(text, "   # in it: a request through the mesh");
        let _ = writeln!(text, "   curl http://{WEB}/");
        let _ = writeln!(
            text,
            "   # the log of node b's agent: one line for each connection"
        );
        let _ = writeln!(text, "   tail -f {}", log.display());
        let _ = writeln!(text, "   # what node b's agent does");
        let _ = writeln!(text, "   nsenter --net={node} target/debug/weft status");
        let _ = writeln!(text, "   # change the mesh: it is read again at once");
        let _ = writeln!(text, "   $EDITOR {}", self.world.mesh_file("b").display());
        print!("{text}\n   Ctrl-C ends it and removes everything.\n");
    }
}

/// The count, and how a scene is printed.
#[derive(Default)]
struct Show {
    passed: usize,
    failed: usize,
}

impl Show {
    /// One scene: what it shows, and how. Its evidence is printed either way.
    fn scene(&mut self, promise: &str, scene: impl FnOnce(&mut Evidence) -> Result<()>) {
        let mut evidence = Evidence::default();
        let outcome = scene(&mut evidence);
        println!("\n{} {promise}", if outcome.is_ok() { "✓" } else { "✗" });
        evidence.0.iter().for_each(|line| println!("    {line}"));
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                self.failed += 1;
                println!("    failed: {error:#}");
            }
        }
    }
}

/// Lines that a scene shows.
#[derive(Default)]
struct Evidence(Vec<String>);

impl Evidence {
    fn line(&mut self, line: impl Into<String>) {
        self.0.push(line.into());
    }
}
