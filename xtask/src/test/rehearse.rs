//! `test kube --rehearse`: the end-to-end suite without a cluster: on a stand-in API server and two nodes that run pods with
//! containerd (tests/src/cluster). It is a rehearsal, and says what it says nothing about.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use weft_tests::cluster::{Cluster, NOT_REHEARSED};

use super::{kube, step};
use crate::{build, image, setup, shell};

/// What does nothing in a pod's sandbox.
const PAUSE: &str = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n";

/// Builds, brings a cluster up, and runs the suite on it.
///
/// # Errors
/// The suite failed, or something of it could not be brought up.
pub(crate) fn run(filter: Option<&str>, keep: bool, install: bool) -> Result<()> {
    ensure!(
        filter == Some("kube"),
        "--rehearse is for `cargo xtask test kube --rehearse`, which runs as a whole"
    );
    setup::rehearsal(install)?;
    setup::helm(install)?;
    step("building weft for the rehearsal, without optimisations");
    build::everything(&shell::root(), None)?;
    play(keep)
}

/// The same, where everything that it needs is known to be there and weft and the tests are built.
///
/// # Errors
/// The suite failed, or something of it could not be brought up.
pub(crate) fn play(keep: bool) -> Result<()> {
    let dir = shell::root().join("target/rehearsal");
    fs::create_dir_all(&dir)?;
    let images = [weft_image(&dir)?, pause_image(&dir)?];
    step("a cluster to rehearse in");
    for gone in weft_tests::sweep()? {
        println!("swept {gone}, which a run that died had left");
    }
    let mut cluster = Cluster::start(&[&images[0], &images[1]])?;
    let kubeconfig = cluster.dir().join("kubeconfig");
    fs::write(&kubeconfig, cluster.kubeconfig())?;
    println!("KUBECONFIG={}", kubeconfig.display());
    let outcome = kube::suite(&kubeconfig, None, Some(&cluster.values()), keep);
    println!("\n!! A REHEARSAL: this was no Kubernetes. It says nothing about");
    for what in NOT_REHEARSED {
        println!("!!   - {what}");
    }
    if keep {
        println!(
            "kept until a line is entered: KUBECONFIG={}",
            kubeconfig.display()
        );
        let _ = std::io::stdin().read_line(&mut String::new());
    }
    if outcome.is_err() {
        println!(
            "what the containers wrote is kept in {}",
            cluster.keep_files().display()
        );
    }
    outcome
}

/// weft as it is built for tests, with the libraries that it is linked to. What is released is static.
fn weft_image(dir: &Path) -> Result<PathBuf> {
    let (built, stripped) = (shell::target_dir().join("debug/weft"), dir.join("weft"));
    let mut strip = Command::new("strip");
    shell::run(strip.arg("--strip-debug").arg("-o").arg(&stripped).arg(&built))?;
    let mut files = vec![("usr/bin/weft".to_owned(), fs::read(&stripped)?)];
    for library in libraries(&built)? {
        let content = fs::read(&library).with_context(|| format!("read {library}"))?;
        files.push((library.trim_start_matches('/').to_owned(), content));
    }
    let tag = format!("weft:{}", env!("CARGO_PKG_VERSION"));
    write(&dir.join("weft.tar"), &tag, &files)
}

/// The files of the libraries that a program is linked to, and of its loader.
fn libraries(program: &Path) -> Result<BTreeSet<String>> {
    let program = program.display().to_string();
    let said =
        shell::ask("ldd", &[program.as_str()]).with_context(|| format!("cannot ask ldd about {program}"))?;
    let words = said.lines().flat_map(str::split_whitespace);
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect())
}

fn pause_image(dir: &Path) -> Result<PathBuf> {
    let (source, program) = (dir.join("pause.c"), dir.join("pause"));
    fs::write(&source, PAUSE)?;
    let mut cc = Command::new("cc");
    shell::run(cc.args(["-static", "-O1", "-o"]).arg(&program).arg(&source))?;
    // Images of ours begin with the program of this name.
    let files = [("usr/bin/weft".to_owned(), fs::read(&program)?)];
    write(&dir.join("pause.tar"), "weft-pause:1", &files)
}

fn write(output: &Path, tag: &str, files: &[(String, Vec<u8>)]) -> Result<PathBuf> {
    let entries: Vec<_> = files
        .iter()
        .map(|(path, content)| (path.as_str(), 0o755, content.as_slice()))
        .collect();
    let made = image::archive::Image {
        name: &image::full_name(tag),
        user: image::archive::NOBODY,
        files: &entries,
        labels: &[],
        created: 0,
    };
    image::archive::write(output, &made)?;
    Ok(output.to_owned())
}
