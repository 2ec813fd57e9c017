//! What namespaces need of each other: the root namespace's policies, and waypoints.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    Resources, Settings, WaypointFor, gateways,
    policy::{self, TargetKind},
};
use crate::{
    cluster::objects::Kind,
    manifests::{Labels, ObjectRef, Reader},
    mesh::{ServiceKey, SpiffeId},
};

/// It, compiled.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shared {
    waypoints: BTreeMap<(String, String), Waypoint>,
    root: Vec<policy::Read>,
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
        let mut ignored = Vec::new();
        let root = resources.namespaces.get(&*settings.root_namespace);
        let mut policies = |kind: &super::resources::InNamespace| -> Vec<policy::Read> {
            let objects = kind.of_kind(Kind::AuthorizationPolicy);
            let read = objects.map(|(_, object)| {
                let reference = ObjectRef::new(Kind::AuthorizationPolicy, &object.metadata);
                // What is wrong with it, its own namespace says.
                ignored.clear();
                policy::read(object, settings, &mut Reader::new(reference, &mut ignored))
            });
            read.collect()
        };
        let root: Vec<_> = root.map(&mut policies).unwrap_or_default();
        let mut waypoints = BTreeMap::new();
        for (namespace, within) in &resources.namespaces {
            let mut found: Vec<_> = within
                .of_kind(Kind::Gateway)
                .filter_map(|(name, object)| Some((name, gateways::waypoint(object, resources, settings)?)))
                .collect();
            if found.is_empty() {
                continue;
            }
            let own = policies(within);
            for (name, waypoint) in &mut found {
                let of_gateway = own.iter().any(|read| targets(read, TargetKind::Gateway, name));
                let class = &waypoint.class;
                let of_class = root
                    .iter()
                    .any(|read| targets(read, TargetKind::GatewayClass, class));
                waypoint.enforces = of_gateway || of_class;
            }
            let key = |name: &str| (namespace.clone(), name.to_owned());
            waypoints.extend(found.into_iter().map(|(name, waypoint)| (key(name), waypoint)));
        }
        Self { waypoints, root }
    }

    /// The policies of the root namespace.
    pub(super) fn root(&self) -> &[policy::Read] {
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

    /// Whether what the root namespace says of all namespaces differs.
    pub(super) fn root_differs(&self, other: &Self) -> bool {
        let of_workloads = |read: &&policy::Read| read.policy.is_some();
        !self
            .root
            .iter()
            .filter(of_workloads)
            .eq(other.root.iter().filter(of_workloads))
    }

    /// The waypoints that are not as they were, by namespace and name.
    pub(super) fn changed_waypoints(&self, before: &Self) -> BTreeSet<(String, String)> {
        let keys = self.waypoints.keys().chain(before.waypoints.keys());
        keys.filter(|key| self.waypoints.get(key) != before.waypoints.get(key))
            .cloned()
            .collect()
    }
}

/// Whether an enforced policy is about this.
pub(super) fn targets(read: &policy::Read, kind: TargetKind, name: &str) -> bool {
    let is = |target: &policy::Target| target.kind == kind && target.name == name;
    read.enforced && read.targets.iter().any(is)
}

impl Waypoint {
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
