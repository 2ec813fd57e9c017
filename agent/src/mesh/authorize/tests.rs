//! Who may reach a workload, as Istio's ambient mode has it, as tables; and `authorize` against an oracle that is too
//! simple to be wrong.

use ipnet::IpNet;
use proptest::{collection::vec, prelude::*, sample::select};

use super::{rule::Test, *};
use crate::mesh::{
    Clause, InScope, Match, MeshParts, MtlsSetting, PeerAuthentication, PeerAuthentications, Rule, Scope,
    ServiceAccountMatch, StringMatch,
    sample::{self, any_of, policy},
};

/// `namespace/account`, or none for plaintext.
fn peer(text: &str) -> Option<SpiffeId> {
    text.split_once('/')
        .map(|(namespace, account)| sample::identity(namespace, account))
}

/// A connection to the workload 10.0.0.9, port 8080.
fn conn(from: &str, source_ip: &str) -> Inbound {
    let destination = "10.0.0.9:8080".parse().unwrap();
    Inbound {
        peer: peer(from),
        source_ip: source_ip.parse().unwrap(),
        destination,
    }
}

fn shown(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow { policy: None } => "allowed".into(),
        Verdict::Allow { policy: Some(key) } => format!("allowed by {key}"),
        Verdict::Deny(why) => why.to_string(),
    }
}

/// What the policies say to `from` (plaintext if `-`), who reaches for a workload of namespace `demo` that names the
/// selector policies `named`.
fn check(policies: &[Policy], named: &[&str], from: &str, expect: &str) {
    let parts = MeshParts {
        policies: policies.to_vec(),
        ..sample::parts()
    };
    let named = named.iter().map(|key| sample::policy_key(key)).collect();
    let workload = Workload {
        policies: named,
        ..sample::pod("web-1", &["10.0.0.9"])
    };
    let verdict = authorize(&Mesh::new(parts), &workload, &conn(from, "10.0.0.1"));
    assert_eq!(shown(verdict), expect, "{from}, {policies:#?}");
}

fn exact(principal: &str) -> Match {
    let (namespace, account) = principal.split_once('/').unwrap();
    let principal = format!("cluster.local/ns/{namespace}/sa/{account}");
    Match {
        principals: vec![StringMatch::Exact(principal.into())],
        ..Match::default()
    }
}

/// What is said when none of these policies allowed.
fn nobody(in_scope: &str) -> String {
    format!("no ALLOW policy matched: {in_scope}")
}

#[test]
fn order_and_scopes() {
    let allow_curl = |key, scope| {
        policy(
            key,
            scope,
            Action::Allow,
            vec![any_of([exact("demo/curl"), exact("demo/web")])],
        )
    };
    let deny_web = |key, scope| policy(key, scope, Action::Deny, vec![any_of([exact("demo/web")])]);
    check(&[], &[], "demo/curl", "allowed");
    check(&[], &[], "-", "allowed");
    for (key, scope, named) in [
        ("root/p", Scope::Mesh, [].as_slice()),
        ("demo/p", Scope::Namespace, &[]),
        ("demo/p", Scope::Selector, &["demo/p"]),
        ("root/p", Scope::Selector, &["root/p"]),
    ] {
        check(
            &[allow_curl(key, scope)],
            named,
            "demo/curl",
            &format!("allowed by {key}"),
        );
        check(&[allow_curl(key, scope)], named, "demo/other", &nobody(key));
        check(&[allow_curl(key, scope)], named, "-", &nobody(key));
        check(
            &[deny_web(key, scope)],
            named,
            "demo/web",
            &format!("denied by policy {key}"),
        );
        check(&[deny_web(key, scope)], named, "demo/curl", "allowed");
        let both = [allow_curl("demo/ok", Scope::Namespace), deny_web(key, scope)];
        check(&both, named, "demo/web", &format!("denied by policy {key}"));
        check(&both, named, "demo/curl", "allowed by demo/ok");
    }
    // Those of other namespaces, and those that the workload does not name, say nothing.
    check(
        &[deny_web("other/p", Scope::Namespace)],
        &[],
        "demo/web",
        "allowed",
    );
    check(&[deny_web("demo/p", Scope::Selector)], &[], "demo/web", "allowed");
    check(
        &[allow_curl("demo/p", Scope::Selector)],
        &[],
        "demo/other",
        "allowed",
    );
    // One that has not arrived.
    let missing = "policy demo/q applies but has not arrived";
    check(
        &[allow_curl("demo/p", Scope::Namespace)],
        &["demo/q"],
        "demo/curl",
        missing,
    );
    check(
        &[deny_web("demo/p", Scope::Namespace)],
        &["demo/q"],
        "demo/web",
        missing,
    );
}

#[test]
fn rules_and_clauses() {
    let check = |action, rules: Vec<Rule>, expect| {
        let expect = match (action, expect) {
            (Action::Allow, true) => "allowed by demo/p",
            (Action::Allow, false) => "no ALLOW policy matched: demo/p",
            (Action::Deny, true) => "denied by policy demo/p",
            (Action::Deny, false) | (Action::Audit, _) => "allowed",
        };
        check(
            &[policy("demo/p", Scope::Namespace, action, rules)],
            &[],
            "demo/curl",
            expect,
        );
    };
    let (yes, no) = (exact("demo/curl"), exact("demo/web"));
    let clause = |matches: &[&Match]| Clause {
        matches: matches.iter().copied().cloned().collect(),
    };
    let rule = |clauses: &[&[&Match]]| Rule {
        clauses: clauses.iter().map(|matches| clause(matches)).collect(),
    };
    for action in [Action::Allow, Action::Deny, Action::Audit] {
        check(action, vec![], false);
        check(action, vec![Rule::default()], true);
        check(action, vec![rule(&[&[&yes]])], true);
        check(action, vec![rule(&[&[&no]])], false);
        check(action, vec![rule(&[&[&no]]), rule(&[&[&yes]])], true);
        check(action, vec![rule(&[&[&yes], &[&no]])], false);
        check(action, vec![rule(&[&[&yes], &[&yes]])], true);
        check(action, vec![rule(&[&[&no, &yes], &[&yes, &no]])], true);
        // Nothing said: never wider, so it is a match for DENY alone.
        let deny = action == Action::Deny;
        let empty = Match::default();
        check(action, vec![rule(&[&[&empty]])], deny);
        check(action, vec![rule(&[&[]])], deny);
        check(action, vec![rule(&[&[&yes], &[&empty]])], deny);
        check(action, vec![rule(&[&[&yes], &[]])], deny);
        check(action, vec![rule(&[&[&no], &[&empty]])], false);
        check(action, vec![rule(&[&[&empty, &yes]])], true);
        check(action, vec![rule(&[&[&empty, &no]])], deny);
    }
}

/// Whether a match holds for `curl` of `demo` and for a plaintext peer, both from 10.0.0.1 to 10.0.0.9:8080.
fn check_match(match_: Match, curl: bool, plaintext: bool) {
    let (mesh, workload) = (Mesh::new(sample::parts()), sample::pod("web-1", &["10.0.0.9"]));
    for (from, expect) in [("demo/curl", curl), ("-", plaintext)] {
        let conn = conn(from, "::ffff:10.0.0.1");
        let judged = Judged::new(&mesh, &workload, &conn);
        let holds = Test::new(&match_, Action::Allow).is_some_and(|test| test.holds(&judged));
        assert_eq!(holds, expect, "{from}: {match_:?}");
    }
}

#[test]
fn names() {
    let patterns = |text: &str| -> Vec<StringMatch> {
        let pattern = |text: &str| match text.split_once('*') {
            Some(("", "")) => StringMatch::Presence,
            Some((prefix, "")) => StringMatch::Prefix(prefix.into()),
            Some((_, suffix)) => StringMatch::Suffix(suffix.into()),
            None => StringMatch::Exact(text.into()),
        };
        text.split(' ').map(pattern).collect()
    };
    // As a positive and as a `not_` field: what `curl` gets is inverted, what a plaintext peer gets is not: it has no
    // name, so it is nobody that is named, and not somebody else either.
    let principals = |text: &str, curl: bool| {
        check_match(
            Match {
                principals: patterns(text),
                ..Match::default()
            },
            curl,
            false,
        );
        check_match(
            Match {
                not_principals: patterns(text),
                ..Match::default()
            },
            !curl,
            true,
        );
    };
    principals("cluster.local/ns/demo/sa/curl", true);
    principals("cluster.local/ns/demo/sa/cur", false);
    principals("spiffe://cluster.local/ns/demo/sa/curl", false);
    principals("cluster.local/ns/demo/*", true);
    principals("cluster.local/ns/dem/*", false);
    principals("*/sa/curl", true);
    principals("*/sa/url", false);
    principals("*", true);
    principals("cluster.local/ns/demo/sa/web */sa/curl", true);

    let namespaces = |text: &str, curl: bool| {
        check_match(
            Match {
                namespaces: patterns(text),
                ..Match::default()
            },
            curl,
            false,
        );
        check_match(
            Match {
                not_namespaces: patterns(text),
                ..Match::default()
            },
            !curl,
            true,
        );
    };
    namespaces("demo", true);
    namespaces("dem", false);
    namespaces("de*", true);
    namespaces("*mo", true);
    namespaces("other demo", true);
    namespaces("*", true);

    // Both twins at once.
    let both = |yes: &str, no: &str, curl| {
        let (principals, not_principals) = (patterns(yes), patterns(no));
        check_match(
            Match {
                principals,
                not_principals,
                ..Match::default()
            },
            curl,
            false,
        );
    };
    both("cluster.local/ns/demo/*", "*/sa/web", true);
    both("cluster.local/ns/demo/*", "*/sa/curl", false);
}

#[test]
fn addresses_and_ports() {
    let nets = |text: &str| text.split(' ').map(|net| net.parse().unwrap()).collect();
    let check = |match_: Match, expect| check_match(match_, expect, expect);
    for (net, source, destination) in [
        ("10.0.0.0/8", true, true),
        ("10.0.0.1/32", true, false),
        ("10.0.0.9/32", false, true),
        ("0.0.0.0/0", true, true),
        ("::/0", false, false),
        ("11.0.0.0/8 10.0.0.1/32", true, false),
    ] {
        check(
            Match {
                source_ips: nets(net),
                ..Match::default()
            },
            source,
        );
        check(
            Match {
                not_source_ips: nets(net),
                ..Match::default()
            },
            !source,
        );
        check(
            Match {
                destination_ips: nets(net),
                ..Match::default()
            },
            destination,
        );
        check(
            Match {
                not_destination_ips: nets(net),
                ..Match::default()
            },
            !destination,
        );
    }
    for (ports, expect) in [(vec![8080], true), (vec![80, 8080], true), (vec![80], false)] {
        check(
            Match {
                destination_ports: ports.clone(),
                ..Match::default()
            },
            expect,
        );
        check(
            Match {
                not_destination_ports: ports,
                ..Match::default()
            },
            !expect,
        );
    }
    // Every field must hold.
    let port = Match {
        destination_ports: vec![8080],
        ..Match::default()
    };
    check(
        Match {
            source_ips: nets("10.0.0.0/8"),
            ..port.clone()
        },
        true,
    );
    check(
        Match {
            source_ips: nets("11.0.0.0/8"),
            ..port.clone()
        },
        false,
    );
    check(
        Match {
            not_destination_ips: nets("10.0.0.9/32"),
            ..port
        },
        false,
    );
}

#[test]
fn a_v4_mapped_network_is_an_ipv4_network() {
    let from = Match {
        source_ips: vec!["::ffff:10.0.0.0/120".parse().unwrap()],
        ..Match::default()
    };
    let deny = policy("demo/p", Scope::Namespace, Action::Deny, vec![any_of([from])]);
    check(&[deny], &[], "demo/curl", "denied by policy demo/p");
}

#[test]
fn trust_domains_and_service_accounts() {
    let trust_domains = |text: &str, curl: bool| {
        let pattern = match text.split_once('*') {
            None => StringMatch::Exact(text.into()),
            Some(("", "")) => StringMatch::Presence,
            Some((prefix, "")) => StringMatch::Prefix(prefix.into()),
            Some((_, suffix)) => StringMatch::Suffix(suffix.into()),
        };
        let (positive, negative) = (
            Match {
                trust_domains: vec![pattern.clone()],
                ..Match::default()
            },
            Match {
                not_trust_domains: vec![pattern],
                ..Match::default()
            },
        );
        check_match(positive, curl, false);
        check_match(negative, !curl, true);
    };
    trust_domains("cluster.local", true);
    trust_domains("cluster", false);
    trust_domains("cluster*", true);
    trust_domains("*.local", true);
    trust_domains("*", true);
    trust_domains("cluster.local/ns/demo/sa/curl", false);

    let service_accounts = |texts: &[&str], curl: bool| {
        let accounts: Vec<_> = texts
            .iter()
            .map(|text| {
                let (namespace, name) = text.split_once('/').unwrap();
                ServiceAccountMatch {
                    namespace: namespace.into(),
                    name: name.into(),
                }
            })
            .collect();
        let positive = Match {
            service_accounts: accounts.clone(),
            ..Match::default()
        };
        check_match(positive, curl, false);
        let negative = Match {
            not_service_accounts: accounts,
            ..Match::default()
        };
        check_match(negative, !curl, true);
    };
    service_accounts(&["demo/curl"], true);
    service_accounts(&["other/curl"], false);
    service_accounts(&["demo/cur"], false);
    service_accounts(&["demo/web", "demo/curl"], true);
}

/// A match of fields that an L4 agent cannot see, such as `paths`, besides these.
fn unseen(others: Match) -> Match {
    Match {
        unseen: vec!["paths".into(), "request.headers[x]".into()],
        ..others
    }
}

/// A match with a value that the feed could not read, besides these.
fn unreadable(others: Match) -> Match {
    Match {
        unreadable: vec!["ipBlocks".into()],
        ..others
    }
}

#[test]
fn what_is_unseen_or_unreadable_never_widens() {
    for unknown in [unseen, unreadable] {
        check_unknown(unknown);
    }
}

fn check_unknown(unknown: fn(Match) -> Match) {
    let rules = |match_: &Match| vec![any_of([match_.clone()])];
    let allow = |match_: &Match| policy("demo/a", Scope::Namespace, Action::Allow, rules(match_));
    let deny = |match_: &Match| policy("demo/d", Scope::Namespace, Action::Deny, rules(match_));
    let denied = "denied by policy demo/d";
    // By itself: an ALLOW allows nothing, a DENY denies everything, whoever it is.
    let alone = unknown(Match::default());
    for from in ["demo/curl", "-"] {
        check(&[allow(&alone)], &[], from, &nobody("demo/a"));
        check(&[deny(&alone)], &[], from, denied);
    }
    // With what can be seen: the DENY is as wide as that.
    let with_curl = unknown(exact("demo/curl"));
    check(&[allow(&with_curl)], &[], "demo/curl", &nobody("demo/a"));
    check(&[deny(&with_curl)], &[], "demo/curl", denied);
    check(&[deny(&with_curl)], &[], "demo/web", "allowed");
    check(&[deny(&with_curl)], &[], "-", "allowed");
    // Beside a match or a rule of what can be seen, and in a clause of its own.
    let either = vec![any_of([alone.clone(), exact("demo/curl")])];
    let either = policy("demo/a", Scope::Namespace, Action::Allow, either);
    check(
        std::slice::from_ref(&either),
        &[],
        "demo/curl",
        "allowed by demo/a",
    );
    check(&[either], &[], "demo/web", &nobody("demo/a"));
    let clause = |match_: Match| Clause {
        matches: vec![match_],
    };
    let both = vec![Rule {
        clauses: vec![clause(exact("demo/curl")), clause(alone)],
    }];
    let allow = policy("demo/a", Scope::Namespace, Action::Allow, both.clone());
    let deny = policy("demo/d", Scope::Namespace, Action::Deny, both);
    check(&[allow], &[], "demo/curl", &nobody("demo/a"));
    check(std::slice::from_ref(&deny), &[], "demo/curl", denied);
    check(&[deny], &[], "demo/web", "allowed");
}

#[test]
fn a_waypoint_enforces_what_only_a_request_has_for_what_comes_out_of_it() {
    // `web-1` backs a service that is bound to the waypoint `way`, `web-2` is bound to it itself, by address, and
    // `web-3` is not.
    let way = sample::backs(sample::pod("way-1", &["10.0.0.20"]), "way");
    let unready = Workload {
        healthy: false,
        ..sample::backs(sample::pod("way-2", &["10.0.0.21"]), "way")
    };
    let bound = Workload {
        waypoint: sample::waypoint_address("10.0.0.20", 15008),
        ..sample::pod("web-2", &["10.0.0.9"])
    };
    let pods = [
        sample::backs(sample::pod("web-1", &["10.0.0.9"]), "web"),
        bound,
        sample::pod("web-3", &["10.0.0.9"]),
    ];
    let service = crate::mesh::Service {
        waypoint: sample::waypoint_service("way"),
        ..sample::service("web", &["10.96.0.1"])
    };
    let deny = |action, match_: Match| policy("demo/d", Scope::Namespace, action, vec![any_of([match_])]);
    let verdicts = |policy: Policy, from: &str, source_ip: &str| {
        let mesh = Mesh::new(MeshParts {
            workloads: vec![way.clone(), unready.clone(), sample::pod("curl-1", &["10.0.0.1"])],
            services: vec![service.clone(), sample::service("way", &[])],
            policies: vec![policy],
            ..sample::parts()
        });
        let allowed = |pod| {
            matches!(
                authorize(&mesh, pod, &conn(from, source_ip)),
                Verdict::Allow { .. }
            )
        };
        pods.each_ref().map(allowed)
    };
    let by_path = || deny(Action::Deny, unseen(Match::default()));
    assert_eq!(verdicts(by_path(), "demo/way", "10.0.0.20"), [true, true, false]);
    // A waypoint's pod that is not ready any more is one all the same; an address is one pod's alone.
    assert_eq!(verdicts(by_path(), "demo/way", "10.0.0.21"), [true, false, false]);
    // Around the waypoint; its identity from elsewhere; its address without its identity, or with another.
    for (from, source_ip) in [
        ("demo/curl", "10.0.0.1"),
        ("demo/way", "10.0.0.1"),
        ("-", "10.0.0.20"),
        ("demo/curl", "10.0.0.20"),
    ] {
        assert_eq!(
            verdicts(by_path(), from, source_ip),
            [false; 3],
            "{from} {source_ip}"
        );
    }
    // Nothing else of a policy is left to the waypoint, nor what the feed could not read, and an ALLOW is not widened by it.
    let all = policy("demo/d", Scope::Namespace, Action::Deny, vec![Rule::default()]);
    assert_eq!(verdicts(all, "demo/way", "10.0.0.20"), [false; 3]);
    assert_eq!(
        verdicts(deny(Action::Deny, Match::default()), "demo/way", "10.0.0.20"),
        [false; 3]
    );
    let unreadable = deny(Action::Deny, unreadable(Match::default()));
    assert_eq!(verdicts(unreadable, "demo/way", "10.0.0.20"), [false; 3]);
    let allow = deny(Action::Allow, unseen(Match::default()));
    assert_eq!(verdicts(allow, "demo/way", "10.0.0.20"), [false; 3]);
}

#[test]
fn a_refusal_names_the_first_few_policies_in_scope() {
    let policies: Vec<_> = (0..7)
        .map(|i| policy(&format!("demo/p{i}"), Scope::Namespace, Action::Allow, vec![]))
        .collect();
    check(&policies[..2], &[], "-", &nobody("demo/p0, demo/p1"));
    check(
        &policies[..4],
        &[],
        "-",
        &nobody("demo/p0, demo/p1, demo/p2, demo/p3"),
    );
    check(
        &policies,
        &[],
        "-",
        &nobody("demo/p0, demo/p1, demo/p2, demo/p3 and 3 more"),
    );
}

#[test]
fn a_workload_that_is_not_as_the_mesh_has_it() {
    let of_selector = |key, action| policy(key, Scope::Selector, action, vec![Rule::default()]);
    let known = sample::pod("web-1", &["10.0.0.9"]);
    let mesh = Mesh::new(MeshParts {
        policies: vec![
            of_selector("demo/d", Action::Deny),
            of_selector("demo/a", Action::Allow),
            policy("other/p", Scope::Namespace, Action::Deny, vec![Rule::default()]),
        ],
        workloads: vec![known.clone()],
        ..sample::parts()
    });
    let check = |workload: &Workload, expect: &str| {
        let verdict = authorize(&mesh, workload, &conn("demo/curl", "10.0.0.1"));
        assert_eq!(shown(verdict), expect);
    };
    let named = |keys: &[&str]| Workload {
        policies: keys.iter().map(|key| sample::policy_key(key)).collect(),
        ..known.clone()
    };
    let elsewhere = Workload {
        namespace: "other".into(),
        ..known.clone()
    };
    check(mesh.workload(&known.uid).unwrap(), "allowed");
    check(&known, "allowed");
    check(&named(&["demo/a"]), "allowed by demo/a");
    check(&named(&["demo/a", "demo/d"]), "denied by policy demo/d");
    check(&named(&["demo/q"]), "policy demo/q applies but has not arrived");
    check(&elsewhere, "denied by policy other/p");
}

#[test]
fn strict() {
    let setting = |name: &str, mode, port_mode| PeerAuthentication {
        key: sample::policy_key(name),
        mode,
        ports: [(8080, port_mode)]
            .into_iter()
            .filter_map(|(port, mode)| Some((port, mode?)))
            .collect(),
    };
    let check_scopes = |scopes: [Option<PeerAuthentication>; 3], named: &[&str], from, expect: &str| {
        let [mesh, namespace, selector] = scopes;
        let namespaces = namespace.map(|said| ("demo".into(), said)).into_iter().collect();
        let workloads = selector
            .map(|said| (sample::uid("web-1"), said))
            .into_iter()
            .collect();
        let mesh = Mesh::new(MeshParts {
            peer_authentications: PeerAuthentications {
                mesh: mesh.unwrap_or_default(),
                namespaces,
                workloads,
            },
            ..sample::parts()
        });
        let named = named.iter().map(|key| sample::policy_key(key)).collect();
        let workload = Workload {
            policies: named,
            ..sample::pod("web-1", &["10.0.0.9"])
        };
        assert_eq!(
            shown(authorize(&mesh, &workload, &conn(from, "10.0.0.1"))),
            expect
        );
    };
    let check = |mode, port_mode, named: &[&str], from, expect: &str| {
        check_scopes(
            [Some(setting("root/all", mode, port_mode)), None, None],
            named,
            from,
            expect,
        );
    };
    let (strict, permissive) = (Some(MtlsMode::Strict), Some(MtlsMode::Permissive));
    let refused = "mutual TLS is required (STRICT) on port 8080 by peer authentication root/all (mesh)";
    check(strict, None, &[], "-", refused);
    check(strict, None, &[], "demo/curl", "allowed");
    check(strict, permissive, &[], "-", "allowed");
    check(permissive, strict, &[], "-", refused);
    check(None, None, &[], "-", "allowed");
    // Before everything else.
    check(strict, None, &["demo/missing"], "-", refused);
    // The narrowest scope that says anything, and its name.
    let all = || Some(setting("root/all", strict, None));
    let here = |mode| Some(setting("demo/here", mode, None));
    let web = |mode, port| Some(setting("demo/web", mode, port));
    let by = |what: &str| refused.replace("root/all (mesh)", what);
    let check = |scopes, expect: &str| check_scopes(scopes, &[], "-", expect);
    check([all(), here(None), web(None, None)], refused);
    check(
        [all(), here(strict), web(None, None)],
        &by("demo/here (namespace)"),
    );
    check(
        [None, here(permissive), web(None, strict)],
        &by("demo/web (selector)"),
    );
    check([all(), here(permissive), None], "allowed");
    check([all(), here(strict), web(permissive, None)], "allowed");
    check([all(), here(strict), web(strict, permissive)], "allowed");
}

#[test]
fn dry_run() {
    let dry = |key, action| Policy {
        dry_run: true,
        ..policy(key, Scope::Namespace, action, vec![any_of([exact("demo/curl")])])
    };
    let policies = vec![
        dry("demo/a", Action::Allow),
        dry("demo/d", Action::Deny),
        dry("other/d", Action::Deny),
    ];
    check(&policies, &[], "demo/curl", "allowed");
    check(&policies, &[], "demo/web", "allowed");
    let mesh = Mesh::new(MeshParts {
        policies,
        ..sample::parts()
    });
    let workload = sample::pod("web-1", &["10.0.0.9"]);
    let would = |from| -> Vec<_> {
        let conn = conn(from, "10.0.0.1");
        dry_run_matches(&mesh, &workload, &conn)
            .map(|policy| policy.key.to_string())
            .collect()
    };
    assert_eq!(would("demo/curl"), ["demo/a", "demo/d"]);
    assert!(would("demo/web").is_empty());
    let rehearsed = |from| rehearse(&mesh, &workload, &conn(from, "10.0.0.1")).map(shown);
    assert_eq!(rehearsed("demo/curl").as_deref(), Some("denied by policy demo/d"));
    assert_eq!(rehearsed("demo/web"), Some(nobody("demo/a")));
    let elsewhere = Workload {
        namespace: "shop".into(),
        ..workload.clone()
    };
    assert_eq!(rehearse(&mesh, &elsewhere, &conn("-", "10.0.0.1")), None);
}

const NAMESPACES: [&str; 3] = ["demo", "other", "root"];
const POLICIES: [&str; 4] = ["demo/a", "demo/b", "root/a", "other/a"];

fn any_pattern() -> impl Strategy<Value = StringMatch> {
    let text = select(&[
        "demo",
        "other",
        "cluster.local/ns/demo/sa/a",
        "cluster.local/ns/",
        "/sa/b",
        "cluster.local",
        "a",
        "",
    ]);
    prop_oneof![
        text.clone().prop_map(|text| StringMatch::Exact(text.into())),
        text.clone().prop_map(|text| StringMatch::Prefix(text.into())),
        text.prop_map(|text| StringMatch::Suffix(text.into())),
        Just(StringMatch::Presence),
    ]
}

fn any_net() -> impl Strategy<Value = IpNet> {
    const NETS: [&str; 6] = [
        "10.0.0.0/8",
        "10.0.0.1/32",
        "10.0.0.2/31",
        "fd00::/8",
        "0.0.0.0/0",
        "fd00::1/128",
    ];
    select(&NETS).prop_map(|net| net.parse().unwrap())
}

/// Mostly empty fields, as people write them.
fn some<T: std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    (prop::bool::weighted(0.25), vec(item, 1..3))
        .prop_map(|(said, items)| if said { items } else { Vec::new() })
}

fn any_match() -> impl Strategy<Value = Match> {
    let names = (
        some(any_pattern()),
        some(any_pattern()),
        some(any_pattern()),
        some(any_pattern()),
    );
    let nets = (some(any_net()), some(any_net()), some(any_net()), some(any_net()));
    let ports = (some(select(&[80u16, 81])), some(select(&[80u16, 81])));
    let identities = (
        some(any_pattern()),
        some(any_pattern()),
        some(any_account()),
        some(any_account()),
    );
    let unseen = 0..12_u8;
    (names, nets, ports, identities, unseen).prop_map(|(names, nets, ports, identities, unseen)| Match {
        namespaces: names.0,
        not_namespaces: names.1,
        principals: names.2,
        not_principals: names.3,
        source_ips: nets.0,
        not_source_ips: nets.1,
        destination_ips: nets.2,
        not_destination_ips: nets.3,
        destination_ports: ports.0,
        not_destination_ports: ports.1,
        trust_domains: identities.0,
        not_trust_domains: identities.1,
        service_accounts: identities.2,
        not_service_accounts: identities.3,
        unseen: (unseen == 1).then(|| "paths".into()).into_iter().collect(),
        request: None,
        unreadable: (unseen == 2).then(|| "ipBlocks".into()).into_iter().collect(),
    })
}

fn any_account() -> impl Strategy<Value = ServiceAccountMatch> {
    (select(&NAMESPACES), select(&["a", "b"])).prop_map(|(namespace, name)| ServiceAccountMatch {
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = select(&[Scope::Mesh, Scope::Namespace, Scope::Selector]);
    let action = select(&[Action::Allow, Action::Deny]);
    (
        select(&POLICIES),
        scope,
        action,
        vec(rule, 0..3),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(key, scope, action, rules, dry_run)| Policy {
            dry_run,
            ..policy(key, scope, action, rules)
        })
}

fn any_conn() -> impl Strategy<Value = Inbound> {
    let peer = prop::option::of((select(&NAMESPACES), select(&["a", "b"])));
    let address = select(&["10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1", "8.8.8.8"]);
    (peer, address.clone(), address, select(&[80u16, 81])).prop_map(|(peer, source, destination, port)| {
        Inbound {
            peer: peer.map(|(namespace, account)| sample::identity(namespace, account)),
            source_ip: source.parse().unwrap(),
            destination: std::net::SocketAddr::new(destination.parse().unwrap(), port),
        }
    })
}

/// The same question, asked without any index, in the order that Istio's policies have. The waypoint that the workload
/// is bound to, if it is, has the identity `demo/b` and the address 10.0.0.2.
fn oracle(policies: &[Policy], workload: &Workload, strict: bool, conn: &Inbound) -> Verdict {
    if strict && conn.peer.is_none() {
        return Verdict::Deny(Refusal::PlaintextToStrict(
            conn.destination.port(),
            strict_everywhere(),
        ));
    }
    for key in &workload.policies {
        if !policies.iter().any(|policy| policy.key == *key) {
            return Verdict::Deny(Refusal::PolicyMissing(key.clone()));
        }
    }
    let through_waypoint = workload.waypoint.is_some()
        && conn.peer == peer("demo/b")
        && conn.source_ip.to_canonical().to_string() == "10.0.0.2";
    let mut in_scope = Vec::new();
    let mut allowed_by = Vec::new();
    let mut denied_by = Vec::new();
    for policy in policies {
        let covers = match policy.scope {
            Scope::Mesh => true,
            Scope::Namespace => policy.key.namespace == workload.namespace,
            Scope::Selector => false,
        };
        if policy.dry_run || !(covers || workload.policies.contains(&policy.key)) {
            continue;
        }
        if policy.action == Action::Allow {
            in_scope.push(&policy.key);
        }
        let matched = policy.rules.iter().any(|rule| {
            rule.clauses.iter().all(|clause| {
                let unseen_holds = policy.action == Action::Deny && !through_waypoint;
                let mut held = clause
                    .matches
                    .iter()
                    .map(|match_| oracle_match(match_, policy.action, unseen_holds, conn));
                // A match that says nothing counts for DENY alone, and so does a clause without matches.
                let silent = |held: Option<bool>| held.unwrap_or(policy.action == Action::Deny);
                if clause.matches.is_empty() {
                    silent(None)
                } else {
                    held.any(silent)
                }
            })
        });
        match policy.action {
            Action::Allow if matched => allowed_by.push(policy.key.clone()),
            Action::Deny if matched => denied_by.push(policy.key.clone()),
            _ => {}
        }
    }
    match (denied_by.pop(), allowed_by.pop()) {
        (Some(key), _) => Verdict::Deny(Refusal::DeniedBy(key)),
        (None, None) if !in_scope.is_empty() => {
            Verdict::Deny(Refusal::NotAllowed(in_scope.into_iter().collect()))
        }
        (None, policy) => Verdict::Allow { policy },
    }
}

/// None where the match says nothing.
fn oracle_match(match_: &Match, action: Action, unseen_holds: bool, conn: &Inbound) -> Option<bool> {
    let name = |pattern: &StringMatch, name: Option<&str>| match (pattern, name) {
        (_, None) => false,
        (StringMatch::Exact(text), Some(name)) => **text == *name,
        (StringMatch::Prefix(text), Some(name)) => name.strip_prefix(&**text).is_some(),
        (StringMatch::Suffix(text), Some(name)) => name.strip_suffix(&**text).is_some(),
        (StringMatch::Presence, Some(_)) => true,
    };
    let namespace = conn.peer.as_ref().map(|peer| peer.namespace());
    let principal = conn.peer.as_ref().map(|peer| &peer.as_str()["spiffe://".len()..]);
    let (source, destination) = (
        conn.source_ip.to_canonical(),
        conn.destination.ip().to_canonical(),
    );
    let trust_domain = conn.peer.as_ref().map(|peer| peer.trust_domain());
    let account = |account: &ServiceAccountMatch| {
        let path = format!("/ns/{}/sa/{}", account.namespace, account.name);
        conn.peer
            .as_ref()
            .is_some_and(|peer| peer.as_str().ends_with(&path))
    };
    let said: Vec<bool> = [
        (!match_.unseen.is_empty()).then_some(unseen_holds),
        (!match_.unreadable.is_empty()).then_some(action == Action::Deny),
        (!match_.trust_domains.is_empty())
            .then(|| match_.trust_domains.iter().any(|p| name(p, trust_domain))),
        (!match_.not_trust_domains.is_empty())
            .then(|| !match_.not_trust_domains.iter().any(|p| name(p, trust_domain))),
        (!match_.service_accounts.is_empty()).then(|| match_.service_accounts.iter().any(account)),
        (!match_.not_service_accounts.is_empty()).then(|| !match_.not_service_accounts.iter().any(account)),
        (!match_.namespaces.is_empty()).then(|| match_.namespaces.iter().any(|p| name(p, namespace))),
        (!match_.not_namespaces.is_empty())
            .then(|| !match_.not_namespaces.iter().any(|p| name(p, namespace))),
        (!match_.principals.is_empty()).then(|| match_.principals.iter().any(|p| name(p, principal))),
        (!match_.not_principals.is_empty())
            .then(|| !match_.not_principals.iter().any(|p| name(p, principal))),
        (!match_.source_ips.is_empty()).then(|| match_.source_ips.iter().any(|n| n.contains(&source))),
        (!match_.not_source_ips.is_empty())
            .then(|| !match_.not_source_ips.iter().any(|n| n.contains(&source))),
        (!match_.destination_ips.is_empty())
            .then(|| match_.destination_ips.iter().any(|n| n.contains(&destination))),
        (!match_.not_destination_ips.is_empty()).then(|| {
            !match_
                .not_destination_ips
                .iter()
                .any(|n| n.contains(&destination))
        }),
        (!match_.destination_ports.is_empty())
            .then(|| match_.destination_ports.contains(&conn.destination.port())),
        (!match_.not_destination_ports.is_empty())
            .then(|| !match_.not_destination_ports.contains(&conn.destination.port())),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!said.is_empty()).then(|| said.into_iter().all(|held| held))
}

fn strict_everywhere() -> MtlsSetting {
    MtlsSetting {
        mode: MtlsMode::Strict,
        scope: Scope::Mesh,
        key: sample::policy_key("root/all"),
    }
}

/// Which of several policies is named is not asked of the oracle.
fn kind(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allow { policy } => format!("allow {}", policy.is_some()),
        Verdict::Deny(Refusal::DeniedBy(_)) => "denied by".into(),
        Verdict::Deny(Refusal::NotAllowed(InScope { named, more })) => {
            format!("none of {}", named.len() + more)
        }
        Verdict::Deny(why) => why.to_string(),
    }
}

/// Found without any index.
fn first_in_order(mesh: &Mesh, workload: &Workload, conn: &Inbound, action: Action) -> Option<PolicyKey> {
    let judged = Judged::new(mesh, workload, conn);
    let mut enforced = mesh
        .policies_of(workload)
        .filter(|policy| policy.action == action && !policy.dry_run);
    let first = enforced.find(|policy| matches(policy, &judged));
    first.map(|policy| policy.key.clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn as_the_oracle_says(
        policies in vec(any_policy(), 0..5),
        named in proptest::sample::subsequence(&POLICIES, 0..3),
        namespace in select(&NAMESPACES),
        strict in prop::bool::weighted(0.2),
        bound in any::<bool>(),
        conn in any_conn(),
    ) {
        // One policy per key, as the mesh keeps them.
        let mut kept: Vec<Policy> = Vec::new();
        for policy in policies {
            if !kept.iter().any(|other| other.key == policy.key) {
                kept.push(policy);
            }
        }
        let named = named.into_iter().map(sample::policy_key).collect();
        let pod = sample::pod("web-1", &["10.0.0.9"]);
        let waypoint = sample::waypoint_address("10.0.0.2", 15008).filter(|_| bound);
        let workload = Workload { namespace: namespace.into(), policies: named, waypoint, ..pod };
        let way = sample::pod("b-1", &["10.0.0.2"]);
        let mode = if strict { MtlsMode::Strict } else { MtlsMode::Permissive };
        let mesh = PeerAuthentication { key: sample::policy_key("root/all"), mode: Some(mode), ..Default::default() };
        let peer_authentications = PeerAuthentications { mesh, ..PeerAuthentications::default() };
        let parts = MeshParts { policies: kept.clone(), workloads: vec![way], ..sample::parts() };
        let mesh = Mesh::new(MeshParts { peer_authentications, ..parts });
        let (verdict, expect) = (authorize(&mesh, &workload, &conn), oracle(&kept, &workload, strict, &conn));
        prop_assert_eq!(kind(&verdict), kind(&expect));
        // The policy that is named is the first that says so.
        let first = |action| first_in_order(&mesh, &workload, &conn, action);
        match verdict.clone() {
            Verdict::Deny(Refusal::DeniedBy(key)) => prop_assert_eq!(first(Action::Deny), Some(key)),
            Verdict::Allow { policy } => prop_assert_eq!(first(Action::Allow), policy),
            Verdict::Deny(_) => {}
        }
        // And it is one that covers the workload and says so.
        if let Verdict::Allow { policy: Some(key) } | Verdict::Deny(Refusal::DeniedBy(key)) = &verdict {
            let alone: Vec<_> = kept.iter().filter(|policy| policy.key == *key).cloned().collect();
            let workload = Workload { policies: workload.policies.into_iter().filter(|k| k == key).collect(), ..workload };
            prop_assert_eq!(&oracle(&alone, &workload, strict, &conn), &verdict);
        }
    }
}
