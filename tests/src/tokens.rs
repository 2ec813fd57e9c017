//! JSON Web Tokens, made as an issuer makes them (RFC 7519), with a key of the test's own.

use anyhow::Result;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

/// Whoever signs.
pub struct Issuer {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    /// With a key that nobody else has.
    pub fn new() -> Result<Self> {
        Ok(Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
            random: SystemRandom::new(),
        })
    }

    /// Its JSON Web Key Set (RFC 7517), on one line.
    pub fn jwks(&self) -> String {
        // An uncompressed point: 4, x, y.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let key = json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "test",
            "x": BASE64.encode(x), "y": BASE64.encode(y),
        });
        json!({ "keys": [key] }).to_string()
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> Result<String> {
        let header = json!({ "alg": "ES256", "typ": "JWT", "kid": "test" });
        let signed = format!("{}.{}", part(&header), part(claims));
        let signature = self.key.sign(&self.random, signed.as_bytes())?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// Of this issuer and subject, good for an hour.
    pub fn of(&self, issuer: &str, subject: &str) -> Result<String> {
        self.token(&json!({ "iss": issuer, "sub": subject, "exp": now() + 3600, "groups": ["a", "b"] }))
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    since.as_secs()
}

fn part(value: &Value) -> String {
    BASE64.encode(value.to_string())
}
