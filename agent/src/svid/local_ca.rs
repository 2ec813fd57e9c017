//! A CA from two PEM files, for where there is no cluster: the demo, the tests, and machines with a root of their own.
//!
//! It signs whatever well-formed request it gets; who may ask is the caller's business.

use std::{
    fmt, fs,
    future::ready,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{
    CaError, CertificateAuthority, Signed, Signing,
    csr::{CsrError, ReadCsr, uri},
    key::Key,
};
use crate::{
    mesh::{SpiffeId, TrustDomain},
    net::tls::{self, TlsError, TrustBundle},
};

/// How long a certificate is good for: as in Istio's ambient mode.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Clocks of nodes differ.
const BACKDATED: Duration = Duration::from_secs(60);
/// How long a root that we make is good for.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A certificate that may sign, its key, and what leads from it to its root.
pub struct LocalCa {
    issuer: Issuer<'static, Key>,
    not_after: SystemTime,
    /// From our own certificate up to the root, which is not part of it.
    intermediates: Vec<CertificateDer<'static>>,
    trust: TrustBundle,
}

impl fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCa")
            .field("intermediates", &self.intermediates.len())
            .finish_non_exhaustive()
    }
}

impl LocalCa {
    /// A new root: its certificate and its key, as PEM.
    ///
    /// # Errors
    /// When the crypto library cannot make a key.
    pub fn create(trust_domain: &TrustDomain) -> Result<(String, String), LocalCaError> {
        let key = KeyPair::generate().map_err(LocalCaError::Sign)?;
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, trust_domain.as_str());
        params.distinguished_name.push(DnType::CommonName, "weft root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + ROOT_LIFETIME).into();
        params.serial_number = Some(serial()?);
        let cert = params.self_signed(&key).map_err(LocalCaError::Sign)?;
        Ok((cert.pem(), key.serialize_pem()))
    }

    /// Reads the two files. The first certificate is the one that signs. Of the others, those that have signed themselves
    /// are more roots to be trusted, and the rest are the issuers of the first. Where none has signed itself the last is
    /// trusted.
    ///
    /// # Errors
    /// When a file cannot be read, is not what it should be, or the two do not belong together; each says the mend.
    pub fn load(cert_path: &Path, key_path: &Path) -> Result<Self, LocalCaError> {
        let cert_pem = read(cert_path)?;
        let key_pem = Zeroizing::new(read(key_path)?);
        Self::from_pem(&cert_pem, &key_pem, cert_path, key_path)
    }

    /// The same, of what is in memory; errors call the two by these names.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_pem(
        cert_pem: &[u8],
        key_pem: &[u8],
        cert_path: &Path,
        key_path: &Path,
    ) -> Result<Self, LocalCaError> {
        let bad_cert = |why: String| LocalCaError::Certificate {
            path: cert_path.into(),
            why,
        };
        let bad_key = |why: String| LocalCaError::Key {
            path: key_path.into(),
            why,
        };
        let chain = CertificateDer::pem_slice_iter(cert_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| bad_cert(err.to_string()))?;
        let first = chain
            .first()
            .ok_or_else(|| bad_cert("it holds no certificate".into()))?
            .clone();
        let (_, parsed) = X509Certificate::from_der(&first).map_err(|err| bad_cert(err.to_string()))?;
        let not_after = check_ca(&parsed).map_err(bad_cert)?;
        let key = Key::from_pem(key_pem).map_err(bad_key)?;
        if parsed.public_key().subject_public_key.data != key.der_bytes() {
            return Err(LocalCaError::Mismatch {
                cert: cert_path.into(),
                key: key_path.into(),
            });
        }
        let (mut roots, mut intermediates): (Vec<_>, Vec<_>) = chain.into_iter().partition(is_root);
        if roots.is_empty() {
            roots.extend(intermediates.pop());
        }
        let trust = TrustBundle::from_der(roots).map_err(|err| bad_cert(err.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&first, key).map_err(|err| bad_cert(err.to_string()))?;
        Ok(Self {
            issuer,
            not_after,
            intermediates,
            trust,
        })
    }

    /// A certificate of 24 hours for the one name in the request, for both ends of a connection.
    ///
    /// # Errors
    /// When the request is not a good one, or the CA itself has expired.
    pub fn certify(&self, csr_pem: &str) -> Result<Signed, LocalCaError> {
        let csr = ReadCsr::from_pem(csr_pem).map_err(LocalCaError::Csr)?;
        self.sign_for(&csr, LIFETIME)
    }

    /// The same, for this name only, whoever asks, and for no longer than `lifetime`.
    ///
    /// # Errors
    /// As [`certify`](Self::certify), and when the request is for another name.
    pub fn certify_only(
        &self,
        csr_pem: &str,
        id: &SpiffeId,
        lifetime: Duration,
    ) -> Result<Signed, LocalCaError> {
        let csr = ReadCsr::from_pem(csr_pem).map_err(LocalCaError::Csr)?;
        if csr.id != *id {
            return Err(LocalCaError::AnotherName {
                asked: csr.id,
                allowed: id.clone(),
            });
        }
        self.sign_for(&csr, lifetime.min(LIFETIME))
    }

    fn sign_for(&self, csr: &ReadCsr, lifetime: Duration) -> Result<Signed, LocalCaError> {
        // An empty subject, as Istio's: the name is the URI, whose extension is critical then (RFC 5280 4.2.1.6).
        let names = vec![uri(&csr.id).map_err(LocalCaError::Csr)?];
        let mut params = self.params(names, lifetime)?;
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
        let cert = params
            .signed_by(&csr.key, &self.issuer)
            .map_err(LocalCaError::Sign)?;
        Ok(Signed {
            chain: self.chain(cert),
            trust: self.trust.clone(),
        })
    }

    /// A certificate of 24 hours for a server with these DNS names, and a fresh key.
    ///
    /// # Errors
    /// When a name is none, the CA has expired, or the crypto library fails.
    pub fn server_cert(&self, names: &[String]) -> Result<ServerCert, LocalCaError> {
        let key = KeyPair::generate().map_err(LocalCaError::Sign)?;
        let dns = |name: &String| Ok(SanType::DnsName(name.as_str().try_into()?));
        let names: Result<_, rcgen::Error> = names.iter().map(dns).collect();
        let params = self.params(names.map_err(LocalCaError::Sign)?, LIFETIME)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(LocalCaError::Sign)?;
        Ok(ServerCert {
            chain: self.chain(cert),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    fn params(&self, names: Vec<SanType>, lifetime: Duration) -> Result<CertificateParams, LocalCaError> {
        let now = SystemTime::now();
        if self.not_after <= now {
            return Err(LocalCaError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + lifetime).min(self.not_after).into();
        params.serial_number = Some(serial()?);
        Ok(params)
    }

    fn chain(&self, cert: rcgen::Certificate) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![cert.into()];
        chain.extend_from_slice(&self.intermediates);
        chain
    }
}

/// A server's certificate and its key.
#[derive(Debug)]
pub struct ServerCert {
    /// The certificate, then its issuers without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// RFC 5958.
    pub key: PrivateKeyDer<'static>,
}

impl CertificateAuthority for LocalCa {
    fn sign<'a>(&'a self, csr_pem: &'a str) -> Signing<'a> {
        Box::pin(ready(self.certify(csr_pem).map_err(CaError::Local)))
    }

    fn trust(&self) -> TrustBundle {
        self.trust.clone()
    }
}

/// Whether a certificate has signed itself.
fn is_root(cert: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(cert).is_ok_and(|(_, cert)| cert.verify_signature(None).is_ok())
}

/// RFC 5280 4.1.2.2: positive, at most 20 octets; 127 random bits cannot be guessed.
fn serial() -> Result<rcgen::SerialNumber, LocalCaError> {
    let mut bytes: [u8; 16] = tls::random().map_err(LocalCaError::Random)?;
    bytes[0] &= 0x7f;
    Ok(bytes.to_vec().into())
}

fn read(path: &Path) -> Result<Vec<u8>, LocalCaError> {
    fs::read(path).map_err(|source| LocalCaError::Read {
        path: path.into(),
        source,
    })
}

/// Whether a certificate may sign others, and until when.
fn check_ca(cert: &X509Certificate<'_>) -> Result<SystemTime, String> {
    let constraints = cert.basic_constraints().map_err(|err| err.to_string())?;
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err("it is not a CA certificate (basicConstraints CA:TRUE is missing)".into());
    }
    let usage = cert.key_usage().map_err(|err| err.to_string())?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its key usage does not allow it to sign certificates (keyCertSign is missing)".into());
    }
    let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default();
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after);
    if not_after <= SystemTime::now() {
        return Err(format!("it expired on {}", cert.validity().not_after));
    }
    Ok(not_after)
}

/// Why a CA cannot be used, or did not sign.
#[derive(Debug, Error)]
pub enum LocalCaError {
    /// A file that cannot be read.
    #[error("{} cannot be read; make a CA with `weft ca new`, or name another file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Not a certificate that may sign.
    #[error("{} cannot be used as a CA certificate: {why}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Not a private key.
    #[error("{} is not an unencrypted private key in PEM (EC P-256 or P-384, RSA, Ed25519): {why}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Two files of different CAs.
    #[error("the key in {} is not that of the first certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The request was not a good one.
    #[error("the request was refused")]
    Csr(#[source] CsrError),
    /// The request is for somebody else.
    #[error("the request is for {asked}, and whoever asks may have {allowed} only")]
    AnotherName {
        /// The name in the request.
        asked: SpiffeId,
        /// The one that would be signed.
        allowed: SpiffeId,
    },
    /// The CA's own certificate has run out.
    #[error("the CA's own certificate has expired; replace it")]
    Expired,
    /// The crypto library failed.
    #[error("the crypto library failed")]
    Sign(#[source] rcgen::Error),
    /// No randomness for a serial number.
    #[error("no serial number could be drawn")]
    Random(#[source] TlsError),
}
