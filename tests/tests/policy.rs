//! Authorization on real traffic: who may reach a pod, by identity, namespace, address and port; what a change of policy
//! does to connections that are open; and where plaintext is taken (PERMISSIVE) or refused at the SYN (STRICT).

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use socket2::SockRef;
use weft_tests::{
    AccessLine, Agent, Host, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    machine, wait_until, with_world,
};

const MARKER: &[u8] = b"WEFT-POLICY-MARKER";

/// Mesh pods `client` (namespace demo) and `other` (namespace other) and the pod `outside`, which the mesh does not
/// know, on node a; `web` with ports 8080 and 9090 on node b.
struct Cast {
    client: Pod,
    other: Pod,
    outside: Pod,
    web: Pod,
    agents: [Agent; 2],
    servers: [Server; 2],
}

impl Cast {
    fn start(world: &mut World) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let other = world.pod(
            "a",
            PodSpec::new("other").namespace("other").service_account("other"),
        )?;
        let outside = world.pod("a", PodSpec::new("outside").unlisted())?;
        let web = world.pod(
            "b",
            PodSpec::new("web").service_account("web").label("app", "web"),
        )?;
        let agents = world.start_agents()?;
        let servers = [
            Server::start(web.listen(8080)?, echo)?,
            Server::start(web.listen(9090)?, echo)?,
        ];
        Ok(Self {
            client,
            other,
            outside,
            web,
            agents,
            servers,
        })
    }

    fn web_agent(&self) -> &Agent {
        &self.agents[1]
    }

    fn accepted(&self) -> u64 {
        self.servers.iter().map(Server::accepted).sum()
    }

    /// What client:8080, client:9090, other:8080 and outside:8080 meet.
    fn meet(&self) -> Result<[Met; 4]> {
        let to = |port| self.web.addr(port);
        Ok([
            dial(&self.client, to(8080))?,
            dial(&self.client, to(9090))?,
            dial(&self.other, to(8080))?,
            dial(&self.outside, to(8080))?,
        ])
    }

    /// The line that the server's agent wrote about a connection of this source.
    fn line_at_web(&self, from: SocketAddr) -> Result<AccessLine> {
        self.web_agent()
            .wait_for_access(&format!("inbound from {from}"), |line| {
                line.field("src.addr") == from.to_string() && line.field("direction") == "inbound"
            })
    }
}

/// What a client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// The app, which sent its bytes back.
    Echo,
    /// An end by RST after the connection was made: somebody accepted, and said no.
    Reset,
    /// ECONNREFUSED: nobody accepted.
    Refused,
}

/// Dials and sends the marker. Any end but the three of [`Met`], such as a timeout or a clean end, is an error.
fn dial(from: &Host, to: SocketAddr) -> Result<Met> {
    met(
        from.connect(to)
            .and_then(|mut stream| round_trip(&mut stream, MARKER)),
        from,
        to,
    )
}

/// The same from a port of the test's choice, by which the access lines are found.
fn dial_from(from: &Host, to: SocketAddr) -> Result<(Met, SocketAddr)> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    let local = if to.is_ipv4() {
        from.addr(port)
    } else {
        from.addr6(port)
    };
    let tried = from
        .connect_from(local, to)
        .and_then(|mut stream| round_trip(&mut stream, MARKER));
    Ok((met(tried, from, to)?, local))
}

fn met(tried: io::Result<()>, from: &Host, to: SocketAddr) -> Result<Met> {
    match tried {
        Ok(()) => Ok(Met::Echo),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ok(Met::Refused),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(Met::Reset),
            _ => Err(error).with_context(|| format!("{from:?} to {to}")),
        },
    }
}

/// A connection that stays, proven by one round trip.
fn open(from: &Host, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = from.connect(to)?;
    round_trip(&mut stream, MARKER).with_context(|| format!("{from:?} to {to}"))?;
    Ok(stream)
}

/// A policy for the pods with label `app: web`.
fn policy(name: &str, action: &str, rules: Value) -> Value {
    json!({
        "name": name, "namespace": "demo", "action": action, "selector": { "app": "web" }, "rules": rules,
    })
}

#[test]
fn policies_decide_by_principal_namespace_address_and_port() {
    use Met::{Echo, Reset};
    with_world(|world| {
        let cast = Cast::start(world)?;
        let client_ip = cast.client.v4().to_string();
        let outside_block = format!("{}/32", cast.outside.v4());
        // What client:8080, client:9090, other:8080 and outside:8080 meet under each policy.
        let cases = [
            (
                "ALLOW",
                json!([{ "from": [{ "principals": ["cluster.local/ns/demo/sa/client"] }] }]),
                [Echo, Echo, Reset, Reset],
            ),
            (
                "DENY",
                json!([{ "from": [{ "principals": ["cluster.local/ns/demo/sa/client"] }] }]),
                [Reset, Reset, Echo, Echo],
            ),
            (
                "ALLOW",
                json!([{ "from": [{ "namespaces": ["other"] }] }]),
                [Reset, Reset, Echo, Reset],
            ),
            (
                "DENY",
                json!([{ "from": [{ "namespaces": ["other"] }] }]),
                [Echo, Echo, Reset, Echo],
            ),
            (
                "ALLOW",
                json!([{ "from": [{ "ipBlocks": [client_ip] }] }]),
                [Echo, Echo, Reset, Reset],
            ),
            (
                "DENY",
                json!([{ "from": [{ "ipBlocks": [client_ip] }] }]),
                [Reset, Reset, Echo, Echo],
            ),
            (
                "ALLOW",
                json!([{ "from": [{ "ipBlocks": [outside_block] }] }]),
                [Reset, Reset, Reset, Echo],
            ),
            (
                "ALLOW",
                json!([{ "to": [{ "ports": ["8080"] }] }]),
                [Echo, Reset, Echo, Echo],
            ),
            (
                "DENY",
                json!([{ "to": [{ "ports": ["8080"] }] }]),
                [Reset, Echo, Reset, Reset],
            ),
            (
                "ALLOW",
                json!([{ "from": [{ "namespaces": ["demo"] }], "to": [{ "ports": ["9090"] }] }]),
                [Reset, Echo, Reset, Reset],
            ),
        ];
        ensure!(cast.meet()? == [Echo; 4], "without a policy everybody is let in");
        for (action, rules, expect) in cases {
            world.mesh_mut().policies = vec![policy("only", action, rules.clone())];
            world.apply()?;
            let before = cast.accepted();
            let met = cast.meet()?;
            ensure!(met == expect, "{action} {rules}: {met:?} instead of {expect:?}");
            let reached = met.iter().filter(|met| **met == Echo).count() as u64;
            ensure!(
                cast.accepted() - before == reached,
                "{action} {rules}: the app saw a refused connection"
            );
        }
        Ok(())
    });
}

#[test]
fn deny_is_enforced_before_allow() {
    with_world(|world| {
        world.mesh_mut().policies = vec![
            policy(
                "allow-all-names",
                "ALLOW",
                json!([{ "from": [{ "principals": ["*"] }] }]),
            ),
            policy(
                "deny-client",
                "DENY",
                json!([{ "from": [{ "principals": ["cluster.local/ns/demo/sa/client"] }] }]),
            ),
        ];
        let cast = Cast::start(world)?;
        let (met, from) = dial_from(&cast.other, cast.web.addr(8080))?;
        ensure!(met == Met::Echo, "the ALLOW policy lets nobody in: {met:?}");
        let line = cast.line_at_web(from)?;
        ensure!(
            line.is_ok() && line.field("policy") == "demo/allow-all-names",
            "{line}"
        );

        let (met, from) = dial_from(&cast.client, cast.web.addr(8080))?;
        ensure!(met == Met::Reset, "{met:?}");
        ensure!(
            cast.accepted() == 1,
            "the app saw the connection that the DENY policy refuses"
        );
        let line = cast.line_at_web(from)?;
        let wanted = [
            ("error", "denied by policy demo/deny-client"),
            ("policy", "demo/deny-client"),
            ("src.identity", &cast.client.identity()),
            ("dst.identity", &cast.web.identity()),
            ("bytes_sent", "0"),
            ("bytes_recv", "0"),
        ];
        ensure!(line.level == "ERROR" && line.matches(&wanted), "{line}");
        let outbound =
            cast.agents[0].wait_for_access("outbound", |line| line.field("src.addr") == from.to_string())?;
        ensure!(outbound.level == "ERROR" && outbound.has("error"), "{outbound}");
        for (agent, reporter) in cast.agents.iter().zip(["source", "destination"]) {
            let labels = [
                ("reporter", reporter),
                ("response_flags", "DENY"),
                ("source_principal", "spiffe://cluster.local/ns/demo/sa/client"),
            ];
            // What the client's agent knows of a tunnel that was refused has no proven identity in it.
            let labels = if reporter == "source" {
                &labels[..2]
            } else {
                &labels[..]
            };
            let failed = agent.metrics()?.sum("istio_tcp_connections_failed_total", labels);
            ensure!(failed == 1.0, "{reporter}: {failed} failed");
        }
        Ok(())
    });
}

#[test]
fn allow_policies_refuse_everybody_they_do_not_name() {
    with_world(|world| {
        world.mesh_mut().policies = vec![policy("nobody", "ALLOW", json!([]))];
        let cast = Cast::start(world)?;
        ensure!(
            cast.meet()? == [Met::Reset; 4],
            "an ALLOW policy without rules allows nothing"
        );
        ensure!(cast.accepted() == 0, "the app saw a refused connection");
        for (from, to) in [
            (&cast.outside, cast.web.addr(8080)),
            (&cast.client, cast.web.addr6(8080)),
        ] {
            let (met, from) = dial_from(from, to)?;
            ensure!(met == Met::Reset, "{met:?}");
            let line = cast.line_at_web(from)?;
            ensure!(
                line.field("error") == "no ALLOW policy matched: demo/nobody",
                "{line}"
            );
        }

        // A policy of another pod, of another namespace, or on trial does not refuse here.
        world.mesh_mut().policies = vec![
            json!({ "name": "theirs", "namespace": "other", "action": "DENY", "rules": [{}] }),
            json!({ "name": "trial", "namespace": "demo", "action": "DENY", "rules": [{}], "dryRun": true }),
        ];
        world.apply()?;
        ensure!(cast.meet()? == [Met::Echo; 4], "policies that do not apply");

        // One of the root namespace applies to all of them.
        world.mesh_mut().policies =
            vec![json!({ "name": "all", "namespace": "istio-system", "action": "DENY", "rules": [{}] })];
        world.apply()?;
        let (_, from) = dial_from(&cast.client, cast.web.addr(8080))?;
        let line = cast.line_at_web(from)?;
        ensure!(
            line.field("error") == "denied by policy istio-system/all",
            "{line}"
        );
        Ok(())
    });
}

#[test]
fn a_policy_change_closes_open_connections_that_it_refuses_and_no_others() {
    with_world(|world| {
        let cast = Cast::start(world)?;
        let mut refused = open(&cast.client, cast.web.addr(8080))?;
        let mut kept = [
            open(&cast.client, cast.web.addr(9090))?,
            open(&cast.other, cast.web.addr(8080))?,
            open(&cast.outside, cast.web.addr(8080))?,
        ];
        let from = refused.local_addr()?;

        let rules = json!([{ "from": [{ "namespaces": ["demo"] }], "to": [{ "ports": ["8080"] }] }]);
        world.mesh_mut().policies = vec![policy("deny-demo", "DENY", rules)];
        world.apply_text("b", &world.mesh_text())?;
        let changed = Instant::now();
        let ended = refused.read(&mut [0]);
        let after = changed.elapsed();
        let ended = ended.map_err(|error| error.kind());
        ensure!(
            ended == Err(io::ErrorKind::ConnectionReset),
            "the client sees {ended:?}"
        );
        ensure!(
            after < Duration::from_secs(1),
            "closed {after:?} after the change"
        );

        let line = cast.line_at_web(from)?;
        let size = MARKER.len().to_string();
        let wanted = [
            ("error", "denied by policy demo/deny-demo"),
            ("src.identity", &cast.client.identity()),
            ("bytes_sent", &size),
            ("bytes_recv", &size),
        ];
        ensure!(line.level == "ERROR" && line.matches(&wanted), "{line}");
        let outbound =
            cast.agents[0].wait_for_access("outbound", |line| line.field("src.addr") == from.to_string())?;
        ensure!(outbound.level == "ERROR", "{outbound}");
        wait_until("the app to see the reset", LIMIT, || {
            cast.servers[0]
                .errors()
                .iter()
                .any(|error| error.contains("reset"))
        })?;
        for stream in &mut kept {
            round_trip(stream, MARKER).context("a connection that the policy allows")?;
        }
        let open = &cast.web_agent().status()?["connections"]["open"];
        ensure!(*open == 3, "{open} open connections at the server's agent");
        let closed = cast.web_agent().metrics()?.sum(
            "istio_tcp_connections_closed_total",
            &[("reporter", "destination"), ("response_flags", "DENY")],
        );
        ensure!(closed == 1.0, "{closed} connections closed by policy");
        Ok(())
    });
}

#[test]
fn a_connection_that_is_being_opened_when_the_policy_changes_is_refused() {
    with_world(|world| {
        let cast = Cast::start(world)?;
        // An app whose queue is full: a connection to it was authorized and waits for the app to take it.
        let slow = cast.web.listen(7070)?;
        SockRef::from(&slow).listen(0)?;
        let mut queued = Vec::new();
        let full = loop {
            match cast
                .web
                .connect_within(cast.web.addr(7070), Duration::from_millis(100))
            {
                Ok(stream) => queued.push(stream),
                Err(error) => break error.kind(),
            }
        };
        ensure!(full == io::ErrorKind::TimedOut, "{full:?}");
        let mut waiting = cast.client.connect(cast.web.addr(7070))?;
        waiting.write_all(MARKER)?;
        let tuple = format!(":{:04X}", 7070);
        wait_until("the agent to dial the app", LIMIT, || syn_sent(&cast.web, &tuple))?;

        world.mesh_mut().policies = vec![policy("deny-all", "DENY", json!([{}]))];
        world.apply()?;
        let server = Server::start(slow, echo)?;
        let answer = waiting.read(&mut [0]).map_err(|error| error.kind());
        ensure!(
            answer == Err(io::ErrorKind::ConnectionReset),
            "the client sees {answer:?}"
        );
        let line = cast.line_at_web(waiting.local_addr()?)?;
        ensure!(line.field("error") == "denied by policy demo/deny-all", "{line}");
        drop(server);
        Ok(())
    });
}

/// Whether some socket in the pod's namespace has sent a SYN from loopback to this port and has no answer.
fn syn_sent(pod: &Pod, port: &str) -> bool {
    let table = pod
        .netns()
        .run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"));
    let Ok(Ok(table)) = table else { return false };
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [_, local, remote, "02", ..] if local.contains("7F:") && remote.ends_with(port))
    })
}

/// Everybody who can only speak plaintext: a pod that the mesh does not know on either node, one that it knows but has
/// not enrolled, and the nodes themselves.
fn strangers(world: &mut World) -> Result<Vec<Pod>> {
    Ok(vec![
        world.pod("a", PodSpec::new("far").unlisted())?,
        world.pod("b", PodSpec::new("near").unlisted())?,
        world.pod("a", PodSpec::new("known").outside())?,
        world.pod("b", PodSpec::new("shared").host_network().outside())?,
    ])
}

#[test]
fn strict_refuses_plaintext_at_the_syn_and_takes_tunnels() {
    with_world(|world| {
        let strangers = strangers(world)?;
        let api = world.pod(
            "b",
            PodSpec::new("api").service_account("api").label("app", "api"),
        )?;
        let cast = Cast::start(world)?;
        let api_server = Server::start(api.listen(8080)?, echo)?;
        // Each scope, and whether web:8080, web:9090 and api:8080 are STRICT under it.
        let cases = [
            (
                json!([{ "namespace": "istio-system", "mode": "STRICT" }]),
                [true, true, true],
            ),
            (
                json!([{ "namespace": "demo", "mode": "STRICT" }]),
                [true, true, true],
            ),
            (
                json!([{ "namespace": "other", "mode": "STRICT" }]),
                [false, false, false],
            ),
            (
                json!([{ "namespace": "demo", "selector": { "app": "web" }, "mode": "STRICT" }]),
                [true, true, false],
            ),
            (
                json!([
                    { "namespace": "demo", "mode": "STRICT" },
                    { "namespace": "demo", "selector": { "app": "web" }, "portLevelMtls": { "9090": "PERMISSIVE" } },
                ]),
                [true, false, true],
            ),
            (
                json!([{
                    "namespace": "demo", "selector": { "app": "web" },
                    "mode": "PERMISSIVE", "portLevelMtls": { "8080": "STRICT" },
                }]),
                [true, false, false],
            ),
            (json!([]), [false, false, false]),
        ];
        for (modes, strict) in cases {
            world.mesh_mut().peer_authentications = modes.as_array().cloned().unwrap_or_default();
            world.apply()?;
            // Not the pods' own node, which is the kubelet: see probes.rs.
            let nodes = [&**world.node("a")];
            let all: Vec<&Host> = strangers.iter().map(|pod| &**pod).chain(nodes).collect();
            let before = [cast.accepted(), api_server.accepted()];
            let lines = cast.web_agent().access_lines().len();
            let targets = [(&cast.web, 8080), (&cast.web, 9090), (&api, 8080)];
            let (mut plain, mut refused) = (0, 0);
            for ((pod, port), strict) in targets.into_iter().zip(strict) {
                let expect = if strict { Met::Refused } else { Met::Echo };
                for to in [pod.addr(port), pod.addr6(port)] {
                    for from in &all {
                        let met = dial(from, to)?;
                        ensure!(
                            met == expect,
                            "{modes}: {from:?} to {to}: {met:?} instead of {expect:?}"
                        );
                        *(if strict { &mut refused } else { &mut plain }) += 1;
                    }
                    let met = dial(&cast.client, to)?;
                    ensure!(met == Met::Echo, "{modes}: a tunnel to {to}: {met:?}");
                }
            }
            let accepted = cast.accepted() + api_server.accepted() - before[0] - before[1];
            ensure!(
                accepted == plain + 6,
                "{modes}: {refused} refused, yet the apps accepted {accepted}"
            );
            // Refused at the SYN: not even the agent accepted, so there is nothing to write a line about.
            let wanted = lines + accepted as usize;
            wait_until("the lines of what was carried", LIMIT, || {
                cast.web_agent().access_lines().len() >= wanted
            })?;
            let written = cast.web_agent().access_lines();
            ensure!(
                written.len() == wanted && written.iter().all(AccessLine::is_ok),
                "{modes}: {written:#?}"
            );
        }
        Ok(())
    });
}

#[test]
fn permissive_takes_plaintext_and_says_so() {
    with_world(|world| {
        let cast = Cast::start(world)?;
        for to in [cast.web.addr(8080), cast.web.addr6(8080)] {
            let stream = open(&cast.outside, to)?;
            let from = stream.local_addr()?;
            ensure!(
                stream.peer_addr()? == to,
                "the client sees {}",
                stream.peer_addr()?
            );
            drop(stream);
            let line = cast.line_at_web(from)?;
            let (size, to) = (MARKER.len().to_string(), to.to_string());
            let wanted = [
                ("dst.addr", to.as_str()),
                ("dst.workload", "web"),
                ("bytes_sent", &size),
                ("bytes_recv", &size),
            ];
            ensure!(line.is_ok() && line.matches(&wanted), "{line}");
            ensure!(
                !line.has("src.identity") && !line.has("dst.identity"),
                "plaintext proves nothing: {line}"
            );
            ensure!(
                cast.servers[0].peers().last() == Some(&from),
                "the app sees {:?}",
                cast.servers[0].peers()
            );
        }
        let labels = [
            ("reporter", "destination"),
            ("connection_security_policy", "unknown"),
            ("source_principal", "unknown"),
            ("destination_workload", "web"),
        ];
        let metrics = cast.web_agent().metrics()?;
        for name in ["opened", "closed"] {
            let count = metrics.sum(&format!("istio_tcp_connections_{name}_total"), &labels);
            ensure!(count == 2.0, "{name}: {count}");
        }
        Ok(())
    });
}

#[test]
fn strict_closes_plaintext_connections_that_are_open() {
    with_world(|world| {
        let cast = Cast::start(world)?;
        let mut plaintext = open(&cast.outside, cast.web.addr(8080))?;
        let mut tunnelled = open(&cast.client, cast.web.addr(8080))?;
        world.mesh_mut().mtls("demo", "STRICT");
        world.apply()?;
        let ended = plaintext.read(&mut [0]).map_err(|error| error.kind());
        ensure!(
            ended == Err(io::ErrorKind::ConnectionReset),
            "the client sees {ended:?}"
        );
        let line = cast.line_at_web(plaintext.local_addr()?)?;
        ensure!(
            line.field("error")
                == "mutual TLS is required (STRICT) on port 8080 by peer authentication demo/default (namespace)",
            "{line}"
        );
        round_trip(&mut tunnelled, MARKER).context("the tunnelled connection")
    });
}

#[test]
fn a_policy_names_a_plaintext_peer_by_its_address() {
    with_world(|world| {
        let second = world.pod("a", PodSpec::new("second").unlisted())?;
        let cast = Cast::start(world)?;
        let rules = json!([
            { "from": [{ "ipBlocks": [cast.outside.v4().to_string(), format!("{}/128", cast.outside.v6())] }] },
            { "from": [{ "principals": ["cluster.local/ns/other/*"] }] },
        ]);
        world.mesh_mut().policies = vec![policy("scraper", "ALLOW", rules)];
        world.apply()?;
        for to in [cast.web.addr(8080), cast.web.addr6(8080)] {
            let (met, from) = dial_from(&cast.outside, to)?;
            ensure!(met == Met::Echo, "{to}: {met:?}");
            let line = cast.line_at_web(from)?;
            ensure!(line.field("policy") == "demo/scraper", "{line}");
            // A plaintext peer has no principal, whatever it says of itself.
            for client in [&second, &cast.client] {
                let (met, from) = dial_from(client, to)?;
                ensure!(met == Met::Reset, "{client:?} to {to}: {met:?}");
                let line = cast.line_at_web(from)?;
                ensure!(
                    line.field("error") == "no ALLOW policy matched: demo/scraper",
                    "{line}"
                );
            }
            ensure!(
                dial(&cast.other, to)? == Met::Echo,
                "an identity that the policy names"
            );
        }
        Ok(())
    });
}

#[test]
fn what_only_a_request_has_denies_unless_a_waypoint_enforces_it() {
    use Met::{Echo, Reset};
    with_world(|world| {
        let gate = world.pod(
            "a",
            PodSpec::new("gate").service_account("gate").label("app", "gate"),
        )?;
        let cast = Cast::start(world)?;
        let by_path = json!([{ "to": [{ "paths": ["/admin*"], "notMethods": ["GET"] }] }]);
        let by_path_from_demo = json!([{ "from": [{ "namespaces": ["demo"] }], "to": [{ "paths": ["/admin*"], "ports": ["8080"] }] }]);
        let by_path_or_port = json!([{ "to": [{ "paths": ["/ok"] }, { "ports": ["9090"] }] }]);
        let by_token = json!([{ "when": [{ "key": "request.auth.claims[iss]", "values": ["x"] }] }]);
        let cases = [
            ("DENY", &by_path, [Reset; 4]),
            ("DENY", &by_token, [Reset; 4]),
            ("DENY", &by_path_from_demo, [Reset, Echo, Echo, Echo]),
            ("ALLOW", &by_path, [Reset; 4]),
            ("ALLOW", &by_path_or_port, [Reset, Echo, Reset, Reset]),
        ];
        for (action, rules, expect) in cases {
            world.mesh_mut().policies = vec![policy("only", action, rules.clone())];
            world.apply()?;
            let met = cast.meet()?;
            ensure!(met == expect, "{action} {rules}: {met:?} instead of {expect:?}");
        }
        cast.web_agent().wait_for_log("the warning", |line| {
            line.contains("policies[0].rules[0].to[0]") && line.contains("no agent sees notMethods, paths")
        })?;

        // Bound to a waypoint, what comes out of it is spared, and nobody else.
        world.mesh_mut().policies = vec![policy("by-path", "DENY", by_path)];
        world.apply()?;
        ensure!(dial(&gate, cast.web.addr(8080))? == Reset, "not bound to it yet");
        let services = &mut world.mesh_mut().services;
        services.push(json!({ "name": "gate", "namespace": "demo", "selector": { "app": "gate" } }));
        services.push(json!({
            "name": "web", "namespace": "demo", "vips": ["10.96.0.10"], "selector": { "app": "web" },
            "ports": [{ "port": 80, "targetPort": 8080 }], "waypoint": { "service": "demo/gate" },
        }));
        world.apply()?;
        for to in [
            cast.web.addr(8080),
            cast.web.addr6(8080),
            SocketAddr::from(([10, 96, 0, 10], 80)),
        ] {
            let met = dial(&gate, to)?;
            ensure!(met == Echo, "out of the waypoint to {to}: {met:?}");
        }
        let (met, from) = dial_from(&cast.client, cast.web.addr(8080))?;
        ensure!(met == Reset, "around the waypoint: {met:?}");
        let line = cast.line_at_web(from)?;
        ensure!(line.field("error") == "denied by policy demo/by-path", "{line}");
        Ok(())
    });
}

#[test]
fn dry_run_policies_are_logged_and_counted_and_never_enforced() {
    with_world(|world| {
        let mut trial = policy("trial", "DENY", json!([{ "from": [{ "namespaces": ["demo"] }] }]));
        trial["dryRun"] = json!(true);
        let mut narrow = policy("narrow", "ALLOW", json!([{ "to": [{ "ports": ["9090"] }] }]));
        narrow["dryRun"] = json!(true);
        world.mesh_mut().policies = vec![trial, narrow];
        let cast = Cast::start(world)?;
        ensure!(cast.meet()? == [Met::Echo; 4], "a policy on trial was enforced");
        let count = |policy: &str, action: &str| -> Result<f64> {
            let labels = [("namespace", "demo"), ("policy", policy), ("action", action)];
            Ok(cast
                .web_agent()
                .metrics()?
                .sum("weft_dry_run_matches_total", &labels))
        };
        ensure!(count("trial", "DENY")? == 2.0, "client, to two ports");
        ensure!(count("narrow", "ALLOW")? == 1.0, "client to port 9090");
        for (policy, action) in [("demo/trial", "DENY"), ("demo/narrow", "ALLOW")] {
            cast.web_agent().wait_for_log("a line about the match", |line| {
                line.contains("a dry-run policy matched") && line.contains(policy) && line.contains(action)
            })?;
        }
        Ok(())
    });
}

/// The exit code of `weft explain` on node a, and the reason of the last verdict or of the route.
fn explained(world: &World, from: &str, to: SocketAddr) -> Result<(i32, String)> {
    let mut command = world.node("a").command(machine::binary("weft", "WEFT_BIN")?);
    command.args(["explain", "--from", from, "--to", &to.to_string(), "-o", "json"]);
    let output = command.output().context("run weft explain")?;
    let code = output.status.code().context("weft explain was killed")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let said: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{code}: {errors}"))?;
    let last = said["ways"][0]["hops"].as_array().and_then(|hops| hops.last());
    let last = last.context("no hop")?;
    let reason = last["verdict"]["reason"].as_str().or(last["reason"].as_str());
    Ok((code, reason.unwrap_or_default().to_owned()))
}

#[test]
fn explain_says_what_happens() {
    with_world(|world| {
        world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
        let cast = Cast::start(world)?;
        let demo = json!([{ "from": [{ "namespaces": ["demo"] }] }]);
        let cases = [
            (json!([]), "PERMISSIVE"),
            (json!([policy("demo-only", "ALLOW", demo.clone())]), "PERMISSIVE"),
            (json!([policy("not-demo", "DENY", demo)]), "PERMISSIVE"),
            (
                json!([policy(
                    "by-path",
                    "DENY",
                    json!([{ "to": [{ "paths": ["/x"], "ports": ["9090"] }] }])
                )]),
                "PERMISSIVE",
            ),
            (json!([]), "STRICT"),
        ];
        let service = SocketAddr::from(([10, 96, 0, 10], 80));
        let targets = [
            cast.web.addr(8080),
            cast.web.addr6(9090),
            cast.web.addr(15008),
            service,
            SocketAddr::from(([10, 96, 0, 10], 81)),
            SocketAddr::from(([10, 244, 9, 9], 80)),
        ];
        for (policies, mode) in cases {
            let mesh = world.mesh_mut();
            mesh.policies = policies.as_array().cloned().unwrap_or_default();
            mesh.peer_authentications.clear();
            mesh.mtls("demo", mode);
            world.apply()?;
            for (pod, name) in [
                (&cast.client, cast.client.namespaced_name()),
                (&cast.other, cast.other.namespaced_name()),
                (&cast.outside, cast.outside.v4().to_string()),
            ] {
                // Nothing but weft answers at a service's address here, nor where nobody is.
                let captured = name.contains('/');
                for to in targets
                    .into_iter()
                    .filter(|to| captured || (cast.web.addresses().contains(&to.ip()) && to.port() != 15008))
                {
                    let (code, reason) = explained(world, &name, to)?;
                    let met = dial(pod, to)?;
                    ensure!(
                        (code == 0) == (met == Met::Echo) && code < 2,
                        "{policies} {mode}: {name} to {to}: {met:?}, but explain ends in {code}: {reason}"
                    );
                    ensure!(!reason.is_empty(), "{name} to {to}: no reason");
                }
            }
        }
        Ok(())
    });
}

#[test]
fn explain_gives_the_reason_that_the_access_log_gives() {
    with_world(|world| {
        let deny = json!([{ "from": [{ "namespaces": ["other"] }] }]);
        world.mesh_mut().policies = vec![
            policy("not-other", "DENY", deny),
            policy("only-9090", "ALLOW", json!([{ "to": [{ "ports": ["9090"] }] }])),
        ];
        let cast = Cast::start(world)?;
        for (pod, name) in [
            (&cast.client, "demo/client".to_owned()),
            (&cast.other, "other/other".to_owned()),
            (&cast.outside, cast.outside.v4().to_string()),
        ] {
            let to = cast.web.addr(8080);
            let (code, reason) = explained(world, &name, to)?;
            let (met, from) = dial_from(pod, to)?;
            ensure!(met == Met::Reset && code == 1, "{name}: {met:?}, {code}");
            let line = cast.line_at_web(from)?;
            ensure!(line.field("error") == reason, "{name}: {reason}, but {line}");
        }
        let (code, reason) = explained(world, "demo/client", cast.web.addr(9090))?;
        let (met, from) = dial_from(&cast.client, cast.web.addr(9090))?;
        ensure!(met == Met::Echo && code == 0, "{met:?}, {code}");
        let line = cast.line_at_web(from)?;
        ensure!(
            reason == format!("allowed by policy {}", line.field("policy")),
            "{reason}, but {line}"
        );
        Ok(())
    });
}

#[test]
fn explain_knows_a_pod_that_is_not_captured() {
    with_world(|world| {
        let nowhere = json!("/run/netns/weft-there-is-no-such-namespace");
        let lost = world.pod("a", PodSpec::new("lost").field("netns", nowhere))?;
        let cast = Cast::start(world)?;
        for (mode, expect) in [("PERMISSIVE", Met::Echo), ("STRICT", Met::Refused)] {
            world.mesh_mut().peer_authentications.clear();
            world.mesh_mut().mtls("demo", mode);
            world.apply()?;
            let (code, reason) = explained(world, "demo/lost", cast.web.addr(8080))?;
            let met = dial(&lost, cast.web.addr(8080))?;
            ensure!(met == expect, "{mode}: {met:?}");
            ensure!(
                (code == 0) == (met == Met::Echo),
                "{mode}: {met:?}, but {code}: {reason}"
            );
        }
        Ok(())
    });
}
