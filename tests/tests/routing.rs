//! Which endpoint a connection is given, and what becomes of one whose destination is not known: near before far, another
//! one when one cannot be reached, networks of virtual addresses, services without any, both families, and look-ups.

mod common;

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use common::{addr, echoed, error_line, line_of, read_some, reset_or_refused};
use serde_json::{Value, json};
use weft_tests::{
    Agent, Host, LIMIT, Membership, Pod, PodSpec, Server, World,
    app::{banner, echo},
    wait_until, with_world,
};

/// How often a choice is looked at: more often than there are endpoints.
const TIMES: usize = 6;

/// A pod of the mesh that backs services of `app: <app>`.
fn backing(app: &str, name: &str) -> PodSpec {
    PodSpec::new(name).service_account(app).label("app", app)
}

/// A service of namespace `demo` on port 80, which leads to 8080.
fn service(name: &str, vips: Value, app: &str, more: Value) -> Value {
    let mut service = json!({
        "name": name, "namespace": "demo", "vips": vips, "ports": [{ "port": 80, "targetPort": 8080 }],
        "selector": { "app": app },
    });
    let more = more.as_object().cloned().unwrap_or_default();
    service
        .as_object_mut()
        .into_iter()
        .for_each(|fields| fields.extend(more.clone()));
    service
}

/// Who answers: every server of these tests says its name and closes.
fn answer(from: &Host, to: SocketAddr) -> Result<String> {
    let mut stream = from.connect(to).with_context(|| format!("{from:?} dials {to}"))?;
    let read = read_some(&mut stream).with_context(|| format!("{from:?} speaks to {to}"))?;
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// Fails unless every connection is answered by `name`.
fn always(from: &Host, to: &str, name: &str) -> Result<()> {
    for _ in 0..TIMES {
        let answer = answer(from, addr(to))?;
        ensure!(
            answer == name,
            "{from:?} dials {to}: {name} was to answer, but it was {answer:?}"
        );
    }
    Ok(())
}

fn serve(pod: &Host, name: &'static str) -> Result<Server> {
    Ok(Server::start(pod.listen(8080)?, banner(name.as_bytes()))?)
}

const VIP4: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:96::10]:80";

/// A client in one zone and `web` in two: `near` is in the client's zone but on the other node, `far` is the other way
/// round.
fn in_two_zones(world: &mut World, balancing: Value) -> Result<[Pod; 3]> {
    let zone = |spec: PodSpec, zone: &str| spec.field("region", json!("eu")).field("zone", json!(zone));
    let client = world.pod("a", zone(PodSpec::new("client"), "one"))?;
    let near = world.pod("b", zone(backing("web", "near"), "one"))?;
    let far = world.pod("a", zone(backing("web", "far"), "two"))?;
    let vips = json!(["10.96.0.10", "fd00:96::10"]);
    world
        .mesh_mut()
        .services
        .push(service("web", vips, "web", balancing));
    Ok([client, near, far])
}

#[test]
fn failover_goes_to_the_nearest_tier_that_can_be_reached() {
    with_world(|world| {
        let [client, near, far] = in_two_zones(world, json!({ "trafficDistribution": "PreferSameZone" }))?;
        world.start_agents()?;
        let near_server = serve(&near, "near")?;
        let _far_server = serve(&far, "far")?;
        always(&client, VIP4, "near")?;
        always(&client, VIP6, "near")?;
        // The mesh still says that it is healthy: the connection itself finds the next tier.
        drop(near_server);
        always(&client, VIP4, "far")?;
        always(&client, VIP6, "far")?;
        let _near_server = serve(&near, "near")?;
        always(&client, VIP4, "near")?;
        world.set_membership(&near, Membership::Unlisted);
        world.apply()?;
        always(&client, VIP4, "far")?;
        world.set_membership(&near, Membership::Mesh);
        world.apply()?;
        always(&client, VIP4, "near")
    });
}

#[test]
fn strict_refuses_where_no_endpoint_is_near_enough() {
    with_world(|world| {
        let balancing =
            json!({ "loadBalancing": { "routingPreference": ["REGION", "ZONE"], "mode": "STRICT" } });
        let [client, near, far] = in_two_zones(world, balancing)?;
        let [a, _] = world.start_agents()?;
        let near_server = serve(&near, "near")?;
        let far_server = serve(&far, "far")?;
        always(&client, VIP4, "near")?;
        always(&client, VIP6, "near")?;
        drop(near_server);
        for vip in [VIP4, VIP6] {
            reset_or_refused(&client, addr(vip))?;
        }
        world.set_membership(&near, Membership::Unlisted);
        world.apply()?;
        for vip in [VIP4, VIP6] {
            reset_or_refused(&client, addr(vip))?;
            error_line(&a, "outbound", addr(vip), "none of them near enough")?;
        }
        ensure!(far_server.accepted() == 0, "{far_server:?}");
        Ok(())
    });
}

#[test]
fn an_internal_traffic_policy_keeps_to_the_node() {
    with_world(|world| {
        let clients = [
            world.pod("a", PodSpec::new("client-a"))?,
            world.pod("b", PodSpec::new("client-b"))?,
        ];
        let webs = [
            world.pod("a", backing("web", "web-a"))?,
            world.pod("b", backing("web", "web-b"))?,
        ];
        let only_b = world.pod("b", backing("db", "db-b"))?;
        let local = json!({ "internalTrafficPolicy": "Local" });
        let services = &mut world.mesh_mut().services;
        services.push(service(
            "web",
            json!(["10.96.0.10", "fd00:96::10"]),
            "web",
            local.clone(),
        ));
        services.push(service("db", json!(["10.96.0.20"]), "db", local));
        world.start_agents()?;
        let _servers = [
            serve(&webs[0], "web-a")?,
            serve(&webs[1], "web-b")?,
            serve(&only_b, "db-b")?,
        ];
        for vip in [VIP4, VIP6] {
            always(&clients[0], vip, "web-a")?;
            always(&clients[1], vip, "web-b")?;
        }
        always(&clients[1], "10.96.0.20:80", "db-b")?;
        reset_or_refused(&clients[0], addr("10.96.0.20:80"))
    });
}

#[test]
fn another_endpoint_is_tried_before_the_app_is_refused() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let webs = [
            world.pod("b", backing("web", "web-1"))?,
            world.pod("b", backing("web", "web-2"))?,
            world.pod("b", backing("web", "web-3"))?,
        ];
        let vips = json!(["10.96.0.10", "fd00:96::10"]);
        world
            .mesh_mut()
            .services
            .push(service("web", vips, "web", json!({})));
        let [a, _] = world.start_agents()?;
        let servers = [
            serve(&webs[0], "1")?,
            serve(&webs[1], "2")?,
            serve(&webs[2], "3")?,
        ];
        let mut met: Vec<_> = (0..TIMES)
            .map(|_| answer(&client, addr(VIP4)))
            .collect::<Result<_>>()?;
        met.sort();
        met.dedup();
        ensure!(met == ["1", "2", "3"], "each has its turn: {met:?}");

        let [one, two, three] = servers;
        drop((one, three));
        for vip in [VIP4, VIP6] {
            always(&client, vip, "2")?;
        }
        let failed = a.access_lines().into_iter().find(|line| !line.is_ok());
        ensure!(
            failed.is_none(),
            "{}",
            failed.map(|it| it.to_string()).unwrap_or_default()
        );
        // None is left.
        drop(two);
        for vip in [VIP4, VIP6] {
            reset_or_refused(&client, addr(vip))?;
        }
        let nobody: Vec<_> = webs.iter().map(|web| web.addr(8080).to_string()).collect();
        a.wait_for_access("the failure", |line| {
            !line.is_ok() && nobody.iter().any(|it| common::destination(line) == it)
        })?;
        Ok(())
    });
}

/// An address that another pod has by now: what answers there has a good certificate, but not the one that this node's
/// mesh gives for the endpoint.
#[test]
fn an_endpoint_that_has_become_somebody_else_is_passed_over() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let stale = world.pod("b", backing("web", "web-1").service_account("stale"))?;
        let web = world.pod("b", backing("web", "web-2"))?;
        let vips = json!(["10.96.0.10", "fd00:96::10"]);
        world
            .mesh_mut()
            .services
            .push(service("web", vips, "web", json!({})));
        world.apply()?;
        world.apply_text("b", &world.mesh_text().replace("\"stale\"", "\"somebody-else\""))?;
        let [a, _] = world.start_agents()?;
        let stale_server = serve(&stale, "stale")?;
        let _server = serve(&web, "web")?;
        always(&client, VIP4, "web")?;
        always(&client, VIP6, "web")?;
        ensure!(stale_server.accepted() == 0, "{stale_server:?}");
        let failed = a.access_lines().into_iter().find(|line| !line.is_ok());
        ensure!(
            failed.is_none(),
            "{}",
            failed.map(|it| it.to_string()).unwrap_or_default()
        );
        Ok(())
    });
}

#[test]
fn networks_of_virtual_addresses_and_services_of_other_kinds() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let web = world.pod("b", backing("web", "web"))?;
        let db = world.pod("b", backing("db", "db"))?;
        let on_host = world.pod(
            "b",
            PodSpec::new("on-host")
                .label("app", "host")
                .outside()
                .host_network(),
        )?;
        let services = &mut world.mesh_mut().services;
        services.push(service(
            "wide",
            json!(["10.97.0.0/16", "fd00:96:7::/48"]),
            "web",
            json!({}),
        ));
        services.push(service(
            "narrow",
            json!(["10.97.7.0/24", "10.97.0.9"]),
            "db",
            json!({}),
        ));
        services.push(service("db", json!([]), "db", json!({})));
        services.push(service("host", json!(["10.96.0.30"]), "host", json!({})));
        let outside = json!({ "loadBalancing": { "mode": "PASSTHROUGH" }, "ports": [{ "port": 9100 }] });
        services.push(service("outside", json!(["192.168.77.0/24"]), "nobody", outside));
        let [a, _] = world.start_agents()?;
        let _servers = [serve(&web, "web")?, serve(&db, "db")?, serve(&on_host, "host")?];
        let _node = Server::start(world.node("b").listen(9100)?, banner(b"node"))?;

        for (vip, name) in [
            ("10.97.0.1:80", "web"),
            ("10.97.255.255:80", "web"),
            ("[fd00:96:7::77]:80", "web"),
            ("10.97.7.200:80", "db"),
            ("10.97.0.9:80", "db"),
            ("10.96.0.30:80", "host"),
        ] {
            always(&client, vip, name)?;
        }
        reset_or_refused(&client, addr("10.97.0.1:81"))?;
        reset_or_refused(&client, addr("10.98.0.1:80"))?;

        // Without a virtual address the pods' own are dialled, and the record names the service all the same.
        for to in [db.addr(8080), db.addr6(8080)] {
            let mut stream = client.connect(to)?;
            ensure!(read_some(&mut stream)? == b"db");
            let local = stream.local_addr()?;
            drop(stream);
            let line = line_of(&a, "outbound", local)?;
            ensure!(line.field("dst.service") == "db.demo.svc.cluster.local", "{line}");
        }
        // To the very address that was dialled.
        let mut stream = client.connect(world.node("b").addr(9100))?;
        ensure!(read_some(&mut stream)? == b"node");
        let local = stream.local_addr()?;
        drop(stream);
        let line = line_of(&a, "outbound", local)?;
        ensure!(
            line.is_ok() && line.field("dst.service") == "outside.demo.svc.cluster.local",
            "{line}"
        );
        Ok(())
    });
}

#[test]
fn a_service_of_one_family_is_reached_from_the_other() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        // Pods have both; the mesh knows of one. These are the first on their node.
        let four = world.pod(
            "b",
            backing("four", "four").field("addresses", json!(["10.244.2.10"])),
        )?;
        let six = world.pod(
            "b",
            backing("six", "six").field("addresses", json!(["fd00:244:2::b"])),
        )?;
        ensure!(four.v4().to_string() == "10.244.2.10" && six.v6().to_string() == "fd00:244:2::b");
        let services = &mut world.mesh_mut().services;
        services.push(service(
            "four",
            json!(["10.96.0.4", "fd00:96::4"]),
            "four",
            json!({}),
        ));
        services.push(service(
            "six",
            json!(["10.96.0.6", "fd00:96::6"]),
            "six",
            json!({}),
        ));
        let [a, _] = world.start_agents()?;
        let _servers = [serve(&four, "four")?, serve(&six, "six")?];
        for (name, vips) in [
            ("four", ["10.96.0.4:80", "[fd00:96::4]:80"]),
            ("six", ["10.96.0.6:80", "[fd00:96::6]:80"]),
        ] {
            for vip in vips {
                always(&client, vip, name)?;
            }
        }
        let failed = a.access_lines().into_iter().find(|line| !line.is_ok());
        ensure!(
            failed.is_none(),
            "{}",
            failed.map(|it| it.to_string()).unwrap_or_default()
        );
        Ok(())
    });
}

/// There is no waypoint in these worlds, only a pod that is bound as one and refuses: so nothing arrives, from anybody but
/// that pod itself.
#[test]
fn what_is_bound_to_a_waypoint_is_never_dialled_around_it() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let gate = world.pod("b", backing("gate", "gate"))?;
        let by_address = json!({ "address": gate.v4() });
        let web = world.pod("b", backing("web", "web"))?;
        let alone = world.pod(
            "b",
            backing("alone", "alone").field("waypoint", by_address.clone()),
        )?;
        let db = world.pod("b", backing("db", "db"))?;
        let services = &mut world.mesh_mut().services;
        services.push(service(
            "gate",
            json!(["10.96.0.99"]),
            "gate",
            json!({ "ports": [] }),
        ));
        let by_service = json!({ "waypoint": { "service": "demo/gate" } });
        services.push(service(
            "web",
            json!(["10.96.0.10", "fd00:96::10"]),
            "web",
            by_service,
        ));
        // Without a virtual address: its pod is dialled by its own.
        services.push(service("db", json!([]), "db", json!({ "waypoint": by_address })));
        let [a, _] = world.start_agents()?;
        let servers = [serve(&web, "web")?, serve(&alone, "alone")?, serve(&db, "db")?];
        let ways = [
            addr(VIP4),
            addr(VIP6),
            alone.addr(8080),
            alone.addr6(8080),
            db.addr(8080),
            db.addr6(8080),
        ];
        for way in ways {
            reset_or_refused(&client, way)?;
            error_line(&a, "outbound", way, "400")?;
        }
        ensure!(servers.iter().all(|server| server.accepted() == 0), "{servers:?}");
        for (way, name) in ways.into_iter().zip(["web", "web", "alone", "alone", "db", "db"]) {
            always(&gate, &way.to_string(), name)?;
        }
        // Another port of the pod is none of the service's.
        let _other = Server::start(db.listen(9000)?, banner(b"other"))?;
        always(&client, &db.addr(9000).to_string(), "other")
    });
}

fn lookups(agent: &Agent, outcome: &str) -> Result<f64> {
    Ok(agent
        .metrics()?
        .sum("weft_on_demand_lookups_total", &[("outcome", outcome)]))
}

/// Rounds until a look-up has found something: the agent may be faster by itself.
const ROUNDS: usize = 50;

#[test]
fn an_address_of_the_cluster_that_is_not_known_is_looked_up_and_then_refused() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let late = world.pod("b", PodSpec::new("late").unlisted())?;
        let [a, _] = world.start_agents()?;
        let _server = Server::start(late.listen(8080)?, echo)?;
        // Outside of the cluster's addresses it is none of our business.
        let outside = world.node("b").addr(9100);
        let _outside = Server::start(world.node("b").listen(9100)?, echo)?;
        echoed(&client, outside)?;

        let entry =
            json!({ "name": "late", "namespace": "demo", "node": "b", "addresses": late.addresses() });
        for round in 0.. {
            let unknown = lookups(&a, "unknown")?;
            for to in [late.addr(8080), late.addr6(8080)] {
                reset_or_refused(&client, to)?;
                error_line(&a, "outbound", to, "is inside the cluster")?;
            }
            ensure!(lookups(&a, "unknown")? >= unknown + 2.0);
            // Dialled in the same moment in which the mesh file tells of it.
            world.mesh_mut().workloads.push(entry.clone());
            world.apply_text("a", &world.mesh_text())?;
            for to in [late.addr(8080), late.addr6(8080)] {
                echoed(&client, to).with_context(|| format!("round {round}"))?;
            }
            if lookups(&a, "found")? > 0.0 {
                break;
            }
            ensure!(round < ROUNDS, "no look-up has found anything");
            world.mesh_mut().workloads.pop();
            world.apply()?;
        }
        echoed(&client, outside).map(drop)
    });
}

/// A file that says nothing, and one whose writer has not come to its end.
#[test]
fn nothing_passes_before_the_first_whole_mesh() {
    with_world(|world| {
        let client = world.pod("a", PodSpec::new("client"))?;
        let web = world.pod("b", backing("web", "web"))?;
        let outside = world.pod("b", PodSpec::new("outside").outside())?;
        let vips = json!(["10.96.0.10", "fd00:96::10"]);
        world
            .mesh_mut()
            .services
            .push(service("web", vips, "web", json!({})));
        let [a, _] = world.start_agents()?;
        let _servers = [serve(&web, "web")?, serve(&outside, "outside")?];
        always(&client, VIP4, "web")?;
        always(&client, &outside.addr(8080).to_string(), "outside")?;
        a.kill()?;
        let whole = world.mesh_text();
        let half = whole.get(..whole.len() / 2).unwrap_or_default();
        for (text, why) in [("", "is empty"), (" \n", "is empty"), (half, "mesh-a.yaml")] {
            world.apply_text("a", text)?;
            let failed = a
                .start()
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default();
            ensure!(failed.contains(why), "{why:?} in: {failed}");
            for to in [
                addr(VIP4),
                addr(VIP6),
                web.addr(8080),
                outside.addr(8080),
                outside.addr6(8080),
            ] {
                reset_or_refused(&client, to)?;
            }
        }
        world.apply_text("a", &whole)?;
        a.start()?;
        always(&client, VIP4, "web")?;
        // One that comes later is not taken, and the running mesh stays.
        world.apply_text("a", half)?;
        wait_until("the half mesh to be noticed", LIMIT, || {
            a.status()
                .is_ok_and(|status| status["mesh"].get("lastError").is_some_and(|it| !it.is_null()))
        })?;
        always(&client, VIP6, "web")
    });
}
