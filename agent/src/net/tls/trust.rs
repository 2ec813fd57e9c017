//! Whom certificates are believed from: the roots, and the lists of what was revoked. Pure but for the cryptography.
//!
//! Asked at each handshake (see `identity`), and again of every open session when it changes (see `sessions`). webpki
//! verifies; this decides with which time and which lists it is asked.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, Error, OtherError, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
};
use thiserror::Error as ThisError;
use webpki::{EndEntityCert, KeyUsage, RevocationOptions};

use super::{TlsError, revocation::Revocations};

/// How far the clocks of two nodes may be apart: a chain is good if it is by a clock that is so much ahead or behind.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The certificates that chains must end in. Several, while a root is being replaced.
#[derive(Clone)]
pub struct TrustBundle {
    certs: Arc<[CertificateDer<'static>]>,
    anchors: Arc<RootCertStore>,
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle").field("roots", &self.len()).finish()
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.certs == other.certs
    }
}

/// A certificate as PEM (RFC 7468), with the line ends of everything else here.
pub fn to_pem(cert: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", cert.to_vec()), config)
}

impl TrustBundle {
    /// Reads every `CERTIFICATE` block of `pem`.
    ///
    /// # Errors
    /// When a block is damaged or is not a certificate, or when there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let certs = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        Self::from_der(certs.map_err(TlsError::bundle)?)
    }

    /// Takes certificates that were read elsewhere; one that comes twice is taken once.
    ///
    /// # Errors
    /// When one of them cannot be parsed, or when there is none.
    pub fn from_der(certs: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        let mut anchors = RootCertStore::empty();
        let mut kept = Vec::new();
        for (number, cert) in (1..).zip(certs) {
            if kept.contains(&cert) {
                continue;
            }
            let added = anchors.add(cert.clone());
            added.map_err(|err| TlsError::bundle(format!("certificate {number}: {err}")))?;
            kept.push(cert);
        }
        if kept.is_empty() {
            return Err(TlsError::bundle("it holds no certificate"));
        }
        Ok(Self {
            certs: kept.into(),
            anchors: anchors.into(),
        })
    }

    /// The roots of both.
    pub fn merged(&self, other: &Self) -> Self {
        let mut anchors = RootCertStore::clone(&self.anchors);
        let mut certs = self.certs.to_vec();
        let each = other.certs.iter().zip(&other.anchors.roots);
        for (cert, anchor) in each.filter(|(cert, _)| !self.certs.contains(cert)) {
            certs.push(cert.clone());
            anchors.roots.push(anchor.clone());
        }
        Self {
            certs: certs.into(),
            anchors: anchors.into(),
        }
    }

    /// The roots as PEM, one after the other.
    pub fn to_pem(&self) -> String {
        self.certs.iter().map(to_pem).collect()
    }

    /// How many roots there are.
    pub fn len(&self) -> usize {
        self.certs.len()
    }

    /// Whether there is no root; never true of a bundle that was built.
    pub fn is_empty(&self) -> bool {
        self.certs.is_empty()
    }
}

/// What a certificate is used for: its extended key usage must allow it, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Its owner was dialled.
    Server,
    /// Its owner dialled.
    Client,
}

/// Everything that decides whether a chain is believed. A value: what changes is which one is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Trust {
    bundle: TrustBundle,
    revocations: Revocations,
}

impl From<TrustBundle> for Trust {
    fn from(bundle: TrustBundle) -> Self {
        Self::new(bundle, Revocations::default())
    }
}

impl Trust {
    /// These roots, without what these lists revoke.
    pub fn new(bundle: TrustBundle, revocations: Revocations) -> Self {
        Self { bundle, revocations }
    }

    /// The roots.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The lists of what was revoked.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Whether `chain`, leaf first, leads to a root, is valid at `at` give or take [`CLOCK_SKEW`], may be used for
    /// `purpose`, and has not been revoked.
    ///
    /// For a session that is open `at` is the time of its handshake: a certificate that runs out does not end what was
    /// begun with it, but a root that is removed and a revocation do.
    ///
    /// # Errors
    /// The reason why not.
    pub fn accepts(
        &self,
        chain: &[CertificateDer<'_>],
        purpose: Purpose,
        at: UnixTime,
    ) -> Result<(), Rejected> {
        let asked = Question::new(self, chain, purpose)?;
        let refused = match asked.verify(at) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let since = Duration::from_secs(at.as_secs());
        // Only for the two answers that are about time, and the whole chain by one clock.
        let by_another_clock = match refused {
            webpki::Error::CertNotValidYet { .. } => since.checked_add(CLOCK_SKEW),
            webpki::Error::CertExpired { .. } => since.checked_sub(CLOCK_SKEW),
            _ => None,
        };
        match by_another_clock.map(|at| asked.verify(UnixTime::since_unix_epoch(at))) {
            Some(Ok(())) => Ok(()),
            // By that clock its time is good, but something else is not.
            Some(Err(other)) if !is_about_time(&other) => Err(asked.rejected(other)),
            Some(Err(_)) | None => Err(asked.rejected(refused)),
        }
    }
}

fn is_about_time(err: &webpki::Error) -> bool {
    use webpki::Error::{CertExpired, CertNotValidYet};
    matches!(err, CertExpired { .. } | CertNotValidYet { .. })
}

/// One chain, parsed, and whom it is held against.
struct Question<'a> {
    trust: &'a Trust,
    leaf: EndEntityCert<'a>,
    chain: &'a [CertificateDer<'a>],
    purpose: Purpose,
}

impl<'a> Question<'a> {
    fn new(trust: &'a Trust, chain: &'a [CertificateDer<'a>], purpose: Purpose) -> Result<Self, Rejected> {
        let leaf = chain.first().ok_or(Rejected::Empty)?;
        Ok(Self {
            trust,
            leaf: EndEntityCert::try_from(leaf).map_err(Rejected::Untrusted)?,
            chain,
            purpose,
        })
    }

    /// The chain, and then each list that its issuers may have signed. One at a time: webpki looks at the first list of
    /// an issuer's name only, and two roots may have the same name.
    fn verify(&self, at: UnixTime) -> Result<(), webpki::Error> {
        self.verify_once(at, None)?;
        let lists = self.trust.revocations.about(self.chain);
        lists
            .into_iter()
            .try_for_each(|list| list.ask(|options| self.verify_once(at, Some(options))))
    }

    fn verify_once(
        &self,
        at: UnixTime,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<(), webpki::Error> {
        let usage = match self.purpose {
            Purpose::Server => KeyUsage::server_auth(),
            Purpose::Client => KeyUsage::client_auth(),
        };
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let verified = self.leaf.verify_for_usage(
            algorithms.all,
            &self.trust.bundle.anchors.roots,
            &self.chain[1..],
            at,
            usage,
            revocation,
            None,
        );
        verified.map(drop)
    }

    fn rejected(&self, err: webpki::Error) -> Rejected {
        match err {
            webpki::Error::CertNotValidYet { time, not_before } => Rejected::NotValidYet {
                not_before: Time(not_before),
                now: Time(time),
            },
            webpki::Error::CertExpired { time, not_after } => Rejected::Expired {
                not_after: Time(not_after),
                now: Time(time),
            },
            webpki::Error::CertRevoked => Rejected::Revoked {
                serial: self
                    .leaf
                    .serial()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect(),
            },
            err @ (webpki::Error::InvalidCrlSignatureForPublicKey
            | webpki::Error::IssuerNotCrlSigner
            | webpki::Error::UnsupportedCrlSignatureAlgorithmContext(_)
            | webpki::Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)) => {
                Rejected::NoAnswer(err)
            }
            err => Rejected::Untrusted(err),
        }
    }
}

/// Why a chain is not believed.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum Rejected {
    /// There is none.
    #[error("no certificate was presented")]
    Empty,
    /// It begins later than a clock that is behind explains.
    #[error(
        "the certificate is not valid yet: it is valid from {not_before}, and it is {now} here; look at both clocks"
    )]
    NotValidYet {
        /// When it begins.
        not_before: Time,
        /// Our time.
        now: Time,
    },
    /// It ended longer ago than a clock that is ahead explains.
    #[error(
        "the certificate has expired: it was valid until {not_after}, and it is {now} here; look at both clocks"
    )]
    Expired {
        /// When it ended.
        not_after: Time,
        /// Our time.
        now: Time,
    },
    /// A list names it, or an issuer of it.
    #[error("the certificate, or an issuer's, has been revoked (serial number {serial})")]
    Revoked {
        /// The leaf's serial number, in hexadecimal.
        serial: String,
    },
    /// There is a list of its issuer's name and key, but the issuer has not signed it or may not sign lists.
    #[error("whether the certificate is revoked cannot be told: the CRL of its issuer cannot be used ({0})")]
    NoAnswer(webpki::Error),
    /// It leads to no root, or something in it is wrong.
    #[error("the certificate does not lead to a trusted root ({0})")]
    Untrusted(webpki::Error),
}

impl Rejected {
    /// What rustls is told: it decides the alert that the peer gets.
    pub(super) fn to_rustls(&self) -> Error {
        let err = match self.clone() {
            Self::NotValidYet { not_before, now } => CertificateError::NotValidYetContext {
                time: now.0,
                not_before: not_before.0,
            },
            Self::Expired { not_after, now } => CertificateError::ExpiredContext {
                time: now.0,
                not_after: not_after.0,
            },
            Self::Revoked { .. } => CertificateError::Revoked,
            Self::NoAnswer(_) => CertificateError::UnknownRevocationStatus,
            Self::Untrusted(webpki::Error::UnknownIssuer) => CertificateError::UnknownIssuer,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Error::InvalidCertificate(err)
    }
}

/// A time as people read it (RFC 3339).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub UnixTime);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = Duration::from_secs(self.0.as_secs());
        match std::time::UNIX_EPOCH.checked_add(since) {
            Some(time) => humantime::format_rfc3339_seconds(time).fmt(f),
            None => write!(f, "{} s after 1970", self.0.as_secs()),
        }
    }
}
