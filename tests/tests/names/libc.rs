//! The name lookups of the C libraries, which read `/etc/resolv.conf`: glibc and musl.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use weft_tests::{Pod, World};

/// A C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// Asks over connected sockets, one server after the other.
    Glibc,
    /// Asks all servers at once, over one socket that is not connected.
    Musl,
}

/// A program that looks names up, built against one of them.
pub(crate) struct Lookup {
    program: PathBuf,
    library: Library,
}

impl Lookup {
    /// Builds it.
    pub(crate) fn build(world: &World, library: Library) -> Result<Self> {
        let compiler = match library {
            Library::Glibc => "cc",
            Library::Musl => "musl-gcc",
        };
        let program = world.dir().join(format!("lookup-{compiler}"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/names/lookup.c");
        let built = Command::new(compiler)
            .args(["-O1", "-o"])
            .arg(&program)
            .arg(source)
            .status()
            .with_context(|| format!("run {compiler}"))?;
        ensure!(built.success(), "{compiler}: {built}");
        Ok(Self { program, library })
    }

    /// What a name stands for, in `pod`, with this `/etc/resolv.conf`: addresses, sorted, or one line that says what went
    /// wrong.
    pub(crate) fn ask(&self, world: &World, pod: &Pod, resolv_conf: &str, name: &str) -> Result<Vec<String>> {
        let program = self.program.display().to_string();
        let text = with_resolv_conf(world, pod, resolv_conf, &[&program, name])
            .with_context(|| format!("{:?} looks up {name}", self.library))?;
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }
}

/// What a program prints that sees another `/etc/resolv.conf` than the machine's, in a mount namespace of its own.
pub(crate) fn with_resolv_conf(
    world: &World,
    pod: &Pod,
    resolv_conf: &str,
    words: &[&str],
) -> Result<String> {
    let conf = world.dir().join("resolv.conf");
    fs::write(&conf, resolv_conf).context("write a resolv.conf")?;
    let mut command = pod.command("unshare");
    command
        .args([
            "-m",
            "sh",
            "-c",
            "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"",
        ])
        .arg(&conf)
        .args(words);
    let output = command.output().context("run unshare")?;
    let complaints = String::from_utf8_lossy(&output.stderr);
    ensure!(complaints.is_empty(), "{words:?}: {complaints}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
