//! The objects that there are, as the watches tell it: what is compiled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::kept_pod::{InCommon, KeptPod};
use crate::{
    cluster::objects::{Custom, EndpointSlice, Kind, Namespace, Node, Object, ObjectMeta, Service},
    manifests::ObjectRef,
};

/// What a watch says.
#[derive(Clone, Debug)]
pub enum Change {
    /// An object is new or has changed.
    Apply(Object),
    /// An object is gone.
    Delete {
        /// Its kind.
        kind: Kind,
        /// Its namespace; empty for a kind without.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// These are all the objects of the kind, each of which was applied: the end of a list, and so of what a watch says that begins
    /// anew.
    Listed(Kind, BTreeSet<Named>),
}

/// Namespace and name of an object; the first is empty for a kind without.
pub type Named = (String, String);

/// Every object that there is, trimmed.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) gateway_classes: BTreeMap<String, Custom>,
    pub(super) namespaces: BTreeMap<String, InNamespace>,
    common: InCommon,
}

/// The objects of one namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct InNamespace {
    pub(super) itself: Option<Namespace>,
    pub(super) pods: BTreeMap<Arc<str>, Box<KeptPod>>,
    pub(super) services: BTreeMap<String, Service>,
    pub(super) endpoint_slices: BTreeMap<String, EndpointSlice>,
    /// By kind and name.
    pub(super) customs: BTreeMap<(Kind, String), Custom>,
}

/// An object that is not what it was.
pub(super) struct Touched {
    pub(super) kind: Kind,
    /// Empty for a kind without; of a Namespace its own name.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Resources {
    /// Those of a list, for example the documents of files.
    pub fn new(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut resources = Self::default();
        for object in objects {
            resources.apply(Change::Apply(object));
        }
        resources
    }

    /// The objects of a kind that a CustomResourceDefinition defines.
    pub fn customs(&self, kind: Kind) -> impl Iterator<Item = &Custom> {
        let all = self.namespaces.values();
        all.flat_map(move |within| within.of_kind(kind).map(|(_, object)| object))
    }

    /// Kubernetes' services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.namespaces
            .values()
            .flat_map(|within| within.services.values())
    }

    /// Every namespace, with its pods.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Namespace, impl Iterator<Item = &KeptPod>)> {
        let all = self.namespaces.values();
        all.filter_map(|within| Some((within.itself.as_ref()?, within.pods.values().map(|it| &**it))))
    }

    /// Whether there is an object of a kind that is in namespaces.
    pub fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        let within = self.namespaces.get(namespace);
        within.is_some_and(|within| within.has(kind, name))
    }

    /// Takes in a change; what only looks like one touches nothing.
    pub(super) fn apply(&mut self, change: Change) -> Vec<Touched> {
        match change {
            Change::Apply(object) => self.put(object).into_iter().collect(),
            Change::Delete {
                kind,
                namespace,
                name,
            } => self.remove(kind, &namespace, &name).into_iter().collect(),
            Change::Listed(kind, there) => self.keep(kind, &there),
        }
    }

    fn keep(&mut self, kind: Kind, there: &BTreeSet<Named>) -> Vec<Touched> {
        let gone = self.names(kind).into_iter().filter(|key| !there.contains(key));
        let gone: Vec<_> = gone.collect();
        gone.into_iter()
            .filter_map(|(namespace, name)| self.remove(kind, &namespace, &name))
            .collect()
    }

    /// Namespace and name of every object of a kind.
    fn names(&self, kind: Kind) -> Vec<Named> {
        let of_cluster = |name: &String| (String::new(), name.clone());
        match kind {
            Kind::Node => self.nodes.keys().map(of_cluster).collect(),
            Kind::GatewayClass => self.gateway_classes.keys().map(of_cluster).collect(),
            Kind::Namespace => {
                let there = self.namespaces.iter().filter(|(_, it)| it.itself.is_some());
                there.map(|(name, _)| of_cluster(name)).collect()
            }
            _ => {
                let all = self.namespaces.iter();
                all.flat_map(|(namespace, it)| {
                    it.names(kind)
                        .into_iter()
                        .map(move |name| (namespace.clone(), name))
                })
                .collect()
            }
        }
    }

    fn put(&mut self, mut object: Object) -> Option<Touched> {
        object.trim();
        let kind = object.kind();
        let name = object.metadata().name.clone().unwrap_or_default();
        let namespace = match kind {
            Kind::Namespace => name.clone(),
            kind if kind.is_namespaced() => object.metadata().namespace.clone().unwrap_or_default(),
            _ => String::new(),
        };
        let changed = match object {
            Object::Node(node) => insert(&mut self.nodes, name.clone(), *node),
            Object::Custom(Kind::GatewayClass, class) => {
                insert(&mut self.gateway_classes, name.clone(), *class)
            }
            // Nobody can make one from what the API says.
            Object::Custom(kind, _) if !kind.is_custom() => false,
            object => {
                let within = self.namespaces.entry(namespace.clone()).or_default();
                within.put(name.clone(), object, &mut self.common)
            }
        };
        changed.then_some(Touched {
            kind,
            namespace,
            name,
        })
    }

    fn remove(&mut self, kind: Kind, namespace: &str, name: &str) -> Option<Touched> {
        let namespace = if kind == Kind::Namespace { name } else { namespace };
        let removed = match kind {
            Kind::Node => self.nodes.remove(name).is_some(),
            Kind::GatewayClass => self.gateway_classes.remove(name).is_some(),
            kind => {
                let within = self.namespaces.get_mut(namespace)?;
                let removed = within.remove(kind, name);
                if *within == InNamespace::default() {
                    self.namespaces.remove(namespace);
                }
                removed
            }
        };
        removed.then(|| Touched {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

impl InNamespace {
    fn names(&self, kind: Kind) -> Vec<String> {
        match kind {
            Kind::Pod => self.pods.keys().map(ToString::to_string).collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.endpoint_slices.keys().cloned().collect(),
            kind => self.of_kind(kind).map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// Those of a kind that a CustomResourceDefinition defines, by name.
    pub(super) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&str, &Custom)> {
        let from = (kind, String::new());
        let all = self.customs.range(from..);
        all.take_while(move |((its, _), _)| *its == kind)
            .map(|((_, name), object)| (name.as_str(), object))
    }

    /// Whether there is an object.
    fn has(&self, kind: Kind, name: &str) -> bool {
        self.reference(kind, name).is_some()
    }

    /// What names an object.
    pub(super) fn reference(&self, kind: Kind, name: &str) -> Option<ObjectRef> {
        match kind {
            Kind::Pod => self.pods.get(name).map(|it| it.reference()),
            kind => Some(ObjectRef::new(kind, self.metadata(kind, name)?)),
        }
    }

    /// The metadata of an object of any kind but pods.
    pub(super) fn metadata(&self, kind: Kind, name: &str) -> Option<&ObjectMeta> {
        match kind {
            Kind::Namespace => self.itself.as_ref().map(|it| &it.metadata),
            Kind::Pod => None,
            Kind::Service => self.services.get(name).map(|it| &it.metadata),
            Kind::EndpointSlice => self.endpoint_slices.get(name).map(|it| &it.metadata),
            kind => self.customs.get(&(kind, name.to_owned())).map(|it| &it.metadata),
        }
    }

    fn put(&mut self, name: String, object: Object, common: &mut InCommon) -> bool {
        match object {
            Object::Namespace(it) => {
                let changed = self.itself.as_ref() != Some(&*it);
                self.itself = Some(*it);
                changed
            }
            Object::Pod(it) => {
                let pod = KeptPod::new(*it, common);
                insert(&mut self.pods, pod.name.clone(), Box::new(pod))
            }
            Object::Service(it) => insert(&mut self.services, name, *it),
            Object::EndpointSlice(it) => insert(&mut self.endpoint_slices, name, *it),
            Object::Custom(kind, it) => insert(&mut self.customs, (kind, name), *it),
            // Nodes are in no namespace.
            Object::Node(_) => false,
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) -> bool {
        match kind {
            Kind::Namespace => self.itself.take().is_some(),
            Kind::Pod => self.pods.remove(name).is_some(),
            Kind::Service => self.services.remove(name).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.remove(name).is_some(),
            kind => self.customs.remove(&(kind, name.to_owned())).is_some(),
        }
    }
}

/// Whether that changed anything.
fn insert<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: V) -> bool {
    let changed = map.get(&key) != Some(&value);
    if changed {
        map.insert(key, value);
    }
    changed
}
