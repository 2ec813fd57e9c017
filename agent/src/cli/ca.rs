//! `weft ca`: the root certificate of a mesh without a cluster.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
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
    let (cert, key) = LocalCa::create(trust_domain)?;
    fs::create_dir_all(out).with_context(|| format!("make the folder {}", out.display()))?;
    let (cert_path, key_path) = (out.join("root.pem"), out.join("root-key.pem"));
    write_new(&key_path, &key, 0o600)?;
    write_new(&cert_path, &cert, 0o644)?;
    println!("root certificate of {trust_domain}: {}", cert_path.display());
    println!("its private key (keep it secret): {}", key_path.display());
    Ok(ExitCode::SUCCESS)
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}; remove it first if it is there", path.display()))
}
