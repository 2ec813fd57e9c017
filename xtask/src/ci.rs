//! `ci`: all that CI checks, in the order of what fails fastest. It stops at the first failure and says what mends it.

use std::{path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, Result};

use crate::{build, chart, counts, image, setup, shell, test, tidy};

/// What cargo-deny checks. `advisories` needs a database from the network, and changes without a commit: it is for a
/// scheduled job and not for this gate.
const DENY: [&str; 4] = ["check", "bans", "licenses", "sources"];
/// The eBPF programs are outside the workspace: cargo is told where.
const EBPF: [&str; 2] = ["--manifest-path", "agent-ebpf/Cargo.toml"];

/// One check.
struct Step {
    name: &'static str,
    run: fn() -> Result<()>,
    mend: &'static str,
}

const STEPS: [Step; 11] = [
    Step {
        name: "format",
        run: format,
        mend: "cargo fmt --all && cargo fmt --manifest-path agent-ebpf/Cargo.toml",
    },
    Step {
        name: "clippy",
        run: clippy,
        mend: "read the warnings above; `cargo clippy --fix` mends some of them",
    },
    Step {
        name: "clippy of the eBPF programs",
        run: clippy_ebpf,
        mend: "read the warnings above",
    },
    Step {
        name: "dependencies (bans, licenses, sources)",
        run: deny,
        mend: "read cargo-deny's reasons above; an exception needs its reason in deny.toml",
    },
    Step {
        name: "tidy",
        run: tidy::run,
        mend: "each finding above says its own",
    },
    // Before what needs any of it, so that libraries are built with one set of features.
    Step {
        name: "build of everything",
        run: everything,
        mend: "read the errors above",
    },
    Step {
        name: "chart",
        run: chart::check,
        mend: "each finding above says the object and what it does not hold to",
    },
    Step {
        name: "image (of the debug build), started with containerd and runc",
        run: image::check,
        mend: "`cargo xtask image --debug --run` does this alone",
    },
    Step {
        name: "instruction counts",
        run: counts::check,
        mend: "the table above says which, and the last line what to do",
    },
    Step {
        name: "one push of 10,000 workloads (at most 2 s and 200 MiB)",
        run: push,
        mend: "`cargo xtask bench scale --check` does this alone, with optimisations",
    },
    Step {
        name: "rehearsal of the end-to-end suite",
        run: rehearsal,
        mend: "`cargo xtask test kube --rehearse` does this alone",
    },
];

/// Runs every check, then the tests.
///
/// # Errors
/// A check or a test failed.
pub(crate) fn run(install: bool) -> Result<()> {
    let since = Instant::now();
    setup::run(setup::Options {
        install,
        tests: true,
        dev: true,
    })?;
    setup::rehearsal(install)?;
    let mut took = vec![("setup", since.elapsed())];
    for Step { name, run, mend } in STEPS {
        test::step(name);
        let started = Instant::now();
        run().with_context(|| format!("{name} failed; to mend it: {mend}"))?;
        println!("✓ {name} ({:.1} s)", started.elapsed().as_secs_f32());
        took.push((name, started.elapsed()));
    }
    test::run(None, install, took)
}

fn format() -> Result<()> {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::run(shell::cargo().arg("fmt").args(EBPF).arg("--check"))
}

fn clippy() -> Result<()> {
    shell::run(shell::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--features",
        "weft-pure/counts",
        "--",
        "-D",
        "warnings",
    ]))
}

/// As `agent/build.rs` builds them: for the kernel's target, with `core` from source.
fn clippy_ebpf() -> Result<()> {
    let dir = ebpf_target();
    let mut cargo: Command = shell::cargo();
    cargo
        .arg("clippy")
        .args(EBPF)
        .args(["--quiet", "--locked", "--release", "--all-features"]);
    cargo
        .args([
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(dir);
    cargo.env("RUSTC_BOOTSTRAP", "1");
    shell::run(cargo.args(["--", "-D", "warnings"]))
}

/// Apart from the real objects, so that a check never makes a build start anew.
fn ebpf_target() -> PathBuf {
    shell::root().join("target/ebpf-clippy")
}

fn everything() -> Result<()> {
    build::everything(&shell::root(), None).map(drop)
}

/// With the debug build, which is slower than what the limits are for.
fn push() -> Result<()> {
    let built = shell::target_dir().join("debug");
    let mut scale = Command::new(built.join("weft-scale"));
    scale.arg("--check").arg("--weft").arg(built.join("weft"));
    shell::run(&mut scale)
}

fn rehearsal() -> Result<()> {
    test::rehearse::play(false)
}

fn deny() -> Result<()> {
    shell::run(shell::cargo().arg("deny").args(DENY))?;
    // The list of licenses is for both: the few crates of the programs do not use all of them.
    let [check, kinds @ ..] = DENY;
    let quiet = [check, "--allow", "license-not-encountered"];
    shell::run(shell::cargo().arg("deny").args(EBPF).args(quiet).args(kinds))
}
