//! Which rule a request falls under, as tables; and the index against an oracle that looks at every entry in turn.

use http::{HeaderMap, HeaderName, Method};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::mesh::{
    ServiceKey,
    http::{
        Destination, HeaderChanges, HeaderMatch, HeaderTest, PathMatch, QueryMatch, RequestTest, RuleName,
        Subset, TextMatch, Timeouts, Traffic,
    },
};

const PORT: u16 = 80;

fn rule(name: &str) -> Rule {
    let backend = Backend {
        to: Destination::Nowhere(name.into()),
        weight: 1,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
    };
    Rule {
        name: RuleName(name.into()),
        cors: None,
        fault: None,
        request_headers: HeaderChanges::default(),
        response_headers: HeaderChanges::default(),
        rewrite: Default::default(),
        action: RouteAction::Forward(vec![backend]),
        mirrors: Vec::new(),
        timeouts: Timeouts::default(),
        retry: None,
    }
}

/// One rule for each test; their names are their numbers.
fn table(tests: impl IntoIterator<Item = RequestTest>) -> RouteTable {
    let tests = tests.into_iter().enumerate();
    let entries: Vec<_> = tests.map(|(rule, test)| Entry { test, rule }).collect();
    RouteTable {
        rules: (0..entries.len())
            .map(|number| rule(&number.to_string()))
            .collect(),
        entries,
    }
}

fn values(producer: Option<RouteTable>) -> ServiceRoutes {
    ServiceRoutes {
        service: ServiceKey {
            namespace: "demo".into(),
            hostname: "web.demo.svc.cluster.local".into(),
        },
        http: [(
            PORT,
            HttpRoutes {
                producer,
                consumers: Default::default(),
            },
        )]
        .into(),
        tls: Default::default(),
        tcp: Default::default(),
        traffic: Traffic::default(),
        policies: Vec::new(),
        authentications: Vec::new(),
    }
}

fn routes(tests: impl IntoIterator<Item = RequestTest>) -> Routes {
    Routes::new(values(Some(table(tests)))).unwrap()
}

/// A request as people write it: `GET host/path?query name:value...`.
#[derive(Clone, Debug)]
struct Request {
    method: Method,
    authority: String,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    namespace: Option<String>,
}

impl Request {
    fn new(text: &str) -> Self {
        let mut words = text.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let target = words.next().unwrap();
        let (target, query) = match target.split_once('?') {
            Some((target, query)) => (target, Some(query.to_owned())),
            None => (target, None),
        };
        let slash = target.find('/').unwrap();
        let mut headers = HeaderMap::new();
        for word in words {
            let (name, value) = word.split_once(':').unwrap();
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        Self {
            method,
            authority: target[..slash].to_owned(),
            path: target[slash..].to_owned(),
            query,
            headers,
            namespace: None,
        }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            path: &self.path,
            query: self.query.as_deref(),
            authority: &self.authority,
            scheme: "http",
            headers: &self.headers,
            source_namespace: self.namespace.as_deref(),
        }
    }
}

/// The name of the rule, `unrouted` or `404`.
fn shown(decision: &Decision<'_>) -> String {
    match decision {
        Decision::Unrouted => "unrouted".to_owned(),
        Decision::Rule(matched) => matched.rule().name.to_string(),
        Decision::NotFound => "404".to_owned(),
    }
}

/// Which requests one test holds for.
fn check(test: RequestTest, yes: &[&str], no: &[&str]) {
    let routes = routes([test.clone()]);
    for (requests, expect) in [(yes, "0"), (no, "404")] {
        for text in requests {
            let request = Request::new(text);
            let decision = routes.decide(PORT, &request.head());
            assert_eq!(shown(&decision), expect, "{text} by {test:?}");
        }
    }
}

fn exact(text: &str) -> TextMatch {
    TextMatch::Exact(text.into())
}

fn prefix(text: &str) -> TextMatch {
    TextMatch::Prefix(text.into())
}

fn regex(text: &str) -> TextMatch {
    TextMatch::Regex(text.into())
}

#[test]
fn hosts() {
    let of = |hosts: &[HostMatch]| RequestTest {
        hosts: hosts.to_vec(),
        ..RequestTest::default()
    };
    let name = |name: &str| HostMatch::Exact(name.into());
    let under = |name: &str| HostMatch::Under(name.into());
    check(of(&[]), &["GET a/", "GET /"], &[]);
    check(of(&[HostMatch::Any]), &["GET a/", "GET /"], &[]);
    check(
        of(&[name("a.b")]),
        &[
            "GET a.b/",
            "GET A.B:8080/",
            "GET a.b./",
            "GET a.b.:80/",
            "GET u@a.b/",
        ],
        &["GET x.a.b/", "GET b/", "GET a.b.c/", "GET /", "GET a.b@c/"],
    );
    check(
        of(&[under(".a.b")]),
        &["GET x.a.b/", "GET x.y.A.b:1/", "GET x.a.b./"],
        &["GET a.b/", "GET .a.b/", "GET xa.b/", "GET x.a.b.c/"],
    );
    check(
        of(&[name("[::1]"), name("c"), under(".d")]),
        &["GET [::1]:80/", "GET [::1]/", "GET c/", "GET x.d/"],
        &["GET ::1/", "GET d/"],
    );
}

#[test]
fn paths() {
    let of = |path: PathMatch| RequestTest {
        path: Some(path),
        ..RequestTest::default()
    };
    check(
        of(PathMatch::Exact("/a".into())),
        &["GET h/a", "GET h/a?b=c"],
        &["GET h/a/", "GET h/A", "GET h/ab", "GET h/"],
    );
    check(
        of(PathMatch::Exact("/%61%2f".into())),
        &["GET h/a%2F"],
        &["GET h/a/"],
    );
    check(
        of(PathMatch::Under("/a".into())),
        &["GET h/a", "GET h/a/", "GET h/a/b/c", "GET h/a//"],
        &["GET h/ab", "GET h/", "GET h/b/a"],
    );
    check(
        of(PathMatch::Under("/a/b".into())),
        &["GET h/a/b", "GET h/a/b/c"],
        &["GET h/a", "GET h/a/bc", "GET h/a/c/b"],
    );
    check(
        of(PathMatch::Under("/a/".into())),
        &["GET h/a", "GET h/a/b"],
        &["GET h/ab"],
    );
    check(of(PathMatch::Under("/".into())), &["GET h/", "GET h/a/b"], &[]);
    check(
        of(PathMatch::Prefix("/a".into())),
        &["GET h/a", "GET h/ab", "GET h/a/b"],
        &["GET h/", "GET h/A", "GET h/b/a"],
    );
    check(of(PathMatch::Prefix("".into())), &["GET h/", "GET h/a"], &[]);
    check(
        of(PathMatch::Regex("/a|/b[0-9]+".into())),
        &["GET h/a", "GET h/b12"],
        &["GET h/ab", "GET h/b", "GET h/b1c", "GET h/x/a"],
    );
    check(of(PathMatch::Regex("/.*".into())), &["GET h/", "GET h/a/b"], &[]);
    check(
        of(PathMatch::Regex("(?i)/a".into())),
        &["GET h/a", "GET h/A"],
        &["GET h/b"],
    );
    check(
        of(PathMatch::ExactIgnoringCase("/ab".into())),
        &["GET h/aB", "GET h/AB"],
        &["GET h/abc", "GET h/a"],
    );
    check(
        of(PathMatch::PrefixIgnoringCase("/ab".into())),
        &["GET h/aB", "GET h/ABC/d"],
        &["GET h/a", "GET h/xab"],
    );
}

#[test]
fn methods_and_headers() {
    let of = RequestTest::default;
    let method = |method| RequestTest {
        method: Some(method),
        ..of()
    };
    check(
        method(exact("GET")),
        &["GET h/"],
        &["get h/", "POST h/", "GETS h/"],
    );
    check(
        method(regex("GET|PUT")),
        &["GET h/", "PUT h/"],
        &["GETS h/", "POST h/"],
    );
    let header = |name: &str, test, not| RequestTest {
        headers: vec![HeaderMatch {
            name: name.into(),
            test,
            not,
        }],
        ..of()
    };
    let is = HeaderTest::Is;
    check(
        header("a", is(exact("1")), false),
        &["GET h/ a:1", "GET h/ A:1"],
        &["GET h/", "GET h/ a:2", "GET h/ a:1 a:2", "GET h/ b:1"],
    );
    check(
        header("a", is(exact("1,2")), false),
        &["GET h/ a:1 a:2"],
        &["GET h/ a:2 a:1", "GET h/ a:1"],
    );
    check(
        header("a", is(prefix("1")), false),
        &["GET h/ a:12"],
        &["GET h/ a:21"],
    );
    check(
        header("a", is(regex("1.")), false),
        &["GET h/ a:12"],
        &["GET h/ a:123", "GET h/ a:1"],
    );
    check(
        header("a", HeaderTest::Present, false),
        &["GET h/ a:", "GET h/ a:1"],
        &["GET h/"],
    );
    check(
        header("a", HeaderTest::Present, true),
        &["GET h/"],
        &["GET h/ a:1"],
    );
    check(
        header("a", is(exact("1")), true),
        &["GET h/", "GET h/ a:2"],
        &["GET h/ a:1"],
    );
    check(
        header("host", is(exact("h:1")), false),
        &["GET h:1/"],
        &["GET h/", "GET h/ host:h:1"],
    );
    check(header("no name", HeaderTest::Present, false), &[], &["GET h/"]);
    // All of them.
    let both = RequestTest {
        headers: [
            header("a", HeaderTest::Present, false),
            header("b", HeaderTest::Present, true),
        ]
        .into_iter()
        .flat_map(|it| it.headers)
        .collect(),
        ..method(exact("GET"))
    };
    check(both, &["GET h/ a:1"], &["GET h/", "GET h/ a:1 b:1", "PUT h/ a:1"]);
}

#[test]
fn parameters_authorities_and_schemes() {
    let of = RequestTest::default;
    let is = HeaderTest::Is;
    let query = |name: &str, test| RequestTest {
        query: vec![QueryMatch {
            name: name.into(),
            test,
        }],
        ..of()
    };
    check(
        query("a", is(exact("1"))),
        &["GET h/?a=1", "GET h/?b=2&a=1&a=2", "GET h/?%61=%31"],
        &["GET h/", "GET h/?a=2&a=1", "GET h/?a=1x", "GET h/?a"],
    );
    check(
        query("a", is(exact(""))),
        &["GET h/?a", "GET h/?a="],
        &["GET h/?b"],
    );
    check(
        query("a", HeaderTest::Present),
        &["GET h/?a", "GET h/?&&a=1"],
        &["GET h/?b=a", "GET h/"],
    );
    check(
        query("%", is(exact("%2"))),
        &["GET h/?%=%2", "GET h/?%25=%252"],
        &["GET h/?a"],
    );
    check(
        RequestTest {
            authority: Some(exact("h:80")),
            ..of()
        },
        &["GET h:80/"],
        &["GET h/", "GET H:80/"],
    );
    check(
        RequestTest {
            scheme: Some(exact("http")),
            ..of()
        },
        &["GET h/"],
        &[],
    );
    check(
        RequestTest {
            scheme: Some(exact("https")),
            ..of()
        },
        &[],
        &["GET h/"],
    );
    check(
        RequestTest {
            source_namespace: Some("demo".into()),
            ..of()
        },
        &[],
        &["GET h/"],
    );
}

#[test]
fn the_first_entry_decides_whatever_it_is_found_by() {
    let tests = [
        RequestTest {
            method: Some(exact("PUT")),
            ..Default::default()
        },
        RequestTest {
            path: Some(PathMatch::Regex("/a/[0-9]".into())),
            ..Default::default()
        },
        RequestTest {
            hosts: vec![HostMatch::Under(".b".into())],
            path: Some(PathMatch::Prefix("/a".into())),
            ..Default::default()
        },
        RequestTest {
            path: Some(PathMatch::Exact("/a/1".into())),
            ..Default::default()
        },
        RequestTest {
            hosts: vec![HostMatch::Exact("a.b".into())],
            ..Default::default()
        },
    ];
    let cases = [
        ("PUT a.b/a/1", "0"),
        ("GET a.b/a/1", "1"),
        ("GET a.b/a/x", "2"),
        ("GET a.b/x", "4"),
        ("GET c/x", "404"),
    ];
    let first_first = routes(tests.clone());
    for (text, expect) in cases {
        assert_eq!(
            shown(&first_first.decide(PORT, &Request::new(text).head())),
            expect,
            "{text}"
        );
    }
    let last_first = routes(tests.into_iter().rev());
    assert_eq!(
        shown(&last_first.decide(PORT, &Request::new("PUT a.b/a/1").head())),
        "0"
    );
    assert_eq!(
        shown(&last_first.decide(PORT, &Request::new("PUT c/a/1").head())),
        "1"
    );
}

#[test]
fn consumers_have_routes_of_their_own() {
    let named = |name: &str, path: &str| RouteTable {
        rules: vec![rule(name)],
        ..table([RequestTest {
            path: Some(PathMatch::Under(path.into())),
            ..Default::default()
        }])
    };
    let mut values = values(Some(named("own", "/a")));
    let consumers = [("client".into(), named("theirs", "/b"))].into();
    values.http.get_mut(&PORT).unwrap().consumers = consumers;
    let both = Routes::new(values.clone()).unwrap();
    values.http.get_mut(&PORT).unwrap().producer = None;
    let theirs = Routes::new(values).unwrap();
    for (namespace, path, expect_both, expect_theirs) in [
        (None, "/a", "own", "unrouted"),
        (None, "/b", "404", "unrouted"),
        (Some("other"), "/a", "own", "unrouted"),
        (Some("client"), "/b", "theirs", "theirs"),
        // By those alone.
        (Some("client"), "/a", "404", "404"),
    ] {
        let mut request = Request::new(&format!("GET h{path}"));
        request.namespace = namespace.map(str::to_owned);
        assert_eq!(shown(&both.decide(PORT, &request.head())), expect_both);
        assert_eq!(shown(&theirs.decide(PORT, &request.head())), expect_theirs);
        assert_eq!(shown(&both.decide(81, &request.head())), "unrouted");
    }
}

#[test]
fn what_cannot_be_used() {
    let check = |table: RouteTable, expect: &str| {
        let error = Routes::new(values(Some(table))).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    let expression = |text: &str| {
        table([RequestTest {
            path: Some(PathMatch::Regex(text.into())),
            ..RequestTest::default()
        }])
    };
    check(
        expression("/a("),
        "0: `/a(` is no expression that can be used: unclosed group",
    );
    // Anchors are not to be got out of.
    check(expression("/a)|(/b"), "0: `/a)|(/b` is no expression");
    check(expression("((a{100}){100}){100}"), "size limit");
    check(expression(&"a".repeat(5000)), "longer than 4096 bytes");
    let header = HeaderMatch {
        name: "a".into(),
        test: HeaderTest::Is(regex("[")),
        not: false,
    };
    check(
        table([RequestTest {
            headers: vec![header],
            ..Default::default()
        }]),
        "0: `[` is no expression",
    );
    let mut dangling = table([RequestTest::default()]);
    dangling.entries[0].rule = 1;
    check(dangling, "an entry is of rule 1, which is not there");
    let mut rewriting = table([RequestTest::default()]);
    rewriting.rules[0].rewrite.path = Some(PathRewrite::Regex {
        matches: "+".into(),
        replacement: "".into(),
    });
    check(rewriting, "0: `+` is no expression");
    assert!(check_classes(r"/\pL+") && check_classes(r"/\d+\w*"));
}

fn check_classes(expression: &str) -> bool {
    crate::mesh::http::check_expression(expression).is_ok()
}

#[test]
fn tls_tcp_and_traffic() {
    let tls = |name: &str, hosts: Vec<HostMatch>| TlsRule {
        name: RuleName(name.into()),
        hosts,
        backends: Vec::new(),
    };
    let mut values = values(None);
    values.tls = [
        (
            443,
            vec![
                tls("exact", vec![HostMatch::Exact("a.b".into())]),
                tls("under", vec![HostMatch::Under(".b".into())]),
            ],
        ),
        (444, vec![tls("any", Vec::new())]),
    ]
    .into();
    values.tcp = [(
        5432,
        TcpRoute {
            name: RuleName("tcp".into()),
            backends: Vec::new(),
        },
    )]
    .into();
    let limited = |max_requests| TrafficPolicy {
        max_requests,
        ..TrafficPolicy::default()
    };
    let subset = Subset {
        policy: limited(3),
        ports: [(80, limited(4))].into(),
    };
    values.traffic = Traffic {
        policy: limited(1),
        ports: [(81, limited(2))].into(),
        subsets: [("v1".into(), subset)].into(),
    };
    let routes = Routes::new(values).unwrap();
    let tls = |port, sni| match routes.tls(port, sni) {
        TlsDecision::Unrouted => "unrouted".to_owned(),
        TlsDecision::Rule(rule) => rule.name.to_string(),
        TlsDecision::NotFound => "refused".to_owned(),
    };
    for (port, sni, expect) in [
        (443, Some("A.b"), "exact"),
        (443, Some("x.b"), "under"),
        (443, Some("x.c"), "refused"),
        (443, None, "refused"),
        (444, None, "any"),
        (444, Some("x"), "any"),
        (445, Some("a.b"), "unrouted"),
    ] {
        assert_eq!(tls(port, sni), expect, "{port} {sni:?}");
    }
    assert!(routes.tcp(5432).is_some() && routes.tcp(5433).is_none());
    let most = |port, subset| routes.traffic(port, subset).map(|policy| policy.max_requests);
    assert_eq!([most(80, None), most(81, None)], [Some(1), Some(2)]);
    assert_eq!(
        [most(80, Some("v1")), most(81, Some("v1")), most(80, Some("v2"))],
        [Some(4), Some(3), None]
    );
    assert!(
        routes
            .tls(444, None)
            .shown()
            .is_some_and(|rule| rule.backend(0).is_none())
    );
}

impl<'a> TlsDecision<'a> {
    fn shown(&self) -> Option<&'a TlsRule> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::Unrouted | Self::NotFound => None,
        }
    }
}

#[test]
fn what_a_rule_says_is_prepared() {
    let mut table = table([RequestTest {
        path: Some(PathMatch::Under("/a".into())),
        ..Default::default()
    }]);
    table.rules[0].rewrite.path = Some(PathRewrite::Prefix("/b".into()));
    let routes = Routes::new(values(Some(table.clone()))).unwrap();
    let request = Request::new("GET h/a/c?d");
    let head = request.head();
    let Decision::Rule(matched) = routes.decide(PORT, &head) else {
        panic!("no rule")
    };
    assert_eq!(matched.rewritten_path(&head), Ok(Some("/b/c?d".to_owned())));
    assert_eq!(*matched.retry(), Retry::standard());
    assert!(matched.backend(0).is_some());
    assert_eq!(matched.cors(&head), CorsAnswer::Nothing);
    let redirect = Redirect {
        path: Some(PathRewrite::Regex {
            matches: "a".into(),
            replacement: "z".into(),
        }),
        status: 302,
        ..Redirect::default()
    };
    table.rules[0].rewrite.path = None;
    table.rules[0].action = RouteAction::Redirect(redirect.clone());
    let routes = Routes::new(values(Some(table))).unwrap();
    let Decision::Rule(matched) = routes.decide(PORT, &head) else {
        panic!("no rule")
    };
    assert_eq!(matched.rewritten_path(&head), Ok(None));
    assert!(matched.backend(0).is_none());
    assert_eq!(matched.location(&redirect, &head, PORT), "http://h/z/c?d");
}

fn any_path() -> impl Strategy<Value = String> {
    select(&["/", "/a", "/a/", "/a/b", "/ab", "/A/b", "/b", "/a/b/c", "/1"]).prop_map(str::to_owned)
}

fn any_path_match() -> impl Strategy<Value = PathMatch> {
    let text = || any_path().prop_map(Arc::<str>::from);
    let lower = || any_path().prop_map(|text| Arc::<str>::from(text.to_ascii_lowercase()));
    prop_oneof![
        text().prop_map(PathMatch::Exact),
        text().prop_map(|text| PathMatch::Under(if *text == *"/a/" { "/a".into() } else { text })),
        text().prop_map(PathMatch::Prefix),
        select(&["/a.*", "/[ab]", "/a/b|/1", ".*b"]).prop_map(|text| PathMatch::Regex(text.into())),
        lower().prop_map(PathMatch::ExactIgnoringCase),
        lower().prop_map(PathMatch::PrefixIgnoringCase),
    ]
}

fn any_host_match() -> impl Strategy<Value = HostMatch> {
    prop_oneof![
        select(&["a.b", "c.a.b", "b"]).prop_map(|host| HostMatch::Exact(host.into())),
        select(&[".b", ".a.b"]).prop_map(|host| HostMatch::Under(host.into())),
        Just(HostMatch::Any),
    ]
}

fn any_test() -> impl Strategy<Value = RequestTest> {
    let methods = select(&["GET", "PUT"]).prop_map(exact);
    let header = (select(&["1", "2"]), any::<bool>()).prop_map(|(value, not)| HeaderMatch {
        name: "x".into(),
        test: HeaderTest::Is(exact(value)),
        not,
    });
    let rest = (option::weighted(0.2, methods), option::weighted(0.2, header));
    (
        vec(any_host_match(), 0..3),
        option::weighted(0.9, any_path_match()),
        rest,
    )
        .prop_map(|(hosts, path, (method, header))| RequestTest {
            hosts,
            path,
            method,
            headers: header.into_iter().collect(),
            ..RequestTest::default()
        })
}

fn any_request() -> impl Strategy<Value = Request> {
    let hosts = select(&["a.b", "c.a.b", "d.c.a.b:80", "B", "x", "x.b."]);
    (
        select(&["GET", "PUT"]),
        hosts,
        any_path(),
        select(&["", " x:1", " x:2", " x:1 x:2"]),
    )
        .prop_map(|(method, host, path, header)| Request::new(&format!("{method} {host}{path}{header}")))
}

/// Every entry in turn, as its documentation reads.
fn oracle(tests: &[RequestTest], request: &Request) -> Option<usize> {
    let host = request.authority.to_lowercase();
    let host = host.split(':').next().unwrap().trim_end_matches('.');
    let path = request.path.as_str();
    let x: Vec<_> = request
        .headers
        .get_all("x")
        .iter()
        .map(|it| it.to_str().unwrap())
        .collect();
    let x = x.join(",");
    tests.iter().position(|test| {
        let hosts = test.hosts.is_empty()
            || test.hosts.iter().any(|it| match it {
                HostMatch::Any => true,
                HostMatch::Exact(name) => host == &**name,
                HostMatch::Under(end) => host.strip_suffix(&**end).is_some_and(|rest| !rest.is_empty()),
            });
        let path = test.path.as_ref().is_none_or(|it| match it {
            PathMatch::Exact(text) => path == &**text,
            PathMatch::Under(text) => {
                path == &**text || format!("{path}/").starts_with(&format!("{}/", text.trim_end_matches('/')))
            }
            PathMatch::Prefix(text) => path.starts_with(&**text),
            PathMatch::Regex(text) => regex::Regex::new(&format!("^({text})$")).unwrap().is_match(path),
            PathMatch::ExactIgnoringCase(text) => path.eq_ignore_ascii_case(text),
            PathMatch::PrefixIgnoringCase(text) => path.to_lowercase().starts_with(&**text),
        });
        let method = test
            .method
            .as_ref()
            .is_none_or(|it| *it == exact(request.method.as_str()));
        let headers = test
            .headers
            .iter()
            .all(|it| (it.test == HeaderTest::Is(exact(&x))) != it.not);
        hosts && path && method && headers
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    /// More than [`paths::FEW`] expressions among them now and then.
    #[test]
    fn as_the_oracle_says(tests in vec(any_test(), 0..40), requests in vec(any_request(), 1..10)) {
        let routes = routes(tests.clone());
        for request in requests {
            let found = shown(&routes.decide(PORT, &request.head()));
            let expect = oracle(&tests, &request).map_or("404".to_owned(), |at| at.to_string());
            prop_assert_eq!(found, expect, "{:?} by {:#?}", request, tests);
        }
    }

    /// Nothing that a client sends makes it panic.
    #[test]
    fn any_authority_and_query(authority in ".{0,30}", query in "[a&=%1-9\u{e9}]{0,20}") {
        let test = RequestTest {
            hosts: vec![HostMatch::Under(".b".into()), HostMatch::Exact("a".into())],
            query: vec![QueryMatch { name: "a".into(), test: HeaderTest::Present }],
            ..RequestTest::default()
        };
        let request = Request { authority, query: Some(query), ..Request::new("GET h/") };
        routes([test]).decide(PORT, &request.head());
    }
}
