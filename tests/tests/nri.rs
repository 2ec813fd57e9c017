//! Capture before a pod's first instruction, where the container runtime waits for it: with the library that runtimes use.

#[expect(dead_code, reason = "some of it is for the tests of enrolment")]
#[path = "enrolment/api.rs"]
mod api;
mod common;
#[expect(dead_code, reason = "some of it is for the tests of DNS")]
mod names {
    pub(crate) mod ask;
    pub(crate) mod scripted;
    pub(crate) mod wire;
}

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use api::Api;
use common::{MARKER, SERVICE4, addr, refused_at_once};
use names::{
    ask::{WEB, says, unbound},
    wire,
};
use serde_json::{Value, json};
use weft_tests::{
    Agent, AgentOptions, LIMIT, Membership, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    capture::contains,
    cgroup,
    nri::{self, Runtime, sandbox},
    skip, wait_until, with_world,
};

const MODE: &str = "istio.io/dataplane-mode";
/// An answer that somebody waited for takes this long at least.
const WAITED: Duration = Duration::from_millis(900);

fn uid(number: usize) -> String {
    format!("12345678-9abc-def0-1234-{number:012}")
}

fn folder(number: usize) -> String {
    format!("burstable/pod{}", uid(number))
}

fn id(number: usize) -> String {
    format!("sandbox-{number}")
}

/// Node a with an API, a container runtime and an agent; node b with an agent and a pod `web`.
struct Scene {
    api: Api,
    runtime: Runtime,
    program: PathBuf,
    options: AgentOptions,
    web: Pod,
    a: Agent,
    _server: Server,
}

fn with_scene(test: impl FnOnce(&mut World, &mut Scene) -> Result<()>) {
    let Some(program) = nri::program() else {
        return skip("there is no container runtime's half of NRI here: cargo xtask setup builds it");
    };
    with_world(|world| {
        let web = PodSpec::new("web").service_account("web").label("app", "web");
        let web = world.pod("b", web)?;
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        world.mesh_mut().mtls("locked", "STRICT");
        let server = Server::start(web.listen(8080)?, echo)?;
        let api = Api::start(world.node("a"))?;
        for (namespace, labels) in [
            ("demo", json!({MODE: "ambient"})),
            ("locked", json!({MODE: "ambient"})),
            ("out", json!({})),
        ] {
            api.put(
                "namespaces",
                "",
                namespace,
                json!({"metadata": {"labels": labels}}),
            );
        }
        let kubeconfig = world.dir().join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig())?;
        let runtime = Runtime::start(&program, &world.nri_socket("a"))?;
        world.apply()?;
        world.start_agent("b")?;
        let options = AgentOptions::default()
            .arg("--kubeconfig")
            .arg(&kubeconfig.display().to_string());
        let a = world.start_agent_with("a", options.clone())?;
        let mut scene = Scene {
            api,
            runtime,
            program,
            options,
            web,
            a,
            _server: server,
        };
        scene.wait_for_nri("connected")?;
        test(world, &mut scene)
    });
}

impl Scene {
    fn wait_for_nri(&self, state: &str) -> Result<()> {
        let is = || {
            self.a
                .status()
                .is_ok_and(|status| status["nri"]["state"] == state)
        };
        wait_until(&format!("NRI to be {state}"), LIMIT, is).with_context(|| self.a.log_tail())
    }

    fn sandboxes(&self, outcome: &str) -> Result<f64> {
        let metrics = self.a.metrics()?;
        Ok(metrics.sum("weft_nri_sandboxes_total", &[("outcome", outcome)]))
    }

    /// What the API shows of a pod that has just been bound to node a.
    fn show(&self, number: usize, pod: &Pod, addresses: &[&str]) {
        let name = pod.namespaced_name();
        let (namespace, name) = name.split_once('/').unwrap_or_default();
        let addresses: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({
            "metadata": {"uid": uid(number), "labels": {}, "annotations": {}},
            "spec": {"nodeName": "a", "containers": []},
            "status": {"phase": "Pending", "podIPs": addresses},
        });
        self.api.put("pods", namespace, name, object);
    }
}

/// The first thing that an app does, once: without a second try.
fn first_instruction(pod: &Pod, to: std::net::SocketAddr) -> io::Result<()> {
    let mut stream = pod.connect(to)?;
    round_trip(&mut stream, MARKER)
}

#[test]
fn no_pod_is_refused_that_dials_with_its_first_instruction() {
    const STARTS: usize = 200;
    with_scene(|world, scene| {
        let spec = |number: usize| {
            // Some have nothing in their cgroup yet, as where a runtime starts no sandbox process.
            let name = if number.is_multiple_of(5) {
                format!("elsewhere-{number}")
            } else {
                folder(number)
            };
            PodSpec::new("job").service_account("job").cgroup(&name)
        };
        let mut pod = world.pod("a", spec(0))?;
        let cgroup = |pod: &Pod| pod.cgroup();
        world.apply()?;
        let capture = world.capture_link()?;
        let mut waits = Vec::with_capacity(STARTS);
        for number in 1..=STARTS {
            let gone = pod;
            if number > 1 {
                scene.runtime.stop(&id(number - 1))?;
            }
            scene.api.delete("pods", "demo", "job");
            world.remove_pod(&gone)?;
            cgroup::remove_tree(&cgroup(&gone))?;
            pod = world.pod("a", spec(number).address_of(&gone))?;
            // Whether the API has shown it by then.
            if number % 2 == 0 {
                scene.show(number, &pod, &[]);
            }
            waits.push(scene.runtime.run(&sandbox(&id(number), &uid(number), &pod))?);
            let to = if number % 3 == 0 {
                scene.web.addr(8080)
            } else {
                addr(SERVICE4)
            };
            first_instruction(&pod, to).with_context(|| format!("start {number}\n{}", scene.a.log_tail()))?;
            if number % 2 == 1 {
                scene.show(number, &pod, &[]);
            }
        }
        ensure!(!contains(&capture.stop()?, MARKER), "a pod has spoken in clear");
        let captured = scene.sandboxes("captured")?;
        ensure!(captured == STARTS as f64, "{captured} captured");
        waits.sort_unstable();
        eprintln!(
            "{STARTS} starts, none refused; the runtime waited {:?} (median), {:?} at most",
            waits[STARTS / 2],
            waits[STARTS - 1]
        );
        Ok(())
    });
}

#[test]
fn a_pod_that_the_mesh_does_not_know_yet_waits_instead_of_being_refused() {
    with_scene(|world, scene| {
        let young = PodSpec::new("young").cgroup(&folder(1)).unlisted();
        let young = world.pod("a", young)?;
        scene.runtime.run(&sandbox(&id(1), &uid(1), &young))?;
        let capture = world.capture_link()?;
        let mut stream = young.connect(addr(SERVICE4)).context("it is captured")?;
        stream.write_all(MARKER)?;
        let waits = scene.a.status()?["pods"][0]["message"].clone();
        ensure!(
            waits.as_str().is_some_and(|text| text.contains("does not know")),
            "{waits}"
        );
        world.set_membership(&young, Membership::Mesh);
        world.apply()?;
        let mut answer = vec![0; MARKER.len()];
        io::Read::read_exact(&mut stream, &mut answer).context("it is carried when it is known")?;
        ensure!(answer == MARKER);
        first_instruction(&young, scene.web.addr(8080))?;
        // It was captured once: what the mesh says of it is what was found.
        scene
            .a
            .wait_for_log("its capture", |line| line.contains("pod captured"))?;
        let log = scene.a.log();
        ensure!(log.matches("pod captured").count() == 1, "{log}");
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear");
        Ok(())
    });
}

#[test]
fn a_pod_that_the_mesh_does_not_know_yet_may_ask_for_a_name_with_its_first_instruction() {
    with_scene(|world, scene| {
        // Whoever passes a query on to it gets another answer than the mesh's.
        let (dns, server) = says(world, 9)?;
        for (number, over_tcp) in [(1, false), (2, true)] {
            let young = PodSpec::new(&format!("young-{number}"))
                .cgroup(&folder(number))
                .unlisted();
            let young = world.pod("a", young)?;
            scene.runtime.run(&sandbox(&id(number), &uid(number), &young))?;
            let (query, to) = (wire::query(7, WEB, wire::A), dns.addr(53));
            let ask = || -> Result<Vec<u8>> {
                if over_tcp {
                    let mut stream = young.connect(to)?;
                    wire::write_frame(&mut stream, &query)?;
                    Ok(wire::read_frame(&mut stream)?)
                } else {
                    Ok(wire::exchange(&unbound(&young, to)?, to, &query)?.0)
                }
            };
            let answer = thread::scope(|scope| {
                let asking = scope.spawn(ask);
                thread::sleep(Duration::from_secs(1));
                ensure!(!asking.is_finished(), "it is answered before anybody knows it");
                world.set_membership(&young, Membership::Mesh);
                world.apply()?;
                asking.join().ok().context("it panicked")?
            });
            let seen = wire::seen(&answer.context("it is answered")?)?;
            ensure!(seen.id == 7 && seen.tail == [10, 96, 0, 10], "{seen:?}");
            // The next one does not wait.
            let since = Instant::now();
            ask()?;
            ensure!(
                since.elapsed() < Duration::from_millis(500),
                "{:?}",
                since.elapsed()
            );
        }
        ensure!(
            server.asked().is_empty(),
            "the server was asked by {:?}",
            server.asked()
        );
        Ok(())
    });
}

#[test]
fn what_is_not_the_meshs_is_not_held_up_and_what_cannot_be_captured_not_for_long() {
    with_scene(|world, scene| {
        let out = PodSpec::new("web").namespace("out").cgroup(&folder(1)).outside();
        let out = world.pod("a", out)?;
        let host = PodSpec::new("host").cgroup(&folder(2)).host_network().unlisted();
        let host = world.pod("a", host)?;
        let mut of_host = sandbox(&id(2), &uid(2), &host);
        of_host["netns"] = Value::from("");
        let mut opted_out = sandbox(&id(3), &uid(3), &out);
        opted_out["namespace"] = "demo".into();
        opted_out["labels"][MODE] = "none".into();
        for sandbox in [sandbox(&id(1), &uid(1), &out), of_host, opted_out] {
            let waited = scene.runtime.run(&sandbox)?;
            ensure!(waited < WAITED, "{sandbox} was held up for {waited:?}");
        }
        ensure!(scene.sandboxes("outside")? == 3.0);
        // The API says that it has another address: nobody may capture it.
        let wrong = world.pod("a", PodSpec::new("wrong").cgroup(&folder(4)))?;
        scene.show(4, &wrong, &["10.244.1.99"]);
        wait_until("the API to have shown it", LIMIT, || {
            scene.a.status().is_ok_and(|it| it["expectedPods"] == 1)
        })?;
        let waited = scene.runtime.run(&sandbox(&id(4), &uid(4), &wrong))?;
        ensure!(
            (WAITED..Duration::from_secs(2)).contains(&waited),
            "it was waited for {waited:?}"
        );
        refused_at_once(&wrong, scene.web.addr(8080))?;
        ensure!(scene.sandboxes("late")? == 1.0);
        scene.a.wait_for_log("who was late", |line| {
            line.contains("was not captured before its containers start")
        })?;
        // The next one that is late is waited for half as long, and one that is not is as ever.
        scene.runtime.stop(&id(4))?;
        let waited = scene.runtime.run(&sandbox("again", &uid(4), &wrong))?;
        ensure!(waited < WAITED, "it was waited for {waited:?}");
        let client = world.pod("a", PodSpec::new("client").cgroup(&folder(5)))?;
        world.apply()?;
        scene.runtime.run(&sandbox(&id(5), &uid(5), &client))?;
        first_instruction(&client, addr(SERVICE4))?;
        scene.wait_for_nri("connected")
    });
}

#[test]
fn an_agent_that_loses_the_runtime_finds_it_again() {
    with_scene(|world, scene| {
        let pod = |world: &mut World, number: usize| {
            let spec = PodSpec::new(&format!("client-{number}")).cgroup(&folder(number));
            let pod = world.pod("a", spec)?;
            world.apply()?;
            Ok::<_, anyhow::Error>(pod)
        };
        let first = pod(world, 1)?;
        scene.runtime.run(&sandbox(&id(1), &uid(1), &first))?;
        scene.show(1, &first, &[]);
        first_instruction(&first, addr(SERVICE4))?;
        // As a runtime that is upgraded: its pods go on.
        let socket = world.nri_socket("a");
        fs::remove_file(&socket)?;
        scene.runtime = Runtime::start(&scene.program, &socket)?;
        let since = Instant::now();
        wait_until("another runtime to be found", LIMIT, || {
            let connected = "the container runtime tells of pods that start";
            scene.a.log().matches(connected).count() >= 2
        })
        .with_context(|| scene.a.log_tail())?;
        scene.wait_for_nri("connected")?;
        eprintln!("found again after {:?}", since.elapsed());
        first_instruction(&first, addr(SERVICE4)).context("a pod that ran before")?;
        let second = pod(world, 2)?;
        scene.runtime.run(&sandbox(&id(2), &uid(2), &second))?;
        first_instruction(&second, addr(SERVICE4))?;
        // And an agent that starts anew is told of what runs.
        scene.a.restart()?;
        scene.wait_for_nri("connected")?;
        scene.show(2, &second, &[]);
        let third = pod(world, 3)?;
        scene.runtime.run(&sandbox(&id(3), &uid(3), &third))?;
        first_instruction(&third, addr(SERVICE4))?;
        // Without it everything is as before.
        scene.runtime.kill()?;
        scene.wait_for_nri("refused")?;
        let fourth = pod(world, 4)?;
        scene.show(4, &fourth, &[]);
        wait_until("a pod to be captured all the same", LIMIT, || {
            first_instruction(&fourth, addr(SERVICE4)).ok()
        })
    });
}

#[test]
fn an_agent_that_takes_over_is_the_one_that_the_runtime_waits_for() {
    with_scene(|world, scene| {
        let first = world.pod("a", PodSpec::new("first").cgroup(&folder(1)))?;
        world.apply()?;
        scene.runtime.run(&sandbox(&id(1), &uid(1), &first))?;
        scene.show(1, &first, &[]);
        first_instruction(&first, addr(SERVICE4))?;
        let old = scene.a.clone();
        scene.a = world.take_over("a", scene.options.clone())?;
        scene.wait_for_nri("connected")?;
        let second = world.pod("a", PodSpec::new("second").cgroup(&folder(2)))?;
        world.apply()?;
        let waited = scene.runtime.run(&sandbox(&id(2), &uid(2), &second))?;
        first_instruction(&second, addr(SERVICE4))?;
        ensure!(waited < WAITED, "somebody else was waited for: {waited:?}");
        ensure!(scene.sandboxes("captured")? == 1.0, "{}", scene.a.log_tail());
        ensure!(
            !old.log().contains("was not captured before"),
            "{}",
            old.log_tail()
        );
        Ok(())
    });
}

/// Dials a pod over and over, from before it runs, and counts who answers.
fn answered_in_plaintext(
    from: &Pod,
    pod: &Pod,
    port: u16,
    while_that: impl FnOnce() -> Result<()>,
) -> Result<usize> {
    let (ended, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let dials = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let spoken = from
                    .connect_within(pod.addr(port), Duration::from_millis(200))
                    .and_then(|mut stream| round_trip(&mut stream, MARKER));
                if spoken.is_ok() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let done = while_that();
        ended.store(true, Ordering::Relaxed);
        let _ = dials.join();
        done
    })?;
    Ok(answered.into_inner())
}

#[test]
fn nobody_reaches_a_strict_pod_in_plaintext_while_it_starts() {
    const STARTS: usize = 20;
    with_scene(|world, scene| {
        let outside = world.pod("b", PodSpec::new("outside").outside())?;
        let spec = |number: usize| PodSpec::new("web").namespace("locked").cgroup(&folder(number));
        let mut pod = world.pod("a", spec(0))?;
        world.apply()?;
        let mut reached = 0;
        for number in 1..=STARTS {
            let gone = pod;
            if number > 1 {
                scene.runtime.stop(&id(number - 1))?;
            }
            world.remove_pod(&gone)?;
            pod = world.pod("a", spec(number).address_of(&gone))?;
            let runtime = &mut scene.runtime;
            reached += answered_in_plaintext(&outside, &pod, 8080, || {
                runtime.run(&sandbox(&id(number), &uid(number), &pod))?;
                // Its container's first instruction.
                let _server = Server::start(pod.listen(8080)?, echo)?;
                thread::sleep(Duration::from_millis(100));
                Ok(())
            })?;
        }
        ensure!(
            reached == 0,
            "{reached} connections in plaintext reached a STRICT pod"
        );
        Ok(())
    });
}
