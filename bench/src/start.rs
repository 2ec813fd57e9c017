//! How long a new pod waits for the mesh: from the moment at which the pod is there until its first byte has gone to a server
//! and back.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use weft_tests::{PodSpec, Server, app, process::Process};

use crate::{
    mode::Way,
    sidecar::{self, Side},
    stage::{Stage, dress},
};

/// How long it may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two attempts.
const STEP: Duration = Duration::from_millis(1);

/// Starts the `nth` pod of the run in the mode of a pair, and answers how many ms it has waited.
pub(crate) fn run(stage: &mut Stage, pair: usize, nth: usize) -> Result<f64> {
    let mode = stage.pairs[pair].mode.clone();
    let name = format!("new-{}-{nth}", mode.slug());
    let spec = dress(PodSpec::new(&name).service_account("client"), &mode.way);
    let pod = stage.world.pod("a", spec)?;
    let pair = &stage.pairs[pair];
    let (listener, to) = pair.listen()?;
    let _server = Server::start(listener, app::echo)?;
    let started = Instant::now();
    let mut proxy: Option<Process> = None;
    match &mode.way {
        Way::Direct => {}
        Way::Weft { .. } | Way::Waypoint(_) => stage.world.apply()?,
        Way::Sidecar(kind) => {
            proxy = Some(sidecar::start(
                &stage.world,
                kind,
                Side::Client,
                &pod,
                &pair.server,
            )?);
        }
    }
    let waited = first_byte(&pod, to, started);
    drop(proxy);
    stage.world.remove_pod(&pod)?;
    waited.with_context(|| format!("a new pod, {mode}"))
}

fn first_byte(pod: &weft_tests::Pod, to: std::net::SocketAddr, started: Instant) -> Result<f64> {
    loop {
        let spoken = pod
            .connect(to)
            .and_then(|mut stream| app::round_trip(&mut stream, b"first"));
        match spoken {
            Ok(()) => return Ok(started.elapsed().as_secs_f64() * 1e3),
            Err(error) if started.elapsed() > LIMIT => bail!("no byte in {} s: {error}", LIMIT.as_secs()),
            Err(_) => thread::sleep(STEP),
        }
    }
}
