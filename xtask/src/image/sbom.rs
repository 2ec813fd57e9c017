//! The image's bill of materials, as CycloneDX 1.6 JSON: every crate that is linked in, of the agent and of its eBPF programs,
//! with version, licence and checksum, and the C library. From `cargo metadata` and the lock files, so that it says what was
//! built and not what was meant.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{TARGET, archive};
use crate::shell;

/// A crate that is linked in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
    licence: Option<String>,
    /// Of the archive that the registry has; none for the project's own.
    checksum: Option<String>,
}

/// The document for an image with this program.
///
/// # Errors
/// cargo cannot say what is in it.
pub(super) fn of_the_image(program: &[u8], created: u64) -> Result<String> {
    let mut crates = BTreeSet::new();
    for (manifest, target, package) in [
        ("Cargo.toml", Some(TARGET), "weft"),
        ("agent-ebpf/Cargo.toml", None, "agent-ebpf"),
    ] {
        let manifest = shell::root().join(manifest);
        let lock = fs::read_to_string(manifest.with_file_name("Cargo.lock"))?;
        let mut cargo = shell::cargo();
        cargo
            .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
            .arg(&manifest);
        if let Some(target) = target {
            cargo.args(["--filter-platform", target]);
        }
        let output = cargo.output().context("cannot run cargo metadata")?;
        let metadata: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)))?;
        crates.extend(
            linked(&metadata, package, &checksums(&lock))
                .with_context(|| format!("the crates of {package}"))?,
        );
    }
    let glibc = shell::ask("ldd", &["--version"]);
    let glibc = glibc
        .as_deref()
        .and_then(|text| text.lines().next()?.rsplit(' ').next());
    let digest: String = Sha256::digest(program)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let document = document(&crates, glibc, &digest, created);
    Ok(format!("{}\n", serde_json::to_string_pretty(&document)?))
}

/// The crates that the package's program is linked from: its dependencies and theirs, but those of builds and tests, and no
/// macros.
fn linked(
    metadata: &Value,
    package: &str,
    checksums: &BTreeMap<(String, String), String>,
) -> Option<BTreeSet<Crate>> {
    let packages: BTreeMap<_, _> = metadata["packages"]
        .as_array()?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: BTreeMap<_, _> = metadata["resolve"]["nodes"]
        .as_array()?
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let (root, _) = packages.iter().find(|(_, found)| found["name"] == package)?;
    let mut waiting = vec![*root];
    let mut seen = BTreeSet::new();
    let mut crates = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        let Some(found) = packages.get(id).filter(|found| !is_macro(found)) else {
            continue;
        };
        if !seen.insert(id) {
            continue;
        }
        let (name, version) = (
            found["name"].as_str()?.to_owned(),
            found["version"].as_str()?.to_owned(),
        );
        let checksum = checksums.get(&(name.clone(), version.clone())).cloned();
        let licence = found["license"].as_str().map(str::to_owned);
        crates.insert(Crate {
            name,
            version,
            licence,
            checksum,
        });
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        let normal = dependencies
            .into_iter()
            .flatten()
            .filter(|dependency| is_linked(dependency));
        waiting.extend(normal.filter_map(|dependency| dependency["pkg"].as_str()));
    }
    Some(crates)
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array().into_iter().flatten();
    targets.into_iter().any(|target| {
        target["kind"]
            .as_array()
            .is_some_and(|kinds| kinds.contains(&json!("proc-macro")))
    })
}

/// Whether a dependency is neither of tests nor of the build alone; those have the kind null.
fn is_linked(dependency: &Value) -> bool {
    dependency["dep_kinds"]
        .as_array()
        .is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
}

/// The checksums of a lock file, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value = |key: &str| {
            let mut lines = package.lines();
            lines.find_map(|line| {
                Some(
                    line.strip_prefix(key)?
                        .strip_prefix(" = \"")?
                        .strip_suffix('"')?
                        .to_owned(),
                )
            })
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (value("name"), value("version"), value("checksum"))
        {
            found.insert((name, version), checksum);
        }
    }
    found
}

fn document(crates: &BTreeSet<Crate>, glibc: Option<&str>, digest: &str, created: u64) -> Value {
    let version = env!("CARGO_PKG_VERSION");
    let mut components: Vec<_> = crates
        .iter()
        .filter(|part| part.name != "weft")
        .map(component)
        .collect();
    components.push(json!({
        "type": "library", "bom-ref": "glibc", "name": "glibc", "version": glibc.unwrap_or("unknown"),
        "licenses": [{"license": {"id": "LGPL-2.1-or-later"}}],
    }));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": archive::timestamp(created),
            "tools": {"components": [{"type": "application", "name": "cargo xtask image", "version": version}]},
            "component": {
                "type": "application", "bom-ref": "weft", "name": "weft", "version": version,
                "purl": format!("pkg:cargo/weft@{version}"),
                "licenses": [{"expression": "Apache-2.0"}],
                "hashes": [{"alg": "SHA-256", "content": digest}],
            },
        },
        "components": components,
    })
}

fn component(part: &Crate) -> Value {
    let Crate {
        name,
        version,
        licence,
        checksum,
    } = part;
    let purl = format!("pkg:cargo/{name}@{version}");
    let mut component =
        json!({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl});
    if let Some(licence) = licence {
        // Some write MIT/Apache-2.0, which was valid once.
        component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
    }
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_nothing_else() {
        let package = |name: &str, kind: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "targets": [{"kind": [kind]}]});
        let uses = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("weft", "bin"), package("linked", "lib"), package("deep", "lib"), package("derive", "proc-macro"), package("tested", "lib"), package("other", "lib")],
            "resolve": {"nodes": [
                {"id": "weft", "deps": [uses("linked", Value::Null), uses("derive", Value::Null), uses("tested", json!("dev"))]},
                {"id": "linked", "deps": [uses("deep", Value::Null), uses("weft", json!("build"))]},
                {"id": "derive", "deps": [uses("other", Value::Null)]},
            ]},
        });
        let lock = "[[package]]\nname = \"linked\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n";
        let crates = linked(&metadata, "weft", &checksums(lock)).unwrap();
        let names: Vec<_> = crates.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["deep", "linked", "weft"]);
        let document = document(&crates, Some("2.36"), "d", 0);
        assert_eq!(document["components"][1]["hashes"][0]["content"], "abc");
        assert_eq!(
            document["components"][1]["licenses"][0]["expression"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(document["components"][2]["name"], "glibc");
    }
}
