//! The one owner of the pods' keys: fetches a certificate for every identity that is wanted, renews it at half its
//! life, drops it when nobody wants it any more. And the one that says what is trusted.
//!
//! Level-triggered: [`SvidStore::desire`] and [`SvidStore::replace`] say what should be, a task (`owner`) makes it so. A
//! certificate that is still good is never dropped because the CA fails. Readers take a snapshot and never wait.

mod moment;
mod owner;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::sign::CertifiedKey;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::CertificateAuthority;
use crate::{
    mesh::SpiffeId,
    net::tls::{Proof, Revocations, Sessions, Trust, TrustBundle},
};
use moment::Moment;

/// A certificate and its key, for one identity.
#[derive(Debug)]
pub struct Svid {
    /// Whom it is for.
    pub id: SpiffeId,
    /// What rustls presents.
    pub cert: Arc<CertifiedKey>,
    /// What is asked of a trust: whether peers that have it will take the certificate.
    pub proof: Proof,
    /// The beginning of its validity.
    pub issued_at: SystemTime,
    /// The end of its validity.
    pub expires_at: SystemTime,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// Grows with each certificate of the process: part of a tunnel's key.
    pub generation: u64,
    /// Set when another certificate has taken its place, or none is wanted any more: what was begun with it goes on, and
    /// nothing more is.
    pub replaced: CancellationToken,
    /// `expires_at`, as it was foreseen when the certificate came.
    expires: Moment,
}

impl Svid {
    /// Whether it may not be presented any more. By a clock that nobody can set: `SystemTime` may jump, and the
    /// certificate is as good as before.
    pub fn is_expired(&self) -> bool {
        self.expires.is_over()
    }
}

/// What certificates and trust are made from. Replaced as a whole.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Who signs. Its roots are trusted.
    pub ca: Arc<dyn CertificateAuthority>,
    /// More roots: of other CAs, or of this one before and after it is replaced.
    pub roots: Option<TrustBundle>,
    /// What is not accepted in spite of its root.
    pub revocations: Revocations,
}

impl Sources {
    /// A CA, and nothing else.
    pub fn of(ca: Arc<dyn CertificateAuthority>) -> Self {
        Self {
            ca,
            roots: None,
            revocations: Revocations::default(),
        }
    }

    /// The trust when the CA's roots are these.
    fn trust(&self, of_ca: &TrustBundle) -> Trust {
        let roots = match &self.roots {
            Some(more) => of_ca.merged(more),
            None => of_ca.clone(),
        };
        Trust::new(roots, self.revocations.clone())
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
    /// For how long, at most, the roots of a CA that was replaced are trusted while its certificates are replaced. What
    /// is to go on for longer must be among [`Sources::roots`].
    pub replacing: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            sign_timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            backoff_cap: Duration::from_secs(60),
            concurrency: 8,
            replacing: Duration::from_millis(500),
        }
    }
}

/// The handle to the store. Clones share it; when the last is dropped the task ends and the keys are gone.
#[derive(Clone)]
pub struct SvidStore {
    shared: Arc<Shared>,
    desired: watch::Sender<HashSet<SpiffeId>>,
    sources: watch::Sender<Sources>,
}

struct Shared {
    current: ArcSwap<HashMap<SpiffeId, Arc<Svid>>>,
    sessions: Sessions,
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
    pub fn spawn(sources: Sources, settings: StoreSettings) -> Self {
        let shared = Arc::new(Shared {
            current: ArcSwap::default(),
            sessions: Sessions::new(sources.trust(&sources.ca.trust())),
            revision: watch::Sender::new(0),
        });
        let (desired, wanted) = watch::channel(HashSet::new());
        let (sources, given) = watch::channel(sources);
        owner::spawn(settings, Arc::clone(&shared), wanted, given);
        Self {
            shared,
            desired,
            sources,
        }
    }

    /// The identities that are wanted, all of them: those that are missing are fetched, the others are dropped.
    pub fn desire(&self, ids: HashSet<SpiffeId>) {
        self.desired.send_if_modified(|desired| {
            let changed = *desired != ids;
            *desired = ids;
            changed
        });
    }

    /// What certificates and trust are made from, from now on. Another CA gives every identity a new certificate at once;
    /// what is not trusted any more ends.
    pub fn replace(&self, sources: Sources) {
        self.sources.send_replace(sources);
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

    /// What peers are verified with.
    pub fn trust(&self) -> Arc<Trust> {
        self.shared.sessions.trust()
    }

    /// The TLS sessions that rest on that trust.
    pub fn sessions(&self) -> &Sessions {
        &self.shared.sessions
    }

    /// Changes with every certificate that comes or goes, and with the trust.
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

impl Shared {
    fn publish(&self, current: HashMap<SpiffeId, Arc<Svid>>) {
        let before = self.current.swap(Arc::new(current));
        let current = self.current.load();
        let stays = |svid: &Svid| {
            current
                .get(&svid.id)
                .is_some_and(|now| now.generation == svid.generation)
        };
        for svid in before.values().filter(|svid| !stays(svid)) {
            svid.replaced.cancel();
        }
        self.revision.send_modify(|revision| *revision += 1);
    }
}
