//! `weft-bench`: what the mesh costs, end to end, against no mesh and against sidecars. Each mode has a pair of pods of its
//! own; every load runs in one mode after the other, round after round, so that what disturbs the machine disturbs all.
//! Nothing is asserted: it prints tables, writes a report, and says when the rounds disagree too much.
//!
//! It knows the product only as the test world does: a binary beside it (or `WEFT_BIN`), with flags, ports and metrics.
//! `cargo xtask bench` builds both with optimisations and runs it, as root.

mod beside;
mod bulk;
mod charts;
mod compare;
mod connects;
mod cores;
mod envoy;
mod figures;
mod fixed_rate;
mod flood;
mod functions;
mod growth;
mod html;
mod http;
mod load;
mod machine;
mod markdown;
mod memory;
mod mode;
mod perf;
mod ping_pong;
mod pki;
mod play;
mod processes;
mod report;
#[cfg(test)]
mod sample;
mod sidecar;
mod stage;
mod start;
mod table;
mod waypoint;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::{
    compare::Comparison, functions::Functions, markdown::Markdown, mode::Rival, perf::Perf, play::Watch,
    report::Report,
};

/// Measure weft against no mesh and against sidecars (as root).
#[derive(Debug, Parser)]
#[command(name = "weft-bench", after_help = mode::CONTRACT)]
struct Args {
    /// Fewer and shorter rounds of what decides: a first look, under 3 minutes
    #[arg(long)]
    quick: bool,
    /// Only the loads whose name contains this, for example `bulk`, and nothing but loads
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only these modes, besides `none`; may be given several times
    #[arg(long = "mode", value_name = "NAME")]
    modes: Vec<String>,
    /// Another proxy to compare with; may be given several times
    #[arg(long = "rival", value_name = "NAME=COMMAND")]
    rivals: Vec<Rival>,
    /// How many rounds, instead of 5 (3 in a quick run)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
    /// Print the tables as Markdown too, to be pasted into a page
    #[arg(long)]
    markdown: bool,
    /// Also write everything, every round of it, to FILE.json, a page for people to FILE.html, and its charts to the
    /// directory FILE
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compare with the JSON of an earlier run: prints what got better and worse
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Record a profile of weft's agents, or of the sidecars, during the first load that --only and --mode choose
    #[arg(long, value_name = "PERF.DATA", requires = "only")]
    perf: Option<PathBuf>,
    /// Add to a list which functions of weft's program run while the loads play, for its linker (x86-64)
    #[arg(long, value_name = "FILE", conflicts_with = "perf")]
    functions: Option<PathBuf>,
    /// The Envoy of sidecar mode; without it there is none
    #[arg(long, value_name = "PROGRAM")]
    envoy: Option<PathBuf>,
    /// The command to name in the report, if it is another one than this
    #[arg(long, hide = true)]
    called: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    // Before the work: a file that cannot be read should not be found out after it.
    let old = args.compare.as_deref().map(compare::read).transpose()?;
    let report = play::run(&play::Options {
        quick: args.quick,
        only: args.only.clone(),
        modes: args.modes.clone(),
        rivals: args.rivals.clone(),
        rounds: args.rounds.map(usize::from),
        watch: watch(&args),
        envoy: args.envoy.clone(),
        command: command(&args),
    })?;
    println!("\n{report}");
    if args.markdown {
        println!("\n{}", Markdown(&report));
    }
    if let Some(path) = &args.output {
        write(&report, path)?;
    }
    if let Some(old) = &old {
        let comparison = Comparison::of(old, &report);
        println!("\n{comparison}");
        if comparison.worse() > 0 {
            println!(
                "{} measures got worse since {}",
                comparison.worse(),
                old.machine.date
            );
        }
    }
    if !report.failures.is_empty() {
        bail!("{} loads failed: see above", report.failures.len());
    }
    Ok(())
}

/// Who looks at those that carry the traffic.
fn watch(args: &Args) -> Option<Watch> {
    let perf = args.perf.clone().map(|file| Watch::Perf(Perf(file)));
    perf.or_else(|| Some(Watch::Functions(Functions(args.functions.clone()?))))
}

fn command(args: &Args) -> String {
    args.called
        .clone()
        .unwrap_or_else(|| std::env::args().collect::<Vec<_>>().join(" "))
}

/// Writes the three forms of the report.
fn write(report: &Report, path: &std::path::Path) -> Result<()> {
    let save = |extension: &str, text: String| {
        let path = path.with_added_extension(extension);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        anyhow::Ok(path)
    };
    let json = serde_json::to_string_pretty(report).context("write the report as JSON")?;
    let json = save("json", json + "\n")?;
    let page = save("html", html::page(report)?)?;
    let charts = charts::write_all(report, path)?;
    println!("every round is in {}", json.display());
    println!(
        "the page to look at is {}; {} charts are in {}",
        page.display(),
        charts.len(),
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
