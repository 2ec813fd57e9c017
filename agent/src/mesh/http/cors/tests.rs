//! What browsers are answered.

use super::*;
use crate::mesh::http::TextMatch;

/// A request of these headers and what it is answered: `-`, or `response` or `preflight` and the headers in their order.
fn check(cors: &Cors, method: Method, headers: &[(&'static str, &str)], expect: &str) {
    let origins: Vec<_> = cors
        .allow_origins
        .iter()
        .filter_map(|it| Origin::new(it).ok())
        .collect();
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, value.parse().unwrap());
    }
    let head = RequestHead {
        method: &method,
        path: "/",
        query: None,
        authority: "shop.example",
        scheme: "http",
        headers: &map,
        source_namespace: None,
    };
    let shown = |kind: &str, headers: HeaderMap| {
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = name.as_str().trim_start_matches("access-control-");
            format!(" {name}={}", value.to_str().unwrap())
        };
        let mut lines: Vec<_> = headers.iter().map(line).collect();
        lines.sort();
        kind.to_owned() + &lines.concat()
    };
    let shown = match answer(cors, &origins, &head) {
        CorsAnswer::Nothing => "-".to_owned(),
        CorsAnswer::Preflight(headers) => shown("preflight", headers),
        CorsAnswer::Response(headers) => shown("response", headers),
    };
    assert_eq!(shown, expect, "{method} {headers:?} by {cors:?}");
}

const ORIGIN: (&str, &str) = ("origin", "https://a.example");
const ASKS: (&str, &str) = ("access-control-request-method", "PUT");

fn is(origin: &str) -> CorsOrigin {
    CorsOrigin::Is(TextMatch::Exact(origin.into()))
}

#[test]
fn who_may() {
    let cors = |origin: CorsOrigin| Cors {
        allow_origins: vec![is("https://b.example"), origin],
        ..Cors::default()
    };
    let by = |origin: CorsOrigin, expect: bool| {
        let expect = if expect {
            "response allow-origin=https://a.example vary=origin"
        } else {
            "-"
        };
        check(&cors(origin), Method::GET, &[ORIGIN], expect);
    };
    by(is("https://a.example"), true);
    by(is("https://a.example:444"), false);
    by(is("http://a.example"), false);
    by(CorsOrigin::Is(TextMatch::Prefix("https://a.".into())), true);
    by(
        CorsOrigin::Is(TextMatch::Regex(r"https://.\.example".into())),
        true,
    );
    by(CorsOrigin::Is(TextMatch::Regex("a".into())), false);
    let star = |start: &str, end: &str| CorsOrigin::Wildcard(start.into(), end.into());
    by(star("https://", ".example"), true);
    by(star("https://", "a.example"), false);
    by(star("http", ".example"), false);
    by(star("https://b", ".example"), false);
    check(
        &cors(CorsOrigin::Any),
        Method::GET,
        &[ORIGIN],
        "response allow-origin=*",
    );
    check(&cors(CorsOrigin::Any), Method::GET, &[], "-");
    // One that only ends as the pattern does.
    let evil = ("origin", "https://evil.test/.example");
    check(&cors(star("https://", ".example")), Method::GET, &[evil], "-");
}

#[test]
fn answers() {
    let cors = Cors {
        allow_origins: vec![is("https://a.example")],
        allow_methods: vec!["GET".into(), "PUT".into()],
        allow_headers: vec!["x-a".into()],
        expose_headers: vec!["x-b".into(), "x-c".into()],
        max_age_seconds: Some(60),
        ..Cors::default()
    };
    let other = ("origin", "https://other.example");
    let allowed = "allow-origin=https://a.example";
    check(
        &cors,
        Method::OPTIONS,
        &[ORIGIN, ASKS],
        &format!("preflight allow-headers=x-a allow-methods=GET, PUT {allowed} max-age=60 vary=origin"),
    );
    check(
        &cors,
        Method::GET,
        &[ORIGIN],
        &format!("response {allowed} expose-headers=x-b, x-c vary=origin"),
    );
    // An OPTIONS that does not ask is a request like others, and so is a GET that seems to ask.
    check(
        &cors,
        Method::OPTIONS,
        &[ORIGIN],
        &format!("response {allowed} expose-headers=x-b, x-c vary=origin"),
    );
    check(&cors, Method::GET, &[other, ASKS], "-");
    check(&cors, Method::OPTIONS, &[other, ASKS], "preflight");
    check(&cors, Method::OPTIONS, &[ASKS], "-");
    let forwards = Cors {
        forward_unmatched: true,
        ..cors.clone()
    };
    check(&forwards, Method::OPTIONS, &[other, ASKS], "-");
    check(&Cors::default(), Method::OPTIONS, &[ORIGIN, ASKS], "preflight");
}

#[test]
fn with_credentials_a_star_is_what_was_asked_for() {
    let cors = Cors {
        allow_origins: vec![CorsOrigin::Any],
        allow_methods: vec!["*".into()],
        allow_headers: vec!["*".into()],
        ..Cors::default()
    };
    let wants = ("access-control-request-headers", "x-a, x-b");
    check(
        &cors,
        Method::OPTIONS,
        &[ORIGIN, ASKS, wants],
        "preflight allow-headers=* allow-methods=* allow-origin=*",
    );
    let cors = Cors {
        allow_credentials: true,
        ..cors
    };
    check(
        &cors,
        Method::OPTIONS,
        &[ORIGIN, ASKS, wants],
        "preflight allow-credentials=true allow-headers=x-a, x-b allow-methods=PUT allow-origin=https://a.example vary=origin",
    );
}

#[test]
fn ours_stand_in_place_of_the_apps() {
    let mut response = HeaderMap::new();
    response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    response.insert(VARY, HeaderValue::from_static("accept"));
    let mut ours = HeaderMap::new();
    ours.insert(
        ACCESS_CONTROL_ALLOW_ORIGIN,
        HeaderValue::from_static("https://a.example"),
    );
    ours.insert(VARY, HeaderValue::from_static("origin"));
    put_cors(&mut response, &ours);
    assert_eq!(
        response
            .get_all(ACCESS_CONTROL_ALLOW_ORIGIN)
            .iter()
            .collect::<Vec<_>>(),
        ["https://a.example"]
    );
    assert!(!response.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
    assert_eq!(
        response.get_all(VARY).iter().collect::<Vec<_>>(),
        ["accept", "origin"]
    );
}
