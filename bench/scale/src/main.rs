//! What a large cluster costs the controller and an agent: a stand-in API server with thousands of pods, the real
//! controller beside it, as many clients of the feed as there are nodes, and one agent's own end of the feed.
//!
//! `cargo xtask bench scale` runs it. Everything is on this machine's loopback, so times are of many programs on few cores; memory
//! and processor seconds are each program's own. Clients answer what they are sent and keep nothing.

mod agent;
mod clients;
mod cluster;
mod push;
mod usage;

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::{Value, json};
use usage::Usage;

/// What a large cluster costs the controller and an agent.
#[derive(Debug, Parser)]
struct Args {
    /// Nodes, each with one client of the feed
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Pods, spread over nodes and namespaces
    #[arg(long, default_value_t = 50_000)]
    pods: usize,
    /// Namespaces, each with five services
    #[arg(long, default_value_t = 500)]
    namespaces: usize,
    /// Changes of one pod each, after everything has arrived
    #[arg(long, default_value_t = 200)]
    changes: usize,
    /// The program
    #[arg(long, default_value = "target/release/weft")]
    weft: PathBuf,
    /// Pods that change all at once, at last
    #[arg(long, default_value_t = 10_000)]
    burst: usize,
    /// Workloads that one client is pushed at once, first of all and in a cluster of their own; 0 leaves that out
    #[arg(long, default_value_t = 10_000)]
    push: usize,
    /// Measure that one push alone, and fail where it takes more than 2 s, or the controller more than 200 MiB meanwhile
    #[arg(long)]
    check: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// For the benchmark itself: be the agent's end of the feed
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
}

/// Where the controller listens.
const FEED: &str = "127.0.0.1:15912";
const PAGES: &str = "127.0.0.1:15914";
/// How long the controller may take until it has compiled everything, and all clients have it.
const LIMIT: Duration = Duration::from_secs(600);

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(dir) = &args.agent {
        return agent::run(FEED, dir);
    }
    let dir = std::env::temp_dir().join(format!("weft-scale-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let measured = all(&args, &dir);
    std::fs::remove_dir_all(&dir)?;
    let report = measured?;
    print(&args, &report);
    if args.check {
        let over = push::judge(&report);
        ensure!(over.is_empty(), "{}", over.join("; "));
    }
    Ok(())
}

fn all(args: &Args, dir: &Path) -> Result<Value> {
    let mut report = match args.push {
        0 => json!({}),
        _ => push::measure(args, dir)?,
    };
    if !args.check {
        let large = measure(args, dir)?;
        if let (Some(report), Value::Object(large)) = (report.as_object_mut(), large) {
            report.extend(large);
        }
    }
    Ok(report)
}

fn measure(args: &Args, dir: &Path) -> Result<Value> {
    eprintln!("making {} nodes and {} pods ...", args.nodes, args.pods);
    let cluster = cluster::Cluster::make(args.nodes, args.pods, args.namespaces)?;
    std::fs::write(dir.join("kubeconfig"), cluster.api.kubeconfig())?;
    let mut controller = start_controller(args, dir)?;
    let began = Instant::now();
    wait(&mut controller, "the controller to compile everything", || {
        clients::is_ready(PAGES)
    })?;
    let ready = began.elapsed();
    let compiled = settled(controller.id())?;
    eprintln!("compiled after {ready:.1?}; {} clients come ...", args.nodes);
    let began = Instant::now();
    let mut clients = clients::Clients::start(FEED, &cluster, args.nodes)?;
    let bytes = clients.wait_for_all(LIMIT)?;
    let served = began.elapsed();
    let with_clients = settled(controller.id())?;
    std::fs::write(dir.join("token"), cluster.token(0)?)?;
    std::fs::write(dir.join("roots"), cluster.roots()?)?;
    let own = std::env::current_exe()?;
    let mut agent = Running(
        Command::new(own)
            .arg("--agent")
            .arg(dir)
            .stdin(Stdio::piped())
            .spawn()?,
    );
    wait(&mut agent, "the agent's mesh", || dir.join("has-mesh").exists())?;
    let agent_first = settled(agent.id())?;
    eprintln!(
        "everybody has everything after {served:.1?}; {} pods change ...",
        args.changes
    );
    let mut latencies = clients.follow(&cluster, args.changes)?;
    latencies.sort_unstable();
    let resources_per_change = clients.resources_per_change();
    let (after, agent_after) = (Usage::of(controller.id())?, Usage::of(agent.id())?);
    let burst = args.burst.min(args.pods);
    let (burst_first, burst_all) = clients.follow_burst(&cluster, burst)?;
    let (burst_usage, burst_agent) = (Usage::of(controller.id())?, Usage::of(agent.id())?);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let per_change = |later: &Usage, before: &Usage| (later.cpu - before.cpu) / args.changes as f64 * 1e3;
    Ok(json!({
        "nodes": args.nodes, "pods": args.pods, "services": args.namespaces * cluster::SERVICES,
        "listed_and_compiled_s": ready.as_secs_f64(), "everybody_served_s": served.as_secs_f64(),
        "first_push_mib": bytes as f64 / f64::from(1 << 20),
        "controller_mib": compiled.resident_mib, "controller_with_clients_mib": with_clients.resident_mib,
        "controller_peak_mib": after.peak_mib, "controller_compile_cpu_s": compiled.cpu,
        "controller_serve_cpu_s": with_clients.cpu - compiled.cpu,
        "controller_cpu_ms_per_change": per_change(&after, &with_clients),
        "agent_mib": agent_first.resident_mib, "agent_peak_mib": agent_after.peak_mib,
        "agent_first_mesh_cpu_s": agent_first.cpu,
        "agent_cpu_ms_per_change": per_change(&agent_after, &agent_first),
        "change_to_agent_p50_ms": at(0.5), "change_to_agent_p99_ms": at(0.99),
        "resources_per_change": resources_per_change,
        "burst_pods": burst, "burst_to_agent_s": burst_first.as_secs_f64(), "burst_to_all_s": burst_all.as_secs_f64(),
        "controller_burst_peak_mib": burst_usage.peak_mib, "agent_burst_peak_mib": burst_agent.peak_mib,
    }))
}

/// What a process takes once it has given back what only a moment needed: it looks every five seconds.
fn settled(pid: u32) -> Result<Usage> {
    std::thread::sleep(Duration::from_secs(7));
    Usage::of(pid)
}

fn start_controller(args: &Args, dir: &Path) -> Result<Running> {
    let mut command = Command::new(&args.weft);
    command.args([
        "controller",
        "--listen",
        FEED,
        "--http",
        PAGES,
        "--log",
        "warn",
        "--kubeconfig",
    ]);
    let started = command.arg(dir.join("kubeconfig")).stdin(Stdio::null()).spawn();
    let started = started.with_context(|| format!("start {}", args.weft.display()))?;
    Ok(Running(started))
}

/// A process that ends with us.
struct Running(Child);

impl Running {
    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(process: &mut Running, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let since = Instant::now();
    while !holds() {
        if let Some(status) = process.0.try_wait()? {
            anyhow::bail!("waiting for {what}, and it ended: {status}");
        }
        ensure!(since.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn print(args: &Args, report: &Value) {
    if args.json {
        println!("{report:#}");
        return;
    }
    for (name, value) in report.as_object().into_iter().flatten() {
        let value = value.as_f64().unwrap_or_default();
        let name = name.replace('_', " ");
        println!("{name:<34} {value:>12.2}");
    }
}
