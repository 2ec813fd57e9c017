//! While one pod is flooded the others keep working: with SYNs that nobody follows up, with TLS handshakes that are begun,
//! with streams.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod ordinary;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::{
    collections::VecDeque,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use foreign::{
    certs::Authority,
    ordinary::Ordinary,
    tls,
    tunnel::{Tunnel, handshake, runtime},
};
use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use socket2::{Domain, Protocol, Type};
use weft_tests::{
    Agent, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
    pause::SocketSpec,
    wait_until, with_world,
};

const HBONE: u16 = 15008;
/// Connections that others open during a flood.
const OTHERS: usize = 50;

struct Scene {
    client: Pod,
    stranger: Pod,
    flooded: Pod,
    other: Pod,
    agent: Agent,
    config: Arc<ClientConfig>,
    _servers: [Server; 2],
}

/// How a flood goes on, and whether it is to end.
#[derive(Default)]
struct Flood {
    count: AtomicU64,
    ends: AtomicBool,
}

impl Flood {
    fn more(&self) -> bool {
        self.count.fetch_add(1, SeqCst);
        !self.ends.load(SeqCst)
    }
}

impl Scene {
    fn new(world: &mut World) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client"))?;
        let stranger = world.pod("a", PodSpec::new("stranger").unlisted())?;
        let flooded = world.pod("b", PodSpec::new("flooded"))?;
        let other = world.pod("b", PodSpec::new("other"))?;
        let [_, agent] = world.start_agents()?;
        let servers = [
            Server::start(flooded.listen(8080)?, echo)?,
            Server::start(other.listen(8080)?, echo)?,
        ];
        let authority = Authority::of(world)?;
        let svid = authority.svid("spiffe://cluster.local/ns/demo/sa/stranger")?;
        let config = tls::client(Some(&svid), &authority.roots()?, tls::H2)?;
        Ok(Self {
            client,
            stranger,
            flooded,
            other,
            agent,
            config,
            _servers: servers,
        })
    }

    /// What the others do: an old connection goes on, new ones are opened, in plaintext too.
    fn others_work(&self) -> Result<()> {
        for nth in 0..OTHERS {
            let from = if nth % 2 == 0 {
                &self.client
            } else {
                &self.stranger
            };
            let mut stream = from
                .connect_within(self.other.addr(8080), LIMIT)
                .with_context(|| format!("connection {nth} of another pod"))?;
            round_trip(&mut stream, b"other").with_context(|| format!("connection {nth}"))?;
        }
        Ok(())
    }

    /// TCP segments that came to the pod under attack.
    fn segments(&self) -> Result<u64> {
        let read = || fs::read_to_string("/proc/thread-self/net/snmp");
        let snmp = self.flooded.netns().run(read)??;
        let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = lines.next().zip(lines.next()).context("no Tcp lines")?;
        let at = names
            .split(' ')
            .position(|name| name == "InSegs")
            .context("no InSegs")?;
        Ok(values.split(' ').nth(at).context("no value")?.parse()?)
    }
}

/// Runs `attack`, which asks `more` before each of its blows; once `enough` have been struck the others get to work.
fn others_go_on(enough: u64, attack: impl FnOnce(&Scene, &Flood) -> Result<()> + Send) {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let ordinary = Ordinary::start(scene.client.connect(scene.other.addr(8080))?)?;
        let flood = Flood::default();
        thread::scope(|scope| {
            let attacking = scope.spawn(|| attack(&scene, &flood));
            let under_way = wait_until("the flood", LIMIT * 3, || {
                flood.count.load(SeqCst) >= enough || attacking.is_finished()
            });
            let worked = under_way.and_then(|()| scene.others_work());
            flood.ends.store(true, SeqCst);
            let attacked = attacking.join().map_err(|_| anyhow!("the attack panicked"))?;
            worked.and(attacked)
        })?;
        ensure!(flood.count.load(SeqCst) >= enough, "there was no flood");
        ordinary.stop()?;
        ensure!(scene.agent.running(), "the agent has ended");
        wait_until("the flooded pod", LIMIT, || {
            let mut stream = scene.client.connect(scene.flooded.addr(8080))?;
            round_trip(&mut stream, b"after")
        })
    });
}

#[test]
fn others_go_on_while_a_pod_is_flooded_with_syns() {
    others_go_on(20_000, |scene, flood| {
        let raw = SocketSpec::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let socket = scene.stranger.socket(raw)?;
        let before = scene.segments()?;
        let mut nth = 0_u32;
        while flood.more() {
            nth = nth.wrapping_add(1);
            // Of addresses that nobody has, so that nobody says that it wants no connection.
            let from = Ipv4Addr::new(10, 244, 1, 128 | (nth & 0x7f) as u8);
            let port = if nth.is_multiple_of(2) { HBONE } else { 8080 };
            let to = SocketAddrV4::new(scene.flooded.v4(), port);
            let packet = syn(
                SocketAddrV4::new(from, 1024 + (nth >> 7 & 0x7fff) as u16),
                to,
                nth,
            );
            // A full queue drops it, as a network would.
            let _ = socket.send_to(&packet, &SocketAddr::from(to).into());
        }
        let came = scene.segments()? - before;
        ensure!(came > 5000, "only {came} segments came");
        Ok(())
    });
}

/// A SYN, with the IPv4 header in front of it (RFC 791, RFC 9293).
fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Vec<u8> {
    let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let ends = [from.ip().octets(), to.ip().octets()].concat();
    let pseudo = [&ends[..], &[0, 6, 0, 20], &tcp].concat();
    tcp.splice(16..18, checksum(&pseudo).to_be_bytes());
    // The kernel fills in the length, the identification and the checksum (raw(7)).
    let head = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
    [&head[..], &ends, &tcp].concat()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        other => u32::from(other[0]) << 8,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn others_go_on_while_a_pod_is_flooded_with_handshakes() {
    others_go_on(2000, |scene, flood| {
        let name = ServerName::IpAddress(std::net::IpAddr::from(scene.flooded.v4()).into());
        let mut hello = Vec::new();
        ClientConnection::new(scene.config.clone(), name)?.write_tls(&mut hello)?;
        let mut begun = VecDeque::new();
        while flood.more() {
            // What is refused is refused at once, and what is not waits until its deadline.
            if let Ok(mut tcp) = scene.stranger.connect(scene.flooded.addr(HBONE)) {
                let _ = tcp.write_all(&hello);
                begun.push_back(tcp);
            }
            if begun.len() > 500 {
                begun.pop_front();
            }
        }
        let refused = scene
            .agent
            .metrics()?
            .sum("weft_limit_rejections_total", &[("limit", "peer_handshakes")]);
        ensure!(refused > 0.0, "the flood was none");
        Ok(())
    });
}

#[test]
fn others_go_on_while_a_pod_is_flooded_with_streams() {
    others_go_on(2000, |scene, flood| {
        let tcp = scene.stranger.connect(scene.flooded.addr(HBONE))?;
        let client = tcp.local_addr()?.to_string();
        let target = scene.flooded.addr(8080).to_string();
        runtime()?.block_on(async {
            let tunnel = Tunnel::open(handshake(tcp, &scene.config).await?).await?;
            let streams = async || {
                while flood.more() {
                    tunnel.echo(&target, &client, b"one of many").await?;
                }
                Ok::<_, anyhow::Error>(())
            };
            let (a, b, c, d) = tokio::join!(streams(), streams(), streams(), streams());
            a.and(b).and(c).and(d)
        })
    });
}
