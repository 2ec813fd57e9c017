//! Certificates for proxies that are not ours: SVIDs of the same authority as weft's, so that all of them prove the same.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use weft_tests::{Pod, World};

/// As long as an agent's certificates are good.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// What a clock may be behind.
const SKEW: Duration = Duration::from_secs(60);

/// Writes `cert.pem`, `key.pem` and `root.pem` of a pod into a directory of its own.
pub(crate) fn issue(world: &World, pod: &Pod, dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    let ca = world.ca()?;
    let root = read(&ca.join("root.pem"))?;
    let authority =
        KeyPair::from_pem(&read(&ca.join("root-key.pem"))?).context("read the authority's key")?;
    let issuer = Issuer::from_ca_cert_pem(&root, authority).context("read the authority's certificate")?;
    let key = KeyPair::generate().context("make a key")?;
    let cert = params(&pod.identity())?
        .signed_by(&key, &issuer)
        .context("sign")?;
    for (name, text) in [
        ("cert.pem", cert.pem()),
        ("key.pem", key.serialize_pem()),
        ("root.pem", root),
    ] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(dir)
}

fn params(identity: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(
        identity.try_into().context("the identity is no URI")?,
    )];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let now = SystemTime::now();
    params.not_before = (now - SKEW).into();
    params.not_after = (now + LIFETIME).into();
    Ok(params)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
