//! [`Compiler`]: what was compiled, and which namespaces have to be compiled again.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use super::{
    Change, Compiled, Delta, Resources, Settings, WaypointGateway, bounded,
    changes::{Changes, differences, routed_differs},
    claims::{Claims, Owner},
    kept_pod::KeptPod,
    namespace::{self, Context},
    resources::Touched,
    routing::{self, Routing},
    shared::Shared,
    unit::{Emitted, Unit},
};
use crate::{
    cluster::{labels, objects::Kind},
    manifests::{Diagnostic, ObjectRef, is_routing},
    mesh::{
        Interned, MeshParts, PeerAuthentications, Policy, SameNodes, Service, Workload,
        http::{self, RequestAuthentication, Routes},
    },
};

/// Compiles what changed. [`apply`](Self::apply) takes in changes, as many as come; [`compile`](Self::compile) says what
/// they mean, all at once.
#[derive(Debug, Default)]
pub struct Compiler {
    resources: Resources,
    state: State,
    dirty: Dirty,
}

/// What is compiled so far.
#[derive(Debug, Default)]
pub(super) struct State {
    settings: Settings,
    shared: Shared,
    units: BTreeMap<Arc<str>, (Unit, Emitted)>,
    claims: Claims,
    routing: Routing,
    /// What workloads have in common.
    interned: Interned,
}

/// What has to be compiled again.
#[derive(Debug, Default)]
struct Dirty {
    shared: bool,
    all: bool,
    namespaces: BTreeSet<Arc<str>>,
    /// Those whose routes or grants have changed.
    routes: BTreeSet<Arc<str>>,
}

/// What a set of objects means.
pub fn compile(resources: &Resources, settings: &Settings) -> Compiled {
    let mut state = State {
        settings: settings.clone(),
        ..State::default()
    };
    let everything = Dirty {
        shared: true,
        all: true,
        routes: resources
            .namespaces
            .keys()
            .map(|name| name.as_str().into())
            .collect(),
        ..Dirty::default()
    };
    state.compile(resources, everything);
    state.compiled()
}

impl Compiler {
    /// One that knows of no objects yet.
    pub fn new(settings: Settings) -> Self {
        let state = State {
            settings,
            ..State::default()
        };
        Self {
            state,
            ..Self::default()
        }
    }

    /// Takes in a change; nothing is compiled yet. Whether there is something to compile.
    pub fn apply(&mut self, change: Change) -> bool {
        for touched in self.resources.apply(change) {
            self.dirty.note(&touched, &self.resources);
        }
        self.dirty.shared || !self.dirty.namespaces.is_empty() || !self.dirty.routes.is_empty()
    }

    /// Compiles what the changes since the last time concern, and says what came out differently.
    pub fn compile(&mut self) -> Delta {
        self.state.compile(&self.resources, mem::take(&mut self.dirty))
    }

    /// Everything, as the last [`compile`](Self::compile) left it.
    pub fn compiled(&self) -> Compiled {
        self.state.compiled()
    }

    /// Every workload, as the last [`compile`](Self::compile) left it.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.state.emitted().flat_map(|it| it.workloads.values())
    }

    /// Every service.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.state.emitted().flat_map(|it| it.services.values())
    }

    /// Every policy.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.state.emitted().flat_map(|it| it.policies.values())
    }

    /// What waypoints do, of every service of which something is said.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Routes>> {
        self.state.routing.routes()
    }

    /// Every RequestAuthentication.
    pub fn authentications(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.state.emitted().flat_map(|it| it.authentications.values())
    }

    /// The mTLS modes of every scope.
    pub fn peer_authentications(&self) -> PeerAuthentications {
        self.state.peer_authentications()
    }

    /// How connections inside a node go.
    pub fn same_nodes(&self) -> SameNodes {
        self.state.same_nodes()
    }

    /// The classes of Gateways that say that they are ours.
    pub fn own_classes(&self) -> Vec<ObjectRef> {
        let classes = self.resources.gateway_classes.values();
        let own = classes.filter(|class| {
            let controller = class.spec.get("controllerName").and_then(|it| it.as_str());
            controller == Some(labels::CONTROLLER_NAME)
        });
        own.map(|class| ObjectRef::new(Kind::GatewayClass, &class.metadata))
            .collect()
    }

    /// The objects that were applied.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// What the objects do not say.
    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }
}

impl Dirty {
    fn note(&mut self, touched: &Touched, resources: &Resources) {
        match touched.kind {
            Kind::Node => self.namespaces.extend(on_node(resources, &touched.name)),
            Kind::GatewayClass => self.shared = true,
            kind if is_routing(kind) || kind == Kind::ReferenceGrant => {
                self.routes.insert(touched.namespace.as_str().into());
            }
            kind => {
                self.shared |= matches!(
                    kind,
                    Kind::Gateway
                        | Kind::AuthorizationPolicy
                        | Kind::RequestAuthentication
                        | Kind::DestinationRule
                );
                self.namespaces.insert(touched.namespace.as_str().into());
            }
        }
    }
}

/// The namespaces that have pods on a node.
fn on_node(resources: &Resources, node: &str) -> impl Iterator<Item = Arc<str>> {
    let is_there = move |pod: &KeptPod| pod.node.as_deref() == Some(node);
    let namespaces = resources.namespaces.iter();
    namespaces
        .filter(move |(_, it)| it.pods.values().any(|pod| is_there(pod)))
        .map(|(name, _)| name.as_str().into())
}

impl State {
    fn compile(&mut self, resources: &Resources, mut dirty: Dirty) -> Delta {
        let routes = mem::take(&mut dirty.routes);
        let again = self.namespaces(resources, dirty);
        let mut delta = Changes::default();
        let (units, mut services) = (again.clone(), BTreeSet::new());
        let mut emit = BTreeSet::new();
        for name in again {
            let old = self.units.remove(&name);
            let new = resources.namespaces.get(&*name).map(|objects| {
                let context = Context {
                    settings: &self.settings,
                    shared: &self.shared,
                    nodes: &resources.nodes,
                };
                namespace::compile(&context, &name, objects)
            });
            let (old, emitted) = old.unwrap_or_default();
            let new_claims = new.as_ref().map_or(&[][..], |unit| &unit.claims);
            emit.extend(self.claims.replace(&old.claims, new_claims));
            delta.unit(&old, new.as_ref());
            if routed_differs(&old, new.as_ref()) {
                services.insert(name.clone());
            }
            match new {
                Some(mut unit) => {
                    unit.share(&emitted, &mut self.interned);
                    emit.insert(name.clone());
                    self.units.insert(name, (unit, emitted));
                }
                None => delta.emitted(&emitted, &Emitted::default()),
            }
        }
        for name in emit {
            let Some((unit, emitted)) = self.units.get_mut(&name) else {
                continue;
            };
            let new = unit.emit(&self.claims, |owner| reference(resources, owner));
            delta.emitted(emitted, &new);
            *emitted = new;
        }
        self.route(resources, [units, routes, services], &mut delta);
        self.delta(delta)
    }

    /// Puts routes together again: for namespaces that were compiled again, whose routes, and whose services have changed.
    fn route(
        &mut self,
        resources: &Resources,
        [units, routes, services]: [BTreeSet<Arc<str>>; 3],
        changes: &mut Changes,
    ) {
        let update = routing::Update {
            resources,
            settings: &self.settings,
            units,
            routes,
            services,
        };
        let all = &self.units;
        let outcome = self
            .routing
            .update(update, |name| all.get(name).map(|(unit, _)| unit));
        changes.diagnostics |= outcome.diagnostics;
        let none = BTreeMap::new();
        let delta = &mut changes.delta;
        for (name, before) in &outcome.before {
            let now = self.routing.of(name).map_or(&none, |it| &it.routes);
            differences(&before.routes, now, &mut delta.routes, &mut delta.removed_routes);
        }
    }

    /// The namespaces that have to be compiled again. What they share is compiled here.
    fn namespaces(&mut self, resources: &Resources, dirty: Dirty) -> BTreeSet<Arc<str>> {
        let mut again = dirty.namespaces;
        let mut all = dirty.all;
        if dirty.shared {
            let new = Shared::new(resources, &self.settings);
            let old = mem::replace(&mut self.shared, new);
            all |= old.root_differs(&self.shared);
            let changed = self.shared.changed_waypoints(&old);
            let asks = self
                .units
                .iter()
                .filter(|(_, (unit, _))| !unit.asked.is_disjoint(&changed));
            again.extend(asks.map(|(name, _)| name.clone()));
            // The waypoints that are deployed are said by the namespace that they are in.
            again.extend(changed.iter().map(|(namespace, _)| namespace.as_str().into()));
        }
        if all {
            again.extend(self.units.keys().cloned());
            again.extend(resources.namespaces.keys().map(|name| name.as_str().into()));
        }
        again
    }

    fn emitted(&self) -> impl Iterator<Item = &Emitted> {
        self.units.values().map(|(_, emitted)| emitted)
    }

    fn units(&self) -> impl Iterator<Item = (&Arc<str>, &Unit)> {
        self.units.iter().map(|(name, (unit, _))| (name, unit))
    }

    fn peer_authentications(&self) -> PeerAuthentications {
        let mut all = PeerAuthentications::default();
        for (name, unit) in self.units() {
            let of_workloads = unit.workload_peer_authentications.iter();
            all.workloads
                .extend(of_workloads.map(|(uid, said)| (uid.clone(), said.clone())));
            match &unit.peer_authentication {
                Some(said) if *name == self.settings.root_namespace => all.mesh = said.clone(),
                Some(said) => {
                    all.namespaces.insert(name.clone(), said.clone());
                }
                None => {}
            }
        }
        all
    }

    fn same_nodes(&self) -> SameNodes {
        let said = |(name, unit): (&Arc<str>, &Unit)| Some((name.clone(), unit.same_node?));
        SameNodes {
            mesh: self.settings.same_node,
            namespaces: self.units().filter_map(said).collect(),
        }
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        let units = self.units.values();
        let of_units = units.flat_map(|(unit, emitted)| unit.diagnostics.iter().chain(&emitted.diagnostics));
        let all = of_units.chain(self.routing.diagnostics());
        bounded::of_all(all.cloned().collect())
    }

    fn waypoints(&self) -> Vec<WaypointGateway> {
        self.units()
            .flat_map(|(_, unit)| unit.waypoints.clone())
            .collect()
    }

    fn compiled(&self) -> Compiled {
        fn owned<T: Clone>(all: impl Iterator<Item = Arc<T>>) -> Vec<T> {
            all.map(Arc::unwrap_or_clone).collect()
        }
        let Settings {
            trust_domain,
            cluster,
            cluster_domain,
            root_namespace,
            cluster_cidrs,
            ..
        } = self.settings.clone();
        let mut workloads = owned(self.emitted().flat_map(|it| it.workloads.values().cloned()));
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        let parts = MeshParts {
            trust_domain,
            cluster,
            cluster_domain,
            root_namespace,
            cluster_cidrs,
            workloads,
            services: owned(self.emitted().flat_map(|it| it.services.values().cloned())),
            policies: owned(self.emitted().flat_map(|it| it.policies.values().cloned())),
            peer_authentications: self.peer_authentications(),
            same_nodes: self.same_nodes(),
            http: http::Parts {
                routes: self.routing.routes().cloned().collect(),
                authentications: self
                    .emitted()
                    .flat_map(|it| it.authentications.values().cloned())
                    .collect(),
                unreadable: Vec::new(),
            },
        };
        Compiled {
            parts,
            diagnostics: self.diagnostics(),
            waypoints: self.waypoints(),
        }
    }

    fn delta(&self, changes: Changes) -> Delta {
        let mut delta = changes.delta;
        // A workload whose own peer authentication changed is sent again with it.
        for uid in changes.modes_of {
            let found = self.emitted().find_map(|it| it.workloads.get(&uid));
            delta.workloads.extend(found.cloned());
        }
        delta.workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        delta.workloads.dedup_by(|a, b| a.uid == b.uid);
        delta.removed_workloads.sort();
        delta.services.sort_by(|a, b| a.key.cmp(&b.key));
        delta.removed_services.sort();
        delta.policies.sort_by(|a, b| a.key.cmp(&b.key));
        delta.removed_policies.sort();
        delta
            .routes
            .sort_by(|a, b| a.values().service.cmp(&b.values().service));
        delta.removed_routes.sort();
        delta.authentications.sort_by(|a, b| a.key.cmp(&b.key));
        delta.removed_authentications.sort();
        delta.peer_authentications = changes.modes.then(|| self.peer_authentications());
        delta.same_nodes = changes.same_nodes.then(|| self.same_nodes());
        delta.diagnostics = changes.diagnostics.then(|| self.diagnostics());
        delta.waypoints = changes.waypoints.then(|| self.waypoints());
        delta
    }
}

fn reference(resources: &Resources, owner: &Owner) -> ObjectRef {
    let within = resources.namespaces.get(&*owner.namespace);
    let found = within.and_then(|within| within.reference(owner.kind, &owner.name));
    found.unwrap_or_else(|| ObjectRef {
        namespace: owner.namespace.to_string(),
        kind: owner.kind,
        name: owner.name.to_string(),
        uid: String::new(),
        generation: 0,
    })
}
