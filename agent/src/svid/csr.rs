//! Certificate requests: a fresh key and the identity it is for; and reading one, for whoever signs.

use std::fmt;

use rcgen::{CertificateParams, CertificateSigningRequestParams, DistinguishedName, PublicKey, SanType};
use thiserror::Error;

use super::key::Key;
use crate::mesh::{SpiffeId, SpiffeIdError};

/// A request that has not been signed yet, and the key it is for.
pub struct Csr {
    /// The request, as PEM: what a CA gets.
    pub pem: String,
    pub(super) key: Key,
}

impl fmt::Debug for Csr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Csr")
            .field("pem", &self.pem)
            .finish_non_exhaustive()
    }
}

impl Csr {
    /// A fresh ECDSA P-256 key and a request with `id` as its only name.
    ///
    /// # Errors
    /// When the crypto library cannot make a key.
    pub fn new(id: &SpiffeId) -> Result<Self, CsrError> {
        let key = Key::generate().map_err(CsrError::Make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(id)?];
        let request = params.serialize_request(&key).map_err(CsrError::Make)?;
        Ok(Self {
            pem: request.pem().map_err(CsrError::Make)?,
            key,
        })
    }
}

pub(super) fn uri(id: &SpiffeId) -> Result<SanType, CsrError> {
    Ok(SanType::URI(id.as_str().try_into().map_err(CsrError::Make)?))
}

/// A request as the one who signs reads it: its signature has been verified.
#[derive(Debug)]
pub(super) struct ReadCsr {
    /// Who it is for.
    pub id: SpiffeId,
    /// The key that is to be certified.
    pub key: PublicKey,
}

impl ReadCsr {
    /// Reads a request, and keeps of it the one name and the key: nothing else a requester writes gets into a
    /// certificate.
    ///
    /// # Errors
    /// When it is damaged, not signed by its key, or has other than one name, a workload's URI.
    pub(super) fn from_pem(pem: &str) -> Result<Self, CsrError> {
        let csr = CertificateSigningRequestParams::from_pem(pem).map_err(CsrError::Read)?;
        match csr.params.subject_alt_names.as_slice() {
            [SanType::URI(uri)] => Ok(Self {
                id: uri.as_str().parse()?,
                key: csr.public_key,
            }),
            names => Err(CsrError::Names(names.len())),
        }
    }
}

/// Why a request could not be made or was not accepted.
#[derive(Debug, Error)]
pub enum CsrError {
    /// The crypto library could not make it.
    #[error("the certificate request could not be made")]
    Make(#[source] rcgen::Error),
    /// Not a request, or its signature is wrong.
    #[error("the certificate request cannot be read or is not signed by its own key")]
    Read(#[source] rcgen::Error),
    /// A workload has one name.
    #[error("the request has {0} names; it must have one, a URI")]
    Names(usize),
    /// The name is not a workload's.
    #[error(transparent)]
    NotSpiffe(#[from] SpiffeIdError),
}
