//! A token in its compact form (RFC 7515 7.1), taken apart, and what its claims must say.
//!
//! Nothing that it says is believed before a key has verified it; the issuer is read first to know which.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, AlgorithmFamily};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Unauthenticated;
use crate::mesh::http::{JwtRule, Token};

/// The longest token that is read, in bytes.
pub(super) const LONGEST: usize = 16 * 1024;
/// How far clocks may be apart, in seconds: as in Envoy.
const SKEW: f64 = 60.0;

/// A token that was taken apart.
#[derive(Debug)]
pub(super) struct Compact<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    pub(super) claims: Map<String, Value>,
    /// What is signed: header and payload as they were sent.
    pub(super) message: &'a str,
    pub(super) payload: &'a str,
    pub(super) signature: &'a str,
}

impl<'a> Compact<'a> {
    pub(super) fn read(text: &'a str) -> Result<Self, Unauthenticated> {
        if text.len() > LONGEST {
            return Err(Unauthenticated::TooLarge);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(Unauthenticated::Form)?;
        let (header, payload) = message.split_once('.').ok_or(Unauthenticated::Form)?;
        if payload.contains('.') {
            return Err(Unauthenticated::Form);
        }
        let (algorithm, kid) = read_header(header)?;
        let decoded = base64url(payload).ok_or(Unauthenticated::Payload("Base64url encoded"))?;
        let claims = serde_json::from_slice(&decoded).map_err(|_| Unauthenticated::Payload("JSON"))?;
        Ok(Self {
            algorithm,
            kid,
            claims,
            message,
            payload,
            signature,
        })
    }

    /// Whether it says that this is its issuer: the very same text (RFC 7519 4.1.1).
    pub(super) fn is_of(&self, issuer: &str) -> bool {
        self.text("iss") == Some(issuer)
    }

    /// `exp` and `nbf`, as far as they are there (RFC 7519 4.1.4).
    pub(super) fn check_time(&self, now: SystemTime) -> Result<(), Unauthenticated> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        if self
            .number("nbf")?
            .is_some_and(|not_before| not_before > now + SKEW)
        {
            return Err(Unauthenticated::NotYetValid);
        }
        match self.number("exp")? {
            Some(expires) if now > expires + SKEW => Err(Unauthenticated::Expired),
            _ => Ok(()),
        }
    }

    /// Whether one of `allowed` is in `aud`; none allowed: whatever it is.
    pub(super) fn check_audience(&self, allowed: &[Arc<str>]) -> Result<(), Unauthenticated> {
        let mut audiences = self.audiences()?;
        if allowed.is_empty() || audiences.any(|audience| allowed.iter().any(|it| **it == *audience)) {
            return Ok(());
        }
        Err(Unauthenticated::Audience)
    }

    /// What it says. One without a subject has no principal: nobody is known by it, and no name matches.
    pub(super) fn token(&self, rule: &JwtRule) -> Token {
        let principal = match self.text("sub") {
            Some(subject) if !subject.is_empty() => format!("{}/{subject}", rule.issuer).into(),
            _ => "".into(),
        };
        let audiences = self.audiences().into_iter().flatten();
        Token {
            principal,
            audiences: audiences.map(Arc::from).collect(),
            presenter: self.text("azp").map(Arc::from),
            claims: self.claims.clone(),
            space_delimited: rule.space_delimited_claims.clone(),
        }
    }

    fn text(&self, claim: &str) -> Option<&str> {
        self.claims.get(claim)?.as_str()
    }

    fn number(&self, claim: &'static str) -> Result<Option<f64>, Unauthenticated> {
        match self.claims.get(claim) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Unauthenticated::Claim(claim)),
        }
    }

    /// One text, or a list of texts (RFC 7519 4.1.3).
    fn audiences(&self) -> Result<impl Iterator<Item = &str>, Unauthenticated> {
        let all = match self.claims.get("aud") {
            None => &[],
            Some(one @ Value::String(_)) => std::slice::from_ref(one),
            Some(Value::Array(several)) if several.iter().all(Value::is_string) => several.as_slice(),
            Some(_) => return Err(Unauthenticated::Claim("aud")),
        };
        Ok(all.iter().filter_map(Value::as_str))
    }
}

/// The algorithm, and which key it says it is.
fn read_header(header: &str) -> Result<(Algorithm, Option<String>), Unauthenticated> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        kid: Option<String>,
        crit: Option<Value>,
        // RFC 7797: a payload in another encoding, which must be in `crit`.
        b64: Option<Value>,
    }
    let decoded = base64url(header).ok_or(Unauthenticated::Header("Base64url encoded"))?;
    let header: Header = serde_json::from_slice(&decoded).map_err(|_| Unauthenticated::Header("JSON"))?;
    if header.crit.is_some() || header.b64.is_some() {
        return Err(Unauthenticated::Critical);
    }
    let algorithm: Algorithm = header.alg.parse().map_err(|_| Unauthenticated::Algorithm)?;
    if algorithm.family() == AlgorithmFamily::Hmac {
        return Err(Unauthenticated::Algorithm);
    }
    Ok((algorithm, header.kid))
}

/// RFC 7515 2: without padding, and with nothing in the bits that are left over.
pub(super) fn base64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
