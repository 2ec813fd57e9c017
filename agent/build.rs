//! Builds the eBPF object from source and leaves it where `kernel/mod.rs` embeds it.
//!
//! Two objects: one that logs each decision (for debug builds) and one that does not. The kernel's target has no
//! prebuilt `core`, so it is built from source (`-Z build-std`), which a stable compiler allows under
//! RUSTC_BOOTSTRAP=1. `cargo xtask setup` installs what is needed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";

/// A compiler that can build `core` for the kernel's target.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

fn main() -> Result<(), String> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let root = manifest_dir.parent().ok_or("agent has no parent folder")?;
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target_dir = out_dir
        .ancestors()
        .nth(4)
        .ok_or("OUT_DIR is not inside a target folder")?
        .join("ebpf");

    for watched in [
        "agent-ebpf/src",
        "agent-ebpf/Cargo.toml",
        "agent-ebpf/Cargo.lock",
        "agent-common/src",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    println!("cargo::rerun-if-changed=build.rs");

    let toolchain = toolchain()?;
    let layout = if cfg!(feature = "next-layout") {
        "next-layout"
    } else {
        ""
    };
    for (name, log) in [("weft-ebpf.o", ""), ("weft-ebpf-log.o", "log")] {
        let features = [layout, log].join(" ");
        let objects = build(&toolchain, &root.join("agent-ebpf"), &target_dir, &features)?;
        copy(&objects.join("weft-ebpf"), &out_dir.join(name))?;
        copy(&objects.join("weft-depth"), &out_dir.join("weft-depth.o"))?;
    }
    hot_functions(&manifest_dir, &out_dir)
}

fn copy(object: &Path, to: &Path) -> Result<(), String> {
    let copied = fs::copy(object, to).map_err(|e| format!("copy {}: {e}", object.display()));
    copied.map(drop)
}

/// Has the functions that run while an agent carries connections linked together, in a release: a page of the program is in
/// memory together with some around it, so that functions that are spread keep nearly all of it there (`bench/NOTES.md`).
fn hot_functions(manifest_dir: &Path, out_dir: &Path) -> Result<(), String> {
    const LIST: &str = "hot-functions.txt";
    println!("cargo::rerun-if-changed={LIST}");
    if variable("PROFILE")? != "release" || variable("CARGO_CFG_TARGET_OS")? != "linux" {
        return Ok(());
    }
    let list = fs::read_to_string(manifest_dir.join(LIST)).map_err(|e| format!("{LIST}: {e}"))?;
    let patterns = list.lines().filter(|line| !line.starts_with('#'));
    // What is marked as cold, as the growth of a vector, is in sections of another name.
    let sections: String = patterns
        .map(|pattern| format!("*(.text.{pattern} .text.unlikely.{pattern})\n"))
        .collect();
    // Beside the linker's own script (ld and lld: INSERT), not instead of it.
    let script = format!("SECTIONS {{ .text.hot_weft : {{\n{sections}}} }} INSERT BEFORE .text;\n");
    let path = out_dir.join("hot-functions.ld");
    fs::write(&path, script).map_err(|e| format!("{}: {e}", path.display()))?;
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", path.display());
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]
fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo did not set {name}"))
}

/// In this order: the toolchain that builds weft itself, rustup's nightly, Debian's own.
fn toolchain() -> Result<Toolchain, String> {
    let own = Toolchain {
        cargo: variable("CARGO")?.into(),
        rustc: variable("RUSTC")?.into(),
    };
    let rustup_nightly = rustup_which("rustc", "nightly")
        .zip(rustup_which("cargo", "nightly"))
        .map(|(rustc, cargo)| Toolchain { cargo, rustc });
    let debian = Toolchain {
        cargo: "/usr/bin/cargo".into(),
        rustc: "/usr/bin/rustc".into(),
    };
    [Some(own), rustup_nightly, Some(debian)]
        .into_iter()
        .flatten()
        .find(has_library_source)
        .ok_or_else(|| {
            "no toolchain has the source of Rust's library, which the eBPF programs are built with: \
         run `cargo xtask setup`, or `rustup component add rust-src`"
                .to_owned()
        })
}

fn rustup_which(tool: &str, toolchain: &str) -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["which", tool, "--toolchain", toolchain])
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().into())
}

fn has_library_source(toolchain: &Toolchain) -> bool {
    let sysroot = Command::new(&toolchain.rustc)
        .args(["--print", "sysroot"])
        .output();
    let Some(sysroot) = sysroot
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
    else {
        return false;
    };
    Path::new(sysroot.trim())
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
}

fn build(
    toolchain: &Toolchain,
    package: &Path,
    target_dir: &Path,
    features: &str,
) -> Result<PathBuf, String> {
    let mut command = Command::new(&toolchain.cargo);
    command
        .current_dir(package)
        .args([
            "build",
            "--release",
            "--locked",
            "-Z",
            "build-std=core",
            "--target",
            TARGET,
        ])
        .arg(format!("--features={features}"))
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target_dir)
        // --btf: socket storage needs the types of its key and value.
        .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf");
    // What cargo, clippy and rustup set for the host's build must not reach the kernel's.
    for foreign in [
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTUP_TOOLCHAIN",
        "CLIPPY_ARGS",
    ] {
        command.env_remove(foreign);
    }
    let output = command
        .output()
        .map_err(|e| format!("run {}: {e}", toolchain.cargo.display()))?;
    if !output.status.success() {
        return Err(explain(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target_dir.join(TARGET).join("release"))
}

fn explain(stderr: &str) -> String {
    let mend = if stderr.contains("linker `bpf-linker` not found") {
        "\nbpf-linker is missing: run `cargo xtask setup`, or `cargo install bpf-linker`"
    } else {
        ""
    };
    format!("building the eBPF programs failed:\n{stderr}{mend}")
}
