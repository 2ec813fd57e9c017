//! AuthorizationPolicies: which workloads one covers, what it does, and who enforces it.
//!
//! An agent enforces what covers workloads: the mesh's, a namespace's, a selector's. One with `targetRefs` is a waypoint's
//! to enforce; what it means here is that nobody may go around that waypoint (`waypoint_only`).

use std::sync::Arc;

use serde_json::Value;

use super::{
    Settings,
    rules::{Whose, rule},
};
use crate::{
    cluster::{
        labels,
        objects::{Custom, Kind},
    },
    manifests::{Labels, ObjectRef, Reader, Selector, Severity, there},
    mesh::{Action, Clause, Match, Place, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch},
};

/// An AuthorizationPolicy that was read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    pub(super) key: PolicyKey,
    pub(super) object: ObjectRef,
    /// What an agent is to enforce; none for one that is a waypoint's, or nobody's.
    pub(super) policy: Option<Policy>,
    /// Whom a selector selects; none where it covers all of its scope.
    pub(super) selector: Option<Labels>,
    /// Whether a waypoint is to enforce it.
    pub(super) targeted: bool,
    /// What a waypoint is to enforce it for.
    pub(super) targets: Vec<Target>,
    /// Whether it is enforced, rather than only evaluated.
    pub(super) enforced: bool,
}

/// What a policy with `targetRefs` is about.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) kind: TargetKind,
    pub(super) name: String,
}

/// The kinds of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TargetKind {
    Service,
    ServiceEntry,
    Gateway,
    GatewayClass,
}

/// Who may come, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Named {
    pub(super) principals: Vec<StringMatch>,
    pub(super) namespaces: Vec<StringMatch>,
    pub(super) service_accounts: Vec<ServiceAccountMatch>,
}

/// Reads one.
pub(super) fn read(object: &Custom, settings: &Settings, reader: &mut Reader<'_>) -> Read {
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, &object.metadata);
    let key = PolicyKey {
        namespace: reference.namespace.as_str().into(),
        name: reference.name.as_str().into(),
    };
    let mut read = Read {
        key,
        object: reference,
        policy: None,
        selector: None,
        targeted: false,
        targets: Vec::new(),
        enforced: !is_dry_run(object),
    };
    let place = Place::ROOT.field("spec");
    // A policy without a spec is one without rules.
    let fields = Value::Object(serde_json::Map::new());
    let (spec, whole) = match &object.spec {
        Value::Null => (&fields, true),
        spec => (spec, reader.fields(spec, &place).is_some()),
    };
    let Some(action) = action(spec, &place, whole, reader) else {
        return read;
    };
    read.targets = targets(spec, reader);
    read.targeted = there(spec, "targetRefs").is_some() || there(spec, "targetRef").is_some();
    if read.targeted {
        if there(spec, "selector").is_some() {
            let message = "spec: has both selector and targetRefs: only targetRefs counts";
            reader.tell(Severity::Warning, "SelectorIgnored", message);
        }
        // Read for what is wrong with them.
        rules(spec, &read, &action, &place, reader);
        return read;
    }
    if let Selector::Labels(labels) = reader.selector(spec) {
        read.selector = Some(labels);
    }
    let mut rules = rules(spec, &read, &action, &place, reader);
    if !whole || action.unreadable {
        rules = vec![nobody_knows()];
    }
    read.policy = Some(Policy {
        key: read.key.clone(),
        scope: match &read.selector {
            Some(_) => Scope::Selector,
            None if read.key.namespace == settings.root_namespace => Scope::Mesh,
            None => Scope::Namespace,
        },
        action: action.action,
        rules,
        dry_run: !read.enforced,
    });
    read
}

impl Read {
    /// Whether an agent cannot see all that it says, so that a waypoint has to be asked.
    pub(super) fn needs_waypoint(&self) -> bool {
        let rules = self.policy.iter().flat_map(|policy| &policy.rules);
        let mut matches = rules
            .flat_map(|rule| &rule.clauses)
            .flat_map(|clause| &clause.matches);
        self.enforced && matches.any(|match_| !match_.unseen.is_empty())
    }

    /// Whether it allows, and is enforced.
    pub(super) fn allows(&self) -> bool {
        let allows = |policy: &Policy| policy.action == Action::Allow;
        self.enforced && self.policy.as_ref().is_some_and(allows)
    }

    /// Those whom it allows by name.
    pub(super) fn name_into(&self, named: &mut Named) {
        let rules = self.policy.iter().flat_map(|policy| &policy.rules);
        for rule in rules.filter(|_| self.allows()) {
            if let Some(clause) = rule.clauses.iter().find(|clause| names_somebody(clause)) {
                for match_ in &clause.matches {
                    named.principals.extend(match_.principals.iter().cloned());
                    named.namespaces.extend(match_.namespaces.iter().cloned());
                    named
                        .service_accounts
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

/// None for what concerns no agent.
fn action(spec: &Value, place: &Place<'_>, whole: bool, reader: &mut Reader<'_>) -> Option<What> {
    let plain = |action| What {
        action,
        asks: None,
        unreadable: false,
    };
    let written = there(spec, "action").filter(|_| whole);
    match written.map(|value| value.as_str()) {
        None | Some(Some("ALLOW")) => Some(plain(Action::Allow)),
        Some(Some("DENY")) => Some(plain(Action::Deny)),
        Some(Some("AUDIT")) => {
            let message = "spec.action: AUDIT refuses and allows nothing, and is not recorded: \
                           for a rehearsal use the annotation istio.io/dry-run";
            reader.tell(Severity::Warning, "AuditIgnored", message);
            None
        }
        Some(Some("CUSTOM")) => Some(What {
            action: Action::Deny,
            asks: Some("provider".into()),
            unreadable: false,
        }),
        Some(_) => {
            let message = "is not known here: write ALLOW, DENY, AUDIT or CUSTOM";
            reader.invalid(&place.field("action"), message);
            Some(What {
                unreadable: true,
                ..plain(Action::Deny)
            })
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

fn rules(spec: &Value, read: &Read, what: &What, place: &Place<'_>, reader: &mut Reader<'_>) -> Vec<Rule> {
    let policy = Whose {
        action: what.action,
        namespace: &read.key.namespace,
        asks: what.asks.as_ref(),
        by_agents: !read.targeted,
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

/// `targetRefs`, and `targetRef` of before.
fn targets(spec: &Value, reader: &mut Reader<'_>) -> Vec<Target> {
    let root = Place::ROOT.field("spec");
    let place = root.field("targetRefs");
    let several = reader.list(spec, "targetRefs", &root).iter().enumerate();
    let mut targets: Vec<_> = several
        .filter_map(|(i, value)| target(value, &place.index(i), reader))
        .collect();
    if let Some(one) = there(spec, "targetRef") {
        targets.extend(target(one, &root.field("targetRef"), reader));
    }
    targets
}

fn target(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Option<Target> {
    reader.fields(value, place)?;
    let text = |text: &str| Ok::<_, String>(text.to_owned());
    let name = reader.required(value, "name", place, text)?;
    let kind = reader.required(value, "kind", place, text)?;
    let group = reader.optional(value, "group", place, text).unwrap_or_default();
    let kind = match (group.as_str(), kind.as_str()) {
        ("" | "core", "Service") => TargetKind::Service,
        ("networking.istio.io", "ServiceEntry") => TargetKind::ServiceEntry,
        ("gateway.networking.k8s.io", "Gateway") => TargetKind::Gateway,
        ("gateway.networking.k8s.io", "GatewayClass") => TargetKind::GatewayClass,
        _ => {
            let message =
                "is not known here: write a Service, ServiceEntry, Gateway or GatewayClass with its group";
            reader.invalid(&place.field("kind"), message);
            return None;
        }
    };
    Some(Target { kind, name })
}
