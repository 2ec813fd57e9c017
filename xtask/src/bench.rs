//! `bench`: what the mesh costs. It makes the machine ready, builds weft as it is shipped, and lets `weft-bench` measure
//! it against no mesh and against sidecars in one run. It judges nothing: no figure makes it fail.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    preflight, setup, shell,
    test::{Ending, Interrupt, step, stream},
};

/// How long all rounds may take: several times what they do take.
const LIMIT: Duration = Duration::from_mins(60);
/// Where results go, below the checkout.
const RESULTS: &str = "bench/results";

/// How the benchmark runs.
pub(crate) struct Options {
    /// Fewer and shorter rounds.
    pub(crate) quick: bool,
    /// What `weft-bench` is given besides, such as `--only bulk` or `--rival NAME=COMMAND`.
    pub(crate) args: Vec<String>,
    /// Without optimisations: to work on the benchmark itself.
    pub(crate) dev: bool,
    /// Install what is missing.
    pub(crate) install: bool,
}

/// Builds and measures.
///
/// # Errors
/// It could not be built, or a load did not get through.
pub(crate) fn run(options: Options) -> Result<()> {
    setup::run(setup::Options {
        install: options.install,
        tests: false,
        dev: false,
    })?;
    preflight::run()?;
    setup::benchmark(options.install);
    let profile = if options.dev { "dev" } else { "release" };
    build(profile)?;
    if let Some(("scale", args)) = options
        .args
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        return scale(profile, args);
    }
    step("all modes in turns");
    let mut args = vec!["--called".to_owned(), called(&options)];
    if let Some(output) = output(&options)? {
        args.extend(["--output".to_owned(), output.display().to_string()]);
    }
    if options.quick {
        args.push("--quick".to_owned());
    }
    args.extend(options.args);
    measure(profile, &args)
}

/// Everything that takes part, with optimisations unless the profile says otherwise.
pub(crate) fn build(profile: &str) -> Result<()> {
    step("building weft, its eBPF programs and the benchmark");
    let mut build = shell::cargo();
    build.args(["build", "--profile", profile]);
    build.args(["--workspace", "--bins"]);
    shell::run(&mut build)
}

/// What a large cluster costs the controller and an agent.
fn scale(profile: &str, args: &[String]) -> Result<()> {
    step("a large cluster");
    let folder = if profile == "dev" { "debug" } else { profile };
    let mut scale = shell::cargo();
    scale.args([
        "run",
        "--quiet",
        "--profile",
        profile,
        "--bin",
        "weft-scale",
        "--",
    ]);
    scale
        .arg("--weft")
        .arg(shell::root().join("target").join(folder).join("weft"));
    shell::run(scale.args(args))
}

/// Runs `weft-bench` as it was built.
pub(crate) fn measure(profile: &str, args: &[String]) -> Result<()> {
    for gone in weft_tests::sweep()? {
        println!("swept {gone}, which a run that died had left");
    }
    let mut bench = shell::cargo();
    // Cargo knows where the binary is; weft and weft-pause are beside it.
    bench.args([
        "run",
        "--quiet",
        "--profile",
        profile,
        "--bin",
        "weft-bench",
        "--",
    ]);
    // What was built now is what is measured.
    bench
        .env("WEFT_BIN", copied(profile)?)
        .env_remove("WEFT_PAUSE_BIN");
    bench.arg("--envoy").arg(setup::envoy()).args(args);
    let interrupt = Interrupt::listen()?;
    let ended = stream(&mut bench, LIMIT, &interrupt, |line| println!("{line}"));
    // Whatever came of it: a run that was interrupted leaves its world behind.
    weft_tests::sweep()?;
    match ended? {
        (_, Ending::Exited(status)) if status.success() => Ok(()),
        (_, Ending::Exited(status)) => bail!("weft-bench failed ({status}): see above"),
        (_, Ending::TimedOut(limit)) => bail!("weft-bench hung: killed after {} s", limit.as_secs()),
        (_, Ending::Interrupted) => bail!("interrupted: there is no result"),
    }
}

/// weft's program as a cluster has it: a copy, as every image's is. How much of a file is in memory depends on how it came to the
/// page cache, and of one that a linker has written it is less.
fn copied(profile: &str) -> Result<PathBuf> {
    let folder = if profile == "dev" { "debug" } else { profile };
    let folder = shell::target_dir().join(folder);
    let copy = folder.join("measured/weft");
    fs::create_dir_all(folder.join("measured"))?;
    // A program that still runs cannot be written to.
    let _ = fs::remove_file(&copy);
    fs::copy(folder.join("weft"), &copy).with_context(|| format!("write {}", copy.display()))?;
    Ok(copy)
}

/// The command as the user gave it, for the report.
fn called(options: &Options) -> String {
    let quick = if options.quick { " --quick" } else { "" };
    let args: String = options.args.iter().map(|arg| format!(" {arg}")).collect();
    format!("cargo xtask bench{quick}{args}")
}

/// A file for this day and this kernel; a later run of the same kind on the same day replaces it. None without
/// optimisations, whose figures are not worth keeping, and none of a part, which would replace the whole.
fn output(options: &Options) -> Result<Option<PathBuf>> {
    if options.dev
        || options
            .args
            .iter()
            .any(|arg| arg.starts_with("--only") || arg.starts_with("--mode"))
    {
        return Ok(None);
    }
    let dir = shell::root().join(RESULTS);
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let day = shell::ask("date", &["-u", "+%F"]).context("`date -u` does not say which day it is")?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let kind = if options.quick { "-quick" } else { "" };
    Ok(Some(dir.join(format!("{}-{}{kind}", day.trim(), kernel.trim()))))
}
