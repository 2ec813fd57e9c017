//! Changes of headers.

use std::sync::Arc;

use super::*;

fn pairs(text: &str) -> Vec<(Arc<str>, Arc<str>)> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.into(), value.into())
    };
    text.split_whitespace().map(pair).collect()
}

fn map(text: &str) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs(text) {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            value.parse().unwrap(),
        );
    }
    map
}

fn check(before: &str, changes: (&str, &str, &str), after: &str) {
    let changes = HeaderChanges {
        set: pairs(changes.0),
        add: pairs(changes.1),
        remove: changes.2.split_whitespace().map(Into::into).collect(),
    };
    let mut headers = map(before);
    changes.apply(&mut headers);
    assert_eq!(headers, map(after), "{changes:?}");
}

#[test]
fn set_then_add_then_remove() {
    check("a=1 b=2", ("", "", ""), "a=1 b=2");
    check("a=1 a=2 b=3", ("a=4", "", ""), "b=3 a=4");
    check("a=1", ("", "a=2 c=3", ""), "a=1 a=2 c=3");
    check("a=1 a=2 b=3", ("", "", "a"), "b=3");
    check("a=1", ("a=2", "a=3", ""), "a=2 a=3");
    check("a=1", ("b=2", "b=3", "b a"), "");
    // Whatever the case.
    check("a=1", ("A=2", "B=3", ""), "a=2 b=3");
    check("a=1", ("", "", "A"), "");
}

#[test]
fn what_is_not_changed() {
    let before = "host=a connection=close content-length=3 te=trailers transfer-encoding=chunked upgrade=x";
    let names = "host connection content-length te transfer-encoding upgrade :authority :path";
    let changes = "host=b connection=x content-length=9 te=x transfer-encoding=x trailer=x upgrade=y keep-alive=1 \
                   proxy-connection=x :authority=c :path=/x";
    check(before, (changes, "", ""), before);
    check(before, ("", changes, ""), before);
    check(before, ("", "", names), before);
    // What can be no header.
    check("a=1", ("b=\u{1} a\u{7f}=2 =3", "c=\u{0}", "\u{e9}"), "a=1");
}

#[test]
fn a_full_map_takes_no_more() {
    let add = (0..40_000).map(|_| (Arc::from("a"), Arc::from("1"))).collect();
    let changes = HeaderChanges {
        add,
        ..HeaderChanges::default()
    };
    let mut headers = HeaderMap::new();
    for n in 0..20_000 {
        let name = HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        let _full = headers.try_insert(name, HeaderValue::from_static("1"));
    }
    changes.apply(&mut headers);
    assert!(headers.contains_key("x-1"));
}
