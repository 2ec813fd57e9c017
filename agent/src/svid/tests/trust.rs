//! CAs that take each other's place, roots and revocations that come and go, and the files they are in.

use std::path::Path;

use super::*;
use crate::net::tls::{Purpose, Revocations, TrustBundle, sample};

/// A CA in files of its own, by the name that they have there.
fn write_ca(dir: &Path, name: &str) -> String {
    let (cert, key) = LocalCa::create(&"cluster.local".parse().unwrap()).unwrap();
    fs::write(dir.join(format!("{name}.pem")), &cert).unwrap();
    fs::write(dir.join(format!("{name}-key.pem")), key).unwrap();
    cert
}

fn accepted(store: &SvidStore, svid: &Svid) -> bool {
    svid.proof.accepted_by(&store.trust()).is_ok()
}

async fn until(store: &SvidStore, what: impl Fn() -> bool) {
    let mut revision = store.revision();
    let found = async {
        while !what() {
            revision.changed().await.unwrap();
        }
    };
    tokio::time::timeout(4 * SOON, found)
        .await
        .expect("it never happened");
}

#[tokio::test]
async fn another_ca_gives_new_certificates_at_once_and_the_old_root_goes_with_the_last_old_one() {
    let store = SvidStore::spawn(Sources::of(Arc::new(new_ca())), StoreSettings::default());
    let stock: SpiffeId = "spiffe://cluster.local/ns/shop/sa/stock".parse().unwrap();
    store.desire(ids([cart(), stock.clone()]));
    let old = store.ready(&cart(), SOON).await.unwrap();
    store.ready(&stock, SOON).await.unwrap();
    store.replace(Sources::of(Arc::new(new_ca())));
    until(&store, || {
        store
            .current(&cart())
            .is_some_and(|svid| svid.serial != old.serial)
    })
    .await;
    until(&store, || store.trust().bundle().len() == 1).await;
    let (cart, stock) = (store.current(&cart()).unwrap(), store.current(&stock).unwrap());
    assert!(accepted(&store, &cart) && accepted(&store, &stock));
    assert!(!accepted(&store, &old));
}

#[tokio::test]
async fn more_roots_are_trusted_for_as_long_as_they_are_named() {
    let (old_ca, new_ca) = (Arc::new(new_ca()), Arc::new(new_ca()));
    let store = SvidStore::spawn(Sources::of(old_ca.clone()), StoreSettings::default());
    store.desire(ids([cart()]));
    let old = store.ready(&cart(), SOON).await.unwrap();
    let both = Sources {
        roots: Some(old_ca.trust().merged(&new_ca.trust())),
        ..Sources::of(new_ca.clone())
    };
    store.replace(both);
    until(&store, || {
        store
            .current(&cart())
            .is_some_and(|svid| svid.serial != old.serial)
    })
    .await;
    assert!(accepted(&store, &old), "the old root is still named");
    store.replace(Sources::of(new_ca));
    until(&store, || !accepted(&store, &old)).await;
    assert!(accepted(&store, &store.current(&cart()).unwrap()));
}

#[tokio::test]
async fn a_certificate_of_our_own_that_is_revoked_is_replaced_at_once() {
    let signer = sample::Ca::new();
    let ca = Arc::new(Signer(signer));
    let store = SvidStore::spawn(Sources::of(ca.clone()), StoreSettings::default());
    store.desire(ids([cart()]));
    let old = store.ready(&cart(), SOON).await.unwrap();
    let revocations = Revocations::from_pem(&ca.0.crl(&[&old.cert])).unwrap();
    store.replace(Sources {
        revocations,
        ..Sources::of(ca)
    });
    until(&store, || {
        store
            .current(&cart())
            .is_some_and(|svid| svid.serial != old.serial)
    })
    .await;
    assert!(!accepted(&store, &old) && accepted(&store, &store.current(&cart()).unwrap()));
}

/// The CA of the TLS tests, which can revoke, as an authority.
#[derive(Debug)]
struct Signer(sample::Ca);

impl CertificateAuthority for Signer {
    fn sign<'a>(&'a self, csr_pem: &'a str) -> Signing<'a> {
        let csr = rcgen::CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
        let chain = self.0.sign(&csr.public_key, &csr.params.subject_alt_names);
        let trust = self.0.bundle();
        Box::pin(std::future::ready(Ok(Signed { chain, trust })))
    }

    fn trust(&self) -> TrustBundle {
        self.0.bundle()
    }
}

/// The agent's files, and a store that follows them.
struct Followed {
    files: Files,
    store: SvidStore,
    old: Arc<Svid>,
}

impl Followed {
    async fn start() -> Self {
        let files = Files::new("", "");
        let dir = files.dir.clone();
        let cert = write_ca(&dir, "root");
        fs::write(dir.join("bundle.pem"), cert).unwrap();
        fs::write(dir.join("crl.pem"), sample::Ca::new().crl(&[])).unwrap();
        let sources = FileSources::load(TrustFiles {
            ca_cert: dir.join("root.pem"),
            ca_key: dir.join("root-key.pem"),
            bundle: Some(dir.join("bundle.pem")),
            crl: Some(dir.join("crl.pem")),
        });
        let sources = sources.unwrap();
        let store = SvidStore::spawn(sources.sources(), StoreSettings::default());
        store.desire(ids([cart()]));
        let old = store.ready(&cart(), SOON).await.unwrap();
        tokio::spawn(sources.watch(store.clone()));
        Self { files, store, old }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.files.dir.join(name), text).unwrap();
    }
}

#[tokio::test]
async fn changed_files_are_noticed_and_bad_ones_change_nothing() {
    let followed = Followed::start().await;
    let (store, old) = (&followed.store, &followed.old);
    // Of these nothing is taken; what follows shows that they were read.
    followed.write("crl.pem", "hello");
    followed.write("root-key.pem", "hello");
    let other = sample::Ca::new();
    let roots = fs::read(followed.files.dir.join("bundle.pem")).unwrap();
    followed.write("bundle.pem", [roots, other.root_pem()].concat());
    until(store, || store.trust().bundle().len() == 2).await;
    assert_eq!(store.current(&cart()).unwrap().serial, old.serial);
    // The CA is another one; the bundle still names the old root.
    write_ca(&followed.files.dir, "root");
    until(store, || {
        store
            .current(&cart())
            .is_some_and(|svid| svid.serial != old.serial)
    })
    .await;
    until(store, || store.trust().bundle().len() == 3).await;
    assert!(accepted(store, old));
    // The old root is named no more.
    followed.write("bundle.pem", other.root_pem());
    until(store, || !accepted(store, old)).await;
    assert!(accepted(store, &store.current(&cart()).unwrap()));
    // A list revokes.
    let cert = other.svid(cart().as_str());
    let revoked = || {
        store
            .trust()
            .accepts(&cert.cert, Purpose::Client, rustls::pki_types::UnixTime::now())
            .is_err()
    };
    assert!(!revoked());
    followed.write("crl.pem", other.crl(&[&cert]));
    until(store, revoked).await;
}

#[test]
fn at_the_start_every_file_must_be_good() {
    let files = Files::new("", "");
    let dir = &files.dir;
    let cert = write_ca(dir, "root");
    let with = |bundle: Option<&str>, crl: Option<&str>| {
        let path = |name: &str| dir.join(name);
        FileSources::load(TrustFiles {
            ca_cert: path("root.pem"),
            ca_key: path("root-key.pem"),
            bundle: bundle.map(path),
            crl: crl.map(path),
        })
    };
    assert!(with(None, None).is_ok() && with(Some("root.pem"), None).is_ok());
    fs::write(dir.join("empty"), "").unwrap();
    let line = |err: FilesError| {
        let cause = std::error::Error::source(&err)
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("{err}: {cause}")
    };
    for (bundle, crl, expect) in [
        (Some("nowhere"), None, "nowhere cannot be read"),
        (
            Some("empty"),
            None,
            "empty is not taken: the trust bundle cannot be used: it holds no certificate",
        ),
        (None, Some("nowhere"), "nowhere cannot be read"),
        (
            None,
            Some("root.pem"),
            "root.pem is not taken: the CRL cannot be used: it holds no `X509 CRL` block",
        ),
    ] {
        let err = line(with(bundle, crl).unwrap_err());
        assert!(err.contains(expect), "{err}");
    }
    assert!(cert.starts_with("-----BEGIN CERTIFICATE"));
}
