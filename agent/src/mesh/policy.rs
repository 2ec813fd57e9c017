//! L4 authorization policies and mTLS modes: the values. `authorize` is where they are asked.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ipnet::IpNet;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::{Workload, http::RequestMatch};

/// What names a policy: its namespace and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyKey {
    /// The policy's namespace.
    pub namespace: Arc<str>,
    /// The policy's name.
    pub name: Arc<str>,
}

/// What the names of guards begin with. No object of Kubernetes has a name with such characters.
pub const GUARDS: [&str; 2] = ["weft_waypoint_only", "weft_from_waypoint"];

impl PolicyKey {
    /// Whether it is one of the policies that keep everybody on the way through a waypoint: they are made for agents, which see
    /// the waypoint's identity, and say nothing of the waypoint's own clients.
    pub fn is_guard(&self) -> bool {
        GUARDS.iter().any(|guard| self.name.starts_with(guard))
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An authorization policy as an L4 agent sees it (Istio's `istio.security.Authorization`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Namespace and name.
    pub key: PolicyKey,
    /// Which workloads it covers.
    pub scope: Scope,
    /// What a match does.
    pub action: Action,
    /// Any rule that matches makes the policy match; no rules never match.
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced (`istio.io/dry-run`).
    pub dry_run: bool,
}

impl Policy {
    /// Whether it refuses or allows anything.
    pub fn is_enforced(&self) -> bool {
        !self.dry_run && self.action != Action::Audit
    }
}

/// Which workloads a policy covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every workload (a policy of the root namespace without a selector).
    Mesh,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads that name the policy in [`super::Workload::policies`].
    Selector,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Selector => "selector",
        })
    }
}

/// What a policy does when it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection is allowed; and none but those, once an ALLOW policy is in scope.
    Allow,
    /// The connection is refused, whatever else allows it.
    Deny,
    /// Nothing but that it is recorded.
    Audit,
}

impl Action {
    /// As manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All clauses must match (Istio's `from`, `to` and `when` of one rule).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// No clauses match everything: the rule `{}`.
    pub clauses: Vec<Clause>,
}

/// Any of the matches must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// No matches are as a [`Match`] without fields: they never widen a policy.
    pub matches: Vec<Match>,
}

/// Every field that is not empty must match: one of its values, and none of its `not_` twin's.
///
/// With no field at all, nobody knows what was meant (a feed may have dropped what an L4 agent cannot see), so it must
/// not widen what is allowed: in an ALLOW policy it does not match, in a DENY policy it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the names are Istio's; each pair is the values that match and those that must not
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub trust_domains: Vec<StringMatch>,
    pub not_trust_domains: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    /// The names of fields that only a request has, as manifests write them (`paths`, `methods`, `request.headers[x]`):
    /// no L4 agent can say whether they hold. With any of them, an ALLOW policy's match never holds; a DENY policy's holds
    /// when the other fields do, but for what comes out of a waypoint, which enforces it.
    pub unseen: Vec<Arc<str>>,
    /// What the fields named in `unseen` say, for whoever sees requests. Where it is none, nobody can judge them.
    pub request: Option<Arc<RequestMatch>>,
    /// The names of fields with a value that the feed cannot read, whose own lists it leaves empty. As `unseen`, but no
    /// waypoint knows better.
    pub unreadable: Vec<Arc<str>>,
}

/// A service account of one namespace, in any trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The service account.
    pub name: Arc<str>,
}

/// How a name is compared. A principal is compared without its `spiffe://`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StringMatch {
    /// The whole name.
    Exact(Arc<str>),
    /// `name*`.
    Prefix(Arc<str>),
    /// `*name`.
    Suffix(Arc<str>),
    /// `*`: any name, but there must be one.
    Presence,
}

impl StringMatch {
    /// Whether a name that is there matches.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(whole) => name == &**whole,
            Self::Prefix(start) => name.starts_with(&**start),
            Self::Suffix(end) => name.ends_with(&**end),
            Self::Presence => !name.is_empty(),
        }
    }
}

/// Whether a workload takes connections without mutual TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MtlsMode {
    /// Both are taken.
    #[default]
    Permissive,
    /// Only mutual TLS.
    Strict,
}

/// mTLS modes of one scope (Istio's PeerAuthentication).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// What names it, for people.
    pub key: PolicyKey,
    /// The mode of every port that is not named; `None` inherits from the scope above.
    pub mode: Option<MtlsMode>,
    /// Modes of single ports (of the pod, not of its services).
    pub ports: BTreeMap<u16, MtlsMode>,
}

/// The mTLS modes of every scope, from the widest to the narrowest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerAuthentications {
    /// Of every workload.
    pub mesh: PeerAuthentication,
    /// Of the workloads of a namespace, by its name.
    pub namespaces: FxHashMap<Arc<str>, PeerAuthentication>,
    /// Of one workload, by its uid (what a selector selected).
    pub workloads: FxHashMap<Arc<str>, PeerAuthentication>,
}

/// The mTLS modes of every port of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortModes {
    /// The mode of every port that is not in `ports`.
    pub mode: MtlsMode,
    /// The ports that differ from `mode`.
    pub ports: BTreeMap<u16, MtlsMode>,
}

/// Which peer authentication set the mode of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtlsSetting {
    /// The mode.
    pub mode: MtlsMode,
    /// Which workloads it covers.
    pub scope: Scope,
    /// Its namespace and name.
    pub key: PolicyKey,
}

impl fmt::Display for MtlsSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer authentication {} ({})", self.key, self.scope)
    }
}

impl PeerAuthentications {
    /// The mode of one port. The narrowest scope that says anything decides: selector, then namespace, then mesh; and
    /// in each scope the port before the rest. Nothing said is PERMISSIVE, as in Istio.
    pub fn mode(&self, workload: &Workload, port: u16) -> MtlsMode {
        let mut scopes = self.narrowest_first(workload);
        scopes
            .find_map(|(_, scope)| scope.mode_of(port))
            .unwrap_or_default()
    }

    /// What decided [`mode`](Self::mode); none where nothing is said.
    pub fn setting(&self, workload: &Workload, port: u16) -> Option<MtlsSetting> {
        self.narrowest_first(workload).find_map(|(scope, said)| {
            Some(MtlsSetting {
                mode: said.mode_of(port)?,
                scope,
                key: said.key.clone(),
            })
        })
    }

    /// The modes of all ports.
    pub fn port_modes(&self, workload: &Workload) -> PortModes {
        let mode = self
            .narrowest_first(workload)
            .find_map(|(_, scope)| scope.mode)
            .unwrap_or_default();
        let named = self
            .narrowest_first(workload)
            .flat_map(|(_, scope)| scope.ports.keys());
        let modes = named.map(|port| (*port, self.mode(workload, *port)));
        PortModes {
            mode,
            ports: modes.filter(|(_, of_port)| *of_port != mode).collect(),
        }
    }

    fn narrowest_first(&self, workload: &Workload) -> impl Iterator<Item = (Scope, &PeerAuthentication)> {
        let of_workload = self.workloads.get(&workload.uid);
        let of_namespace = self.namespaces.get(&workload.namespace);
        let said = [
            (Scope::Selector, of_workload),
            (Scope::Namespace, of_namespace),
            (Scope::Mesh, Some(&self.mesh)),
        ];
        said.into_iter().filter_map(|(scope, said)| Some((scope, said?)))
    }
}

impl PeerAuthentication {
    fn mode_of(&self, port: u16) -> Option<MtlsMode> {
        self.ports.get(&port).copied().or(self.mode)
    }
}
