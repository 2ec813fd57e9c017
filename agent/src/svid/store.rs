//! The one owner of the pods' keys: fetches a certificate for every identity that is wanted, renews it at half its
//! life, drops it when nobody wants it any more.
//!
//! Level-triggered: [`SvidStore::desire`] says what should be there, a task makes it so. A certificate that is still
//! good is never dropped because the CA fails. Readers take a snapshot and never wait.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CaError, CertificateAuthority, Csr};
use crate::{
    mesh::SpiffeId,
    net::tls::{self, TrustBundle, crypto_provider},
};

/// A certificate and its key, for one identity.
#[derive(Debug)]
pub struct Svid {
    /// Whom it is for.
    pub id: SpiffeId,
    /// What rustls presents.
    pub cert: Arc<CertifiedKey>,
    /// The beginning of its validity.
    pub issued_at: SystemTime,
    /// The end of its validity.
    pub expires_at: SystemTime,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// Grows with each certificate of the process: part of a tunnel's key.
    pub generation: u64,
    /// `expires_at` on the clock that cannot be set.
    expires: Instant,
}

impl Svid {
    /// Whether it may not be presented any more. By either clock: one can be set, the other stands still while a
    /// machine sleeps.
    pub fn is_expired(&self) -> bool {
        Instant::now() >= self.expires || SystemTime::now() >= self.expires_at
    }
}

/// The store's pace.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// How long one request to the CA may take.
    pub sign_timeout: Duration,
    /// The pause after the first failure; it doubles.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_cap: Duration,
    /// Requests to the CA at a time.
    pub concurrency: usize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            sign_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(60),
            concurrency: 8,
        }
    }
}

/// The handle to the store. Clones share it; when the last is dropped the task ends and the keys are gone.
#[derive(Clone)]
pub struct SvidStore {
    shared: Arc<Shared>,
    desired: watch::Sender<HashSet<SpiffeId>>,
}

struct Shared {
    current: ArcSwap<HashMap<SpiffeId, Arc<Svid>>>,
    trust: ArcSwap<TrustBundle>,
    revision: watch::Sender<u64>,
}

impl fmt::Debug for SvidStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidStore")
            .field("current", &self.shared.current.load().len())
            .finish_non_exhaustive()
    }
}

impl SvidStore {
    /// Starts the store's task on the current runtime.
    pub fn spawn(ca: CertificateAuthority, settings: StoreSettings) -> Self {
        let shared = Arc::new(Shared {
            current: ArcSwap::default(),
            trust: ArcSwap::from_pointee(ca.trust()),
            revision: watch::Sender::new(0),
        });
        let (desired, wanted) = watch::channel(HashSet::new());
        let owner = Owner {
            ca: Arc::new(ca),
            settings,
            shared: shared.clone(),
            entries: HashMap::new(),
            signing: JoinSet::new(),
            generation: 0,
        };
        tokio::spawn(owner.run(wanted));
        Self { shared, desired }
    }

    /// The identities that are wanted, all of them: those that are missing are fetched, the others are dropped.
    pub fn desire(&self, ids: HashSet<SpiffeId>) {
        self.desired.send_if_modified(|desired| {
            let changed = *desired != ids;
            *desired = ids;
            changed
        });
    }

    /// The certificate of `id`, if there is one that is still good. Never waits.
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<Svid>> {
        self.shared
            .current
            .load()
            .get(id)
            .filter(|svid| !svid.is_expired())
            .cloned()
    }

    /// Every certificate, also those that have expired, by name: for status.
    pub fn all(&self) -> Vec<Arc<Svid>> {
        let mut all: Vec<_> = self.shared.current.load().values().cloned().collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// The roots to verify peers with.
    pub fn trust(&self) -> Arc<TrustBundle> {
        self.shared.trust.load_full()
    }

    /// Changes with every certificate that comes or goes.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.shared.revision.subscribe()
    }

    /// The certificate of `id`, which must be desired, as soon as there is one; `None` after `wait`.
    pub async fn ready(&self, id: &SpiffeId, wait: Duration) -> Option<Arc<Svid>> {
        let mut revision = self.revision();
        let found = async {
            loop {
                revision.borrow_and_update();
                if let Some(svid) = self.current(id) {
                    return Some(svid);
                }
                revision.changed().await.ok()?;
            }
        };
        timeout(wait, found).await.ok().flatten()
    }
}

/// The task's side.
struct Owner {
    ca: Arc<CertificateAuthority>,
    settings: StoreSettings,
    shared: Arc<Shared>,
    entries: HashMap<SpiffeId, Entry>,
    signing: JoinSet<(SpiffeId, Result<Fetched, CaError>)>,
    generation: u64,
}

/// What is known of one identity that is wanted.
struct Entry {
    due: Due,
    failures: u32,
    in_flight: bool,
}

/// When to ask the CA: at the earlier of the two, because a machine that sleeps stops only the first.
#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    wall: Option<SystemTime>,
}

impl Due {
    fn is_over(self) -> bool {
        Instant::now() >= self.at || self.wall.is_some_and(|wall| SystemTime::now() >= wall)
    }
}

struct Fetched {
    svid: Svid,
    trust: TrustBundle,
}

/// The task looks at the clock at least this often, for a machine that slept.
const LOOK: Duration = Duration::from_secs(60);

impl Owner {
    async fn run(mut self, mut wanted: watch::Receiver<HashSet<SpiffeId>>) {
        loop {
            self.start_due();
            let next = self.next_look();
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let ids = wanted.borrow_and_update().clone();
                    self.reconcile(&ids);
                }
                Some(done) = self.signing.join_next() => match done {
                    Ok((id, result)) => self.settle(id, result),
                    Err(err) => warn!(%err, "a request for a certificate was lost"),
                },
                () = sleep_until(next) => {}
            }
        }
    }

    fn reconcile(&mut self, wanted: &HashSet<SpiffeId>) {
        self.entries.retain(|id, _| wanted.contains(id));
        for id in wanted {
            let new = || Entry {
                due: Due {
                    at: Instant::now(),
                    wall: None,
                },
                failures: 0,
                in_flight: false,
            };
            self.entries.entry(id.clone()).or_insert_with(new);
        }
        let current = self.shared.current.load();
        if current.keys().any(|id| !wanted.contains(id)) {
            let kept = current.iter().filter(|(id, _)| wanted.contains(*id));
            self.publish(kept.map(|(id, svid)| (id.clone(), svid.clone())).collect());
        }
    }

    fn publish(&self, current: HashMap<SpiffeId, Arc<Svid>>) {
        self.shared.current.store(Arc::new(current));
        self.shared.revision.send_modify(|revision| *revision += 1);
    }

    fn start_due(&mut self) {
        let free = self.settings.concurrency.saturating_sub(self.signing.len());
        let due = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| !entry.in_flight && entry.due.is_over());
        for (id, entry) in due.take(free) {
            entry.in_flight = true;
            let (ca, id, limit) = (self.ca.clone(), id.clone(), self.settings.sign_timeout);
            self.signing.spawn(async move {
                let fetched = timeout(limit, fetch(&ca, &id))
                    .await
                    .unwrap_or(Err(CaError::TimedOut));
                (id, fetched)
            });
        }
    }

    fn next_look(&self) -> Instant {
        let soonest = Instant::now() + LOOK;
        let waiting = self
            .entries
            .values()
            .filter(|entry| !entry.in_flight && !entry.due.is_over());
        waiting.map(|entry| entry.due.at).fold(soonest, Instant::min)
    }

    /// An answer of the CA. Nobody may want it any more.
    fn settle(&mut self, id: SpiffeId, result: Result<Fetched, CaError>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.in_flight = false;
        match result {
            Ok(Fetched { mut svid, trust }) => {
                entry.failures = 0;
                entry.due = renewal(&svid);
                self.generation += 1;
                svid.generation = self.generation;
                debug!(%id, serial = %svid.serial, "certificate issued");
                let mut current = HashMap::clone(&self.shared.current.load());
                current.insert(id, Arc::new(svid));
                self.shared.trust.store(Arc::new(trust));
                self.publish(current);
            }
            Err(err) => {
                entry.failures += 1;
                let pause = self
                    .settings
                    .backoff_cap
                    .min(doubled(self.settings.backoff, entry.failures));
                entry.due = Due {
                    at: Instant::now() + pause.mul_f64(0.5 + 0.5 * draw()),
                    wall: None,
                };
                let error = chain(&err);
                warn!(%id, error, failures = entry.failures, "no certificate; the CA will be asked again");
            }
        }
    }
}

fn doubled(pause: Duration, failures: u32) -> Duration {
    pause.saturating_mul(1 << failures.saturating_sub(1).min(16))
}

/// Between 0 and 1; a machine without randomness asks all at once.
fn draw() -> f64 {
    let bytes: [u8; 4] = tls::random().unwrap_or_default();
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}

/// Half of the life that is left, give or take a tenth: nodes that started together need not renew together.
fn renewal(svid: &Svid) -> Due {
    let left = svid.expires.saturating_duration_since(Instant::now());
    let pause = left.mul_f64(0.45 + 0.1 * draw());
    Due {
        at: Instant::now() + pause,
        wall: SystemTime::now().checked_add(pause),
    }
}

/// An error and its causes, in one line.
fn chain(err: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(err.source(), |&cause| cause.source());
    causes.fold(err.to_string(), |line, cause| format!("{line}: {cause}"))
}

/// One round: a fresh key, a request, the CA, and a look at what it gave.
async fn fetch(ca: &CertificateAuthority, id: &SpiffeId) -> Result<Fetched, CaError> {
    let csr = Csr::new(id).map_err(CaError::Csr)?;
    let signed = ca.sign(&csr.pem).await?;
    let named = tls::peer_identity(&signed.chain).map_err(|err| CaError::Unusable(err.to_string()))?;
    if named != *id {
        return Err(CaError::Unusable(format!("it is for {named}")));
    }
    let leaf = signed
        .chain
        .first()
        .ok_or_else(|| CaError::Unusable("there is none".into()))?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|err| CaError::Unusable(err.to_string()))?;
    let (issued_at, expires_at) = (at(leaf.validity().not_before), at(leaf.validity().not_after));
    let serial = leaf
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let left = expires_at.duration_since(SystemTime::now());
    let left = left.map_err(|_| CaError::Unusable("it has expired already".into()))?;
    let cert = CertifiedKey::from_der(signed.chain.clone(), csr.into_key(), &crypto_provider())
        .map_err(CaError::Key)?;
    let svid = Svid {
        id: id.clone(),
        cert: Arc::new(cert),
        issued_at,
        expires_at,
        serial,
        generation: 0,
        expires: Instant::now() + left,
    };
    Ok(Fetched {
        svid,
        trust: signed.trust,
    })
}

fn at(time: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
