//! Routes: what each namespace says of them is read by itself, and put together for the services of each namespace.
//!
//! Who refers to services of another namespace is read again when what can be seen of that one has changed; services are put
//! together again when they, or what is said of them, have. Pods that come and go change neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use super::{
    Diagnostic, Resources, Settings, bounded,
    seen::{Around, Asked, Seen},
    unit::Unit,
};
use crate::{
    manifests::{Bound, Reach, Routings, is_routing, link},
    mesh::{
        Service, ServiceKey,
        http::{HttpRoutes, RouteTable, Routes, ServiceRoutes},
    },
};

/// Everything that is known of routes.
#[derive(Debug, Default)]
pub(super) struct Routing {
    seen: BTreeMap<Arc<str>, Seen>,
    read: BTreeMap<Arc<str>, Read>,
    linked: BTreeMap<Arc<str>, Linked>,
}

/// What one namespace says.
#[derive(Debug, Default)]
struct Read {
    routings: Routings,
    reach: Reach,
    asked: Asked,
    diagnostics: Vec<Diagnostic>,
}

/// What it comes to for the services of one namespace.
#[derive(Debug, Default)]
pub(super) struct Linked {
    pub(super) routes: BTreeMap<ServiceKey, Arc<Routes>>,
    diagnostics: Vec<Diagnostic>,
}

/// What is to be looked at again, and what there is.
pub(super) struct Update<'a> {
    pub(super) resources: &'a Resources,
    pub(super) settings: &'a Settings,
    /// Namespaces that were compiled again.
    pub(super) units: BTreeSet<Arc<str>>,
    /// Namespaces whose routes or grants have changed.
    pub(super) routes: BTreeSet<Arc<str>>,
    /// Namespaces whose services, or what is said of them, have changed.
    pub(super) services: BTreeSet<Arc<str>>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Outcome {
    /// Each namespace that was put together again, as it was before.
    pub(super) before: BTreeMap<Arc<str>, Linked>,
    pub(super) diagnostics: bool,
}

impl Routing {
    /// Looks at what has changed.
    pub(super) fn update<'u>(
        &mut self,
        update: Update<'_>,
        unit: impl Fn(&str) -> Option<&'u Unit>,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        let changed = self.see(&update, &unit);
        let mut again = update.routes.clone();
        let asks = self.read.iter().filter(|(_, read)| read.asked.any_of(&changed));
        again.extend(asks.map(|(name, _)| name.clone()));
        let mut relink = update.services.clone();
        let mut everywhere = false;
        for name in again {
            let new = self.read_namespace(&name, &update);
            let old = self.read.remove(&name).unwrap_or_default();
            outcome.diagnostics |= old.diagnostics != new.diagnostics;
            if old.routings != new.routings {
                for reach in [&old.reach, &new.reach] {
                    match reach {
                        Reach::All => everywhere = true,
                        Reach::Namespaces(namespaces) => relink.extend(namespaces.iter().cloned()),
                    }
                }
            }
            if !new.is_empty() {
                self.read.insert(name, new);
            }
        }
        if everywhere {
            relink.extend(self.seen.keys().cloned());
        }
        for name in relink {
            let old = self.linked.remove(&name).unwrap_or_default();
            let new = self.link(unit(&name), &name, &old);
            outcome.diagnostics |= old.diagnostics != new.diagnostics;
            outcome.before.insert(name.clone(), old);
            if !new.routes.is_empty() || !new.diagnostics.is_empty() {
                self.linked.insert(name, new);
            }
        }
        outcome
    }

    /// The namespaces of which others see something else than before.
    fn see<'u>(
        &mut self,
        update: &Update<'_>,
        unit: impl Fn(&str) -> Option<&'u Unit>,
    ) -> BTreeSet<Arc<str>> {
        let mut changed = BTreeSet::new();
        for name in update.units.union(&update.routes) {
            let new = Seen::new(unit(name), update.resources.namespaces.get(&**name));
            let old = match new.is_empty() {
                true => self.seen.remove(name),
                false => self.seen.insert(name.clone(), new.clone()),
            };
            if old.unwrap_or_default() != new {
                changed.insert(name.clone());
            }
        }
        changed
    }

    fn read_namespace(&self, name: &Arc<str>, update: &Update<'_>) -> Read {
        let Some(objects) = update.resources.namespaces.get(&**name) else {
            return Read::default();
        };
        let objects = objects.customs.iter().filter(|((kind, _), _)| is_routing(*kind));
        let objects = objects.map(|((kind, _), object)| (*kind, object));
        let domain = &update.settings.cluster_domain;
        let around = Around::new(&self.seen, domain);
        let mut diagnostics = Vec::new();
        let routings = Routings::read(objects, &around, &mut diagnostics);
        Read {
            reach: routings.reach(domain),
            routings,
            asked: around.asked(),
            diagnostics: bounded::of_namespace(diagnostics),
        }
    }

    fn link(&self, unit: Option<&Unit>, name: &Arc<str>, before: &Linked) -> Linked {
        let mut linked = Linked::default();
        let services = unit.into_iter().flat_map(|unit| &unit.services);
        let sources = self.read.iter().filter(|(_, read)| read.reach.contains(name));
        let sources: Vec<_> = sources.map(|(from, read)| (&**from, &read.routings)).collect();
        for service in services {
            let service: &Service = &service.value;
            let bound = unit.and_then(|unit| unit.bound.get(&service.key));
            let bound: Bound = bound.cloned().unwrap_or_default();
            let sources = sources.iter().copied();
            let Some(values) = link(service, sources, bound, &mut linked.diagnostics) else {
                continue;
            };
            let key = values.service.clone();
            let same = before.routes.get(&key).filter(|it| *it.values() == values);
            let routes = same.cloned().unwrap_or_else(|| indexed(values));
            linked.routes.entry(key).or_insert(routes);
        }
        linked.diagnostics = bounded::of_namespace(mem::take(&mut linked.diagnostics));
        linked
    }

    /// Those of a namespace.
    pub(super) fn of(&self, name: &str) -> Option<&Linked> {
        self.linked.get(name)
    }

    /// All routes, in the order of their services.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Arc<Routes>> {
        self.linked.values().flat_map(|it| it.routes.values())
    }

    pub(super) fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        let read = self.read.values().flat_map(|it| &it.diagnostics);
        read.chain(self.linked.values().flat_map(|it| &it.diagnostics))
    }
}

impl Read {
    fn is_empty(&self) -> bool {
        self.routings.is_empty() && self.diagnostics.is_empty()
    }
}

/// Whatever reads manifests lets through nothing that cannot be indexed. If it did, the service would be answered with 404.
fn indexed(values: ServiceRoutes) -> Arc<Routes> {
    let mut closed = values.clone();
    let routes = Routes::new(values).or_else(|_| {
        closed.http.values_mut().for_each(|http| {
            *http = HttpRoutes {
                producer: Some(RouteTable::default()),
                consumers: BTreeMap::new(),
            };
        });
        Routes::new(closed)
    });
    Arc::new(routes.unwrap_or_else(|_| unreachable!("tables without entries are indexed")))
}
