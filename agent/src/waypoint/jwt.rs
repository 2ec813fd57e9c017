//! Tokens of requests (JWT, RFC 7519): found, verified, and told to the app; by Istio's RequestAuthentication.
//!
//! Everything that a request waits for is here and takes no lock: keys are parsed when a rule arrives, and those that are
//! fetched are fetched elsewhere ([`fetch`]). A request without a token passes, and nobody is known by it; one with a token
//! that is not in order does not. The clock comes in as an argument. Who is allowed what is another question.

use std::{sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode, request::Parts};
use thiserror::Error;

use crate::mesh::{
    PolicyKey,
    http::{RequestAuthentication, Token},
};

mod fetch;
mod keys;
mod output;
mod places;
mod rules;
#[cfg(test)]
mod tests;
mod verify;

pub use fetch::{Fetcher, FetcherError};
use places::Found;
use rules::{Known, PreparedRule, Rules};
use verify::Compact;

/// The most tokens that one request may carry.
const MOST_TOKENS: usize = 8;

/// Verifies the tokens of all requests of a process.
#[derive(Debug)]
pub struct Authenticator {
    known: ArcSwap<Known>,
    fetcher: Fetcher,
}

impl Authenticator {
    /// One that knows no rule yet.
    pub fn new(fetcher: Fetcher) -> Self {
        Self {
            known: ArcSwap::default(),
            fetcher,
        }
    }

    /// Says which rules there are; to be called by one task, whenever the mesh has changed and before it is put in force.
    /// Keys of new addresses begin to be fetched, those of addresses that are not named any more end.
    ///
    /// Rules that [`authenticate`](Self::authenticate) is asked about without are prepared for that one request, which is slow,
    /// and have no keys that must be fetched.
    pub fn update<'a>(&self, rules: impl IntoIterator<Item = &'a Arc<RequestAuthentication>>) {
        let next = self.known.load().next(rules, &self.fetcher);
        self.known.store(Arc::new(next));
    }

    /// Verifies the tokens that a request carries, as far as one of `rules` is about them, and writes the headers that the
    /// rules have for the app. What the client sent in such headers is removed, also where there is no token.
    ///
    /// The token of the first rule that has one is given back; none where there is none.
    ///
    /// # Errors
    /// When a token is not in order. Then the request is not changed.
    pub fn authenticate(
        &self,
        rules: &[Arc<RequestAuthentication>],
        request: &mut Parts,
        now: SystemTime,
    ) -> Result<Option<Token>, Unauthenticated> {
        if rules.is_empty() {
            return Ok(None);
        }
        let known = self.known.load();
        let rules = Rules::of(&known, rules);
        if let Some(key) = rules.unreadable() {
            return Err(Unauthenticated::Unreadable(key.clone()));
        }
        let found = places::find(rules.each(), request)?;
        let verified = found
            .iter()
            .map(|found| verify(found, now))
            .collect::<Result<Vec<_>, _>>()?;
        output::write(request, &rules, &found, &verified);
        Ok(verified.into_iter().next().map(|verified| verified.token))
    }
}

/// A token that is in order, and the rule that says so.
struct Verified<'a> {
    rule: &'a PreparedRule,
    token: Token,
    /// Claims as they are in the token.
    compact: Compact<'a>,
}

/// By the first rule of its issuer that looks where it was and finds it in order.
fn verify<'a>(found: &'a Found<'a>, now: SystemTime) -> Result<Verified<'a>, Unauthenticated> {
    let compact = Compact::read(&found.text)?;
    let of_issuer = found.rules.iter().filter(|rule| compact.is_of(&rule.rule.issuer));
    let mut why = Unauthenticated::Issuer;
    for rule in of_issuer {
        match rule.verify(&compact, now) {
            Ok(()) => {
                return Ok(Verified {
                    rule,
                    token: compact.token(&rule.rule),
                    compact,
                });
            }
            Err(err) => why = err,
        }
    }
    Err(why)
}

/// Why a request is answered with 401, or 403. The texts are those of Envoy, which people and their tests know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unauthenticated {
    /// Not three parts.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// The header's encoding, or what it says.
    #[error("Jwt header is an invalid {0}")]
    Header(&'static str),
    /// The payload's encoding, or what it says.
    #[error("Jwt payload is an invalid {0}")]
    Payload(&'static str),
    /// A claim that is there and of another type than it must be.
    #[error("Jwt payload [{0}] field is of another type than it must be")]
    Claim(&'static str),
    /// None of those that are believed: above all not `none`, and none with a secret that the verifier would have to have.
    #[error("Jwt header [alg] is not supported")]
    Algorithm,
    /// RFC 7515 4.1.11: something that must be understood, and is not.
    #[error("Jwt header [crit] is not supported")]
    Critical,
    /// `exp`.
    #[error("Jwt is expired")]
    Expired,
    /// `nbf`.
    #[error("Jwt not yet valid")]
    NotYetValid,
    /// Of nobody whose tokens are expected where it was.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// For somebody else.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// The keys have not arrived, or cannot be read.
    #[error("Jwks remote fetch is failed")]
    NoKeys,
    /// Of none of the keys that there are.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// The signature.
    #[error("Jwt verification fails")]
    Signature,
    /// A bound of ours.
    #[error("Jwt is too large, or there are too many")]
    TooLarge,
    /// A rule that nobody can read may be one that refuses.
    #[error("RequestAuthentication {0} cannot be enforced")]
    Unreadable(PolicyKey),
}

/// The longest address that a challenge repeats.
const LONGEST_REALM: usize = 256;

impl Unauthenticated {
    /// 401; 403 for a token that is good, but for somebody else.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Audience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// The body of the answer, `text/plain`.
    pub fn body(&self) -> String {
        self.to_string()
    }

    /// `WWW-Authenticate` (RFC 6750 3) for a request to this address, which is without its query.
    pub fn challenge(&self, scheme: &str, authority: &str, path: &str) -> HeaderValue {
        // What would end the quotes.
        let fits = |c: &char| matches!(c, '!' | '#'..='[' | ']'..='~');
        let parts = [scheme, "://", authority, path];
        let realm = parts.into_iter().flat_map(str::chars).filter(fits);
        let realm: String = realm.take(LONGEST_REALM).collect();
        let challenge = format!("Bearer realm=\"{realm}\", error=\"invalid_token\"");
        HeaderValue::try_from(challenge).unwrap_or(HeaderValue::from_static("Bearer"))
    }
}
