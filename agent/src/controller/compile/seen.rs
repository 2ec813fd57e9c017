//! What objects of other namespaces can see of one: its services, whom its ReferenceGrants permit to refer to them, and the
//! VirtualServices that others may delegate to.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use super::{resources::InNamespace, unit::Unit};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{Grant, Known, Surroundings, names_no_host, namespace_of},
};

/// It. Services by the kind and name of their object, and then by hostname.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    services: BTreeMap<(Kind, Arc<str>), Vec<Known>>,
    /// The object of each hostname.
    hosts: BTreeMap<Arc<str>, (Kind, Arc<str>)>,
    grants: Vec<Grant>,
    /// What VirtualServices say that others may delegate to, by name.
    delegates: BTreeMap<Arc<str>, Arc<Value>>,
}

/// The namespaces that were looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Asked {
    namespaces: BTreeSet<Arc<str>>,
    all: bool,
}

impl Asked {
    pub(super) fn any_of(&self, changed: &BTreeSet<Arc<str>>) -> bool {
        (self.all && !changed.is_empty()) || !self.namespaces.is_disjoint(changed)
    }
}

impl Seen {
    pub(super) fn new(unit: Option<&Unit>, objects: Option<&InNamespace>) -> Self {
        let mut seen = Self::default();
        for it in unit.into_iter().flat_map(|unit| &unit.services) {
            let key = it.value.key.clone();
            let object = (it.owner.kind, it.owner.name.clone());
            let bound = unit.and_then(|unit| unit.bound.get(&key));
            let subsets = unit.and_then(|unit| unit.subsets.get(&key));
            seen.hosts
                .entry(key.hostname.clone())
                .or_insert_with(|| object.clone());
            let known = Known {
                ports: it.value.ports.iter().map(|port| port.service_port).collect(),
                subsets: subsets.cloned().unwrap_or_default(),
                refused: bound.is_some_and(|it| it.refused),
                key,
            };
            seen.services.entry(object).or_default().push(known);
        }
        let grants = objects
            .into_iter()
            .flat_map(|it| it.of_kind(Kind::ReferenceGrant));
        seen.grants = grants.map(|(_, object)| Grant::new(object)).collect();
        let virtual_services = objects
            .into_iter()
            .flat_map(|it| it.of_kind(Kind::VirtualService));
        let delegates = virtual_services.filter(|(_, object)| names_no_host(&object.spec));
        let named = |(name, object): (&str, &Custom)| (name.into(), Arc::new(object.spec.clone()));
        seen.delegates = delegates.map(named).collect();
        seen
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty() && self.grants.is_empty() && self.delegates.is_empty()
    }

    fn host(&self, hostname: &str) -> Option<&Known> {
        let object = self.hosts.get(hostname)?;
        self.services
            .get(object)?
            .iter()
            .find(|it| *it.key.hostname == *hostname)
    }
}

/// All namespaces, for objects that refer to others; it notes which were looked at.
pub(super) struct Around<'a> {
    seen: &'a BTreeMap<Arc<str>, Seen>,
    cluster_domain: &'a str,
    asked: RefCell<Asked>,
}

impl<'a> Around<'a> {
    pub(super) fn new(seen: &'a BTreeMap<Arc<str>, Seen>, cluster_domain: &'a str) -> Self {
        Self {
            seen,
            cluster_domain,
            asked: RefCell::default(),
        }
    }

    pub(super) fn asked(&self) -> Asked {
        self.asked.borrow().clone()
    }

    fn namespace(&self, namespace: &str) -> Option<&'a Seen> {
        self.asked.borrow_mut().namespaces.insert(namespace.into());
        self.seen.get(namespace)
    }
}

impl Surroundings for Around<'_> {
    fn cluster_domain(&self) -> &str {
        self.cluster_domain
    }

    fn services_of(&self, kind: Kind, namespace: &str, name: &str) -> Vec<Known> {
        let seen = self.namespace(namespace);
        let found = seen.and_then(|seen| seen.services.get(&(kind, name.into())));
        found.cloned().unwrap_or_default()
    }

    fn service_at(&self, hostname: &str, from: &str) -> Option<Known> {
        if let Some(namespace) = namespace_of(hostname, self.cluster_domain) {
            return self.namespace(namespace)?.host(hostname).cloned();
        }
        // A host of somebody's ServiceEntry: one's own comes first.
        if let Some(own) = self.namespace(from).and_then(|seen| seen.host(hostname)) {
            return Some(own.clone());
        }
        self.asked.borrow_mut().all = true;
        self.seen.values().find_map(|seen| seen.host(hostname)).cloned()
    }

    fn permits(&self, from: (Kind, &str), (kind, namespace, name): (Kind, &str, &str)) -> bool {
        let seen = self.namespace(namespace);
        seen.is_some_and(|seen| seen.grants.iter().any(|it| it.permits(from, (kind, name))))
    }

    fn delegate(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.namespace(namespace)?.delegates.get(name).cloned()
    }
}
