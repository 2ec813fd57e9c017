//! What an agent tells of itself: metrics with Istio's names and labels, readiness, `weft status`, the admin port, and
//! its log in both formats.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Output,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_tests::{
    Agent, AgentOptions, LIMIT, Pod, PodSpec, Samples, Server, World,
    agent::{ADMIN_PORT, METRICS_PORT, READY_PORT},
    app::{ask, count, echo, round_trip},
    machine, wait_until, with_world,
};

const MARKER: &[u8] = b"WEFT-OBSERVE-MARKER";

/// The labels of every connection metric.
const LABELS: [&str; 23] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

/// A client on node a and `web`, a Deployment's pod, on node b with a service.
fn client_and_web(world: &mut World) -> Result<[Pod; 2]> {
    let client = world.pod(
        "a",
        PodSpec::new("client")
            .service_account("client")
            .label("app", "curl"),
    )?;
    let web = PodSpec::new("web-7d9f")
        .service_account("web")
        .label("app", "web")
        .label("version", "v2");
    let web = world.pod(
        "b",
        web.field("workloadName", json!("web"))
            .field("workloadType", json!("deployment")),
    )?;
    world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
    Ok([client, web])
}

fn ensure_labels(samples: &Samples, name: &str) -> Result<()> {
    let expect = BTreeSet::from(LABELS);
    let found = samples.find(name, &[]);
    ensure!(!found.is_empty(), "no {name}");
    for sample in found {
        let labels: BTreeSet<_> = sample.labels.keys().map(String::as_str).collect();
        ensure!(labels == expect, "{name}: {labels:?}");
    }
    Ok(())
}

/// The sum of a counter must become `expect`: a connection is counted when both of its ends are done.
fn ensure_count(agent: &Agent, name: &str, labels: &[(&str, &str)], expect: f64) -> Result<()> {
    let sum = || {
        agent
            .metrics()
            .map(|samples| samples.sum(name, labels))
            .unwrap_or(f64::NAN)
    };
    wait_until(&format!("{name} to be {expect}"), LIMIT, || sum() == expect)
        .with_context(|| format!("agent {}: {name}{labels:?} is {}", agent.node(), sum()))
}

#[test]
fn connections_are_counted_with_istios_names_and_labels() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, count)?;
        // 19 bytes up and 2 bytes ("19") down, twice.
        for _ in 0..2 {
            let answer = ask(client.connect("10.96.0.10:80".parse()?)?, MARKER)?;
            ensure!(answer == b"19", "{answer:?}");
        }
        let (client_id, web_id) = (client.identity(), web.identity());
        let (src, dst) = (client_id.as_str(), web_id.as_str());
        let common = [
            ("source_workload", "client"),
            ("source_canonical_service", "curl"),
            ("source_app", "curl"),
            ("source_workload_namespace", "demo"),
            ("source_principal", src),
            ("source_cluster", "Kubernetes"),
            ("destination_workload", "web"),
            ("destination_canonical_service", "web"),
            ("destination_canonical_revision", "v2"),
            ("destination_app", "web"),
            ("destination_version", "v2"),
            ("destination_workload_namespace", "demo"),
            ("destination_principal", dst),
            ("destination_cluster", "Kubernetes"),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("connection_security_policy", "mutual_tls"),
        ];
        for (agent, reporter) in [(&a, "source"), (&b, "destination")] {
            let mut labels = common.to_vec();
            labels.push(("reporter", reporter));
            labels.push(("destination_service", "web.demo.svc.cluster.local"));
            labels.push(("destination_service_name", "web"));
            labels.push(("destination_service_namespace", "demo"));
            ensure_count(agent, "istio_tcp_connections_closed_total", &labels, 2.0)?;
            ensure_count(agent, "istio_tcp_connections_opened_total", &labels, 2.0)?;
            // Received is client to server, sent is server to client, whichever side reports.
            ensure_count(agent, "istio_tcp_received_bytes_total", &labels, 38.0)?;
            ensure_count(agent, "istio_tcp_sent_bytes_total", &labels, 4.0)?;
            let samples = agent.metrics()?;
            for name in [
                "connections_opened",
                "connections_closed",
                "received_bytes",
                "sent_bytes",
            ] {
                ensure_labels(&samples, &format!("istio_tcp_{name}_total"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn failed_connections_are_counted_with_their_reason() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        world.mesh_mut().policy(
            "deny-9090",
            "DENY",
            "web",
            json!([{ "to": [{ "ports": ["9090"] }] }]),
        );
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(9090)?, echo)?;
        // Nobody listens on 8080; 9090 is denied.
        for port in [8080, 9090, 9090] {
            let met = client
                .connect(web.addr(port))
                .and_then(|mut stream| round_trip(&mut stream, MARKER));
            ensure!(met.is_err(), "port {port} cannot be reached");
        }
        for (agent, reporter) in [(&a, "source"), (&b, "destination")] {
            for (flags, failed) in [("CONNECT", 1.0), ("DENY", 2.0)] {
                let labels = [
                    ("reporter", reporter),
                    ("response_flags", flags),
                    ("source_workload", "client"),
                    ("destination_workload", "web"),
                ];
                ensure_count(agent, "istio_tcp_connections_failed_total", &labels, failed)?;
            }
            let samples = agent.metrics()?;
            ensure_labels(&samples, "istio_tcp_connections_failed_total")?;
            ensure!(
                samples.sum("istio_tcp_connections_opened_total", &[]) == 0.0,
                "none of them was open"
            );
            // The log's writer may be some milliseconds behind the counts.
            wait_until("the lines", LIMIT, || agent.access_lines().len() >= 3)?;
            let lines = agent.access_lines();
            ensure!(
                lines.len() == 3 && lines.iter().all(|line| !line.is_ok()),
                "one line each: {lines:#?}"
            );
        }
        Ok(())
    });
}

#[test]
fn gauges_tell_of_pods_the_mesh_and_open_connections() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let mut stream = client.connect("10.96.0.10:80".parse()?)?;
        round_trip(&mut stream, MARKER)?;
        for (agent, reporter) in [(&a, "source"), (&b, "destination")] {
            let samples = agent.metrics()?;
            let version = env!("CARGO_PKG_VERSION");
            for (name, labels, value) in [
                ("istio_tcp_sockets_open", &[("reporter", reporter)][..], 1.0),
                ("istio_build", &[("component", "weft"), ("tag", version)], 1.0),
                ("workload_manager_active_proxy_count", &[], 1.0),
                ("workload_manager_pending_proxy_count", &[], 0.0),
                ("workload_manager_proxies_started_total", &[], 1.0),
                ("weft_expected_pods", &[], 1.0),
                ("weft_captured_pods", &[], 1.0),
                ("weft_mesh_rejected_total", &[], 0.0),
                ("weft_access_log_dropped_total", &[], 0.0),
            ] {
                let found = samples.find(name, labels);
                ensure!(
                    found.len() == 1 && found[0].value == value,
                    "{name}: {found:?} instead of {value}"
                );
            }
            let loaded = samples.sum("weft_mesh_loaded_timestamp_seconds", &[]);
            let now = std::time::UNIX_EPOCH.elapsed()?.as_secs_f64();
            ensure!(
                (now - 60.0..=now).contains(&loaded),
                "loaded at {loaded}, and now is {now}"
            );
        }
        drop(stream);
        ensure_count(&a, "istio_tcp_sockets_open", &[("reporter", "source")], 0.0)?;
        ensure_count(&b, "istio_tcp_sockets_open", &[("reporter", "destination")], 0.0)?;
        let other_path = a.request("GET", METRICS_PORT, "/stats/prometheus")?;
        ensure!(
            other_path.status == 200 && other_path.body.ends_with("# EOF\n"),
            "{other_path:?}"
        );
        Ok(())
    });
}

/// Runs `weft status` with these arguments on a node.
fn weft_status(world: &World, node: &str, args: &[&str]) -> Result<Output> {
    let mut command = world.node(node).command(machine::binary("weft", "WEFT_BIN")?);
    command
        .arg("status")
        .args(args)
        .output()
        .context("run weft status")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn status_shows_programs_pods_certificates_and_connections() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let mut stream = client.connect("10.96.0.10:80".parse()?)?;
        round_trip(&mut stream, MARKER)?;
        let from = stream.local_addr()?;
        for (agent, pod, direction) in [(&a, &client, "outbound"), (&b, &web, "inbound")] {
            let output = weft_status(world, agent.node(), &["-o", "json"])?;
            ensure!(output.status.code() == Some(0), "{output:?}");
            let status: Value = serde_json::from_slice(&output.stdout)?;
            ensure_status(&status, agent.node(), pod, world)?;
            let open = &status["connections"];
            ensure!(open["open"] == 1, "{open}");
            let size = MARKER.len();
            let connection = &open["list"][0];
            let expect = json!({
                "direction": direction, "source": from.to_string(),
                "destination": web.addr(8080).to_string(),
                "requestBytes": size, "responseBytes": size,
            });
            for (field, value) in expect.as_object().into_iter().flatten() {
                ensure!(connection[field] == *value, "{field}: {connection}");
            }
            let peer = if direction == "outbound" { &web } else { &client };
            ensure!(connection["identity"] == peer.identity(), "{connection}");
            ensure!(
                connection["openSeconds"]
                    .as_u64()
                    .is_some_and(|seconds| seconds < 20),
                "{connection}"
            );

            let table = weft_status(world, agent.node(), &[])?;
            ensure!(table.status.code() == Some(0), "{table:?}");
            let table = text(&table.stdout);
            let names = [
                "MESH",
                "PODS  1 of 1 captured",
                "PROGRAMS",
                "CERTIFICATES",
                "CONNECTIONS  1 open",
            ];
            let (from, identity) = (from.to_string(), pod.identity());
            let shown = [
                &names[..],
                &[direction, &from, &identity, "weft_sk_lookup", "ready"],
            ]
            .concat();
            ensure!(
                shown.iter().all(|part| table.contains(part)),
                "{shown:?} in:\n{table}"
            );
            ensure!(!table.contains('✗') && !table.contains('\x1b'), "{table}");
        }
        // An open connection grows in front of one's eyes, and is gone when it ends.
        round_trip(&mut stream, MARKER)?;
        let request = |agent: &Agent| {
            agent
                .status()
                .map(|status| status["connections"]["list"][0]["requestBytes"].clone())
        };
        wait_until("the bytes so far", LIMIT, || {
            request(&b).is_ok_and(|bytes| bytes == 2 * MARKER.len())
        })?;
        drop(stream);
        world.wait_for_status("no open connection", |status| status["connections"]["open"] == 0)
    });
}

fn ensure_status(status: &Value, node: &str, pod: &Pod, world: &World) -> Result<()> {
    ensure!(status["node"] == node && status["ready"] == true, "{status:#}");
    ensure!(status["version"] == env!("CARGO_PKG_VERSION"), "{status:#}");
    ensure!(
        status["mesh"]["workloads"] == 2 && status["mesh"]["services"] == 1,
        "{status:#}"
    );
    ensure!(
        status["mesh"]["source"] == world.mesh_file(node).display().to_string(),
        "{status:#}"
    );
    let programs = status["programs"].as_array().cloned().unwrap_or_default();
    let names: BTreeSet<_> = programs
        .iter()
        .filter_map(|program| program["name"].as_str())
        .collect();
    let expect = [
        "connect4",
        "connect6",
        "sockops",
        "sk_lookup",
        "getpeername4",
        "getpeername6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
    ];
    let expect: Vec<_> = expect.iter().map(|name| format!("weft_{name}")).collect();
    ensure!(
        names == expect.iter().map(String::as_str).collect(),
        "{programs:#?}"
    );
    for program in &programs {
        ensure!(program["id"].as_u64().is_some_and(|id| id > 0), "{program}");
        ensure!(
            program["attachedTo"]
                .as_str()
                .is_some_and(|place| !place.is_empty()),
            "{program}"
        );
    }
    ensure!(
        status["expectedPods"] == 1 && status["capturedPods"] == 1,
        "{status:#}"
    );
    let shown = &status["pods"][0];
    ensure!(
        shown["state"] == "captured" && shown["identity"] == pod.identity(),
        "{shown}"
    );
    ensure!(shown["addresses"] == json!(pod.addresses()), "{shown}");
    let certificate = &status["certificates"][0];
    ensure!(certificate["identity"] == pod.identity(), "{certificate}");
    // 24 hours, of which hardly any are gone. (A certificate may be dated back for clocks that differ.)
    ensure!(
        certificate["expiresInSeconds"]
            .as_i64()
            .is_some_and(|s| (80_000..=86_400).contains(&s)),
        "{certificate}"
    );
    ensure!(
        certificate["ageSeconds"].as_u64().is_some_and(|s| s < 600),
        "{certificate}"
    );
    Ok(())
}

#[test]
fn a_pod_that_cannot_be_captured_is_named_and_does_not_hold_up_the_others() {
    with_world(|world| {
        client_and_web(world)?;
        let a = world.start_agent("a")?;
        let lost = json!({
            "name": "lost", "namespace": "demo", "node": "a", "addresses": ["10.244.1.77"],
            "tunnelProtocol": "HBONE", "netns": "/run/netns/weft-no-such-namespace",
        });
        world.mesh_mut().workloads.push(lost);
        world.apply()?;
        ensure!(a.request("GET", READY_PORT, "/healthz/ready")?.status == 200);
        let output = weft_status(world, "a", &[])?;
        let table = text(&output.stdout);
        ensure!(output.status.code() == Some(1), "{output:?}");
        let shown = [
            "PODS  1 of 2 captured",
            "failed: open the pod's network",
            "weft-no-such-namespace",
            "✗",
        ];
        ensure!(shown.iter().all(|part| table.contains(part)), "{table}");
        let samples = a.metrics()?;
        let pods = [
            samples.sum("weft_expected_pods", &[]),
            samples.sum("weft_captured_pods", &[]),
        ];
        ensure!(pods == [2.0, 1.0], "{pods:?} pods");

        world.mesh_mut().workloads.clear();
        world.apply()?;
        ensure!(weft_status(world, "a", &[])?.status.code() == Some(0));

        a.stop()?;
        let output = weft_status(world, "a", &[])?;
        let said = text(&output.stderr);
        ensure!(
            output.status.code() == Some(2) && output.stdout.is_empty(),
            "{output:?}"
        );
        ensure!(
            said.contains("no agent answers on 127.0.0.1:15000") && said.contains("--address"),
            "{said}"
        );
        Ok(())
    });
}

/// A root that is valid for these few seconds more.
fn short_lived_ca(dir: &Path, life: Duration) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + life).into();
    fs::create_dir(dir)?;
    fs::write(dir.join("root.pem"), params.self_signed(&key)?.pem())?;
    fs::write(dir.join("root-key.pem"), key.serialize_pem())?;
    Ok(())
}

#[test]
fn an_agent_without_certificates_is_not_ready_and_says_why() {
    with_world(|world| {
        client_and_web(world)?;
        let ca = world.dir().join("short-lived");
        short_lived_ca(&ca, Duration::from_secs(6))?;
        let a = world.start_agent_with("a", AgentOptions::default().ca(ca))?;
        let ready = a.request("GET", READY_PORT, "/healthz/ready")?;
        ensure!(ready.status == 200 && ready.body == "ready\n", "{ready:?}");
        let not_ready = wait_until("readiness to go with the certificates", LIMIT, || {
            a.request("GET", READY_PORT, "/healthz/ready")
                .ok()
                .filter(|answer| answer.status != 200)
        })?;
        let words = ["not ready", "demo/client", "waits for its certificate"];
        ensure!(
            not_ready.status == 503 && words.iter().all(|word| not_ready.body.contains(word)),
            "{not_ready:?}"
        );
        let output = weft_status(world, "a", &[])?;
        let table = text(&output.stdout);
        ensure!(
            output.status.code() == Some(1) && table.contains("waits for its certificate"),
            "{output:?}"
        );
        Ok(())
    });
}

#[test]
fn the_admin_port_is_on_localhost_only() {
    with_world(|world| {
        client_and_web(world)?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let a = world.start_agent("a")?;
        let node = world.node("a");
        for to in [node.addr(ADMIN_PORT), node.addr6(ADMIN_PORT)] {
            for from in [&**world.node("b"), &*stranger, &**node] {
                let met = from.connect(to).map_err(|error| error.kind());
                ensure!(
                    matches!(met, Err(std::io::ErrorKind::ConnectionRefused)),
                    "{from:?} to {to}: {met:?}"
                );
            }
        }
        // Prometheus and the kubelet come from elsewhere.
        for (port, path) in [(METRICS_PORT, "/metrics"), (READY_PORT, "/healthz/ready")] {
            let stream = world.node("b").connect(node.addr(port))?;
            ensure!(
                weft_tests::http::exchange(stream, "GET", path)?.status == 200,
                "{path}"
            );
            for path in ["/status", "/quitquitquit", "/logging", "/config_dump"] {
                let stream = world.node("b").connect(node.addr(port))?;
                let answer = weft_tests::http::exchange(stream, "POST", path)?;
                ensure!(answer.status == 404, "{path} on port {port}: {answer:?}");
            }
        }
        let dump: Value = serde_json::from_str(&a.request("GET", ADMIN_PORT, "/config_dump")?.body)?;
        ensure!(
            dump["config"]["node"] == "a" && dump["config"]["pinDir"] == node.pin_dir().display().to_string(),
            "the running configuration: {dump:#}"
        );
        ensure!(
            a.request("GET", ADMIN_PORT, "/quitquitquit")?.status == 405 && a.running(),
            "a GET ends nothing"
        );
        ensure!(a.request("POST", ADMIN_PORT, "/quitquitquit")?.status == 200);
        wait_until("the agent to end", LIMIT, || !a.running())
    });
}

/// One connection through both agents; the client's address.
fn one_connection(client: &Pod, to: SocketAddr) -> Result<String> {
    let mut stream: TcpStream = client.connect(to)?;
    round_trip(&mut stream, MARKER)?;
    Ok(stream.local_addr()?.to_string())
}

#[test]
fn the_log_level_changes_while_the_agent_runs() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let [a, _] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let opened = |from: &str| {
            a.log()
                .lines()
                .any(|line| line.contains("connection opened") && line.contains(from))
        };
        let done = |from: &str| a.wait_for_access("outbound", |line| line.field("src.addr") == from);

        let quiet = one_connection(&client, web.addr(8080))?;
        done(&quiet)?;
        ensure!(!opened(&quiet), "DEBUG lines at level info");

        ensure!(
            a.request("POST", ADMIN_PORT, "/logging?level=info,access=debug")?
                .status
                == 200
        );
        ensure!(
            a.request("GET", ADMIN_PORT, "/logging")?
                .body
                .contains("access=debug")
        );
        let verbose = one_connection(&client, web.addr(8080))?;
        done(&verbose)?;
        ensure!(opened(&verbose), "no DEBUG line at level debug");

        for wrong in ["verbose", "", "info,=", "a=b=c"] {
            let answer = a.request("POST", ADMIN_PORT, &format!("/logging?level={wrong}"))?;
            ensure!(answer.status == 400, "{wrong:?}: {answer:?}");
        }
        ensure!(
            a.request("GET", ADMIN_PORT, "/logging")?
                .body
                .contains("access=debug"),
            "a wrong filter changes nothing"
        );

        ensure!(a.request("POST", ADMIN_PORT, "/logging?level=info")?.status == 200);
        let again = one_connection(&client, web.addr(8080))?;
        done(&again)?;
        ensure!(!opened(&again), "DEBUG lines after the level went back");
        Ok(())
    });
}

#[test]
fn text_and_json_logs_say_the_same() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let text = world.start_agent_with("a", AgentOptions::default().text_log())?;
        let json = world.start_agent("b")?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let from = one_connection(&client, "10.96.0.10:80".parse()?)?;
        let (client_id, web_id, size) = (client.identity(), web.identity(), MARKER.len().to_string());
        // As ztunnel has it: `dst.addr` is where the packets went, `dst.hbone_addr` what the tunnel was asked for.
        let (to, hbone) = (web.addr(15008).to_string(), web.addr(8080).to_string());
        for (agent, direction) in [(&text, "outbound"), (&json, "inbound")] {
            let line = agent.wait_for_access(direction, |line| line.field("src.addr") == from)?;
            let wanted = [
                ("direction", direction),
                ("src.workload", "client"),
                ("src.namespace", "demo"),
                ("src.identity", &client_id),
                ("src.cluster", "Kubernetes"),
                ("dst.addr", &to),
                ("dst.hbone_addr", &hbone),
                ("dst.workload", "web-7d9f"),
                ("dst.namespace", "demo"),
                ("dst.identity", &web_id),
                ("dst.cluster", "Kubernetes"),
                ("bytes_sent", &size),
                ("bytes_recv", &size),
            ];
            ensure!(line.level == "INFO" && line.matches(&wanted), "{line}");
            ensure!(
                line.field("duration").ends_with("ms") && !line.has("error"),
                "{line}"
            );
            ensure!(
                agent.access_lines().len() == 1,
                "one line for one connection: {:#?}",
                agent.access_lines()
            );
        }
        ensure!(text.access_lines()[0].field("dst.service") == "web.demo.svc.cluster.local");
        for line in json.log().lines() {
            let line: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            for field in ["timestamp", "level", "target", "message"] {
                ensure!(line[field].is_string(), "no {field} in {line}");
            }
        }
        ensure!(!text.log().contains('\x1b'), "colours in a log");
        Ok(())
    });
}
