//! `counts`: what the questions of every connection cost in instructions (`bench/benches/counts`), against the counts
//! that are committed. Valgrind counts them, so that a busy machine gives the same figures as an idle one. Another
//! compiler does not: its counts are committed with it.

mod baseline;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use baseline::{Change, Counts};
use serde_json::Value;

use crate::{setup, shell, test};

/// What sets up, and what is shown when it is not there.
const VALGRIND: &str = "valgrind";

/// Counts and compares; with `update` it writes what it counted instead.
///
/// # Errors
/// It cannot count here, a question takes longer than its limit, or a count differs from the committed one.
pub(crate) fn run(update: bool, install: bool) -> Result<()> {
    setup::counting(install)?;
    gate(update)
}

/// As [`run`], where everything is set up.
///
/// # Errors
/// As [`run`].
pub(crate) fn check() -> Result<()> {
    gate(false)
}

fn gate(update: bool) -> Result<()> {
    ensure_valgrind_works()?;
    test::step("instructions of authorize, route and the head of a CONNECT");
    let now = count()?;
    if update {
        fs::write(path(), now.to_string()).with_context(|| format!("write {}", path().display()))?;
        print!("{now}");
        println!("written to {}: commit it with what changed it", path().display());
        return Ok(());
    }
    compare(&now)
}

/// A machine on which nothing can be counted must not pass.
fn ensure_valgrind_works() -> Result<()> {
    let tried = Command::new(VALGRIND)
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "/bin/true"])
        .output()
        .context("valgrind is not here: `cargo xtask setup --dev` installs it")?;
    ensure!(
        tried.status.success(),
        "valgrind's callgrind does not work on this machine, so nothing is counted and nothing is proved:\n{}",
        String::from_utf8_lossy(&tried.stderr)
    );
    Ok(())
}

/// One file for each architecture: instructions are its own.
fn path() -> PathBuf {
    shell::root().join(format!("bench/counts-{}.txt", std::env::consts::ARCH))
}

/// Builds and runs the benchmarks.
fn count() -> Result<Counts> {
    let mut bench = shell::cargo();
    bench.args(["bench", "--quiet", "-p", "weft-pure", "--features", "counts"]);
    bench.args([
        "--bench",
        "counts",
        "--",
        "--output-format=json",
        "--parallel=auto",
    ]);
    if let Some(runner) = shell::find("gungraun-runner") {
        bench.env("GUNGRAUN_RUNNER", runner);
    }
    let shown = shell::show(&bench);
    let output = bench
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = text.lines().map(benchmark).collect::<Result<BTreeMap<_, _>>>();
    let counts = Counts {
        compiler: compiler(),
        counts: counts.with_context(|| format!("`{shown}` prints something else than expected: {text}"))?,
    };
    if !output.status.success() {
        print!("{counts}");
        bail!(
            "`{shown}` failed ({}): a limit is exceeded, or see above",
            output.status
        );
    }
    ensure!(!counts.counts.is_empty(), "`{shown}` counted nothing");
    Ok(counts)
}

fn compiler() -> String {
    let version = shell::ask("rustc", &["--version"]).unwrap_or_default();
    version.trim().to_owned()
}

/// Name and instructions in the summary of one benchmark.
fn benchmark(line: &str) -> Result<(String, u64)> {
    let summary: Value = serde_json::from_str(line).context("not JSON")?;
    let word = |key: &str| summary[key].as_str().with_context(|| format!("no `{key}`"));
    let name = format!("{}::{}", word("function_name")?, word("id")?);
    let now = &summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"];
    let now = now
        .as_u64()
        .with_context(|| format!("no instructions in {line}"))?;
    Ok((name, now))
}

fn compare(now: &Counts) -> Result<()> {
    let file = path();
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "there are no counts of this architecture to compare with ({}): {UPDATE}",
            file.display()
        )
    })?;
    let before: Counts = text.parse().with_context(|| format!("{}", file.display()))?;
    let rows = baseline::rows(&before, now);
    print!("{}", baseline::table(&rows));
    if before.compiler != now.compiler {
        println!(
            "the committed counts are of {}, these of {}",
            before.compiler, now.compiler
        );
    }
    let failed: Vec<_> = rows
        .iter()
        .filter(|row| row.change().fails())
        .map(|row| row.name)
        .collect();
    ensure!(
        failed.is_empty(),
        "more than {} % above the committed count, or not in both: {}. Where it is meant, {UPDATE}",
        baseline::GATE_PERCENT,
        failed.join(", ")
    );
    if rows.iter().any(|row| row.change() == Change::Better) {
        println!(
            "some are better by more than {} %: keep it, {UPDATE}",
            baseline::GATE_PERCENT
        );
    }
    Ok(())
}

/// What mends a difference that is meant.
const UPDATE: &str = "run `cargo xtask counts --update` and commit the file";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_gungraun_is_read() {
        let line = r#"{"function_name":"routed","id":"pod","profiles":[{"data":{"parts":[],"total":{"metrics":
            {"Ir":{"values":{"new":1232,"old":1300}}}}},"tool":"Callgrind"}],"version":"7"}"#;
        assert_eq!(benchmark(line).unwrap(), ("routed::pod".to_owned(), 1232));
        assert!(benchmark("{}").is_err() && benchmark("").is_err());
    }
}
