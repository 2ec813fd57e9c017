//! The `weft` binary: parse, pick the role, run.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use weft::{
    args::{AgentArgs, Cli, Command},
    cli, node,
    telemetry::{Metrics, log},
};

pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Agent(args) => agent(&args),
        Command::Status(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::status::run(args))),
        Command::Explain(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::explain::run(*args))),
        Command::Ca(args) => cli::ca::run(&args),
        Command::Release(args) => cli::release::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

/// Control work (feed, certificates, admin) has this runtime; connections have one thread and runtime per worker.
fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("start the runtime")
}

fn agent(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    let log = log::init(&args.log, args.log_format)?;
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), log.dropped());
    let shutdown = CancellationToken::new();
    raise_file_limit();
    let runtime = runtime(2)?;
    runtime.block_on(async {
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        node::run(args.config(), metrics, Some(log.filter()), shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Every connection takes two files, every pod some more: as many as the hard limit allows, which needs no capability.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, files = limit.current, "cannot raise the limit of open files");
    }
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals: end the agent with POST /quitquitquit");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}
