//! Certificates for tests, good ones and bad ones. Used by the tests of every module that speaks TLS.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SignatureAlgorithm,
};
use rustls::{
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Sessions, TrustBundle, crypto_provider};

/// A CA that signs whatever a test wants.
#[derive(Debug)]
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

    pub(crate) fn root_pem(&self) -> Vec<u8> {
        self.issuer.pem().into_bytes()
    }

    /// What an authority answers to a request of this key and these names.
    pub(crate) fn sign(&self, key: &rcgen::PublicKey, names: &[SanType]) -> Vec<CertificateDer<'static>> {
        let leaf = leaf_params(names).signed_by(key, &self.issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.intermediates);
        chain
    }

    /// No sessions yet, and this CA trusted.
    pub(crate) fn sessions(&self) -> Sessions {
        Sessions::new(self.bundle().into())
    }

    /// A list of what this CA takes back.
    pub(crate) fn crl(&self, revoked: &[&CertifiedKey]) -> Vec<u8> {
        let now = SystemTime::now();
        let revoked = revoked.iter().map(|cert| RevokedCertParams {
            serial_number: serial(cert),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            // Long over.
            this_update: (now - Duration::from_secs(200)).into(),
            next_update: (now - Duration::from_secs(100)).into(),
            crl_number: vec![1].into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params
            .signed_by(&self.issuer)
            .unwrap()
            .pem()
            .unwrap()
            .into_bytes()
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
        let mut params = leaf_params(names);
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend_from_slice(&self.intermediates);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Arc::new(CertifiedKey::from_der(chain, key, &crypto_provider()).unwrap())
    }
}

fn leaf_params(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names.to_vec();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params
}

fn serial(cert: &CertifiedKey) -> rcgen::SerialNumber {
    let (_, leaf) = X509Certificate::from_der(&cert.cert[0]).unwrap();
    leaf.raw_serial().to_vec().into()
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
