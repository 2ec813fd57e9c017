//! What `cargo xtask test kube` was asked for; it comes by the environment, since test programs take no arguments of ours.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What the suite is told.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) image: Image,
    /// Values of the chart that this cluster needs.
    pub(crate) values: Value,
    /// Leave everything as it is at the end.
    pub(crate) keep: bool,
    /// Where Helm's library for Python is.
    pub(crate) helm: PathBuf,
    /// The chart.
    pub(crate) chart: PathBuf,
}

/// An image's reference, taken apart as the chart wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) repository: String,
    pub(crate) tag: String,
    pub(crate) digest: String,
}

impl Options {
    pub(crate) fn from_environment() -> Result<Self> {
        let path = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).with_context(|| {
                format!("{name} is not set: run it by `cargo xtask test kube --kubeconfig FILE`")
            })
        };
        let image = std::env::var("WEFT_E2E_IMAGE").unwrap_or_default();
        let ours = format!("weft:{}", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            kubeconfig: path("WEFT_E2E_KUBECONFIG")?,
            image: Image::parse(if image.is_empty() { &ours } else { &image }),
            values: match std::env::var("WEFT_E2E_VALUES") {
                Ok(values) => serde_json::from_str(&values).context("read the chart's values")?,
                Err(_) => json!({}),
            },
            keep: std::env::var_os("WEFT_E2E_KEEP").is_some(),
            helm: path("WEFT_E2E_HELM")?,
            chart: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart"),
        })
    }
}

impl Image {
    fn parse(reference: &str) -> Self {
        let (name, digest) = reference.split_once('@').unwrap_or((reference, ""));
        // A colon before the last slash is a registry's port.
        let start = name.rfind('/').map_or(0, |at| at + 1);
        let (repository, tag) = match name[start..].split_once(':') {
            Some((last, tag)) => (format!("{}{last}", &name[..start]), tag),
            None => (name.to_owned(), ""),
        };
        let tag = if tag.is_empty() && digest.is_empty() {
            "latest"
        } else {
            tag
        };
        Self {
            repository,
            tag: tag.to_owned(),
            digest: digest.to_owned(),
        }
    }

    /// As a container names it.
    pub(crate) fn reference(&self) -> String {
        if self.digest.is_empty() {
            format!("{}:{}", self.repository, self.tag)
        } else {
            format!("{}@{}", self.repository, self.digest)
        }
    }
}

#[test]
fn references_are_taken_apart() {
    for (reference, repository, tag, digest, again) in [
        ("weft", "weft", "latest", "", "weft:latest"),
        ("weft:1", "weft", "1", "", "weft:1"),
        (
            "r.example:5000/mesh/weft",
            "r.example:5000/mesh/weft",
            "latest",
            "",
            "r.example:5000/mesh/weft:latest",
        ),
        (
            "r.example:5000/weft:1",
            "r.example:5000/weft",
            "1",
            "",
            "r.example:5000/weft:1",
        ),
        (
            "r.example/weft@sha256:ab",
            "r.example/weft",
            "",
            "sha256:ab",
            "r.example/weft@sha256:ab",
        ),
    ] {
        let image = Image::parse(reference);
        let parts = (
            image.repository.as_str(),
            image.tag.as_str(),
            image.digest.as_str(),
        );
        assert_eq!(parts, (repository, tag, digest));
        assert_eq!(image.reference(), again);
    }
}
