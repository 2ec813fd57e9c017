//! Certificates as another authority, or another agent of this mesh, would have them made.

use std::{
    fs,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use weft_tests::World;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Who signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Validity {
    Today,
    Yesterday,
    Tomorrow,
    /// From so long after now.
    Begins(Duration),
    /// Until so long before now.
    Ended(Duration),
}

/// A certificate and its key.
pub(crate) struct Svid {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Authority {
    /// The world's own.
    pub(crate) fn of(world: &World) -> Result<Self> {
        let dir = world.ca()?;
        let root = CertificateDer::from_pem_file(dir.join("root.pem")).context("read root.pem")?;
        let key = KeyPair::from_pem(&fs::read_to_string(dir.join("root-key.pem"))?)?;
        let issuer = Issuer::from_ca_cert_der(&root, key)?;
        Ok(Self { issuer, root })
    }

    /// One that nobody trusts.
    pub(crate) fn stranger() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key)?.der().clone();
        Ok(Self {
            issuer: Issuer::new(params, key),
            root,
        })
    }

    /// What peers of this authority trust.
    pub(crate) fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        Ok(roots.into())
    }

    /// A good certificate of one name.
    pub(crate) fn svid(&self, uri: &str) -> Result<Svid> {
        self.issue(&[uri], Validity::Today)
    }

    /// Any certificate: a name that begins with `spiffe:` is a URI, others are DNS names.
    pub(crate) fn issue(&self, names: &[&str], validity: Validity) -> Result<Svid> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names.iter().map(|name| alt_name(name)).collect::<Result<_>>()?;
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = SystemTime::now();
        let (from, to) = match validity {
            Validity::Today => (now - Duration::from_secs(60), now + DAY),
            Validity::Yesterday => (now - 2 * DAY, now - DAY),
            Validity::Tomorrow => (now + DAY, now + 2 * DAY),
            Validity::Begins(later) => (now + later, now + DAY),
            Validity::Ended(ago) => (now - DAY, now - ago),
        };
        (params.not_before, params.not_after) = (from.into(), to.into());
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Svid {
            chain: vec![cert.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        })
    }
}

fn alt_name(name: &str) -> Result<SanType> {
    let text = name.try_into()?;
    Ok(if name.starts_with("spiffe:") {
        SanType::URI(text)
    } else {
        SanType::DnsName(text)
    })
}
