//! The manifests, each with what it means.

use std::path::{Path, PathBuf};

use super::{show::show, *};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/controller/compile/manifests")
}

fn manifests() -> Vec<PathBuf> {
    let folders = [folder(), folder().join("seeds")];
    let files = folders
        .iter()
        .flat_map(|it| std::fs::read_dir(it).expect("the manifests"));
    let paths = files.map(|file| file.expect("a file").path());
    let mut manifests: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|it| it == "yaml"))
        .collect();
    manifests.sort();
    manifests
}

/// What a file means by itself; and, of those that people have already, in a mesh that has what they name.
fn meaning(manifest: &Path) -> String {
    let text = std::fs::read_to_string(manifest).unwrap();
    let alone = show(&compiled(&text));
    if manifest.parent() != Some(&folder().join("seeds")) {
        return alone;
    }
    let world = std::fs::read_to_string(folder().join("seeds/world/world.yaml")).unwrap();
    let within = compile(
        &Resources::new(objects(&world).into_iter().chain(objects(&text))),
        &settings(),
    );
    // What the world means by itself is no news.
    let before = show(&compiled(&world));
    let within = show(&within);
    let news = within
        .lines()
        .filter(|line| !before.lines().any(|it| it == *line));
    let news: String = news.map(|line| format!("{line}\n")).collect();
    format!("{alone}in a mesh\n{news}")
}

#[test]
fn manifests_mean_what_is_written_beside_them() {
    let manifests = manifests();
    assert!(manifests.len() > 8, "{manifests:?}");
    for manifest in manifests {
        let expect = std::fs::read_to_string(manifest.with_extension("mesh")).unwrap_or_default();
        let shown = meaning(&manifest);
        let differs = shown.lines().zip(expect.lines()).find(|(a, b)| a != b);
        assert!(
            shown == expect,
            "{}: the first line that differs (now, before): {differs:?}\n\n{shown}",
            manifest.display()
        );
    }
}

/// `cargo test -p weft --lib write_what_manifests_mean -- --ignored`, and then read what it wrote.
#[test]
#[ignore = "writes the files that the test above reads"]
fn write_what_manifests_mean() {
    for manifest in manifests() {
        std::fs::write(manifest.with_extension("mesh"), meaning(&manifest)).unwrap();
    }
}

#[test]
fn a_waypoints_own_service_is_known_by_its_name_where_it_has_no_label() {
    for (file, name) in [("waypoints", "waypoint"), ("request-authentications", "own")] {
        let path = folder().join(file).with_extension("yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let label = format!(", labels: {{gateway.networking.k8s.io/gateway-name: {name}}}}}");
        let without = text.replace(&label, "}");
        assert!(text != without, "{file} has no such label");
        assert_eq!(show(&compiled(&without)), show(&compiled(&text)), "{file}");
    }
}
