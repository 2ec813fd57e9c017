//! When the CA is asked, in time that stands still until all wait for it.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use tokio::time::{Instant, advance, timeout};

use super::*;
use crate::net::tls::TrustBundle;

/// A CA that notes when it is asked, and fails while it is told to.
#[derive(Debug)]
struct Scripted {
    ca: LocalCa,
    begin: Instant,
    asked: Mutex<Vec<Duration>>,
    fails: AtomicBool,
}

impl Scripted {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            ca: new_ca(),
            begin: Instant::now(),
            asked: Mutex::default(),
            fails: false.into(),
        })
    }

    fn store(self: &Arc<Self>) -> SvidStore {
        SvidStore::spawn(Sources::of(self.clone()), StoreSettings::default())
    }

    /// Waits, as long as it takes, until it has been asked so often; and when that was.
    async fn asked(&self, times: usize) -> Vec<Duration> {
        loop {
            let asked = self.asked.lock().unwrap().clone();
            if asked.len() >= times {
                return asked;
            }
            advance(Duration::from_millis(100)).await;
            tokio::task::yield_now().await;
        }
    }
}

impl CertificateAuthority for Scripted {
    fn sign<'a>(&'a self, csr_pem: &'a str) -> Signing<'a> {
        self.asked.lock().unwrap().push(self.begin.elapsed());
        if self.fails.load(SeqCst) {
            return Box::pin(std::future::ready(Err(CaError::TimedOut)));
        }
        CertificateAuthority::sign(&self.ca, csr_pem)
    }

    fn trust(&self) -> TrustBundle {
        CertificateAuthority::trust(&self.ca)
    }
}

async fn changed(store: &SvidStore, what: impl Fn() -> bool) {
    let mut revision = store.revision();
    let found = async {
        while !what() {
            revision.changed().await.unwrap();
        }
    };
    timeout(2 * DAY, found).await.expect("it never happened");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_asked_for_when_it_is_wanted_and_renewed_at_half_its_life() {
    let ca = Scripted::new();
    let store = ca.store();
    store.desire(ids([cart()]));
    let first = store.ready(&cart(), SOON).await.unwrap();
    assert_eq!(ca.asked.lock().unwrap().len(), 1, "nobody has connected");
    let generation = || store.current(&cart()).unwrap().generation;
    changed(&store, || generation() > first.generation).await;
    let asked = ca.asked.lock().unwrap()[1];
    assert!(
        asked > DAY.mul_f64(0.44) && asked < DAY.mul_f64(0.56),
        "{asked:?}"
    );
    let second = store.current(&cart()).unwrap();
    assert!(second.serial != first.serial && !first.is_expired());
}

#[tokio::test(start_paused = true)]
async fn renewals_are_spread() {
    let ca = Scripted::new();
    let store = ca.store();
    let all: HashSet<SpiffeId> = (0..32)
        .map(|n| format!("spiffe://cluster.local/ns/shop/sa/a{n}").parse().unwrap())
        .collect();
    store.desire(all.clone());
    let generation = |id| store.current(id).map_or(0, |svid| svid.generation);
    changed(&store, || all.iter().all(|id| generation(id) > 32)).await;
    let asked = ca.asked.lock().unwrap().clone();
    let renewed = &asked[32..];
    let (first, last) = (renewed.iter().min().unwrap(), renewed.iter().max().unwrap());
    assert!(
        *last - *first > DAY.mul_f64(0.02),
        "all at once: {first:?} to {last:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_ca_that_fails_is_asked_less_and_less_and_what_there_is_is_kept_to_its_end() {
    let ca = Scripted::new();
    let store = ca.store();
    store.desire(ids([cart()]));
    let svid = store.ready(&cart(), SOON).await.unwrap();
    ca.fails.store(true, SeqCst);
    // The first renewal and what follows: 1, 2, 4 ... 60 s, and half of it at least.
    advance(DAY / 2).await;
    let asked = ca.asked(12).await;
    let pauses: Vec<_> = asked[1..].windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (nth, pause) in pauses.iter().enumerate() {
        let most = Duration::from_secs(60.min(1 << nth));
        let slack = Duration::from_millis(300);
        assert!(*pause >= most / 2 && *pause <= most + slack, "{pauses:?}");
    }
    assert!(store.current(&cart()).is_some(), "dropped because the CA fails");
    advance(DAY / 2).await;
    assert!(store.current(&cart()).is_none() && svid.is_expired());
    ca.fails.store(false, SeqCst);
    assert!(
        store
            .ready(&cart(), 2 * SOON + Duration::from_secs(60))
            .await
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn the_key_goes_with_the_last_pod() {
    let ca = Scripted::new();
    let store = ca.store();
    store.desire(ids([cart()]));
    let key = Arc::downgrade(&store.ready(&cart(), SOON).await.unwrap().cert);
    assert!(key.upgrade().is_some());
    store.desire(ids([]));
    changed(&store, || store.all().is_empty()).await;
    assert!(key.upgrade().is_none(), "somebody still holds the key");
    // And it is asked for no more.
    advance(DAY).await;
    tokio::task::yield_now().await;
    assert_eq!(ca.asked.lock().unwrap().len(), 1);
}
