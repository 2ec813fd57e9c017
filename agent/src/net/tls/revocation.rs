//! Certificate revocation lists (RFC 5280 5), read from PEM. Which of them speak of a chain; webpki asks them.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem::PemObject};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use x509_parser::{
    extensions::{ParsedExtension, X509Extension},
    prelude::{CertificateRevocationList as ParsedList, FromDer, X509Certificate},
};

use super::TlsError;

/// Each list of a chain's issuer is asked at each handshake.
const MOST_LISTS: usize = 64;

/// What was revoked. None at all by default.
#[derive(Clone, Default)]
pub struct Revocations {
    lists: Arc<[List]>,
}

impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        self.lists
            .iter()
            .map(|list| &list.der)
            .eq(other.lists.iter().map(|list| &list.der))
    }
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("lists", &self.lists.len())
            .finish()
    }
}

impl Revocations {
    /// Reads every `X509 CRL` block of `pem`.
    ///
    /// # Errors
    /// When a block is damaged, is not a CRL or one of a kind that is not supported (delta and indirect CRLs), when
    /// there are too many, or none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TlsError> {
        let blocks = CertificateRevocationListDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let blocks = blocks.map_err(TlsError::crl)?;
        if blocks.is_empty() {
            return Err(TlsError::crl("it holds no `X509 CRL` block"));
        }
        if blocks.len() > MOST_LISTS {
            return Err(TlsError::crl(format!(
                "it holds {} lists; {MOST_LISTS} are taken",
                blocks.len()
            )));
        }
        let numbered = (1..).zip(blocks);
        let lists = numbered.map(|(number, der)| {
            List::from_der(der).map_err(|why| TlsError::crl(format!("CRL {number}: {why}")))
        });
        Ok(Self {
            lists: lists.collect::<Result<_, _>>()?,
        })
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// When the first of them should have been replaced.
    pub fn next_update(&self) -> Option<SystemTime> {
        self.lists.iter().filter_map(|list| list.next_update).min()
    }

    /// The lists that an issuer of a certificate in `chain` may have signed.
    pub(super) fn about(&self, chain: &[CertificateDer<'_>]) -> Vec<&List> {
        if self.lists.is_empty() {
            return Vec::new();
        }
        let parsed = chain
            .iter()
            .filter_map(|cert| X509Certificate::from_der(cert).ok());
        let issuers: Vec<_> = parsed
            .map(|(_, cert)| (cert.issuer().as_raw().to_vec(), authority_key(cert.extensions())))
            .collect();
        let speaks = |list: &&List| {
            issuers
                .iter()
                .any(|(name, key)| list.may_be_of(name, key.as_deref()))
        };
        self.lists.iter().filter(speaks).collect()
    }
}

/// One list.
pub(super) struct List {
    der: CertificateRevocationListDer<'static>,
    list: CertRevocationList<'static>,
    issuer: Vec<u8>,
    /// The issuer's key, by its identifier: a new root may have the old one's name.
    issuer_key: Option<Vec<u8>>,
    next_update: Option<SystemTime>,
}

impl List {
    fn from_der(der: CertificateRevocationListDer<'static>) -> Result<Self, String> {
        let (_, parsed) = ParsedList::from_der(&der).map_err(|err| err.to_string())?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or_default();
        let next_update = parsed
            .next_update()
            .map(|time| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(time)));
        Ok(Self {
            list: OwnedCertRevocationList::from_der(&der)
                .map_err(|err| err.to_string())?
                .into(),
            issuer: parsed.issuer().as_raw().to_vec(),
            issuer_key: authority_key(parsed.extensions()),
            next_update,
            der,
        })
    }

    fn may_be_of(&self, name: &[u8], key: Option<&[u8]>) -> bool {
        let same_key = match (&self.issuer_key, key) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        self.issuer == name && same_key
    }

    /// Has `verify` look at this list, and at no other. A list that should have been replaced is better than none.
    pub(super) fn ask<T>(
        &self,
        verify: impl FnOnce(RevocationOptions<'_>) -> Result<T, webpki::Error>,
    ) -> Result<T, webpki::Error> {
        let only = [&self.list];
        let options =
            RevocationOptionsBuilder::new(&only).map_err(|_| webpki::Error::UnknownRevocationStatus)?;
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore);
        verify(options.build())
    }
}

/// RFC 5280 4.2.1.1 and 5.2.1.
fn authority_key(extensions: &[X509Extension<'_>]) -> Option<Vec<u8>> {
    extensions
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().map(|key| key.0.to_vec())
            }
            _ => None,
        })
}
