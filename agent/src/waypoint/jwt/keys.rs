//! Key sets (JWKS, RFC 7517), and which of their keys may have signed a token.
//!
//! A key is for the algorithms of its type, or for the one that it names: a token cannot choose another (RFC 8725 3.1).

use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::{Unauthenticated, verify::Compact, verify::base64url};

/// The largest set that is read, in bytes.
pub(super) const LARGEST: usize = 1024 * 1024;
/// The most keys that a set may have.
const MOST_KEYS: usize = 100;
/// How many keys are tried for a token that does not say which one it is.
const MOST_TRIES: usize = 16;

/// Why a set is none.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each message says it")]
pub(super) enum KeySetError {
    #[error("a key set of more than {LARGEST} bytes")]
    TooLarge,
    #[error("more than {MOST_KEYS} keys in one set")]
    TooMany,
    #[error("not a key set")]
    Json(#[source] serde_json::Error),
}

/// The keys of a set that can be used. Others are passed over, as RFC 7517 5 has it.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    pub(super) fn read(json: &[u8]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Written {
            keys: Vec<Value>,
        }
        if json.len() > LARGEST {
            return Err(KeySetError::TooLarge);
        }
        let Written { keys } = serde_json::from_slice(json).map_err(KeySetError::Json)?;
        if keys.len() > MOST_KEYS {
            return Err(KeySetError::TooMany);
        }
        let keys = keys.into_iter().filter_map(Key::read).collect();
        Ok(Self { keys })
    }

    /// How many keys can be used.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether one of the keys has signed it: the one that it names, or any that fits. Keys without a name are tried always.
    pub(super) fn verify(&self, compact: &Compact<'_>) -> Result<(), Unauthenticated> {
        let named = |key: &&Key| match (&compact.kid, &key.kid) {
            (Some(asked), Some(kid)) => asked == kid,
            _ => true,
        };
        let fits = |key: &&Key| key.algorithms.contains(&compact.algorithm);
        let mut why = Unauthenticated::NoKey;
        for key in self.keys.iter().filter(named).filter(fits).take(MOST_TRIES) {
            let signed = crypto::verify(
                compact.signature,
                compact.message.as_bytes(),
                &key.key,
                compact.algorithm,
            );
            match signed {
                Ok(true) => return Ok(()),
                // An error is a signature that is not even one.
                Ok(false) | Err(_) => why = Unauthenticated::Signature,
            }
        }
        Err(why)
    }
}

/// A key as it is written (RFC 7517 4, RFC 7518 6, RFC 8037 2).
#[derive(Deserialize)]
struct Written {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Key {
    /// None where it is not for signatures, or of a type that is not believed.
    fn read(value: Value) -> Option<Self> {
        let written = Written::deserialize(value).ok()?;
        let signs = written.usage.as_deref().is_none_or(|usage| usage == "sig");
        let ops = written.key_ops.as_deref();
        if !signs || !ops.is_none_or(|ops| ops.iter().any(|op| op == "verify")) {
            return None;
        }
        let (mut algorithms, key) = match written.kty.as_str() {
            "RSA" => written.rsa()?,
            "EC" => written.ec()?,
            "OKP" => written.okp()?,
            // `oct` above all: a secret is not for verifying what others sign.
            _ => return None,
        };
        if let Some(named) = &written.alg {
            let named: Algorithm = named.parse().ok()?;
            algorithms.retain(|algorithm| *algorithm == named);
        }
        (!algorithms.is_empty()).then_some(Self {
            kid: written.kid,
            algorithms,
            key,
        })
    }
}

impl Written {
    /// Of 2048 to 8192 bits (RFC 7518 3.3, and what can be checked in time).
    fn rsa(&self) -> Option<(Vec<Algorithm>, DecodingKey)> {
        use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
        let (n, e) = (base64url(self.n.as_deref()?)?, base64url(self.e.as_deref()?)?);
        let zeros = n.iter().take_while(|byte| **byte == 0).count();
        let n = n.get(zeros..)?;
        if !(256..=1024).contains(&n.len()) || e.is_empty() || e.len() > 8 {
            return None;
        }
        let key = DecodingKey::from_rsa_raw_components(n, &e);
        Some((vec![RS256, RS384, RS512, PS256, PS384, PS512], key))
    }

    fn ec(&self) -> Option<(Vec<Algorithm>, DecodingKey)> {
        let (algorithm, length) = match self.crv.as_deref()? {
            "P-256" => (Algorithm::ES256, 32),
            "P-384" => (Algorithm::ES384, 48),
            _ => return None,
        };
        let (x, y) = (base64url(self.x.as_deref()?)?, base64url(self.y.as_deref()?)?);
        if x.len() != length || y.len() != length {
            return None;
        }
        // Uncompressed (SEC 1 2.3.3).
        let point = [&[4], x.as_slice(), &y].concat();
        Some((vec![algorithm], DecodingKey::from_ec_der(&point)))
    }

    fn okp(&self) -> Option<(Vec<Algorithm>, DecodingKey)> {
        let x = base64url(self.x.as_deref()?)?;
        let ed25519 = self.crv.as_deref() == Some("Ed25519") && x.len() == 32;
        ed25519.then(|| (vec![Algorithm::EdDSA], DecodingKey::from_ed_der(&x)))
    }
}
