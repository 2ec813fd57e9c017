//! The `weft` binary: parse, pick the role, run.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser as _;
use kube::Client;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use weft::{
    args::{AgentArgs, Cli, Command, ControllerArgs, LinkArgs, WaypointArgs},
    cli,
    cluster::{client::connect, root_cert},
    controller,
    kernel::privileges,
    node::{self, Showing},
    rpc::Roots,
    telemetry::{Metrics, log},
    waypoint,
};

pub(crate) fn main() -> ExitCode {
    privileges::write_private_files();
    let done = match Cli::parse().command {
        Command::Agent(args) => agent(&args),
        Command::Controller(args) => controller(&args),
        Command::Waypoint(args) => waypoint(&args),
        Command::Status(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::status::run(args))),
        Command::Explain(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::explain::run(*args))),
        Command::Enroll(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::enroll::run(args))),
        Command::Apply(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::waypoints::apply(args))),
        Command::Get(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::waypoints::get(args))),
        Command::Delete(args) => {
            runtime(1).and_then(|runtime| runtime.block_on(cli::waypoints::delete(args)))
        }
        Command::Analyze(args) => runtime(1).and_then(|runtime| runtime.block_on(cli::analyze::run(args))),
        Command::Ca(args) => cli::ca::run(&args),
        Command::Release(args) => {
            until_ended(|shutdown| async move { cli::release::run(&args, shutdown).await })
        }
        Command::UninstallHook(args) => {
            runtime(1).and_then(|runtime| runtime.block_on(cli::uninstall::run(&args)))
        }
        Command::MountBpffs(args) => cli::mount_bpffs::run(&args),
        Command::TestApp(args) => until_ended(|shutdown| cli::test_app::run(args, shutdown)),
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

/// Runs a command that may go on until a signal comes.
fn until_ended<F>(command: impl FnOnce(CancellationToken) -> F) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
{
    let shutdown = CancellationToken::new();
    runtime(1)?.block_on(async {
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        command(shutdown).await
    })
}

fn agent(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    privileges::keep_needed().context("give up the capabilities that are not needed")?;
    let log = log::init(&args.logging.log, args.logging.log_format)?;
    let metrics = Metrics::new(env!("CARGO_PKG_VERSION"), log.dropped());
    let shutdown = CancellationToken::new();
    let open_files = raise_file_limit();
    keep_memory_private();
    let runtime = runtime(2)?;
    runtime.block_on(async {
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        let client = match args.asks_kubernetes() {
            true => Some(
                connect(&args.kube.access())
                    .await
                    .context("reach the Kubernetes API")?,
            ),
            false => None,
        };
        let mut config = args.config(open_files, roots(&args.from.link, client.as_ref()));
        config.listing = client.map(|client| listing(args, &client));
        node::run(config, metrics, Some(log.filter()), shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn controller(args: &ControllerArgs) -> anyhow::Result<ExitCode> {
    let _log = log::init(&args.logging.log, args.logging.log_format)?;
    let shutdown = CancellationToken::new();
    raise_file_limit();
    keep_memory_private();
    runtime(CONTROLLER_THREADS)?.block_on(async {
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        controller::run(args.config(), shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}

fn waypoint(args: &WaypointArgs) -> anyhow::Result<ExitCode> {
    privileges::keep_none().context("give up all capabilities")?;
    let log = log::init(&args.logging.log, args.logging.log_format)?;
    let metrics = Metrics::of_waypoint(env!("CARGO_PKG_VERSION"), log.dropped());
    let shutdown = CancellationToken::new();
    let open_files = raise_file_limit();
    keep_memory_private();
    runtime(1)?.block_on(async {
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        let client = match args.asks_kubernetes() {
            true => Some(
                connect(&args.kube.access())
                    .await
                    .context("reach the Kubernetes API")?,
            ),
            false => None,
        };
        let config = args.config(open_files, roots(&args.from.link, client.as_ref()));
        waypoint::run(config, metrics, Some(log.filter()), shutdown).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One compiles while the others serve.
const CONTROLLER_THREADS: usize = 4;

/// What the cluster's API shows of this node, where there is a cluster.
fn listing(args: &AgentArgs, client: &Client) -> Showing {
    let names = (
        args.from.mesh.cluster_id.as_str(),
        args.from.link.own_namespace.as_str(),
    );
    Showing::of(client.clone(), &args.node, names, args.startup_taint.clone())
}

/// The roots that the controller's certificate may end in.
fn roots(link: &LinkArgs, client: Option<&Client>) -> Roots {
    match (&link.ca_root, client) {
        (None, Some(client)) => root_cert(client.clone(), link.own_namespace.clone()),
        (path, _) => {
            let path = path.clone().unwrap_or_default();
            Arc::new(move || {
                let path = path.clone();
                Box::pin(tokio::fs::read(path))
            })
        }
    }
}

/// Every connection takes a file or two, every pod some more: as many as the hard limit allows, which needs no capability.
/// The answer is how many there may be.
fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, files = limit.current, "cannot raise the limit of open files");
            limit.current
        }
    };
    // None is no limit.
    files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

/// The pods' keys are in it: no core file, and no process without CAP_SYS_PTRACE can read it.
fn keep_memory_private() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "cannot keep core files from holding keys");
    }
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("cannot listen for signals: end it with POST /quitquitquit");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    shutdown.cancel();
}
