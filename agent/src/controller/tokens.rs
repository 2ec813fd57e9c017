//! Who calls: a bearer token is shown to the Kubernetes API (TokenReview), which says whose it is.
//!
//! Answers are remembered for a few seconds, so that an agent that starts with a hundred pods is one review and not a
//! hundred; refusals too, in little room.
//!
//! Any pod may call, with any text for a token. So the API is asked by few at a time, of whom one address has a few; who waits for
//! that does not use up the time that the API has; and an address whose tokens have been refused again and again is refused without
//! asking. What others do is then no agent's trouble, as long as it has its own address.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use rustc_hash::FxHashMap;
use thiserror::Error;
use tokio::{sync::Semaphore, time::timeout};

use super::allowance::{Allowances, Rate};
use crate::{mesh::SpiffeId, net::chain};

/// How long an answer is believed. A pod that was deleted keeps its token for so much longer.
const REMEMBERED: Duration = Duration::from_secs(10);
/// Answers that are remembered, and as many refusals.
const MOST: usize = 10_000;
/// Reviews at a time.
const AT_ONCE: usize = 16;
/// And those of one address.
const OF_ADDRESS: usize = 2;
/// How long a call waits until it is its turn.
const TURN: Duration = Duration::from_secs(20);
/// How long a review may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Refused tokens of one address.
const REFUSALS: Rate = Rate {
    burst: 50.0,
    per_second: 1.0,
    most: 20_000,
};
/// The longest token, in bytes.
const LONGEST: usize = 16 * 1024;

/// Who calls: a service account, and the pod that its token is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    /// The service account's namespace.
    pub(super) namespace: String,
    /// The service account.
    pub(super) service_account: String,
    /// The pod that holds the token; none for a token that is bound to no pod.
    pub(super) pod: Option<String>,
    /// The node that the pod is on, where the API says it (Kubernetes 1.30 and later).
    pub(super) node: Option<String>,
}

impl Caller {
    /// Whoever has a certificate of the mesh: which pod of the service account it is, and where, nobody has said.
    pub(super) fn certified(id: &SpiffeId) -> Self {
        Self {
            namespace: id.namespace().to_owned(),
            service_account: id.service_account().to_owned(),
            pod: None,
            node: None,
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            service_account,
            ..
        } = self;
        write!(f, "{namespace}/{service_account}")?;
        if let Some(pod) = &self.pod {
            write!(f, " (pod {pod})")?;
        }
        Ok(())
    }
}

/// Why nobody is known to call.
#[derive(Debug, Error)]
pub(super) enum TokenError {
    /// No `authorization: Bearer` in the call's metadata.
    #[error(
        "there is no bearer token: send `authorization: Bearer TOKEN`; a client certificate of the mesh is enough to hear the mesh, not to \
         have certificates signed"
    )]
    Missing,
    /// Kubernetes does not know it, or not for us.
    #[error("the token is not accepted: {0}")]
    Refused(String),
    /// Kubernetes could not be asked.
    #[error("the token could not be verified")]
    Unverified(#[source] Box<kube::Error>),
    /// It did not answer.
    #[error("the token could not be verified: the Kubernetes API did not answer within {DEADLINE:?}")]
    TimedOut,
    /// Others were first.
    #[error("the token could not be verified: too many others are before it; try again later")]
    Busy,
    /// Nobody asks for this address.
    #[error("too many tokens from {0} were refused: at most {per_second} a second in the long run", per_second = REFUSALS.per_second)]
    TooMany(IpAddr),
}

/// Who a token belongs to.
pub(super) type Reviewing<'a> = Pin<Box<dyn Future<Output = Result<Caller, TokenError>> + Send + 'a>>;

/// Whoever verifies tokens.
pub(super) trait Reviewer: Send + Sync {
    /// Says whose token it is, that came from this address.
    fn review<'a>(&'a self, token: &'a str, from: IpAddr) -> Reviewing<'a>;
}

/// The Kubernetes API.
pub(super) struct Tokens {
    api: Api<TokenReview>,
    audiences: Vec<String>,
    at_once: Semaphore,
    turns: Turns,
    refusals: Allowances<IpAddr>,
    remembered: Mutex<FxHashMap<String, (Instant, Caller)>>,
    /// By the hash of a token, whose seed nobody knows: why it was refused.
    refused: Mutex<FxHashMap<u64, (Instant, String)>>,
    hashes: RandomState,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

impl Tokens {
    /// Tokens for any of these audiences are accepted.
    pub(super) fn new(client: Client, audiences: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            api: Api::all(client),
            audiences,
            at_once: Semaphore::new(AT_ONCE),
            turns: Turns::default(),
            refusals: Allowances::new(REFUSALS),
            remembered: Mutex::default(),
            refused: Mutex::default(),
            hashes: RandomState::new(),
        })
    }

    async fn ask(&self, token: &str, from: IpAddr) -> Result<Caller, TokenError> {
        if token.len() > LONGEST {
            return Err(TokenError::Refused("it is too long to be one".into()));
        }
        if let Some(known) = self.known(token) {
            return known;
        }
        if !self.refusals.has(&from, Instant::now()) {
            return Err(TokenError::TooMany(from));
        }
        let turn = self.turns.of(from);
        let turns = async { (turn.places.acquire().await, self.at_once.acquire().await) };
        let _turn = timeout(TURN, turns).await.map_err(|_| TokenError::Busy)?;
        // Another call of this address has asked meanwhile.
        if let Some(known) = self.known(token) {
            return known;
        }
        let reviewed = self.review_now(token).await;
        match &reviewed {
            Ok(caller) => self.note(token, caller),
            Err(TokenError::Refused(why)) => {
                self.refusals.spend(&from, Instant::now());
                self.note_refused(token, why);
            }
            Err(_) => {}
        }
        reviewed
    }

    /// What is remembered of a token.
    fn known(&self, token: &str) -> Option<Result<Caller, TokenError>> {
        let caller = self.remember(token).map(Ok);
        caller.or_else(|| Some(Err(TokenError::Refused(self.remember_refused(token)?))))
    }

    async fn review_now(&self, token: &str) -> Result<Caller, TokenError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(self.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let params = PostParams::default();
        let answer = timeout(DEADLINE, self.api.create(&params, &review)).await;
        let status = answer
            .map_err(|_| TokenError::TimedOut)?
            .map_err(|error| TokenError::Unverified(Box::new(error)))?
            .status;
        let status = status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let why = status
                .error
                .unwrap_or_else(|| "Kubernetes does not know it".into());
            return Err(TokenError::Refused(why));
        }
        // An API server that knows no audiences leaves them out: then nobody has checked them.
        let ours = |audience: &String| self.audiences.contains(audience);
        if !status.audiences.iter().flatten().any(ours) {
            let audiences = self.audiences.join(" or ");
            return Err(TokenError::Refused(format!(
                "it is not for the audience {audiences}"
            )));
        }
        caller(&status.user.unwrap_or_default())
    }

    fn remember_refused(&self, token: &str) -> Option<String> {
        let refused = lock(&self.refused);
        let (since, why) = refused.get(&self.hashes.hash_one(token))?;
        (since.elapsed() < REMEMBERED).then(|| why.clone())
    }

    fn note_refused(&self, token: &str, why: &str) {
        let mut refused = lock(&self.refused);
        if refused.len() >= MOST {
            refused.retain(|_, (since, _)| since.elapsed() < REMEMBERED);
        }
        if refused.len() < MOST {
            let why = why.chars().take(200).collect();
            refused.insert(self.hashes.hash_one(token), (Instant::now(), why));
        }
    }

    fn remember(&self, token: &str) -> Option<Caller> {
        let remembered = lock(&self.remembered);
        let (since, caller) = remembered.get(token)?;
        (since.elapsed() < REMEMBERED).then(|| caller.clone())
    }

    fn note(&self, token: &str, caller: &Caller) {
        let mut remembered = lock(&self.remembered);
        if remembered.len() >= MOST {
            remembered.retain(|_, (since, _)| since.elapsed() < REMEMBERED);
        }
        if remembered.len() < MOST {
            let now = Instant::now();
            remembered.insert(token.to_owned(), (now, caller.clone()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose turn it is, of each address that has a call under way.
#[derive(Clone, Default)]
struct Turns(Arc<Mutex<FxHashMap<IpAddr, Arc<Semaphore>>>>);

/// The places of one address, forgotten with its last call.
struct Turn {
    places: Arc<Semaphore>,
    address: IpAddr,
    all: Turns,
}

impl Turns {
    fn of(&self, address: IpAddr) -> Turn {
        let mut all = lock(&self.0);
        let places = all
            .entry(address)
            .or_insert_with(|| Arc::new(Semaphore::new(OF_ADDRESS)));
        Turn {
            places: Arc::clone(places),
            address,
            all: self.clone(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = lock(&self.all.0);
        // The map's and ours.
        if Arc::strong_count(&self.places) <= 2 {
            all.remove(&self.address);
        }
    }
}

impl Reviewer for Tokens {
    fn review<'a>(&'a self, token: &'a str, from: IpAddr) -> Reviewing<'a> {
        Box::pin(self.ask(token, from))
    }
}

/// The names that Kubernetes gives service accounts and what their tokens are bound to.
fn caller(user: &UserInfo) -> Result<Caller, TokenError> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|name| name.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return Err(TokenError::Refused(format!("{name} is no service account")));
    };
    let extra = |key: &str| user.extra.as_ref()?.get(key)?.first().cloned();
    Ok(Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: extra("authentication.kubernetes.io/pod-name"),
        node: extra("authentication.kubernetes.io/node-name"),
    })
}

/// The bearer token of a call.
///
/// # Errors
/// When there is none.
pub(super) fn bearer(headers: &http::HeaderMap) -> Result<&str, TokenError> {
    let header = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|it| it.to_str().ok());
    let token = header.and_then(|it| it.strip_prefix("Bearer ")).map(str::trim);
    token.filter(|token| !token.is_empty()).ok_or(TokenError::Missing)
}

/// What a client is told, as gRPC has it.
pub(super) fn status(error: &TokenError) -> tonic::Status {
    match error {
        TokenError::Missing | TokenError::Refused(_) => tonic::Status::unauthenticated(error.to_string()),
        TokenError::Unverified(_) | TokenError::TimedOut | TokenError::Busy => {
            tonic::Status::unavailable(chain(error))
        }
        TokenError::TooMany(_) => tonic::Status::resource_exhausted(error.to_string()),
    }
}
