//! Enrolment by label: the agent finds the pods that the API shows of its node, wherever their cgroups and network namespaces
//! are, and captures them before a byte of theirs leaves in clear.

#[path = "enrolment/api.rs"]
mod api;
mod common;

use std::{
    fs,
    io::ErrorKind,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use api::Api;
use common::{MARKER, SERVICE4, addr, ensure_ended, refused_at_once};
use rustix::process::Signal;
use serde_json::{Value, json};
use weft_tests::{
    Agent, AgentOptions, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    capture::contains,
    cgroup, machine, wait_until, with_world,
};

const MODE: &str = "istio.io/dataplane-mode";
const REDIRECTION: &str = "ambient.istio.io/redirection";

fn uid(number: usize) -> String {
    format!("12345678-9abc-def0-1234-{number:012}")
}

/// An API in node a's network, and its kubeconfig in the world's files.
fn cluster(world: &World) -> Result<(Api, AgentOptions)> {
    let api = Api::start(world.node("a"))?;
    api.put(
        "namespaces",
        "",
        "demo",
        json!({"metadata": {"labels": {MODE: "ambient"}}}),
    );
    let options = AgentOptions::default()
        .env("WEFT_STARTUP_TAINT", "weft.dev/agent-not-ready")
        .arg("--kubeconfig")
        .arg(&write_kubeconfig(world, &api)?);
    Ok((api, options))
}

fn write_kubeconfig(world: &World, api: &Api) -> Result<String> {
    let file: PathBuf = world.dir().join("kubeconfig");
    fs::write(&file, api.kubeconfig())?;
    Ok(file.display().to_string())
}

/// What the API shows of a pod of node a before its kubelet has said anything.
fn object(uid: &str) -> Value {
    json!({
        "metadata": {"uid": uid, "labels": {}, "annotations": {}},
        "spec": {"nodeName": "a", "containers": []},
        "status": {"phase": "Pending"},
    })
}

/// The same of one that runs and has said its addresses.
fn running(uid: &str, pod: &Pod) -> Value {
    let mut object = object(uid);
    let addresses = pod.addresses().map(|ip| json!({"ip": ip.to_string()}));
    object["status"] = json!({"phase": "Running", "podIPs": addresses});
    object
}

fn redirection(object: &Value) -> &str {
    object["metadata"]["annotations"][REDIRECTION]
        .as_str()
        .unwrap_or_default()
}

fn captured(agent: &Agent) -> Option<u64> {
    agent.status().ok()?["capturedPods"].as_u64()
}

/// A pod `web` of node b, which the mesh file's agent there captures, and its service.
fn web(world: &mut World) -> Result<Pod> {
    let web = PodSpec::new("web").service_account("web").label("app", "web");
    let web = world.pod("b", web)?;
    world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
    Ok(web)
}

#[test]
fn pods_that_dial_with_their_first_instruction_send_nothing_in_clear() {
    const STARTS: usize = 200;
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        let name = |number| format!("burstable/pod{}", uid(number));
        let spec = |number: usize| PodSpec::new("job").service_account("job").cgroup(&name(number));
        // The mesh knows the workload; each of its pods has the same name and address, as a StatefulSet's have the name.
        let mut pod = world.pod("a", spec(0))?;
        world.apply()?;
        world.start_agent("b")?;
        let a = world.start_agent_with("a", options)?;
        let capture = world.capture_link()?;
        let (mut refused, mut slowest) = (0, Duration::ZERO);
        for number in 1..=STARTS {
            let gone = pod;
            api.delete("pods", "demo", "job");
            world.remove_pod(&gone)?;
            remove_folder(world, &name(number - 1))?;
            // Whether the agent is told by the API first or by the kubelet's folder.
            if number % 2 == 0 {
                api.put("pods", "demo", "job", object(&uid(number)));
            }
            pod = world.pod("a", spec(number).address_of(&gone))?;
            let since = Instant::now();
            let to = if number % 3 == 0 {
                web.addr(8080)
            } else {
                addr(SERVICE4)
            };
            loop {
                let spoken = pod
                    .connect(to)
                    .and_then(|mut stream| round_trip(&mut stream, MARKER));
                match spoken {
                    Ok(()) => break,
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
                    // Captured between connect and write, or without a certificate yet.
                    Err(error)
                        if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) =>
                    {
                        refused += 1;
                    }
                    Err(error) => {
                        return Err(error).context(format!("start {number}: an answer that no app expects"));
                    }
                }
                if number % 2 == 1 {
                    api.put("pods", "demo", "job", object(&uid(number)));
                }
                ensure!(
                    since.elapsed() < LIMIT,
                    "start {number} is never captured: {:#}",
                    a.status()?
                );
            }
            slowest = slowest.max(since.elapsed());
        }
        let packets = capture.stop()?;
        ensure!(!contains(&packets, MARKER), "a pod has spoken in clear");
        eprintln!("{STARTS} starts, {refused} attempts refused, the longest until an answer {slowest:?}");
        Ok(())
    });
}

/// An agent that gets no processor time: it is stopped before the pod's cgroup is made, and goes on when the pod has dialled.
#[test]
fn a_pod_that_is_faster_than_its_agent_sends_nothing_in_clear() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        let folder = |number| format!("burstable/pod{}", uid(number));
        let job = |number: usize| PodSpec::new("job").service_account("job").cgroup(&folder(number));
        let before = world.pod("a", job(1))?;
        let ran = PodSpec::new("ran").outside().cgroup(&format!("pod{}/a", uid(9)));
        let ran = world.pod("a", ran)?;
        let mut outside = running(&uid(9), &ran);
        outside["metadata"]["labels"] = json!({MODE: "none"});
        api.put("pods", "demo", "ran", outside);
        api.put("pods", "demo", "job", running(&uid(1), &before));
        world.apply()?;
        world.start_agent("b")?;
        let a = world.start_agent_with("a", options)?;
        wait_until("the capture", LIMIT, || captured(&a) == Some(1))?;
        api.delete("pods", "demo", "job");
        world.remove_pod(&before)?;
        wait_until("the release", LIMIT, || captured(&a) == Some(0))?;
        ensure!(a.status()?["starting"]["state"] == "unseen");
        let capture = world.capture_link()?;
        a.signal(Signal::STOP)?;
        // By the folder of its quality of service, and in that of all pods, by both families.
        let burstable = world.pod("a", job(2).address_of(&before))?;
        let name = format!("pod{}", uid(3));
        let guaranteed = world.pod("a", PodSpec::new("guaranteed").cgroup(&format!("{name}/a")))?;
        for pod in [&burstable, &guaranteed] {
            for to in [addr(SERVICE4), web.addr(8080), web.addr6(8080)] {
                refused_at_once(pod, to)?;
            }
            // It may speak to itself.
            let _own = Server::start(pod.listen(9090)?, echo)?;
            round_trip(&mut pod.connect(addr("127.0.0.1:9090"))?, MARKER)?;
        }
        // Who was there before goes on, and so does the node itself.
        let mut of_others = [
            ran.connect(web.addr(8080))?,
            world.node("a").connect(web.addr(8080))?,
        ];
        api.put("pods", "demo", "job", running(&uid(2), &burstable));
        a.signal(Signal::CONT)?;
        let mut stream = wait_until("the capture", LIMIT, || {
            let mut stream = burstable.connect(addr(SERVICE4)).ok()?;
            round_trip(&mut stream, MARKER).ok().map(|()| stream)
        })?;
        round_trip(&mut stream, MARKER)?;
        // The status is written when the turn ends that has captured it.
        wait_until("the status to say it", LIMIT, || captured(&a) == Some(1))?;
        ensure!(!contains(&capture.stop()?, MARKER), "a pod has spoken in clear");
        for stream in &mut of_others {
            round_trip(stream, b"of others")?;
        }
        Ok(())
    });
}

/// Of the same layout, and of another one: whose programs are there until those of the new one are.
#[test]
fn an_agent_that_takes_over_holds_what_it_has_not_seen_and_nothing_else() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        api.put("namespaces", "", "plain", json!({"metadata": {"labels": {}}}));
        let spec =
            |name: &str, number: usize| PodSpec::new(name).cgroup(&format!("burstable/pod{}/a", uid(number)));
        let plain = |world: &mut World, number: usize| {
            let name = format!("plain-{number}");
            api.put("pods", "plain", &name, object(&uid(number)));
            world.pod("a", spec(&name, number).namespace("plain").outside())
        };
        let before = plain(world, 1)?;
        // The mesh knows the workload; each of its pods has the same name and address.
        let mut job = world.pod("a", spec("job", 10).service_account("job"))?;
        world.apply()?;
        world.start_agent("b")?;
        world.start_agent_with("a", options.clone())?;
        let capture = world.capture_link()?;
        let speaks = |pod: &Pod, text: &[u8]| {
            let mut stream = pod.connect(web.addr(8080)).ok()?;
            round_trip(&mut stream, text).ok()
        };
        for (number, binary) in [(2, "weft"), (3, "weft-next-layout")] {
            api.delete("pods", "demo", "job");
            world.remove_pod(&job)?;
            let new = world.prepare_takeover("a", options.clone().binary(binary))?;
            new.spawn()?;
            new.wait_until_in_charge()?;
            ensure!(
                speaks(&before, b"plain").is_some(),
                "who was there before goes on"
            );
            let plain = plain(world, number)?;
            wait_until("it to dial", Duration::from_secs(2), || speaks(&plain, b"plain"))?;
            new.signal(Signal::STOP)?;
            let start = spec("job", 10 + number).service_account("job");
            job = world.pod("a", start.address_of(&job))?;
            api.put("pods", "demo", "job", object(&uid(10 + number)));
            refused_at_once(&job, web.addr(8080))?;
            ensure!(
                speaks(&plain, b"plain").is_some(),
                "{binary}: who was seen goes on"
            );
            new.signal(Signal::CONT)?;
            wait_until("the capture", LIMIT, || speaks(&job, MARKER))?;
        }
        ensure!(!contains(&capture.stop()?, MARKER), "a pod has spoken in clear");
        Ok(())
    });
}

#[test]
fn pods_that_are_not_the_meshs_dial_within_moments_and_without_an_agent_before_long() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        api.put("namespaces", "", "plain", json!({"metadata": {"labels": {}}}));
        let known = world.pod(
            "a",
            PodSpec::new("known").outside().cgroup(&format!("pod{}", uid(1))),
        )?;
        let mut shown = running(&uid(1), &known);
        shown["metadata"]["labels"] = json!({MODE: "none"});
        api.put("pods", "demo", "known", shown);
        world.apply()?;
        let a = world.start_agent_with("a", options)?;
        let starts = |world: &mut World, number: usize, folder: &str| {
            let spec = PodSpec::new(&format!("plain-{number}"))
                .namespace("plain")
                .outside();
            world.pod("a", spec.cgroup(&format!("{folder}pod{}/a", uid(number))))
        };
        let speaks = |pod: &Pod| {
            let mut stream = pod.connect(web.addr(8080)).ok()?;
            round_trip(&mut stream, MARKER).ok()
        };
        // A folder of its own quality of service that is not there yet, too.
        for (number, folder) in [(2, ""), (3, "burstable/"), (4, "besteffort/")] {
            api.put("pods", "plain", &format!("plain-{number}"), object(&uid(number)));
            let pod = starts(world, number, folder)?;
            wait_until("it to dial", Duration::from_secs(2), || speaks(&pod))
                .with_context(|| format!("{folder}: {}", a.log_tail()))?;
        }
        // Nobody is waited for where an agent was ended: what comes next may be the next one's own pod.
        a.stop()?;
        let between = starts(world, 5, "burstable/")?;
        ensure!(speaks(&between).is_some(), "it is held, and no agent runs");
        a.start()?;
        a.kill()?;
        let late = starts(world, 6, "burstable/")?;
        // The agent might be back in a moment.
        refused_at_once(&late, web.addr(8080))?;
        ensure!(speaks(&known).is_some(), "who was there before goes on");
        wait_until("the agent not to be waited for any more", LIMIT, || speaks(&late))
    });
}

#[test]
fn more_cgroups_than_the_kernel_can_be_told_of_stop_no_pod() {
    const TOO_MANY: usize = 4_100;
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        let pods = world.node("a").pods_cgroup();
        for number in 0..TOO_MANY {
            fs::create_dir(pods.join(format!("strange-{number}")))?;
        }
        // Behind all of them, in whatever order they are told.
        let spec = |name: &str, number| PodSpec::new(name).cgroup(&format!("pod{}", uid(number)));
        let mut outside = Vec::new();
        for number in 1..=2 {
            let name = format!("outside-{number}");
            let pod = world.pod("a", spec(&name, number).outside())?;
            let mut shown = running(&uid(number), &pod);
            shown["metadata"]["labels"] = json!({MODE: "none"});
            api.put("pods", "demo", &name, shown);
            outside.push(pod);
        }
        let client = world.pod("a", spec("client", 3).service_account("client"))?;
        let mut wrong = running(&uid(3), &client);
        wrong["status"]["podIPs"] = json!([{"ip": "10.244.1.99"}]);
        api.put("pods", "demo", "client", wrong);
        world.apply()?;
        world.start_agent("b")?;
        let a = world.start_agent_with("a", options)?;
        a.wait_for_log("that somebody is told", |line| {
            line.contains("more than 4,096 cgroups")
        })?;
        for pod in &outside {
            round_trip(&mut pod.connect(web.addr(8080))?, MARKER)?;
        }
        // Who is known to be in the mesh is held all the same.
        refused_at_once(&client, web.addr(8080))?;
        ensure!(a.status()?["starting"]["state"] == "failed");
        // Once there is room again, so are those that are not known yet.
        for number in 0..TOO_MANY {
            fs::remove_dir(pods.join(format!("strange-{number}")))?;
        }
        let late = world.pod("a", spec("late", 4))?;
        wait_until("it to be held", LIMIT, || {
            refused_at_once(&late, web.addr(8080)).is_ok()
        })
    });
}

fn remove_folder(world: &World, name: &str) -> Result<()> {
    cgroup::remove_tree(&world.node("a").pods_cgroup().join(name))
}

#[test]
fn an_agent_that_comes_after_the_pods_ends_what_they_say_in_clear() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        // A static pod: the kubelet knows it by a hash, and the API shows a mirror of it.
        let hash = "0123456789abcdef0123456789abcdef";
        let spec = PodSpec::new("client")
            .service_account("client")
            .cgroup(&format!("pod{hash}/a"));
        let client = world.pod("a", spec)?;
        let outside = world.pod("b", PodSpec::new("outside").outside())?;
        let _plain = Server::start(outside.listen(8080)?, echo)?;
        let mut shown = running(&uid(1), &client);
        shown["metadata"]["annotations"] = json!({
            "kubernetes.io/config.hash": hash,
            "kubernetes.io/config.mirror": hash,
        });
        api.put("pods", "demo", "client", shown);
        world.apply()?;
        world.start_agent("b")?;
        let mut to_mesh = client.connect(web.addr(8080))?;
        let mut to_outside = client.connect(outside.addr(8080))?;
        let _own = Server::start(client.listen(9090)?, echo)?;
        let mut inside = client.connect(client.addr(9090))?;
        for stream in [&mut to_mesh, &mut to_outside, &mut inside] {
            round_trip(stream, b"before")?;
        }
        let a = world.start_agent_with("a", options)?;
        wait_until("the capture", LIMIT, || captured(&a) == Some(1))?;
        wait_until("the exposed connection to be counted", LIMIT, || {
            let metrics = a.metrics().ok();
            metrics.is_some_and(|it| {
                it.sum("weft_exposed_connections_total", &[("direction", "outbound")]) == 1.0
            })
        })?;
        let capture = world.capture_link()?;
        ensure_ended(&mut to_mesh)?;
        for stream in [&mut to_outside, &mut inside] {
            round_trip(stream, b"after").context("what is allowed goes on")?;
        }
        round_trip(&mut client.connect(addr(SERVICE4))?, MARKER)?;
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear");
        a.wait_for_log("that somebody is told", |line| {
            line.contains("before the pod's capture")
        })?;
        Ok(())
    });
}

#[test]
fn what_the_agent_does_is_written_on_pods_and_the_node_and_undone() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        let pod = |world: &mut World, name: &str, number| {
            let spec = PodSpec::new(name).cgroup(&format!("burstable/pod{}", uid(number)));
            world.pod("a", spec)
        };
        let (inside, out) = (pod(world, "inside", 1)?, pod(world, "out", 2)?);
        api.put("pods", "demo", "inside", running(&uid(1), &inside));
        let mut opted_out = running(&uid(2), &out);
        opted_out["metadata"]["labels"] = json!({MODE: "none"});
        api.put("pods", "demo", "out", opted_out);
        let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
        let taints = json!([taint("weft.dev/agent-not-ready"), taint("other")]);
        api.put("nodes", "", "a", json!({"spec": {"taints": taints}}));
        world.apply()?;
        world.start_agent("b")?;
        let a = world.start_agent_with("a", options)?;
        api.wait_for(("pods", "demo", "inside"), "the annotation", |pod| {
            redirection(pod) == "enabled"
        })?;
        api.wait_for(("nodes", "", "a"), "the taint to go", |node| {
            node["spec"]["taints"] == json!([taint("other")])
        })?;
        ensure!(redirection(&api.get("pods", "demo", "out")).is_empty());
        // Of the pod and of the node; one more where the pod was first said to be pending.
        ensure!(api.patches() <= 3, "{} patches", api.patches());
        let metrics = a.metrics()?;
        for name in ["weft_expected_pods", "weft_captured_pods"] {
            ensure!(metrics.sum(name, &[]) == 1.0, "{name}");
        }
        let mut open = inside.connect(addr(SERVICE4))?;
        round_trip(&mut open, MARKER)?;
        // The pod outside is nobody's: it dials as without weft.
        round_trip(&mut out.connect(web.addr(8080))?, MARKER)?;
        // The label goes, and the pod with it; what is open goes on.
        api.put("namespaces", "", "demo", json!({"metadata": {"labels": {}}}));
        api.wait_for(("pods", "demo", "inside"), "the annotation to go", |pod| {
            redirection(pod).is_empty()
        })?;
        wait_until("the release", LIMIT, || captured(&a) == Some(0))?;
        round_trip(&mut open, MARKER).context("an open connection goes on")?;
        round_trip(&mut inside.connect(web.addr(8080))?, MARKER).context("a new one is its own")?;
        // And it comes back, while it runs: what is open in plaintext goes on as well.
        let mut plain = inside.connect(web.addr(8080))?;
        round_trip(&mut plain, MARKER)?;
        api.put(
            "namespaces",
            "",
            "demo",
            json!({"metadata": {"labels": {MODE: "ambient"}}}),
        );
        api.wait_for(("pods", "demo", "inside"), "the annotation again", |pod| {
            redirection(pod) == "enabled"
        })?;
        for stream in [&mut open, &mut plain] {
            round_trip(stream, MARKER).context("what was open goes on")?;
        }
        round_trip(&mut inside.connect(addr(SERVICE4))?, MARKER)?;
        Ok(())
    });
}

#[test]
fn a_namespace_that_is_not_the_pods_is_not_taken_for_it() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        let folder = |number| format!("burstable/pod{}", uid(number));
        let client = world.pod("a", PodSpec::new("client").cgroup(&format!("{}/a", folder(1))))?;
        let host = PodSpec::new("host").cgroup(&folder(2)).host_network().unlisted();
        let host = world.pod("a", host)?;
        let mut wrong = running(&uid(1), &client);
        wrong["status"]["podIPs"] = json!([{"ip": "10.244.1.99"}]);
        api.put("pods", "demo", "client", wrong);
        // It says that it has a network of its own, and is in the node's.
        api.put("pods", "demo", "host", running(&uid(2), &host));
        world.apply()?;
        let a = world.start_agent_with("a", options)?;
        let message = |name: &str| {
            let status = a.status().ok()?;
            let pods = status["pods"].as_array()?.clone();
            let pod = pods
                .iter()
                .find(|pod| pod["workload"].as_str().is_some_and(|it| it.ends_with(name)))?;
            Some(pod["message"].as_str()?.to_owned())
        };
        for (name, expect) in [("client", "10.244.1.99"), ("host", "node's network namespace")] {
            wait_until(&format!("what is wrong with {name}"), LIMIT, || {
                message(name).is_some_and(|text| text.contains(expect))
            })
            .with_context(|| format!("{:#}", a.status().unwrap_or_default()["pods"]))?;
        }
        ensure!(captured(&a) == Some(0));
        // It has the label, and nobody may say that it is captured: it is refused, and may speak to itself.
        refused_at_once(&client, web.addr(8080))?;
        let _own = Server::start(client.listen(9090)?, echo)?;
        round_trip(&mut client.connect(addr("127.0.0.1:9090"))?, MARKER)?;
        // What shares the node's network is not stopped.
        round_trip(&mut host.connect(web.addr(8080))?, MARKER)?;
        api.put("pods", "demo", "client", running(&uid(1), &client));
        wait_until("the capture", LIMIT, || captured(&a) == Some(1))?;
        // Its sandbox is made anew, with another network namespace, under the same UID.
        world.remove_pod(&client)?;
        let again = PodSpec::new("client")
            .cgroup(&format!("{}/b", folder(1)))
            .address_of(&client);
        let client = world.pod("a", again)?;
        world.start_agent("b")?;
        let capture = world.capture_link()?;
        wait_until("the new sandbox to be captured", LIMIT, || {
            let mut stream = client.connect(addr(SERVICE4)).ok()?;
            round_trip(&mut stream, MARKER).ok()
        })?;
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear in between");
        Ok(())
    });
}

#[test]
fn a_pod_whose_addresses_only_its_node_knows_is_in_the_mesh() {
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        // Neither the API nor the mesh has them: the kubelet says them when the containers run.
        let client = PodSpec::new("client").service_account("client");
        let client = client
            .cgroup(&format!("besteffort/pod{}", uid(1)))
            .field("addresses", json!([]));
        let client = world.pod("a", client)?;
        api.put("pods", "demo", "client", object(&uid(1)));
        world.apply()?;
        let b = world.start_agent("b")?;
        let a = world.start_agent_with("a", options)?;
        wait_until("the capture", LIMIT, || captured(&a) == Some(1))?;
        let capture = world.capture_link()?;
        for to in [addr(SERVICE4), web.addr(8080), web.addr6(8080)] {
            // An IPv6 address is the pod's a moment later than an IPv4 one: the kernel looks first whether it is anybody else's.
            let mut stream = wait_until(&format!("a connection to {to}"), LIMIT, || {
                client.connect(to).ok()
            })?;
            round_trip(&mut stream, MARKER).with_context(|| format!("to {to}"))?;
            let local = stream.local_addr()?;
            drop(stream);
            let line = common::line_of(&b, "inbound", local)?;
            ensure!(line.field("src.identity") == client.identity(), "{line}");
        }
        ensure!(!contains(&capture.stop()?, MARKER), "it was in clear");
        Ok(())
    });
}

#[test]
fn a_strict_pod_that_is_captured_late_keeps_its_probes_and_nothing_else() {
    with_world(|world| {
        let (api, options) = cluster(world)?;
        api.put(
            "namespaces",
            "",
            "locked",
            json!({"metadata": {"labels": {MODE: "ambient"}}}),
        );
        let locked = PodSpec::new("web")
            .namespace("locked")
            .cgroup(&format!("pod{}", uid(1)));
        let locked = world.pod("a", locked)?;
        let outside = world.pod("b", PodSpec::new("outside").outside())?;
        world.mesh_mut().mtls("locked", "STRICT");
        let mut shown = running(&uid(1), &locked);
        shown["metadata"]["namespace"] = json!("locked");
        api.put("pods", "locked", "web", shown);
        world.apply()?;
        let _server = Server::start(locked.listen(8080)?, echo)?;
        let mut from_outside = outside.connect(locked.addr(8080))?;
        let mut over_v6 = outside.connect(locked.addr6(8080))?;
        let mut probe = world.node("a").connect(locked.addr(8080))?;
        let mut inside = locked.connect(addr("127.0.0.1:8080"))?;
        for stream in [&mut from_outside, &mut over_v6, &mut probe, &mut inside] {
            round_trip(stream, b"before")?;
        }
        let a = world.start_agent_with("a", options)?;
        wait_until("the exposed connections to be counted", LIMIT, || {
            let exposed = |it: weft_tests::Samples| {
                it.sum("weft_exposed_connections_total", &[("direction", "inbound")]) == 2.0
            };
            a.metrics().is_ok_and(exposed)
        })?;
        for stream in [&mut from_outside, &mut over_v6] {
            common::ensure_reset(stream)?;
        }
        for stream in [&mut probe, &mut inside] {
            round_trip(stream, b"after").context("it goes on")?;
        }
        refused_at_once(&outside, locked.addr(8080))
    });
}

/// A folder in a hierarchy of cgroup v1, removed with everything below.
struct V1(PathBuf);

impl V1 {
    /// None on a machine without one.
    fn new() -> Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let memory = mounts.lines().find_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let is_memory = fields[2] == "cgroup" && fields[3].split(',').any(|it| it == "memory");
            is_memory.then(|| PathBuf::from(fields[1]))
        });
        let path = memory.map(|memory| memory.join(format!("weft-{}", std::process::id())));
        Ok(path.map(Self))
    }

    /// Puts the processes of a pod into a folder of its own there.
    fn join(&self, folder: &str, pod: &Pod) -> Result<()> {
        let folder = self.0.join(folder);
        fs::create_dir_all(&folder)?;
        for pid in fs::read_to_string(pod.cgroup().join("cgroup.procs"))?.lines() {
            fs::write(folder.join("cgroup.procs"), pid)?;
        }
        Ok(())
    }
}

impl Drop for V1 {
    fn drop(&mut self) {
        let removed = wait_until("the processes to be gone", LIMIT, || {
            // The deepest first; what is busy is tried again.
            let mut folders = vec![self.0.clone()];
            let mut at = 0;
            while let Some(folder) = folders.get(at).cloned() {
                let below = fs::read_dir(folder).into_iter().flatten().flatten();
                folders.extend(below.map(|it| it.path()).filter(|it| it.is_dir()));
                at += 1;
            }
            folders
                .iter()
                .rev()
                .for_each(|folder| drop(fs::remove_dir(folder)));
            !self.0.exists()
        });
        if let Err(error) = removed {
            eprintln!("{}: {error:#}", self.0.display());
        }
    }
}

#[test]
fn a_pod_that_is_only_in_cgroup_v1_is_found() {
    let Ok(Some(v1)) = V1::new() else {
        return weft_tests::skip("this machine has no cgroup v1");
    };
    with_world(|world| {
        let web = web(world)?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (api, options) = cluster(world)?;
        // Its folder in cgroup2 says nothing of it.
        let client = world.pod("a", PodSpec::new("client"))?;
        let slice = uid(1).replace('-', "_");
        let slice = format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice");
        v1.join(&format!("{slice}/cri-containerd-1.scope"), &client)?;
        api.put("pods", "demo", "client", running(&uid(1), &client));
        world.apply()?;
        world.start_agent("b")?;
        let a = world.start_agent_with("a", options)?;
        wait_until("the capture", LIMIT, || captured(&a) == Some(1))?;
        a.wait_for_log("what stays open", |line| line.contains("not in cgroup2"))?;
        round_trip(&mut client.connect(addr(SERVICE4))?, MARKER)?;
        Ok(())
    });
}

/// `weft enroll` with the kubeconfig of [`cluster`]: its exit code, and all that it says.
fn enroll(world: &World, args: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = world.node("a").command(machine::binary("weft", "WEFT_BIN")?);
    command
        .arg("enroll")
        .args(args)
        .arg("--kubeconfig")
        .arg(world.dir().join("kubeconfig"));
    let output = command.output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn a_namespace_is_enrolled_by_a_command_that_waits() {
    with_world(|world| {
        let (api, options) = cluster(world)?;
        api.put("namespaces", "", "demo", json!({"metadata": {"labels": {}}}));
        let pod = world.pod("a", PodSpec::new("web").cgroup(&format!("pod{}", uid(1))))?;
        api.put("pods", "demo", "web", running(&uid(1), &pod));
        world.apply()?;
        let (code, said) = enroll(world, &["demo", "--wait", "0"])?;
        ensure!(
            code == Some(1) && said.contains("does weft run on its node?"),
            "{code:?} {said}"
        );
        ensure!(api.get("namespaces", "", "demo")["metadata"]["labels"][MODE] == "ambient");
        let (code, said) = enroll(world, &["nowhere"])?;
        ensure!(
            code == Some(2) && said.contains("no namespace nowhere"),
            "{code:?} {said}"
        );
        let a = world.start_agent_with("a", options)?;
        let (code, said) = enroll(world, &["demo", "-o", "json"])?;
        let outcome: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(
            code == Some(0) && outcome["complete"] == true,
            "{code:?} {outcome:#}"
        );
        ensure!(
            outcome["pods"] == json!([{"name": "web", "node": "a", "state": "captured"}]),
            "{outcome:#}"
        );
        let (code, said) = enroll(world, &["demo", "--undo"])?;
        ensure!(
            code == Some(0) && said.contains("out of the mesh"),
            "{code:?} {said}"
        );
        ensure!(captured(&a) == Some(0));
        Ok(())
    });
}
