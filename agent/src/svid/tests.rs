//! The CA's files, what it signs, and the store that keeps it fresh.

use std::{collections::HashSet, fs, path::PathBuf, sync::Arc, time::Duration, time::SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

mod renewal;
mod trust;

use super::*;
use crate::{mesh::SpiffeId, net::tls};

fn cart() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()
}

/// A directory with a CA's two files, removed at the end.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn new(cert: &str, key: &str) -> Self {
        let unique = u64::from_be_bytes(tls::random().unwrap());
        let dir = std::env::temp_dir().join(format!("weft-ca-{unique:016x}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("root.pem"), cert).unwrap();
        fs::write(dir.join("root-key.pem"), key).unwrap();
        Self { dir }
    }

    fn load(&self) -> Result<LocalCa, LocalCaError> {
        LocalCa::load(&self.dir.join("root.pem"), &self.dir.join("root-key.pem"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn new_ca() -> LocalCa {
    let (cert, key) = LocalCa::create(&"cluster.local".parse().unwrap()).unwrap();
    Files::new(&cert, &key).load().unwrap()
}

/// A root of the kind of `key` that is good for `life`.
fn root(key: &KeyPair, life: Duration, change: impl FnOnce(&mut CertificateParams)) -> String {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = (SystemTime::now() + life).into();
    change(&mut params);
    params.self_signed(key).unwrap().pem()
}

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn a_certificate_is_what_the_field_expects() {
    let ca = new_ca();
    let csr = Csr::new(&cart()).unwrap();
    let signed = ca.certify(&csr.pem).unwrap();
    assert_eq!(signed.chain.len(), 1);
    assert_eq!(tls::peer_identity(&signed.chain).unwrap(), cart());
    let (_, cert) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    assert_eq!(cert.subject().iter().count(), 0);
    let san = cert.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(san.value.general_names, [GeneralName::URI(cart().as_str())]);
    let usage = cert.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    assert!(!cert.is_ca());
    let life = cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp();
    assert_eq!(life, 24 * 3600 + 60);
    let oids: Vec<_> = cert
        .extensions()
        .iter()
        .map(|extension| extension.oid.to_id_string())
        .collect();
    assert!(oids.contains(&"2.5.29.35".into()), "authority key identifier");
    assert!(oids.contains(&"2.5.29.14".into()), "subject key identifier");
    let again = ca.certify(&csr.pem).unwrap();
    let (_, again) = X509Certificate::from_der(&again.chain[0]).unwrap();
    assert_ne!(cert.raw_serial(), again.raw_serial());
}

#[test]
fn any_kind_of_root_can_be_used() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_RSA_SHA256,
        &rcgen::PKCS_ED25519,
    ] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let ca = Files::new(&root(&key, DAY, |_| {}), &key.serialize_pem())
            .load()
            .unwrap();
        let signed = ca.certify(&Csr::new(&cart()).unwrap().pem).unwrap();
        assert_eq!(tls::peer_identity(&signed.chain).unwrap(), cart());
    }
}

#[test]
fn a_key_after_other_blocks_is_found() {
    let key = KeyPair::generate().unwrap();
    // What `openssl ecparam -genkey` writes.
    let pem = format!(
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{}",
        key.serialize_pem()
    );
    Files::new(&root(&key, DAY, |_| {}), &pem).load().unwrap();
}

#[test]
fn an_intermediate_is_sent_along_and_the_root_is_trusted() {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = rcgen::Issuer::from_params(&params, &root_key);
    let root = params.self_signed(&root_key).unwrap();
    let middle = params.signed_by(&key, &issuer).unwrap();
    let ca = Files::new(&format!("{}{}", middle.pem(), root.pem()), &key.serialize_pem())
        .load()
        .unwrap();
    let signed = ca.certify(&Csr::new(&cart()).unwrap().pem).unwrap();
    assert_eq!(signed.chain[1..], [middle.der().clone()]);
    assert_eq!(ca.trust().len(), 1);
}

#[test]
fn more_roots_may_follow_the_one_that_signs() {
    let (key, old_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let roots = root(&key, DAY, |_| {}) + &root(&old_key, DAY, |_| {});
    let ca = Files::new(&roots, &key.serialize_pem()).load().unwrap();
    assert_eq!(ca.trust().len(), 2);
    let signed = ca.certify(&Csr::new(&cart()).unwrap().pem).unwrap();
    assert_eq!((signed.chain.len(), signed.trust.len()), (1, 2));
}

#[test]
fn keys_are_not_shown() {
    let csr = Csr::new(&cart()).unwrap();
    let shown = format!("{csr:?} {:?}", csr.key);
    assert!(
        !shown.contains("PRIVATE") && shown.contains("Key(not shown)"),
        "{shown}"
    );
    assert!(!format!("{:?}", new_ca()).contains("key"));
}

#[test]
fn files_that_cannot_be_used_say_which_and_why() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let good = root(&key, DAY, |_| {});
    let pem = key.serialize_pem();
    let no_ca = root(&key, DAY, |params| params.is_ca = IsCa::ExplicitNoCa);
    let no_sign = root(&key, DAY, |params| {
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    });
    let old = root(&key, DAY, |params| {
        params.not_after = rcgen::date_time_ymd(2024, 1, 1);
    });
    for (cert, key, expect) in [
        (
            "",
            pem.as_str(),
            "root.pem cannot be used as a CA certificate: it holds no certificate",
        ),
        (&no_ca, &pem, "it is not a CA certificate"),
        (&no_sign, &pem, "keyCertSign"),
        (&old, &pem, "expired on"),
        (&good, "", "root-key.pem is not an unencrypted private key"),
        (&good, &good, "root-key.pem is not an unencrypted private key"),
        (
            &good,
            &other.serialize_pem(),
            "is not that of the first certificate",
        ),
    ] {
        let err = Files::new(cert, key).load().unwrap_err().to_string();
        assert!(err.contains(expect), "{err}");
    }
    let err = LocalCa::load("/nowhere/root.pem".as_ref(), "/nowhere/key.pem".as_ref()).unwrap_err();
    assert!(
        err.to_string()
            .starts_with("/nowhere/root.pem cannot be read; make a CA with `weft ca new`"),
        "{err}"
    );
}

#[test]
fn a_request_for_anything_but_one_workload_is_refused() {
    let ca = new_ca();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = SanType::DnsName("cart.shop".try_into().unwrap());
    for names in [
        vec![],
        vec![dns.clone()],
        vec![uri(cart().as_str()), dns],
        vec![uri(cart().as_str()), uri(cart().as_str())],
        vec![uri("spiffe://cluster.local/vm/1")],
    ] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let csr = params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap();
        assert!(matches!(ca.certify(&csr), Err(LocalCaError::Csr(_))));
    }
    assert!(matches!(ca.certify("hello"), Err(LocalCaError::Csr(_))));
}

#[test]
fn a_request_that_asks_to_be_a_ca_gets_an_ordinary_certificate() {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(cart().as_str().try_into().unwrap())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let csr = params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .pem()
        .unwrap();
    let signed = new_ca().certify(&csr).unwrap();
    let (_, cert) = X509Certificate::from_der(&signed.chain[0]).unwrap();
    assert!(!cert.is_ca());
}

fn ids<const N: usize>(ids: [SpiffeId; N]) -> HashSet<SpiffeId> {
    ids.into()
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_store_holds_what_is_desired() {
    let store = SvidStore::spawn(Sources::of(Arc::new(new_ca())), StoreSettings::default());
    let stock: SpiffeId = "spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap();
    assert!(store.current(&cart()).is_none());
    store.desire(ids([cart(), stock.clone()]));
    let svid = store.ready(&cart(), SOON).await.unwrap();
    store.ready(&stock, SOON).await.unwrap();
    assert_eq!((svid.id.clone(), store.all().len()), (cart(), 2));
    assert!(svid.expires_at > SystemTime::now() + DAY - Duration::from_secs(120));
    assert_eq!(svid.serial.len(), 32);

    let mut revision = store.revision();
    revision.borrow_and_update();
    store.desire(ids([stock.clone()]));
    tokio::time::timeout(SOON, revision.changed())
        .await
        .unwrap()
        .unwrap();
    assert!(store.current(&cart()).is_none() && store.current(&stock).is_some());
    assert!(store.ready(&cart(), Duration::from_millis(10)).await.is_none());
}
