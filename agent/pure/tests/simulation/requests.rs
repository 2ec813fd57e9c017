//! Requests through a waypoint: the routes and policies of the world that are about them, and the questions.

use http::{HeaderMap, HeaderValue, Method};
use std::sync::Arc;
use weft_pure::mesh::{
    Mesh, PolicyKey, ServiceKey, StringMatch, authorize_request, authorize_service,
    http::{
        Condition, ConditionKey, Decision, DirectResponse, Entry, HeaderChanges, HostMatch, HttpRoutes,
        PathMatch, PathPattern, RequestFacts, RequestHead, RequestMatch, RequestTest, Rewrite, RouteAction,
        RouteTable, Routes, Rule, RuleName, ServiceRoutes, TextMatch, Timeouts, Token, Traffic,
    },
};

use crate::{
    ask,
    draw::Draw,
    oracle::requests as oracle,
    world::{NAMESPACES, World, policy_key},
};

const PORTS: [u16; 2] = [80, 81];
const PATHS: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/A/b", "/b"];
const HOSTS: [&str; 6] = ["x", "a.x", "B.a.x", "a.x:80", "x.", "y"];
const METHODS: [&str; 2] = ["GET", "PUT"];
const PRINCIPALS: [&str; 2] = ["https://issuer/a", "https://issuer/b"];
const MOST_ENTRIES: usize = 14;

/// As few words as say all that the world's routes and policies look at.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) authority: &'static str,
    pub(crate) path: &'static str,
    pub(crate) namespace: &'static str,
    pub(crate) principal: Option<&'static str>,
    /// Of `x`.
    pub(crate) header: Option<&'static str>,
}

impl Request {
    fn new(draw: &mut Draw) -> Self {
        Self {
            method: *draw.pick::<&str>(&METHODS),
            authority: *draw.pick::<&str>(&HOSTS),
            path: *draw.pick::<&str>(&PATHS),
            namespace: *draw.pick::<&str>(&NAMESPACES),
            principal: draw.some(60, &PRINCIPALS).pop(),
            header: draw.some(60, &["1", "2"]).pop(),
        }
    }

    fn ask<T>(&self, question: impl FnOnce(&RequestFacts<'_>) -> T) -> T {
        let method: Method = self.method.parse().expect("a method");
        let mut headers = HeaderMap::new();
        if let Some(value) = self.header {
            headers.insert("x", HeaderValue::from_static(value));
        }
        let token = self.principal.map(|principal| Token {
            principal: principal.into(),
            ..Token::default()
        });
        let head = RequestHead {
            method: &method,
            path: self.path,
            query: None,
            authority: self.authority,
            scheme: "http",
            headers: &headers,
            source_namespace: Some(self.namespace),
        };
        question(&RequestFacts {
            head: &head,
            token: token.as_ref(),
            sni: None,
        })
    }
}

pub(crate) fn change_routes(world: &mut World, draw: &mut Draw) {
    let Some(service) = world.service(draw).map(|service| service.key.clone()) else {
        return;
    };
    world
        .parts
        .http
        .routes
        .retain(|routes| routes.values().service != service);
    if draw.percent(80) {
        // Now and then one that is not there.
        let there = world.parts.policies.iter().map(|policy| policy.key.clone());
        let known: Vec<_> = there.chain([policy_key(draw, "demo")]).collect();
        let policies = draw.some(60, &known);
        world.parts.http.routes.push(routes(draw, service, policies));
    }
}

/// Random routes of a service.
fn routes(draw: &mut Draw, service: ServiceKey, policies: Vec<PolicyKey>) -> Arc<Routes> {
    let http = PORTS.iter().filter_map(|port| {
        let of_port = HttpRoutes {
            producer: draw.percent(80).then(|| table(draw, "own")),
            consumers: draw
                .some(30, &NAMESPACES)
                .into_iter()
                .map(|namespace| (namespace.into(), table(draw, namespace)))
                .collect(),
        };
        draw.percent(80).then_some((*port, of_port))
    });
    let values = ServiceRoutes {
        service,
        http: http.collect(),
        tls: Default::default(),
        tcp: Default::default(),
        traffic: Traffic::default(),
        policies,
        authentications: Vec::new(),
    };
    Arc::new(Routes::new(values).expect("routes that can be used"))
}

fn table(draw: &mut Draw, of: &str) -> RouteTable {
    let rules = draw.of(1..4);
    let rule = |number| Rule {
        name: RuleName(format!("{of} {number}").into()),
        cors: None,
        fault: None,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
        rewrite: Rewrite::default(),
        action: RouteAction::Respond(DirectResponse {
            status: 200,
            body: "".into(),
        }),
        mirrors: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let entries = (0..draw.of(0..MOST_ENTRIES)).map(|_| Entry {
        test: test(draw),
        rule: draw.of(0..rules),
    });
    RouteTable {
        entries: entries.collect(),
        rules: (0..rules).map(rule).collect(),
    }
}

fn test(draw: &mut Draw) -> RequestTest {
    let hosts = ["x", "a.x", "b.a.x"].map(|host| HostMatch::Exact(host.into()));
    let under = [".x", ".a.x"].map(|host| HostMatch::Under(host.into()));
    let hosts = [&hosts[..], &under[..], &[HostMatch::Any]].concat();
    let text: Arc<str> = (*draw.pick(&PATHS)).into();
    let lower: Arc<str> = text.to_lowercase().into();
    let under = if text.len() > 1 {
        text.trim_end_matches('/')
    } else {
        &text
    };
    let paths = [
        PathMatch::Exact(text.clone()),
        PathMatch::Under(under.into()),
        PathMatch::Prefix(text.clone()),
        PathMatch::ExactIgnoringCase(lower.clone()),
        PathMatch::PrefixIgnoringCase(lower),
        PathMatch::Regex("/a/.*".into()),
    ];
    let method = draw.some(20, &METHODS).pop();
    RequestTest {
        hosts: draw.some(50, &hosts),
        path: draw.some(80, &paths).pop(),
        method: method.map(|method| TextMatch::Exact(method.into())),
        ..RequestTest::default()
    }
}

/// What only a request has, at random; few fields, or nothing would ever match.
pub(crate) fn match_(draw: &mut Draw) -> RequestMatch {
    const SAID: u64 = 25;
    let texts = patterns(&["/a", "/b", "/"]).into_iter().map(PathPattern::Text);
    let paths: Vec<_> = texts.chain([PathPattern::Template("/a/{*}".into())]).collect();
    let nets = ["10.0.0.0/8", "10.0.0.1/32", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let (methods, hosts) = (patterns(&["GET", "P"]), patterns(&["x", "a.x", ".x"]));
    let (principals, headers) = (patterns(&["https://issuer/a", "/b"]), patterns(&["1", "2"]));
    let mut when = Vec::new();
    for (key, values) in [
        (ConditionKey::Header("x".into()), &headers),
        (ConditionKey::Principal, &principals),
    ] {
        let (values, not_values) = (draw.some(SAID, values), draw.some(SAID, values));
        if !values.is_empty() || !not_values.is_empty() {
            when.push(Condition {
                key,
                values,
                not_values,
            });
        }
    }
    RequestMatch {
        hosts: draw.some(SAID, &hosts),
        not_hosts: draw.some(SAID, &hosts),
        methods: draw.some(SAID, &methods),
        not_methods: draw.some(SAID, &methods),
        paths: draw.some(SAID, &paths),
        not_paths: draw.some(SAID, &paths),
        request_principals: draw.some(SAID, &principals),
        not_request_principals: draw.some(SAID, &principals),
        remote_ips: draw.some(SAID, &nets),
        not_remote_ips: draw.some(SAID, &nets),
        when,
    }
}

/// One that has routes; none where there is no such service.
fn routed<'a>(world: &'a World, draw: &mut Draw) -> Option<&'a ServiceRoutes> {
    let routes = &world.parts.http.routes;
    (!routes.is_empty()).then(|| draw.pick(routes).values())
}

/// Which rule a request falls under.
///
/// # Errors
/// What is wrong.
pub(crate) fn which_rule(world: &World, mesh: &Mesh, draw: &mut Draw) -> Result<(), String> {
    let Some(values) = routed(world, draw) else {
        return Ok(());
    };
    let (port, request) = (*draw.pick(&PORTS), Request::new(draw));
    let routes = mesh.http_routes(&values.service).ok().flatten();
    let routes = routes.ok_or("the routes of a service are not there")?;
    let found = request.ask(|facts| match routes.decide(port, facts.head) {
        Decision::Unrouted => "unrouted".to_owned(),
        Decision::Rule(matched) => matched.rule().name.to_string(),
        Decision::NotFound => "404".to_owned(),
    });
    let expect = oracle::rule(values, port, &request);
    match found == expect {
        true => Ok(()),
        false => Err(format!(
            "{request:?} to port {port} of {}: {found}, but it is {expect}",
            values.service
        )),
    }
}

/// Whether a request may reach a service, and a workload.
///
/// # Errors
/// What is wrong.
pub(crate) fn whether(world: &World, mesh: &Mesh, draw: &mut Draw) -> Result<(), String> {
    let (request, conn) = (Request::new(draw), ask::inbound(world, mesh, draw));
    let fault =
        |who: &dyn std::fmt::Display, what: String| format!("{request:?}\n{conn:?}\nto {who}: {what}");
    if let Some(values) = routed(world, draw) {
        let verdict = request.ask(|facts| authorize_service(mesh, &values.policies, &conn, facts));
        let expect = oracle::of_service(world, &values.policies, &conn, &request);
        ask::compare(&verdict, &expect).map_err(|what| fault(&values.service, what))?;
    }
    let Some(workload) = ask::workload(world, mesh, draw) else {
        return Ok(());
    };
    let verdict = request.ask(|facts| authorize_request(mesh, workload, &conn, facts));
    let expect = oracle::of_workload(world, workload, &conn, &request);
    ask::compare(&verdict, &expect).map_err(|what| fault(&workload.uid, what))
}

/// Each as a whole, as a beginning and as an end; and any.
pub(crate) fn patterns(texts: &[&str]) -> Vec<StringMatch> {
    let exact = texts.iter().map(|text| StringMatch::Exact((*text).into()));
    let prefix = texts.iter().map(|text| StringMatch::Prefix((*text).into()));
    let suffix = texts.iter().map(|text| StringMatch::Suffix((*text).into()));
    exact
        .chain(prefix)
        .chain(suffix)
        .chain([StringMatch::Presence])
        .collect()
}
