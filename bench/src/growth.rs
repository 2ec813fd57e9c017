//! How the cost grows: with the workloads that the mesh knows, and with the pods of a node, of which each has a sidecar or
//! all have one agent.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weft_tests::{PodSpec, process::Process};

use crate::{
    cores,
    envoy::Envoy,
    figures::{Ground, Measure, Unit, at},
    load::Plan,
    mode::{Sidecar, Way},
    ping_pong,
    processes::{resident, tree},
    report::{Growth, GrowthLine},
    sidecar::{self, Side},
    stage::{Pair, Stage},
};

/// Workloads on other nodes that the mesh knows.
const WORKLOADS: [u64; 3] = [10, 1_000, 50_000];
/// Pods of one node.
const PODS: [u64; 3] = [1, 10, 100];
/// What an Envoy takes at the most, in MiB: there is to be room for all of them.
const ROOM: u64 = 80;
/// Until the memory that only a change needed is given back: an agent looks every 5 s.
const SETTLE: Duration = Duration::from_secs(6);
/// The small message.
const MESSAGE: usize = 64;

/// With the workloads of the mesh.
pub(crate) fn of_workloads(stage: &mut Stage, plan: &Plan) -> Result<Growth> {
    let sizes: Vec<u64> = WORKLOADS[..if plan.quick { 2 } else { 3 }].to_vec();
    let mut lines = [
        "mesh taken by both agents",
        "memory (RSS) of agent a",
        "ping-pong 64 B on one core, p50",
    ]
    .into_iter()
    .zip([Unit::Millis, Unit::Mebibytes, Unit::Micros])
    .map(|(name, unit)| line(name, unit, "weft"))
    .collect::<Vec<_>>();
    for size in &sizes {
        println!("  {size} workloads in the mesh");
        stage.world.mesh_mut().workloads = (0..*size).map(elsewhere).collect();
        let started = Instant::now();
        stage.world.apply()?;
        let took = started.elapsed().as_secs_f64() * 1e3;
        let pair = weft_pair(stage)?;
        let core = cores::first()?;
        let times = cores::pinned(core, &pair.carriers(), || {
            ping_pong::run(pair, MESSAGE, plan.duration)
        })?;
        thread::sleep(SETTLE);
        let figures = [Some(took), resident(&pair.carriers().client)?, at(&times, 0.5)];
        lines
            .iter_mut()
            .zip(figures)
            .for_each(|(line, figure)| line.figures.push(figure));
    }
    stage.world.mesh_mut().workloads.clear();
    stage.world.apply()?;
    Ok(Growth {
        of: "workloads in the mesh".to_owned(),
        sizes,
        lines,
    })
}

/// A workload of another node.
fn elsewhere(nth: u64) -> Value {
    let [_, high, middle, low] = u32::try_from(nth).unwrap_or_default().to_be_bytes();
    json!({
        "name": format!("w-{nth}"),
        "namespace": format!("ns-{}", nth % 100),
        "serviceAccount": format!("sa-{}", nth % 1000),
        "node": "elsewhere",
        "addresses": [format!("10.{}.{middle}.{low}", 100 + high)],
        "tunnelProtocol": "HBONE",
        "labels": { "app": format!("app-{}", nth % 500), "version": "v1" },
    })
}

/// With the pods of a node.
pub(crate) fn of_pods(stage: &mut Stage, plan: &Plan, skipped: &mut Vec<String>) -> Result<Growth> {
    let sizes: Vec<u64> = PODS[..if plan.quick { 2 } else { 3 }].to_vec();
    let name = "memory (RSS) of all proxies of the node";
    let mut agent = line(name, Unit::Mebibytes, "weft");
    let mut sidecars = line(name, Unit::Mebibytes, "envoy L4");
    let (mut made, mut proxies) = (0, Vec::new());
    for size in &sizes {
        println!("  {size} pods on a node");
        while made < *size {
            stage.world.pod(
                "a",
                PodSpec::new(&format!("grown-{made}")).service_account("client"),
            )?;
            made += 1;
        }
        stage.world.apply()?;
        thread::sleep(SETTLE);
        agent
            .figures
            .push(resident(&weft_pair(stage)?.carriers().client)?);
        sidecars
            .figures
            .push(grow_sidecars(stage, *size, &mut proxies, skipped)?);
    }
    Ok(Growth {
        of: "pods on a node".to_owned(),
        sizes,
        lines: vec![agent, sidecars],
    })
}

/// So many Envoys, each in a pod of its own: what all of them have in memory. `None` where there is no room for them.
fn grow_sidecars(
    stage: &mut Stage,
    size: u64,
    proxies: &mut Vec<Process>,
    skipped: &mut Vec<String>,
) -> Result<Option<f64>> {
    let Some(envoy) = envoy(stage) else {
        return Ok(None);
    };
    let (room, has) = (size * ROOM, available_mib());
    if (proxies.len() as u64) < size && room > has {
        skipped.push(format!(
            "{size} pods with a sidecar each: they want {room} MiB, and {has} are free"
        ));
        return Ok(None);
    }
    while (proxies.len() as u64) < size {
        let name = format!("beside-{}", proxies.len());
        let pod = stage.world.pod("b", PodSpec::new(&name).unlisted())?;
        proxies.push(sidecar::start(&stage.world, &envoy, Side::Client, &pod, &pod)?);
    }
    let pids: Vec<u32> = proxies.iter().flat_map(|proxy| tree(proxy.id())).collect();
    resident(&pids)
}

/// A sidecar for a pod that was added; none in a run without.
fn envoy(stage: &Stage) -> Option<Sidecar> {
    stage.pairs.iter().find_map(|pair| match &pair.mode.way {
        Way::Sidecar(Sidecar::Envoy { binary, .. }) => Some(Sidecar::Envoy {
            kind: Envoy::Tcp,
            binary: binary.clone(),
        }),
        _ => None,
    })
}

fn available_mib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}

fn weft_pair(stage: &Stage) -> Result<&Pair> {
    let mut pairs = stage.pairs.iter();
    pairs
        .find(|pair| pair.mode.ground == Ground::TwoNodes && matches!(pair.mode.way, Way::Weft { .. }))
        .context("the run has no pair of weft's on two nodes")
}

fn line(name: &str, unit: Unit, mode: &str) -> GrowthLine {
    GrowthLine {
        measure: Measure::new(name, unit),
        mode: mode.to_owned(),
        figures: Vec::new(),
    }
}
