//! While one pod is flooded the others keep working: with SYNs that nobody follows up, with TLS handshakes that are begun,
//! with streams.

#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod ordinary;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}

use std::{fs, net::SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use foreign::{
    certs::Authority,
    ordinary::Ordinary,
    tls,
    tunnel::{Tunnel, handshake, runtime},
};
use weft_tests::{
    Agent, Flood, LIMIT, Pod, PodSpec, Server, World,
    app::{echo, round_trip},
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
    _servers: [Server; 2],
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
        Ok(Self {
            client,
            stranger,
            flooded,
            other,
            agent,
            _servers: servers,
        })
    }

    /// What the others do: new connections from both, in plaintext too.
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

/// Runs a flood, during which an old connection of others goes on and new ones are opened; then the flooded pod works again.
fn others_go_on(flooded: impl FnOnce(&World, &Scene) -> Result<()>) {
    with_world(|world| {
        let scene = Scene::new(world)?;
        let ordinary = Ordinary::start(scene.client.connect(scene.other.addr(8080))?)?;
        flooded(world, &scene)?;
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
    others_go_on(|_, scene| {
        let before = scene.segments()?;
        let to = [HBONE, 8080].map(|port| SocketAddrV4::new(scene.flooded.v4(), port));
        Flood::syns(&scene.stranger, &to)?.during(20_000, || scene.others_work())?;
        let came = scene.segments()? - before;
        ensure!(came > 5000, "only {came} segments came");
        Ok(())
    });
}

#[test]
fn others_go_on_while_a_pod_is_flooded_with_handshakes() {
    others_go_on(|_, scene| {
        let flood = Flood::handshakes(&scene.stranger, scene.flooded.addr(HBONE));
        flood.during(2000, || scene.others_work())?;
        let refused = [("limit", "peer_handshakes")];
        let refused = scene
            .agent
            .metrics()?
            .sum("weft_limit_rejections_total", &refused);
        ensure!(refused > 0.0, "no handshake was refused");
        Ok(())
    });
}

#[test]
fn others_go_on_while_a_pod_is_flooded_with_streams() {
    others_go_on(|world, scene| {
        let authority = Authority::of(world)?;
        let svid = authority.svid("spiffe://cluster.local/ns/demo/sa/stranger")?;
        let config = tls::client(Some(&svid), &authority.roots()?, tls::H2)?;
        let tcp = scene.stranger.connect(scene.flooded.addr(HBONE))?;
        let client = tcp.local_addr()?.to_string();
        let target = scene.flooded.addr(8080).to_string();
        let runtime = runtime()?;
        let tunnel = runtime.block_on(async { Tunnel::open(handshake(tcp, &config).await?).await })?;
        let flood = Flood::new(|_| {
            let stream = || tunnel.echo(&target, &client, b"one of many");
            runtime.block_on(async {
                let (a, b, c, d) = tokio::join!(stream(), stream(), stream(), stream());
                a.and(b).and(c).and(d)
            })
        });
        flood.during(500, || scene.others_work())
    });
}
