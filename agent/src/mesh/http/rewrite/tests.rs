//! Rewritten paths and addresses of redirects, as tables; and that whatever comes in, an address comes out.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Uri};
use proptest::prelude::*;

use super::*;
use crate::mesh::http::text::anywhere;

fn regex(to: &PathRewrite) -> Option<Regex> {
    match to {
        PathRewrite::Regex { matches, .. } => anywhere(matches).ok(),
        PathRewrite::Full(_) | PathRewrite::Prefix(_) => None,
    }
}

/// A request for a path, with its query after `?`, of `http://shop.example:8080`.
fn with_head<T>(path: &str, ask: impl FnOnce(&RequestHead<'_>) -> T) -> T {
    let (path, query) = path
        .split_once('?')
        .map_or((path, None), |(path, query)| (path, Some(query)));
    ask(&RequestHead {
        method: &Method::GET,
        path,
        query,
        authority: "Shop.example:8080",
        scheme: "http",
        headers: &HeaderMap::new(),
        source_namespace: None,
    })
}

fn check(matched: Option<PathMatch>, to: PathRewrite, cases: &[(&str, &str)]) {
    let regex = regex(&to);
    let rewriting = Rewriting {
        to: &to,
        regex: regex.as_ref(),
        matched: matched.as_ref(),
    };
    for (path, expect) in cases {
        let rewritten = with_head(path, |head| path_and_query(&rewriting, head));
        assert_eq!(
            rewritten.as_deref(),
            Ok(*expect),
            "{path} by {to:?} of {matched:?}"
        );
    }
}

fn prefix(to: &str) -> PathRewrite {
    PathRewrite::Prefix(to.into())
}

#[test]
fn prefixes() {
    let under = |path: &str| Some(PathMatch::Under(path.into()));
    // The table of the Gateway API's HTTPPathModifier, and what it leaves open.
    check(
        under("/foo"),
        prefix("/xyz"),
        &[("/foo/bar", "/xyz/bar"), ("/foo", "/xyz"), ("/foo/", "/xyz/")],
    );
    check(
        under("/foo"),
        prefix("/xyz/"),
        &[("/foo/bar", "/xyz/bar"), ("/foo", "/xyz/"), ("/foo/", "/xyz/")],
    );
    check(
        under("/foo/"),
        prefix("/xyz"),
        &[("/foo/bar", "/xyz/bar"), ("/foo", "/xyz")],
    );
    check(
        under("/foo"),
        prefix(""),
        &[("/foo/bar", "/bar"), ("/foo", "/"), ("/foo/", "/")],
    );
    check(
        under("/foo"),
        prefix("/"),
        &[("/foo/bar", "/bar"), ("/foo", "/"), ("/foo/", "/")],
    );
    check(
        under("/"),
        prefix("/xyz"),
        &[("/foo", "/xyz/foo"), ("/", "/xyz/")],
    );
    check(under("/f%6fo"), prefix("/x"), &[("/foo/bar", "/x/bar")]);
    // VirtualService: by letters.
    let text = |path: &str| Some(PathMatch::Prefix(path.into()));
    check(
        text("/v1/"),
        prefix("/"),
        &[("/v1/a", "/a"), ("/v1/", "/"), ("/v1/a?b=1", "/a?b=1")],
    );
    check(
        text("/v1"),
        prefix("/"),
        &[("/v1/a", "/a"), ("/v1", "/"), ("/v1x", "/x")],
    );
    check(
        text("/v1"),
        prefix("/v2"),
        &[("/v1/a", "/v2/a"), ("/v1x", "/v2x")],
    );
    let any_case = Some(PathMatch::PrefixIgnoringCase("/v1".into()));
    check(any_case, prefix("/v2"), &[("/V1/A", "/v2/A")]);
    // What was not matched by its beginning is replaced as a whole.
    check(
        Some(PathMatch::Exact("/a".into())),
        prefix("/b"),
        &[("/a", "/b"), ("/a?c", "/b?c")],
    );
    check(
        Some(PathMatch::Regex("/a.*".into())),
        prefix("/b"),
        &[("/ax", "/b")],
    );
    check(None, prefix("/b"), &[("/a/c", "/b")]);
}

#[test]
fn whole_paths() {
    let full = |path: &str| PathRewrite::Full(path.into());
    check(
        None,
        full("/b"),
        &[("/a", "/b"), ("/a?c=d", "/b?c=d"), ("/a?", "/b?")],
    );
    check(
        None,
        full("/b?x=1"),
        &[("/a", "/b?x=1"), ("/a?c=d", "/b?x=1&c=d")],
    );
    check(None, full(""), &[("/a", "/")]);
    check(None, full("b c\n#\u{e9}"), &[("/a", "/b%20c%0A%23%C3%A9")]);
    // Nobody reads a host into it.
    check(None, full("//evil.example/"), &[("/a", "/evil.example/")]);
}

#[test]
fn expressions() {
    let regex = |matches: &str, replacement: &str| PathRewrite::Regex {
        matches: matches.into(),
        replacement: replacement.into(),
    };
    check(
        None,
        regex("/user/([0-9]+)/(.*)", r"/\2?id=\1"),
        &[("/user/7/cart", "/cart?id=7"), ("/user/7/c?d", "/c?id=7&d")],
    );
    check(None, regex("a", "b"), &[("/a/a", "/b/b"), ("/c", "/c")]);
    check(None, regex("/a", r"/\0\0"), &[("/a", "/a/a")]);
    check(
        None,
        regex("/(a)?b", r"/x\1\9\\"),
        &[("/b", "/x%5C"), ("/ab", "/xa%5C")],
    );
    check(None, regex("/a", "\\"), &[("/a", "/%5C")]);
    check(None, regex("", "-"), &[("/ab", "/-/-a-b-")]);
    let much = regex("a", &r"\0".repeat(2000));
    let a = anywhere("a").ok();
    let rewriting = Rewriting {
        to: &much,
        regex: a.as_ref(),
        matched: None,
    };
    let path = format!("/{}", "a".repeat(100));
    assert_eq!(
        with_head(&path, |head| path_and_query(&rewriting, head)),
        Err(BadRewrite::TooLong)
    );
}

fn check_location(redirect: Redirect, expect: &str) {
    let rewriting = redirect.path.as_ref().map(|to| Rewriting {
        to,
        regex: None,
        matched: None,
    });
    let location = with_head("/a/b?c=d", |head| {
        location(&redirect, rewriting.as_ref(), head, 8080)
    });
    assert_eq!(location, expect, "{redirect:?}");
}

#[test]
fn locations() {
    let none = Redirect::default;
    let some = |text: &str| Some(Arc::<str>::from(text));
    let port = |port| Some(RedirectPort::Is(port));
    check_location(none(), "http://shop.example:8080/a/b?c=d");
    for (scheme, host, port, expect) in [
        ("", "", None, "http://shop.example:8080"),
        ("", "", port(80), "http://shop.example"),
        ("", "", port(443), "http://shop.example:443"),
        ("", "", Some(RedirectPort::OfScheme), "http://shop.example"),
        ("", "", Some(RedirectPort::OfRequest), "http://shop.example:8080"),
        ("", "new.example", None, "http://new.example:8080"),
        (
            "",
            "new.example",
            Some(RedirectPort::OfScheme),
            "http://new.example",
        ),
        ("", "new.example:81", None, "http://new.example:81"),
        ("", "new.example:81", port(82), "http://new.example:82"),
        (
            "",
            "new.example:80",
            Some(RedirectPort::OfScheme),
            "http://new.example",
        ),
        // A scheme has its own port, unless another is said (Gateway API).
        ("https", "", None, "https://shop.example"),
        ("https", "", port(8443), "https://shop.example:8443"),
        ("https", "", port(443), "https://shop.example"),
        ("https", "", port(80), "https://shop.example:80"),
        (
            "https",
            "",
            Some(RedirectPort::OfRequest),
            "https://shop.example:8080",
        ),
        ("https", "[2001:db8::1]", None, "https://[2001:db8::1]"),
        ("http", "new.example", port(8080), "http://new.example:8080"),
        // What is no host or no scheme is left out: the client stays where it is.
        ("", "a b", None, ""),
        ("", "a/b", None, ""),
        ("", "a\r\nset-cookie: x", None, ""),
        ("", "", Some(RedirectPort::Is(0)), "http://shop.example:0"),
        ("javascript", "", None, ""),
    ] {
        let redirect = Redirect {
            scheme: some(scheme).filter(|it| !it.is_empty()),
            host: some(host).filter(|it| !it.is_empty()),
            port,
            ..none()
        };
        check_location(redirect.clone(), &format!("{expect}/a/b?c=d"));
        let path = Some(PathRewrite::Full("/x".into()));
        check_location(Redirect { path, ..redirect }, &format!("{expect}/x?c=d"));
    }
}

proptest! {
    /// Never a panic, always something that can be sent.
    #[test]
    fn whatever_comes_in_an_address_comes_out(
        path in ".{0,20}",
        query in proptest::option::of(".{0,10}"),
        authority in ".{0,20}",
        host in proptest::option::of(".{0,20}"),
        to in ".{0,20}",
        matched in ".{0,5}",
        kind in 0..6_u8,
        port: u16,
    ) {
        let to = match kind {
            0 => PathRewrite::Full(to.into()),
            1..4 => PathRewrite::Prefix(to.into()),
            _ => PathRewrite::Regex { matches: "(.)b?".into(), replacement: to.into() },
        };
        let matched = match kind {
            1 => Some(PathMatch::Under(matched.into())),
            2 => Some(PathMatch::Prefix(matched.into())),
            _ => None,
        };
        let head = RequestHead {
            method: &Method::GET,
            path: &path,
            query: query.as_deref(),
            authority: &authority,
            scheme: "https",
            headers: &HeaderMap::new(),
            source_namespace: None,
        };
        let regex = regex(&to);
        let rewriting = Rewriting { to: &to, regex: regex.as_ref(), matched: matched.as_ref() };
        let rewritten = path_and_query(&rewriting, &head).unwrap();
        prop_assert!(rewritten.starts_with('/') && !rewritten.starts_with("//"));
        prop_assert!(rewritten.parse::<Uri>().is_ok(), "{}", rewritten);
        let redirect = Redirect { host: host.map(Into::into), ..Redirect::default() };
        let location = location(&redirect, Some(&rewriting), &head, port);
        prop_assert!(HeaderValue::from_str(&location).is_ok());
        prop_assert!(location.parse::<Uri>().is_ok(), "{}", location);
    }
}
