//! A mesh file that is wrong: the agent says where and what, once, and the running mesh stays in force; and a file that
//! changes under traffic loses no connection.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};
use weft_tests::{
    Agent, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    machine, wait_until, with_world,
};

const MARKER: &[u8] = b"WEFT-MESH-FILE-MARKER";

/// What an agent says of a mesh that it does not take.
const NOT_TAKEN: &str = "the mesh was not taken";

/// The largest mesh file, in bytes.
const LARGEST: usize = 16 << 20;

/// A client on node a, `web` on node b, and a service by which it is dialled.
fn client_and_web(world: &mut World) -> Result<[Pod; 2]> {
    let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
    let web = world.pod(
        "b",
        PodSpec::new("web").service_account("web").label("app", "web"),
    )?;
    world.mesh_mut().service("web", &["10.96.0.10"], 80, 8080, "web");
    Ok([client, web])
}

/// How a bad file comes to be where the good one was.
enum Bad {
    Text(String),
    Bytes(Vec<u8>),
    Missing,
    Directory,
}

impl Bad {
    fn put(&self, path: &Path) -> Result<()> {
        let next = path.with_extension("bad");
        match self {
            Self::Text(text) => fs::write(&next, text)?,
            Self::Bytes(bytes) => fs::write(&next, bytes)?,
            Self::Missing => return fs::remove_file(path).context("remove the mesh file"),
            Self::Directory => fs::create_dir(&next)?,
        }
        // In one step, so that the agent meets this and nothing else. Nothing is there after `Missing`.
        let swapped = renameat_with(CWD, &next, CWD, path, RenameFlags::EXCHANGE);
        swapped.or_else(|_| renameat_with(CWD, &next, CWD, path, RenameFlags::empty()))?;
        // What was there before, if anything was.
        match next.is_dir() {
            true => fs::remove_dir(&next)?,
            false => drop(fs::remove_file(&next)),
        }
        Ok(())
    }
}

/// Every way to be wrong, and what must be said about it.
fn bad_files(world: &World, client: &Pod, web: &Pod) -> Vec<(&'static str, Bad, Vec<String>)> {
    let good = world.mesh_text();
    let line_of = |text: &str, part: &str| {
        let line = text
            .lines()
            .position(|line| line.contains(part))
            .unwrap_or_default();
        format!("mesh-b.yaml:{}:", line + 1)
    };
    let said = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    let edited = |from: &str, to: &str, fields: &[&str]| {
        let text = good.replacen(from, to, 1);
        let mut expect = said(fields);
        expect.push(line_of(&text, to));
        (Bad::Text(text), expect)
    };
    let web_v4 = web.v4().to_string();
    let (syntax, syntax_said) = edited("\"services\": [", "\"services\": @[", &[]);
    let (unknown, unknown_said) = edited("\"trustDomain\"", "\"trustDomian\"", &["trustDomian"]);
    let (address, address_said) = edited(
        &web_v4,
        "10.244.2.999",
        &["workloads[1].addresses[0]", "10.244.2.999"],
    );
    let (twice, _) = edited(&web_v4, &client.v4().to_string(), &[]);
    let (port, port_said) = edited(
        "\"targetPort\": 8080",
        "\"targetPort\": 15008",
        &["services[0].ports[0].targetPort"],
    );
    let endpoint = {
        let mut spec: Value = serde_json::from_str(&good).unwrap_or_default();
        spec["services"].as_array_mut().into_iter().for_each(|services| {
            services.push(json!({ "name": "lost", "namespace": "demo", "endpoints": ["demo/nobody"] }));
        });
        format!("{spec:#}\n")
    };
    let endpoint_said = [
        said(&["services[1].endpoints[0]", "demo/nobody"]),
        vec![line_of(&endpoint, "demo/nobody")],
    ]
    .concat();
    let half = good[..good.len() / 2].to_owned();
    let duplicate = [
        "workloads[1].addresses[0]",
        "is an address of workloads[0] as well",
        "mesh-b.yaml:",
    ];
    vec![
        ("syntax", syntax, syntax_said),
        ("unknown field", unknown, unknown_said),
        ("bad address", address, address_said),
        ("duplicate address", twice, said(&duplicate)),
        ("own port", port, port_said),
        ("unknown endpoint", Bad::Text(endpoint), endpoint_said),
        (
            "too large",
            Bad::Bytes(vec![b' '; LARGEST + 1]),
            said(&["mesh-b.yaml", "larger than 16 MiB"]),
        ),
        (
            "not UTF-8",
            Bad::Bytes(b"workloads: [\xff\xfe]".to_vec()),
            said(&["mesh-b.yaml", "utf-8"]),
        ),
        (
            "empty",
            Bad::Text(String::new()),
            said(&["mesh-b.yaml", "is empty"]),
        ),
        ("truncated", Bad::Text(half), said(&["mesh-b.yaml:"])),
        (
            "missing",
            Bad::Missing,
            said(&["cannot read the mesh file", "mesh-b.yaml", "No such file"]),
        ),
        (
            "directory",
            Bad::Directory,
            said(&["mesh-b.yaml", "Is a directory"]),
        ),
    ]
}

/// The lines of the log that say that a mesh was not taken.
fn rejections(agent: &Agent) -> Vec<String> {
    agent
        .log()
        .lines()
        .filter(|line| line.contains(NOT_TAKEN))
        .map(str::to_owned)
        .collect()
}

/// Runs `weft status` on a node: its exit code and what it prints.
fn weft_status(world: &World, node: &str) -> Result<(Option<i32>, String)> {
    let output = world
        .node(node)
        .command(machine::binary("weft", "WEFT_BIN")?)
        .arg("status")
        .output()?;
    Ok((
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    ))
}

/// An open connection goes on, and a new one comes to be.
fn ensure_traffic(kept: &mut TcpStream, client: &Pod) -> Result<()> {
    round_trip(kept, MARKER).context("the open connection")?;
    let mut new = client
        .connect("10.96.0.10:80".parse()?)
        .context("a new connection")?;
    round_trip(&mut new, MARKER).context("a new connection")
}

#[test]
fn a_bad_mesh_file_is_reported_once_and_the_running_mesh_stays() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let [_, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let mut kept = client.connect("10.96.0.10:80".parse()?)?;
        let file = world.mesh_file("b");
        let before = b.status()?["mesh"].clone();
        for (name, bad, expect) in bad_files(world, &client, &web) {
            let said = rejections(&b).len();
            bad.put(&file)?;
            wait_until(&format!("a word about a file with: {name}"), LIMIT, || {
                rejections(&b).len() > said
            })?;
            ensure_traffic(&mut kept, &client).context(name)?;
            let lines = rejections(&b).split_off(said);
            ensure!(lines.len() == 1, "{name}: {lines:#?}");
            let missing: Vec<_> = expect.iter().filter(|part| !lines[0].contains(*part)).collect();
            ensure!(missing.is_empty(), "{name}: {missing:?} not in {}", lines[0]);

            let mesh = b.status()?["mesh"].clone();
            ensure!(mesh["revision"] == before["revision"], "{name}: {mesh}");
            let last_error = mesh["lastError"].as_str().unwrap_or_default();
            ensure!(
                expect.iter().all(|part| last_error.contains(part)),
                "{name}: {mesh}"
            );
            let (exit, table) = weft_status(world, "b")?;
            ensure!(
                exit == Some(1) && table.contains("the newest was not taken"),
                "{name}: {exit:?}\n{table}"
            );
        }
        let rejected = b.metrics()?.sum("weft_mesh_rejected_total", &[]);
        ensure!(
            rejected == rejections(&b).len() as f64,
            "{rejected} rejected meshes are counted"
        );

        fs::remove_dir(&file)?;
        world
            .mesh_mut()
            .service("second", &["10.96.0.11"], 80, 8080, "web");
        world.apply_text("b", &world.mesh_text())?;
        wait_until("the good file to be taken", LIMIT, || {
            b.status().is_ok_and(|status| {
                status["mesh"]["services"] == 2 && status["mesh"].get("lastError").is_none()
            })
        })?;
        let (exit, table) = weft_status(world, "b")?;
        ensure!(
            exit == Some(0) && !table.contains("not taken"),
            "{exit:?}\n{table}"
        );
        ensure_traffic(&mut kept, &client)
    });
}

#[test]
fn an_agent_does_not_start_with_a_bad_mesh_file() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        world.apply()?;
        let good = world.mesh_text();
        let place = format!("{}:", world.mesh_file("a").display());
        let cases = [
            (
                good.replacen(&client.v4().to_string(), "10.244.1.1000", 1),
                vec![place.as_str(), "workloads[0].addresses[0]"],
            ),
            (
                good.replacen("\"services\"", "\"service\"", 1),
                vec![&place, "service"],
            ),
            (good[..good.len() - 3].to_owned(), vec![&place]),
            (String::new(), vec![&place, "is empty"]),
        ];
        for (text, expect) in cases {
            world.apply_text("a", &text)?;
            let failed = world
                .start_agent("a")
                .err()
                .map(|error| format!("{error:#}"))
                .unwrap_or_default();
            let words = [&expect[..], &["exit status: 1"]].concat();
            ensure!(
                words.iter().all(|word| failed.contains(word)),
                "{words:?} in: {failed}"
            );
            ensure!(!failed.contains("panicked"), "{failed}");
        }
        fs::remove_file(world.mesh_file("a"))?;
        fs::create_dir(world.mesh_file("a"))?;
        let failed = world
            .start_agent("a")
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        ensure!(
            failed.contains("Is a directory") && failed.contains("exit status: 1"),
            "{failed}"
        );
        // Nothing was captured, so nothing is refused.
        ensure!(
            client
                .connect(web.addr(8080))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        );
        let _server = Server::start(web.listen(8080)?, echo)?;
        round_trip(&mut client.connect(web.addr(8080))?, MARKER).context("in plaintext, as before")
    });
}

#[test]
fn rewrites_in_quick_succession_lose_no_connection() {
    with_world(|world| {
        let [client, web] = client_and_web(world)?;
        let [a, b] = world.start_agents()?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let (done, carried) = (AtomicBool::new(false), std::sync::atomic::AtomicU64::new(0));
        let again = || -> Result<()> {
            let mut kept = client.connect("10.96.0.10:80".parse()?)?;
            while !done.load(Ordering::SeqCst) {
                ensure_traffic(&mut kept, &client)?;
                carried.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        };
        let texts: Vec<String> = (0..2)
            .map(|turn| {
                world.mesh_mut().mtls("demo", "STRICT");
                world.mesh_mut().service("more", &["10.96.0.99"], 80, 8080, "web");
                if turn == 0 {
                    world.mesh_mut().services.pop();
                    world.mesh_mut().peer_authentications.clear();
                }
                world.mesh_text()
            })
            .collect();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(again)).collect();
            let rewritten = rewrite(world, &texts, &carried);
            // The last word is the second text, and the traffic goes on beyond it.
            let taken = [&a, &b].into_iter().try_for_each(|agent| {
                wait_until("the last mesh to be taken", LIMIT, || {
                    agent.status().is_ok_and(|status| {
                        status["mesh"]["services"] == 2 && status["mesh"].get("lastError").is_none()
                    })
                })
            });
            let enough = carried.load(Ordering::SeqCst) + 20;
            let more = wait_until("traffic after the last rewrite", LIMIT, || {
                carried.load(Ordering::SeqCst) >= enough || clients.iter().any(|client| client.is_finished())
            });
            done.store(true, Ordering::SeqCst);
            for client in clients {
                client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
            }
            rewritten.and(taken).and(more)
        })?;
        let failed: Vec<_> = [&a, &b]
            .iter()
            .flat_map(|agent| agent.access_lines())
            .filter(|line| !line.is_ok())
            .collect();
        ensure!(failed.is_empty(), "{failed:#?}");
        Ok(())
    });
}

/// Fifty times, one connection apart; every other time in place, as an editor may, so that a reader may see half of it.
fn rewrite(world: &World, texts: &[String], carried: &std::sync::atomic::AtomicU64) -> Result<()> {
    for turn in 0..50 {
        for node in ["a", "b"] {
            let text = &texts[turn % 2];
            if turn % 4 < 2 {
                world.apply_text(node, text)?;
            } else {
                fs::write(world.mesh_file(node), text)?;
            }
        }
        let seen = carried.load(Ordering::SeqCst);
        wait_until("a connection between two rewrites", LIMIT, || {
            carried.load(Ordering::SeqCst) > seen
        })?;
    }
    Ok(())
}
