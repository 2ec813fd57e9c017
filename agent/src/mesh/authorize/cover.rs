//! Which policies cover a workload, found out when the mesh is made: pods of one namespace that name the same policies
//! share the answer. A connection asks only the rules that can hold for it, which are found by what they name, so that a
//! thousand rules for others cost nothing.

use std::{borrow::Cow, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Judged,
    rule::{Gates, KINDS, Rule},
};
use crate::mesh::{Action, Policy, PolicyKey, Scope, Workload};

/// Every policy of a mesh, by what it covers.
#[derive(Clone, Debug)]
pub(in crate::mesh) struct Policies {
    by_key: FxHashMap<PolicyKey, Arc<Policy>>,
    of_mesh: Arc<Group>,
    of_namespaces: FxHashMap<Arc<str>, Arc<Group>>,
    none: Arc<Group>,
}

impl Policies {
    /// No two have the same key.
    pub(in crate::mesh) fn new(policies: &[Arc<Policy>]) -> Self {
        let of_scope = |scope| {
            policies
                .iter()
                .filter(move |policy| policy.scope == scope)
                .cloned()
        };
        let mut of_namespaces: FxHashMap<Arc<str>, Vec<_>> = FxHashMap::default();
        for policy in of_scope(Scope::Namespace) {
            let of_namespace = of_namespaces.entry(policy.key.namespace.clone());
            of_namespace.or_default().push(policy);
        }
        let group = |(namespace, policies)| (namespace, Arc::new(Group::in_force(policies)));
        Self {
            by_key: policies
                .iter()
                .map(|policy| (policy.key.clone(), policy.clone()))
                .collect(),
            of_mesh: Arc::new(Group::in_force(of_scope(Scope::Mesh).collect())),
            of_namespaces: of_namespaces.into_iter().map(group).collect(),
            none: Arc::default(),
        }
    }

    /// Every one, in no order.
    pub(in crate::mesh) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.by_key.values()
    }

    /// The one of this name.
    pub(in crate::mesh) fn get(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.by_key.get(key)
    }

    /// Those that cover a workload, in the order in which they are asked.
    pub(in crate::mesh) fn of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        let named = workload.policies.iter().filter_map(|key| self.get(key));
        let named = named.filter(|policy| is_named_alone(policy, workload));
        let of_namespace = &self.of_namespace(workload).policies;
        self.of_mesh.policies.iter().chain(of_namespace).chain(named)
    }

    fn of_namespace(&self, workload: &Workload) -> &Arc<Group> {
        self.of_namespaces.get(&workload.namespace).unwrap_or(&self.none)
    }
}

/// One that covers the workload anyway does so once.
fn is_named_alone(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope {
        Scope::Mesh => false,
        Scope::Namespace => policy.key.namespace != workload.namespace,
        Scope::Selector => true,
    }
}

/// Every workload with what covers it.
#[derive(Clone, Debug)]
pub(in crate::mesh) struct Covered(FxHashMap<Arc<str>, (Arc<Workload>, Arc<Cover>)>);

impl Covered {
    /// No two have the same uid.
    pub(in crate::mesh) fn new(workloads: &[Arc<Workload>], policies: &Policies) -> Self {
        let mut covers: FxHashMap<(&str, &[PolicyKey]), Arc<Cover>> = FxHashMap::default();
        let covered = workloads.iter().map(|workload| {
            let cover = covers
                .entry((&workload.namespace, &workload.policies))
                .or_insert_with(|| Arc::new(Cover::new(policies, workload)));
            (workload.uid.clone(), (workload.clone(), cover.clone()))
        });
        Self(covered.collect())
    }

    /// Every workload, in no order.
    pub(in crate::mesh) fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.0.values().map(|(workload, _)| workload)
    }

    /// The workload of this uid.
    pub(in crate::mesh) fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.0.get(uid).map(|(workload, _)| workload)
    }

    /// What covers a workload: found for one of the mesh, found out for any other.
    pub(in crate::mesh) fn cover<'a>(
        &'a self,
        policies: &Policies,
        workload: &Workload,
    ) -> Cow<'a, Arc<Cover>> {
        match self.0.get(&workload.uid) {
            Some((known, cover)) if is_covered_alike(known, workload) => Cow::Borrowed(cover),
            _ => Cow::Owned(Arc::new(Cover::new(policies, workload))),
        }
    }
}

/// Every list of policies that a service has, with what it covers.
#[derive(Clone, Debug)]
pub(in crate::mesh) struct OfServices(FxHashMap<Box<[PolicyKey]>, Arc<Cover>>);

impl OfServices {
    pub(in crate::mesh) fn new<'a>(
        lists: impl Iterator<Item = &'a [PolicyKey]>,
        policies: &Policies,
    ) -> Self {
        let mut covers: FxHashMap<Box<[PolicyKey]>, Arc<Cover>> = FxHashMap::default();
        for keys in lists {
            if !covers.contains_key(keys) {
                covers.insert(keys.into(), Arc::new(Cover::of(policies, keys)));
            }
        }
        Self(covers)
    }

    /// Found for a list that some service has, found out for any other.
    pub(in crate::mesh) fn cover<'a>(
        &'a self,
        policies: &Policies,
        keys: &[PolicyKey],
    ) -> Cow<'a, Arc<Cover>> {
        match self.0.get(keys) {
            Some(cover) => Cow::Borrowed(cover),
            None => Cow::Owned(Arc::new(Cover::of(policies, keys))),
        }
    }
}

fn is_covered_alike(known: &Workload, workload: &Workload) -> bool {
    std::ptr::eq(known, workload)
        || (known.namespace == workload.namespace && known.policies == workload.policies)
}

/// What covers a workload.
#[derive(Debug)]
pub(in crate::mesh) struct Cover {
    /// The first policy that it names and that is not there: then nothing else is asked.
    pub(super) missing: Option<PolicyKey>,
    /// Whether a policy in dry-run covers it.
    pub(super) dry_run: bool,
    /// The mesh's, the namespace's, and those that it names: in this order.
    groups: [Arc<Group>; 3],
    /// Those that keep everybody on the way through its waypoint. The waypoint itself, which judges clients, asks none of them.
    guards: Arc<Group>,
}

impl Cover {
    fn new(policies: &Policies, workload: &Workload) -> Self {
        let named: Vec<_> = workload
            .policies
            .iter()
            .map(|key| (key, policies.get(key)))
            .collect();
        let missing = named.iter().find(|(_, policy)| policy.is_none());
        let missing = missing.map(|(key, _)| PolicyKey::clone(key));
        let named = named.into_iter().filter_map(|(_, policy)| policy);
        let named = named.filter(|policy| is_named_alone(policy, workload));
        let (guards, named): (Vec<_>, Vec<_>) = named.cloned().partition(|policy| policy.key.is_guard());
        let group = match missing {
            Some(_) => Group::of_nobody,
            None => Group::in_force,
        };
        let (guards, named) = (group(guards), group(named));
        let groups = [
            policies.of_mesh.clone(),
            policies.of_namespace(workload).clone(),
            Arc::new(named),
        ];
        let mut covering = groups.iter().flat_map(|group| &group.policies);
        Self {
            missing,
            dry_run: covering.any(|policy| !policy.is_enforced()),
            groups,
            guards: Arc::new(guards),
        }
    }

    /// Of these policies and no others.
    fn of(policies: &Policies, keys: &[PolicyKey]) -> Self {
        let missing = keys.iter().find(|key| policies.get(key).is_none()).cloned();
        // Once, however often it is named.
        let mut met = FxHashSet::default();
        let once = keys.iter().filter(|key| met.insert(*key));
        let named: Vec<_> = once.filter_map(|key| policies.get(key)).cloned().collect();
        let named = match missing {
            Some(_) => Group::of_nobody(named),
            None => Group::in_force(named),
        };
        Self {
            missing,
            dry_run: named.policies.iter().any(|policy| !policy.is_enforced()),
            groups: [policies.none.clone(), policies.none.clone(), Arc::new(named)],
            guards: policies.none.clone(),
        }
    }

    /// As it would be if the policies in dry-run were enforced.
    pub(super) fn rehearsed(&self) -> Self {
        let rehearsed = |group: &Arc<Group>| Arc::new(Group::new(group.policies.clone(), |_| true));
        Self {
            missing: self.missing.clone(),
            dry_run: self.dry_run,
            groups: self.groups.each_ref().map(rehearsed),
            guards: self.guards.clone(),
        }
    }

    /// The first enforced policy of an action that matches.
    pub(super) fn first_match(&self, action: Action, conn: &Judged<'_>) -> Option<&PolicyKey> {
        let mut rules = self.asked(conn).filter_map(|group| group.of(action));
        rules.find_map(|rules| rules.first_match(conn))
    }

    /// Every enforced policy of an action that is asked of a connection.
    pub(super) fn enforced(&self, action: Action, conn: &Judged<'_>) -> impl Iterator<Item = &PolicyKey> {
        self.asked(conn)
            .filter_map(move |group| group.of(action))
            .flat_map(|rules| &rules.policies)
    }

    fn asked(&self, conn: &Judged<'_>) -> impl Iterator<Item = &Arc<Group>> {
        let [of_mesh, of_namespace, named] = &self.groups;
        let all = [of_mesh, of_namespace, named, &self.guards];
        all.into_iter().take(if conn.at_waypoint() { 3 } else { 4 })
    }
}

/// Policies that cover the same workloads.
#[derive(Debug, Default)]
struct Group {
    /// All of them, in dry-run or not.
    policies: Vec<Arc<Policy>>,
    deny: Rules,
    allow: Rules,
}

impl Group {
    fn in_force(policies: Vec<Arc<Policy>>) -> Self {
        Self::new(policies, |policy| !policy.dry_run)
    }

    /// Their rules are not asked.
    fn of_nobody(policies: Vec<Arc<Policy>>) -> Self {
        Self::new(policies, |_| false)
    }

    fn new(policies: Vec<Arc<Policy>>, enforced: impl Fn(&Policy) -> bool) -> Self {
        let mut group = Self::default();
        for policy in policies.iter().filter(|policy| enforced(policy)) {
            match policy.action {
                Action::Deny => group.deny.add(policy),
                Action::Allow => group.allow.add(policy),
                Action::Audit => {}
            }
        }
        Self { policies, ..group }
    }

    /// None for what is only recorded.
    fn of(&self, action: Action) -> Option<&Rules> {
        match action {
            Action::Deny => Some(&self.deny),
            Action::Allow => Some(&self.allow),
            Action::Audit => None,
        }
    }
}

/// The rules of a group's policies of one action, in their order.
#[derive(Debug, Default)]
struct Rules {
    policies: Vec<PolicyKey>,
    /// Each with the number of its policy.
    rules: Vec<(usize, Rule)>,
    /// By kind and key, the numbers of the rules that ask for it.
    gated: [FxHashMap<u64, Vec<usize>>; KINDS],
    /// The numbers of those that may hold for anybody.
    open: Vec<usize>,
}

impl Rules {
    fn add(&mut self, policy: &Policy) {
        let compiled = policy
            .rules
            .iter()
            .filter_map(|rule| Rule::new(rule, policy.action));
        for rule in compiled {
            let number = self.rules.len();
            match rule.gates() {
                Some(gates) => self.gate(gates, number),
                None => self.open.push(number),
            }
            self.rules.push((self.policies.len(), rule));
        }
        self.policies.push(policy.key.clone());
    }

    fn gate(&mut self, gates: Gates, number: usize) {
        for (kind, keys) in gates {
            let by_key = &mut self.gated[kind as usize];
            for key in keys {
                by_key.entry(key).or_default().push(number);
            }
        }
    }

    /// The policy of the first rule that holds.
    fn first_match(&self, conn: &Judged<'_>) -> Option<&PolicyKey> {
        if self.rules.is_empty() {
            return None;
        }
        let gated = self.gated.iter().zip(&conn.keys);
        let gated = gated.filter_map(|(by_key, key)| by_key.get(key.as_ref()?));
        let mut first = self.rules.len();
        for numbers in gated.chain([&self.open]) {
            let mut earlier = numbers.iter().copied().take_while(|number| *number < first);
            if let Some(found) = earlier.find(|number| self.rules[*number].1.holds(conn)) {
                first = found;
            }
        }
        let (policy, _) = self.rules.get(first)?;
        self.policies.get(*policy)
    }
}
