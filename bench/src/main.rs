//! `weft-bench`: what the mesh costs, end to end. Two nodes, a pair of pods that talks in direct TCP and a pair that
//! talks through weft; every load runs on one and then on the other, round after round, so that what disturbs the
//! machine disturbs both. Nothing is asserted: it prints a table, and says when the rounds disagree too much.
//!
//! It knows the product only as the test world does: a binary beside it (or `WEFT_BIN`), with flags, ports and metrics.
//! `cargo xtask bench` builds both with optimisations and runs it, as root.

mod beside;
mod bulk;
mod connects;
mod cores;
mod cpu;
mod figures;
mod flood;
mod http;
mod load;
mod markdown;
mod memory;
mod ping_pong;
mod report;
mod stage;

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use crate::{
    figures::Series,
    load::{Load, Plan},
    markdown::Markdown,
    memory::Memory,
    report::{Machine, Report},
    stage::Stage,
};

/// Measure weft against direct TCP over two nodes (as root).
#[derive(Debug, Parser)]
#[command(name = "weft-bench")]
struct Args {
    /// Fewer and shorter rounds: a first look, under a minute
    #[arg(long)]
    quick: bool,
    /// Only the loads whose name contains this, for example `bulk`
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print the table as Markdown too, to be pasted into a page
    #[arg(long)]
    markdown: bool,
    /// Also write everything, every round of it, to this file
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let started = Instant::now();
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    let machine = Machine::read(&plan);
    println!("{machine}");
    let mut loads = Load::all()?;
    loads.retain(|load| {
        args.only
            .as_ref()
            .is_none_or(|only| load.to_string().contains(only))
    });
    ensure!(!loads.is_empty(), "no load's name contains what --only says");
    println!("setting up two nodes, their agents, and four pairs of pods");
    let stage = Stage::set()?;
    stage.prove()?;
    let mut memory = Memory::idle(&stage)?;
    let series = play(&stage, &plan, &loads);
    memory.measure(&stage)?;
    let report = Report {
        machine,
        series,
        memory,
        seconds: started.elapsed().as_secs(),
    };
    println!("\n{report}");
    if args.markdown {
        println!("\n{}", Markdown(&report));
    }
    if let Some(path) = &args.output {
        let text = serde_json::to_string_pretty(&report).context("write the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
        println!("every round is in {}", path.display());
    }
    if report.failures() > 0 {
        bail!("{} loads failed: see above", report.failures());
    }
    Ok(())
}

/// All rounds. What begins is said, since it may take a while, and then what came of it. A load that fails leaves its
/// round out, and the others go on.
fn play(stage: &Stage, plan: &Plan, loads: &[Load]) -> Vec<Series> {
    let mut series: Vec<Vec<Series>> = loads
        .iter()
        .map(|load| load.measures().into_iter().map(Series::new).collect())
        .collect();
    let all = plan.rounds * loads.len();
    for round in 0..plan.rounds {
        println!("\nround {} of {}", round + 1, plan.rounds);
        for (nth, (load, series)) in loads.iter().zip(&mut series).enumerate() {
            println!(
                "  [{} of {all}] {load}: direct, then weft",
                round * loads.len() + nth + 1
            );
            match both(load, stage, plan) {
                Ok((direct, weft)) => {
                    for (series, pair) in series.iter_mut().zip(direct.into_iter().zip(weft)) {
                        println!("    {}", series.add(pair));
                    }
                }
                Err(error) => {
                    println!("    FAILED {load}: {error:#}");
                    series.iter_mut().for_each(|series| series.failures += 1);
                }
            }
        }
    }
    series.into_iter().flatten().collect()
}

fn both(load: &Load, stage: &Stage, plan: &Plan) -> Result<(Vec<f64>, Vec<f64>)> {
    let run = |pair| load.run(stage, pair, plan);
    let [direct, weft] = load.pairs(stage);
    let direct = run(direct).context("in direct TCP")?;
    let weft = run(weft).context("through weft")?;
    Ok((direct, weft))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
