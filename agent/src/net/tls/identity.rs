//! Who is at the other end: the SPIFFE identity of a certificate, and the two verifiers that rustls calls.
//!
//! The chain is verified first (`trust`, no host names), then the identity. Nothing here knows about policy.

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use thiserror::Error as ThisError;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Purpose, Rejected, Trust};
use crate::mesh::{SpiffeId, SpiffeIdError, TrustDomain};

/// The identity in a peer's chain, leaf first. The chain itself must have been verified.
///
/// # Errors
/// When the leaf cannot be read, or names no workload or more than one (X509-SVID 2: exactly one URI SAN).
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<SpiffeId, IdentityError> {
    let leaf = certs.first().ok_or(IdentityError::NoCertificate)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| IdentityError::Unreadable)?;
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| IdentityError::Unreadable)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.parse()?),
        (Some(_), Some(_)) => Err(IdentityError::SeveralUris),
        (None, _) => Err(IdentityError::NoUri),
    }
}

/// When the leaf of a chain runs out; none where it cannot be read.
pub fn expires(certs: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let (_, leaf) = X509Certificate::from_der(certs.first()?).ok()?;
    let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// Whether a handshake failed because of who the peer is: the chain was good, the identity was not.
pub fn is_identity_error(err: &io::Error) -> bool {
    identity_error(err).is_some()
}

/// What a verifier of ours said, from inside the error that tokio-rustls makes of it.
pub(super) fn identity_error(err: &io::Error) -> Option<&IdentityError> {
    match err.get_ref()?.downcast_ref()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// Why a verified certificate is not the one of the workload that should be there.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum IdentityError {
    /// No certificate was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// The certificate's names cannot be parsed.
    #[error("the names in the certificate cannot be read")]
    Unreadable,
    /// No URI among its names.
    #[error("the certificate has no URI among its names, so it is no SPIFFE certificate")]
    NoUri,
    /// X509-SVID allows one.
    #[error("the certificate has more than one URI among its names")]
    SeveralUris,
    /// The URI is not a workload's.
    #[error(transparent)]
    NotSpiffe(#[from] SpiffeIdError),
    /// Somebody of a mesh that is not ours.
    #[error("{0} is not of a trust domain that is accepted here")]
    TrustDomain(SpiffeId),
    /// Somebody else: a valid certificate of another service account.
    #[error("the peer proved to be {presented}, expected {expected}")]
    Unexpected {
        /// Who came.
        presented: SpiffeId,
        /// Who should have come.
        expected: Expected,
    },
}

impl From<IdentityError> for Error {
    fn from(err: IdentityError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(err))))
    }
}

/// The identities that would have been accepted, printed as `a or b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected(Arc<[SpiffeId]>);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, id) in self.0.iter().enumerate() {
            write!(f, "{}{id}", if i == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// What a verifier of ours has said, in full: rustls keeps of it what the alert to the peer needs.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Rejected>>>);

impl Verdict {
    /// Asks, and notes a no.
    fn ask(
        &self,
        trust: &Trust,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        trust.accepts(&chain, purpose, now).map_err(|rejected| {
            let err = rejected.to_rustls();
            *self.lock() = Some(rejected);
            err
        })
    }

    /// The no, if there was one since the last time.
    pub(super) fn take(&self) -> Option<Rejected> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Rejected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a client asks of a server's certificate: the chain, and one of the identities the mesh gives for it.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    trust: Arc<Trust>,
    accept: Arc<[SpiffeId]>,
    algorithms: WebPkiSupportedAlgorithms,
    verdict: Verdict,
}

impl ServerVerifier {
    pub(super) fn new(
        trust: Arc<Trust>,
        accept: Arc<[SpiffeId]>,
        provider: &CryptoProvider,
        verdict: Verdict,
    ) -> Self {
        Self {
            trust,
            accept,
            algorithms: provider.signature_verification_algorithms,
            verdict,
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verdict
            .ask(&self.trust, leaf, intermediates, Purpose::Server, now)?;
        let presented = peer_identity(std::slice::from_ref(leaf))?;
        if self.accept.contains(&presented) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(IdentityError::Unexpected {
            presented,
            expected: Expected(self.accept.clone()),
        }
        .into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a server asks of a client's certificate: its chain, and an identity of our trust domains; and that there is one, unless
/// clients may also say otherwise who they are.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    trust: Arc<Trust>,
    trust_domains: Vec<TrustDomain>,
    algorithms: WebPkiSupportedAlgorithms,
    verdict: Verdict,
    is_mandatory: bool,
}

impl ClientVerifier {
    pub(super) fn new(
        trust: Arc<Trust>,
        trust_domains: &[TrustDomain],
        provider: &CryptoProvider,
        verdict: Verdict,
    ) -> Self {
        Self {
            trust,
            trust_domains: trust_domains.to_vec(),
            algorithms: provider.signature_verification_algorithms,
            verdict,
            is_mandatory: true,
        }
    }

    /// A client without a certificate is let in as nobody.
    pub(super) fn optional(self) -> Self {
        Self {
            is_mandatory: false,
            ..self
        }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    /// None: clients have one certificate each, and the names of our roots would only make the handshake longer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verdict
            .ask(&self.trust, leaf, intermediates, Purpose::Client, now)?;
        let peer = peer_identity(std::slice::from_ref(leaf))?;
        if self
            .trust_domains
            .iter()
            .any(|domain| domain.as_str() == peer.trust_domain())
        {
            return Ok(ClientCertVerified::assertion());
        }
        Err(IdentityError::TrustDomain(peer).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(not_spoken())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn not_spoken() -> Error {
    Error::General("TLS 1.2 is not spoken".into())
}
