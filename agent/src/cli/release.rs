//! `weft release`: takes weft out of this node's kernel. What an uninstall ends with: by hand, or on every node by the
//! chart's hook, which stays until the last agent has gone.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::Args;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::kernel::{
    link::is_bpffs,
    pins::{self, Pins},
    takeover::{Claim, ClaimError},
};

/// How often `--stay` looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one question about readiness may take.
const ANSWER: Duration = Duration::from_secs(2);

/// Flags of `weft release`.
#[derive(Debug, Args)]
#[command(after_help = "\
From then on the pods' connections are plain TCP, as without weft. Ending an agent does not do this: without an agent
captured pods are refused. Exit codes: 0 nothing of weft is left, 1 an agent still runs or it failed, 2 wrong usage.")]
pub struct ReleaseArgs {
    /// Where the agent had its programs and maps pinned
    #[arg(
        long,
        env = "WEFT_PIN_DIR",
        value_name = "DIR",
        default_value = "/sys/fs/bpf/weft",
        value_parser = pins::place
    )]
    pub pin_dir: PathBuf,
    /// Wait for agents to end, release what they leave, and go on until ended; at this address /healthz/ready says whether
    /// nothing is left. The chart's uninstall hook does this on every node
    #[arg(long, value_name = "ADDR")]
    pub stay: Option<SocketAddr>,
}

/// Runs `weft release`, until `shutdown` where it is to stay.
///
/// # Errors
/// When an agent runs, and when bpffs refuses.
pub async fn run(args: &ReleaseArgs, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    let pins = Pins::new(args.pin_dir.clone());
    match args.stay {
        Some(addr) => stay(&pins, addr, shutdown).await?,
        None => println!("{}", once(&pins)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Releases what is there, and says what that was.
fn once(pins: &Pins) -> anyhow::Result<String> {
    let place = pins.path().display();
    if !pins.exists() {
        return Ok(format!("nothing to release: {place} is not there"));
    }
    if !is_bpffs(pins.path()).with_context(|| format!("look at {place}"))? {
        bail!("{place} is not on bpffs, so it is none of weft's: is --pin-dir right?");
    }
    if pins
        .is_mount_point()
        .with_context(|| format!("look at {place}"))?
    {
        bail!("{place} is a mount point, in which other programs pin too: is --pin-dir right?");
    }
    let _claim = match Claim::take(pins) {
        Err(ClaimError::Busy { pid, .. }) => {
            let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            bail!(
                "a weft agent{pid} runs with the pins in {place}: end it first, or its pods would be captured again"
            )
        }
        claim => claim?,
    };
    let (pods, links) = pins.attached();
    match pins.remove() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(
            "an agent that another one has replaced still has connections, which need the pins in {place}: end it first"
        ),
        removed => removed.with_context(|| format!("remove the pins in {place}"))?,
    }
    Ok(format!(
        "released: {pods} pods and {links} programs; nothing of weft is left in {place}"
    ))
}

/// Releases until it is ended: an agent that is about to end holds its pins, and one that is started again meanwhile makes
/// new ones.
async fn stay(pins: &Pins, addr: SocketAddr, shutdown: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("listen on {addr}"))?;
    let mut ticks = interval(PAUSE);
    let mut said = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    // One at a time: only the kubelet asks.
                    let _ = timeout(ANSWER, answer(stream, !pins.exists())).await;
                }
                continue;
            }
            () = shutdown.cancelled() => return Ok(()),
        }
        // Said once, and not twice a second.
        if pins.exists() || said.is_empty() {
            let now = once(pins).unwrap_or_else(|error| format!("not yet: {error:#}"));
            if now != said {
                println!("{now}");
                said = now;
            }
        }
    }
}

async fn answer(stream: TcpStream, released: bool) -> hyper::Result<()> {
    let (status, text) = if released {
        (StatusCode::OK, "nothing of weft is left on this node\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "an agent of this node has not ended yet\n",
        )
    };
    let service = service_fn(move |_| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}
