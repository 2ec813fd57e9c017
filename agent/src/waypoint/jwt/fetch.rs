//! Key sets that are fetched: one task for each address, which begins when a rule names it and ends when none does.
//!
//! Requests never wait for it. They find the last good set, or none; one that names a key which is not in it asks for an
//! early fetch, of which there is at most one in ten seconds.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use futures::FutureExt;
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer};
use thiserror::Error;
use tokio::{runtime::Handle, sync::Notify, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Unauthenticated,
    keys::{KeySet, KeySetError},
    verify::Compact,
};
use crate::net::{chain, tls};

mod get;
#[cfg(test)]
mod tests;

/// How long a fetch may take where no rule says, and the most that one can say.
const USUAL_TIMEOUT: Duration = Duration::from_secs(5);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// When sets are fetched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Again, after it went well.
    pub(super) every: Duration,
    /// The pause after the first failure; it doubles.
    pub(super) first_pause: Duration,
    /// The longest pause after a failure.
    pub(super) longest_pause: Duration,
    /// The least time between two fetches, whatever requests ask for.
    pub(super) soonest: Duration,
}

impl Default for Pace {
    /// Every 20 minutes, as Istio does.
    fn default() -> Self {
        Self {
            every: Duration::from_secs(20 * 60),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(300),
            soonest: Duration::from_secs(10),
        }
    }
}

/// Fetches key sets.
#[derive(Clone)]
pub struct Fetcher {
    runtime: Handle,
    tls: Arc<ClientConfig>,
    pub(super) pace: Pace,
}

/// Why there is no way to fetch anything.
#[derive(Debug, Error)]
#[error("take the certificates that key sets are believed with")]
pub struct FetcherError(#[from] rustls::Error);

impl Fetcher {
    /// One whose tasks run on `runtime`. Servers are believed by the roots of the web, and by `roots`.
    ///
    /// # Errors
    /// When one of the roots is none.
    pub fn new(
        runtime: Handle,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, FetcherError> {
        let mut store = RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        for root in roots {
            store.add(root)?;
        }
        // Not the mesh's own: the servers of identity providers may speak TLS 1.2.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = config.with_root_certificates(store).with_no_client_auth();
        Ok(Self {
            runtime,
            tls: Arc::new(tls),
            pace: Pace::default(),
        })
    }

    /// Begins to fetch the set at this address, until the handle is dropped.
    pub(super) fn begin(&self, url: &Arc<str>) -> Arc<Remote> {
        let shared = Arc::new(Shared {
            url: url.clone(),
            keys: ArcSwapOption::empty(),
            timeout_ms: AtomicU64::new(0),
            wanted: Notify::new(),
        });
        let task = self
            .runtime
            .spawn(run(shared.clone(), self.tls.clone(), self.pace));
        Arc::new(Remote {
            shared,
            _task: AbortOnDropHandle::new(task),
        })
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

/// A set that is fetched.
#[derive(Debug)]
pub(super) struct Remote {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
pub(super) struct Shared {
    url: Arc<str>,
    /// The last good ones.
    keys: ArcSwapOption<KeySet>,
    timeout_ms: AtomicU64,
    wanted: Notify,
}

impl Remote {
    /// Lets a fetch take as long as a rule says, or as another one does that says more.
    pub(super) fn allow(&self, timeout_ms: u64) {
        self.shared.timeout_ms.fetch_max(timeout_ms, Relaxed);
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> std::sync::Weak<Shared> {
        Arc::downgrade(&self.shared)
    }

    /// Asks the set that was fetched last.
    pub(super) fn verify(&self, compact: &Compact<'_>) -> Result<(), Unauthenticated> {
        let Some(keys) = &*self.shared.keys.load() else {
            return Err(Unauthenticated::NoKeys);
        };
        let verdict = keys.verify(compact);
        if verdict == Err(Unauthenticated::NoKey) {
            self.shared.wanted.notify_one();
        }
        verdict
    }
}

/// Why there is no new set.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "each message says it")]
enum FetchError {
    #[error("`{0}` is not an address of the form http://host/path or https://host/path")]
    Url(Arc<str>),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("connect to {peer}")]
    Connect { peer: String, source: io::Error },
    #[error("TLS with {peer}")]
    Tls { peer: String, source: io::Error },
    #[error("ask for the keys")]
    Http(#[source] hyper::Error),
    #[error("the answer is {0}; redirects are not followed")]
    Status(http::StatusCode),
    #[error("read the keys")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("use the keys")]
    Keys(#[source] KeySetError),
}

async fn run(shared: Arc<Shared>, tls: Arc<ClientConfig>, pace: Pace) {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        match shared.fetch(&tls).await {
            Ok(keys) => {
                failures = 0;
                tracing::debug!(url = &*shared.url, keys = keys.len(), "key set fetched");
                shared.keys.store(Some(Arc::new(keys)));
            }
            Err(err) => {
                failures = u32::saturating_add(failures, 1);
                let (url, have_keys) = (&*shared.url, shared.keys.load().is_some());
                let error = chain(&err);
                tracing::warn!(url, have_keys, error, "a key set could not be fetched");
            }
        }
        // What was asked for meanwhile is here, or was not there to be had.
        let _ = shared.wanted.notified().now_or_never();
        tokio::select! {
            () = tokio::time::sleep(pace.pause(failures, draw())) => {}
            () = shared.wanted.notified() => tokio::time::sleep_until(begun + pace.soonest).await,
        }
    }
}

impl Pace {
    /// Between half of it and all of it, so that not all waypoints ask at once.
    fn pause(&self, failures: u32, draw: u64) -> Duration {
        let longest = match failures.checked_sub(1) {
            None => self.every,
            Some(doublings) => self
                .first_pause
                .saturating_mul(2_u32.saturating_pow(doublings))
                .min(self.longest_pause),
        };
        // A share of 1024ths: exact enough, and it fits.
        let share = u32::try_from(draw % 513).unwrap_or_default() + 512;
        longest * share / 1024
    }
}

fn draw() -> u64 {
    tls::random().map_or(0, u64::from_le_bytes)
}

impl Shared {
    async fn fetch(&self, tls: &Arc<ClientConfig>) -> Result<KeySet, FetchError> {
        let limit = match self.timeout_ms.load(Relaxed) {
            0 => USUAL_TIMEOUT,
            ms => Duration::from_millis(ms).min(LONGEST_TIMEOUT),
        };
        let body = tokio::time::timeout(limit, get::get(&self.url, tls));
        let body = body.await.map_err(|_| FetchError::Timeout(limit))??;
        KeySet::read(&body).map_err(FetchError::Keys)
    }
}
