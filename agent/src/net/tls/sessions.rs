//! The TLS sessions that are open now, and the trust that they rest on: when it changes, each is asked again.
//!
//! One of these per agent. `svid` says what is trusted; handshakes open sessions; whoever carries something inside of
//! one watches [`Session::rejected`].

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, UnixTime};
use thiserror::Error;
use tokio::sync::watch;
use x509_parser::{
    prelude::{FromDer, X509Certificate},
    time::ASN1Time,
};

use super::{Purpose, Rejected, Trust};
use crate::mesh::SpiffeId;

/// The trust in force and the open sessions. Clones share them.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

struct Shared {
    trust: ArcSwap<Trust>,
    open: Mutex<HashMap<u64, Weak<Session>>>,
    next: AtomicU64,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("open", &self.len())
            .finish_non_exhaustive()
    }
}

impl Sessions {
    /// No session, and the first trust.
    pub fn new(trust: Trust) -> Self {
        Self(Arc::new(Shared {
            trust: ArcSwap::from_pointee(trust),
            open: Mutex::default(),
            next: AtomicU64::default(),
        }))
    }

    /// What is trusted now.
    pub fn trust(&self) -> Arc<Trust> {
        self.0.trust.load_full()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts another trust in force, and rejects the sessions that it does not accept any more. It takes about 0.2 ms for
    /// each certificate that is in use.
    pub fn set_trust(&self, trust: Trust) {
        let trust = Arc::new(trust);
        self.0.trust.store(Arc::clone(&trust));
        // Copied out, so that sessions can begin and end meanwhile.
        let open: Vec<_> = self.lock().values().filter_map(Weak::upgrade).collect();
        let mut verdicts = Verdicts::default();
        for session in open {
            session.reconsider(&trust, &mut verdicts);
        }
    }

    /// Opens a session after a handshake that was verified with `verified`.
    pub(super) fn open(
        &self,
        verified: &Arc<Trust>,
        peer: SpiffeId,
        ours: Proof,
        theirs: Proof,
    ) -> Arc<Session> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let session = Arc::new(Session {
            id,
            sessions: self.clone(),
            peer,
            ours,
            theirs,
            rejected: watch::Sender::new(None),
        });
        self.lock().insert(id, Arc::downgrade(&session));
        // One that changes from here on finds the session listed; it may have changed during the handshake.
        let trust = self.trust();
        if !Arc::ptr_eq(&trust, verified) {
            session.reconsider(&trust, &mut Verdicts::default());
        }
        session
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<Session>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Chain = Arc<[CertificateDer<'static>]>;

/// What one end of a session has presented, and when it was verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proof {
    /// Leaf first.
    pub chain: Chain,
    /// What for.
    pub purpose: Purpose,
    /// A time at which it was good, in seconds since 1970.
    at: u64,
}

impl Proof {
    /// Presented, and taken, now. Where our clock says that it cannot have been, the certificate is right: a clock that
    /// jumps ends nothing.
    pub fn now(chain: &[CertificateDer<'_>], purpose: Purpose) -> Self {
        let now = UnixTime::now().as_secs();
        let life = chain.first().and_then(|leaf| life(leaf)).unwrap_or((now, now));
        Self {
            chain: chain.iter().map(|cert| cert.clone().into_owned()).collect(),
            purpose,
            at: now.max(life.0).min(life.1),
        }
    }

    /// Asks the trust.
    ///
    /// # Errors
    /// As [`Trust::accepts`].
    pub fn accepted_by(&self, trust: &Trust) -> Result<(), Rejected> {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(self.at));
        trust.accepts(&self.chain, self.purpose, at)
    }
}

/// From when to when a certificate is good, in seconds since 1970.
fn life(cert: &CertificateDer<'_>) -> Option<(u64, u64)> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let validity = cert.validity();
    let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).ok();
    seconds(validity.not_before).zip(seconds(validity.not_after))
}

/// What was asked already in one round: a certificate is in use by many sessions.
#[derive(Default)]
struct Verdicts(HashMap<(Chain, Purpose), Result<(), Rejected>>);

impl Verdicts {
    fn ask(&mut self, proof: &Proof, trust: &Trust) -> Result<(), Rejected> {
        let key = (Arc::clone(&proof.chain), proof.purpose);
        // Its time was good at the handshake, whichever that was.
        self.0
            .entry(key)
            .or_insert_with(|| proof.accepted_by(trust))
            .clone()
    }
}

/// One session. It is closed when the last that holds it drops it.
pub struct Session {
    id: u64,
    sessions: Sessions,
    /// Who has proved to be at the other end.
    pub peer: SpiffeId,
    ours: Proof,
    theirs: Proof,
    rejected: watch::Sender<Option<Ended>>,
}

/// Why a session may not go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Ended {
    /// The peer's certificate.
    #[error("the certificate of {peer} is not accepted any more: {why}")]
    Theirs {
        /// Whose it is.
        peer: SpiffeId,
        /// Why.
        why: Rejected,
    },
    /// Our own.
    #[error("the certificate that this end presented is not accepted any more: {why}")]
    Ours {
        /// Why.
        why: Rejected,
    },
}

impl Ended {
    /// Whether a revocation is the reason.
    pub fn is_revoked(&self) -> bool {
        let (Self::Theirs { why, .. } | Self::Ours { why }) = self;
        matches!(why, Rejected::Revoked { .. })
    }
}

impl Session {
    /// Waits until a change of the trust rejects the session; for ever when none does.
    pub async fn rejected(&self) -> Ended {
        let mut changes = self.rejected.subscribe();
        loop {
            let rejected = changes.borrow_and_update().clone();
            if let Some(ended) = rejected {
                return ended;
            }
            // It fails only without a sender, which is ours.
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why it may not go on, if so.
    pub fn ended(&self) -> Option<Ended> {
        self.rejected.borrow().clone()
    }

    /// Whether it may not go on.
    pub fn is_rejected(&self) -> bool {
        self.rejected.borrow().is_some()
    }

    fn reconsider(&self, trust: &Trust, verdicts: &mut Verdicts) {
        let theirs = verdicts.ask(&self.theirs, trust).map_err(|why| Ended::Theirs {
            peer: self.peer.clone(),
            why,
        });
        let mut ours = || verdicts.ask(&self.ours, trust).map_err(|why| Ended::Ours { why });
        if let Err(ended) = theirs.and_then(|()| ours()) {
            // Rejected once is rejected for good.
            self.rejected.send_if_modified(|rejected| {
                let first = rejected.is_none();
                rejected.get_or_insert(ended);
                first
            });
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.lock().remove(&self.id);
    }
}
