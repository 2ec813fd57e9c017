//! Whoever signs for the store. One kind so far: a CA of our own, for where there is no cluster.

use rustls::pki_types::CertificateDer;
use thiserror::Error;

use super::LocalCa;
use crate::net::tls::{TlsError, TrustBundle};

/// Signs certificate requests.
#[derive(Debug)]
pub enum CertificateAuthority {
    /// A root certificate and its key, read from files.
    Local(LocalCa),
}

/// What a CA answers.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate, then its issuers without the root: what a peer is sent.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that it ends in, and those of other workloads.
    pub trust: TrustBundle,
}

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CaError {
    /// The local CA refused or failed.
    #[error("the local CA did not sign")]
    Local(#[source] super::LocalCaError),
    /// What it gave cannot be used.
    #[error("the certificate that the CA gave cannot be used: {0}")]
    Unusable(String),
    /// The request could not be made.
    #[error("no certificate could be asked for")]
    Csr(#[source] super::CsrError),
    /// rustls does not take the certificate or its key.
    #[error("the certificate that the CA gave does not fit its key")]
    Key(#[source] rustls::Error),
    /// No randomness, or no roots.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    /// No answer.
    #[error("the CA did not answer in time")]
    TimedOut,
}

impl CertificateAuthority {
    /// Has a request signed. It may wait for the network.
    ///
    /// # Errors
    /// When the CA refuses, fails, or cannot be reached.
    pub async fn sign(&self, csr_pem: &str) -> Result<Signed, CaError> {
        match self {
            Self::Local(ca) => ca.sign(csr_pem).map_err(CaError::Local),
        }
    }

    /// The roots that are known before anything was signed.
    pub fn trust(&self) -> TrustBundle {
        match self {
            Self::Local(ca) => ca.trust(),
        }
    }
}
