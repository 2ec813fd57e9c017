//! `fuzz`: feeds everything that reads what others wrote with inputs that nobody thought of, each target for a minute. It
//! begins with the committed seeds (`tests/fuzz/seeds`), keeps what it finds of interest in `target/fuzz`, and ends in a
//! count; for a crash it prints the command that replays it. The stable compiler does it (`RUSTC_BOOTSTRAP`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{setup, shell, test};

/// From the root of the checkout.
const DIR: &str = "tests/fuzz";
/// MiB that one input may make a target use, and seconds that it may take.
const MEMORY: u32 = 2048;
const PATIENCE: u32 = 10;

/// What is run.
pub(crate) struct Options<'a> {
    /// Only this target.
    pub(crate) target: Option<&'a str>,
    /// How long each is fed.
    pub(crate) seconds: u32,
    /// Run this one input and nothing else.
    pub(crate) replay: Option<&'a Path>,
    /// Install the fuzzer if it is missing.
    pub(crate) install: bool,
}

/// Runs the targets one after the other; a crash in one does not keep the others from running.
///
/// # Errors
/// A target crashed, or could not be built.
pub(crate) fn run(options: &Options<'_>) -> Result<()> {
    setup::fuzzer(options.install)?;
    let targets = chosen(options.target)?;
    if let Some(input) = options.replay {
        let [target] = targets.as_slice() else {
            bail!("name the target that the input is for: cargo xtask fuzz TARGET --replay FILE");
        };
        return shell::run(fuzzer("run", target)?.arg(absolute(input)?));
    }
    let mut crashed = Vec::new();
    for target in &targets {
        test::step(&format!("fuzz {target} for {} s", options.seconds));
        if let Err(error) = feed(target, options.seconds) {
            println!("✗ {target}: {error:#}");
            crashed.push(target.as_str());
        }
    }
    println!(
        "\n{} passed, {} failed",
        targets.len() - crashed.len(),
        crashed.len()
    );
    ensure!(crashed.is_empty(), "the fuzzer broke {}", crashed.join(", "));
    Ok(())
}

fn chosen(target: Option<&str>) -> Result<Vec<String>> {
    let dir = shell::root().join(DIR).join("fuzz_targets");
    let mut all = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        all.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    all.sort();
    let Some(target) = target else { return Ok(all) };
    ensure!(
        all.iter().any(|name| name == target),
        "no target {target}: there are {}",
        all.join(", ")
    );
    Ok(vec![target.to_owned()])
}

fn feed(target: &str, seconds: u32) -> Result<()> {
    let work = shell::root().join("target/fuzz");
    let (corpus, artifacts) = (
        work.join("corpus").join(target),
        work.join("artifacts").join(target),
    );
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let before = files(&artifacts)?;
    let mut command = fuzzer("run", target)?;
    command
        .arg(&corpus)
        .arg(shell::root().join(DIR).join("seeds").join(target));
    command.args([
        "--".to_owned(),
        format!("-max_total_time={seconds}"),
        format!("-rss_limit_mb={MEMORY}"),
        format!("-timeout={PATIENCE}"),
        "-verbosity=0".to_owned(),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", artifacts.display()),
    ]);
    shell::run(&mut command).map_err(|error| {
        let new = files(&artifacts).unwrap_or_default();
        match new.iter().find(|path| !before.contains(path)) {
            Some(input) => anyhow::anyhow!(
                "an input broke it. To replay it: cargo xtask fuzz {target} --replay {}\n  once it is mended, copy that file \
                 to {DIR}/seeds/{target}",
                input.strip_prefix(shell::root()).unwrap_or(input).display()
            ),
            None => error,
        }
    })
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    Ok(entries.collect::<std::io::Result<_>>()?)
}

/// cargo-fuzz with what every call of it needs.
fn fuzzer(command: &str, target: &str) -> Result<Command> {
    let mut cargo = shell::cargo();
    cargo
        .args(["fuzz", command, "--fuzz-dir", DIR, "--sanitizer", sanitizer()?])
        .args(["--target-dir", "target/fuzz"])
        .arg(target)
        // Coverage and sanitizers are unstable options of a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

/// The address sanitizer where the toolchain has its runtime. Without it panics and failed assertions are still found.
fn sanitizer() -> Result<&'static str> {
    let ask = |args| shell::ask("rustc", args).context("rustc does not answer");
    let version = ask(&["-vV"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let library = Path::new(ask(&["--print", "sysroot"])?.trim())
        .join("lib/rustlib")
        .join(host.context("rustc does not say for which machine it builds")?)
        .join("lib");
    let there = files(&library)?
        .iter()
        .any(|path| path.to_string_lossy().ends_with("_rt.asan.a"));
    Ok(if there { "address" } else { "none" })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    // From where the person is, or from the root of the checkout, as it was printed.
    let found = [path.to_owned(), shell::root().join(path)]
        .into_iter()
        .find_map(|path| path.canonicalize().ok());
    found.with_context(|| format!("no file {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_one_of_those_there_are() {
        let all = chosen(None).unwrap();
        assert!(all.contains(&"mesh_file".to_owned()), "{all:?}");
        assert_eq!(chosen(Some("headers")).unwrap(), ["headers"]);
        let error = chosen(Some("nothing")).unwrap_err().to_string();
        assert!(error.contains("there are certificate_san, "), "{error}");
    }
}
