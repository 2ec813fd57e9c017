//! Routes in the form in which they are asked, and where a mesh finds them.

use std::sync::Arc;

use regex::bytes::Regex;
use rustc_hash::FxHashMap;
use thiserror::Error;

use super::{
    Backend, CorsAnswer, Entry, HostMatch, HttpRoutes, PathRewrite, Redirect, RequestAuthentication,
    RequestHead, Retry, RouteAction, RouteTable, Rule, ServiceRoutes, TcpRoute, TlsRule, TrafficPolicy,
    balance,
    cors::{self, Origin},
    request::Asked,
    rewrite::{self, BadRewrite, Rewriting},
    text::{self, BadExpression},
};
use crate::mesh::{PolicyKey, ServiceKey};
use table::Table;

mod paths;
mod table;

/// What a mesh has for waypoints.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Where two are of one service, the first counts.
    pub routes: Vec<Arc<Routes>>,
    /// Where two have the same key, the first counts.
    pub authentications: Vec<Arc<RequestAuthentication>>,
    /// Services of which the routes cannot be read, whatever `routes` says of them.
    pub unreadable: Vec<ServiceKey>,
}

/// The same, by name.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// None where they cannot be read.
    routes: FxHashMap<ServiceKey, Option<Arc<Routes>>>,
    authentications: FxHashMap<PolicyKey, Arc<RequestAuthentication>>,
}

impl Index {
    pub(in crate::mesh) fn new(parts: Parts) -> Self {
        let mut index = Self::default();
        for service in parts.unreadable {
            index.routes.insert(service, None);
        }
        for routes in parts.routes {
            let service = routes.values().service.clone();
            index.routes.entry(service).or_insert(Some(routes));
        }
        for it in parts.authentications {
            index.authentications.entry(it.key.clone()).or_insert(it);
        }
        index
    }

    pub(in crate::mesh) fn routes(
        &self,
        service: &ServiceKey,
    ) -> Result<Option<&Arc<Routes>>, UnreadableRoutes> {
        match self.routes.get(service) {
            Some(Some(routes)) => Ok(Some(routes)),
            Some(None) => Err(UnreadableRoutes),
            None => Ok(None),
        }
    }

    /// The policies of every service.
    pub(in crate::mesh) fn policies(&self) -> impl Iterator<Item = &[PolicyKey]> {
        let routes = self.routes.values().flatten();
        routes.map(|routes| routes.values().policies.as_slice())
    }

    pub(in crate::mesh) fn authentications(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.authentications.values()
    }

    pub(in crate::mesh) fn authentication(&self, key: &PolicyKey) -> Option<&Arc<RequestAuthentication>> {
        self.authentications.get(key)
    }
}

/// The routes of one service, indexed. Made once, when they arrive.
#[derive(Debug)]
pub struct Routes {
    values: ServiceRoutes,
    http: FxHashMap<u16, Port>,
}

/// Requests to one port.
#[derive(Debug)]
struct Port {
    producer: Option<Table>,
    consumers: FxHashMap<Arc<str>, Table>,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision<'a> {
    /// There are no routes: it is passed on as it was asked for.
    Unrouted,
    /// A rule says.
    Rule(Matched<'a>),
    /// There are routes, and none is for it: 404.
    NotFound,
}

/// What becomes of TLS that is passed through.
#[derive(Debug)]
pub enum TlsDecision<'a> {
    /// There are no routes: it is passed on as it was asked for.
    Unrouted,
    /// A rule says.
    Rule(&'a TlsRule),
    /// There are routes, and none is for it: it is refused.
    NotFound,
}

impl Routes {
    /// Indexes them.
    ///
    /// # Errors
    /// Where they contradict themselves, or an expression is none.
    pub fn new(values: ServiceRoutes) -> Result<Self, RoutesError> {
        let ports = values.http.iter();
        let ports = ports.map(|(port, routes)| Ok((*port, Port::new(routes)?)));
        let http = ports.collect::<Result<_, _>>()?;
        Ok(Self { values, http })
    }

    /// As they came.
    pub fn values(&self) -> &ServiceRoutes {
        &self.values
    }

    /// What becomes of a request to a port of the service.
    pub fn decide<'a>(&'a self, port: u16, head: &RequestHead<'_>) -> Decision<'a> {
        let (Some(routes), Some(indexed)) = (self.values.http.get(&port), self.http.get(&port)) else {
            return Decision::Unrouted;
        };
        let namespace = head.source_namespace.unwrap_or_default();
        let consumer = routes
            .consumers
            .get(namespace)
            .zip(indexed.consumers.get(namespace));
        let producer = || routes.producer.as_ref().zip(indexed.producer.as_ref());
        let Some((table, indexed)) = consumer.or_else(producer) else {
            return Decision::Unrouted;
        };
        let found = indexed.find(&Asked::new(head));
        let matched = found.and_then(|entry| Matched::new(table, indexed, entry));
        matched.map_or(Decision::NotFound, Decision::Rule)
    }

    /// What becomes of TLS to a port of the service, by the name that the client asks for.
    pub fn tls(&self, port: u16, sni: Option<&str>) -> TlsDecision<'_> {
        let Some(rules) = self.values.tls.get(&port) else {
            return TlsDecision::Unrouted;
        };
        let name = sni.map(super::host_of);
        let is = |rule: &&TlsRule| {
            let named = |name: &str| rule.hosts.iter().any(|host| host.matches(name));
            rule.hosts.is_empty() || named(name.as_deref().unwrap_or_default())
        };
        rules
            .iter()
            .find(is)
            .map_or(TlsDecision::NotFound, TlsDecision::Rule)
    }

    /// What becomes of any other connection to a port of the service. None: it is passed on as it was asked for.
    pub fn tcp(&self, port: u16) -> Option<&TcpRoute> {
        self.values.tcp.get(&port)
    }

    /// How endpoints of the service, or of a subset, are chosen and used. None: there is no such subset, which is
    /// answered with 503.
    pub fn traffic(&self, port: u16, subset: Option<&str>) -> Option<&TrafficPolicy> {
        let traffic = &self.values.traffic;
        let Some(subset) = subset else {
            return Some(traffic.ports.get(&port).unwrap_or(&traffic.policy));
        };
        let subset = traffic.subsets.get(subset)?;
        Some(subset.ports.get(&port).unwrap_or(&subset.policy))
    }
}

impl Port {
    fn new(routes: &HttpRoutes) -> Result<Self, RoutesError> {
        let consumers = routes.consumers.iter();
        let consumers = consumers.map(|(namespace, table)| Ok((namespace.clone(), Table::new(table)?)));
        Ok(Self {
            producer: routes.producer.as_ref().map(Table::new).transpose()?,
            consumers: consumers.collect::<Result<_, _>>()?,
        })
    }
}

/// What of a rule is prepared.
#[derive(Debug)]
struct Prepared {
    rewrite: Option<Regex>,
    redirect: Option<Regex>,
    origins: Vec<Origin>,
    retry: Retry,
}

impl Prepared {
    fn new(rule: &Rule) -> Result<Self, BadExpression> {
        let redirect = match &rule.action {
            RouteAction::Redirect(redirect) => redirect.path.as_ref(),
            RouteAction::Forward(_) | RouteAction::Respond(_) => None,
        };
        let origins = rule.cors.iter().flat_map(|cors| &cors.allow_origins);
        Ok(Self {
            rewrite: expression(rule.rewrite.path.as_ref())?,
            redirect: expression(redirect)?,
            origins: origins.map(Origin::new).collect::<Result<_, _>>()?,
            retry: rule.retry.clone().unwrap_or_else(Retry::standard),
        })
    }
}

fn expression(path: Option<&PathRewrite>) -> Result<Option<Regex>, BadExpression> {
    match path {
        Some(PathRewrite::Regex { matches, .. }) => text::anywhere(matches).map(Some),
        Some(PathRewrite::Full(_) | PathRewrite::Prefix(_)) | None => Ok(None),
    }
}

/// The rule that a request falls under, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    entry: &'a Entry,
    rule: &'a Rule,
    prepared: &'a Prepared,
}

impl<'a> Matched<'a> {
    fn new(table: &'a RouteTable, indexed: &'a Table, entry: usize) -> Option<Self> {
        let entry = table.entries.get(entry)?;
        Some(Self {
            entry,
            rule: table.rules.get(entry.rule)?,
            prepared: indexed.prepared(entry.rule)?,
        })
    }

    /// The rule.
    pub fn rule(&self) -> &'a Rule {
        self.rule
    }

    /// Who it is sent to; none where the rule sends to nobody, or nobody has a weight: 500.
    pub fn backend(&self, draw: u64) -> Option<&'a Backend> {
        match &self.rule.action {
            RouteAction::Forward(backends) => balance::weighted(backends, draw),
            RouteAction::Redirect(_) | RouteAction::Respond(_) => None,
        }
    }

    /// The path *and query* that are sent on; none where they stay as they were asked for.
    ///
    /// # Errors
    /// The outcome cannot be sent.
    pub fn rewritten_path(&self, head: &RequestHead<'_>) -> Result<Option<String>, BadRewrite> {
        let rewriting = self.rewriting(self.rule.rewrite.path.as_ref(), self.prepared.rewrite.as_ref());
        rewriting.map(|it| rewrite::path_and_query(&it, head)).transpose()
    }

    /// Where a redirect of the rule leads to. `port` is the service's port that was asked.
    pub fn location(&self, redirect: &Redirect, head: &RequestHead<'_>, port: u16) -> String {
        let regex = self.prepared.redirect.as_ref();
        let rewriting = redirect.path.as_ref().map(|to| Rewriting {
            to,
            regex,
            matched: self.entry.test.path.as_ref(),
        });
        rewrite::location(redirect, rewriting.as_ref(), head, port)
    }

    /// What is said to a browser that asks for another origin.
    pub fn cors(&self, head: &RequestHead<'_>) -> CorsAnswer {
        let cors = self.rule.cors.as_ref();
        cors.map_or(CorsAnswer::Nothing, |it| {
            cors::answer(it, &self.prepared.origins, head)
        })
    }

    /// What is tried again: as the rule says, or [`Retry::standard`].
    pub fn retry(&self) -> &'a Retry {
        &self.prepared.retry
    }

    fn rewriting(&self, to: Option<&'a PathRewrite>, regex: Option<&'a Regex>) -> Option<Rewriting<'a>> {
        Some(Rewriting {
            to: to?,
            regex,
            matched: self.entry.test.path.as_ref(),
        })
    }
}

impl HostMatch {
    /// Whether it means a host, which is in lower case and without a port.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Under(end) => host.len() > end.len() && host.ends_with(&**end),
            Self::Any => true,
        }
    }
}

/// Routes that arrived and cannot be read: nobody knows what they were to refuse, so everything is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the service's routes cannot be read")]
pub struct UnreadableRoutes;

/// Those of the same values are the same.
impl PartialEq for Routes {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

/// Why routes cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RoutesError {
    /// An expression that is none, or too large.
    #[error("{rule}: `{expression}` is no expression that can be used: {why}")]
    Expression {
        /// Whose.
        rule: String,
        /// As it was written.
        expression: String,
        /// What is wrong with it.
        why: String,
    },
    /// An entry of a rule that is not there.
    #[error("an entry is of rule {0}, which is not there")]
    NoSuchRule(usize),
}

impl RoutesError {
    fn of(rule: &Rule, bad: BadExpression) -> Self {
        Self::Expression {
            rule: rule.name.to_string(),
            expression: bad.expression,
            why: bad.why,
        }
    }
}

#[cfg(test)]
mod tests;
