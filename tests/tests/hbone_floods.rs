//! Peers that stall and peers that flood: each ends with a line that names it, or is harmless; the agent lives, its
//! memory stays bounded, and the connections of others go on, the old and the new.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod ordinary;
    pub(crate) mod raw;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use foreign::{
    certs::Authority,
    ordinary::Ordinary,
    raw::{self, Raw},
    tls,
    tunnel::{handshake, runtime},
};
use rustls::ClientConfig;
use tokio::{runtime::Runtime, time::timeout};
use weft_tests::{
    Agent, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    wait_until, with_world,
};

const HBONE: u16 = 15008;

/// How much the agent may grow at its highest, in KiB: a tunnel's window is 16 MiB, and each attack is one tunnel.
const GROWTH: u64 = 64 * 1024;

/// How long others may have to wait for one round trip while the agent is under attack.
const PATIENCE: Duration = Duration::from_secs(5);

struct Scene {
    client: Pod,
    stranger: Pod,
    bystander: Pod,
    web: Pod,
    agent: Agent,
    config: Arc<ClientConfig>,
    runtime: Runtime,
    _server: Server,
}

impl Scene {
    fn new(world: &mut World) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let bystander = world.pod("a", PodSpec::new("bystander").unlisted())?;
        let web = world.pod("b", PodSpec::new("web").service_account("web"))?;
        let [_, agent] = world.start_agents()?;
        let server = Server::start(web.listen(8080)?, echo)?;
        let authority = Authority::of(world)?;
        let svid = authority.svid("spiffe://cluster.local/ns/demo/sa/stranger")?;
        let config = tls::client(Some(&svid), &authority.roots()?, tls::H2)?;
        Ok(Self {
            client,
            stranger,
            bystander,
            web,
            agent,
            config,
            runtime: runtime()?,
            _server: server,
        })
    }

    fn dial(&self) -> Result<TcpStream> {
        Ok(self.stranger.connect(self.web.addr(HBONE))?)
    }

    fn target(&self) -> String {
        self.web.addr(8080).to_string()
    }

    /// Waits for the line that names a tunnel's peer.
    fn tunnel_line(&self, peer: SocketAddr, error: &str) -> Result<String> {
        let peer = format!("\"{peer}\"");
        self.agent
            .wait_for_log(&format!("a line about the tunnel of {peer}: {error}"), |line| {
                line.contains("a tunnel ended before its time")
                    && line.contains(&peer)
                    && line.contains(error)
            })
    }

    /// A kilobyte number from /proc/<pid>/status.
    fn memory(&self, field: &str) -> Result<u64> {
        let pid = self.agent.pid().context("the agent does not run")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line
            .and_then(|line| line.split_whitespace().nth(1))
            .context("no such field")?;
        Ok(number.parse()?)
    }
}

/// Runs an attack and asserts what holds after every one.
fn survives(attack: impl FnOnce(&Scene) -> Result<()>) {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let ordinary = Ordinary::start(scene.client.connect(scene.web.addr(8080))?)?;
        let before = scene.memory("VmRSS")?;
        attack(&scene)?;
        let grown = scene.memory("VmHWM")?.saturating_sub(before);
        let longest = ordinary.stop()?;
        ensure!(scene.agent.running(), "the agent has ended");
        ensure!(grown < GROWTH, "the agent grew by {grown} KiB");
        ensure!(longest < PATIENCE, "a round trip took {longest:?}");
        let mut new = scene.client.connect(scene.web.addr(8080))?;
        round_trip(&mut new, b"after").context("a new connection")?;
        Ok(())
    });
}

/// Runs an attack with HTTP/2 by hand, from a tunnel that is open.
fn survives_tunnel(attack: impl AsyncFnOnce(&Scene, SocketAddr, Raw) -> Result<()>) {
    survives(|scene| {
        scene.runtime.block_on(async {
            let tcp = scene.dial()?;
            let peer = tcp.local_addr()?;
            let raw = Raw::open(handshake(tcp, &scene.config).await?).await?;
            attack(scene, peer, raw).await
        })
    });
}

/// The statuses of the answers to CONNECTs, which h2 sends as indices into the static table (RFC 7541 A): 8 is 200.
fn accepted(raw: &Raw) -> usize {
    raw.came(raw::HEADERS)
        .iter()
        .filter(|frame| frame.payload.first() == Some(&0x88))
        .count()
}

/// Opens stream 1 to an app that never reads.
async fn connect_deaf(scene: &Scene, raw: &mut Raw) -> Result<TcpListener> {
    let deaf = scene.web.listen(8081)?;
    raw.read_on();
    let target = scene.web.addr(8081).to_string();
    ensure!(raw.send(&raw::connect(1, &target)).await, "the tunnel is closed");
    wait_until("the answer", LIMIT, || accepted(raw) == 1 || raw.ended())?;
    Ok(deaf)
}

/// The peer kept the rules: its tunnel still works.
async fn still_serves(scene: &Scene, raw: &mut Raw, stream: u32) -> Result<()> {
    let before = accepted(raw);
    ensure!(
        raw.send(&raw::connect(stream, &scene.target())).await,
        "the tunnel is closed"
    );
    wait_until("an answer on the flooded tunnel", LIMIT, || {
        accepted(raw) > before || raw.ended()
    })?;
    ensure!(
        accepted(raw) > before,
        "the tunnel is closed: {:?}",
        raw.came(raw::GOAWAY)
    );
    Ok(())
}

#[test]
fn peers_that_stall_are_ended_at_the_deadline_and_named() {
    survives(|scene| {
        let half_hello = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 60]].concat();
        let began = Instant::now();
        let (no_preface, no_preface_peer) = scene.runtime.block_on(async {
            let tcp = scene.dial()?;
            let peer = tcp.local_addr()?;
            Ok::<_, anyhow::Error>((handshake(tcp, &scene.config).await?, peer))
        })?;
        let mut stalled = (0..40).map(|_| scene.dial()).collect::<Result<Vec<_>>>()?;
        for half in &mut stalled[..20] {
            half.write_all(&half_hello)?;
        }
        drip(&mut stalled[39], &half_hello)?;
        for stalled in &mut stalled[..39] {
            ensure!(has_ended(&stalled.read(&mut [0; 100])), "something came");
        }
        let took = began.elapsed();
        ensure!((9..14).contains(&took.as_secs()), "ended after {took:?}");
        for stalled in &stalled {
            let peer = stalled.local_addr()?.to_string();
            let line = scene
                .agent
                .wait_for_access(&peer, |line| line.field("src.addr") == peer)?;
            ensure!(
                line.field("error") == "the TLS handshake was not done within 10s",
                "{line}"
            );
        }
        scene.tunnel_line(no_preface_peer, "preface did not come within 10s")?;
        drop(no_preface);
        Ok(())
    });
}

/// Sends the same few bytes one by one, each after a fifth of a second without an answer, until the other end closes.
fn drip(tcp: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    tcp.set_read_timeout(Some(Duration::from_millis(200)))?;
    for byte in bytes {
        if tcp.write_all(&[*byte]).is_err() || has_ended(&tcp.read(&mut [0; 100])) {
            return Ok(());
        }
    }
    bail!("it was listened to for all of {} bytes", bytes.len())
}

/// A close in the middle of what was not read is a reset.
fn has_ended(read: &io::Result<usize>) -> bool {
    match read {
        Ok(size) => *size == 0,
        Err(err) => err.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_peer_with_thousands_of_stalled_handshakes_keeps_nobody_else_out() {
    survives(|scene| {
        // Those beyond the limit are reset, some of them before this end knows that it is connected.
        let stalled: Vec<_> = (0..3000).filter_map(|_| scene.dial().ok()).collect();
        scene.agent.wait_for_access("a refused handshake", |line| {
            line.field("error").contains("too many TLS handshakes under way")
        })?;
        let began = Instant::now();
        scene.runtime.block_on(async {
            let tcp = scene.bystander.connect(scene.web.addr(HBONE))?;
            let mut raw = Raw::open(timeout(PATIENCE, handshake(tcp, &scene.config)).await??).await?;
            raw.read_on();
            still_serves(scene, &mut raw, 1).await
        })?;
        ensure!(
            began.elapsed() < PATIENCE,
            "a bystander's handshake took {:?}",
            began.elapsed()
        );
        drop(stalled);
        Ok(())
    });
}

#[test]
fn a_flood_of_streams_opened_and_reset_is_survived() {
    survives_tunnel(async |scene, peer, mut raw| {
        raw.read_on();
        let target = scene.target();
        let cancel = 8_u32.to_be_bytes();
        let mut open = true;
        for batch in 0..100_u32 {
            let pair = |n: u32| {
                let stream = 2 * (batch * 200 + n) + 1;
                [
                    raw::connect(stream, &target),
                    raw::frame(raw::RST_STREAM, 0, stream, &cancel),
                ]
                .concat()
            };
            open = open && raw.send(&(0..200).flat_map(pair).collect::<Vec<_>>()).await;
        }
        wait_until("the flood's end", LIMIT, || raw.ended())?;
        scene.tunnel_line(peer, "flooded us").map(drop)
    });
}

#[test]
fn more_streams_than_are_allowed_are_refused_one_by_one() {
    survives_tunnel(async |scene, _, mut raw| {
        raw.read_on();
        let target = scene.target();
        let opens: Vec<u8> = (0..150).flat_map(|n| raw::connect(2 * n + 1, &target)).collect();
        ensure!(raw.send(&opens).await, "the tunnel is closed");
        wait_until("150 answers", LIMIT, || {
            accepted(&raw) + raw.came(raw::RST_STREAM).len() == 150 || raw.ended()
        })?;
        let refused = raw.came(raw::RST_STREAM);
        ensure!(
            accepted(&raw) == 100 && refused.len() == 50,
            "{} accepted, {refused:?}",
            accepted(&raw)
        );
        ensure!(
            refused.iter().all(|frame| frame.payload == 7_u32.to_be_bytes()),
            "not REFUSED_STREAM: {refused:?}"
        );
        let end = raw::frame(raw::DATA, 1, 1, b"");
        ensure!(raw.send(&end).await);
        wait_until("the first stream's end", LIMIT, || {
            raw.came(raw::DATA)
                .iter()
                .any(|frame| frame.stream == 1 && frame.flags & 1 == 1)
        })?;
        still_serves(scene, &mut raw, 301).await
    });
}

#[test]
fn tiny_frames_to_an_app_that_does_not_read_wait_within_the_window() {
    survives_tunnel(async |scene, _, mut raw| {
        let _deaf = connect_deaf(scene, &mut raw).await?;
        // Only from here on may it use the window that the agent announced (RFC 9113 6.5.3).
        raw.send(&raw::frame(raw::SETTINGS, 1, 0, &[])).await;
        let chunk = raw::frame(raw::DATA, 0, 1, b"x").repeat(1000);
        for sent in 0..500 {
            ensure!(
                raw.send(&chunk).await,
                "closed after {sent} thousand frames: {:?}",
                raw.came(raw::GOAWAY)
            );
        }
        still_serves(scene, &mut raw, 3).await
    });
}

#[test]
fn a_flood_of_empty_frames_ends_the_tunnel_with_a_line() {
    survives_tunnel(async |scene, peer, mut raw| {
        let _deaf = connect_deaf(scene, &mut raw).await?;
        pour(&mut raw, &raw::frame(raw::DATA, 0, 1, b"").repeat(1000), 500).await;
        scene.tunnel_line(peer, "flooded us").map(drop)
    });
}

#[test]
fn bytes_beyond_the_window_reset_their_stream_and_are_not_kept() {
    survives_tunnel(async |scene, peer, mut raw| {
        let _deaf = connect_deaf(scene, &mut raw).await?;
        pour(
            &mut raw,
            &raw::frame(raw::DATA, 0, 1, &[b'x'; 16_384]).repeat(64),
            32,
        )
        .await;
        wait_until("the stream's reset", LIMIT, || {
            !raw.came(raw::RST_STREAM).is_empty() || raw.ended()
        })?;
        let reset = raw.came(raw::RST_STREAM);
        let code = 3_u32.to_be_bytes();
        ensure!(
            reset.iter().any(|frame| frame.payload == code),
            "not FLOW_CONTROL_ERROR: {reset:?}"
        );
        let peer = peer.to_string();
        let line = scene
            .agent
            .wait_for_access(&peer, |line| line.field("src.addr") == peer)?;
        ensure!(line.field("error").contains("flow-control"), "{line}");
        still_serves(scene, &mut raw, 3).await
    });
}

#[test]
fn a_huge_header_list_ends_its_stream_and_costs_no_memory() {
    survives_tunnel(async |scene, _, mut raw| {
        raw.read_on();
        let mut block = raw::connect_block(&scene.target());
        // A literal of 60,000 bytes: its length in a 7-bit prefix (RFC 7541 5.1).
        block.extend(b"\x00\x01x\x7f\xe1\xd3\x03");
        block.extend([b'y'; 60_000]);
        ensure!(
            raw.send(&raw::frame(raw::HEADERS, raw::END_HEADERS, 1, &block))
                .await
        );
        wait_until("the answer", LIMIT, || {
            raw.came(raw::HEADERS).len() == 1 || raw.ended()
        })?;
        let answer = raw.came(raw::HEADERS);
        ensure!(
            accepted(&raw) == 0 && answer[0].flags & 1 == 1,
            "it is accepted: {answer:?}"
        );
        scene
            .agent
            .wait_for_access("the line of a huge header list", |line| {
                line.field("error") == "the CONNECT has too many bytes of headers"
            })?;
        let refused = [("limit", "header_bytes")];
        ensure!(
            scene
                .agent
                .metrics()?
                .sum("weft_limit_rejections_total", &refused)
                == 1.0
        );
        still_serves(scene, &mut raw, 3).await
    });
}

#[test]
fn an_endless_header_block_ends_the_tunnel_with_a_line() {
    survives_tunnel(async |scene, peer, mut raw| {
        raw.read_on();
        raw.send(&raw::frame(
            raw::HEADERS,
            0,
            1,
            &raw::connect_block(&scene.target()),
        ))
        .await;
        let part = [b"\x00\x01x\x7f\x81\x7e".to_vec(), vec![b'y'; 16_256]].concat();
        let part = raw::frame(raw::CONTINUATION, 0, 1, &part);
        for _ in 0..4096 {
            if !raw.send(&part).await {
                break;
            }
        }
        wait_until("the tunnel's end", LIMIT, || raw.ended())?;
        scene.tunnel_line(peer, "flooded us").map(drop)
    });
}

/// Writes for as long as the other end takes it within a second, and at most `chunks` times.
async fn pour(raw: &mut Raw, chunk: &[u8], chunks: usize) -> usize {
    for poured in 0..chunks {
        if !timeout(Duration::from_secs(1), raw.send(chunk))
            .await
            .unwrap_or(false)
        {
            return poured;
        }
    }
    chunks
}

#[test]
fn a_flood_of_pings_is_answered_and_costs_no_memory() {
    survives_tunnel(async |scene, _, mut raw| {
        raw.read_on();
        let pings = raw::frame(raw::PING, 0, 0, b"12345678").repeat(1000);
        pour(&mut raw, &pings, 100).await;
        still_serves(scene, &mut raw, 1).await
    });
}

#[test]
fn a_flood_of_pings_whose_answers_nobody_reads_costs_no_memory() {
    survives_tunnel(async |_, _, mut raw| {
        let pings = raw::frame(raw::PING, 0, 0, b"12345678").repeat(1000);
        let poured = pour(&mut raw, &pings, 4000).await;
        ensure!(
            poured < 4000,
            "the agent reads on although its answers are not read"
        );
        Ok(())
    });
}

#[test]
fn a_flood_of_settings_is_answered_and_costs_no_memory() {
    survives_tunnel(async |scene, _, mut raw| {
        raw.read_on();
        // INITIAL_WINDOW_SIZE, which touches every stream.
        let settings = raw::frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(1000);
        pour(&mut raw, &settings, 100).await;
        still_serves(scene, &mut raw, 1).await
    });
}

#[test]
fn a_flood_of_settings_whose_answers_nobody_reads_costs_no_memory() {
    survives_tunnel(async |_, _, mut raw| {
        let settings = raw::frame(raw::SETTINGS, 0, 0, b"").repeat(1000);
        let poured = pour(&mut raw, &settings, 4000).await;
        ensure!(
            poured < 4000,
            "the agent reads on although its answers are not read"
        );
        Ok(())
    });
}
