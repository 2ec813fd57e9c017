//! `image`: the container image, without a container runtime: one static binary, its licence and its bill of materials, FROM
//! scratch. What is written is an OCI layout that is a `docker save` archive too, for `docker load`, `ctr images import` and
//! `kind load image-archive`. The same binary, commit and tag make the same bytes. deploy/Dockerfile is the other way to it.
//! CI makes it of the debug build that tests run, which costs a minute, and starts it; only the release is small.

mod agents;
pub(crate) mod archive;
mod push;
mod run;
mod runtime;
mod sbom;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{build, setup, shell, test::step};

/// Statically linked by glibc, whose DNS client and files are inside it since 2.34: names are resolved without NSS modules.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What the release's binary may take: every node pulls it.
const LARGEST: u64 = 40 << 20;

/// How the image is made.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The image's name and tag [default: what the chart installs; with --debug it ends in -debug]
    #[arg(long)]
    tag: Option<String>,
    /// The archive to write [default: target/weft-image.tar, with --debug target/weft-image-debug.tar]; the bill of materials
    /// goes beside it
    #[arg(long, value_name = "FILE.tar")]
    output: Option<PathBuf>,
    /// Take the debug build that tests run, linked without libraries: a minute instead of a release build, and larger than
    /// the limit, which is the release's. For trying the image, not for a cluster
    #[arg(long, conflicts_with = "binary")]
    debug: bool,
    /// Take this static binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Start it with containerd and runc, and see that it works (as root)
    #[arg(long)]
    run: bool,
    /// Push it under --tag, which names a registry, with the credentials of `docker login` or `skopeo login`
    #[arg(long, requires = "tag")]
    push: bool,
    /// Print what is missing instead of installing it
    #[arg(long)]
    no_install: bool,
}

/// Makes the image, and starts it if that is asked for.
///
/// # Errors
/// It cannot be built, is not static, is too large, or does not behave as it should.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.push {
        push::check(options.tag.as_deref().unwrap_or_default())?;
        setup::pusher(!options.no_install)?;
    }
    if options.run {
        setup::runtime(!options.no_install)?;
    }
    if options.binary.is_none() {
        setup::run(setup::Options {
            install: !options.no_install,
            tests: false,
            dev: false,
        })?;
    }
    if options.run {
        step("building the test world");
        build::product(false)?;
    }
    make(options)
}

/// The image of the debug build, started, where everything that it needs is known to be there, the test world with it.
///
/// # Errors
/// The same.
pub(crate) fn check() -> Result<()> {
    make(&Options {
        tag: None,
        output: None,
        debug: true,
        binary: None,
        run: true,
        push: false,
        no_install: true,
    })
}

/// The release's image, under this name in its registry.
///
/// # Errors
/// The name is none of a registry's, or the image cannot be made or pushed.
pub(crate) fn publish(name: &str, install: bool) -> Result<()> {
    run(&Options {
        tag: Some(name.to_owned()),
        output: None,
        debug: false,
        binary: None,
        run: false,
        push: true,
        no_install: !install,
    })
}

fn make(options: &Options) -> Result<()> {
    let kind = if options.debug { "-debug" } else { "" };
    let output = options.output.clone();
    let output = output.unwrap_or_else(|| shell::target_dir().join(format!("weft-image{kind}.tar")));
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None if options.debug => debug_build()?,
        None => release_build()?,
    };
    let program = fs::read(&binary).with_context(|| format!("read {}", binary.display()))?;
    judge(&program, options.debug).with_context(|| format!("{} cannot be the image's", binary.display()))?;
    let created = created()?;
    step("bill of materials");
    let sbom = sbom::of_the_image(&program, created)?;
    let beside = output.with_extension("cdx.json");
    fs::write(&beside, &sbom).with_context(|| format!("write {}", beside.display()))?;
    let tag = options.tag.clone();
    let tag = tag.unwrap_or_else(|| format!("weft:{}{kind}", env!("CARGO_PKG_VERSION")));
    let licence = fs::read(shell::root().join("LICENSE"))?;
    let image = archive::Image {
        name: &full_name(&tag),
        user: archive::NOBODY,
        files: &[
            ("usr/bin/weft", 0o755, program.as_slice()),
            ("usr/share/doc/weft/LICENSE", 0o644, licence.as_slice()),
            ("usr/share/doc/weft/sbom.cdx.json", 0o644, sbom.as_bytes()),
        ],
        labels: &labels(created),
        created,
    };
    let made = archive::write(&output, &image)?;
    tell(&image, &made, [&output, &beside], options.debug);
    if options.run {
        run::check(&output, &image)?;
    }
    match options.push {
        true => push::push(&output, image.name),
        false => Ok(()),
    }
}

fn tell(image: &archive::Image<'_>, made: &archive::ImageDigest, files: [&Path; 2], debug: bool) {
    let size = image
        .files
        .first()
        .map_or(0, |(_, _, program)| program.len() >> 20);
    let limit = match debug {
        true => format!(
            "a debug build: the limit of {} MiB is the release's",
            LARGEST >> 20
        ),
        false => format!("of {} MiB that it may have", LARGEST >> 20),
    };
    println!("{}: {size} MiB binary ({limit}), image {made}", image.name);
    for file in files {
        println!("  {}", file.display());
    }
    println!(
        "load it: `docker load -i FILE`, `ctr -n k8s.io images import FILE`, `kind load image-archive FILE`"
    );
}

/// A release build that needs no library of its image's, apart from other builds by its target's folder. Its paths say
/// nothing of this machine.
fn release_build() -> Result<PathBuf> {
    step("static release build");
    let root = shell::root();
    let flags = format!(
        // The last as .cargo/config.toml has it, which this replaces.
        "-C target-feature=+crt-static --remap-path-prefix={}=/weft -C symbol-mangling-version=v0",
        root.display()
    );
    let mut cargo = shell::cargo();
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "-p",
            "weft",
            "--bin",
            "weft",
            "--target",
            TARGET,
        ])
        .env("RUSTFLAGS", flags)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    shell::run(&mut cargo)?;
    Ok(shell::target_dir().join(TARGET).join("release/weft"))
}

/// The program linked from the libraries of the debug build, which are there already: whether it needs others when it starts is
/// decided where it is linked, so that flags for the last step are enough and nothing else is built again.
fn debug_build() -> Result<PathBuf> {
    step("static debug build");
    let mut cargo = shell::cargo();
    cargo.args([
        "rustc",
        "--locked",
        "-p",
        "weft",
        "--example",
        "weft-static",
        "--",
    ]);
    cargo.args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]);
    shell::run(&mut cargo)?;
    Ok(shell::target_dir().join("debug/examples/weft-static"))
}

fn judge(program: &[u8], debug: bool) -> Result<()> {
    match interpreter(program) {
        Some(false) => {}
        Some(true) => bail!("it is linked to libraries, of which the image has none"),
        None => bail!("it is no 64-bit ELF file"),
    }
    ensure!(
        debug || program.len() as u64 <= LARGEST,
        "it has {} MiB, {} is the limit",
        program.len() >> 20,
        LARGEST >> 20
    );
    Ok(())
}

/// Whether an ELF file asks for a dynamic linker (a program header of type PT_INTERP); none where it is no such file.
fn interpreter(program: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |number, byte| number << 8 | u64::from(*byte)),
        )
    };
    // 64-bit, little endian (System V ABI, "ELF Header").
    if program.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let at = usize::try_from(start + index * size).ok()?;
        if number(at, 4)? == u64::from(PT_INTERP) {
            return Some(true);
        }
    }
    Some(false)
}

/// Seconds since 1970 that every time in the image is: SOURCE_DATE_EPOCH, or the commit's.
fn created() -> Result<u64> {
    if let Some(given) = shell::variable("SOURCE_DATE_EPOCH") {
        return given
            .to_string_lossy()
            .parse()
            .context("SOURCE_DATE_EPOCH is not a number of seconds");
    }
    let root = shell::root().display().to_string();
    let commit = shell::ask("git", &["-C", &root, "log", "-1", "--format=%ct"]);
    Ok(commit
        .and_then(|seconds| seconds.trim().parse().ok())
        .unwrap_or(0))
}

fn labels(created: u64) -> Vec<(&'static str, String)> {
    let root = shell::root().display().to_string();
    let commit = shell::ask("git", &["-C", &root, "rev-parse", "HEAD"]).unwrap_or_default();
    vec![
        ("org.opencontainers.image.title", "weft".to_owned()),
        (
            "org.opencontainers.image.description",
            "A sidecarless service mesh for Kubernetes".to_owned(),
        ),
        (
            "org.opencontainers.image.version",
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
        ("org.opencontainers.image.revision", commit.trim().to_owned()),
        ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
        ("org.opencontainers.image.created", archive::timestamp(created)),
    ]
}

/// The name as registries and the kubelet complete it: `weft` is docker.io/library/weft:latest.
pub(crate) fn full_name(tag: &str) -> String {
    let tagged = match tag.rsplit_once('/').map_or(tag, |(_, name)| name).contains(':') {
        true => tag.to_owned(),
        false => format!("{tag}:latest"),
    };
    match tagged.split_once('/') {
        None => format!("docker.io/library/{tagged}"),
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => tagged,
        Some(_) => format!("docker.io/{tagged}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_registries_do() {
        for (tag, full) in [
            ("weft", "docker.io/library/weft:latest"),
            ("weft:0.1.0", "docker.io/library/weft:0.1.0"),
            ("mesh/weft:1", "docker.io/mesh/weft:1"),
            ("localhost/weft", "localhost/weft:latest"),
            (
                "registry.example:5000/mesh/weft",
                "registry.example:5000/mesh/weft:latest",
            ),
        ] {
            assert_eq!(full_name(tag), full);
        }
    }

    #[test]
    fn what_is_linked_to_libraries_is_refused() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(interpreter(&fs::read(own).unwrap()), Some(true));
        assert_eq!(interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None);
        let mut without = vec![0; 64];
        without[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(interpreter(&without), Some(false));
    }
}
