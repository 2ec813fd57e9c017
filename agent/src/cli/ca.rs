//! `weft ca`: the root certificate of a mesh without a cluster.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use crate::{mesh::TrustDomain, svid::LocalCa};

/// Flags of `weft ca`.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CaCommand,
}

/// What `weft ca` can do.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Write a new root certificate (root.pem) and its private key (root-key.pem, mode 0600)
    New {
        /// The folder to write to; made if it is not there. Files that are there are never overwritten
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// The mesh's trust domain
        #[arg(long, default_value = "cluster.local")]
        trust_domain: TrustDomain,
    },
}

/// Runs `weft ca`.
///
/// # Errors
/// When a file is there already or cannot be written.
pub fn run(args: &CaArgs) -> anyhow::Result<ExitCode> {
    let CaCommand::New { out, trust_domain } = &args.command;
    let (cert_path, key_path) = write(out, trust_domain)?;
    println!("root certificate of {trust_domain}: {}", cert_path.display());
    println!("its private key (keep it secret): {}", key_path.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes both files or none: half a CA would only be in the way of the next try.
fn write(out: &Path, trust_domain: &TrustDomain) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (cert_path, key_path) = (out.join("root.pem"), out.join("root-key.pem"));
    for path in [&cert_path, &key_path] {
        // Of the link itself: one that leads nowhere is in the way as well.
        if fs::symlink_metadata(path).is_ok() {
            bail!(
                "{} is there already: remove it first, or choose another folder",
                path.display()
            );
        }
    }
    let (cert, key) = LocalCa::create(trust_domain)?;
    fs::create_dir_all(out).with_context(|| format!("make the folder {}", out.display()))?;
    write_new(&key_path, &key)?;
    write_new(&cert_path, &cert).inspect_err(|_| remove(&key_path))?;
    Ok((cert_path, key_path))
}

/// What may read and write them: their owner.
const MODE: u32 = 0o600;

/// Writes a file that was not there. The mode is set again because the umask takes from what `open` is given.
fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let context = || format!("write {}", path.display());
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(MODE).open(path);
    let mut file = file.with_context(context)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.set_permissions(Permissions::from_mode(MODE)))
        .inspect_err(|_| remove(path))
        .with_context(context)
}

/// Takes back what was just written. The error that made it necessary is the one to tell.
fn remove(path: &Path) {
    drop(fs::remove_file(path));
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// A folder of this test's own, and what `write` made of it.
    fn check(test: &str, before: &[&str], expect: Result<&[(&str, u32)], &str>) {
        let dir = std::env::temp_dir().join(format!("weft-ca-new-{test}-{}", std::process::id()));
        let out = dir.join("ca");
        fs::create_dir_all(&out).expect("a folder");
        for name in before {
            fs::write(out.join(name), "mine").expect("a file");
        }
        let trust_domain = "cluster.local".parse().expect("a trust domain");
        let written = write(&out, &trust_domain).map_err(|error| format!("{error:#}"));
        let found = modes(&out);
        let kept = before
            .iter()
            .all(|name| fs::read(out.join(name)).is_ok_and(|text| text == b"mine"));
        let loads = LocalCa::load(&out.join("root.pem"), &out.join("root-key.pem")).is_ok();
        fs::remove_dir_all(&dir).expect("the folder goes");
        match expect {
            Ok(files) => {
                assert!(written.is_ok(), "{written:?}");
                let files: Vec<_> = files
                    .iter()
                    .map(|(name, mode)| ((*name).to_owned(), *mode))
                    .collect();
                assert_eq!(found, files);
                assert!(loads, "the two belong together");
            }
            Err(part) => {
                let error = written.expect_err("refused");
                assert!(error.contains(part), "{error}");
                let names: Vec<_> = found.iter().map(|(name, _)| name.as_str()).collect();
                assert_eq!(names, before, "nothing new is left behind");
                assert!(kept, "what was there is as it was");
            }
        }
    }

    fn modes(dir: &Path) -> Vec<(String, u32)> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.expect("an entry");
            let mode = entry.metadata().expect("a mode").permissions().mode();
            (entry.file_name().to_string_lossy().into_owned(), mode & 0o777)
        };
        let mut found: Vec<_> = fs::read_dir(dir).expect("a folder").map(entry).collect();
        found.sort();
        found
    }

    #[test]
    fn both_files_are_written() {
        let files = [("root-key.pem", 0o600), ("root.pem", 0o600)];
        check("both", &[], Ok(&files));
    }

    #[test]
    fn nothing_is_written_where_either_is() {
        check(
            "cert",
            &["root.pem"],
            Err("root.pem is there already: remove it first"),
        );
        check(
            "key",
            &["root-key.pem"],
            Err("root-key.pem is there already: remove it first"),
        );
    }
}
