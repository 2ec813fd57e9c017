//! RequestAuthentication: whose tokens are believed, and for whom that counts.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{Labels, ObjectRef, Reader, Selector, Severity, Targets, targets, there, words},
    mesh::{
        Match, Place, Policy, PolicyKey,
        http::{ClaimHeader, ConditionKey, Jwks, JwtRule, RequestAuthentication, TokenHeader},
        values,
    },
};

/// How long fetching keys may take where nobody says it (Istio's).
const TIMEOUT_MS: u64 = 5_000;
/// The largest set of keys, in bytes.
const LARGEST_KEYS: usize = 256 * 1024;

/// One, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Authentication {
    /// The object.
    pub object: ObjectRef,
    /// What it says.
    pub value: Arc<RequestAuthentication>,
    /// Whom a selector selects; none where it is for all of its scope.
    pub selector: Option<Labels>,
    /// The services and waypoints that it is for.
    pub targets: Targets,
}

const FIELDS: [&str; 4] = ["selector", "targetRef", "targetRefs", "jwtRules"];

const RULE: [&str; 13] = [
    "issuer",
    "audiences",
    "jwksUri",
    "jwks_uri",
    "jwks",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "outputPayloadToHeader",
    "forwardOriginalToken",
    "outputClaimToHeaders",
    "timeout",
    "spaceDelimitedClaims",
];

/// Reads one.
pub fn authentication(object: &Custom, reader: &mut Reader<'_>) -> Authentication {
    let reference = ObjectRef::new(Kind::RequestAuthentication, &object.metadata);
    let (spec, place) = (&object.spec, Place::ROOT.field("spec"));
    let mut unreadable: Vec<Arc<str>> = Vec::new();
    let nothing = Value::Object(Default::default());
    let spec = match spec {
        Value::Null => &nothing,
        spec => spec,
    };
    match reader.fields(spec, &place) {
        Some(fields) => {
            let strange: Vec<_> = fields
                .keys()
                .filter(|it| !FIELDS.contains(&it.as_str()))
                .collect();
            for field in strange {
                reader.invalid(&place.field(field), "is not known here: correct or remove it");
                unreadable.push(field.as_str().into());
            }
        }
        None => unreadable.push("spec".into()),
    }
    let before = reader.faults();
    let rules = reader.list(spec, "jwtRules", &place).iter().enumerate();
    let in_rules = place.field("jwtRules");
    let rules: Vec<_> = rules
        .filter_map(|(i, value)| rule(value, &in_rules.index(i), reader))
        .collect();
    if reader.faults() > before {
        unreadable.push("jwtRules".into());
    } else if rules.is_empty() {
        reader.tell(
            Severity::Warning,
            "NoRules",
            "spec.jwtRules: is empty, so that no token is looked at",
        );
    }
    let (selector, targets) = whom(spec, &mut unreadable, reader);
    if !unreadable.is_empty() {
        let message =
            "cannot be read whole, so that every request that it is for is answered with 401: mend it";
        reader.tell(Severity::Error, "Closed", message);
    }
    let key = PolicyKey {
        namespace: reference.namespace.as_str().into(),
        name: reference.name.as_str().into(),
    };
    Authentication {
        object: reference,
        value: Arc::new(RequestAuthentication {
            key,
            rules,
            unreadable,
        }),
        selector,
        targets,
    }
}

/// For whom it is. Where nobody knows, it is for all that may be meant.
fn whom(spec: &Value, unreadable: &mut Vec<Arc<str>>, reader: &mut Reader<'_>) -> (Option<Labels>, Targets) {
    let targets = targets(spec, reader);
    if targets.unreadable {
        unreadable.push("targetRefs".into());
    }
    if targets.any {
        if there(spec, "selector").is_some() {
            let message = "spec: has both selector and targetRefs: only targetRefs counts";
            reader.tell(Severity::Warning, "SelectorIgnored", message);
        }
        return (None, targets);
    }
    match reader.selector(spec) {
        Selector::Labels(labels) => (Some(labels), targets),
        Selector::Everything | Selector::Unreadable => (None, targets),
    }
}

fn rule(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<JwtRule> {
    let fields = reader.fields(value, place)?;
    for field in fields.keys().filter(|it| !RULE.contains(&it.as_str())) {
        reader.invalid(&place.field(field), "is not known here: correct or remove it");
    }
    let timeout = reader.optional(value, "timeout", place, words::duration);
    Some(JwtRule {
        issuer: reader.required(value, "issuer", place, words::text)?,
        audiences: reader.all(value, "audiences", place, words::text),
        jwks: jwks(value, place, reader)?,
        from_headers: from_headers(value, place, reader),
        from_params: reader.all(value, "fromParams", place, words::text),
        from_cookies: reader.all(value, "fromCookies", place, words::text),
        output_payload_to_header: reader.optional(value, "outputPayloadToHeader", place, words::header_name),
        output_claims: output_claims(value, place, reader),
        forward_original_token: reader
            .optional(value, "forwardOriginalToken", place, words::truth)
            .unwrap_or(false),
        timeout_ms: timeout.filter(|ms| *ms > 0).unwrap_or(TIMEOUT_MS),
        space_delimited_claims: reader.all(value, "spaceDelimitedClaims", place, words::text),
    })
}

fn jwks(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Jwks> {
    let keys = |text: &str| {
        let is_set = |it: Value| it.get("keys").is_some_and(Value::is_array);
        let fits = text.len() <= LARGEST_KEYS && serde_json::from_str(text).is_ok_and(is_set);
        match fits {
            true => Ok(Jwks::Inline(text.into())),
            false => Err("is not a set of keys: write JSON with `keys` (RFC 7517)".to_owned()),
        }
    };
    let url = |text: &str| match text.parse::<http::Uri>() {
        Ok(uri) if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() => {
            Ok(Jwks::Url(text.into()))
        }
        _ => Err(format!(
            "{} is no URL of keys: write https://...",
            values::quoted(text)
        )),
    };
    let not_empty = |field| there(value, field).is_some_and(|it| it.as_str() != Some(""));
    if not_empty("jwks") {
        return reader.optional(value, "jwks", place, keys);
    }
    for field in ["jwksUri", "jwks_uri"] {
        if not_empty(field) {
            return reader.optional(value, field, place, url);
        }
    }
    let message = "is missing, and the issuer is not asked for its keys yet: add jwksUri or jwks";
    reader.invalid(&place.field("jwksUri"), message);
    None
}

fn from_headers(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<TokenHeader> {
    let entries = reader.list(value, "fromHeaders", place);
    let place = place.field("fromHeaders");
    let mut headers = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let place = place.index(i);
        let name = reader.required(entry, "name", &place, words::header_name);
        let prefix = reader.optional(entry, "prefix", &place, words::any_text);
        headers.extend(name.map(|name| TokenHeader {
            name,
            prefix: prefix.unwrap_or_default(),
        }));
    }
    headers
}

fn output_claims(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<ClaimHeader> {
    let entries = reader.list(value, "outputClaimToHeaders", place);
    let place = place.field("outputClaimToHeaders");
    let mut claims = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let place = place.index(i);
        let header = reader.required(entry, "header", &place, words::header_name);
        let claim = reader.required(entry, "claim", &place, words::text);
        claims.extend(
            header
                .zip(claim)
                .map(|(header, claim)| ClaimHeader { header, claim }),
        );
    }
    claims
}

/// Whether a policy asks for what only a valid token says.
pub fn needs_token(policy: &Policy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut matches = clauses.flat_map(|clause| &clause.matches);
    let asks = |match_: &Match| {
        match_.request.as_ref().is_some_and(|it| {
            let of_token = |key: &ConditionKey| {
                matches!(
                    key,
                    ConditionKey::Principal
                        | ConditionKey::Audiences
                        | ConditionKey::Presenter
                        | ConditionKey::Claim(_)
                )
            };
            !it.request_principals.is_empty()
                || it
                    .when
                    .iter()
                    .any(|it| of_token(&it.key) && !it.values.is_empty())
        })
    };
    matches.any(asks)
}
