//! One push: a controller that has so many workloads, and one client that comes and asks for all of them.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;
use weft::{
    feed::client::Client,
    rpc::{Credentials, discovery::ADDRESS_TYPE},
};

use crate::{Args, FEED, LIMIT, agent, clients, cluster::Cluster, settled, start_controller, usage};

/// How long one push may take until the client has all of it.
const LONGEST: Duration = Duration::from_secs(2);
/// What the controller may have resident meanwhile, in MiB.
const LARGEST_MIB: f64 = 200.0;
/// Nodes and namespaces of the cluster that is pushed.
const NODES: usize = 200;
const NAMESPACES: usize = 100;

/// Measures it, in a cluster of its own.
///
/// # Errors
/// It could not be run, or took more than one push.
pub(crate) fn measure(args: &Args, dir: &Path) -> Result<Value> {
    eprintln!("making {} pods for one push ...", args.push);
    let cluster = Cluster::make(NODES, args.push, NAMESPACES)?;
    fs::write(dir.join("kubeconfig"), cluster.api.kubeconfig())?;
    let mut controller = start_controller(args, dir)?;
    crate::wait(&mut controller, "the controller to compile everything", || {
        clients::is_ready(crate::PAGES)
    })?;
    settled(controller.id())?;
    let forgotten = usage::forget_peak(controller.id());
    if let Err(error) = &forgotten {
        eprintln!("the controller's peak is that of its whole life, since it cannot be reset: {error}");
    }
    fs::write(dir.join("token"), cluster.token(0)?)?;
    fs::write(dir.join("roots"), cluster.roots()?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let (taken, bytes) = runtime.block_on(async { timeout(LIMIT, push(dir, args.push)).await? })?;
    let peak = usage::Usage::of(controller.id())?.peak_mib;
    let mesh = runtime.block_on(async { timeout(LIMIT, mesh(dir, args.push)).await? })?;
    Ok(json!({
        "push_workloads": args.push, "push_s": taken.as_secs_f64(), "push_mib": bytes as f64 / f64::from(1 << 20),
        "push_to_mesh_s": mesh.as_secs_f64(), "push_controller_peak_mib": peak,
    }))
}

fn credentials(dir: &Path) -> Result<Credentials> {
    let roots = fs::read(dir.join("roots"))?;
    Ok(Credentials {
        address: FEED.to_owned(),
        server_name: "weft-controller.weft-system.svc".into(),
        roots: Arc::new(move || {
            let roots = roots.clone();
            Box::pin(async move { Ok(roots) })
        }),
        token: dir.join("token"),
        cert: None,
        cluster: "Kubernetes".into(),
    })
}

/// From a client's first byte, handshakes included, until it has decoded the one response with all workloads; and its bytes.
async fn push(dir: &Path, workloads: usize) -> Result<(Duration, usize)> {
    let credentials = credentials(dir)?;
    let began = Instant::now();
    let (_requests, mut responses) = clients::subscribe(&credentials, &[ADDRESS_TYPE], 0).await?;
    let Some(response) = responses.message().await? else {
        bail!("the stream ended before its first response");
    };
    let taken = began.elapsed();
    let pods = response
        .resources
        .iter()
        .filter(|it| it.name.contains("//Pod/ns-"));
    let pods = pods.count();
    ensure!(pods == workloads, "one push has {pods} workloads of {workloads}");
    Ok((taken, prost::Message::encoded_len(&response)))
}

/// The same with an agent's own end of the feed, until it has made a mesh of it.
async fn mesh(dir: &Path, workloads: usize) -> Result<Duration> {
    let config = agent::config(credentials(dir)?);
    let began = Instant::now();
    let mesh = Client::spawn(config).changed().await.mesh;
    let (taken, found) = (began.elapsed(), mesh.workloads().len());
    ensure!(
        found >= workloads,
        "the first mesh has {found} workloads of {workloads}"
    );
    Ok(taken)
}

/// What is over its limit.
pub(crate) fn judge(report: &Value) -> Vec<String> {
    let mut over = Vec::new();
    let limits = [
        ("push_s", LONGEST.as_secs_f64()),
        ("push_to_mesh_s", LONGEST.as_secs_f64()),
        ("push_controller_peak_mib", LARGEST_MIB),
    ];
    for (name, limit) in limits {
        match report[name].as_f64() {
            Some(value) if value <= limit => {}
            Some(value) => over.push(format!("{name} is {value:.2}, more than {limit}")),
            None => over.push(format!("{name} was not measured")),
        }
    }
    over
}

#[test]
fn what_takes_too_long_or_too_much_is_named() {
    let report = |push: f64, mesh: f64, peak: f64| {
        judge(&json!({"push_s": push, "push_to_mesh_s": mesh, "push_controller_peak_mib": peak}))
    };
    assert_eq!(report(2.0, 2.0, 200.0), Vec::<String>::new());
    assert_eq!(report(2.1, 1.0, 100.0), ["push_s is 2.10, more than 2"]);
    assert_eq!(report(1.0, 2.5, 100.0), ["push_to_mesh_s is 2.50, more than 2"]);
    assert_eq!(
        report(1.0, 1.0, 200.5),
        ["push_controller_peak_mib is 200.50, more than 200"]
    );
    assert_eq!(judge(&json!({})).len(), 3);
}
