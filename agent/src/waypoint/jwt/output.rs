//! What an app is told of the tokens that were verified, and what it is not.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE},
    request::Parts,
};
use serde_json::{Map, Value};

use super::{Verified, places::Found, rules::Rules};
use crate::waypoint::headers;

/// The longest claim that becomes a header, in bytes.
const LONGEST_CLAIM: usize = 8 * 1024;

/// Removes what the client claims to be verified, and the tokens that are not for the app; then writes what is known.
pub(super) fn write(request: &mut Parts, rules: &Rules<'_>, found: &[Found<'_>], verified: &[Verified<'_>]) {
    for rule in rules.each() {
        let names = rule.claims.iter().map(|(name, _)| name).chain(&rule.payload);
        for name in names.filter(|name| is_ours_to_write(name)) {
            headers::remove_alike(&mut request.headers, name);
        }
    }
    for (found, verified) in found.iter().zip(verified) {
        if !verified.rule.rule.forward_original_token {
            found.place.remove(request, &found.text);
        }
    }
    for verified in verified {
        tell(request, verified);
    }
}

fn tell(request: &mut Parts, verified: &Verified<'_>) {
    let mut put = |name: &HeaderName, value: &[u8]| {
        if is_ours_to_write(name)
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            request.headers.insert(name.clone(), value);
        }
    };
    if let Some(name) = &verified.rule.payload {
        put(name, verified.compact.payload.as_bytes());
    }
    for (name, claim) in &verified.rule.claims {
        if let Some(text) = at(&verified.compact.claims, claim).and_then(text) {
            put(name, text.as_bytes());
        }
    }
}

/// A rule cannot say where a request goes or where its body ends.
fn is_ours_to_write(name: &HeaderName) -> bool {
    ![CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE].contains(name)
}

/// The claim of this name; with dots in it, the way to one that is inside of others.
fn at<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    at(claims.get(first)?.as_object()?, rest)
}

/// Texts, numbers and booleans as they are; lists and objects as JSON in base64, as Envoy has it.
fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(_) | Value::Object(_) => STANDARD.encode(value.to_string()),
    };
    (text.len() <= LONGEST_CLAIM).then_some(text)
}
