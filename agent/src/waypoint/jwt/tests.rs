//! Tokens of real keys: what passes, what does not and why, and what the app gets.

use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, Request, header::WWW_AUTHENTICATE};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::*;
use crate::mesh::http::{ClaimHeader, Jwks, JwtRule, TokenHeader};

mod places;
pub(super) mod signer;

use signer::{Signer, signers};

pub(super) const ISSUER: &str = "https://issuer.example";
/// Seconds since 1970.
pub(super) const NOW: u64 = 1_800_000_000;

pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(super) fn rule(jwks: Jwks) -> JwtRule {
    JwtRule {
        issuer: ISSUER.into(),
        audiences: Vec::new(),
        jwks,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        output_payload_to_header: None,
        output_claims: Vec::new(),
        forward_original_token: false,
        timeout_ms: 0,
        space_delimited_claims: Vec::new(),
    }
}

/// A rule whose keys are these.
pub(super) fn inline(keys: &[Value]) -> JwtRule {
    rule(Jwks::Inline(json!({ "keys": keys }).to_string().into()))
}

pub(super) fn rules(rules: Vec<JwtRule>) -> Arc<RequestAuthentication> {
    Arc::new(RequestAuthentication {
        key: PolicyKey {
            namespace: "demo".into(),
            name: "jwt".into(),
        },
        rules,
        unreadable: Vec::new(),
    })
}

pub(super) fn claims() -> Value {
    json!({ "iss": ISSUER, "sub": "jane", "exp": NOW + 600 })
}

/// A request with these headers.
pub(super) fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn bearer(token: &str) -> Parts {
    request("/", &[("authorization", &format!("Bearer {token}"))])
}

/// What is said of a request by these rules, which were announced or not.
pub(super) fn authenticate(
    rule: JwtRule,
    request: &mut Parts,
    announced: bool,
) -> Result<Option<Token>, Unauthenticated> {
    let runtime = Runtime::new().unwrap();
    let authenticator = Authenticator::new(Fetcher::new(runtime.handle().clone(), []).unwrap());
    let rules = [rules(vec![rule])];
    if announced {
        authenticator.update(&rules);
    }
    authenticator.authenticate(&rules, request, now())
}

fn judge(rule: JwtRule, token: &str) -> Result<(), Unauthenticated> {
    let announced = authenticate(rule.clone(), &mut bearer(token), true);
    assert_eq!(authenticate(rule, &mut bearer(token), false), announced);
    announced.map(|token| assert!(token.is_some()))
}

#[test]
fn every_algorithm_that_is_believed() {
    for signer in signers() {
        for algorithm in signer.algorithms() {
            let token = signer.sign(&json!({ "alg": algorithm, "kid": "k" }), &claims());
            let check = |jwk: Value, expect| assert_eq!(judge(inline(&[jwk]), &token), expect, "{algorithm}");
            check(signer.jwk(&json!({ "kid": "k" })), Ok(()));
            check(
                signer.jwk(&json!({ "kid": "k", "alg": algorithm, "use": "sig" })),
                Ok(()),
            );
            check(
                signer.jwk(&json!({ "kid": "k", "key_ops": ["sign", "verify"] })),
                Ok(()),
            );
            check(signer.jwk(&json!({})), Ok(()));
            let no_key = Err(Unauthenticated::NoKey);
            check(signer.jwk(&json!({ "kid": "other" })), no_key.clone());
            check(signer.jwk(&json!({ "use": "enc" })), no_key.clone());
            check(signer.jwk(&json!({ "key_ops": ["encrypt"] })), no_key.clone());
            check(signer.jwk(&json!({ "alg": "HS256" })), no_key.clone());
            check(signer.jwk(&json!({ "alg": "RSA-OAEP" })), no_key.clone());
            let other = if *algorithm == "PS256" { "RS256" } else { "PS256" };
            check(signer.jwk(&json!({ "alg": other })), no_key);
        }
    }
}

#[test]
fn a_token_cannot_choose_how_it_is_verified() {
    let signers = signers();
    let check = |signer: &Signer, algorithm: &str, jwk: Value, expect| {
        let token = signer.sign_as(signer.algorithms()[0], &json!({ "alg": algorithm }), &claims());
        assert_eq!(judge(inline(&[jwk]), &token), Err(expect), "{algorithm}");
    };
    for signer in &signers {
        for algorithm in [
            "none", "None", "", "HS256", "HS384", "HS512", "ES256K", "ES512", "RS1", "rs256",
        ] {
            check(
                signer,
                algorithm,
                signer.jwk(&json!({})),
                Unauthenticated::Algorithm,
            );
        }
    }
    // Of another type, of another curve, or of another padding than it says.
    let [rsa, p256, p384, ed] = &signers;
    check(rsa, "ES256", rsa.jwk(&json!({})), Unauthenticated::NoKey);
    check(p256, "ES384", p256.jwk(&json!({})), Unauthenticated::NoKey);
    check(p384, "ES256", p384.jwk(&json!({})), Unauthenticated::NoKey);
    check(ed, "RS256", ed.jwk(&json!({})), Unauthenticated::NoKey);
    check(rsa, "PS256", rsa.jwk(&json!({})), Unauthenticated::Signature);
    check(rsa, "RS512", rsa.jwk(&json!({})), Unauthenticated::Signature);
    // Whoever knows the public key, which is everybody, knows this secret.
    let secret = json!({ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" });
    let token = signer::hmac(&json!({ "alg": "HS256" }), &claims(), b"secret");
    assert_eq!(judge(inline(&[secret]), &token), Err(Unauthenticated::Algorithm));
    let public = rsa.jwk(&json!({}));
    let token = signer::hmac(
        &json!({ "alg": "HS256" }),
        &claims(),
        public["n"].as_str().unwrap().as_bytes(),
    );
    assert_eq!(judge(inline(&[public]), &token), Err(Unauthenticated::Algorithm));
    // A key that the token brings along.
    let own = p256.sign(&json!({ "alg": "ES256", "jwk": p256.jwk(&json!({})) }), &claims());
    assert_eq!(
        judge(inline(&[ed.jwk(&json!({}))]), &own),
        Err(Unauthenticated::NoKey)
    );
}

#[test]
fn keys_are_picked_by_their_names() {
    let [_, p256, _, ed] = signers();
    let other = Signer::p256();
    let named = |signer: &Signer, kid: &str| signer.jwk(&json!({ "kid": kid }));
    let check = |header: Value, keys: &[Value], expect| {
        let token = p256.sign(&header, &claims());
        assert_eq!(judge(inline(keys), &token), expect, "{header} {keys:?}");
    };
    let (a, b) = (
        json!({ "alg": "ES256", "kid": "a" }),
        json!({ "alg": "ES256", "kid": "b" }),
    );
    let two = [named(&other, "a"), named(&p256, "b"), named(&ed, "b")];
    check(b, &two, Ok(()));
    check(a.clone(), &two, Err(Unauthenticated::Signature));
    let unnamed = json!({ "alg": "ES256" });
    check(unnamed.clone(), &two, Ok(()));
    check(a, &[p256.jwk(&json!({}))], Ok(()));
    check(unnamed.clone(), &[], Err(Unauthenticated::NoKey));
    // As many as are tried, and one more.
    let mut many = vec![other.jwk(&json!({})); 15];
    many.push(p256.jwk(&json!({})));
    check(unnamed.clone(), &many, Ok(()));
    many.insert(0, other.jwk(&json!({})));
    check(unnamed, &many, Err(Unauthenticated::Signature));
}

#[test]
fn keys_that_cannot_be_used_are_passed_over() {
    let count = |keys: Value| {
        keys::KeySet::read(json!({ "keys": keys }).to_string().as_bytes())
            .unwrap()
            .len()
    };
    let long = |bytes: usize| URL_SAFE_NO_PAD.encode(vec![0xff; bytes]);
    let rsa = |n: String, e: &str| json!([{ "kty": "RSA", "n": n, "e": e }]);
    assert_eq!(count(rsa(long(256), "AQAB")), 1);
    assert_eq!(count(rsa(long(1024), "AQAB")), 1);
    assert_eq!(count(rsa(long(255), "AQAB")), 0);
    assert_eq!(count(rsa(long(1025), "AQAB")), 0);
    assert_eq!(count(rsa(long(256), "")), 0);
    // Zeros in front make it no longer.
    assert_eq!(
        count(rsa(
            URL_SAFE_NO_PAD.encode([vec![0; 128], vec![0xff; 128]].concat()),
            "AQAB"
        )),
        0
    );
    let ec = |crv: &str, x: usize, y: usize| json!([{ "kty": "EC", "crv": crv, "x": long(x), "y": long(y) }]);
    assert_eq!(count(ec("P-256", 32, 32)), 1);
    assert_eq!(count(ec("P-256", 31, 33)), 0);
    assert_eq!(count(ec("P-521", 66, 66)), 0);
    assert_eq!(count(ec("secp256k1", 32, 32)), 0);
    assert_eq!(count(json!([{ "kty": "OKP", "crv": "Ed448", "x": long(57) }])), 0);
    assert_eq!(
        count(json!([{ "kty": "oct", "k": "c2VjcmV0" }, {}, 1, null, "x", { "kty": 1 }])),
        0
    );
}

#[test]
fn key_sets_that_are_none() {
    let check =
        |text: &str, good: bool| assert_eq!(keys::KeySet::read(text.as_bytes()).is_ok(), good, "{text:.40}");
    check(r#"{"keys":[]}"#, true);
    check(r#"{"keys":[],"more":1}"#, true);
    for text in [
        "",
        "[]",
        "{}",
        r#"{"keys":{}}"#,
        r#"{"keys":[],"keys":[]}"#,
        "<html>",
    ] {
        check(text, false);
    }
    check(&json!({ "keys": vec![json!({}); 100] }).to_string(), true);
    check(&json!({ "keys": vec![json!({}); 101] }).to_string(), false);
    check(&format!("{{\"keys\":[]{}}}", " ".repeat(keys::LARGEST)), false);
    // Tokens of a rule with such keys are refused.
    let token = Signer::ed25519().sign(&json!({ "alg": "EdDSA" }), &claims());
    assert_eq!(
        judge(rule(Jwks::Inline("{}".into())), &token),
        Err(Unauthenticated::NoKeys)
    );
    // And those whose keys nobody has fetched, which did not answer.
    let url = Jwks::Url("http://127.0.0.1:1/keys".into());
    assert_eq!(judge(rule(url), &token), Err(Unauthenticated::NoKeys));
}

#[test]
fn what_claims_must_say() {
    let signer = Signer::ed25519();
    let check = |change: Value, expect: Result<(), Unauthenticated>| {
        let mut claims = claims();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(name),
                value => claims
                    .as_object_mut()
                    .unwrap()
                    .insert(name.clone(), value.clone()),
            };
        }
        let token = signer.sign(&json!({ "alg": "EdDSA" }), &claims);
        let mut rule = inline(&[signer.jwk(&json!({}))]);
        rule.audiences = vec!["shop".into(), "pay".into()];
        rule.audiences
            .truncate(if change.get("aud").is_some() { 2 } else { 0 });
        assert_eq!(judge(rule, &token), expect, "{change}");
    };
    use Unauthenticated::{Audience, Claim, Expired, Issuer, NotYetValid};
    check(json!({}), Ok(()));
    check(json!({ "iss": format!("{ISSUER}/") }), Err(Issuer));
    check(json!({ "iss": null }), Err(Issuer));
    check(json!({ "iss": 1 }), Err(Issuer));
    // A minute of skew, either way.
    check(json!({ "exp": NOW - 60 }), Ok(()));
    check(json!({ "exp": NOW - 61 }), Err(Expired));
    check(json!({ "exp": 0 }), Err(Expired));
    check(json!({ "exp": -1.5e300 }), Err(Expired));
    check(json!({ "exp": null }), Ok(()));
    check(json!({ "exp": (NOW + 600).to_string() }), Err(Claim("exp")));
    check(json!({ "nbf": NOW + 60 }), Ok(()));
    check(json!({ "nbf": NOW as f64 + 60.5 }), Err(NotYetValid));
    check(json!({ "nbf": [] }), Err(Claim("nbf")));
    check(json!({ "aud": "shop" }), Ok(()));
    check(json!({ "aud": ["x", "pay"] }), Ok(()));
    check(json!({ "aud": ["x"] }), Err(Audience));
    check(json!({ "aud": [] }), Err(Audience));
    check(json!({ "aud": "shop pay" }), Err(Audience));
    check(json!({ "aud": { "shop": 1 } }), Err(Claim("aud")));
    check(json!({ "aud": ["shop", 1] }), Err(Claim("aud")));
}

#[test]
fn forms_that_are_none() {
    let signer = Signer::ed25519();
    let good = signer.sign(&json!({ "alg": "EdDSA" }), &claims());
    let rule = inline(&[signer.jwk(&json!({}))]);
    let check = |token: &str, expect| assert_eq!(judge(rule.clone(), token), Err(expect), "{token:.60}");
    let [header, payload, signature] = good.splitn(3, '.').collect::<Vec<_>>().try_into().unwrap();
    use Unauthenticated::{Critical, Form, Header, Payload, Signature, TooLarge};
    for token in ["x", "x.y", "a.b.c.d", "a.b.c.d.e", "opaque-token"] {
        check(token, Form);
    }
    check("..", Header("JSON"));
    check(&format!("!.{payload}.{signature}"), Header("Base64url encoded"));
    check(
        &format!("{header}=.{payload}.{signature}"),
        Header("Base64url encoded"),
    );
    check(
        &format!("{header}.{payload}=.{signature}"),
        Payload("Base64url encoded"),
    );
    check(&format!("{header}.W10.{signature}"), Payload("JSON"));
    check(&format!("{header}.{payload}."), Signature);
    check(&format!("{header}.{payload}.{signature}="), Signature);
    check(
        &format!("{header}.{payload}.{}", &signature[..signature.len() - 2]),
        Signature,
    );
    let other = signer.sign(
        &json!({ "alg": "EdDSA" }),
        &json!({ "iss": ISSUER, "sub": "root" }),
    );
    let other = other.split('.').nth(1).unwrap();
    check(&format!("{header}.{other}.{signature}"), Signature);
    let signed = |header: Value| signer.sign_as("EdDSA", &header, &claims());
    check(&signed(json!({ "alg": "EdDSA", "crit": ["exp"] })), Critical);
    check(&signed(json!({ "alg": "EdDSA", "b64": false })), Critical);
    check(&signed(json!({ "alg": 1 })), Header("JSON"));
    check(&signed(json!({ "alg": "EdDSA", "kid": 1 })), Header("JSON"));
    check(&signed(json!({})), Header("JSON"));
    check(&"a".repeat(verify::LONGEST + 1), TooLarge);
    let deep = URL_SAFE_NO_PAD.encode("[".repeat(1000));
    check(&format!("{header}.{deep}.{signature}"), Payload("JSON"));
}

#[test]
fn what_a_token_says() {
    let signer = Signer::ed25519();
    let token = |claims: Value| {
        let mut rule = inline(&[signer.jwk(&json!({}))]);
        rule.space_delimited_claims = vec!["roles".into()];
        let token = signer.sign(&json!({ "alg": "EdDSA" }), &claims);
        authenticate(rule, &mut bearer(&token), true).unwrap().unwrap()
    };
    let jane =
        token(json!({ "iss": ISSUER, "sub": "jane", "aud": ["a", "b"], "azp": "app", "roles": "x y" }));
    assert_eq!(&*jane.principal, "https://issuer.example/jane");
    assert_eq!(jane.audiences, ["a".into(), "b".into()]);
    assert_eq!(jane.presenter.as_deref(), Some("app"));
    assert_eq!(jane.claims["roles"], "x y");
    assert_eq!(jane.space_delimited, ["roles".into()]);
    for nobody in [
        json!({ "iss": ISSUER }),
        json!({ "iss": ISSUER, "sub": "" }),
        json!({ "iss": ISSUER, "sub": 1 }),
    ] {
        assert_eq!(&*token(nobody).principal, "");
    }
}

#[test]
fn a_rule_that_nobody_can_read_refuses_everybody() {
    let runtime = Runtime::new().unwrap();
    let authenticator = Authenticator::new(Fetcher::new(runtime.handle().clone(), []).unwrap());
    let mut unreadable = (*rules(vec![])).clone();
    unreadable.unreadable = vec!["jwtRules".into()];
    let rules = [rules(vec![]), Arc::new(unreadable)];
    let verdict = authenticator.authenticate(&rules, &mut request("/", &[]), now());
    assert_eq!(verdict, Err(Unauthenticated::Unreadable(rules[1].key.clone())));
    assert_eq!(
        authenticator.authenticate(&[], &mut request("/", &[]), now()),
        Ok(None)
    );
}

#[test]
fn rules_change_with_the_mesh() {
    let runtime = Runtime::new().unwrap();
    let authenticator = Authenticator::new(Fetcher::new(runtime.handle().clone(), []).unwrap());
    let (old, new) = (Signer::p256(), Signer::p256());
    let of = |signer: &Signer| rules(vec![inline(&[signer.jwk(&json!({}))])]);
    let token = |signer: &Signer| signer.sign(&json!({ "alg": "ES256" }), &claims());
    let judge = |rules: &Arc<RequestAuthentication>, signer: &Signer| {
        let rules = std::slice::from_ref(rules);
        authenticator
            .authenticate(rules, &mut bearer(&token(signer)), now())
            .map(|_| ())
    };
    let (before, after) = (of(&old), of(&new));
    for announced in [&before, &after, &before] {
        authenticator.update([announced]);
        // A mesh that is replaced is asked about for a moment.
        for (rules, signer, other) in [(&before, &old, &new), (&after, &new, &old)] {
            assert_eq!(judge(rules, signer), Ok(()));
            assert_eq!(judge(rules, other), Err(Unauthenticated::Signature));
        }
    }
}

#[test]
fn answers() {
    let check = |why: Unauthenticated, status: u16, body: &str| {
        assert_eq!((why.status().as_u16(), why.body().as_str()), (status, body));
    };
    check(Unauthenticated::Expired, 401, "Jwt is expired");
    check(Unauthenticated::Issuer, 401, "Jwt issuer is not configured");
    check(Unauthenticated::Signature, 401, "Jwt verification fails");
    check(
        Unauthenticated::Header("JSON"),
        401,
        "Jwt header is an invalid JSON",
    );
    check(Unauthenticated::Audience, 403, "Audiences in Jwt are not allowed");
    let check = |path: &str, expect: &str| {
        let challenge = Unauthenticated::Expired.challenge("http", "web.demo:80", path);
        let mut headers = HeaderMap::new();
        headers.insert(WWW_AUTHENTICATE, challenge);
        assert_eq!(headers[WWW_AUTHENTICATE], expect);
    };
    check(
        "/a",
        "Bearer realm=\"http://web.demo:80/a\", error=\"invalid_token\"",
    );
    check(
        "/\"\\\r\n\u{e9}, x=\"",
        "Bearer realm=\"http://web.demo:80/,x=\", error=\"invalid_token\"",
    );
    let long = Unauthenticated::Expired.challenge("http", "h", &"/".repeat(1000));
    assert_eq!(
        long.len(),
        "Bearer realm=\"\", error=\"invalid_token\"".len() + 256
    );
}

proptest! {
    #[test]
    fn no_text_panics(
        token in "[A-Za-z0-9_.=-]{0,80}|\\PC{0,80}",
        header in "\\PC{0,40}",
        payload in "\\PC{0,40}",
    ) {
        let rule = inline(&[]);
        let encoded = [&header, &payload].map(|part| URL_SAFE_NO_PAD.encode(part));
        for token in [token, format!("{}.{}.x", encoded[0], encoded[1])] {
            if let Ok(compact) = Compact::read(&token) {
                let _ = compact.check_time(now());
                let _ = compact.check_audience(&["a".into()]);
                let _ = compact.token(&rule);
            }
        }
    }

    #[test]
    fn no_key_set_panics(text in "\\PC{0,80}", kty in "RSA|EC|OKP|oct", value in "[A-Za-z0-9_-]{0,400}") {
        let _ = keys::KeySet::read(text.as_bytes());
        let key = json!({ "kty": kty, "crv": "P-256", "n": value, "e": value, "x": value, "y": value });
        let _ = keys::KeySet::read(json!({ "keys": [key] }).to_string().as_bytes());
    }
}
