//! Every seed of every fuzz target, and every input that once broke one, without the fuzzer.

#[path = "../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "the fuzzer's library shows them to its programs")]
mod targets;

use std::{fs, panic, path::Path};

#[test]
fn every_seed_is_read_or_refused_and_nothing_panics() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut broken = Vec::new();
    for (name, target) in targets::ALL {
        let mut count = 0;
        let files = fs::read_dir(seeds.join(name)).unwrap_or_else(|err| panic!("seeds of {name}: {err}"));
        for file in files {
            let path = file.expect("an entry").path();
            let seed = fs::read(&path).expect("a seed");
            count += 1;
            if panic::catch_unwind(|| target(&seed)).is_err() {
                broken.push(path);
            }
        }
        assert!(count >= 5, "{name} has {count} seeds");
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_has_a_program_for_the_fuzzer() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("the fuzzer's manifest");
    for (name, _) in targets::ALL {
        assert!(dir.join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}
