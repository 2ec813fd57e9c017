//! Where tokens are, and what an app gets of a request with one.

use super::*;

/// A request's address and headers, as the app gets them.
#[derive(Debug, PartialEq)]
struct Forwarded(String, Vec<(String, String)>);

fn forwarded(request: &Parts) -> Forwarded {
    let mut headers: Vec<_> = request
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    headers.sort();
    Forwarded(request.uri.to_string(), headers)
}

fn signer() -> Signer {
    Signer::ed25519()
}

fn header(name: &str, prefix: &str) -> TokenHeader {
    TokenHeader {
        name: name.into(),
        prefix: prefix.into(),
    }
}

/// Where the token is, in the address or in a header, as `{}`; and what the app gets of it.
fn check(change: impl Fn(&mut JwtRule), request: (&str, &[(&str, &str)]), expect: (&str, &[(&str, &str)])) {
    let signer = signer();
    let token = signer.sign(&json!({ "alg": "EdDSA" }), &claims());
    let put = |(uri, headers): (&str, &[(&str, &str)])| {
        let put = |text: &str| text.replace("{}", &token);
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, put(value))).collect();
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        super::request(&put(uri), &headers)
    };
    let mut rule = inline(&[signer.jwk(&json!({}))]);
    change(&mut rule);
    let found = expect.0 != "none";
    let mut parts = put(request);
    let untouched = forwarded(&parts);
    let verdict = authenticate(rule.clone(), &mut parts, true);
    assert_eq!(verdict.map(|token| token.is_some()), Ok(found), "{request:?}");
    if !found {
        assert_eq!(forwarded(&parts), untouched);
        return;
    }
    assert_eq!(forwarded(&parts), forwarded(&put(expect)), "{request:?}");
    rule.forward_original_token = true;
    let mut parts = put(request);
    authenticate(rule, &mut parts, true).unwrap();
    assert_eq!(forwarded(&parts), untouched);
}

const NONE: (&str, &[(&str, &str)]) = ("none", &[]);

#[test]
fn the_usual_places() {
    let usual = |_: &mut JwtRule| {};
    check(
        usual,
        ("/a", &[("authorization", "Bearer {}"), ("x", "y")]),
        ("/a", &[("x", "y")]),
    );
    check(usual, ("/a", &[("authorization", "bEARER  {} ")]), ("/a", &[]));
    check(usual, ("/a?access_token={}", &[]), ("/a", &[]));
    check(usual, ("/a?x=1&access_token={}&y", &[]), ("/a?x=1&y", &[]));
    check(usual, ("http://h/a?%61ccess_token={}", &[]), ("http://h/a", &[]));
    check(usual, ("/a", &[("authorization", "Basic {}")]), NONE);
    check(usual, ("/a", &[("authorization", "Bearer{}")]), NONE);
    check(
        usual,
        ("/a", &[("x-jwt", "{}"), ("cookie", "access_token={}")]),
        NONE,
    );
    check(usual, ("/a?token={}", &[]), NONE);
    // Only the token goes.
    let two = [("authorization", "Basic x"), ("authorization", "Bearer {}")];
    check(usual, ("/a", &two), ("/a", &[("authorization", "Basic x")]));
}

#[test]
fn places_that_a_rule_names() {
    let headers =
        |rule: &mut JwtRule| rule.from_headers = vec![header("x-jwt", ""), header("x-token", "JWT ")];
    check(headers, ("/", &[("x-jwt", "{}")]), ("/", &[]));
    check(headers, ("/", &[("x-token", "JWT {}")]), ("/", &[]));
    check(headers, ("/", &[("x-token", "{}")]), NONE);
    check(headers, ("/", &[("x-token", "jwt {}")]), NONE);
    // The usual ones are not looked at then.
    check(
        headers,
        ("/?access_token={}", &[("authorization", "Bearer {}")]),
        NONE,
    );
    let params = |rule: &mut JwtRule| rule.from_params = vec!["t k".into()];
    check(params, ("/?t+k={}", &[]), ("/", &[]));
    check(params, ("/?t%20k={}&t", &[]), ("/?t", &[]));
    check(params, ("/?tk={}", &[]), NONE);
    let cookies = |rule: &mut JwtRule| rule.from_cookies = vec!["session".into()];
    check(cookies, ("/", &[("cookie", "session={}")]), ("/", &[]));
    check(
        cookies,
        ("/", &[("cookie", "a=b;session=\"{}\"; c=d")]),
        ("/", &[("cookie", "a=b; c=d")]),
    );
    check(
        cookies,
        ("/", &[("cookie", "a=b"), ("cookie", "session={}")]),
        ("/", &[("cookie", "a=b")]),
    );
    check(cookies, ("/", &[("cookie", "sessions={}; xsession={}")]), NONE);
}

#[test]
fn every_token_must_be_in_order() {
    let (signer, stranger) = (signer(), signer());
    let sign = |signer: &Signer, subject: &str| {
        signer.sign(
            &json!({ "alg": "EdDSA" }),
            &json!({ "iss": ISSUER, "sub": subject }),
        )
    };
    let (jane, joe, forged) = (
        sign(&signer, "jane"),
        sign(&signer, "joe"),
        sign(&stranger, "root"),
    );
    let check = |uri: &str, tokens: &[&str], expect: Result<&str, Unauthenticated>| {
        let values: Vec<_> = tokens.iter().map(|token| format!("Bearer {token}")).collect();
        let headers: Vec<_> = values
            .iter()
            .map(|value| ("authorization", value.as_str()))
            .collect();
        let mut parts = request(uri, &headers);
        let before = forwarded(&parts);
        let verdict = authenticate(inline(&[signer.jwk(&json!({}))]), &mut parts, true);
        let refused = verdict.is_err();
        let principal =
            verdict.map(|token| token.map_or_else(String::new, |token| token.principal.to_string()));
        let expect = expect.map(|subject| format!("{ISSUER}/{subject}"));
        assert_eq!(principal, expect, "{uri} {tokens:?}");
        assert!(
            !refused || forwarded(&parts) == before,
            "a request that is refused is not changed"
        );
    };
    check("/", &[&jane], Ok("jane"));
    check("/", &[&jane, &jane], Ok("jane"));
    check("/", &[&jane, &joe], Ok("jane"));
    check(&format!("/?access_token={joe}"), &[&jane], Ok("jane"));
    check("/", &[&jane, &forged], Err(Unauthenticated::Signature));
    check("/", &[&forged, &jane], Err(Unauthenticated::Signature));
    check(
        &format!("/?access_token={joe}&access_token={forged}"),
        &[],
        Err(Unauthenticated::Signature),
    );
    check("/", &[&jane, "opaque"], Err(Unauthenticated::Form));
    check("/", &[""], Err(Unauthenticated::Form));
    let many: Vec<_> = (0..9).map(|nth| sign(&signer, &nth.to_string())).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    check("/", &many[..8], Ok("0"));
    check("/", &many, Err(Unauthenticated::TooLarge));
}

#[test]
fn an_issuer_is_believed_where_its_rule_looks() {
    let (a, b) = (signer(), signer());
    let mut of_a = inline(&[a.jwk(&json!({}))]);
    of_a.from_headers = vec![header("x-a", "")];
    let mut of_b = inline(&[b.jwk(&json!({}))]);
    of_b.issuer = "b".into();
    // The same issuer for somebody else.
    let mut for_shop = of_a.clone();
    for_shop.audiences = vec!["shop".into()];
    let runtime = Runtime::new().unwrap();
    let authenticator = Authenticator::new(Fetcher::new(runtime.handle().clone(), []).unwrap());
    // The usual place, written out.
    let mut of_c = inline(&[a.jwk(&json!({}))]);
    (of_c.issuer, of_c.from_headers) = ("c".into(), vec![header("authorization", "Bearer ")]);
    let rules = [rules(vec![for_shop, of_a, of_b]), rules(vec![of_c])];
    authenticator.update(&rules);
    let check = |headers: &[(&str, &str)], expect: Result<usize, Unauthenticated>| {
        let verdict = authenticator.authenticate(&rules, &mut request("/", headers), now());
        assert_eq!(verdict.map(|token| token.iter().count()), expect, "{headers:?}");
    };
    let token_of = |signer: &Signer, issuer: &str| {
        signer.sign(
            &json!({ "alg": "EdDSA" }),
            &json!({ "iss": issuer, "sub": "jane" }),
        )
    };
    let (of_a, of_b, of_c) = (token_of(&a, ISSUER), token_of(&b, "b"), token_of(&a, "c"));
    check(&[("authorization", &format!("Bearer {of_b}"))], Ok(1));
    check(&[("authorization", &format!("Bearer {of_c}"))], Ok(1));
    check(
        &[("authorization", &format!("bearer {of_c}"))],
        Err(Unauthenticated::Issuer),
    );
    check(&[("x-a", &of_a)], Ok(1));
    check(
        &[("x-a", &of_a), ("authorization", &format!("Bearer {of_b}"))],
        Ok(1),
    );
    check(&[("x-a", &of_b)], Err(Unauthenticated::Issuer));
    check(
        &[("authorization", &format!("Bearer {of_a}"))],
        Err(Unauthenticated::Issuer),
    );
    check(&[("x-a", &token_of(&b, ISSUER))], Err(Unauthenticated::Signature));
}

#[test]
fn what_the_app_is_told() {
    let signer = signer();
    let claim = |header: &str, claim: &str| ClaimHeader {
        header: header.into(),
        claim: claim.into(),
    };
    let mut rule = inline(&[signer.jwk(&json!({}))]);
    rule.output_payload_to_header = Some("x-payload".into());
    rule.output_claims = vec![
        claim("x-sub", "sub"),
        claim("x-n", "n"),
        claim("x-city", "at.city"),
        claim("x-dotted", "a.b"),
        claim("x-list", "list"),
        claim("x-none", "none"),
        claim("x-evil", "evil"),
        claim("content-length", "sub"),
        claim("host", "sub"),
    ];
    let claims = json!({
        "iss": ISSUER, "sub": "jane", "n": 7, "at": { "city": "Ulm" }, "a.b": true, "list": [1, 2], "evil": "a\r\nb: c",
    });
    let token = signer.sign(&json!({ "alg": "EdDSA" }), &claims);
    let payload = token.split('.').nth(1).unwrap();
    let lies = [
        ("x-sub", "root"),
        ("X_Sub", "root"),
        ("x-none", "root"),
        ("x-evil", "root"),
        ("x-payload", "root"),
        ("host", "h"),
        ("content-length", "2"),
    ];
    let told = |token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers = lies
            .into_iter()
            .chain(bearer.as_deref().map(|value| ("authorization", value)));
        let mut parts = request("/", &headers.collect::<Vec<_>>());
        authenticate(rule.clone(), &mut parts, true).unwrap();
        forwarded(&parts).1
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<_> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    assert_eq!(told(None), pairs(&[("content-length", "2"), ("host", "h")]));
    assert_eq!(
        told(Some(&token)),
        pairs(&[
            ("content-length", "2"),
            ("host", "h"),
            ("x-city", "Ulm"),
            ("x-dotted", "true"),
            // [1,2]
            ("x-list", "WzEsMl0="),
            ("x-n", "7"),
            ("x-payload", payload),
            ("x-sub", "jane"),
        ])
    );
}

proptest! {
    #[test]
    fn no_request_panics(query in "[a-z%+=&0-9]{0,40}", cookie in "[ -~]{0,40}", value in "[ -~]{0,40}") {
        let mut rule = inline(&[]);
        rule.from_headers = vec![header("x", "B ")];
        rule.from_params = vec!["a".into()];
        rule.from_cookies = vec!["a".into()];
        let rule = rules(vec![rule]);
        let mut parts = request(&format!("/?{query}"), &[("cookie", &cookie), ("x", &value)]);
        let known = Known::default();
        let asked = [rule];
        let rules = Rules::of(&known, &asked);
        let found = crate::waypoint::jwt::places::find(rules.each(), &parts);
        for found in found.iter().flatten() {
            found.place.remove(&mut parts, &found.text);
        }
        // Nothing is left where it was taken from.
        let left = crate::waypoint::jwt::places::find(rules.each(), &parts);
        if found.is_ok() {
            prop_assert!(left.is_ok_and(|left| left.is_empty()));
        }
    }
}
