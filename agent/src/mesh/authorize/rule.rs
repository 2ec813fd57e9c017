//! A policy's rules in the form in which connections are judged: what never holds is left out, what says nothing is not
//! asked, and each rule tells which connections it can hold for at all. Made once for a mesh; what the fields mean is
//! said at [`Match`].

use std::{
    hash::{Hash, Hasher as _},
    sync::Arc,
};

use ipnet::IpNet;
use rustc_hash::FxHasher;

use super::{Judged, Peer, request::RequestTest};
use crate::mesh::{self, Action, Clause, Match, ServiceAccountMatch, StringMatch};

/// What a rule can ask for by its very value, the most telling first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Principal,
    ServiceAccount,
    Namespace,
    Port,
}

/// How many kinds there are.
pub(super) const KINDS: usize = 4;

/// Without one of these keys, and each is a hash, the rule does not hold. Two values may have the same one.
pub(super) type Gates = Vec<(Kind, Vec<u64>)>;

/// The key of a value.
pub(super) fn key(value: impl Hash) -> u64 {
    let mut hasher = FxHasher::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// All clauses must hold, each by one of its tests.
#[derive(Debug)]
pub(super) struct Rule {
    clauses: Vec<Vec<Test>>,
}

impl Rule {
    /// None where it never holds.
    pub(super) fn new(rule: &mesh::Rule, action: Action) -> Option<Self> {
        let clauses: Vec<_> = rule.clauses.iter().map(|clause| tests(clause, action)).collect();
        (!clauses.iter().any(Vec::is_empty)).then_some(Self { clauses })
    }

    pub(super) fn holds(&self, conn: &Judged<'_>) -> bool {
        let mut clauses = self.clauses.iter();
        clauses.all(|tests| tests.iter().any(|test| test.holds(conn)))
    }

    /// Those of the clause that tells most; none where each may hold for anybody.
    pub(super) fn gates(&self) -> Option<Gates> {
        let gates = |tests: &Vec<Test>| tests.iter().map(Test::gate).collect::<Option<Gates>>();
        let all = self.clauses.iter().filter_map(gates);
        all.min_by_key(|gates| gates.iter().map(|(kind, _)| *kind).max())
    }
}

/// A clause without a match is as a match that says nothing.
fn tests(clause: &Clause, action: Action) -> Vec<Test> {
    let silent = [Match::default()];
    let matches = if clause.matches.is_empty() {
        silent.as_slice()
    } else {
        &clause.matches
    };
    matches
        .iter()
        .filter_map(|match_| Test::new(match_, action))
        .collect()
}

/// A [`Match`]: every field must hold.
#[derive(Debug)]
pub(super) struct Test {
    fields: Vec<Field>,
    unseen: Unseen,
    /// Whether it holds where nobody can say whether it does: anybody's but an ALLOW's.
    in_doubt: bool,
}

/// The fields that only a request has.
#[derive(Debug)]
enum Unseen {
    /// There are none.
    Nothing,
    /// They can be judged where there is a request.
    Judged(RequestTest),
    /// Nobody can judge them.
    Nobody,
}

impl Unseen {
    fn new(match_: &Match, deny: bool) -> Self {
        match &match_.request {
            None if match_.unseen.is_empty() => Self::Nothing,
            None => Self::Nobody,
            Some(request) => RequestTest::new(request, deny).map_or(Self::Nobody, Self::Judged),
        }
    }
}

impl Test {
    /// None where it never holds. Where nothing is said, or something that cannot be known by anybody, it must never widen
    /// what is allowed.
    pub(super) fn new(match_: &Match, action: Action) -> Option<Self> {
        let silent = *match_ == Match::default();
        let unseen = Unseen::new(match_, action != Action::Allow);
        let unknown = matches!(unseen, Unseen::Nobody) || !match_.unreadable.is_empty();
        if (silent || unknown) && action == Action::Allow {
            return None;
        }
        Some(Self {
            fields: Field::all(match_),
            unseen,
            in_doubt: action != Action::Allow,
        })
    }

    pub(super) fn holds(&self, conn: &Judged<'_>) -> bool {
        self.fields.iter().all(|field| field.holds(conn)) && self.unseen_holds(conn)
    }

    /// Without a request, what comes out of a waypoint was judged there.
    fn unseen_holds(&self, conn: &Judged<'_>) -> bool {
        match (&self.unseen, &conn.request) {
            (Unseen::Nothing, _) => true,
            (Unseen::Judged(test), Some(request)) => test.holds(request),
            (Unseen::Nobody, Some(_)) => self.in_doubt,
            (Unseen::Judged(_) | Unseen::Nobody, None) => self.in_doubt && !conn.came_through_waypoint(),
        }
    }

    fn gate(&self) -> Option<(Kind, Vec<u64>)> {
        let gates = self.fields.iter().filter_map(Field::gate);
        gates.min_by_key(|(kind, _)| *kind)
    }
}

/// A field that says something.
///
/// A plaintext peer has no name of any kind. A field that names some does not hold for it, not even `*` (which asks that
/// there be one); its `not_` twin does hold, for a peer without a name is not one of those named. So
/// `not_principals: [*]` is how a policy says "plaintext", and an ALLOW by `not_principals: [x]` lets plaintext peers
/// in: as in Istio, whoever wants proof must ask for it, by `principals` or by STRICT.
#[derive(Debug)]
struct Field {
    values: Values,
    /// Whether one of the values is asked for; else (`not_`) that it be none of them.
    one_of: bool,
}

#[derive(Debug)]
enum Values {
    /// In their order.
    Ports(Vec<u16>),
    Names(Name, Names),
    ServiceAccounts(Vec<ServiceAccountMatch>),
    Sources(Vec<IpNet>),
    Destinations(Vec<IpNet>),
}

impl Field {
    /// What is quick to answer first.
    fn all(match_: &Match) -> Vec<Self> {
        let principals = |list: &[_]| Values::Names(Name::Principal, Names::new(list));
        let namespaces = |list: &[_]| Values::Names(Name::Namespace, Names::new(list));
        let trust_domains = |list: &[_]| Values::Names(Name::TrustDomain, Names::new(list));
        let accounts = |list: &[_]| Values::ServiceAccounts(list.to_vec());
        let sources = |list: &[_]| Values::Sources(list.to_vec());
        let destinations = |list: &[_]| Values::Destinations(list.to_vec());
        let said = [
            field(&match_.destination_ports, true, ports),
            field(&match_.not_destination_ports, false, ports),
            field(&match_.principals, true, principals),
            field(&match_.not_principals, false, principals),
            field(&match_.service_accounts, true, accounts),
            field(&match_.not_service_accounts, false, accounts),
            field(&match_.namespaces, true, namespaces),
            field(&match_.not_namespaces, false, namespaces),
            field(&match_.trust_domains, true, trust_domains),
            field(&match_.not_trust_domains, false, trust_domains),
            field(&match_.source_ips, true, sources),
            field(&match_.not_source_ips, false, sources),
            field(&match_.destination_ips, true, destinations),
            field(&match_.not_destination_ips, false, destinations),
        ];
        said.into_iter().flatten().collect()
    }

    fn holds(&self, conn: &Judged<'_>) -> bool {
        self.values.hold(conn) == self.one_of
    }

    /// Where only certain values hold: what they are.
    fn gate(&self) -> Option<(Kind, Vec<u64>)> {
        let gate = match &self.values {
            Values::Ports(ports) => (Kind::Port, ports.iter().map(key).collect()),
            Values::Names(Name::Principal, names) => (Kind::Principal, names.keys()?),
            Values::Names(Name::Namespace, names) => (Kind::Namespace, names.keys()?),
            Values::ServiceAccounts(accounts) => {
                let keys = accounts.iter().map(|it| key((&*it.namespace, &*it.name)));
                (Kind::ServiceAccount, keys.collect())
            }
            Values::Names(Name::TrustDomain, _) | Values::Sources(_) | Values::Destinations(_) => {
                return None;
            }
        };
        Some(gate).filter(|_| self.one_of)
    }
}

fn field<T>(list: &[T], one_of: bool, values: impl Fn(&[T]) -> Values) -> Option<Field> {
    (!list.is_empty()).then(|| Field {
        values: values(list),
        one_of,
    })
}

fn ports(list: &[u16]) -> Values {
    let mut ports = list.to_vec();
    ports.sort_unstable();
    Values::Ports(ports)
}

impl Values {
    /// Whether one of them does.
    fn hold(&self, conn: &Judged<'_>) -> bool {
        match self {
            Self::Ports(ports) => ports.binary_search(&conn.destination_port).is_ok(),
            Self::Names(name, names) => conn.peer.as_ref().is_some_and(|peer| names.hold(name.of(peer))),
            Self::ServiceAccounts(accounts) => conn.peer.as_ref().is_some_and(|peer| {
                let is = |it: &ServiceAccountMatch| {
                    *it.name == *peer.service_account && *it.namespace == *peer.namespace
                };
                accounts.iter().any(is)
            }),
            Self::Sources(nets) => nets.iter().any(|net| net.contains(&conn.source_ip)),
            Self::Destinations(nets) => nets.iter().any(|net| net.contains(&conn.destination_ip)),
        }
    }
}

/// Which of a peer's names.
#[derive(Clone, Copy, Debug)]
enum Name {
    Principal,
    Namespace,
    TrustDomain,
}

impl Name {
    fn of<'a>(self, peer: &Peer<'a>) -> &'a str {
        match self {
            Self::Principal => peer.principal,
            Self::Namespace => peer.namespace,
            Self::TrustDomain => peer.trust_domain,
        }
    }
}

/// Whole names, in their order, apart from patterns.
#[derive(Debug)]
struct Names {
    whole: Vec<Arc<str>>,
    patterns: Vec<StringMatch>,
}

impl Names {
    fn new(list: &[StringMatch]) -> Self {
        let mut names = Self {
            whole: Vec::new(),
            patterns: Vec::new(),
        };
        for name in list {
            match name {
                StringMatch::Exact(whole) => names.whole.push(whole.clone()),
                pattern => names.patterns.push(pattern.clone()),
            }
        }
        names.whole.sort_unstable();
        names
    }

    fn hold(&self, name: &str) -> bool {
        self.whole.binary_search_by(|whole| (**whole).cmp(name)).is_ok()
            || self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// None where a pattern may hold for others.
    fn keys(&self) -> Option<Vec<u64>> {
        let keys = self.whole.iter().map(|name| key(&**name));
        self.patterns.is_empty().then(|| keys.collect())
    }
}
