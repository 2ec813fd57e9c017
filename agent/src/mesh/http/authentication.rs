//! Whose tokens are believed (Istio's RequestAuthentication): the values.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::mesh::PolicyKey;

/// Tokens that requests may carry. A request with a token that one of the rules is about and that is not valid is answered
/// with 401; one without a token passes, and has no principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestAuthentication {
    /// Namespace and name.
    pub key: PolicyKey,
    /// One issuer each.
    pub rules: Vec<JwtRule>,
    /// What of it cannot be read. Then every request is answered with 401: nobody knows what it was to refuse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Arc<str>>,
}

/// Tokens of one issuer (Istio's JWTRule).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtRule {
    /// `iss`.
    pub issuer: Arc<str>,
    /// One of these must be in `aud`; none: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<Arc<str>>,
    /// What signatures are checked with.
    pub jwks: Jwks,
    /// Where tokens are looked for, besides `from_params` and `from_cookies`. With none of the three: `Authorization: Bearer` and
    /// the parameter `access_token`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_headers: Vec<TokenHeader>,
    /// Parameters of the query.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_params: Vec<Arc<str>>,
    /// Cookies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_cookies: Vec<Arc<str>>,
    /// The header in which the app gets the payload, base64url, in lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_payload_to_header: Option<Arc<str>>,
    /// Claims that the app gets as headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_claims: Vec<ClaimHeader>,
    /// Whether the app gets the token itself.
    #[serde(default)]
    pub forward_original_token: bool,
    /// How long fetching keys may take.
    pub timeout_ms: u64,
    /// Claims that are lists in one text, besides `scope` and `permission`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub space_delimited_claims: Vec<Arc<str>>,
}

/// Keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Jwks {
    /// A JSON Web Key Set (RFC 7517).
    Inline(Arc<str>),
    /// Where there is one, `http` or `https`.
    Url(Arc<str>),
}

/// A header with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenHeader {
    /// In lower case.
    pub name: Arc<str>,
    /// What stands before it (`Bearer `).
    #[serde(default)]
    pub prefix: Arc<str>,
}

/// A claim as a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimHeader {
    /// In lower case. What a client sends under this name never reaches the app.
    pub header: Arc<str>,
    /// Nested ones with dots: `a.b`.
    pub claim: Arc<str>,
}
