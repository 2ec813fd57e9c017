//! AuthorizationPolicies: which workloads one covers, what it does, and who enforces it.
//!
//! An agent enforces what covers workloads: the mesh's, a namespace's, a selector's. One with `targetRefs` is a waypoint's
//! to enforce: services say which, and nobody may go around that waypoint (`guards`).

use std::sync::Arc;

use serde_json::Value;

use super::{
    Labels, ObjectRef, Reader, Selector, Severity, Targets, guards,
    rules::{Whose, rule},
    targets, there,
};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind},
    },
    mesh::{Action, Clause, Match, Place, Policy, PolicyKey, Rule, Scope},
};

/// An AuthorizationPolicy that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    /// The object.
    pub object: ObjectRef,
    /// What it says. With `targets` it is a waypoint's to enforce, and no workload names it.
    pub policy: Policy,
    /// Whom a selector selects; none where it covers all of its scope.
    pub selector: Option<Labels>,
    /// What a waypoint is to enforce it for.
    pub targets: Targets,
    /// Whether it is enforced, rather than only evaluated.
    pub enforced: bool,
}

/// Reads one.
pub fn read(object: &Custom, root_namespace: &str, reader: &mut Reader<'_>) -> Read {
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, &object.metadata);
    let key = PolicyKey {
        namespace: reference.namespace.as_str().into(),
        name: reference.name.as_str().into(),
    };
    let place = Place::ROOT.field("spec");
    // A policy without a spec is one without rules.
    let fields = Value::Object(serde_json::Map::new());
    let (spec, whole) = match &object.spec {
        Value::Null => (&fields, true),
        spec => (spec, reader.fields(spec, &place).is_some()),
    };
    let mut what = action(spec, &place, whole, reader);
    let targets = targets(spec, reader);
    let selector = selector(spec, &targets, reader);
    let mut rules = rules(spec, &key, &what, &targets, &place, reader);
    if targets.unreadable {
        unknown_target(&mut what, reader);
    }
    if !whole || what.unreadable {
        rules = vec![nobody_knows()];
    }
    let dry_run = is_dry_run(object);
    let policy = Policy {
        scope: match &selector {
            None if targets.any => Scope::Selector,
            Some(_) => Scope::Selector,
            None if *key.namespace == *root_namespace => Scope::Mesh,
            None => Scope::Namespace,
        },
        key,
        action: what.action,
        rules,
        dry_run,
    };
    Read {
        object: reference,
        enforced: policy.is_enforced(),
        policy,
        selector,
        targets,
    }
}

/// Whom it selects, where it is for agents to enforce.
fn selector(spec: &Value, targets: &Targets, reader: &mut Reader<'_>) -> Option<Labels> {
    if !targets.any {
        return match reader.selector(spec) {
            Selector::Labels(labels) => Some(labels),
            Selector::Everything | Selector::Unreadable => None,
        };
    }
    if there(spec, "selector").is_some() {
        let message = "spec: has both selector and targetRefs: only targetRefs counts";
        reader.tell(Severity::Warning, "SelectorIgnored", message);
    }
    None
}

/// Nobody knows what it is for: whatever it may be for is denied. What only records goes on to.
fn unknown_target(what: &mut What, reader: &mut Reader<'_>) {
    if what.action == Action::Audit {
        return;
    }
    let message = "spec.targetRefs: cannot be read whole, so that everything behind any waypoint of the namespace is \
                   denied: mend it";
    reader.tell(Severity::Error, "Closed", message);
    (what.action, what.unreadable) = (Action::Deny, true);
}

impl Read {
    /// Whether an agent cannot see all that it says, so that a waypoint has to be asked.
    pub fn needs_waypoint(&self) -> bool {
        !self.targets.any && guards::needs_waypoint(&self.policy)
    }

    /// Whether it allows, and agents enforce it.
    pub fn allows(&self) -> bool {
        self.enforced && !self.targets.any && self.policy.action == Action::Allow
    }
}

fn is_dry_run(object: &Custom) -> bool {
    let annotations = object.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(labels::DRY_RUN));
    value.is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// What a match does, and what an agent cannot do about it.
struct What {
    action: Action,
    /// The external authorizer that would be asked.
    asks: Option<Arc<str>>,
    unreadable: bool,
}

fn action(spec: &Value, place: &Place<'_>, whole: bool, reader: &mut Reader<'_>) -> What {
    let plain = |action| What {
        action,
        asks: None,
        unreadable: false,
    };
    let written = there(spec, "action").filter(|_| whole);
    match written.map(|value| value.as_str()) {
        None | Some(Some("ALLOW")) => plain(Action::Allow),
        Some(Some("DENY")) => plain(Action::Deny),
        Some(Some("AUDIT")) => plain(Action::Audit),
        Some(Some("CUSTOM")) => What {
            asks: Some("provider".into()),
            ..plain(Action::Deny)
        },
        Some(_) => {
            let message = "is not known here: write ALLOW, DENY, AUDIT or CUSTOM";
            reader.invalid(&place.field("action"), message);
            What {
                unreadable: true,
                ..plain(Action::Deny)
            }
        }
    }
}

/// A rule of which nothing is known: in a DENY policy it always holds, in an ALLOW policy never.
fn nobody_knows() -> Rule {
    Rule {
        clauses: vec![Clause {
            matches: vec![Match {
                unreadable: vec!["spec".into()],
                ..Match::default()
            }],
        }],
    }
}

fn rules(
    spec: &Value,
    key: &PolicyKey,
    what: &What,
    targets: &Targets,
    place: &Place<'_>,
    reader: &mut Reader<'_>,
) -> Vec<Rule> {
    let policy = Whose {
        action: what.action,
        namespace: &key.namespace,
        asks: what.asks.as_ref(),
        by_agents: !targets.any,
    };
    let place = place.field("rules");
    match there(spec, "rules") {
        None => Vec::new(),
        Some(Value::Array(rules)) => {
            let rules = rules.iter().enumerate();
            rules
                .map(|(i, value)| rule(value, policy, &place.index(i), reader))
                .collect()
        }
        Some(_) => {
            reader.invalid(&place, "must be a list");
            vec![nobody_knows()]
        }
    }
}
