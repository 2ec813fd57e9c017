//! Certificates while they are in use: roots that are replaced, certificates that are revoked, clocks that differ. What
//! may not go on is closed, and nothing else.

mod common;
#[allow(dead_code, reason = "each of these tests uses a part of it")]
mod foreign {
    pub(crate) mod certs;
    pub(crate) mod scene;
    pub(crate) mod server;
    pub(crate) mod tls;
    pub(crate) mod tunnel;
}
mod roots;

use std::{
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use common::{MARKER, echoed, ensure_reset, line_of};
use foreign::{
    certs::Validity,
    scene::{Scene, stranger},
    server::Conduct,
    tls,
    tunnel::{Tunnel, handshake, runtime},
};
use roots::{Root, Trusting};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use weft_tests::{
    LIMIT, Pod, PodSpec, Server, World,
    app::{ask, echo, round_trip},
    wait_until, with_world,
};

/// `client` and `other` on node a, `web` on node b, each node with a CA of files that the test writes.
struct Cast {
    client: Pod,
    other: Pod,
    web: Pod,
    a: Trusting,
    b: Trusting,
    _server: Server,
}

impl Cast {
    fn start(world: &mut World, root: &Root) -> Result<Self> {
        let client = world.pod("a", PodSpec::new("client").service_account("client"))?;
        let other = world.pod("a", PodSpec::new("other").service_account("other"))?;
        let web = world.pod(
            "b",
            PodSpec::new("web").service_account("web").label("app", "web"),
        )?;
        let crl = root.crl(&[], None)?;
        Ok(Self {
            a: Trusting::start(world, "a", root, &crl)?,
            b: Trusting::start(world, "b", root, &crl)?,
            _server: Server::start(web.listen(8080)?, echo)?,
            client,
            other,
            web,
        })
    }

    /// An open connection that has carried something.
    fn open(&self, from: &Pod) -> Result<TcpStream> {
        let mut stream = from.connect(self.web.addr(8080))?;
        round_trip(&mut stream, MARKER)?;
        Ok(stream)
    }
}

/// A connection that must have been cut: the app's address, by which its lines are found.
fn cut(mut stream: TcpStream) -> Result<SocketAddr> {
    let local = stream.local_addr()?;
    ensure_reset(&mut stream).with_context(|| format!("the connection from {local}"))?;
    Ok(local)
}

/// Dials again and again, and counts; what fails is noted.
#[derive(Default)]
struct Dialler {
    done: AtomicU64,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Dialler {
    fn run(&self, from: &Pod, to: SocketAddr) {
        while !self.stop.load(SeqCst) {
            if let Err(error) = echoed(from, to) {
                self.failed.lock().expect("no panics").push(format!("{error:#}"));
            }
            self.done.fetch_add(1, SeqCst);
        }
    }

    /// Waits until two more connections have begun and ended.
    fn some_more(&self) -> Result<()> {
        let until = self.done.load(SeqCst) + 3;
        wait_until("connections", LIMIT, || self.done.load(SeqCst) >= until)
    }

    /// Does `work` while connections are being made.
    fn during<T>(&self, from: &Pod, to: SocketAddr, work: impl FnOnce() -> Result<T>) -> Result<T> {
        thread::scope(|scope| {
            scope.spawn(|| self.run(from, to));
            let worked = work();
            self.stop.store(true, SeqCst);
            worked
        })
    }
}

#[test]
fn a_root_is_replaced_and_no_connection_fails() {
    with_world(|world| {
        let (old, new) = (Root::new()?, Root::new()?);
        let cast = Cast::start(world, &old)?;
        let to = cast.web.addr(8080);
        let dialler = Dialler::default();
        let (mut of_old, mut of_new) = dialler.during(&cast.other, to, || {
            let mut of_old = cast.open(&cast.client)?;
            // Both are accepted everywhere, then each node's CA is the new one.
            for node in [&cast.a, &cast.b] {
                node.bundle(&[&old, &new])?;
                node.wait_for_roots(2)?;
            }
            dialler.some_more()?;
            cast.a.sign_with(&new, &cast.client)?;
            dialler.some_more()?;
            round_trip(&mut of_old, MARKER).context("one end is renewed")?;
            cast.b.sign_with(&new, &cast.web)?;
            dialler.some_more()?;
            round_trip(&mut of_old, MARKER).context("both ends are renewed")?;
            let of_new = cast.open(&cast.client)?;
            // The old one is accepted no more.
            for node in [&cast.a, &cast.b] {
                node.bundle(&[&new])?;
                node.wait_for_roots(1)?;
            }
            dialler.some_more()?;
            Ok((of_old, of_new))
        })?;
        let failed = dialler.failed.lock().expect("no panics");
        ensure!(failed.is_empty(), "{failed:?}");
        round_trip(&mut of_new, MARKER).context("a connection of the new root")?;
        ensure!(
            round_trip(&mut of_old, MARKER).is_err(),
            "a connection of the old root goes on"
        );
        let line = line_of(&cast.a.agent, "outbound", of_old.local_addr()?)?;
        ensure!(
            line.field("error")
                .contains("is not accepted any more: the certificate does not lead to a trusted root"),
            "{line}"
        );
        Ok(())
    });
}

#[test]
fn a_removed_root_closes_what_rests_on_it_and_nothing_else() {
    with_world(|world| {
        let (ours, theirs) = (Root::new()?, Root::new()?);
        let cast = Cast::start(world, &ours)?;
        // Node a signs with a root of its own; node b believes it for as long as it is named.
        cast.a.bundle(&[&ours])?;
        cast.b.bundle(&[&theirs])?;
        cast.b.wait_for_roots(2)?;
        cast.a.sign_with(&theirs, &cast.client)?;
        let outside = cast.open(&cast.client)?;
        let local = world.pod("b", PodSpec::new("local").service_account("local"))?;
        world.apply()?;
        wait_until("the new pod", LIMIT, || echoed(&local, cast.web.addr(8080)))?;
        let mut inside = cast.open(&local)?;
        cast.b.bundle(&[&ours])?;
        let addr = cut(outside)?;
        let line = line_of(&cast.b.agent, "inbound", addr)?;
        let wanted = format!(
            "the certificate of {} is not accepted any more",
            cast.client.identity()
        );
        ensure!(line.field("error").contains(&wanted), "{line}");
        ensure!(cast.b.flagged("closed", "TLS_FAILURE")? == 1.0);
        round_trip(&mut inside, MARKER).context("a connection of the root that stays")?;
        // And there is no way back in.
        ensure!(cast.open(&cast.client).is_err());
        let refused = |line: &weft_tests::AccessLine| {
            line.field("error")
                .contains("the certificate does not lead to a trusted root")
        };
        cast.b.agent.wait_for_access("the handshake's", refused)?;
        round_trip(&mut inside, MARKER)?;
        Ok(())
    });
}

#[test]
fn a_revocation_closes_live_connections_and_refuses_new_ones_of_one_identity_alone() {
    with_world(|world| {
        let root = Root::new()?;
        let cast = Cast::start(world, &root)?;
        let revoked = cast.a.serial(&cast.client)?;
        let first = cast.open(&cast.client)?;
        let second = cast.open(&cast.client)?;
        let mut other = cast.open(&cast.other)?;
        // Only the server's node is told, and the list should have been replaced an hour ago.
        let crl = root.crl(std::slice::from_ref(&revoked), Some(Duration::from_secs(3600)))?;
        cast.b.write("crl.pem", &crl)?;
        for stream in [first, second] {
            let line = line_of(&cast.b.agent, "inbound", cut(stream)?)?;
            ensure!(
                line.field("error")
                    .contains(&format!("has been revoked (serial number {revoked})")),
                "{line}"
            );
        }
        ensure!(cast.b.flagged("closed", "CERT_REVOKED")? == 2.0);
        ensure!(cast.b.rejections("destination")? == 2.0);
        cast.b.agent.wait_for_log("that the list is old", |line| {
            line.contains("a CRL should have been replaced by now")
        })?;
        round_trip(&mut other, MARKER).context("another identity's connection")?;

        ensure!(
            cast.open(&cast.client).is_err(),
            "a new connection of a revoked certificate"
        );
        cast.b.agent.wait_for_access("the refusal", |line| {
            line.field("error").contains("has been revoked") && !line.has("src.identity")
        })?;
        ensure!(cast.b.flagged("failed", "CERT_REVOKED")? >= 1.0);

        // A list that cannot be read changes nothing.
        cast.b.write("crl.pem", "this is no list")?;
        cast.b.agent.wait_for_log("the complaint", |line| {
            line.contains("crl.pem is not taken") && line.contains("it holds no `X509 CRL` block")
        })?;
        ensure!(
            cast.open(&cast.client).is_err(),
            "the last good list is forgotten"
        );
        round_trip(&mut other, MARKER)?;

        // The client's own node gives it another certificate once it is told.
        cast.a.write("crl.pem", &crl)?;
        wait_until("another certificate", LIMIT, || {
            cast.a.serial(&cast.client).is_ok_and(|serial| serial != revoked)
        })?;
        cast.open(&cast.client)?;
        round_trip(&mut other, MARKER)?;
        Ok(())
    });
}

#[test]
fn a_revoked_server_loses_its_connections_and_gets_no_new_ones() {
    with_world(|world| {
        let root = Root::new()?;
        let cast = Cast::start(world, &root)?;
        let spare = world.pod("b", PodSpec::new("spare").service_account("spare"))?;
        world.apply()?;
        let _server = Server::start(spare.listen(8080)?, echo)?;
        wait_until("the other server", LIMIT, || {
            echoed(&cast.client, spare.addr(8080))
        })?;
        let mut stays = cast.client.connect(spare.addr(8080))?;
        round_trip(&mut stays, MARKER)?;
        let ends = cast.open(&cast.client)?;
        let serial = cast.b.serial(&cast.web)?;
        cast.a.write("crl.pem", &root.crl(&[serial], None)?)?;
        let line = line_of(&cast.a.agent, "outbound", cut(ends)?)?;
        ensure!(line.field("error").contains("has been revoked"), "{line}");
        ensure!(cast.a.flagged("closed", "CERT_REVOKED")? == 1.0 && cast.a.rejections("source")? == 1.0);
        ensure!(cast.open(&cast.client).is_err());
        wait_until("the refusal's count", LIMIT, || {
            cast.a
                .flagged("failed", "CERT_REVOKED")
                .is_ok_and(|count| count >= 1.0)
        })?;
        round_trip(&mut stays, MARKER).context("a connection to another server")?;
        Ok(())
    });
}

#[test]
fn clocks_may_differ_by_a_minute_and_no_more() {
    const HALF: Duration = Duration::from_secs(30);
    const FIVE: Duration = Duration::from_secs(300);
    with_world(|world| {
        // A server whose clock is not ours.
        let scene = Scene::new(world)?;
        let web = scene.web.identity();
        let impostor = scene.impostor(scene.good()?, Conduct::Echo)?;
        for validity in [Validity::Begins(HALF), Validity::Ended(HALF)] {
            impostor.present(
                scene.config(&scene.authority.issue(&[&web], validity)?)?,
                Conduct::Die,
            );
            // Once for each certificate: the tunnel is not shared.
            let mut app = scene.client.connect(scene.web.addr(8080))?;
            round_trip(&mut app, MARKER).with_context(|| format!("{validity:?}"))?;
            drop(ask(app, MARKER));
        }
        for (validity, expect) in [
            (Validity::Begins(FIVE), "is not valid yet: it is valid from "),
            (Validity::Ended(FIVE), "has expired: it was valid until "),
        ] {
            impostor.present(
                scene.config(&scene.authority.issue(&[&web], validity)?)?,
                Conduct::Echo,
            );
            let line = scene.reset(scene.web.addr(8080))?;
            let error = line.field("error");
            ensure!(
                error.contains(expect) && error.matches("T").count() >= 2,
                "{line}"
            );
            ensure!(error.contains("Z here; look at both clocks"), "{line}");
        }
        Ok(())
    });
}

#[test]
fn a_client_whose_clock_differs_is_taken_within_a_minute() {
    with_world(|world| {
        let from = world.pod("a", stranger("stranger"))?;
        let web = world.pod("b", PodSpec::new("web").service_account("web"))?;
        let agent = world.start_agent("b")?;
        let _server = Server::start(web.listen(8080)?, echo)?;
        let authority = foreign::certs::Authority::of(world)?;
        let (roots, runtime) = (authority.roots()?, runtime()?);
        let target = web.addr(8080).to_string();
        let meet = |validity| -> Result<()> {
            let svid = authority.issue(&["spiffe://cluster.local/ns/demo/sa/stranger"], validity)?;
            let config = tls::client(Some(&svid), &roots, tls::H2)?;
            let tcp = from.connect(web.addr(foreign::scene::HBONE))?;
            let client = tcp.local_addr()?.to_string();
            runtime.block_on(async {
                let tunnel = Tunnel::open(handshake(tcp, &config).await?).await?;
                tunnel.echo(&target, &client, b"whose clock is right?").await
            })
        };
        meet(Validity::Begins(Duration::from_secs(30)))?;
        meet(Validity::Ended(Duration::from_secs(30)))?;
        ensure!(meet(Validity::Begins(Duration::from_secs(300))).is_err());
        ensure!(meet(Validity::Ended(Duration::from_secs(300))).is_err());
        for expect in [
            "is not valid yet: it is valid from",
            "has expired: it was valid until",
        ] {
            agent.wait_for_access(expect, |line| line.field("error").contains(expect))?;
        }
        Ok(())
    });
}

/// Ends a process as a crash would, with leave to write a core file; answers whether it has.
fn dumps(mut child: Child) -> Result<bool> {
    let pid = Pid::from_child(&child);
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let ended = prlimit(Some(pid), Resource::Core, unlimited).and_then(|_| kill_process(pid, Signal::ABORT));
    if ended.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    ended?;
    ensure!(status.signal() == Some(6), "it ended otherwise: {status}");
    Ok(status.core_dumped())
}

#[test]
fn a_crash_leaves_no_core_file_with_keys_in_it() {
    with_world(|world| {
        world.pod("a", PodSpec::new("client").service_account("client"))?;
        let agent = world.start_agent("a")?;
        agent.stop()?;
        let dir = world.dir();
        let any = Command::new("sleep").arg("60").current_dir(&dir).spawn()?;
        if !dumps(any)? {
            weft_tests::skip("this machine writes no core files");
            return Ok(());
        }
        let mut child = agent.command()?.current_dir(&dir).spawn()?;
        if let Err(error) = wait_until("the agent to be ready", LIMIT, || agent.ready()) {
            child.kill()?;
            child.wait()?;
            return Err(error);
        }
        ensure!(!dumps(child)?, "the agent's memory is in a file");
        Ok(())
    });
}
