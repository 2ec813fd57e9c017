//! Building through cargo, once for everything: the products, and every test binary with where it is. `test` and
//! `mutate` run those files themselves, so one invocation decides the features and nothing is built twice.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// A test binary that cargo built.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestBinary {
    /// The directory of its package: what cargo would make its working directory.
    pub(crate) package_dir: PathBuf,
    /// What holds the tests: `test` for integration tests, `lib` or `bin` for unit tests.
    pub(crate) kind: String,
    /// The target's name: `weft`, `xtask`, `tunnel`.
    pub(crate) target: String,
    /// The file to run.
    pub(crate) executable: PathBuf,
}

impl TestBinary {
    /// How a person names it.
    pub(crate) fn title(&self) -> String {
        let package = self.package_dir.file_name().unwrap_or_default().to_string_lossy();
        let kind = if self.integration() {
            String::new()
        } else {
            format!(" ({})", self.kind)
        };
        format!("{package}/{}{kind}", self.target)
    }

    /// Whether it is a target of tests alone.
    pub(crate) fn integration(&self) -> bool {
        self.kind == "test"
    }
}

/// What one build made.
#[derive(Debug, Default)]
pub(crate) struct Artifacts {
    /// Every test binary, in a fixed order: units first.
    pub(crate) tests: Vec<TestBinary>,
    /// The `weft` binary.
    pub(crate) weft: Option<PathBuf>,
}

/// Builds weft and what the test world starts, for use.
///
/// # Errors
/// The build failed; cargo has said why.
pub(crate) fn product(release: bool) -> Result<()> {
    let mut cargo = shell::cargo();
    // By name and not by package: see .cargo/config.toml.
    cargo.arg("build");
    for bin in ["weft", "weft-pause", "weft-crowd", "weft-kube"] {
        cargo.args(["--bin", bin]);
    }
    if release {
        cargo.arg("--release");
    }
    shell::run(&mut cargo)
}

/// Builds weft once more, with another layout of its maps: what upgrades are tested with.
///
/// # Errors
/// The build failed; cargo has said why.
pub(crate) fn next_layout() -> Result<()> {
    let mut cargo = shell::cargo();
    cargo.args(["build", "-p", "weft", "--example", "weft-next-layout"]);
    shell::run(cargo.args(["--features", "next-layout"]))
}

/// What builds every library, binary and test.
const EVERYTHING: [&str; 5] = ["build", "--workspace", "--lib", "--bins", "--tests"];

/// Builds every library, binary and test of a checkout.
///
/// # Errors
/// The build failed; cargo has said why.
pub(crate) fn everything(root: &Path, target_dir: Option<&Path>) -> Result<Artifacts> {
    build(root, target_dir, &EVERYTHING)
}

/// Builds only the tests of what is pure, seconds instead of minutes: the units and the simulation.
///
/// # Errors
/// The build failed; cargo has said why.
pub(crate) fn pure(root: &Path, target_dir: Option<&Path>) -> Result<Artifacts> {
    let tests = ["--lib", "--test", "simulation"];
    build(
        root,
        target_dir,
        &[["test", "--no-run", "-p", "weft-pure"].as_slice(), &tests].concat(),
    )
}

fn build(root: &Path, target_dir: Option<&Path>, args: &[&str]) -> Result<Artifacts> {
    let mut cargo = shell::cargo();
    cargo.current_dir(root).args(args);
    cargo
        .args(["--message-format", "json-render-diagnostics"])
        .stdout(Stdio::piped());
    if let Some(dir) = target_dir {
        cargo.arg("--target-dir").arg(dir);
    }
    let mut child = cargo.spawn().context("cannot run cargo")?;
    let mut artifacts = Artifacts::default();
    for line in child
        .stdout
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines)
    {
        artifacts.add(&line.context("cannot read cargo's messages")?);
    }
    if !child.wait()?.success() {
        bail!("the build failed: see cargo's messages above");
    }
    artifacts
        .tests
        .sort_by(|a, b| (a.integration(), a).cmp(&(b.integration(), b)));
    Ok(artifacts)
}

impl Artifacts {
    /// Takes one line of cargo's JSON messages; lines of other kinds are passed over.
    fn add(&mut self, line: &str) {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let Some(executable) = message["executable"].as_str().map(PathBuf::from) else {
            return;
        };
        let target = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        if message["profile"]["test"] == true {
            let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
            let package_dir = manifest.parent().unwrap_or(Path::new(".")).to_owned();
            let kind = message["target"]["kind"][0]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            self.tests.push(TestBinary {
                package_dir,
                kind,
                target,
                executable,
            });
        } else if target == "weft" {
            self.weft = Some(executable);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// What of other packages a command would build: each library with its features.
    fn libraries(command: &[&str]) -> BTreeSet<String> {
        let mut cargo = shell::cargo();
        cargo.args(command);
        cargo.args(["--locked", "--unit-graph", "-Z", "unstable-options"]);
        let output = cargo.env("RUSTC_BOOTSTRAP", "1").output().unwrap();
        let graph: Value = serde_json::from_slice(&output.stdout).expect("cargo's graph of units");
        let units = graph["units"].as_array().unwrap().iter();
        let others = units.filter(|unit| unit["pkg_id"].as_str().unwrap().starts_with("registry+"));
        others
            .map(|unit| {
                let target = &unit["target"];
                format!(
                    "{} {} {} {}",
                    unit["pkg_id"], target["name"], unit["mode"], unit["features"]
                )
            })
            .collect()
    }

    /// Cargo gives a package that is named only the features that it asks for itself. Where these are others than the
    /// workspace's, it builds most libraries once more, which takes minutes.
    #[test]
    fn what_is_built_by_package_uses_the_libraries_of_everything() {
        let everything = libraries(&EVERYTHING);
        for example in ["weft-static", "weft-next-layout"] {
            let own = libraries(&[
                "build",
                "-p",
                "weft",
                "--features",
                "next-layout",
                "--example",
                example,
            ]);
            let others: Vec<_> = own.difference(&everything).collect();
            assert!(
                others.is_empty(),
                "{example}: give these the features that others of the workspace ask for: {others:#?}"
            );
        }
    }

    #[test]
    fn messages_of_cargo_become_test_binaries() {
        let mut artifacts = Artifacts::default();
        for line in [
            r#"{"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml","target":{"kind":["lib"],"name":"weft"},"profile":{"test":false},"executable":null}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml","target":{"kind":["bin"],"name":"weft"},"profile":{"test":false},"executable":"/w/target/debug/weft"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"kind":["test"],"name":"tunnel"},"profile":{"test":true},"executable":"/w/target/debug/deps/tunnel-1"}"#,
            r#"{"reason":"compiler-artifact","manifest_path":"/w/agent/Cargo.toml","target":{"kind":["lib"],"name":"weft"},"profile":{"test":true},"executable":"/w/target/debug/deps/weft-2"}"#,
            r#"{"reason":"build-finished","success":true}"#,
            "not json",
        ] {
            artifacts.add(line);
        }
        assert_eq!(artifacts.weft, Some("/w/target/debug/weft".into()));
        let titles: Vec<_> = artifacts.tests.iter().map(TestBinary::title).collect();
        assert_eq!(titles, ["tests/tunnel", "agent/weft (lib)"]);
        assert_eq!(artifacts.tests[0].package_dir, Path::new("/w/tests"));
    }
}
