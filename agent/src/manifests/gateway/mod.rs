//! Routes of the Gateway API for services of the mesh (GAMMA): HTTPRoute, GRPCRoute, TCPRoute, TLSRoute.
//!
//! Their `hostnames` and the Gateways among their parents are of gateways, and not asked here.

mod backends;
mod filters;
mod grpc;
mod http;
mod parents;
mod precedence;

use serde_json::Value;

pub(super) use precedence::{Rank, table};

use super::{ObjectRef, Reader, Surroundings, rule::HttpRule, since, words};
use crate::{
    cluster::objects::{Custom, Kind},
    mesh::{
        Place, ServiceKey,
        http::{Backend, HostMatch, RuleName},
    },
};

/// A route, read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    pub(super) object: ObjectRef,
    pub(super) since: i64,
    pub(super) parents: Vec<Parent>,
    pub(super) says: Says,
}

/// A service that a route is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parent {
    pub(super) service: ServiceKey,
    /// None: all of its ports.
    pub(super) port: Option<u16>,
}

/// What becomes of what is sent there.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Says {
    Http(Vec<HttpRule>),
    Tls(Vec<HostMatch>, Vec<Backend>),
    Tcp(Vec<Backend>),
}

/// Whose references these are.
#[derive(Clone, Copy)]
struct Whose<'a> {
    around: &'a dyn Surroundings,
    namespace: &'a str,
    kind: Kind,
    name: &'a str,
    /// The services that it is for: what is sent to them may go to them.
    parents: &'a [Parent],
}

impl Whose<'_> {
    fn rule_name(&self, rule: usize) -> RuleName {
        let (kind, namespace, name) = (self.kind.kind(), self.namespace, self.name);
        RuleName(format!("{kind} {namespace}/{name} rule {rule}").into())
    }
}

/// Reads one; none where it is for no service.
pub(super) fn route(
    kind: Kind,
    object: &Custom,
    around: &dyn Surroundings,
    reader: &mut Reader<'_>,
) -> Option<Route> {
    let reference = ObjectRef::new(kind, &object.metadata);
    let mut whose = Whose {
        around,
        namespace: &reference.namespace,
        kind,
        name: &reference.name,
        parents: &[],
    };
    let (spec, place) = (&object.spec, Place::ROOT.field("spec"));
    reader.fields(spec, &place)?;
    let parents = parents::parents(spec, &place, whose, reader);
    if parents.is_empty() {
        return None;
    }
    whose.parents = &parents;
    let says = match kind {
        Kind::HttpRoute => Says::Http(rules(spec, &place, whose, reader, http::rule)),
        Kind::GrpcRoute => Says::Http(rules(spec, &place, whose, reader, grpc::rule)),
        Kind::TlsRoute => {
            let hosts = reader.all(spec, "hostnames", &place, words::host);
            Says::Tls(hosts, whole(spec, &place, whose, reader))
        }
        _ => Says::Tcp(whole(spec, &place, whose, reader)),
    };
    Some(Route {
        since: since(&object.metadata),
        object: reference,
        parents,
        says,
    })
}

/// Reads all rules of a route that looks at requests, each by `rule`.
fn rules(
    spec: &Value,
    place: &Place<'_>,
    whose: Whose<'_>,
    reader: &mut Reader<'_>,
    rule: impl Fn(usize, &Value, &Place<'_>, Whose<'_>, &mut Reader<'_>) -> HttpRule,
) -> Vec<HttpRule> {
    let rules = reader.list(spec, "rules", place).iter().enumerate();
    let place = place.field("rules");
    rules
        .map(|(i, value)| rule(i, value, &place.index(i), whose, reader))
        .collect()
}

/// The backends of a route without matches: those of its first rule.
fn whole(spec: &Value, place: &Place<'_>, whose: Whose<'_>, reader: &mut Reader<'_>) -> Vec<Backend> {
    let rules = reader.list(spec, "rules", place);
    let place = place.field("rules");
    if rules.len() > 1 {
        reader.warn(
            &place,
            "RuleIgnored",
            "only the first rule counts: remove the others",
        );
    }
    let first = rules.first();
    first.map_or_else(Vec::new, |rule| {
        backends::backends(rule, &place.index(0), whose, reader)
    })
}
