//! `test kube --kubeconfig FILE`: the end-to-end suite (tests/tests/kube_e2e) on a real cluster. This only finds Helm, passes on
//! what was asked for, and lets cargo run it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{image, setup, shell};

/// What was asked for.
pub(crate) struct Options {
    pub(crate) filter: Option<String>,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) image: Option<String>,
    /// Whether it is built and pushed first.
    pub(crate) push: bool,
    /// Values of the chart, as JSON.
    pub(crate) values: Option<String>,
    pub(crate) keep: bool,
    pub(crate) install: bool,
}

/// Runs the suite.
///
/// # Errors
/// It failed, and has said where, or it cannot be run.
pub(crate) fn run(options: &Options) -> Result<()> {
    let filter = options.filter.as_deref();
    ensure!(
        filter == Some("kube"),
        "--kubeconfig is for `cargo xtask test kube --kubeconfig FILE`, which runs as a whole"
    );
    setup::helm(options.install)?;
    if let Some(name) = options.image.as_deref().filter(|_| options.push) {
        image::publish(name, options.install)?;
    }
    // The suite runs in another folder.
    let kubeconfig = options.kubeconfig.canonicalize();
    let kubeconfig = kubeconfig.with_context(|| format!("find {}", options.kubeconfig.display()))?;
    suite(
        &kubeconfig,
        options.image.as_deref(),
        options.values.as_deref(),
        options.keep,
    )
}

/// Runs the suite on the cluster of this kubeconfig.
///
/// # Errors
/// It failed, and has said where, or it cannot be run.
pub(super) fn suite(kubeconfig: &Path, image: Option<&str>, values: Option<&str>, keep: bool) -> Result<()> {
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--workspace", "--test", "kube_e2e", "--"])
        .args(["--ignored", "--nocapture", "the_mesh_on_a_real_cluster"])
        .env("WEFT_E2E_KUBECONFIG", kubeconfig)
        .env("WEFT_E2E_HELM", setup::helm_dir());
    if let Some(image) = image {
        cargo.env("WEFT_E2E_IMAGE", image);
    }
    if let Some(values) = values {
        cargo.env("WEFT_E2E_VALUES", values);
    }
    if keep {
        cargo.env("WEFT_E2E_KEEP", "1");
    }
    shell::run(&mut cargo)
}
