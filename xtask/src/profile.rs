//! `profile`: where the agents' time goes under a load of the benchmark, as a flame graph to look at and a list to read.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{bench, preflight, setup, shell, test::step};

/// Where everything goes, below the checkout.
const DIR: &str = "target/profile";
/// What `agent/build.rs` gives the linker.
const FUNCTIONS: &str = "agent/hot-functions.txt";
/// Functions that are listed.
const LISTED: usize = 25;

/// What is profiled.
pub(crate) struct Options {
    /// The load, as `bench --only` has it.
    pub(crate) load: String,
    /// The mode, such as `weft` or `envoy L4`.
    pub(crate) mode: String,
    /// Install what is missing.
    pub(crate) install: bool,
}

/// Builds, plays the load, and draws.
///
/// # Errors
/// It could not be built or played, or a tool is missing or fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run(setup::Options {
        install: options.install,
        tests: false,
        dev: false,
    })?;
    setup::profiler(options.install)?;
    setup::benchmark(options.install);
    preflight::run()?;
    bench::build("release")?;
    let dir = shell::root().join(DIR);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let data = dir.join("perf.data");
    step(&format!("{} in mode {}", options.load, options.mode));
    let args = [
        "--only",
        &options.load,
        "--mode",
        &options.mode,
        "--rounds",
        "1",
        "--perf",
    ];
    let mut args: Vec<String> = args.map(str::to_owned).to_vec();
    args.push(data.display().to_string());
    bench::measure("release", &args)?;
    step("drawing");
    let graph = draw(&dir, &data, &format!("{}: {}", options.mode, options.load))?;
    list(&dir)?;
    println!("\nthe flame graph is {}", graph.display());
    Ok(())
}

/// Builds, plays all loads, and writes down which functions of the agent run meanwhile; the next release links them together.
///
/// # Errors
/// It could not be built, played or traced.
pub(crate) fn functions(install: bool) -> Result<()> {
    setup::run(setup::Options {
        install,
        tests: false,
        dev: false,
    })?;
    preflight::run()?;
    bench::build("release")?;
    let list = shell::root().join(FUNCTIONS);
    step("all loads, function by function");
    let args = [
        "--quick",
        "--only",
        "",
        "--mode",
        "weft",
        "--rounds",
        "2",
        "--functions",
    ];
    let mut args: Vec<String> = args.map(str::to_owned).to_vec();
    args.push(list.display().to_string());
    bench::measure("release", &args)?;
    println!("\n{FUNCTIONS}: `git diff --stat` says what is new");
    Ok(())
}

/// perf's samples, folded to one line for each stack, and drawn.
fn draw(dir: &Path, data: &Path, title: &str) -> Result<std::path::PathBuf> {
    let (stacks, folded, graph) = (dir.join("stacks"), dir.join("folded"), dir.join("flame.svg"));
    let mut script = Command::new("perf");
    script.args(["script", "--no-inline", "-i"]).arg(data);
    into(&mut script, &stacks)?;
    into(Command::new("inferno-collapse-perf").arg(&stacks), &folded)?;
    let mut flame = Command::new("inferno-flamegraph");
    flame.args(["--title", title, "--countname", "ns"]).arg(&folded);
    into(&mut flame, &graph)?;
    Ok(graph)
}

/// Runs a command with its output in a file.
fn into(command: &mut Command, file: &Path) -> Result<()> {
    let output = File::create(file).with_context(|| format!("create {}", file.display()))?;
    let shown = shell::show(command);
    let status = command
        .stdout(output)
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("run {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// The functions that the time itself went to, most first.
fn list(dir: &Path) -> Result<()> {
    let folded = fs::read_to_string(dir.join("folded")).context("read the folded stacks")?;
    let functions = top(&folded);
    let all: u64 = functions.iter().map(|(_, nanos)| nanos).sum();
    println!(
        "{:.2} s of processor time; in the function itself:",
        all as f64 / 1e9
    );
    for (function, nanos) in functions.iter().take(LISTED) {
        println!("{:6.1} %  {function}", *nanos as f64 * 100.0 / all.max(1) as f64);
    }
    Ok(())
}

/// Of lines `thread;outer;inner 12`, the innermost functions with their time, in ns.
fn top(folded: &str) -> Vec<(&str, u64)> {
    let mut functions = std::collections::HashMap::new();
    for line in folded.lines() {
        let Some((stack, nanos)) = line.rsplit_once(' ') else {
            continue;
        };
        let function = stack.rsplit(';').next().unwrap_or(stack);
        *functions.entry(function).or_insert(0) += nanos.parse::<u64>().unwrap_or(0);
    }
    let mut functions: Vec<_> = functions.into_iter().collect();
    functions.sort_unstable_by_key(|(function, nanos)| (std::cmp::Reverse(*nanos), *function));
    functions
}

#[cfg(test)]
mod tests {
    #[test]
    fn time_is_told_of_the_innermost_functions() {
        let folded = "weft;main;read 3\nweft;main;write 5\nweft;other;read 4\nbroken\n";
        assert_eq!(super::top(folded), [("read", 7), ("write", 5)]);
    }
}
