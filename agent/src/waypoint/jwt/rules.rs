//! Rules in the form in which requests ask them: with their keys, and with names that are headers.

use std::{sync::Arc, time::SystemTime};

use http::HeaderName;
use rustc_hash::FxHashMap;

use super::{
    Unauthenticated,
    fetch::{Fetcher, Remote},
    keys::KeySet,
    places::Place,
    verify::Compact,
};
use crate::{
    mesh::{
        PolicyKey,
        http::{Jwks, JwtRule, RequestAuthentication},
    },
    net::chain,
};

/// All that were announced.
#[derive(Debug, Default)]
pub(super) struct Known {
    rules: FxHashMap<PolicyKey, Prepared>,
    remotes: FxHashMap<Arc<str>, Arc<Remote>>,
}

impl Known {
    /// These instead of the old ones. What is the same is not made again, and nothing is fetched again.
    pub(super) fn next<'a>(
        &self,
        rules: impl IntoIterator<Item = &'a Arc<RequestAuthentication>>,
        fetcher: &Fetcher,
    ) -> Self {
        let mut next = Self::default();
        for source in rules {
            for rule in &source.rules {
                next.fetch(self, rule, fetcher);
            }
            let prepared = match self.prepared(source) {
                // Under the new reference, by which requests find it without comparing values.
                Some(Prepared { rules, .. }) => Prepared {
                    source: source.clone(),
                    rules: rules.clone(),
                },
                None => Prepared::new(source, &next.remotes),
            };
            next.rules.entry(source.key.clone()).or_insert(prepared);
        }
        next
    }

    fn fetch(&mut self, before: &Self, rule: &JwtRule, fetcher: &Fetcher) {
        let Jwks::Url(url) = &rule.jwks else {
            return;
        };
        let remote = self.remotes.entry(url.clone()).or_insert_with(|| {
            let running = before.remotes.get(url).cloned();
            running.unwrap_or_else(|| fetcher.begin(url))
        });
        remote.allow(rule.timeout_ms);
    }

    /// What the task of an address writes to.
    #[cfg(test)]
    pub(super) fn shared(&self, url: &Arc<str>) -> std::sync::Weak<super::fetch::Shared> {
        self.remotes[url].shared()
    }

    fn prepared(&self, source: &Arc<RequestAuthentication>) -> Option<&Prepared> {
        let prepared = self.rules.get(&source.key)?;
        (Arc::ptr_eq(&prepared.source, source) || prepared.source == *source).then_some(prepared)
    }
}

/// Those that one request is asked about.
pub(super) struct Rules<'a> {
    known: &'a Known,
    asked: &'a [Arc<RequestAuthentication>],
    /// Those of `asked` that were not announced.
    fresh: Vec<Prepared>,
}

impl<'a> Rules<'a> {
    pub(super) fn of(known: &'a Known, asked: &'a [Arc<RequestAuthentication>]) -> Self {
        let unknown = asked.iter().filter(|source| known.prepared(source).is_none());
        let fresh = unknown
            .map(|source| Prepared::new(source, &known.remotes))
            .collect();
        Self { known, asked, fresh }
    }

    fn prepared(&self) -> impl Iterator<Item = &Prepared> {
        let known = self.asked.iter().filter_map(|source| self.known.prepared(source));
        known.chain(&self.fresh)
    }

    /// One that nobody can read.
    pub(super) fn unreadable(&self) -> Option<&PolicyKey> {
        let mut sources = self.asked.iter();
        Some(&sources.find(|source| !source.unreadable.is_empty())?.key)
    }

    pub(super) fn each(&self) -> impl Iterator<Item = &PreparedRule> {
        self.prepared().flat_map(|prepared| prepared.rules.iter())
    }
}

/// A RequestAuthentication.
#[derive(Clone, Debug)]
struct Prepared {
    source: Arc<RequestAuthentication>,
    rules: Arc<[PreparedRule]>,
}

impl Prepared {
    fn new(source: &Arc<RequestAuthentication>, remotes: &FxHashMap<Arc<str>, Arc<Remote>>) -> Self {
        let prepare = |rule: &JwtRule| PreparedRule::new(&source.key, rule, remotes);
        Self {
            source: source.clone(),
            rules: source.rules.iter().map(prepare).collect(),
        }
    }
}

/// A rule of one.
#[derive(Debug)]
pub(super) struct PreparedRule {
    pub(super) rule: JwtRule,
    pub(super) places: Vec<Place>,
    /// For the payload.
    pub(super) payload: Option<HeaderName>,
    /// For claims: the header and the way to the claim.
    pub(super) claims: Vec<(HeaderName, Arc<str>)>,
    keys: Keys,
}

/// What signatures are checked with.
#[derive(Debug)]
enum Keys {
    Here(KeySet),
    Remote(Arc<Remote>),
    /// They cannot be read, or nobody fetches them.
    None,
}

impl PreparedRule {
    fn new(key: &PolicyKey, rule: &JwtRule, remotes: &FxHashMap<Arc<str>, Arc<Remote>>) -> Self {
        let keys = match &rule.jwks {
            Jwks::Url(url) => remotes.get(url).cloned().map_or(Keys::None, Keys::Remote),
            Jwks::Inline(text) => KeySet::read(text.as_bytes()).map_or_else(
                |err| {
                    let (issuer, error) = (&*rule.issuer, chain(&err));
                    tracing::warn!(%key, issuer, error, "tokens are refused: their keys cannot be read");
                    Keys::None
                },
                Keys::Here,
            ),
        };
        let header = |name: &Arc<str>| HeaderName::from_bytes(name.as_bytes()).ok();
        let claim = |it: &crate::mesh::http::ClaimHeader| Some((header(&it.header)?, it.claim.clone()));
        Self {
            places: Place::of(rule),
            payload: rule.output_payload_to_header.as_ref().and_then(header),
            claims: rule.output_claims.iter().filter_map(claim).collect(),
            keys,
            rule: rule.clone(),
        }
    }

    /// Everything about a token of this rule's issuer: what is cheap first.
    pub(super) fn verify(&self, compact: &Compact<'_>, now: SystemTime) -> Result<(), Unauthenticated> {
        compact.check_time(now)?;
        compact.check_audience(&self.rule.audiences)?;
        match &self.keys {
            Keys::None => Err(Unauthenticated::NoKeys),
            Keys::Here(keys) => keys.verify(compact),
            Keys::Remote(remote) => remote.verify(compact),
        }
    }
}
