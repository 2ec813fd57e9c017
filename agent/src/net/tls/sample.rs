//! Certificates for tests, good ones and bad ones. Used by the tests of every module that speaks TLS.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
};
use rustls::{
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use super::{TrustBundle, crypto_provider};

/// A CA that signs whatever a test wants.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What a leaf's chain holds besides the leaf.
    intermediates: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::with_key(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn with_key(algorithm: &'static SignatureAlgorithm) -> Self {
        let issuer =
            CertifiedIssuer::self_signed(ca_params(), KeyPair::generate_for(algorithm).unwrap()).unwrap();
        Self {
            root: issuer.der().clone(),
            issuer,
            intermediates: Vec::new(),
        }
    }

    /// A CA below this one, as Istio's plugged-in CAs are.
    pub(crate) fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(ca_params(), key, &self.issuer).unwrap();
        Self {
            root: self.root.clone(),
            intermediates: vec![issuer.der().clone()],
            issuer,
        }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_der(vec![self.root.clone()]).unwrap()
    }

    /// A workload's certificate.
    pub(crate) fn svid(&self, uri: &str) -> Arc<CertifiedKey> {
        self.leaf(&[SanType::URI(uri.try_into().unwrap())], |_| {})
    }

    pub(crate) fn leaf(
        &self,
        names: &[SanType],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Arc<CertifiedKey> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.intermediates);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Arc::new(CertifiedKey::from_der(chain, key, &crypto_provider()).unwrap())
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}
