//! Starts the image as containers, with containerd and runc. What must hold: there are three files in it and no more; it prints
//! its version, as nobody; the roles that nobody has set up end with an error that says what is missing; and two of its agents
//! carry what two pods say (`agents.rs`). Every container has a root that is read-only.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use super::{agents, archive, runtime::Runtime};
use crate::{preflight, test::step};

/// Imports the archive of an image and starts it.
///
/// # Errors
/// A container does not behave as it should, or there is no runtime.
pub(super) fn check(archive: &Path, image: &archive::Image<'_>) -> Result<()> {
    step("the image as containers");
    preflight::run()?;
    let runtime = Runtime::start()?;
    runtime.import(archive)?;
    let found = files(&runtime, image.name)?;
    let mut expected: Vec<_> = image.files.iter().map(|(path, ..)| (*path).to_owned()).collect();
    expected.sort();
    ensure!(
        found == expected,
        "the image has the files {found:?}, and should have {expected:?}"
    );
    println!("✓ its files: {}", found.join(", "));
    for case in cases() {
        let options: Vec<_> = case.options.iter().map(|&it| it.to_owned()).collect();
        let args: Vec<_> = case.args.iter().map(|&it| it.to_owned()).collect();
        let said = runtime
            .run(image.name, &options, &args)
            .with_context(|| case.title)?;
        ensure!(
            said.code == case.code && case.says.iter().all(|text| said.text.contains(text)),
            "{}: it ended with {:?} and said {:?}; expected {:?} and {:?}",
            case.title,
            said.code,
            said.text,
            case.code,
            case.says
        );
        println!("✓ {}", case.title);
    }
    agents::check(&runtime, image)
}

/// The files that a container of the image finds, in order.
fn files(runtime: &Runtime, image: &str) -> Result<Vec<String>> {
    let root = runtime.file("files");
    fs::create_dir(&root)?;
    let at = root.display().to_string();
    runtime.ctr(&["images", "mount", "--snapshotter", "native", image, &at])?;
    let found = walk(&root, &root);
    runtime.ctr(&["images", "unmount", "--snapshotter", "native", "--rm", &at])?;
    let mut found = found?;
    found.sort();
    Ok(found)
}

fn walk(root: &Path, folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            found.extend(walk(root, &path)?);
        } else {
            found.push(path.strip_prefix(root)?.display().to_string());
        }
    }
    Ok(found)
}

/// One container.
struct Case {
    title: &'static str,
    /// Arguments of `ctr run` before the image.
    options: &'static [&'static str],
    args: &'static [&'static str],
    code: Option<i32>,
    says: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    vec![
        Case {
            title: "it prints its version, as nobody",
            options: &[],
            args: &["--version"],
            code: Some(0),
            says: &["weft ", env!("CARGO_PKG_VERSION")],
        },
        Case {
            title: "the controller says that it is in no cluster",
            options: &[],
            args: &["controller"],
            code: Some(1),
            says: &["weft: no cluster is known", "--kubeconfig"],
        },
        Case {
            title: "the waypoint says what it must be told",
            options: &[],
            args: &["waypoint"],
            code: Some(2),
            says: &["--gateway", "--address", "--mesh-file", "try '--help'"],
        },
        Case {
            title: "the waypoint's help is there",
            options: &[],
            args: &["waypoint", "--help"],
            code: Some(0),
            says: &["Usage: weft waypoint"],
        },
        Case {
            title: "release has nothing to do, under the runtime's usual seccomp profile",
            options: &["--seccomp"],
            args: &["release", "--pin-dir", "/sys/fs/bpf/weft-nobody"],
            code: Some(0),
            says: &["nothing to release"],
        },
    ]
}
