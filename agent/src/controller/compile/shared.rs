//! What namespaces need of each other: the root namespace's policies, and waypoints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Resources, Settings, WaypointFor, gateways, resources::InNamespace};
use crate::{
    cluster::objects::{Custom, Kind},
    manifests::{
        Authentication, DestinationRule, Labels, ObjectRef, Reader, TargetKind, Targets, authentication,
        destination_rule, policy,
    },
    mesh::{PolicyKey, ServiceKey, SpiffeId},
};

/// It, compiled.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shared {
    waypoints: BTreeMap<(String, String), Waypoint>,
    root: Root,
}

/// What the root namespace says, which counts for all.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Root {
    pub(super) policies: Vec<policy::Read>,
    pub(super) authentications: Vec<Authentication>,
    pub(super) destination_rules: Vec<DestinationRule>,
}

/// A waypoint as those see it who are bound to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waypoint {
    /// The service in front of it.
    pub(super) key: ServiceKey,
    pub(super) hbone_port: u16,
    /// Whom its pods run as; none where that is no identity.
    pub(super) identity: Option<SpiffeId>,
    pub(super) waypoint_for: WaypointFor,
    /// The name of its class.
    pub(super) class: String,
    /// What is to be deployed is ours.
    pub(super) is_ours: bool,
    pub(super) admits: Admits,
    /// Whether somebody says that it runs.
    pub(super) ready: bool,
    /// Whether a policy is enforced for everything that is bound to it.
    pub(super) enforces: bool,
    /// The policies that are about it.
    pub(super) policies: Vec<PolicyKey>,
    /// The RequestAuthentications that are about it.
    pub(super) authentications: Vec<PolicyKey>,
}

/// The namespaces that may use a waypoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Admits {
    Same,
    All,
    /// Those with these labels, for which these expressions hold.
    Labelled(Labels, Vec<Expression>),
}

/// One of a selector's `matchExpressions`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expression {
    pub(super) key: String,
    pub(super) operator: Operator,
    pub(super) values: Vec<String>,
}

/// What it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Shared {
    pub(super) fn new(resources: &Resources, settings: &Settings) -> Self {
        let root = resources.namespaces.get(&*settings.root_namespace);
        let root = root.map(|root| Root::new(root, settings)).unwrap_or_default();
        let mut waypoints = BTreeMap::new();
        for (namespace, within) in &resources.namespaces {
            let mut found: Vec<_> = within
                .of_kind(Kind::Gateway)
                .filter_map(|(name, object)| Some((name, gateways::waypoint(object, resources, settings)?)))
                .collect();
            if found.is_empty() {
                continue;
            }
            let own = (policies(within, settings), authentications(within));
            for (name, waypoint) in &mut found {
                waypoint.say(name, &own, &root);
            }
            let key = |name: &str| (namespace.clone(), name.to_owned());
            waypoints.extend(found.into_iter().map(|(name, waypoint)| (key(name), waypoint)));
        }
        Self { waypoints, root }
    }

    /// What the root namespace says.
    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// The waypoint of this namespace and name.
    pub(super) fn waypoint(&self, key: &(String, String)) -> Option<&Waypoint> {
        self.waypoints.get(key)
    }

    /// The waypoint behind this service.
    pub(super) fn waypoint_of(&self, key: &ServiceKey) -> Option<&Waypoint> {
        let name = key.hostname.split('.').next()?.to_owned();
        let found = self.waypoints.get(&(key.namespace.to_string(), name))?;
        Some(found).filter(|found| found.key == *key)
    }

    /// Whether what the root namespace says of all namespaces differs. What it says of waypoints, they say.
    pub(super) fn root_differs(&self, other: &Self) -> bool {
        let policies = |it: &&policy::Read| !it.targets.any;
        let authentications = |it: &&Authentication| !it.targets.any;
        let (a, b) = (&self.root, &other.root);
        !a.policies
            .iter()
            .filter(policies)
            .eq(b.policies.iter().filter(policies))
            || !a
                .authentications
                .iter()
                .filter(authentications)
                .eq(b.authentications.iter().filter(authentications))
            || a.destination_rules != b.destination_rules
    }

    /// The waypoints that are not as they were, by namespace and name.
    pub(super) fn changed_waypoints(&self, before: &Self) -> BTreeSet<(String, String)> {
        let keys = self.waypoints.keys().chain(before.waypoints.keys());
        keys.filter(|key| self.waypoints.get(key) != before.waypoints.get(key))
            .cloned()
            .collect()
    }
}

impl Root {
    fn new(objects: &InNamespace, settings: &Settings) -> Self {
        let rules = objects.of_kind(Kind::DestinationRule);
        let rules = rules.filter_map(|(_, object)| {
            quietly(Kind::DestinationRule, object, |reader| {
                destination_rule(object, &settings.cluster_domain, reader)
            })
        });
        Self {
            policies: policies(objects, settings),
            authentications: authentications(objects),
            destination_rules: rules.collect(),
        }
    }
}

/// Reads an object of which its own namespace says what is wrong.
fn quietly<T>(kind: Kind, object: &Custom, read: impl FnOnce(&mut Reader<'_>) -> T) -> T {
    let reference = ObjectRef::new(kind, &object.metadata);
    read(&mut Reader::new(reference, &mut Vec::new()))
}

fn policies(objects: &InNamespace, settings: &Settings) -> Vec<policy::Read> {
    let kind = Kind::AuthorizationPolicy;
    let objects = objects.of_kind(kind);
    objects
        .map(|(_, object)| {
            quietly(kind, object, |reader| {
                policy::read(object, &settings.root_namespace, reader)
            })
        })
        .collect()
}

fn authentications(objects: &InNamespace) -> Vec<Authentication> {
    let kind = Kind::RequestAuthentication;
    let objects = objects.of_kind(kind);
    objects
        .map(|(_, object)| quietly(kind, object, |reader| authentication(object, reader)))
        .collect()
}

impl Waypoint {
    /// Notes what its own namespace and the root namespace say of it.
    fn say(&mut self, name: &str, own: &(Vec<policy::Read>, Vec<Authentication>), root: &Root) {
        let class = self.class.as_str();
        let names = |targets: &Targets| targets.contains(TargetKind::Gateway, name);
        let names_class = |targets: &Targets| targets.contains(TargetKind::GatewayClass, class);
        let of_gateway = own.0.iter().filter(|it| names(&it.targets));
        let of_class = root.policies.iter().filter(|it| names_class(&it.targets));
        for read in of_gateway.chain(of_class) {
            self.enforces |= read.enforced;
            self.policies.push(read.policy.key.clone());
        }
        let of_gateway = own.1.iter().filter(|it| names(&it.targets));
        let of_class = root.authentications.iter().filter(|it| names_class(&it.targets));
        let keys = of_gateway.chain(of_class).map(|it| it.value.key.clone());
        self.authentications.extend(keys);
        for keys in [&mut self.policies, &mut self.authentications] {
            keys.sort();
            keys.dedup();
        }
    }

    /// Whether a namespace may use it, that has these labels.
    pub(super) fn admits(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        let own = *namespace == *self.key.namespace;
        match &self.admits {
            Admits::Same => own,
            Admits::All => true,
            Admits::Labelled(wanted, expressions) => {
                let value = |key: &str| labels.and_then(|labels| labels.get(key));
                wanted.iter().all(|(key, wanted)| value(key) == Some(wanted))
                    && expressions.iter().all(|it| it.holds(value(&it.key)))
            }
        }
    }
}

impl Expression {
    fn holds(&self, value: Option<&String>) -> bool {
        let is_one = value.is_some_and(|value| self.values.contains(value));
        match self.operator {
            Operator::In => is_one,
            Operator::NotIn => !is_one,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// Whether a condition of this type is `True` in a status.
pub(super) fn condition(status: &Value, type_: &str) -> Option<bool> {
    let conditions = status.get("conditions")?.as_array()?;
    let is = |it: &&Value| it.get("type").and_then(Value::as_str) == Some(type_);
    let found = conditions.iter().find(is)?;
    Some(found.get("status").and_then(Value::as_str) == Some("True"))
}
