//! The image, to a registry, by skopeo: it knows registries' protocols, `docker login`'s credentials and
//! /etc/containers/registries.conf, which says which registries have no TLS.

use std::{path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{shell, test::step};

/// Whether an image can be pushed under this name.
///
/// # Errors
/// It names no registry, or what an image is to be before there is one.
pub(crate) fn check(name: &str) -> Result<()> {
    let (repository, digest) = name.split_once('@').unwrap_or((name, ""));
    ensure!(
        digest.is_empty(),
        "{name}: a digest is known once the image is there: push REGISTRY/REPOSITORY:TAG"
    );
    let registry = repository.split_once('/').map_or("", |(registry, _)| registry);
    ensure!(
        registry == "localhost" || registry.contains(['.', ':']),
        "{name}: names no registry to push to: write REGISTRY/REPOSITORY:TAG, as registry.example.com/weft:1"
    );
    Ok(())
}

/// Pushes an archive of one image.
///
/// # Errors
/// skopeo has failed, and said why.
pub(super) fn push(archive: &Path, name: &str) -> Result<()> {
    step(&format!("pushing {name}"));
    shell::run(Command::new("skopeo").args(arguments(archive, name)))
}

fn arguments(archive: &Path, name: &str) -> [String; 6] {
    [
        "copy".to_owned(),
        // It is our own image: no policy of this machine has to say that it may be read.
        "--insecure-policy".to_owned(),
        "--retry-times".to_owned(),
        "3".to_owned(),
        format!("docker-archive:{}", archive.display()),
        format!("docker://{name}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_of_a_registry_can_be_pushed_to() {
        for name in [
            "registry.example.com/weft:1",
            "localhost:5000/a/weft:1",
            "localhost/weft",
        ] {
            check(name).unwrap();
        }
        for (name, mend) in [
            ("weft:1", "names no registry"),
            ("library/weft:1", "names no registry"),
            ("registry.example.com/weft@sha256:00", "a digest is known once"),
        ] {
            let error = check(name).unwrap_err().to_string();
            assert!(error.contains(mend), "{error}");
        }
    }
}
