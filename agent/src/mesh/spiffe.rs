//! SPIFFE identities: the name a workload proves with its certificate.
//!
//! Pure: parsing and printing only. Certificates are read in `net::tls`.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

use super::Shared;

/// The name of a trust domain, for example `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, as everywhere in the field.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// Accepts lower-case letters, digits, dots, dashes and underscores (SPIFFE-ID 2.1), at most 255 bytes.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > 255 || !name.bytes().all(legal) {
            return Err(SpiffeIdError::TrustDomain(name.chars().take(64).collect()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, the only form that Istio's identities have.
///
/// Cheap to clone: the URI is stored once and its parts are ranges of it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain_len: u16,
    namespace_len: u16,
}

const SCHEME: &str = "spiffe://";
const NAMESPACE: &str = "/ns/";
const SERVICE_ACCOUNT: &str = "/sa/";
/// SPIFFE-ID 2.3: implementations must support URIs up to 2048 bytes and must not produce longer ones.
const LONGEST_URI: usize = 2048;

impl SpiffeId {
    /// The identity of `service_account` in `namespace`.
    ///
    /// # Errors
    /// When a name holds a character that a path segment of a SPIFFE ID may not hold.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, SpiffeIdError> {
        format!("{SCHEME}{trust_domain}{NAMESPACE}{namespace}{SERVICE_ACCOUNT}{service_account}").parse()
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI without `spiffe://`: what Istio's `principals` are matched against.
    pub fn principal(&self) -> &str {
        &self.uri[SCHEME.len()..]
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &str {
        &self.principal()[..usize::from(self.trust_domain_len)]
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        let start = usize::from(self.trust_domain_len) + NAMESPACE.len();
        &self.principal()[start..start + usize::from(self.namespace_len)]
    }

    /// The service account's name.
    pub fn service_account(&self) -> &str {
        let namespace = usize::from(self.trust_domain_len) + NAMESPACE.len();
        &self.principal()[namespace + usize::from(self.namespace_len) + SERVICE_ACCOUNT.len()..]
    }
}

impl Shared for SpiffeId {
    fn is_the_only_one(&self) -> bool {
        self.uri.is_the_only_one()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, Self::Err> {
        let malformed = || SpiffeIdError::Malformed(uri.chars().take(128).collect());
        if uri.len() > LONGEST_URI {
            return Err(malformed());
        }
        let rest = uri.strip_prefix(SCHEME).ok_or_else(malformed)?;
        let (trust_domain, path) = rest.split_once('/').ok_or_else(malformed)?;
        let trust_domain: TrustDomain = trust_domain.parse()?;
        let [ns, namespace, sa, service_account] = path
            .split('/')
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| malformed())?;
        if ns != "ns" || sa != "sa" || !is_segment(namespace) || !is_segment(service_account) {
            return Err(malformed());
        }
        Ok(Self {
            uri: uri.into(),
            trust_domain_len: trust_domain.as_str().len() as u16,
            namespace_len: namespace.len() as u16,
        })
    }
}

/// SPIFFE-ID 2.2: letters, digits, dots, dashes and underscores; `.` and `..` are not segments.
fn is_segment(segment: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(legal)
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not an identity of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpiffeIdError {
    /// The trust domain is empty, too long, or has other characters than SPIFFE allows.
    #[error("`{0}` is not a trust domain: use lower-case letters, digits, `.`, `-` and `_`")]
    TrustDomain(String),
    /// Not of the form that workloads have.
    #[error("`{0}` is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Malformed(String),
}

#[cfg(test)]
mod tests;
