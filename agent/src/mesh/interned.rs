//! Values that many have in common, each kept once: the names of nodes, namespaces and service accounts, and the lists of
//! services that all pods of a Deployment back. Whoever makes or reads fifty thousand workloads keeps an [`Interned`] beside them.

use std::{hash::Hash, sync::Arc};

use rustc_hash::FxHashSet;

use super::{BackedServices, PolicyKey, SpiffeId};

/// Values that nobody else has any more are looked for when there are twice as many as after the last time, and at least so many.
const FEWEST: usize = 1024;

/// What is cheap to clone, and knows whether anybody else has a clone.
pub trait Shared: Clone + Eq + Hash {
    /// Whether this is the only one.
    fn is_the_only_one(&self) -> bool;
}

impl<T: ?Sized + Eq + Hash> Shared for Arc<T> {
    fn is_the_only_one(&self) -> bool {
        Self::strong_count(self) == 1
    }
}

/// Values of one kind, each once.
#[derive(Clone, Debug)]
pub struct Pool<T> {
    all: FxHashSet<T>,
    limit: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self {
            all: FxHashSet::default(),
            limit: FEWEST,
        }
    }
}

impl<T: Shared> Pool<T> {
    /// The value that is kept for an equal one.
    pub fn share(&mut self, mut value: T) -> T {
        self.replace(&mut value);
        value
    }

    fn replace(&mut self, value: &mut T) {
        match self.all.get(value) {
            Some(kept) => *value = kept.clone(),
            None => self.keep(value.clone()),
        }
    }

    fn keep(&mut self, value: T) {
        if self.all.len() >= self.limit {
            self.all.retain(|it| !it.is_the_only_one());
            self.all.shrink_to_fit();
            self.limit = FEWEST.max(self.all.len() * 2);
        }
        self.all.insert(value);
    }
}

/// What workloads have in common.
#[derive(Clone, Debug, Default)]
pub struct Interned {
    texts: Pool<Arc<str>>,
    identities: Pool<SpiffeId>,
    backed: Pool<BackedServices>,
}

impl Interned {
    /// The text that is kept for an equal one.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(kept) = self.texts.all.get(text) {
            return kept.clone();
        }
        self.texts.share(text.into())
    }

    pub(super) fn replace_text(&mut self, text: &mut Arc<str>) {
        self.texts.replace(text);
    }

    pub(super) fn replace_key(&mut self, key: &mut PolicyKey) {
        self.texts.replace(&mut key.namespace);
        self.texts.replace(&mut key.name);
    }

    pub(super) fn replace_identity(&mut self, identity: &mut SpiffeId) {
        self.identities.replace(identity);
    }

    pub(super) fn replace_backed(&mut self, services: &mut BackedServices) {
        if !self.backed.all.contains(services) {
            let all = std::mem::take(services).into_iter();
            let shared = all.map(|(mut key, mut ports)| {
                self.texts.replace(&mut key.namespace);
                self.texts.replace(&mut key.hostname);
                ports.shrink_to_fit();
                (key, ports)
            });
            *services = shared.collect();
        }
        self.backed.replace(services);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::sample;

    #[test]
    fn equal_values_become_one() {
        let mut interned = Interned::default();
        let pod = |name, address: &str| sample::backs(sample::pod(name, &[address]), "web");
        let mut pods = [pod("web-1", "10.0.0.1"), pod("web-2", "10.0.0.2")];
        for pod in &mut pods {
            let before = pod.clone();
            pod.intern(&mut interned);
            assert_eq!(*pod, before);
        }
        let [a, b] = pods;
        assert!(Arc::ptr_eq(&a.node, &b.node) && Arc::ptr_eq(&a.cluster, &b.cluster));
        assert!(std::ptr::eq(a.identity.as_str(), b.identity.as_str()));
        assert!(std::ptr::eq(&*a.services, &*b.services));
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let mut interned = Interned::default();
        let kept = interned.text("kept");
        for number in 0..10 * FEWEST {
            interned.text(&number.to_string());
        }
        assert!(interned.texts.all.len() <= FEWEST);
        assert!(Arc::ptr_eq(&kept, &interned.text("kept")));
    }
}
