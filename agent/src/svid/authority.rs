//! Whoever signs for the store: a CA of our own (`local_ca`), for where there is no cluster.

use std::{fmt, pin::Pin};

use rustls::pki_types::CertificateDer;
use thiserror::Error;

use crate::net::tls::{TlsError, TrustBundle};

/// Signs certificate requests.
pub trait CertificateAuthority: fmt::Debug + Send + Sync {
    /// Has a request, in PEM, signed. It may wait for the network.
    fn sign<'a>(&'a self, csr_pem: &'a str) -> Signing<'a>;

    /// The roots that are known before anything was signed.
    fn trust(&self) -> TrustBundle;
}

/// The answer to come; an error when the CA refuses, fails, or cannot be reached.
pub type Signing<'a> = Pin<Box<dyn Future<Output = Result<Signed, CaError>> + Send + 'a>>;

/// What a CA answers.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate, then its issuers without the root: what a peer is sent.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots that it and those of other workloads end in.
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
    /// There is no way to the CA.
    #[error("the CA cannot be asked")]
    Channel(#[source] crate::rpc::ChannelError),
    /// The CA answered, but not with a certificate.
    #[error("the CA refused: {} ({:?})", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
}
