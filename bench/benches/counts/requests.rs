//! Requests through a waypoint: routes of one service, one or a thousand of them, and policies that look at requests.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};
use weft_pure::mesh::{
    Action, Clause, Inbound, Match, Mesh, PolicyKey, Rule as PolicyRule, Scope, ServiceKey, StringMatch,
    Workload,
    http::{
        Backend, Destination, Entry, HeaderChanges, HostMatch, HttpRoutes, PathMatch, PathPattern,
        RequestFacts, RequestHead, RequestMatch, RequestTest, Rewrite, RouteAction, RouteTable, Routes, Rule,
        RuleName, ServiceRoutes, Timeouts, Token, Traffic,
    },
};

use crate::large::{self, Arrival, kept};

/// The service's port.
pub(crate) const PORT: u16 = 80;

/// A question to `decide`.
pub(crate) struct Request {
    pub(crate) routes: Routes,
    pub(crate) head: RequestHead<'static>,
}

/// A question to `authorize_service` or `authorize_request`.
pub(crate) struct Asked {
    pub(crate) mesh: &'static Mesh,
    pub(crate) workload: &'static Workload,
    pub(crate) policies: Vec<PolicyKey>,
    pub(crate) conn: &'static Inbound,
    pub(crate) facts: RequestFacts<'static>,
}

fn head(path: &'static str) -> RequestHead<'static> {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("user-agent", "curl/8.14.1"),
        ("accept", "application/json"),
        ("x-request-id", "6f1c2d34-0000-4000-8000-000000000000"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    RequestHead {
        method: kept(Method::GET),
        path,
        query: Some("page=2"),
        authority: "shop.demo.svc.cluster.local:80",
        scheme: "http",
        headers: kept(headers),
        source_namespace: Some("client"),
    }
}

fn rule(number: usize) -> Rule {
    let backend = |weight| Backend {
        to: Destination::Service {
            service: service(),
            port: PORT,
            subset: None,
        },
        weight,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    };
    Rule {
        name: RuleName(format!("HTTPRoute demo/shop rule {number}").into()),
        cors: None,
        fault: None,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
        rewrite: Rewrite::default(),
        action: RouteAction::Forward(vec![backend(90), backend(10)]),
        mirrors: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    }
}

fn service() -> ServiceKey {
    ServiceKey {
        namespace: "demo".into(),
        hostname: "shop.demo.svc.cluster.local".into(),
    }
}

/// The request is for the last.
fn request(tests: Vec<RequestTest>, path: &'static str) -> &'static Request {
    let rules = (0..tests.len()).map(rule).collect();
    let entries = tests.into_iter().enumerate();
    let entries = entries.map(|(rule, test)| Entry { test, rule }).collect();
    let table = RouteTable { entries, rules };
    let routes = routes(Some(table), Vec::new());
    let head = head(path);
    kept(Request { routes, head })
}

fn routes(producer: Option<RouteTable>, policies: Vec<PolicyKey>) -> Routes {
    let of_port = HttpRoutes {
        producer,
        consumers: Default::default(),
    };
    let values = ServiceRoutes {
        service: service(),
        http: [(PORT, of_port)].into(),
        tls: Default::default(),
        tcp: Default::default(),
        traffic: Traffic::default(),
        policies,
        authentications: Vec::new(),
    };
    Routes::new(values).expect("routes that can be used")
}

fn of_path(path: impl Fn(usize) -> PathMatch, count: usize) -> Vec<RequestTest> {
    let test = |number| RequestTest {
        path: Some(path(number)),
        ..RequestTest::default()
    };
    (1000 - count..1000).map(test).collect()
}

fn under(number: usize) -> PathMatch {
    PathMatch::Under(format!("/api/v1/route-{number:04}").into())
}

fn exact(number: usize) -> PathMatch {
    PathMatch::Exact(format!("/api/v1/route-{number:04}/items/17").into())
}

fn prefix(number: usize) -> PathMatch {
    PathMatch::Prefix(format!("/api/v1/route-{number:04}").into())
}

const PATH: &str = "/api/v1/route-0999/items/17";

pub(crate) fn one_path() -> &'static Request {
    request(of_path(under, 1), PATH)
}

pub(crate) fn a_thousand_paths() -> &'static Request {
    request(of_path(under, 1000), PATH)
}

pub(crate) fn one_exact_path() -> &'static Request {
    request(of_path(exact, 1), PATH)
}

pub(crate) fn a_thousand_exact_paths() -> &'static Request {
    request(of_path(exact, 1000), PATH)
}

pub(crate) fn one_beginning() -> &'static Request {
    request(of_path(prefix, 1), PATH)
}

pub(crate) fn a_thousand_beginnings() -> &'static Request {
    request(of_path(prefix, 1000), PATH)
}

/// Each host has one route; the last is the service's own.
fn of_hosts(count: usize) -> &'static Request {
    let mut tests = of_path(|_| PathMatch::Under("/".into()), count);
    for (number, test) in tests.iter_mut().enumerate() {
        let own = number + 1 == count;
        let other = format!("host-{number:04}.example.com");
        let host = if own {
            "shop.demo.svc.cluster.local".into()
        } else {
            other.into()
        };
        test.hosts = vec![HostMatch::Exact(host)];
    }
    request(tests, PATH)
}

pub(crate) fn one_host() -> &'static Request {
    of_hosts(1)
}

pub(crate) fn a_thousand_hosts() -> &'static Request {
    of_hosts(1000)
}

fn facts() -> RequestFacts<'static> {
    let token = Token {
        principal: "https://issuer.example/alice".into(),
        ..Token::default()
    };
    RequestFacts {
        head: kept(head(PATH)),
        token: Some(kept(token)),
        sni: None,
    }
}

/// A pod's connection in the large mesh, as a request.
pub(crate) fn to_workload(arrival: &'static Arrival) -> &'static Asked {
    kept(Asked {
        mesh: &arrival.mesh,
        workload: &arrival.workload,
        policies: Vec::new(),
        conn: &arrival.conn,
        facts: facts(),
    })
}

/// Ten policies of a service that look at requests: seven DENY by path, two ALLOW by path and one, which holds, by the token.
pub(crate) fn to_service() -> &'static Asked {
    let key = |number| PolicyKey {
        namespace: "demo".into(),
        name: format!("l7-{number}").into(),
    };
    let keys: Vec<_> = (0..10).map(key).collect();
    let arrival = large::arrival_with(|parts| {
        parts
            .policies
            .extend((0..10).map(|number| l7_policy(key(number), number)));
        parts.http.routes = vec![Arc::new(routes(None, keys.clone()))];
    });
    kept(Asked {
        mesh: &arrival.mesh,
        workload: &arrival.workload,
        policies: keys,
        conn: &arrival.conn,
        facts: facts(),
    })
}

fn l7_policy(key: PolicyKey, number: u8) -> weft_pure::mesh::Policy {
    let path = format!("/admin-{number}/").into();
    let paths = vec![PathPattern::Text(StringMatch::Prefix(path))];
    let principal = StringMatch::Prefix("https://issuer.example/".into());
    let request = match number {
        9 => RequestMatch {
            request_principals: vec![principal],
            ..RequestMatch::default()
        },
        _ => RequestMatch {
            paths,
            ..RequestMatch::default()
        },
    };
    let match_ = Match {
        unseen: vec!["paths".into()],
        request: Some(Arc::new(request)),
        ..Match::default()
    };
    weft_pure::mesh::Policy {
        key,
        scope: Scope::Selector,
        action: if number < 7 { Action::Deny } else { Action::Allow },
        rules: vec![PolicyRule {
            clauses: vec![Clause {
                matches: vec![match_],
            }],
        }],
        dry_run: false,
    }
}

/// Headers, and two set, one added, one removed.
pub(crate) fn headers() -> (HeaderMap, &'static HeaderChanges) {
    let pair = |(name, value): (&str, &str)| (name.into(), value.into());
    let changes = HeaderChanges {
        set: [("x-version", "v2"), ("user-agent", "weft")].map(pair).to_vec(),
        add: [("x-trace", "1")].map(pair).to_vec(),
        remove: vec!["accept".into()],
    };
    (head(PATH).headers.clone(), kept(changes))
}
