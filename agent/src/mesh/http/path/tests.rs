//! Paths that mean the same, as tables; and that a normalised path is one.

use proptest::prelude::*;

use super::*;
use Normalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};

fn check(how: Normalization, path: &str, expect: &str) {
    let shown = match normalize(path, how) {
        Ok(path) => path.into_owned(),
        Err(why) => why.to_string(),
    };
    assert_eq!(shown, expect, "{path} by {how:?}");
}

#[test]
fn what_every_normalisation_does() {
    for how in [Base, MergeSlashes, DecodeAndMergeSlashes] {
        for (path, expect) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("*", "*"),
            // RFC 3986 5.2.4.
            ("/a/b/c/./../../g", "/a/g"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/.", "/"),
            ("/a/..", "/"),
            ("/.a/..b/c.", "/.a/..b/c."),
            ("/...", "/..."),
            // Escaped in any way.
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/%61%7E%5f", "/a~_"),
            ("/a%20b%c3%a9", "/a%20b%C3%A9"),
            ("/caf\u{e9}", "/caf%C3%A9"),
            ("/a%252e", "/a%252e"),
            ("/a%3fb%23c%3B", "/a%3Fb%23c%3B"),
            ("/a\\b", "/a/b"),
            ("/a\\..\\b", "/b"),
            ("\\a", "/a"),
            ("/a;x=1/b", "/a;x=1/b"),
        ] {
            check(how, path, expect);
        }
        for (path, expect) in [
            ("/..", BadPath::AboveRoot),
            ("/a/../..", BadPath::AboveRoot),
            ("/%2e%2e/a", BadPath::AboveRoot),
            ("/\\..\\..\\..\\", BadPath::AboveRoot),
            ("/a%", BadPath::Escape),
            ("/a%2", BadPath::Escape),
            ("/a%zz", BadPath::Escape),
            ("/%+1", BadPath::Escape),
            ("/a%00", BadPath::Nul),
            ("/a\0", BadPath::Nul),
            ("", BadPath::NotAbsolute),
            ("a", BadPath::NotAbsolute),
            ("http://a/", BadPath::NotAbsolute),
        ] {
            check(how, path, &expect.to_string());
        }
    }
}

#[test]
fn what_they_differ_in() {
    for (path, none, base, merge, decode) in [
        ("/a//b", "/a//b", "/a//b", "/a/b", "/a/b"),
        ("//a", "//a", "//a", "/a", "/a"),
        ("/a/%2Fb", "/a/%2Fb", "/a/%2Fb", "/a/%2Fb", "/a/b"),
        ("/a%2fb", "/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"),
        ("/a%5cb", "/a%5Cb", "/a%5Cb", "/a%5Cb", "/a/b"),
        ("/a%2f..%2fb", "/a%2F..%2Fb", "/a%2F..%2Fb", "/a%2F..%2Fb", "/b"),
        ("/a%252fb", "/a%252fb", "/a%252fb", "/a%252fb", "/a%252fb"),
        ("/a/%2e%2e", "/a/..", "/", "/", "/"),
        ("/a\\b", "/a\\b", "/a/b", "/a/b", "/a/b"),
        ("/a//../b", "/a//../b", "/a/b", "/a/b", "/a/b"),
        ("/%41%zz%", "/%41%zz%", "?", "?", "?"),
    ] {
        check(None, path, none);
        for (how, expect) in [
            (Base, base),
            (MergeSlashes, merge),
            (DecodeAndMergeSlashes, decode),
        ] {
            match expect {
                "?" => assert!(normalize(path, how).is_err(), "{path}"),
                _ => check(how, path, expect),
            }
        }
    }
}

#[test]
fn what_is_normal_is_not_copied() {
    for path in ["/", "/a/b", "/a-b/c.d/~e", "*"] {
        let path = normalize(path, DecodeAndMergeSlashes).unwrap();
        assert!(matches!(path, Cow::Borrowed(_)), "{path}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    /// Nobody can make another path of it: no reader finds a dot, a slash or an escape to follow that is not followed.
    #[test]
    fn a_normalised_path_is_normal(path in r"(/|\.|%2e|%2E|%2f|%5C|\\|%25|a|B|%41|%00|%|é|//|;)*") {
        for how in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
            let Ok(once) = normalize(&path, how) else { continue };
            prop_assert_eq!(normalize(&once, how), Ok(once.clone()), "{} by {:?}", path, how);
            if how >= Base && once != "*" {
                prop_assert!(once.starts_with('/') && !once.contains('\\'));
                prop_assert!(once.split('/').all(|element| element != "." && element != ".."));
                let lower = once.to_ascii_lowercase();
                prop_assert!(!lower.contains("%2e") && !lower.contains("%00"));
                prop_assert!(how < MergeSlashes || !once.contains("//"));
                prop_assert!(how < DecodeAndMergeSlashes || !(lower.contains("%2f") || lower.contains("%5c")));
            }
        }
    }
}
