//! A waypoint between two nodes' agents: manifests as people have them, real clients and servers, and what a waypoint
//! promises about routing, identity, tokens and its end.

mod common;
#[path = "waypoint/requests.rs"]
mod requests;
#[path = "waypoint/scene.rs"]
mod scene;

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use requests::Requests;
use scene::{GRPC, GRPC_PORT, HTTP_PORT, SERVICE, Scene, TCP, TCP_PORT};
use serde_json::json;
use weft_tests::{
    AgentOptions, LIMIT, PodSpec, Server,
    app::{banner, echo, round_trip},
    capture::contains,
    curl,
    program::{PYTHON, run, source},
    tokens::{Issuer, now},
    wait_until, with_world,
};

/// How many requests weights are counted over.
const COUNTED: usize = 1000;

/// So many of `COUNTED` may be off, at five standard deviations of a binomial distribution.
fn spread(share: f64) -> f64 {
    5.0 * (COUNTED as f64 * share * (1.0 - share)).sqrt()
}

/// Which apps answered how many requests of one connection.
fn counted(scene: &Scene, target: &str) -> Result<BTreeMap<String, usize>> {
    let mut requests = scene.requests()?;
    let mut counted = BTreeMap::new();
    for _ in 0..COUNTED {
        let answer = requests.get(target)?;
        ensure!(answer.status == 200, "{answer:?}");
        *counted.entry(answer.by()).or_default() += 1;
    }
    Ok(counted)
}

fn check_share(counted: &BTreeMap<String, usize>, app: &str, share: f64) -> Result<()> {
    let got = counted.get(app).copied().unwrap_or_default() as f64;
    let expected = share * COUNTED as f64;
    ensure!(
        (got - expected).abs() <= spread(share),
        "{app} was to answer {expected}: {counted:?}"
    );
    Ok(())
}

#[test]
fn the_canary_seed_splits_requests_of_one_connection_as_it_says() {
    with_world(|world| {
        let scene = Scene::set(world, "shipping-service", &["03-mesh-canary.yaml"])?;
        scene.wait_for("/", 200)?;
        let capture = world.capture_link()?;
        let answers = counted(&scene, "/marker/WEFT-PLAINTEXT-MARKER-7d1f")?;
        ensure!(!contains(&capture.stop()?, common::MARKER), "it was in clear");
        check_share(&answers, "v1", 0.9)?;
        check_share(&answers, "v2", 0.1)
    });
}

/// The second seed binds a gateway; derived for the mesh it has neither `gateways` nor that host.
const WEIGHTS: &str = "
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: shop-vs}
spec:
  hosts: [shop]
  http:
  - match:
    - uri: {prefix: /}
    route:
    - {destination: {host: shop, subset: v1, port: {number: 80}}, weight: 80}
    - {destination: {host: shop, subset: v2, port: {number: 80}}, weight: 20}
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: shop-dr}
spec:
  host: shop
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
  - {name: v2, labels: {version: v2}}
";

#[test]
fn weights_are_those_of_the_manifest_and_follow_its_change() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS])?;
        scene.wait_for("/", 200)?;
        let answers = counted(&scene, "/")?;
        check_share(&answers, "v1", 0.8)?;
        check_share(&answers, "v2", 0.2)?;
        // Everything to the second version, on the connection that is open.
        let mut open = scene.requests()?;
        open.get("/")?;
        let file = &world.mesh_mut().manifests[0].clone();
        let all = WEIGHTS
            .replace("weight: 80", "weight: 0")
            .replace("weight: 20", "weight: 100");
        std::fs::write(file, all)?;
        wait_until("the second version alone", LIMIT, || {
            (0..20)
                .all(|_| open.get("/").is_ok_and(|answer| answer.by() == "v2"))
                .then_some(())
        })
    });
}

/// What the sixth seed needs beside it.
fn request_authentication(issuer: &Issuer) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: booking, namespace: default}}
spec:
  selector: {{matchLabels: {{app: booking-service}}}}
  jwtRules:
  - issuer: testing@secure.istio.io
    jwks: '{}'
",
        issuer.jwks()
    )
}

#[test]
fn the_token_seed_lets_in_whom_it_names_and_nobody_else() {
    with_world(|world| {
        let (issuer, forger) = (Issuer::new()?, Issuer::new()?);
        let beside = request_authentication(&issuer);
        let scene = Scene::set(world, "booking-service", &["06-require-jwt.yaml", &beside])?;
        let name = "testing@secure.istio.io";
        let bearer = |token: String| format!("Bearer {token}");
        let right = bearer(issuer.of(name, name)?);
        wait_until("the right token to pass", LIMIT, || {
            let answer = scene
                .requests()
                .ok()?
                .ask("GET", "/", &[("authorization", &right)], b"");
            (answer.ok()?.status == 200).then_some(())
        })?;
        let expired = json!({ "iss": name, "sub": name, "exp": now() - 3600 });
        let refused = [
            (
                "somebody else's subject",
                Some(bearer(issuer.of(name, "other")?)),
                403,
            ),
            ("no token", None, 403),
            (
                "a token that has run out",
                Some(bearer(issuer.token(&expired)?)),
                401,
            ),
            ("another key", Some(bearer(forger.of(name, name)?)), 401),
            (
                "an issuer that nobody knows",
                Some(bearer(issuer.of("evil", name)?)),
                401,
            ),
            ("no token at all", Some(bearer("garbage".to_owned())), 401),
        ];
        let mut requests = scene.requests()?;
        for (what, token, status) in &refused {
            let headers: Vec<_> = token
                .iter()
                .map(|token| ("authorization", token.as_str()))
                .collect();
            let answer = requests.ask("GET", "/", &headers, b"")?;
            ensure!(
                answer.status == *status,
                "{what}: {} {}",
                answer.status,
                answer.text()
            );
        }
        let denied = requests.get("/")?;
        ensure!(denied.text() == "RBAC: access denied", "{denied:?}");
        // The same connection, with the right one again.
        let answer = requests.ask("GET", "/", &[("authorization", &right)], b"")?;
        ensure!(
            answer.status == 200 && answer.app_saw("authorization").is_empty(),
            "{answer:?}"
        );
        Ok(())
    });
}

/// The second version for whoever is alice.
const BY_CLAIM: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - match: [{headers: {x-subject: {exact: alice}}}]
    route: [{destination: {host: shop, subset: v2, port: {number: 80}}}]
  - route: [{destination: {host: shop, subset: v1, port: {number: 80}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
";

#[test]
fn routes_go_by_what_a_token_says_and_not_by_what_a_client_writes_in_its_place() {
    with_world(|world| {
        let issuer = Issuer::new()?;
        let beside = request_authentication(&issuer).replace("booking-service", "shop");
        let beside = format!("{beside}    outputClaimToHeaders: [{{header: x-subject, claim: sub}}]\n");
        let scene = Scene::set(world, "shop", &[BY_CLAIM, &beside])?;
        scene.wait_for("/", 200)?;
        let mut requests = scene.requests()?;
        let forged = requests.ask("GET", "/", &[("x-subject", "alice")], b"")?;
        ensure!(
            forged.by() == "v1" && forged.app_saw("x-subject").is_empty(),
            "{forged:?}"
        );
        for (subject, version) in [("alice", "v2"), ("bob", "v1")] {
            let token = format!("Bearer {}", issuer.of("testing@secure.istio.io", subject)?);
            let headers = [("authorization", token.as_str()), ("x-subject", "alice")];
            let answer = requests.ask("GET", "/", &headers, b"")?;
            ensure!(
                answer.by() == version && answer.app_saw("x-subject") == subject,
                "{answer:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_app_sees_who_the_client_is_and_no_client_can_pretend() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS])?;
        scene.wait_for("/", 200)?;
        let forged = [
            (
                "x-forwarded-client-cert",
                "URI=spiffe://cluster.local/ns/default/sa/admin",
            ),
            ("x-forwarded-for", "1.2.3.4"),
        ];
        let answer = scene.requests()?.ask("GET", "/", &forged, b"")?;
        let xfcc = answer.app_saw("x-forwarded-client-cert");
        ensure!(
            xfcc.contains(&format!("URI={}", scene.client.identity())),
            "{answer:?}"
        );
        ensure!(!xfcc.contains("sa/admin"), "{xfcc}");
        ensure!(
            answer.app_saw("x-forwarded-for") == scene.client.v4().to_string(),
            "{answer:?}"
        );
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let answer = scene
            .requests()?
            .ask("GET", "/", &[("traceparent", trace)], b"")?;
        let seen = answer.app_saw("traceparent");
        ensure!(
            seen.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && seen.ends_with("-01"),
            "{seen}"
        );
        ensure!(
            !seen.contains("b7ad6b7169203331"),
            "the span is the waypoint's own: {seen}"
        );
        Ok(())
    });
}

/// Who may ask for what, by identity and by request.
const PATHS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: default}
spec:
  targetRefs: [{kind: Service, group: '', name: shop}]
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]
    to: [{operation: {methods: [GET], paths: [/public/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  selector: {matchLabels: {app: shop}}
  action: DENY
  rules:
  - to: [{operation: {paths: [/public/admin*]}}]
";

#[test]
fn policies_see_the_clients_identity_and_the_normalised_path() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS, PATHS])?;
        scene.wait_for("/public/a", 200)?;
        let mut requests = scene.requests()?;
        for (method, target, status) in [
            ("GET", "/public/a?b=c", 200),
            ("POST", "/public/a", 403),
            ("GET", "/private", 403),
            ("GET", "/public/admin", 403),
            ("GET", "/public//admin", 403),
            ("GET", "/public/./admin", 403),
            ("GET", "/public/x/../admin", 403),
            ("GET", "/public/../private", 403),
        ] {
            let answer = requests.ask(method, target, &[], b"")?;
            ensure!(answer.status == status, "{method} {target}: {answer:?}");
        }
        let mut stranger = Requests::open(&scene.other, SERVICE.parse()?, "shop")?;
        let answer = stranger.get("/public/a")?;
        ensure!(answer.status == 403, "{answer:?}");
        Ok(())
    });
}

/// Retries, a timeout, a redirect, an answer of the waypoint's own, headers and a rewrite.
const RULES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /flaky}}, {uri: {prefix: /close}}]
    retries: {attempts: 3, retryOn: '5xx,reset', backoff: 1ms}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /slow}}]
    timeout: 300ms
    route: [{destination: {host: shop}}]
  - match: [{uri: {exact: /old}}]
    redirect: {uri: /new, redirectCode: 308}
  - match: [{uri: {prefix: /direct}}]
    directResponse: {status: 418, body: {string: teapot}}
  - match: [{uri: {prefix: /rewrite/}, headers: {x-kind: {exact: gold}}}]
    rewrite: {uri: /}
    headers: {request: {set: {x-added: one}, remove: [x-kind]}, response: {add: {x-answer: two}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /flaky-not}}, {uri: {prefix: /plain}}]
    route: [{destination: {host: shop}}]
";

#[test]
fn requests_are_retried_redirected_rewritten_and_timed_out() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[RULES])?;
        scene.wait_for("/plain", 200)?;
        let mut requests = scene.requests()?;
        let body = vec![b'x'; 10_000];
        let answer = requests.ask("POST", "/flaky/a/1", &[], &body)?;
        ensure!(
            answer.status == 200 && answer.said()["length"] == 10_000,
            "{answer:?}"
        );
        // Over what is kept it is sent once.
        let large = vec![b'x'; 300_000];
        let answer = requests.ask("POST", "/flaky/b/9", &[], &large)?;
        ensure!(
            answer.status == 503 && answer.said()["length"] == 300_000,
            "{answer:?}"
        );
        let answer = requests.get("/close")?;
        ensure!(answer.status == 503, "nobody answers: {answer:?}");
        let answer = requests.get("/slow/5000")?;
        ensure!(answer.status == 504, "{answer:?}");
        let answer = scene.requests()?.get("/old")?;
        ensure!(answer.status == 308, "{answer:?}");
        ensure!(
            answer
                .headers
                .get("location")
                .is_some_and(|it| it.ends_with("/new")),
            "{answer:?}"
        );
        let answer = scene.requests()?.get("/direct/x")?;
        ensure!(answer.status == 418 && answer.text() == "teapot", "{answer:?}");
        let answer = scene
            .requests()?
            .ask("GET", "/rewrite/deep?q=1", &[("x-kind", "gold")], b"")?;
        ensure!(answer.said()["target"] == "/deep?q=1", "{answer:?}");
        ensure!(
            answer.app_saw("x-added") == "one" && answer.app_saw("x-kind").is_empty(),
            "{answer:?}"
        );
        ensure!(
            answer.headers.get("x-answer").is_some_and(|it| it == "two"),
            "{answer:?}"
        );
        let answer = scene.requests()?.get("/nothing-of-that")?;
        ensure!(answer.status == 404, "{answer:?}");
        Ok(())
    });
}

/// Two versions of a gRPC app, chosen by metadata.
const GRPC_ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo, namespace: default}
spec:
  parentRefs: [{kind: Service, group: '', name: shop, port: 50051}]
  rules:
  - matches: [{method: {service: demo.Echo}}]
    backendRefs: [{name: shop, port: 50051}]
";

#[test]
fn grpc_of_all_four_kinds_passes_with_its_trailers() {
    with_world(|world| {
        let mut scene = Scene::set(world, "shop", &[GRPC_ROUTE])?;
        for pod in scene.versions.clone() {
            scene.app(
                &pod,
                "grpc_app.py",
                &["serve", pod.name(), &GRPC_PORT.to_string()],
                GRPC_PORT,
            )?;
        }
        let call = |kind: &str| {
            let mut command = scene.client.command(PYTHON);
            command
                .arg(source("grpc_app.py"))
                .args(["call", GRPC, kind, "5", "x-kind=gold"]);
            run(&mut command, "grpc_app.py")
        };
        wait_until("gRPC to be answered", LIMIT, || {
            call("Unary").ok()?.starts_with("OK").then_some(())
        })?;
        for kind in ["Unary", "ServerStream", "ClientStream", "Bidi"] {
            let said = call(kind)?;
            ensure!(said.starts_with("OK"), "{kind}: {said}");
        }
        ensure!(call("Unary")?.contains("trailer served-by=shop-v"), "no trailer");
        let said = call("Fail")?;
        ensure!(
            said.starts_with("UNAVAILABLE on purpose") && said.contains("trailer served-by"),
            "{said}"
        );
        let metrics = scene.waypoint()?.metrics()?;
        let of = [
            ("request_protocol", "grpc"),
            ("grpc_response_status", "14"),
            ("reporter", "waypoint"),
        ];
        ensure!(metrics.sum("istio_requests_total", &of) >= 1.0, "{metrics:#?}");
        Ok(())
    });
}

#[test]
fn a_websocket_passes_and_so_do_curl_h2load_and_wrk() {
    with_world(|world| {
        // To the port that was dialled.
        let weights = WEIGHTS.replace(", port: {number: 80}", "");
        let mut scene = Scene::set(world, "shop", &[&weights])?;
        scene.wait_for("/", 200)?;
        let http2 = curl(
            &scene.client,
            &["--http2-prior-knowledge", &format!("http://{SERVICE}/")],
        )?;
        ensure!(http2.status == 200, "{http2:?}");
        let continued = vec![
            "-H",
            "Expect: 100-continue",
            "-d",
            "some=body",
            "http://10.96.1.10/plain",
        ];
        let answer = curl(&scene.client, &continued)?;
        ensure!(
            answer.status == 200 && answer.body.contains("\"length\": 9"),
            "{answer:?}"
        );
        let mut command = scene.client.command("wrk");
        let said = run(
            command.args(["-t1", "-c8", "-d1s", &format!("http://{SERVICE}/")]),
            "wrk",
        )?;
        ensure!(
            !said.contains("Non-2xx") && !said.contains("Socket errors"),
            "{said}"
        );
        // A connection for each request, thousands of them: what ends early at one side costs no tunnel.
        let mut command = scene.client.command("wrk");
        let close = ["-t1", "-c8", "-d3s", "-H", "Connection: close"];
        let said = run(command.args(close).arg(format!("http://{SERVICE}/")), "wrk")?;
        ensure!(
            !said.contains("Non-2xx") && !said.contains("Socket errors"),
            "{said}"
        );
        let log = scene.waypoint()?.log();
        ensure!(!log.contains("ended before its time"), "a tunnel broke");
        let mut command = scene.client.command("h2load");
        let load = ["-n500", "-c4", "-m10", &format!("http://{SERVICE}/")];
        let said = run(command.args(load), "h2load")?;
        ensure!(said.contains("500 succeeded"), "{said}");
        // On the port that says nothing of itself.
        for pod in scene.versions.clone() {
            let port = TCP_PORT.to_string();
            scene.app(&pod, "websocket.py", &["serve", pod.name(), &port], TCP_PORT)?;
        }
        let mut command = scene.client.command(PYTHON);
        command
            .arg(source("websocket.py"))
            .args(["call", "ws://10.96.1.10:9001/", "20"]);
        let said = run(&mut command, "websocket.py")?;
        ensure!(said.contains("message 19"), "{said}");
        Ok(())
    });
}

#[test]
fn whoever_speaks_first_is_heard_on_a_tcp_port_and_on_one_that_says_nothing() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS])?;
        scene.wait_for("/", 200)?;
        let listen = |pod: &weft_tests::Pod| Server::start(pod.listen(TCP_PORT)?, banner(b"220 ready\r\n"));
        let _servers = [listen(&scene.versions[0])?, listen(&scene.versions[1])?];
        for to in [TCP, "10.96.1.10:9001"] {
            let mut stream = scene.client.connect(to.parse()?)?;
            let mut heard = [0; 11];
            stream
                .read_exact(&mut heard)
                .with_context(|| format!("{to} says nothing"))?;
            ensure!(&heard == b"220 ready\r\n", "{heard:?}");
            round_trip(&mut stream, b"and goes on")?;
        }
        Ok(())
    });
}

#[test]
fn a_waypoint_leads_nowhere_but_to_what_is_bound_to_it() {
    with_world(|world| {
        let mut scene = Scene::prepare(world, "shop", &[WEIGHTS])?;
        let other = PodSpec::new("other-web")
            .namespace("default")
            .service_account("web");
        let other = world.pod("b", other.label("app", "web"))?;
        world.mesh_mut().services.push(json!({
            "name": "web", "namespace": "default", "vips": ["10.96.1.20"],
            "ports": [{ "port": 80, "targetPort": HTTP_PORT }], "selector": { "app": "web" },
        }));
        scene.app(&other, "requests.py", &["web", &HTTP_PORT.to_string()], HTTP_PORT)?;
        scene.start(world, AgentOptions::default())?;
        scene.wait_for("/", 200)?;
        // In plaintext nobody is served, from within the mesh or from the node.
        let to = scene.gateway.addr(15008);
        for plain in [scene.client.connect(to), world.node("a").connect(to)] {
            let mut heard = Vec::new();
            if let Ok(mut plain) = plain {
                let _ = plain.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n");
                let _ = plain.read_to_end(&mut heard);
            }
            ensure!(
                !heard.starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&heard)
            );
        }
        // A host that leads elsewhere does not: the address that was dialled decides.
        let mut elsewhere = Requests::open(&scene.client, SERVICE.parse()?, "web.default.svc.cluster.local")?;
        let answer = elsewhere.get("/")?;
        ensure!(answer.by() != "web", "{answer:?}");
        Ok(())
    });
}

#[test]
fn a_dead_waypoint_is_not_gone_around_and_a_new_one_is_found() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS])?;
        scene.wait_for("/", 200)?;
        scene.waypoint()?.kill()?;
        wait_until("requests to fail", LIMIT, || {
            scene
                .requests()
                .and_then(|mut it| it.get("/"))
                .is_err()
                .then_some(())
        })?;
        for _ in 0..10 {
            ensure!(
                scene.requests().and_then(|mut it| it.get("/")).is_err(),
                "somebody answered"
            );
        }
        scene.waypoint()?.start()?;
        scene.wait_for("/", 200)
    });
}

#[test]
fn one_waypoint_of_two_ends_and_no_request_is_lost() {
    with_world(|world| {
        let mut scene = Scene::prepare(world, "shop", &[WEIGHTS])?;
        let second = PodSpec::new("waypoint-2")
            .namespace("default")
            .service_account("waypoint");
        let second = world.pod("a", second.label("gateway", "waypoint").native())?;
        scene.start(world, AgentOptions::default())?;
        let second = world.start_waypoint(&second, AgentOptions::default())?;
        scene.wait_for("/", 200)?;
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let ask = || -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let mut requests = scene.requests()?;
                for _ in 0..50 {
                    let answer = requests.get("/")?;
                    ensure!(answer.status == 200, "{answer:?}");
                    done.fetch_add(1, Ordering::Relaxed);
                    if answer.headers.get("connection").is_some_and(|it| it == "close") {
                        break;
                    }
                }
            }
            Ok(())
        };
        thread::scope(|scope| {
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            let more = |than: usize| wait_until("requests", LIMIT, || done.load(Ordering::Relaxed) > than);
            let ended = more(200)
                .and_then(|()| second.stop())
                .and_then(|()| more(done.load(Ordering::Relaxed) + 200));
            stop.store(true, Ordering::Relaxed);
            for asked in asking {
                asked.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            ended
        })
    });
}

#[test]
fn connections_go_to_the_waypoint_that_has_fewer_of_them() {
    with_world(|world| {
        let mut scene = Scene::prepare(world, "shop", &[WEIGHTS])?;
        let second = PodSpec::new("waypoint-2")
            .namespace("default")
            .service_account("waypoint");
        let second = world.pod("a", second.label("gateway", "waypoint").native())?;
        scene.start(world, AgentOptions::default())?;
        let waypoints = [
            scene.waypoint()?.clone(),
            world.start_waypoint(&second, AgentOptions::default())?,
        ];
        scene.wait_for("/", 200)?;
        let at = |target: &str| {
            let has = || {
                waypoints
                    .iter()
                    .position(|waypoint| waypoint.log().contains(target))
            };
            wait_until(&format!("the line of {target}"), LIMIT, has)
        };
        // One request on each, and then they stay open.
        let mut open = Vec::new();
        for nth in 0..6 {
            let (target, mut requests) = (format!("/first-{nth}-"), scene.requests()?);
            requests.get(&target)?;
            open.push((at(&target)?, requests));
        }
        let of_second = open.iter().filter(|(at, _)| *at == 1).count();
        ensure!(of_second == 3, "{of_second} of 6 went to the second");
        // One loses all that it had; what comes next is its.
        let lines = scene.agents[0].access_lines().len();
        open.retain(|(at, _)| *at == 0);
        wait_until("the connections to end", LIMIT, || {
            (scene.agents[0].access_lines().len() >= lines + 3).then_some(())
        })?;
        for nth in 0..3 {
            let (target, mut requests) = (format!("/then-{nth}-"), scene.requests()?);
            requests.get(&target)?;
            let went = at(&target)?;
            ensure!(went == 1, "{target} went to the one that is busy");
            open.push((went, requests));
        }
        Ok(())
    });
}

#[test]
fn a_request_leaves_one_line_and_is_counted_once() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS])?;
        scene.wait_for("/", 200)?;
        let before = scene.waypoint()?.metrics()?;
        let mut requests = scene.requests()?;
        for target in ["/once", "/status/404", "/status/503"] {
            requests.get(target)?;
        }
        let waypoint = scene.waypoint()?;
        let line = waypoint.wait_for_log("the request's line", |line| line.contains("/once"))?;
        for part in [
            "shop.default.svc.cluster.local",
            "default/sa/client",
            "VirtualService default/shop-vs",
        ] {
            ensure!(line.contains(part), "no {part} in {line}");
        }
        ensure!(waypoint.log().matches("/once").count() == 1, "more than one line");
        let after = waypoint.metrics()?;
        for (code, more) in [("200", 1.0), ("404", 1.0), ("503", 1.0)] {
            let of = [
                ("reporter", "waypoint"),
                ("response_code", code),
                ("source_principal", "spiffe://cluster.local/ns/default/sa/client"),
                ("destination_service_name", "shop"),
                ("connection_security_policy", "mutual_tls"),
            ];
            let sum = |samples: &weft_tests::Samples| samples.sum("istio_requests_total", &of);
            ensure!(
                sum(&after) - sum(&before) == more,
                "{code}: {} and {}",
                sum(&before),
                sum(&after)
            );
        }
        let counted = after.sum(
            "istio_request_duration_milliseconds_count",
            &[("reporter", "waypoint")],
        );
        ensure!(counted >= 3.0, "{counted}");
        Ok(())
    });
}

#[test]
fn an_address_of_a_pod_is_not_the_services_business_until_it_is_told_so() {
    with_world(|world| {
        let scene = Scene::set(world, "shop", &[WEIGHTS])?;
        scene.wait_for("/", 200)?;
        // `waypoint-for: service`: a pod's own address goes to the pod, by the tunnel of two agents.
        let _echo = Server::start(scene.versions[0].listen(TCP_PORT)?, echo)?;
        let mut stream = scene.client.connect(scene.versions[0].addr(TCP_PORT))?;
        round_trip(&mut stream, common::MARKER)?;
        Ok(())
    });
}
