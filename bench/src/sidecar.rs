//! The proxies beside the two apps of a pair: started, ready, and ended with the stage.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::chown,
    path::Path,
    process::Stdio,
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_tests::{LIMIT, Pod, World, process::Process, wait_until};

use crate::{
    envoy::{self, Envoy},
    mode::{Rival, Sidecar},
    pki,
};

/// How long a rival may take until it says that it is ready.
const READY: Duration = Duration::from_secs(30);

/// Lines of a rival that wait to be read.
const LINES: usize = 64;

/// Which end of a pair a proxy is beside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Starts the proxy of one side and waits until it is ready.
pub(crate) fn start(world: &World, sidecar: &Sidecar, side: Side, pod: &Pod, peer: &Pod) -> Result<Process> {
    let dir = world.dir().join(format!("sidecar-{}", pod.name()));
    let certs = pki::issue(world, pod, dir.join("certs"))?;
    match sidecar {
        Sidecar::Envoy { kind, binary } => start_envoy((*kind, binary), pod, peer, &certs, &dir),
        Sidecar::Rival(rival) => start_rival(rival, side, (pod, peer), &certs, &dir),
    }
    .with_context(|| format!("the proxy beside the {} {}", side.name(), pod.name()))
}

fn start_envoy(
    (envoy, binary): (Envoy, &Path),
    pod: &Pod,
    peer: &Pod,
    certs: &Path,
    dir: &Path,
) -> Result<Process> {
    envoy::redirect(pod)?;
    let config = dir.join("envoy.json");
    let text = envoy.config(certs, dir, &peer.identity()).to_string();
    fs::write(&config, text).context("write Envoy's configuration")?;
    give(dir, envoy::UID)?;
    let mut place = pod.place().clone();
    place.uid = envoy::UID;
    let log = dir.join("envoy.log");
    let mut command = place.command(binary);
    envoy::command(&mut command, &config, &log);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("stderr.log")).context("create Envoy's stderr.log")?);
    let process = Process::spawn(&mut command, "envoy")?;
    let listens = || {
        [envoy::OUTBOUND, envoy::INBOUND]
            .iter()
            .all(|port| pod.netns().listens_on(*port))
    };
    wait_until("Envoy to listen", LIMIT, listens).with_context(|| complaints(dir))?;
    Ok(process)
}

fn complaints(dir: &Path) -> String {
    let read = |name| fs::read_to_string(dir.join(name)).unwrap_or_default();
    format!("it said: {}{}", read("envoy.log"), read("stderr.log"))
}

/// Everything below a directory is this user's.
fn give(dir: &Path, uid: u32) -> Result<()> {
    let own =
        |path: &Path| chown(path, Some(uid), Some(uid)).with_context(|| format!("chown {}", path.display()));
    own(dir)?;
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            give(&path, uid)?;
        } else {
            own(&path)?;
        }
    }
    Ok(())
}

fn start_rival(
    rival: &Rival,
    side: Side,
    (pod, peer): (&Pod, &Pod),
    certs: &Path,
    dir: &Path,
) -> Result<Process> {
    let work = dir.join("work");
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let mut command = pod.command("sh");
    command
        .args(["-c", &rival.command])
        .env("WEFT_BENCH_SIDE", side.name())
        .env("WEFT_BENCH_POD", pod.v4().to_string())
        .env("WEFT_BENCH_PEER", peer.v4().to_string())
        .env("WEFT_BENCH_CERTS", certs)
        .env("WEFT_BENCH_IDENTITY", pod.identity())
        .env("WEFT_BENCH_PEER_IDENTITY", peer.identity())
        .env("WEFT_BENCH_DIR", &work)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut process = Process::spawn(&mut command, &rival.name)?;
    let (_stdin, stdout) = process.pipes().context("its standard output is gone")?;
    let (tell, said) = mpsc::sync_channel(LINES);
    // It goes on to read, so that a rival that talks does not block.
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody listens any more once it is ready.
            let _ = tell.try_send(line);
        }
    });
    let ready = said.iter_until(READY).any(|line| line.trim() == "ready");
    ensure!(ready, "it did not print `ready` within {} s", READY.as_secs());
    Ok(process)
}

trait Until<T> {
    /// What comes until the sender is gone or nothing comes for so long.
    fn iter_until(&self, limit: Duration) -> impl Iterator<Item = T>;
}

impl<T> Until<T> for mpsc::Receiver<T> {
    fn iter_until(&self, limit: Duration) -> impl Iterator<Item = T> {
        std::iter::from_fn(move || self.recv_timeout(limit).ok())
    }
}
