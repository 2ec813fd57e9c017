//! The standard clients and servers of Go, Java, Python and Node, as Debian packages them, work and see the addresses
//! that they would see without a mesh, over IPv4 and IPv6.

use std::{
    env,
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use weft_tests::{
    Pod, PodSpec, World,
    process::Process,
    program::{self, PYTHON},
    with_world,
};

mod common;
use common::{
    ends::{Ends, canonical, own_address, parse},
    line_of,
};

/// A language's program in `tests/apps`, ready to run.
struct Program {
    language: &'static str,
    words: Vec<OsString>,
    /// The lines that its client prints.
    prints: &'static [&'static str],
}

impl Program {
    fn new(language: &'static str, words: &[&Path], prints: &'static [&'static str]) -> Self {
        let words = words.iter().map(|word| word.as_os_str().to_owned()).collect();
        Self {
            language,
            words,
            prints,
        }
    }

    fn in_pod(&self, pod: &Pod, args: &[&str]) -> Result<Command> {
        let (first, rest) = self.words.split_first().context("no program")?;
        let mut command = pod.command(first);
        command.args(rest).args(args);
        Ok(command)
    }

    fn serve(&self, pod: &Pod) -> Result<Process> {
        let mut command = self.in_pod(pod, &["serve", "8080", "8081"])?;
        let server = program::serve(&mut command, pod, 8080, self.language)?;
        weft_tests::wait_until("its HTTP server to listen", weft_tests::LIMIT, || {
            pod.netns().listens_on(8081)
        })?;
        Ok(server)
    }
}

/// All four, built where that is needed.
fn programs(world: &World) -> Result<[Program; 4]> {
    let go = world.dir().join("ends-in-go");
    let mut build = Command::new("go");
    build
        .current_dir(program::source("go"))
        .args(["build", "-o"])
        .arg(&go);
    build.envs([
        ("GOFLAGS", "-mod=mod"),
        ("CGO_ENABLED", "0"),
        ("GOTOOLCHAIN", "local"),
    ]);
    build.env("GOCACHE", beside_the_build("go-cache")?);
    program::run(&mut build, "go build (Debian's golang-go)")?;
    let java = world.dir().join("ends-in-java");
    let mut build = Command::new("javac");
    build.arg("-d").arg(&java).arg(program::source("Ends.java"));
    program::run(&mut build, "javac (Debian's default-jdk-headless)")?;
    let (java_words, python) = (["java", "-cp"].map(Path::new), program::source("ends.py"));
    Ok([
        Program::new("Go", &[&go], &["tcp", "http"]),
        Program::new(
            "Java",
            &[java_words[0], java_words[1], &java, Path::new("Ends")],
            &["tcp", "tcp", "http"],
        ),
        Program::new("Python", &[Path::new(PYTHON), &python], &["tcp", "tcp", "http"]),
        Program::new(
            "Node",
            &[Path::new("node"), &program::source("ends.js")],
            &["tcp", "http", "http"],
        ),
    ])
}

/// A folder in cargo's target folder, so that what was compiled once is not compiled again.
fn beside_the_build(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe().context("find the running test")?;
    let target = exe
        .ancestors()
        .nth(3)
        .context("the test is not in a target folder")?;
    Ok(target.join(name))
}

/// The client in one language, the server in each of them.
fn check(language: &str) {
    with_world(|world| {
        let programs = programs(world)?;
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let mut servers = Vec::new();
        for (number, server) in (10..).zip(&programs) {
            let name = server.language.to_lowercase();
            let pod = world.pod("b", PodSpec::new(&name).label("app", &name))?;
            let vips = [format!("10.96.0.{number}"), format!("fd00:96::{number}")];
            world.mesh_mut().services.push(json!({
                "name": name, "namespace": "demo", "vips": vips,
                "ports": [{ "port": 80, "targetPort": 8080 }, { "port": 81, "targetPort": 8081 }],
                "selector": { "app": name },
            }));
            servers.push((server, pod, vips));
        }
        let [a, b] = world.start_agents()?;
        let _running: Vec<_> = servers
            .iter()
            .map(|(server, pod, _)| server.serve(pod))
            .collect::<Result<_>>()?;
        let asking = programs.iter().find(|program| program.language == language);
        let asking = asking.context("no such language")?;
        for (server, pod, vips) in &servers {
            for vip in vips {
                let what = format!("{language} asks {} at {vip}", server.language);
                let mut command = asking.in_pod(&client, &["ask", vip, "80", "81"])?;
                let said = program::run(&mut command, &what)?;
                let lines: Vec<_> = said.lines().collect();
                ensure!(lines.len() == asking.prints.len(), "{what}: {said}");
                for (line, name) in lines.into_iter().zip(asking.prints) {
                    let dialled = SocketAddr::new(vip.parse()?, if *name == "tcp" { 80 } else { 81 });
                    let from = check_line(line, name, dialled, &client, pod).with_context(|| what.clone())?;
                    for (agent, direction) in [(&a, "outbound"), (&b, "inbound")] {
                        let line = line_of(agent, direction, from)?;
                        ensure!(line.has("src.identity") && line.has("dst.identity"), "{line}");
                    }
                }
            }
        }
        Ok(())
    });
}

/// Checks what a client printed: name, own address and peer (or `-`), the server's peer and own address, how much was
/// sent, its checksum, and the checksum of what arrived. The client's address, as the server saw it.
fn check_line(line: &str, name: &str, dialled: SocketAddr, client: &Pod, server: &Pod) -> Result<SocketAddr> {
    let words: Vec<_> = line.split(' ').collect();
    let [called, own, peer, seen_peer, seen_own, size, sent, arrived] = words.as_slice() else {
        bail!("{line:?} has not eight parts")
    };
    let told: Ends = parse(&format!("{seen_peer} {seen_own}"))?;
    let (from, at) = (canonical(told.peer), canonical(told.own));
    ensure!(
        from.ip() == own_address(client, dialled).ip(),
        "the server sees {line}"
    );
    let port = if name == "tcp" { 8080 } else { 8081 };
    let itself = SocketAddr::new(own_address(server, dialled).ip(), port);
    ensure!(at == itself, "the server is at {at} instead of {itself}: {line}");
    if *own != "-" {
        let seen = parse(&format!("{peer} {own}"))?;
        ensure!(canonical(seen.own) == from, "{line}");
        ensure!(canonical(seen.peer) == dialled, "{line} instead of {dialled}");
    }
    ensure!(
        *called == name && *size == "100000" && sent.len() == 64 && sent == arrived,
        "{line}"
    );
    Ok(from)
}

#[test]
fn clients_in_go() {
    check("Go");
}

#[test]
fn clients_in_java() {
    check("Java");
}

#[test]
fn clients_in_python() {
    check("Python");
}

#[test]
fn clients_in_node() {
    check("Node");
}
