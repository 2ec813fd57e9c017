//! Nobody goes around a waypoint that enforces something: policies of our own, which any agent of the protocol enforces.

use std::{
    hash::{Hash as _, Hasher as _},
    sync::Arc,
};

use rustc_hash::FxHasher;

use crate::mesh::{
    Action, Clause, GUARDS, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch,
};

/// Who may come, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named {
    principals: Vec<StringMatch>,
    namespaces: Vec<StringMatch>,
    service_accounts: Vec<ServiceAccountMatch>,
}

impl Named {
    /// Those whom an enforced ALLOW policy allows by name; others say nothing.
    pub fn add(&mut self, policy: &Policy) {
        let allows = policy.is_enforced() && policy.action == Action::Allow;
        for rule in policy.rules.iter().filter(|_| allows) {
            if let Some(clause) = rule.clauses.iter().find(|clause| names_somebody(clause)) {
                for match_ in &clause.matches {
                    self.principals.extend(match_.principals.iter().cloned());
                    self.namespaces.extend(match_.namespaces.iter().cloned());
                    self.service_accounts
                        .extend(match_.service_accounts.iter().cloned());
                }
            }
        }
    }
}

/// Whether each of its alternatives says by name who may come.
fn names_somebody(clause: &Clause) -> bool {
    let name = |names: &[StringMatch]| !names.is_empty() && !names.contains(&StringMatch::Presence);
    let somebody = |match_: &Match| {
        let fields = [
            name(&match_.principals),
            name(&match_.namespaces),
            !match_.service_accounts.is_empty(),
        ];
        let anybody = [&match_.principals, &match_.namespaces];
        fields.contains(&true) && !anybody.iter().any(|names| names.contains(&StringMatch::Presence))
    };
    !clause.matches.is_empty() && clause.matches.iter().all(somebody)
}

/// Whether an agent cannot see all that a policy in force says, so that a waypoint has to be asked.
pub fn needs_waypoint(policy: &Policy) -> bool {
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let mut matches = clauses.flat_map(|clause| &clause.matches);
    policy.is_enforced() && matches.any(|match_| !match_.unseen.is_empty())
}

/// Refuses everybody but these, plaintext among them.
pub fn deny_others(namespace: &Arc<str>, waypoints: &[StringMatch], named: Named) -> Policy {
    let nobody = waypoints.is_empty() && named == Named::default();
    let match_ = Match {
        not_principals: waypoints.iter().cloned().chain(named.principals).collect(),
        not_namespaces: named.namespaces,
        not_service_accounts: named.service_accounts,
        // Where nobody is let in: no connection has this port, so that it holds for all. A match without fields would do
        // for our agents, but others skip it.
        not_destination_ports: if nobody { vec![0] } else { Vec::new() },
        ..Match::default()
    };
    policy(namespace, GUARDS[0], Action::Deny, match_)
}

/// Lets these waypoints in, which have asked every ALLOW policy with the client's identity.
pub fn let_in(namespace: &Arc<str>, waypoints: Vec<StringMatch>) -> Policy {
    let match_ = Match {
        principals: waypoints,
        ..Match::default()
    };
    policy(namespace, GUARDS[1], Action::Allow, match_)
}

/// Named by what it says, in a form that no object of Kubernetes can have.
fn policy(namespace: &Arc<str>, name: &str, action: Action, match_: Match) -> Policy {
    let mut hasher = FxHasher::default();
    format!("{match_:?}").hash(&mut hasher);
    let hash = hasher.finish() >> 32;
    Policy {
        key: PolicyKey {
            namespace: Arc::clone(namespace),
            name: format!("{name}_{hash:08x}").into(),
        },
        scope: Scope::Selector,
        action,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![match_],
            }],
        }],
        dry_run: false,
    }
}
