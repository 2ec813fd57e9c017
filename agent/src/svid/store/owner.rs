//! The store's task: asks the CA for what is missing or due, and keeps the trust as the sources say.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::sign::CertifiedKey;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Moment, Shared, Sources, StoreSettings, Svid};
use crate::{
    mesh::SpiffeId,
    net::{
        chain,
        tls::{self, Proof, Purpose, TrustBundle},
    },
    svid::{CaError, CertificateAuthority, Csr},
};

/// The task looks at the clock at least this often, for a machine that slept.
const LOOK: Duration = Duration::from_secs(60);

/// Starts the task. It ends with the last handle to the store.
pub(super) fn spawn(
    settings: StoreSettings,
    shared: Arc<Shared>,
    wanted: watch::Receiver<HashSet<SpiffeId>>,
    given: watch::Receiver<Sources>,
) {
    let sources = given.borrow().clone();
    let owner = Owner {
        ca_roots: sources.ca.trust(),
        sources,
        settings,
        shared,
        entries: HashMap::new(),
        signing: JoinSet::new(),
        generation: 0,
        ca: 0,
        replaced: None,
    };
    tokio::spawn(owner.run(wanted, given));
}

struct Owner {
    sources: Sources,
    settings: StoreSettings,
    shared: Arc<Shared>,
    entries: HashMap<SpiffeId, Entry>,
    signing: JoinSet<Answer>,
    generation: u64,
    /// The CA's number: it grows with each that takes another's place.
    ca: u64,
    /// As the CA gave them last.
    ca_roots: TrustBundle,
    replaced: Option<Replaced>,
}

/// The roots of CAs that were replaced, until no certificate of theirs is left here, or their time is over.
struct Replaced {
    roots: TrustBundle,
    until: Instant,
}

/// What is known of one identity that is wanted.
struct Entry {
    due: Moment,
    failures: u32,
    in_flight: bool,
    /// The CA that signed what there is, by its number.
    signed_by: Option<u64>,
}

impl Entry {
    fn new() -> Self {
        Self {
            due: Moment::now(),
            failures: 0,
            in_flight: false,
            signed_by: None,
        }
    }

    /// To be asked for at once.
    fn hurry(&mut self) {
        self.due = Moment::now();
        self.failures = 0;
    }
}

/// What a CA, by its number, said when it was asked for an identity's certificate.
type Answer = (SpiffeId, u64, Result<Fetched, CaError>);

struct Fetched {
    svid: Svid,
    roots: TrustBundle,
}

impl Owner {
    async fn run(
        mut self,
        mut wanted: watch::Receiver<HashSet<SpiffeId>>,
        mut given: watch::Receiver<Sources>,
    ) {
        loop {
            self.forget_replaced();
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
                changed = given.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let sources = given.borrow_and_update().clone();
                    self.take(sources);
                }
                Some(done) = self.signing.join_next() => match done {
                    Ok(answer) => self.settle(answer),
                    Err(err) => warn!(%err, "a request for a certificate was lost"),
                },
                () = sleep_until(next) => {}
            }
        }
    }

    fn reconcile(&mut self, wanted: &HashSet<SpiffeId>) {
        self.entries.retain(|id, _| wanted.contains(id));
        for id in wanted {
            self.entries.entry(id.clone()).or_insert_with(Entry::new);
        }
        let current = self.shared.current.load();
        if current.keys().any(|id| !wanted.contains(id)) {
            let kept = current.iter().filter(|(id, _)| wanted.contains(*id));
            self.shared
                .publish(kept.map(|(id, svid)| (id.clone(), svid.clone())).collect());
        }
    }

    /// Takes other sources. Both CAs are trusted while one takes the other's place.
    fn take(&mut self, sources: Sources) {
        if !Arc::ptr_eq(&sources.ca, &self.sources.ca) {
            info!("the CA was replaced: every pod gets a certificate of the new one");
            let roots = std::mem::replace(&mut self.ca_roots, sources.ca.trust());
            let roots = match self.replaced.take() {
                Some(before) => roots.merged(&before.roots),
                None => roots,
            };
            self.replaced = Some(Replaced {
                roots,
                until: Instant::now() + self.settings.replacing,
            });
            self.ca += 1;
            self.entries.values_mut().for_each(Entry::hurry);
        }
        self.sources = sources;
        self.update_trust();
    }

    fn forget_replaced(&mut self) {
        let Some(replaced) = &self.replaced else {
            return;
        };
        let mut entries = self.entries.values();
        if Instant::now() >= replaced.until || entries.all(|entry| entry.signed_by == Some(self.ca)) {
            self.replaced = None;
            self.update_trust();
        }
    }

    /// Puts the trust in force that the sources give, and drops what others would not accept from us any more.
    fn update_trust(&mut self) {
        let roots = match &self.replaced {
            Some(replaced) => self.ca_roots.merged(&replaced.roots),
            None => self.ca_roots.clone(),
        };
        let trust = self.sources.trust(&roots);
        if trust == *self.shared.sessions.trust() {
            return;
        }
        let (roots, revocation_lists) = (trust.bundle().len(), trust.revocations().len());
        info!(roots, revocation_lists, "the trust has changed");
        let mut current = HashMap::clone(&self.shared.current.load());
        current.retain(|id, svid| match svid.proof.accepted_by(&trust) {
            Ok(()) => true,
            Err(why) => {
                warn!(%id, serial = %svid.serial, %why, "a certificate is dropped; another is asked for");
                self.entries.get_mut(id).into_iter().for_each(Entry::hurry);
                false
            }
        });
        self.shared.sessions.set_trust(trust);
        self.shared.publish(current);
    }

    fn start_due(&mut self) {
        let free = self.settings.concurrency.saturating_sub(self.signing.len());
        let due = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| !entry.in_flight && entry.due.is_over());
        for (id, entry) in due.take(free) {
            entry.in_flight = true;
            let (ca, number) = (Arc::clone(&self.sources.ca), self.ca);
            let (id, limit) = (id.clone(), self.settings.sign_timeout);
            self.signing.spawn(async move {
                let fetched = timeout(limit, fetch(&*ca, &id))
                    .await
                    .unwrap_or(Err(CaError::TimedOut));
                (id, number, fetched)
            });
        }
    }

    fn next_look(&self) -> Instant {
        let soonest = Instant::now() + LOOK;
        let waiting = self
            .entries
            .values()
            .filter(|entry| !entry.in_flight && !entry.due.is_over());
        let replaced = self.replaced.iter().map(|replaced| replaced.until);
        waiting
            .map(|entry| entry.due.instant())
            .chain(replaced)
            .fold(soonest, Instant::min)
    }

    /// An answer of the CA. Nobody may want it any more, and it may be of one that was replaced.
    fn settle(&mut self, (id, ca, answer): Answer) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.in_flight = false;
        if ca != self.ca {
            return;
        }
        if let Err(err) = answer.and_then(|fetched| self.install(&id, fetched)) {
            self.put_off(&id, &err);
        }
    }

    fn install(&mut self, id: &SpiffeId, fetched: Fetched) -> Result<(), CaError> {
        let Fetched { mut svid, roots } = fetched;
        self.ca_roots = roots;
        self.update_trust();
        let accepted = svid.proof.accepted_by(&self.shared.sessions.trust());
        accepted.map_err(|why| CaError::Unusable(why.to_string()))?;
        self.generation += 1;
        svid.generation = self.generation;
        if let Some(entry) = self.entries.get_mut(id) {
            entry.failures = 0;
            entry.due = renewal(&svid);
            entry.signed_by = Some(self.ca);
        }
        debug!(%id, serial = %svid.serial, "certificate issued");
        let mut current = HashMap::clone(&self.shared.current.load());
        current.insert(id.clone(), Arc::new(svid));
        self.shared.publish(current);
        Ok(())
    }

    fn put_off(&mut self, id: &SpiffeId, err: &CaError) {
        let Some(entry) = self.entries.get_mut(id) else {
            return;
        };
        entry.failures += 1;
        let doubled = doubled(self.settings.backoff, entry.failures);
        let pause = self.settings.backoff_cap.min(doubled);
        entry.due = Moment::after(pause.mul_f64(0.5 + 0.5 * draw()));
        let error = chain(err);
        warn!(%id, error, failures = entry.failures, "no certificate; the CA will be asked again");
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
fn renewal(svid: &Svid) -> Moment {
    Moment::after(svid.expires.left().mul_f64(0.45 + 0.1 * draw()))
}

/// One round: a fresh key, a request, the CA, and a look at what it gave.
async fn fetch(ca: &dyn CertificateAuthority, id: &SpiffeId) -> Result<Fetched, CaError> {
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
    let key = csr.key.for_tls().map_err(CaError::Key)?;
    let cert = CertifiedKey::new(signed.chain.clone(), key);
    cert.keys_match().map_err(CaError::Key)?;
    let svid = Svid {
        id: id.clone(),
        cert: Arc::new(cert),
        proof: Proof::now(&signed.chain, Purpose::Client),
        issued_at,
        expires_at,
        serial,
        generation: 0,
        replaced: CancellationToken::new(),
        expires: Moment::after(left),
    };
    Ok(Fetched {
        svid,
        roots: signed.trust,
    })
}

fn at(time: x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
