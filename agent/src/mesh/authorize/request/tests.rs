//! What only a request has, as tables: each match as an ALLOW and as a DENY, at a waypoint and at an agent; and requests
//! against an oracle that is too simple to be wrong.

use http::{HeaderMap, HeaderName, Method};
use proptest::{collection::vec, option, prelude::*, sample::select};
use serde_json::json;

use super::*;
use crate::mesh::{
    Action, Inbound, Match, Mesh, MeshParts, Policy, PolicyKey, Refusal, Rule, Scope, Verdict, Workload,
    authorize, authorize_from_waypoint, authorize_request, authorize_service,
    http::RequestHead,
    recorded_matches,
    sample::{self, any_of, policy, policy_key},
};

/// A request as people write it: `GET host/path name:value...`; `token` among the words brings [`token`], `sni=a.b` that name.
struct Request {
    method: Method,
    authority: String,
    path: String,
    headers: HeaderMap,
    token: Option<Token>,
    sni: Option<String>,
}

fn token() -> Token {
    let claims = json!({
        "group": ["dev", "ops"],
        "level": 5,
        "admin": true,
        "nothing": null,
        "scope": "read write",
        "roles": "a b",
        "text": "a b",
        "nested": { "a": { "b": "c" }, "list": [1, ["deep"]] },
    });
    Token {
        principal: "https://issuer/alice".into(),
        audiences: vec!["shop".into(), "cart".into()],
        presenter: Some("app".into()),
        claims: claims.as_object().cloned().unwrap_or_default(),
        space_delimited: vec!["roles".into()],
    }
}

impl Request {
    fn new(text: &str) -> Self {
        let mut words = text.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let (authority, path) = words.next().unwrap().split_once('/').unwrap();
        let (mut headers, mut with_token, mut sni) = (HeaderMap::new(), None, None);
        for word in words {
            if word == "token" {
                with_token = Some(token());
            } else if let Some(name) = word.strip_prefix("sni=") {
                sni = Some(name.to_owned());
            } else {
                let (name, value) = word.split_once(':').unwrap();
                headers.append(
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    value.parse().unwrap(),
                );
            }
        }
        let (authority, path) = (authority.to_owned(), format!("/{path}"));
        Self {
            method,
            authority,
            path,
            headers,
            token: with_token,
            sni,
        }
    }

    fn ask<T>(&self, question: impl FnOnce(&RequestFacts<'_>) -> T) -> T {
        let head = RequestHead {
            method: &self.method,
            path: &self.path,
            query: None,
            authority: &self.authority,
            scheme: "http",
            headers: &self.headers,
            source_namespace: None,
        };
        question(&RequestFacts {
            head: &head,
            token: self.token.as_ref(),
            sni: self.sni.as_deref(),
        })
    }
}

fn conn(from: &str) -> Inbound {
    let (namespace, account) = from.split_once('/').unwrap();
    Inbound {
        peer: Some(sample::identity(namespace, account)),
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.9:8080".parse().unwrap(),
    }
}

fn web() -> Workload {
    sample::pod("web-1", &["10.0.0.9"])
}

fn mesh(policies: &[Policy]) -> Mesh {
    Mesh::new(MeshParts {
        policies: policies.to_vec(),
        ..sample::parts()
    })
}

fn shown(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow { policy: None } => "allowed".into(),
        Verdict::Allow { policy: Some(key) } => format!("allowed by {key}"),
        Verdict::Deny(why) => why.to_string(),
    }
}

fn of_request(request: RequestMatch) -> Match {
    Match {
        unseen: vec!["x".into()],
        request: Some(Arc::new(request)),
        ..Match::default()
    }
}

fn says(request: RequestMatch, action: Action, asked: &Request) -> bool {
    let policies = [policy(
        "demo/p",
        Scope::Namespace,
        action,
        vec![any_of([of_request(request)])],
    )];
    let verdict = asked.ask(|facts| authorize_request(&mesh(&policies), &web(), &conn("demo/curl"), facts));
    let expect = match action {
        Action::Allow => ["allowed by demo/p", "no ALLOW policy matched: demo/p"],
        Action::Deny => ["denied by policy demo/p", "allowed"],
        Action::Audit => ["", "allowed"],
    };
    let shown = shown(verdict);
    assert!(expect.contains(&&*shown), "{shown}");
    shown == expect[0]
}

/// The requests for which a match holds, whichever the action. At an agent, which sees none, it never holds for an ALLOW
/// and always for a DENY.
fn check(request: &RequestMatch, yes: &[&str], no: &[&str]) {
    for action in [Action::Allow, Action::Deny] {
        for (texts, expect) in [(yes, true), (no, false)] {
            for text in texts {
                let said = says(request.clone(), action, &Request::new(text));
                assert_eq!(said, expect, "{action} {text} by {request:?}");
            }
        }
        let policies = [policy(
            "demo/p",
            Scope::Namespace,
            action,
            vec![any_of([of_request(request.clone())])],
        )];
        let at_agent = authorize(&mesh(&policies), &web(), &conn("demo/curl"));
        assert!(matches!(at_agent, Verdict::Deny(_)), "{action} {request:?}");
    }
}

/// `a`, `a*`, `*a`, `*`, separated by spaces.
fn patterns(text: &str) -> Vec<StringMatch> {
    let pattern = |text: &str| match text.split_once('*') {
        Some(("", "")) => StringMatch::Presence,
        Some((prefix, "")) => StringMatch::Prefix(prefix.into()),
        Some((_, suffix)) => StringMatch::Suffix(suffix.into()),
        None => StringMatch::Exact(text.into()),
    };
    text.split(' ').map(pattern).collect()
}

#[test]
fn hosts() {
    let is = |text: &str| RequestMatch {
        hosts: patterns(text),
        ..Default::default()
    };
    let not = |text: &str| RequestMatch {
        not_hosts: patterns(text),
        ..Default::default()
    };
    for (text, yes, no) in [
        (
            "a.b",
            &["GET a.b/", "GET A.b:80/", "GET a.b./"][..],
            &["GET c.a.b/", "GET a.bc/", "GET /"][..],
        ),
        ("A.B", &["GET a.b/"], &["GET b/"]),
        (
            "*.a.b",
            &["GET c.a.b/", "GET c.A.B:80/"],
            &["GET a.b/", "GET c.a.b.d/"],
        ),
        ("a.*", &["GET a.b/", "GET A.c:1/"], &["GET b.a/"]),
        (
            "a.b:8080",
            &["GET a.b:8080/", "GET A.B:8080/"],
            &["GET a.b/", "GET a.b:80/"],
        ),
        ("*", &["GET a/"], &["GET /"]),
        ("x a", &["GET a/", "GET x/"], &["GET b/"]),
    ] {
        check(&is(text), yes, no);
        check(&not(text), no, yes);
    }
}

#[test]
fn methods_and_paths() {
    check(
        &RequestMatch {
            methods: patterns("GET PUT"),
            ..Default::default()
        },
        &["GET a/", "PUT a/"],
        &["POST a/", "get a/"],
    );
    check(
        &RequestMatch {
            not_methods: patterns("GET"),
            ..Default::default()
        },
        &["PUT a/"],
        &["GET a/"],
    );
    let paths = |text: &str| -> Vec<_> {
        let template = text.contains('{');
        if template {
            return vec![PathPattern::Template(text.into())];
        }
        patterns(text).into_iter().map(PathPattern::Text).collect()
    };
    for (text, yes, no) in [
        ("/a", &["GET h/a"][..], &["GET h/a/", "GET h/ab", "GET h/A"][..]),
        ("/a*", &["GET h/a", "GET h/a/b"], &["GET h/b/a"]),
        ("*.png", &["GET h/a.png", "GET h/a/b.png"], &["GET h/a.png/"]),
        ("*", &["GET h/"], &[]),
        ("/%61%2fb", &["GET h/a%2Fb"], &["GET h/a/b"]),
        (
            "/a/{*}",
            &["GET h/a/b", "GET h/a/."],
            &["GET h/a", "GET h/a/", "GET h/a/b/", "GET h/a/b/c", "GET h/b/b"],
        ),
        (
            "/a/{*}/c",
            &["GET h/a/b/c"],
            &["GET h/a//c", "GET h/a/b/c/d", "GET h/a/b/b/c"],
        ),
        (
            "/a/{**}",
            &["GET h/a/", "GET h/a/b", "GET h/a/b/c/"],
            &["GET h/a", "GET h/ab", "GET h/"],
        ),
        (
            "/{**}/c",
            &["GET h/a/c", "GET h//c", "GET h/a/b/c", "GET h/c/c/c"],
            &["GET h/c", "GET h/a/c/d"],
        ),
        (
            "/{*}/b/{**}/e",
            &["GET h/a/b/c/d/e", "GET h/a/b/e/e", "GET h/a/b//e"],
            &["GET h/a/b/e", "GET h/b/c/e"],
        ),
        (
            "/{**}/a/{**}/b",
            &["GET h/x/a/y/b", "GET h/x/a/a/b/b", "GET h/a/a/a/b"],
            &["GET h/a/x/b", "GET h/x/b/a"],
        ),
    ] {
        check(
            &RequestMatch {
                paths: paths(text),
                ..Default::default()
            },
            yes,
            no,
        );
        check(
            &RequestMatch {
                not_paths: paths(text),
                ..Default::default()
            },
            no,
            yes,
        );
    }
}

#[test]
fn tokens() {
    for (text, yes, no) in [
        ("https://issuer/alice", &["GET h/ token"][..], &["GET h/"][..]),
        ("https://issuer/*", &["GET h/ token"], &["GET h/"]),
        ("*/alice", &["GET h/ token"], &["GET h/"]),
        ("*", &["GET h/ token"], &["GET h/"]),
        ("https://issuer/bob", &[], &["GET h/ token", "GET h/"]),
    ] {
        check(
            &RequestMatch {
                request_principals: patterns(text),
                ..Default::default()
            },
            yes,
            no,
        );
        check(
            &RequestMatch {
                not_request_principals: patterns(text),
                ..Default::default()
            },
            no,
            yes,
        );
        check_when(ConditionKey::Principal, text, yes, no);
    }
    let all = ["GET h/ token", "GET h/"];
    let with = |key: ConditionKey, values: &str| check_when(key, values, &all[..1], &all[1..]);
    let without = |key: ConditionKey, values: &str| check_when(key, values, &[], &all);
    let claim = |way: &str| ConditionKey::Claim(way.split('.').map(Into::into).collect());
    with(ConditionKey::Audiences, "cart");
    with(ConditionKey::Audiences, "x sh*");
    without(ConditionKey::Audiences, "shop,cart");
    with(ConditionKey::Presenter, "app");
    without(ConditionKey::Presenter, "other");
    with(claim("group"), "ops");
    with(claim("group"), "*");
    without(claim("group"), "admin");
    with(claim("level"), "5");
    with(claim("admin"), "true");
    without(claim("nothing"), "*");
    without(claim("none"), "*");
    with(claim("scope"), "write");
    with(claim("roles"), "a");
    without(claim("text"), "a");
    with(claim("text"), "a*");
    with(claim("nested.a.b"), "c");
    with(claim("nested.list"), "1");
    for way in ["nested", "nested.a", "nested.b.c", "group.dev", "a.b"] {
        without(claim(way), "*");
    }
}

fn check_when(key: ConditionKey, values: &str, yes: &[&str], no: &[&str]) {
    let when = |values, not_values| RequestMatch {
        when: vec![Condition {
            key: key.clone(),
            values,
            not_values,
        }],
        ..RequestMatch::default()
    };
    check(&when(patterns(values), Vec::new()), yes, no);
    check(&when(Vec::new(), patterns(values)), no, yes);
}

#[test]
fn headers_names_and_addresses() {
    let header = |name: &str| ConditionKey::Header(name.into());
    check_when(
        header("x"),
        "1",
        &["GET h/ x:1", "GET h/ X:1"],
        &["GET h/", "GET h/ x:2", "GET h/ y:1"],
    );
    check_when(header("x"), "*", &["GET h/ x:1"], &["GET h/", "GET h/ x:"]);
    check_when(header("X"), "1*", &["GET h/ x:12"], &["GET h/ x:21"]);
    check_when(header("x"), "1,2", &["GET h/ x:1 x:2"], &["GET h/ x:2 x:1"]);
    check_when(header("host"), "h:1", &["GET h:1/"], &["GET h/ host:h:1"]);
    check_when(header(":method"), "PUT", &["PUT h/"], &["GET h/"]);
    check_when(header(":path"), "/a", &["GET h/a"], &["GET h/"]);
    check_when(
        ConditionKey::Sni,
        "*.B",
        &["GET h/ sni=a.b", "GET h/ sni=A.B"],
        &["GET h/", "GET h/ sni=b"],
    );
    let nets = |text: &str| vec![text.parse().unwrap()];
    let all = ["GET h/"];
    for (net, holds) in [
        ("10.0.0.0/8", true),
        ("::ffff:10.0.0.1/128", true),
        ("11.0.0.0/8", false),
        ("::/0", false),
    ] {
        let (yes, no) = if holds {
            (&all[..], &[][..])
        } else {
            (&[][..], &all[..])
        };
        check(
            &RequestMatch {
                remote_ips: nets(net),
                ..Default::default()
            },
            yes,
            no,
        );
        check(
            &RequestMatch {
                not_remote_ips: nets(net),
                ..Default::default()
            },
            no,
            yes,
        );
    }
}

#[test]
fn a_header_that_comes_twice_opens_nothing() {
    let when = |values: &str, not_values: &str| RequestMatch {
        when: vec![Condition {
            key: ConditionKey::Header("x".into()),
            values: if values.is_empty() {
                Vec::new()
            } else {
                patterns(values)
            },
            not_values: if not_values.is_empty() {
                Vec::new()
            } else {
                patterns(not_values)
            },
        }],
        ..RequestMatch::default()
    };
    let twice = Request::new("GET h/ x:good x:bad");
    assert!(!says(when("good", ""), Action::Allow, &twice));
    assert!(!says(when("", "bad"), Action::Allow, &twice));
    assert!(says(when("bad", ""), Action::Deny, &twice));
    assert!(says(when("", "good"), Action::Deny, &twice));
}

#[test]
fn every_field_must_hold() {
    let match_ = RequestMatch {
        methods: patterns("GET"),
        paths: vec![PathPattern::Text(StringMatch::Prefix("/a".into()))],
        not_paths: vec![PathPattern::Text(StringMatch::Exact("/a/secret".into()))],
        ..RequestMatch::default()
    };
    check(
        &match_,
        &["GET h/a/b"],
        &["PUT h/a/b", "GET h/b", "GET h/a/secret"],
    );
    // And those that an agent sees as well.
    let with_peer = Match {
        namespaces: patterns("demo"),
        ..of_request(match_)
    };
    let policies = [policy(
        "demo/p",
        Scope::Namespace,
        Action::Allow,
        vec![any_of([with_peer])],
    )];
    let asked = Request::new("GET h/a/b");
    for (from, expect) in [
        ("demo/curl", "allowed by demo/p"),
        ("other/curl", "no ALLOW policy matched: demo/p"),
    ] {
        let verdict = asked.ask(|facts| authorize_request(&mesh(&policies), &web(), &conn(from), facts));
        assert_eq!(shown(verdict), expect);
    }
}

#[test]
fn what_cannot_be_judged_never_widens() {
    let silent = RequestMatch::default();
    let when = |key: ConditionKey, values: &str| RequestMatch {
        when: vec![Condition {
            key,
            values: patterns(values),
            not_values: Vec::new(),
        }],
        ..RequestMatch::default()
    };
    let template = |text: &str| RequestMatch {
        paths: vec![PathPattern::Template(text.into())],
        ..RequestMatch::default()
    };
    let says_nothing = Condition {
        key: ConditionKey::Sni,
        values: Vec::new(),
        not_values: Vec::new(),
    };
    let unjudged = [
        Match {
            unseen: vec!["paths".into()],
            ..Match::default()
        },
        of_request(silent),
        of_request(template("/a/{x}")),
        of_request(template("a/{*}")),
        of_request(template("/a/{*}.png")),
        of_request(when(ConditionKey::Claim(Vec::new()), "*")),
        of_request(when(ConditionKey::Claim(vec!["a".into(); 17]), "*")),
        of_request(when(ConditionKey::Header("no name".into()), "*")),
        of_request(RequestMatch {
            when: vec![says_nothing],
            ..RequestMatch::default()
        }),
        Match {
            unreadable: vec!["ipBlocks".into()],
            ..of_request(RequestMatch {
                methods: patterns("GET"),
                ..Default::default()
            })
        },
    ];
    for match_ in unjudged {
        for action in [Action::Allow, Action::Deny] {
            let policies = [policy(
                "demo/p",
                Scope::Namespace,
                action,
                vec![any_of([match_.clone()])],
            )];
            let asked = Request::new("GET h/ token");
            let verdict =
                asked.ask(|facts| authorize_request(&mesh(&policies), &web(), &conn("demo/curl"), facts));
            assert!(matches!(verdict, Verdict::Deny(_)), "{action} {match_:?}");
        }
    }
    // Without the names of what it is about, too, it is the waypoint's to judge.
    let unnamed = Match {
        unseen: Vec::new(),
        ..of_request(RequestMatch {
            methods: patterns("GET"),
            ..Default::default()
        })
    };
    let policies = [policy(
        "demo/p",
        Scope::Namespace,
        Action::Allow,
        vec![any_of([unnamed])],
    )];
    assert!(matches!(
        authorize(&mesh(&policies), &web(), &conn("demo/curl")),
        Verdict::Deny(_)
    ));
}

#[test]
fn what_keeps_everybody_on_the_way_through_a_waypoint_is_not_asked_at_the_waypoint() {
    let (waypoint, client) = (conn("demo/waypoint"), conn("demo/curl"));
    let named = |conn: &Inbound, not: bool| {
        let name = StringMatch::Exact(conn.peer.as_ref().unwrap().principal().into());
        let names = vec![name];
        match not {
            true => Match {
                not_principals: names,
                ..Match::default()
            },
            false => Match {
                principals: names,
                ..Match::default()
            },
        }
    };
    let guards = ["demo/weft_waypoint_only_1", "demo/weft_from_waypoint_1"];
    let policies = [
        policy(
            guards[0],
            Scope::Selector,
            Action::Deny,
            vec![any_of([named(&waypoint, true)])],
        ),
        policy(
            guards[1],
            Scope::Selector,
            Action::Allow,
            vec![any_of([named(&waypoint, false)])],
        ),
    ];
    let workload = Workload {
        policies: guards.map(policy_key).to_vec(),
        ..web()
    };
    let mesh = mesh(&policies);
    // The agent sees who dials: the waypoint, or somebody who goes around it.
    assert_eq!(
        shown(authorize(&mesh, &workload, &waypoint)),
        format!("allowed by {}", guards[1])
    );
    assert_eq!(
        shown(authorize(&mesh, &workload, &client)),
        format!("denied by policy {}", guards[0])
    );
    let asked = Request::new("GET shop/");
    let verdict = asked.ask(|facts| authorize_request(&mesh, &workload, &client, facts));
    assert_eq!(shown(verdict), "allowed");
    assert_eq!(
        shown(authorize_from_waypoint(&mesh, &workload, &client)),
        "allowed"
    );
}

fn deny_by_path(key: &str, path: &str) -> Policy {
    let paths = vec![PathPattern::Text(StringMatch::Prefix(path.into()))];
    let match_ = of_request(RequestMatch {
        paths,
        ..RequestMatch::default()
    });
    policy(key, Scope::Selector, Action::Deny, vec![any_of([match_])])
}

fn allow_by_principal(key: &str) -> Policy {
    let request_principals = patterns("https://issuer/alice");
    let match_ = of_request(RequestMatch {
        request_principals,
        ..RequestMatch::default()
    });
    policy(key, Scope::Selector, Action::Allow, vec![any_of([match_])])
}

/// What a service's policies and a workload's say, by themselves.
fn check_both(policies: &[Policy], named: &[&str], request: &str, expect: &str) {
    let keys: Vec<PolicyKey> = named.iter().map(|key| policy_key(key)).collect();
    let mesh = mesh(policies);
    let asked = Request::new(request);
    let of_service = asked.ask(|facts| authorize_service(&mesh, &keys, &conn("demo/curl"), facts));
    assert_eq!(shown(of_service), expect, "service: {request}");
    let workload = Workload {
        policies: keys,
        ..web()
    };
    let of_workload = asked.ask(|facts| authorize_request(&mesh, &workload, &conn("demo/curl"), facts));
    assert_eq!(shown(of_workload), expect, "workload: {request}");
}

#[test]
fn a_deny_by_path_refuses() {
    let policies = [deny_by_path("demo/d", "/admin")];
    check_both(&policies, &["demo/d"], "GET h/admin/x", "denied by policy demo/d");
    check_both(&policies, &["demo/d"], "GET h/shop", "allowed");
    check_both(&policies, &[], "GET h/admin/x", "allowed");
}

#[test]
fn an_allow_by_principal_lets_in_whom_it_names() {
    let policies = [allow_by_principal("demo/a"), deny_by_path("demo/d", "/admin")];
    check_both(&policies, &["demo/a"], "GET h/ token", "allowed by demo/a");
    check_both(
        &policies,
        &["demo/a"],
        "GET h/",
        "no ALLOW policy matched: demo/a",
    );
    // DENY before ALLOW, whatever their order.
    for named in [["demo/a", "demo/d"], ["demo/d", "demo/a"]] {
        check_both(&policies, &named, "GET h/admin token", "denied by policy demo/d");
        check_both(&policies, &named, "GET h/shop token", "allowed by demo/a");
        check_both(&policies, &named, "GET h/shop", "no ALLOW policy matched: demo/a");
    }
}

#[test]
fn a_policy_that_has_not_arrived_refuses() {
    let policies = [allow_by_principal("demo/a")];
    let missing = "policy demo/q applies but has not arrived";
    check_both(&policies, &["demo/a", "demo/q"], "GET h/ token", missing);
    check_both(&policies, &["demo/q"], "GET h/ token", missing);
}

#[test]
fn strict_does_not_matter_and_what_covers_the_namespace_does() {
    let mesh_wide = Policy {
        scope: Scope::Mesh,
        ..deny_by_path("root/d", "/admin")
    };
    let of_namespace = Policy {
        scope: Scope::Namespace,
        ..deny_by_path("demo/d", "/secret")
    };
    let mesh = mesh(&[mesh_wide, of_namespace]);
    for (request, expect) in [
        ("GET h/admin", "denied by policy root/d"),
        ("GET h/secret", "denied by policy demo/d"),
        ("GET h/", "allowed"),
    ] {
        let asked = Request::new(request);
        let verdict = asked.ask(|facts| authorize_request(&mesh, &web(), &conn("demo/curl"), facts));
        assert_eq!(shown(verdict), expect);
        // A service has those that name it.
        let verdict = asked.ask(|facts| authorize_service(&mesh, &[], &conn("demo/curl"), facts));
        assert_eq!(shown(verdict), "allowed");
    }
}

#[test]
fn audit_and_dry_run_are_recorded() {
    let dry = |policy: Policy| Policy {
        dry_run: true,
        ..policy
    };
    let policies = [
        Policy {
            action: Action::Audit,
            ..deny_by_path("demo/audit", "/a")
        },
        dry(deny_by_path("demo/dry", "/a")),
        dry(allow_by_principal("demo/of-service")),
        deny_by_path("demo/enforced", "/b"),
    ];
    check_both(
        &policies,
        &["demo/audit", "demo/dry", "demo/of-service"],
        "GET h/a",
        "allowed",
    );
    let mesh = mesh(&policies);
    let keys = [policy_key("demo/of-service"), policy_key("demo/enforced")];
    let workload = Workload {
        policies: vec![policy_key("demo/audit"), policy_key("demo/dry")],
        ..web()
    };
    let recorded = |workload: Option<&Workload>, text: &str| {
        Request::new(text).ask(|facts| {
            let conn = conn("demo/curl");
            let recorded = recorded_matches(&mesh, &keys, workload, &conn, facts);
            recorded
                .map(|policy| policy.key.name.to_string())
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(recorded(Some(&workload), "GET h/a token"), "of-service audit dry");
    assert_eq!(recorded(Some(&workload), "GET h/a"), "audit dry");
    assert_eq!(recorded(None, "GET h/a token"), "of-service");
    assert_eq!(recorded(Some(&workload), "GET h/b"), "");
}

fn any_request_match() -> impl Strategy<Value = RequestMatch> {
    let some = |list: &'static [&'static str]| {
        option::weighted(0.3, select(list)).prop_map(|text| text.map(patterns).unwrap_or_default())
    };
    let path = || {
        let path = select(&["/a", "/a*", "*b", "/{*}/b", "/a/{**}", "/{x}"]);
        option::weighted(0.3, path).prop_map(|text| match text {
            None => Vec::new(),
            Some(text) if text.contains('{') => vec![PathPattern::Template(text.into())],
            Some(text) => patterns(text).into_iter().map(PathPattern::Text).collect(),
        })
    };
    let principals = || some(&["https://issuer/alice", "https://issuer/*", "*", "bob"]);
    let header = (some(&["1", "*"]), some(&["2", "1*"])).prop_map(|(values, not_values)| Condition {
        key: ConditionKey::Header("x".into()),
        values,
        not_values,
    });
    let fields = (
        some(&["GET", "P*"]),
        some(&["GET"]),
        some(&["a.b", "*.b"]),
        some(&["a.b"]),
    );
    (
        fields,
        path(),
        path(),
        principals(),
        principals(),
        option::weighted(0.2, header),
    )
        .prop_map(|(fields, paths, not_paths, is, is_not, when)| RequestMatch {
            methods: fields.0,
            not_methods: fields.1,
            hosts: fields.2,
            not_hosts: fields.3,
            paths,
            not_paths,
            request_principals: is,
            not_request_principals: is_not,
            when: when.into_iter().collect(),
            ..RequestMatch::default()
        })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let match_ = (
        option::weighted(0.7, any_request_match()),
        option::of(select(&["demo", "other"])),
        0..12_u8,
    );
    let match_ = match_.prop_map(|(request, namespace, odd)| Match {
        unseen: (request.is_some() || odd == 0)
            .then(|| "x".into())
            .into_iter()
            .collect(),
        request: request.map(Arc::new),
        namespaces: namespace.map(patterns).unwrap_or_default(),
        unreadable: (odd == 1).then(|| "ipBlocks".into()).into_iter().collect(),
        ..Match::default()
    });
    let rule = vec(match_, 0..3).prop_map(any_of);
    let key = select(&["demo/a", "demo/b", "demo/c", "root/a"]);
    (
        key,
        select(&[Action::Allow, Action::Deny, Action::Audit]),
        vec(rule, 0..3),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(key, action, rules, dry_run)| Policy {
            dry_run,
            ..policy(key, Scope::Selector, action, rules)
        })
}

fn any_request() -> impl Strategy<Value = Request> {
    let parts = (
        select(&["GET", "PUT", "POST"]),
        select(&["a.b", "A.B:80", "c.b", "x"]),
        select(&["/", "/a", "/a/b", "/x/b", "/b"]),
        select(&["", " x:1", " x:2", " x:12"]),
        select(&["", " token"]),
    );
    parts.prop_map(|(method, host, path, header, token)| {
        Request::new(&format!("{method} {host}{path}{header}{token}"))
    })
}

fn named(list: &[StringMatch], value: Option<&str>) -> bool {
    let Some(value) = value else { return false };
    list.iter().any(|pattern| match pattern {
        StringMatch::Exact(text) => value == &**text,
        StringMatch::Prefix(text) => value.starts_with(&**text),
        StringMatch::Suffix(text) => value.ends_with(&**text),
        StringMatch::Presence => !value.is_empty(),
    })
}

/// One of the first and none of the second, of which an empty one says nothing.
fn pair(is: &[StringMatch], is_not: &[StringMatch], value: Option<&str>) -> bool {
    (is.is_empty() || named(is, value)) && !named(is_not, value)
}

/// None: it cannot be judged.
fn oracle_match(match_: &RequestMatch, asked: &Request) -> Option<bool> {
    let path = |list: &[PathPattern]| {
        let holds = list.iter().map(|pattern| match pattern {
            PathPattern::Text(text) => Some(named(std::slice::from_ref(text), Some(&asked.path))),
            PathPattern::Template(text) if **text == *"/{*}/b" => {
                Some(asked.path.ends_with("/b") && asked.path.matches('/').count() == 2)
            }
            PathPattern::Template(text) if **text == *"/a/{**}" => Some(asked.path.starts_with("/a/")),
            PathPattern::Template(_) => None,
        });
        holds
            .collect::<Option<Vec<_>>>()
            .map(|holds| holds.contains(&true))
    };
    let (is_path, not_path) = (path(&match_.paths)?, path(&match_.not_paths)?);
    if *match_ == RequestMatch::default()
        || match_
            .when
            .iter()
            .any(|it| it.values.is_empty() && it.not_values.is_empty())
    {
        return None;
    }
    let principal = asked.token.as_ref().map(|token| &*token.principal);
    let host = asked.authority.to_lowercase();
    let host = host.split(':').next();
    let x = asked.headers.get("x").map(|value| value.to_str().unwrap());
    Some(
        pair(&match_.methods, &match_.not_methods, Some(asked.method.as_str()))
            && pair(&match_.hosts, &match_.not_hosts, host)
            && (match_.paths.is_empty() || is_path)
            && !not_path
            && pair(
                &match_.request_principals,
                &match_.not_request_principals,
                principal,
            )
            && match_.when.iter().all(|it| pair(&it.values, &it.not_values, x)),
    )
}

/// The same question in the order that the documentation has.
fn oracle(policies: &[Policy], named_: &[PolicyKey], from: &str, asked: &Request) -> String {
    let found: Vec<_> = named_
        .iter()
        .map(|key| policies.iter().find(|policy| policy.key == *key))
        .collect();
    if found.iter().any(Option::is_none) {
        return "missing".into();
    }
    let enforced: Vec<_> = found
        .into_iter()
        .flatten()
        .filter(|policy| !policy.dry_run)
        .collect();
    let holds = |policy: &Policy, match_: &Match| {
        let deny = policy.action == Action::Deny;
        let in_doubt = match (&match_.request, match_.unseen.is_empty()) {
            (Some(request), _) => oracle_match(request, asked).unwrap_or(deny),
            (None, true) => true,
            (None, false) => deny,
        };
        let silent = *match_ == Match::default() || !match_.unreadable.is_empty();
        let peer = match_.namespaces.is_empty() || named(&match_.namespaces, from.split('/').next());
        in_doubt && peer && (deny || !silent)
    };
    let matches = |policy: &&&Policy| {
        let all = |rule: &Rule| {
            rule.clauses.iter().all(|clause| match clause.matches.is_empty() {
                true => policy.action == Action::Deny,
                false => clause.matches.iter().any(|match_| holds(policy, match_)),
            })
        };
        policy.rules.iter().any(all)
    };
    let of = |action| enforced.iter().filter(move |policy| policy.action == action);
    if of(Action::Deny).any(|policy| matches(&policy)) {
        return "denied".into();
    }
    match (
        of(Action::Allow).count(),
        of(Action::Allow).any(|policy| matches(&policy)),
    ) {
        (0, _) => "no policy".into(),
        (_, true) => "allowed".into(),
        (_, false) => "not allowed".into(),
    }
}

fn kind(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow { policy: None } => "no policy".into(),
        Verdict::Allow { policy: Some(_) } => "allowed".into(),
        Verdict::Deny(Refusal::DeniedBy(_)) => "denied".into(),
        Verdict::Deny(Refusal::NotAllowed(_)) => "not allowed".into(),
        Verdict::Deny(Refusal::PolicyMissing(_)) => "missing".into(),
        Verdict::Deny(why) => why.to_string(),
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = if self.token.is_some() { " token" } else { "" };
        write!(
            f,
            "{} {}{} {:?}{token}",
            self.method, self.authority, self.path, self.headers
        )
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn as_the_oracle_says(
        policies in vec(any_policy(), 0..4),
        names in vec(select(&["demo/a", "demo/b", "demo/c", "root/a"]), 0..3),
        from in select(&["demo/curl", "other/curl"]),
        asked in any_request(),
    ) {
        let mut kept: Vec<Policy> = Vec::new();
        for policy in policies {
            if !kept.iter().any(|other| other.key == policy.key) {
                kept.push(policy);
            }
        }
        let keys: Vec<_> = names.into_iter().map(policy_key).collect();
        let expect = oracle(&kept, &keys, from, &asked);
        let mesh = mesh(&kept);
        let of_service = asked.ask(|facts| authorize_service(&mesh, &keys, &conn(from), facts));
        prop_assert_eq!(kind(of_service), &*expect);
        let workload = Workload { policies: keys, ..web() };
        let of_workload = asked.ask(|facts| authorize_request(&mesh, &workload, &conn(from), facts));
        prop_assert_eq!(kind(of_workload), &*expect);
        // An agent, which sees less, lets nothing through that a waypoint refuses.
        if matches!(authorize(&mesh, &workload, &conn(from)), Verdict::Allow { .. }) {
            prop_assert!(["no policy", "allowed"].contains(&&*expect), "{}", expect);
        }
    }
}
