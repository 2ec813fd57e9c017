//! What one client wants of one kind of resources: everything, or what it names and what belongs to that.
//!
//! A service that is named brings the workloads behind it, by whatever name it is called, and a node's agent the workloads of its
//! node. What a client was sent it hears of until it names no more what brought it.

use std::{collections::HashSet, sync::Arc};

use rustc_hash::FxHashSet;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    feed::store::{Delta, Kind, Store, Stored},
    rpc::discovery::DeltaDiscoveryRequest,
};

/// It.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// Whether it has asked at all.
    pub(super) asked: bool,
    /// Everything.
    pub(super) wildcard: bool,
    /// Whatever else it has named.
    names: HashSet<String>,
    /// What brings others with it: services that it has named, by their own names, and its node.
    brings: FxHashSet<Arc<str>>,
    /// The group of its node, where it is an agent that says which.
    node: Option<Arc<str>>,
    /// What it has, where that is not everything.
    has: FxHashSet<Arc<str>>,
    /// It has everything up to this revision.
    pub(super) sent: u64,
    /// The response that it has not answered yet.
    pub(super) unanswered: Option<Unanswered>,
}

#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) nonce: String,
    /// Held by a large push, until then at most.
    pub(super) large: Option<(OwnedSemaphorePermit, Instant)>,
}

/// The group of what runs on a node. No resource has such a name.
pub fn node_group(node: &str) -> Arc<str> {
    format!("//node/{node}").into()
}

impl Subscription {
    /// Takes in what a request names. `node` is that of the agent that asks.
    pub(super) fn change(
        &mut self,
        request: &DeltaDiscoveryRequest,
        node: Option<&str>,
        store: &Store,
        kind: Kind,
    ) {
        let is_all = |name: &String| name == "*";
        let (subscribe, unsubscribe) = (
            &request.resource_names_subscribe,
            &request.resource_names_unsubscribe,
        );
        let (asks, leaves) = (subscribe.iter().any(is_all), unsubscribe.iter().any(is_all));
        if !std::mem::replace(&mut self.asked, true) {
            // A client that names nothing in its first request wants everything, unless it says otherwise: ztunnel's says so by
            // subscribing to everything and leaving it again, in one request.
            self.wildcard = !leaves && (asks || subscribe.is_empty());
            self.node = node.filter(|node| !node.is_empty()).map(node_group);
            let versions = request.initial_resource_versions.keys();
            self.has.extend(versions.map(|name| name.as_str().into()));
        } else if asks || leaves {
            self.wildcard = asks && !leaves;
        }
        self.names.retain(|name| !unsubscribe.contains(name));
        // With everything there is nothing to remember: an agent that looks up address after address must not run into a bound.
        if self.wildcard {
            (self.names, self.has) = Default::default();
        } else {
            self.names
                .extend(subscribe.iter().filter(|name| !is_all(name)).cloned());
            self.settle(store, kind, !unsubscribe.is_empty());
        }
    }

    /// Finds out what brings others, and forgets what nothing brings any more.
    fn settle(&mut self, store: &Store, kind: Kind, forgets: bool) {
        self.brings = store.found(kind, self.names.iter().map(String::as_str));
        self.brings.extend(self.node.clone());
        if forgets {
            let mut has = std::mem::take(&mut self.has);
            has.retain(|name| store.get(kind, name).is_some_and(|it| self.names_it(&it)));
            self.has = has;
        }
    }

    /// How many names it has given.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// What there is of these names, and of what they bring; at the first time of the node as well.
    pub(super) fn named<'a>(
        &self,
        store: &Store,
        kind: Kind,
        names: impl Iterator<Item = &'a str>,
        first: bool,
    ) -> Delta {
        let node = self.node.as_deref().filter(|_| first);
        store.named(kind, names, node)
    }

    /// Leaves of what has changed what the client wants, and adds what that brings.
    pub(super) fn select(&mut self, delta: &mut Delta, store: &Store, kind: Kind) {
        if self.wildcard {
            return;
        }
        delta
            .resources
            .retain(|it| self.has.contains(&it.name) || self.names_it(it));
        delta
            .removed
            .retain(|name| self.has.contains(name.as_str()) || self.names.contains(name));
        // Of an address that somebody waits for it is known only now that it is a service's.
        let is_new = |it: &&Arc<Stored>| !self.brings.contains(&it.name) && it.is_one_of(&self.names);
        let new: Vec<_> = delta
            .resources
            .iter()
            .filter(is_new)
            .map(|it| it.name.clone())
            .collect();
        if !new.is_empty() {
            let brought = store.named(kind, new.iter().map(|name| &**name), None).resources;
            let there: FxHashSet<_> = delta.resources.iter().map(|it| it.name.clone()).collect();
            delta
                .resources
                .extend(brought.into_iter().filter(|it| !there.contains(&it.name)));
            self.brings.extend(new);
        }
    }

    /// Notes what is sent.
    pub(super) fn note(&mut self, delta: &Delta) {
        if self.wildcard {
            return;
        }
        self.has.extend(delta.resources.iter().map(|it| it.name.clone()));
        for name in &delta.removed {
            self.has.remove(name.as_str());
        }
    }

    /// Whether it is of a name that was given, or brought by one.
    fn names_it(&self, it: &Stored) -> bool {
        it.is_one_of(&self.names) || it.with.iter().any(|group| self.brings.contains(group))
    }
}
