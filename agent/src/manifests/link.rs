//! Puts together what is said of one service, whoever says it: which route decides for whom.
//!
//! A client is judged by the routes of its own namespace for the service, where there are any, else by those of the service's
//! namespace (GAMMA's consumers and producers). Of one namespace's, routes of the Gateway API come before VirtualServices, and of
//! those the one whose host fits best, then the oldest.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Diagnostic, ObjectRef, Reader, Routings, Severity,
    gateway::{Route, Says, table},
    istio::{ExportTo, SAME_PORT, VirtualService},
    rule::{HttpRule, plain},
};
use crate::mesh::{
    AppProtocol, PolicyKey, Service,
    http::{
        Backend, Destination, DirectResponse, Entry, HostMatch, HttpRoutes, RequestTest, RouteAction,
        RouteTable, RuleName, ServiceRoutes, TcpRoute, TlsRule, Traffic,
    },
};

/// The most alternatives of one port and audience.
const MOST_ENTRIES: usize = 10_000;

/// What is said of a service besides routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bound {
    /// How its endpoints are chosen and used.
    pub traffic: Traffic,
    /// Policies that name it, its waypoint or that one's class.
    pub policies: Vec<PolicyKey>,
    /// Whose tokens are believed.
    pub authentications: Vec<PolicyKey>,
    /// Whether its endpoints expect what is not done, so that nothing may be sent to them.
    pub refused: bool,
    /// Whether a waypoint judges what is sent to it, or is it: then it is said as well that nothing is asked.
    pub judged: bool,
}

/// What one namespace says of a service.
struct Source<'r> {
    namespace: &'r str,
    /// Whether it is the service's own.
    own: bool,
    routes: Vec<&'r Route>,
    virtual_service: Option<&'r VirtualService>,
}

/// Everything that a waypoint does with what is sent to a service; none where nothing is said and no waypoint waits for it.
pub fn link<'r>(
    service: &Service,
    all: impl IntoIterator<Item = (&'r str, &'r Routings)>,
    bound: Bound,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<ServiceRoutes> {
    let mut tell = Tell { service, diagnostics };
    let sources = all
        .into_iter()
        .map(|(namespace, routings)| source(namespace, routings, &mut tell));
    let sources: Vec<_> = sources
        .filter(|it| !it.routes.is_empty() || it.virtual_service.is_some())
        .collect();
    sources.iter().for_each(|source| tell.unenforced(source));
    let mut routes = ServiceRoutes {
        service: service.key.clone(),
        http: BTreeMap::new(),
        tls: BTreeMap::new(),
        tcp: BTreeMap::new(),
        traffic: bound.traffic,
        policies: bound.policies,
        authentications: bound.authentications,
    };
    for port in service.ports.iter().map(|it| it.service_port) {
        if bound.refused {
            refuse(port, &mut routes);
            continue;
        }
        let http = http(port, &sources, &mut tell);
        if http != HttpRoutes::default() {
            routes.http.insert(port, http);
        }
        let tls = tls(port, &sources, service);
        if !tls.is_empty() {
            routes.tls.insert(port, tls);
        }
        routes
            .tcp
            .extend(tcp(port, &sources, service).map(|it| (port, it)));
    }
    let says = bound.judged
        || !routes.http.is_empty()
        || !routes.tls.is_empty()
        || !routes.tcp.is_empty()
        || routes.traffic != Traffic::default()
        || !routes.policies.is_empty()
        || !routes.authentications.is_empty();
    says.then_some(routes)
}

/// What is wrong with objects that say something of a service.
struct Tell<'s, 'd> {
    service: &'s Service,
    diagnostics: &'d mut Vec<Diagnostic>,
}

impl Tell<'_, '_> {
    fn tell(&mut self, object: &ObjectRef, severity: Severity, reason: &'static str, message: String) {
        Reader::new(object.clone(), self.diagnostics).tell(severity, reason, message);
    }

    /// Says what nobody does: without a waypoint, or because only connections of any client can be told apart.
    fn unenforced(&mut self, source: &Source<'_>) {
        let of_connections = |route: &&&Route| !matches!(route.says, Says::Http(_));
        let mut ignored: Vec<_> = source
            .routes
            .iter()
            .filter(of_connections)
            .map(|it| &it.object)
            .collect();
        let passed = |it: &&VirtualService| !it.tcp.is_empty() || !it.tls.is_empty();
        ignored.extend(source.virtual_service.filter(passed).map(|it| &it.object));
        let key = &self.service.key;
        for object in ignored.into_iter().filter(|_| !source.own) {
            let message = format!(
                "routes of connections count only in the service's own namespace, so that they are ignored for {key}: \
                 write them there"
            );
            self.tell(object, Severity::Warning, "ConsumerIgnored", message);
        }
        if self.service.waypoint.is_some() {
            return;
        }
        let exact = |it: &&VirtualService| it.hosts.contains(&HostMatch::Exact(key.hostname.clone()));
        let named = source.virtual_service.filter(exact).map(|it| &it.object);
        let objects: Vec<_> = source.routes.iter().map(|it| &it.object).chain(named).collect();
        for object in objects {
            let message = format!(
                "{key} has no waypoint, so that nobody does what is said of it here: label it istio.io/use-waypoint"
            );
            self.tell(object, Severity::Warning, "NoWaypoint", message);
        }
    }
}

fn source<'r>(namespace: &'r str, routings: &'r Routings, tell: &mut Tell<'_, '_>) -> Source<'r> {
    let key = &tell.service.key;
    let is_for = |route: &&Route| route.parents.iter().any(|parent| parent.service == *key);
    Source {
        namespace,
        own: *namespace == *key.namespace,
        routes: routings.routes.iter().filter(is_for).collect(),
        virtual_service: virtual_service(namespace, routings, tell),
    }
}

/// The one of a namespace that counts for a service.
fn virtual_service<'r>(
    namespace: &str,
    routings: &'r Routings,
    tell: &mut Tell<'_, '_>,
) -> Option<&'r VirtualService> {
    let key = tell.service.key.clone();
    let own = *namespace == *key.namespace;
    let seen = |it: &&VirtualService| own || it.export_to.contains(namespace);
    let all = routings.virtual_services.iter().filter(seen);
    let mut fits: Vec<_> = all
        .filter_map(|it| Some((it.fits(&key.hostname)?, it.since, &*it.object.name, it)))
        .collect();
    fits.sort_by(|(a, b, c, _), (d, e, f, _)| (a, b, c).cmp(&(d, e, f)));
    let mut fits = fits.into_iter();
    let (fit, _, name, first) = fits.next()?;
    // One that fits worse is meant to be outdone.
    for (_, _, _, it) in fits.filter(|(its, ..)| *its == fit) {
        let message = format!(
            "spec.hosts: VirtualService {namespace}/{name} is about {} too and older, so that it counts: put both into one",
            key.hostname
        );
        tell.tell(&it.object, Severity::Warning, "Shadowed", message);
    }
    Some(first)
}

fn http(port: u16, sources: &[Source<'_>], tell: &mut Tell<'_, '_>) -> HttpRoutes {
    let protocol = tell.service.app_protocols.get(&port);
    let is_http = !matches!(protocol, Some(AppProtocol::Tcp | AppProtocol::Tls));
    let mut all = HttpRoutes::default();
    let mut left = Vec::new();
    for source in sources {
        let routes = gateway_rules(port, is_http, source, tell);
        let virtual_service = source.virtual_service.filter(|it| is_http && !it.http.is_empty());
        if routes.is_empty() {
            left.extend(virtual_service.map(|it| (source, it)));
            continue;
        }
        if let Some(shadowed) = virtual_service {
            let message = format!(
                "spec.http: routes of the Gateway API come first for port {port} of {}: remove one of the two",
                tell.service.key
            );
            tell.tell(&shadowed.object, Severity::Warning, "ShadowedByRoute", message);
        }
        let mut table = table(&routes);
        bounded(&mut table, &routes[0].0.object, tell);
        match source.own {
            true => all.producer = Some(table),
            false => {
                all.consumers.insert(source.namespace.into(), table);
            }
        }
    }
    for (source, virtual_service) in left {
        let mut table = written(port, &virtual_service.http);
        bounded(&mut table, &virtual_service.object, tell);
        if !table.entries.is_empty() {
            insert(table, source, virtual_service, &mut all);
        }
    }
    all
}

/// For those that it is for and that have none of their own.
fn insert(table: RouteTable, source: &Source<'_>, it: &VirtualService, all: &mut HttpRoutes) {
    match (&it.export_to, source.own) {
        (ExportTo::All, true) => all.producer = Some(table),
        (ExportTo::These(namespaces), true) => {
            for namespace in namespaces {
                let consumer = all.consumers.entry(namespace.clone());
                consumer.or_insert_with(|| table.clone());
            }
        }
        (_, false) => {
            all.consumers.insert(source.namespace.into(), table);
        }
    }
}

fn gateway_rules<'r>(
    port: u16,
    is_http: bool,
    source: &Source<'r>,
    tell: &mut Tell<'_, '_>,
) -> Vec<(&'r Route, &'r [HttpRule])> {
    let mut rules = Vec::new();
    for route in &source.routes {
        let Says::Http(its) = &route.says else { continue };
        let here = on_port(route, port, is_http, tell.service);
        if here {
            rules.push((*route, &its[..]));
        }
        if here && !is_http {
            let message = format!(
                "port {port} of {} is declared not to speak HTTP, so that this is asked only where it does",
                tell.service.key
            );
            tell.tell(&route.object, Severity::Warning, "NotHttp", message);
        }
    }
    rules
}

/// Whether a route is for a port: by its number, or as one of all that speak what it is about.
fn on_port(route: &Route, port: u16, speaks: bool, service: &Service) -> bool {
    let mut parents = route
        .parents
        .iter()
        .filter(|parent| parent.service == service.key);
    parents.any(|parent| parent.port.map_or(speaks, |its| its == port))
}

/// A VirtualService's rules on one port, in the order in which they are written.
fn written(port: u16, rules: &[HttpRule]) -> RouteTable {
    let mut table = RouteTable::default();
    for rule in rules {
        let here = rule
            .alternatives
            .iter()
            .filter(|it| it.port.is_none_or(|its| its == port));
        let tests: Vec<_> = here.map(|it| it.test.clone()).collect();
        if tests.is_empty() {
            continue;
        }
        let at = table.rules.len();
        let mut rule = rule.rule.clone();
        if let RouteAction::Forward(backends) = &mut rule.action {
            on_same_port(backends, port);
        }
        let to = rule.mirrors.iter_mut().map(|it| &mut it.to);
        to.for_each(|to| same_port(to, port));
        table.rules.push(rule);
        table
            .entries
            .extend(tests.into_iter().map(|test| Entry { test, rule: at }));
    }
    table
}

fn on_same_port(backends: &mut [Backend], port: u16) {
    backends.iter_mut().for_each(|it| same_port(&mut it.to, port));
}

fn same_port(to: &mut Destination, asked: u16) {
    if let Destination::Service { port, .. } = to
        && *port == SAME_PORT
    {
        *port = asked;
    }
}

/// What is more than anybody can want is cut off: requests for it are answered with 404.
fn bounded(table: &mut RouteTable, object: &ObjectRef, tell: &mut Tell<'_, '_>) {
    if table.entries.len() > MOST_ENTRIES {
        table.entries.truncate(MOST_ENTRIES);
        let message = format!(
            "{} has more than {MOST_ENTRIES} matches on one port: those that come last are left out",
            tell.service.key
        );
        tell.tell(object, Severity::Error, "TooMany", message);
    }
}

fn tls(port: u16, sources: &[Source<'_>], service: &Service) -> Vec<TlsRule> {
    let speaks = matches!(service.app_protocols.get(&port), None | Some(AppProtocol::Tls));
    let mut rules = Vec::new();
    for source in sources.iter().filter(|source| source.own) {
        for route in &source.routes {
            let Says::Tls(hosts, backends) = &route.says else {
                continue;
            };
            if !on_port(route, port, speaks, service) {
                continue;
            }
            let any = [HostMatch::Any];
            let hosts = if hosts.is_empty() { &any[..] } else { hosts };
            for host in hosts {
                let age = (route.since, &route.object.name);
                let rule = TlsRule {
                    name: name_of(&route.object),
                    hosts: vec![host.clone()],
                    backends: backends.clone(),
                };
                rules.push((std::cmp::Reverse(specific(host)), age, rule));
            }
        }
    }
    rules.sort_by(|(a, b, _), (c, d, _)| (a, b).cmp(&(c, d)));
    let mut rules: Vec<_> = rules.into_iter().map(|(_, _, rule)| rule).collect();
    let written = sources
        .iter()
        .filter(|it| it.own && speaks)
        .filter_map(|it| it.virtual_service);
    for (only, rule) in written.flat_map(|it| &it.tls) {
        if only.is_none_or(|only| only == port) {
            let mut rule = rule.clone();
            on_same_port(&mut rule.backends, port);
            rules.push(rule);
        }
    }
    rules
}

fn specific(host: &HostMatch) -> usize {
    match host {
        HostMatch::Exact(_) => usize::MAX,
        HostMatch::Under(under) => under.len(),
        HostMatch::Any => 0,
    }
}

fn tcp(port: u16, sources: &[Source<'_>], service: &Service) -> Option<TcpRoute> {
    let speaks = matches!(
        service.app_protocols.get(&port),
        None | Some(AppProtocol::Tcp | AppProtocol::Tls)
    );
    let own = sources.iter().find(|source| source.own)?;
    let mut routes: Vec<_> = own.routes.iter().collect();
    routes.sort_by_key(|route| (route.since, &route.object.name));
    let route = routes.into_iter().find_map(|route| match &route.says {
        Says::Tcp(backends) if on_port(route, port, speaks, service) => Some(TcpRoute {
            name: name_of(&route.object),
            backends: backends.clone(),
        }),
        _ => None,
    });
    if route.is_some() || !speaks {
        return route;
    }
    let mut written = own.virtual_service?.tcp.iter();
    let (_, route) = written.find(|(only, _)| only.is_none_or(|only| only == port))?;
    let mut route = route.clone();
    on_same_port(&mut route.backends, port);
    Some(route)
}

fn name_of(object: &ObjectRef) -> RuleName {
    RuleName(object.to_string().into())
}

/// Sends nothing to a port.
fn refuse(port: u16, routes: &mut ServiceRoutes) {
    let why: Arc<str> = "its endpoints expect TLS that is not done here".into();
    let name = RuleName("DestinationRule tls".into());
    let respond = RouteAction::Respond(DirectResponse {
        status: 503,
        body: why.clone(),
    });
    let table = RouteTable {
        entries: vec![Entry {
            test: RequestTest::default(),
            rule: 0,
        }],
        rules: vec![plain(name.clone(), respond)],
    };
    let http = HttpRoutes {
        producer: Some(table),
        consumers: BTreeMap::new(),
    };
    routes.http.insert(port, http);
    let backends = vec![Backend {
        to: Destination::Nowhere(why),
        weight: 1,
        request_headers: Default::default(),
        response_headers: Default::default(),
    }];
    routes.tcp.insert(port, TcpRoute { name, backends });
}
