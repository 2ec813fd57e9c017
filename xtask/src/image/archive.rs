//! The archive: an OCI image layout (image-spec 1.1, "Image Layout") with the one file more that `docker load` reads. One
//! layer, not compressed, so that the same input gives the same bytes with any version of anything.

use std::{fmt, fs::File, io::Write as _, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// Who runs it where nothing else is said: nobody. The chart runs agents as root, with four capabilities.
pub(crate) const NOBODY: &str = "65532:65532";

/// A file of the image: its path without a slash before it, its mode, and what is in it.
pub(crate) type Entry<'a> = (&'a str, u32, &'a [u8]);

/// What an image is made of.
#[derive(Clone, Copy)]
pub(crate) struct Image<'a> {
    /// With registry and tag.
    pub(crate) name: &'a str,
    /// Who runs it, by numbers: there is no /etc/passwd in it.
    pub(crate) user: &'a str,
    pub(crate) files: &'a [Entry<'a>],
    pub(crate) labels: &'a [(&'a str, String)],
    /// What all times are, in seconds since 1970.
    pub(crate) created: u64,
}

/// The digest of an image's manifest, by which registries and runtimes know it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ImageDigest(String);

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

/// Writes an image to `output`.
pub(crate) fn write(output: &Path, image: &Image<'_>) -> Result<ImageDigest> {
    let Image { name, created, .. } = *image;
    let layer = layer(image.files, created)?;
    let config = config(&sha256(&layer), image).to_string();
    let manifest = manifest(&config, &layer).to_string();
    let digest = sha256(manifest.as_bytes());
    let index = index(name, &digest, manifest.len()).to_string();
    let docker = json!([{
        "Config": blob(&sha256(config.as_bytes())),
        "RepoTags": [name.trim_start_matches("docker.io/library/")],
        "Layers": [blob(&sha256(&layer))],
    }])
    .to_string();
    let file = File::create(output).with_context(|| format!("write {}", output.display()))?;
    let mut archive = Builder::new(file);
    folder(&mut archive, "blobs/", created)?;
    folder(&mut archive, "blobs/sha256/", created)?;
    for content in [config.as_bytes(), manifest.as_bytes(), &layer] {
        entry(&mut archive, &blob(&sha256(content)), 0o644, content, created)?;
    }
    entry(&mut archive, "index.json", 0o644, index.as_bytes(), created)?;
    entry(&mut archive, "manifest.json", 0o644, docker.as_bytes(), created)?;
    entry(
        &mut archive,
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        created,
    )?;
    archive.into_inner()?.flush()?;
    Ok(ImageDigest(digest))
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{digest}")
}

fn layer(files: &[Entry<'_>], created: u64) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    let mut made = Vec::new();
    for (path, mode, content) in files {
        for (end, _) in path.match_indices('/') {
            let parent = &path[..=end];
            if !made.contains(&parent) {
                folder(&mut layer, parent, created)?;
                made.push(parent);
            }
        }
        entry(&mut layer, path, *mode, content, created)?;
    }
    Ok(layer.into_inner()?)
}

fn folder<W: std::io::Write>(archive: &mut Builder<W>, path: &str, created: u64) -> Result<()> {
    let mut header = header(0o755, 0, created);
    header.set_entry_type(EntryType::Directory);
    Ok(archive.append_data(&mut header, path, std::io::empty())?)
}

fn entry<W: std::io::Write>(
    archive: &mut Builder<W>,
    path: &str,
    mode: u32,
    content: &[u8],
    created: u64,
) -> Result<()> {
    Ok(archive.append_data(&mut header(mode, content.len() as u64, created), path, content)?)
}

/// Everything is root's.
fn header(mode: u32, size: u64, created: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(created);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn config(layer: &str, image: &Image<'_>) -> Value {
    let created = timestamp(image.created);
    let labels: serde_json::Map<_, _> = image
        .labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": created,
        "config": {
            "User": image.user,
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["/usr/bin/weft"],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": created, "created_by": "cargo xtask image"}],
    })
}

fn manifest(config: &str, layer: &[u8]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", sha256(config.as_bytes())),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{}", sha256(layer)),
            "size": layer.len(),
        }],
    })
}

fn index(name: &str, digest: &str, size: usize) -> Value {
    let tag = name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{digest}"),
            "size": size,
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {
                "io.containerd.image.name": name,
                "org.opencontainers.image.ref.name": tag,
            },
        }],
    })
}

/// Seconds since 1970 as RFC 3339 has them.
pub(super) fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days: eras of 400 years that begin on 1 March (H. Hinnant, "chrono-compatible low-level date algorithms").
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_623_599, "2026-11-25T16:19:59Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(seconds), date);
        }
    }

    #[test]
    fn the_same_input_makes_the_same_archive_and_every_digest_is_right() {
        let dir = std::env::temp_dir().join(format!("weft-{}-image", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let files = [
            ("usr/bin/weft", 0o755, b"program".as_slice()),
            ("usr/share/x", 0o644, b"text".as_slice()),
        ];
        let labels = [("org.opencontainers.image.title", "weft".to_owned())];
        let written = |file: &str, files: &[Entry<'_>]| {
            let path = dir.join(file);
            let name = "docker.io/library/weft:1";
            let image = Image {
                name,
                user: NOBODY,
                files,
                labels: &labels,
                created: 1_000,
            };
            let digest = write(&path, &image).unwrap();
            (digest, std::fs::read(path).unwrap())
        };
        let (digest, first) = written("a", &files);
        assert!(written("b", &files) == (digest, first.clone()));
        assert!(written("c", &files[..1]).1 != first);
        let mut seen = Vec::new();
        for entry in tar::Archive::new(first.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = Vec::new();
            std::io::copy(&mut entry, &mut content).unwrap();
            if let Some(digest) = path
                .strip_prefix("blobs/sha256/")
                .filter(|digest| !digest.is_empty())
            {
                assert_eq!(sha256(&content), digest);
            }
            seen.push((path, content));
        }
        std::fs::remove_dir_all(&dir).unwrap();
        let find = |name: &str| &seen.iter().find(|(path, _)| path == name).unwrap().1;
        let docker: Value = serde_json::from_slice(find("manifest.json")).unwrap();
        assert_eq!(docker[0]["RepoTags"][0], "weft:1");
        let config: Value = serde_json::from_slice(find(docker[0]["Config"].as_str().unwrap())).unwrap();
        let layer = docker[0]["Layers"][0].as_str().unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", &layer["blobs/sha256/".len()..])
        );
        assert_eq!(config["config"]["User"], "65532:65532");
        let mut layer = tar::Archive::new(find(layer).as_slice());
        let paths: Vec<_> = layer
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(
            paths,
            ["usr/", "usr/bin/", "usr/bin/weft", "usr/share/", "usr/share/x"]
        );
    }
}
