//! Files that no `mod` names: cargo does not compile them, so nobody notices when they rot.

use std::collections::BTreeSet;

use super::{
    Finding,
    source::{Source, closing},
};

/// Checks all files together.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut open: Vec<&Source> = sources.iter().filter(|source| is_root(&source.path)).collect();
    while let Some(source) = open.pop() {
        if !reached.insert(source.path.clone()) {
            continue;
        }
        let mut named = children(source);
        named.extend(by_path(source));
        open.extend(sources.iter().filter(|other| named.contains(&other.path)));
    }
    let dead = sources.iter().filter(|source| !reached.contains(&source.path));
    dead.map(|source| Finding {
        path: source.path.clone(),
        line: 1,
        what: "no `mod` names this file".into(),
        mend: "name it, or remove it".into(),
    })
    .collect()
}

/// Files that cargo takes as the root of a target: `build.rs`, `src/lib.rs`, `src/main.rs`, `src/bin/x.rs`, `tests/x.rs`;
/// and those of the packages that lie in another: the pure parts', the large cluster's and the fuzzer's.
fn is_root(path: &str) -> bool {
    let inside = |outer, inner: &str| {
        let path = path.strip_prefix(outer)?;
        path.starts_with(inner).then_some(path)
    };
    let nested = inside("agent/", "pure/").or_else(|| inside("bench/", "scale/"));
    let parts: Vec<_> = nested.unwrap_or(path).split('/').collect();
    let fuzz = matches!(
        parts.as_slice(),
        ["tests", "fuzz", "src", "lib.rs"] | ["tests", "fuzz", "fuzz_targets", _]
    );
    fuzz || matches!(
        parts.as_slice(),
        [_, "build.rs"] | [_, "src", "lib.rs" | "main.rs"]
    ) || matches!(
        parts.as_slice(),
        [_, "src", "bin", _] | [_, "src", "bin", _, "main.rs"]
    ) || matches!(parts.as_slice(), [_, "tests" | "benches" | "examples", _])
        || matches!(
            parts.as_slice(),
            [_, "tests" | "benches" | "examples", _, "main.rs"]
        )
}

/// Where the modules that a file declares with `mod x;` may be. An inline module around it is a directory.
fn children(source: &Source) -> Vec<String> {
    let dir = directory(&source.path);
    let tokens = &source.tokens;
    let modules = (0..tokens.len()).filter(|at| source.matches(*at, &["mod"]));
    let (mut inline, mut found): (Vec<(&str, usize)>, _) = (Vec::new(), Vec::new());
    for at in modules {
        inline.retain(|(_, end)| *end > at);
        let (Some(name), Some(next)) = (tokens.get(at + 1), tokens.get(at + 2)) else {
            break;
        };
        if next.is("{") {
            inline.push((&name.word, closing(tokens, at + 2)));
        } else if next.is(";") {
            let around: String = inline.iter().map(|(name, _)| format!("/{name}")).collect();
            let stem = format!("{dir}{around}/{}", name.word);
            found.extend([format!("{stem}.rs"), format!("{stem}/mod.rs")]);
        }
    }
    found
}

/// Those that it declares with `#[path = "x"]`, which is from its own directory.
fn by_path(source: &Source) -> impl Iterator<Item = String> {
    let dir = source.path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let path = |line: &str| Some(line.strip_prefix("#[path = \"")?.strip_suffix("\"]")?.to_owned());
    source
        .text
        .lines()
        .filter_map(path)
        .map(move |path| format!("{dir}/{path}"))
}

/// The directory of a file's modules: its own for a root and for `mod.rs`, else one of its name.
fn directory(path: &str) -> String {
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    if is_root(path) || file == "mod.rs" {
        dir.to_owned()
    } else {
        path.trim_end_matches(".rs").to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_nobody_names_are_found() {
        let files = [
            ("a/src/lib.rs", "pub mod b;\nmod c;"),
            ("a/src/b.rs", "mod d;"),
            ("a/src/b/d.rs", ""),
            ("a/src/c/mod.rs", "#[cfg(test)]\nmod tests;"),
            ("a/src/c/tests.rs", ""),
            ("a/src/bin/tool.rs", ""),
            (
                "a/tests/promise.rs",
                "mod far { mod away { pub mod thing; } pub mod other; }\nmod common;",
            ),
            ("a/tests/far/away/thing.rs", ""),
            ("a/tests/other.rs", "#[path = \"common/pair.rs\"]\nmod pair;"),
            ("a/tests/common/pair.rs", ""),
            ("agent/pure/src/lib.rs", ""),
            ("a/tests/far/other.rs", ""),
            ("a/tests/common/mod.rs", ""),
            ("a/build.rs", ""),
        ];
        let dead = [("a/src/d.rs", "// mod d;"), ("a/src/b/e.rs", "mod e;")];
        let sources = files
            .iter()
            .chain(&dead)
            .map(|(path, text)| Source::new((*path).into(), (*text).into()));
        let found = check(&sources.collect::<Vec<_>>());
        let found: Vec<_> = found.iter().map(|finding| finding.path.as_str()).collect();
        assert_eq!(found, ["a/src/d.rs", "a/src/b/e.rs"]);
    }
}
