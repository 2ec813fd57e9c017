//! Private keys: made here or read from the CA's file, never written, never printed, wiped when dropped.
//!
//! Of each key there are two copies. The bytes that rcgen keeps (RFC 5958) are wiped by us. The parsed ones belong to
//! AWS-LC, one for each holder (rcgen, and rustls for as long as the certificate is presented), which wipes all memory
//! that it frees. What remains: of the CA's key file the base64 that the PEM reader looks at, and what the compiler may
//! leave on a stack. The agent's memory can be read by nobody but root (`main`: no core files, no ptrace).

use std::{fmt, sync::Arc};

use rcgen::{Error, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign,
};
use zeroize::Zeroizing;

/// A private key and its public one.
pub(super) struct Key(Zeroizing<KeyPair>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not shown)")
    }
}

impl Key {
    /// A fresh one, ECDSA P-256.
    pub(super) fn generate() -> Result<Self, Error> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(|pair| Self(Zeroizing::new(pair)))
    }

    /// The first private key in a file, of any kind that can sign. The error is for people.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(|err| err.to_string())?;
        let der = Zeroizing::new(der);
        let pair = KeyPair::try_from(&*der).map_err(|err| err.to_string())?;
        Ok(Self(Zeroizing::new(pair)))
    }

    /// What rustls signs handshakes with; it does not give the key away.
    pub(super) fn for_tls(&self) -> Result<Arc<dyn sign::SigningKey>, rustls::Error> {
        let der = PrivatePkcs8KeyDer::from(self.0.serialized_der());
        aws_lc_rs::sign::any_supported_type(&PrivateKeyDer::Pkcs8(der))
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Key {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, Error> {
        self.0.sign(msg)
    }
}
