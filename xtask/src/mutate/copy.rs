//! The copy that mutations break: sources mirrored so that only what changed looks changed, and a target directory that
//! starts with the libraries already built.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// What is not source.
const NOT_SOURCE: [&str; 2] = ["target", ".git"];

/// Makes `to` equal to `from`. A file that is equal already is left alone, and with it its time, by which cargo decides
/// what to build again.
///
/// # Errors
/// A file cannot be read or written.
pub(super) fn mirror(from: &Path, to: &Path) -> Result<()> {
    let wanted = files(from, &NOT_SOURCE)?;
    for path in &wanted {
        let text = fs::read(from.join(path)).with_context(|| format!("cannot read {}", path.display()))?;
        let copy = to.join(path);
        if !fs::read(&copy).is_ok_and(|there| there == text) {
            fs::create_dir_all(copy.parent().unwrap_or(to))?;
            fs::write(&copy, text).with_context(|| format!("cannot write {}", copy.display()))?;
        }
    }
    let there = if to.exists() {
        files(to, &[])?
    } else {
        BTreeSet::new()
    };
    for gone in there.difference(&wanted) {
        fs::remove_file(to.join(gone)).with_context(|| format!("cannot remove {}", gone.display()))?;
    }
    Ok(())
}

/// Every file below, relative.
fn files(root: &Path, skip: &[&str]) -> Result<BTreeSet<PathBuf>> {
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            if skip.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                open.push(path);
            } else if let Ok(path) = path.strip_prefix(root) {
                found.insert(path.to_owned());
            }
        }
    }
    Ok(found)
}

/// The start of a name that a crate of the workspace gives to what is built from it.
const OURS: [&str; 6] = ["weft", "libweft", "xtask", "libxtask", "agent", "libagent"];
/// What of the built libraries is of use; programs and notes for make are not.
const LIBRARIES: [&str; 3] = ["rlib", "rmeta", "so"];

/// Gives a new target directory the libraries of another: what cargo built from the registry, which it never writes to
/// again, is linked; cargo's own records, which it does write to, are copied with their times; nothing of ours is taken.
///
/// # Errors
/// A file cannot be linked or copied.
pub(super) fn seed(from: &Path, to: &Path) -> Result<()> {
    if to.exists() || !from.exists() {
        return Ok(());
    }
    println!("+ the libraries that are built already are taken over");
    // Made whole under another name first: an interrupted start must not look like a finished one.
    let unfinished = to.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    for (part, keep) in [("deps", LIBRARY), ("build", SCRIPT), (".fingerprint", RECORD)] {
        let from = from.join(part);
        take(&from, &unfinished.join(part), keep)
            .with_context(|| format!("cannot take over {}", from.display()))?;
    }
    Ok(fs::rename(&unfinished, to)?)
}

/// How a file is taken over.
#[derive(Clone, Copy)]
enum Take {
    /// Never written again: the same file under a second name.
    Link,
    /// With its time, by which cargo judges.
    Copy,
    Leave,
}

/// A file of `deps`.
const LIBRARY: fn(&Path) -> Take = |path| {
    let library = path
        .extension()
        .is_some_and(|kind| LIBRARIES.iter().any(|name| kind == *name));
    if library { Take::Link } else { Take::Leave }
};

/// A file of `build`: beside a script and its `out`, cargo keeps what the script printed.
const SCRIPT: fn(&Path) -> Take = |path| {
    let written = ["output", "stderr", "root-output", "invoked.timestamp"]
        .iter()
        .any(|name| path.ends_with(name));
    if written { Take::Copy } else { Take::Link }
};

/// A file of `.fingerprint`.
const RECORD: fn(&Path) -> Take = |_| Take::Copy;

fn take(from: &Path, to: &Path, how: fn(&Path) -> Take) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if OURS
            .iter()
            .any(|name| entry.file_name().to_string_lossy().starts_with(name))
        {
            continue;
        }
        if entry.file_type()?.is_dir() {
            take(&path, &copy, how)?;
            continue;
        }
        match how(&path) {
            Take::Link => fs::hard_link(&path, &copy)?,
            Take::Copy => copy_with_time(&path, &copy)?,
            Take::Leave => {}
        }
    }
    Ok(())
}

fn copy_with_time(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    let modified = fs::metadata(from)?.modified()?;
    fs::File::options().write(true).open(to)?.set_modified(modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_writes_only_what_changed() {
        let dir = std::env::temp_dir().join(format!("xtask-mirror-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("a/target")).unwrap();
        for (name, text) in [("a/x", "1"), ("y", "2"), ("a/target/z", "3")] {
            fs::write(from.join(name), text).unwrap();
        }
        mirror(&from, &to).unwrap();
        let time = |name: &str| fs::metadata(to.join(name)).unwrap().modified().unwrap();
        let before = (time("a/x"), time("y"));
        assert!(!to.join("a/target").exists());

        fs::write(from.join("y"), "other").unwrap();
        fs::write(to.join("stray"), "").unwrap();
        mirror(&from, &to).unwrap();
        assert_eq!(time("a/x"), before.0, "an equal file was written");
        assert_eq!(fs::read_to_string(to.join("y")).unwrap(), "other");
        assert!(!to.join("stray").exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
