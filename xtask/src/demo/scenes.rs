//! The demo's scenes, in the order they are shown.

use std::{
    io::{ErrorKind, Read as _},
    net::{SocketAddr, TcpStream},
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};
use weft_tests::{AccessLine, Agent, Curled, LIMIT, Pod, app, capture, curl, wait_until};

use super::{BANNER, Evidence, MARKER, QUEUE, Show, Stage, WEB};

pub(super) fn play(stage: &mut Stage, show: &mut Show) {
    show.scene(
        "without the mesh, a capture of the link between the nodes shows what is sent",
        |it| before_the_mesh(stage, it),
    );
    show.scene(
        "the agents start and capture the running pods, without restarting them",
        |it| start_agents(stage, it),
    );
    show.scene(
        "curl reaches nginx on the other node by its service address",
        |it| reach_nginx(stage, it),
    );
    show.scene("a TCP server that speaks first is reached as well", |it| {
        server_first(stage, it)
    });
    show.scene("on the link there is TLS, and no plaintext", |it| {
        capture_shows_tls(stage, it)
    });
    show.scene("nginx sees the client's real address", |it| {
        real_address(stage, it)
    });
    show.scene("the access line names both identities", |it| {
        access_line(stage, it)
    });
    show.scene("no proxy in the pods, and no iptables", |it| {
        nothing_in_the_pods(stage, it)
    });
    show.scene("a policy allows one identity and denies another", |it| {
        policy(stage, it)
    });
    show.scene("a pod outside the mesh reaches what is PERMISSIVE", |it| {
        outside_permissive(stage, it)
    });
    show.scene("and STRICT refuses it before it can send a byte", |it| {
        outside_strict(stage, it)
    });
    show.scene(
        "two pods of one node: the agent judges the first connection, the kernel carries the next",
        |it| same_node(stage, it),
    );
    show.scene(
        "the agent is killed: nothing passes between the nodes, nothing goes in clear",
        |it| agent_killed(stage, it),
    );
    show.scene("what two pods of one node have open goes on without it", |it| {
        same_node_goes_on(stage, it)
    });
    show.scene("the agent is started again: traffic flows", |it| {
        agent_restarted(stage, it)
    });
}

/// One request, with its evidence.
fn request(it: &mut Evidence, from: &Pod, url: &str) -> Result<Curled> {
    let curled = curl(from, &[url])?;
    let answer = match curled.exit {
        0 => format!("{} {}", curled.status, curled.body.trim()),
        code => format!("exit {code}: {}", curled.stderr),
    };
    it.line(format!("{}$ curl {url}  ->  {answer}", from.name()));
    Ok(curled)
}

fn expect_page(curled: &Curled) -> Result<()> {
    ensure!(
        curled.exit == 0 && curled.status == 200 && curled.body == MARKER,
        "that is not nginx's page"
    );
    Ok(())
}

fn expect_refused(curled: &Curled) -> Result<()> {
    // 7: refused while connecting; 52 and 56: reset before an answer.
    ensure!(matches!(curled.exit, 7 | 52 | 56), "curl was not refused");
    Ok(())
}

fn before_the_mesh(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    let link = stage.world.capture_link()?;
    expect_page(&request(
        it,
        &stage.curl,
        &format!("http://{}:8080/", stage.web.v4()),
    )?)?;
    let bytes = link.stop()?;
    ensure!(
        capture::contains(&bytes, MARKER.as_bytes()),
        "the marker was not seen"
    );
    it.line(format!(
        "{} bytes captured between the nodes; the marker `{MARKER}` is in them",
        bytes.len()
    ));
    Ok(())
}

fn start_agents(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    stage.agents = Some(stage.world.start_agents()?);
    for agent in stage.agents()? {
        let status = agent.status()?;
        let count = |field: &str| status[field].as_u64().unwrap_or(0);
        let listed = |field: &str| status[field].as_array().map_or(0, Vec::len);
        it.line(format!(
            "node {}: {} of {} pods captured, {} eBPF programs, {} certificates",
            agent.node(),
            count("capturedPods"),
            count("expectedPods"),
            listed("programs"),
            listed("certificates"),
        ));
        ensure!(
            count("capturedPods") == 2 && count("expectedPods") == 2,
            "not every pod is captured"
        );
    }
    Ok(())
}

fn reach_nginx(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    expect_page(&request(it, &stage.curl, &format!("http://{WEB}/"))?)
}

fn server_first(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    let mut stream = stage.curl.connect(format!("{QUEUE}:25").parse()?)?;
    let mut banner = vec![0; BANNER.len()];
    stream.read_exact(&mut banner)?;
    it.line(format!(
        "connect {QUEUE}:25, send nothing  ->  {:?}",
        String::from_utf8_lossy(&banner)
    ));
    ensure!(banner == BANNER, "that is not the banner");
    let answer = app::ask(stream, b"ping")?;
    it.line(format!(
        "send \"ping\"  ->  {:?}",
        String::from_utf8_lossy(&answer)
    ));
    ensure!(answer == b"ping", "that is not the echo");
    Ok(())
}

fn capture_shows_tls(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    // A TLS record of application data: type 23, version 3.3.
    const TLS_RECORD: &[u8] = &[0x17, 0x03, 0x03];
    let link = stage.world.capture_link()?;
    expect_page(&request(it, &stage.curl, &format!("http://{WEB}/"))?)?;
    let bytes = link.stop()?;
    let records = bytes.windows(3).filter(|window| *window == TLS_RECORD).count();
    it.line(format!(
        "{} bytes captured between the nodes, {records} TLS records",
        bytes.len()
    ));
    ensure!(records > 0, "there is no TLS on the link");
    ensure!(
        !capture::contains(&bytes, MARKER.as_bytes()),
        "the marker crossed the link in clear"
    );
    it.line(format!("the marker `{MARKER}` is not in them"));
    Ok(())
}

fn real_address(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    let curled = request(it, &stage.curl, &format!("http://{WEB}/peer"))?;
    let log = stage.nginx.access_log();
    it.line(format!("nginx's log: {}", log.lines().last().unwrap_or_default()));
    ensure!(
        curled.body.trim() == stage.curl.v4().to_string(),
        "nginx saw another client than {}",
        stage.curl.v4()
    );
    Ok(())
}

fn access_line(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    let (source, destination) = (stage.curl.identity(), stage.web.identity());
    let [_, b] = stage.agents()?;
    let wanted = |line: &AccessLine| {
        line.matches(&[
            ("src.identity", &source),
            ("dst.identity", &destination),
            ("direction", "inbound"),
        ])
    };
    let line = b.wait_for_access("a line with both identities", wanted)?;
    for field in [
        "src.addr",
        "src.workload",
        "src.identity",
        "dst.workload",
        "dst.identity",
        "bytes_sent",
    ] {
        it.line(format!("{field}={}", line.field(field)));
    }
    Ok(())
}

fn nothing_in_the_pods(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    for pod in [&stage.curl, &stage.web] {
        let processes = processes(&pod.cgroup())?;
        it.line(format!("processes of {}: {}", pod.name(), processes.join(", ")));
        ensure!(
            !processes.iter().any(|name| name == "weft"),
            "weft runs in the pod"
        );
        for family in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
            // The file is there once a table is; each table is a line.
            let output = pod.command("cat").arg(family).output().context("run cat")?;
            let tables = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            ensure!(tables.is_empty(), "{} has iptables' tables: {tables}", pod.name());
        }
    }
    it.line("iptables' tables in the pods: none");
    Ok(())
}

/// The names of a cgroup's processes.
fn processes(cgroup: &Path) -> Result<Vec<String>> {
    let pids = std::fs::read_to_string(cgroup.join("cgroup.procs")).context("read cgroup.procs")?;
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Ok(pids
        .lines()
        .filter_map(name)
        .map(|name| name.trim().to_owned())
        .collect())
}

fn policy(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    stage.allow_only_curl()?;
    it.line(format!("ALLOW {} to web; nobody else", stage.curl.identity()));
    expect_page(&request(it, &stage.curl, &format!("http://{WEB}/"))?)?;
    expect_refused(&request(it, &stage.batch, &format!("http://{WEB}/"))?)?;
    let source = stage.batch.identity();
    let [_, b] = stage.agents()?;
    let line = b.wait_for_access("the refusal", |line| {
        !line.is_ok() && line.field("src.identity") == source
    })?;
    it.line(format!("the log says: {}", line.field("error")));
    stage.world.mesh_mut().policies.clear();
    stage.world.apply()
}

fn outside_permissive(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    expect_page(&request(
        it,
        &stage.legacy,
        &format!("http://{}:8080/", stage.web.v4()),
    )?)
}

fn outside_strict(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    stage.world.mesh_mut().mtls("demo", "STRICT");
    stage.world.apply()?;
    let addr = stage.web.addr(8080);
    match stage.legacy.connect(addr) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            it.line(format!(
                "legacy: connect {addr}  ->  {error}: refused at the SYN, no byte was sent"
            ));
        }
        Err(error) => bail!("connect failed otherwise: {error}"),
        Ok(_) => bail!("connect succeeded"),
    }
    it.line("the mesh's own pods are not affected:");
    expect_page(&request(it, &stage.curl, &format!("http://{WEB}/"))?)
}

/// A connection from nginx's pod to the queue, which is on the same node; and how its agent logged it.
fn dial_queue(stage: &Stage) -> Result<(TcpStream, SocketAddr)> {
    let mut stream = stage.web.connect(format!("{QUEUE}:25").parse()?)?;
    let mut banner = vec![0; BANNER.len()];
    stream.read_exact(&mut banner)?;
    ensure!(banner == BANNER, "that is not the banner");
    let own = stream.local_addr()?;
    Ok((stream, own))
}

fn path_of(agent: &Agent, client: SocketAddr) -> Result<String> {
    let client = client.to_string();
    let line = agent.wait_for_access("the connection's line", |line| {
        line.matches(&[("src.addr", &client), ("direction", "outbound")])
    })?;
    let path = line.field("path");
    Ok(if path.is_empty() {
        "tunnel".to_owned()
    } else {
        path.to_owned()
    })
}

fn same_node(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    let [_, b] = stage.agents()?.clone();
    let mut paths = Vec::new();
    wait_until("a connection from app to app", LIMIT, || {
        // Closed before it is asked for: a connection has its line when it ends.
        let own = dial_queue(stage).map(|(stream, own)| {
            drop(stream);
            own
        });
        let path = own.and_then(|own| path_of(&b, own));
        path.is_ok_and(|path| {
            paths.push(path);
            paths.last().is_some_and(|path| path == "kernel")
        })
    })?;
    it.line(format!(
        "web to queue, by its service address: {}",
        paths.join(", then ")
    ));
    ensure!(
        paths.first().is_some_and(|path| path == "tunnel"),
        "the first was not judged by the agent"
    );
    let (stream, own) = dial_queue(stage)?;
    let shown = stream.peer_addr()?;
    it.line(format!(
        "{own} is connected to the app itself; getpeername shows {shown}"
    ));
    stage.direct = Some(stream);
    Ok(())
}

fn same_node_goes_on(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    const BLOCK: usize = 64 * 1024;
    const BLOCKS: usize = 256;
    let stream = stage.direct.as_mut().context("there is no open connection")?;
    for nth in 0..BLOCKS {
        app::round_trip(stream, &[nth as u8; BLOCK]).context("the open connection does not go on")?;
    }
    it.line(format!(
        "{} MiB each way, echoed and compared, with no agent on the node",
        (BLOCK * BLOCKS) >> 20
    ));
    Ok(())
}

fn agent_killed(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    let [a, b]: &[Agent; 2] = stage.agents()?;
    for agent in [a, b] {
        agent.kill()?;
    }
    it.line("kill -9 of both agents");
    let link = stage.world.capture_link()?;
    expect_refused(&request(it, &stage.curl, &format!("http://{WEB}/"))?)?;
    expect_refused(&request(
        it,
        &stage.curl,
        &format!("http://{}:8080/", stage.web.v4()),
    )?)?;
    expect_refused(&request(
        it,
        &stage.legacy,
        &format!("http://{}:8080/", stage.web.v4()),
    )?)?;
    let bytes = link.stop()?;
    ensure!(
        !capture::contains(&bytes, MARKER.as_bytes()),
        "the marker crossed the link"
    );
    it.line("on the link: no marker");
    Ok(())
}

fn agent_restarted(stage: &mut Stage, it: &mut Evidence) -> Result<()> {
    for agent in stage.agents()? {
        agent.start()?;
    }
    expect_page(&request(it, &stage.curl, &format!("http://{WEB}/"))?)?;
    let mut stream = stage.batch.connect(format!("{QUEUE}:25").parse()?)?;
    let mut banner = vec![0; BANNER.len()];
    stream.read_exact(&mut banner)?;
    it.line(format!(
        "batch: connect {QUEUE}:25  ->  {:?}",
        String::from_utf8_lossy(&banner)
    ));
    ensure!(banner == BANNER, "that is not the banner");
    Ok(())
}
