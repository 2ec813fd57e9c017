//! A stand-in API server as a program of its own, for clients that are no Rust: Helm, kubectl. It writes a kubeconfig to
//! the file that it is told, and runs until its standard input ends.

use std::io::Read;

use anyhow::{Context, Result};
use weft_tests::kube::{Options, StandIn};

fn main() -> Result<()> {
    let file = std::env::args()
        .nth(1)
        .context("usage: weft-kube KUBECONFIG [MANIFEST...]")?;
    let cluster = StandIn::start_with(Options {
        tls: true,
        workloads_ready: true,
        ..Options::default()
    })?;
    cluster.install_crds()?;
    for manifest in std::env::args().skip(2) {
        let text = std::fs::read_to_string(&manifest).with_context(|| format!("read {manifest}"))?;
        cluster.apply_yaml(&text)?;
    }
    std::fs::write(&file, cluster.kubeconfig()).with_context(|| format!("write {file}"))?;
    println!("{}", cluster.url());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
