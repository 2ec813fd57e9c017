//! What is sent arrives as it was; what is not known is closed.

mod bytes;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    mesh::{
        Action, Clause, GatewayAddress, GatewayDestination, Match, MtlsMode, Policy, PortMapping, PortModes,
        Rule, SameNode, Scope, SpiffeId, StringMatch, TunnelProtocol, Workload, WorkloadType,
        http::{HttpRoutes, RequestAuthentication, RequestMatch, ServiceRoutes, Traffic},
    },
    rpc::authorization as wire,
};

fn read(bytes: &[u8], defaults: &Defaults) -> Result<Addressed, Unreadable> {
    address(bytes, defaults, &mut Interned::default())
}

fn defaults() -> Defaults {
    Defaults {
        sees: Sees::Requests,
        trust_domain: TrustDomain::default(),
        cluster: "Kubernetes".into(),
    }
}

pub(in crate::feed) fn sample() -> Workload {
    let key = ServiceKey {
        namespace: "shop".into(),
        hostname: "cart.shop.svc.cluster.local".into(),
    };
    let mapping = PortMapping {
        service_port: 80,
        target_port: 8080,
    };
    Workload {
        uid: "Kubernetes//Pod/shop/cart-1".into(),
        name: "cart-1".into(),
        namespace: "shop".into(),
        identity: SpiffeId::new(&TrustDomain::default(), "shop", "cart").unwrap(),
        addresses: vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()],
        node: "a".into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        workload_name: "cart".into(),
        workload_type: WorkloadType::Deployment,
        canonical_name: "cart".into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        network: "".into(),
        locality: crate::mesh::Locality::default(),
        capacity: 0,
        healthy: false,
        host_network: false,
        native_tunnel: true,
        waypoint: Some(GatewayAddress {
            destination: GatewayDestination::Service(key.clone()),
            hbone_port: 15008,
        }),
        same_node: Some(SameNode::Tunnel),
        policies: vec![policy_key("shop/viewer")],
        services: [(key, vec![mapping])].into(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    }
}

/// One with what only waypoints ask.
fn behind_a_waypoint() -> Workload {
    let mut it = sample();
    let (key, _) = it.services.first_key_value().unwrap();
    it.subsets = vec![
        (key.clone(), "v1".into()),
        (key.clone(), "odd name,\n with \"all\"".into()),
    ];
    it.authentications = vec![policy_key("shop/jwt"), policy_key("istio-system/all")];
    it
}

#[test]
fn a_workload_arrives_as_it_was() {
    let more = policy_key("istio-system/istio_converted_static_strict");
    let bytes = encode_workload(&behind_a_waypoint(), std::slice::from_ref(&more));
    let check = |sees, mut expected: Workload| {
        let defaults = Defaults { sees, ..defaults() };
        let Ok(Addressed::Workload(arrived)) = read(&bytes, &defaults) else {
            panic!("no workload")
        };
        expected.policies.push(more.clone());
        assert_eq!(*arrived, expected);
    };
    check(Sees::Requests, behind_a_waypoint());
    check(Sees::Connections, sample());
}

#[test]
fn what_only_waypoints_ask_concerns_nobody_else() {
    use crate::rpc::workload::{Address, AddressType};
    let check = |name: &str| {
        let mut sent: Address = prost::Message::decode(encode_workload(&behind_a_waypoint(), &[])).unwrap();
        let Some(AddressType::Workload(workload)) = &mut sent.r#type else {
            panic!("no workload")
        };
        let found = workload.extensions.iter_mut().find(|it| it.name == name);
        found.unwrap().config.as_mut().unwrap().value = "[[1]]".into();
        let bytes = prost::Message::encode_to_vec(&sent);
        let error = read(&bytes, &defaults()).unwrap_err().to_string();
        assert!(error.starts_with(name), "{error}");
        let agent = Defaults {
            sees: Sees::Connections,
            ..defaults()
        };
        assert!(read(&bytes, &agent).is_ok());
    };
    check(SUBSETS);
    check(AUTHENTICATIONS);
}

#[test]
fn what_cannot_be_read_is_named_and_never_becomes_open() {
    use crate::rpc::workload::{Address, AddressType, GatewayAddress, Workload};
    let check = |workload: Workload, field: &str| {
        let it = Address {
            r#type: Some(AddressType::Workload(Box::new(Workload {
                uid: "u".into(),
                namespace: "shop".into(),
                ..workload
            }))),
        };
        let error = read(&prost::Message::encode_to_vec(&it), &defaults()).unwrap_err();
        assert!(error.to_string().starts_with(field), "{error}");
    };
    check(
        Workload {
            addresses: vec![vec![1, 2, 3].into()],
            ..Workload::default()
        },
        "addresses",
    );
    check(
        Workload {
            tunnel_protocol: 2,
            ..Workload::default()
        },
        "tunnel_protocol",
    );
    check(
        Workload {
            waypoint: Some(GatewayAddress::default()),
            ..Workload::default()
        },
        "waypoint",
    );
    check(
        Workload {
            trust_domain: "No Domain".into(),
            ..Workload::default()
        },
        "trust_domain",
    );
}

fn a_policy(action: Action, it: Match) -> Policy {
    Policy {
        key: policy_key("shop/p"),
        scope: Scope::Namespace,
        action,
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![it] }],
        }],
        dry_run: false,
    }
}

/// Also what an agent sees that knows no extensions.
fn foreign(policy: &Policy) -> wire::Match {
    let mut it: wire::Authorization = prost::Message::decode(encode_policy(policy)).unwrap();
    it.rules.remove(0).clauses.remove(0).matches.remove(0)
}

#[test]
fn a_match_that_an_agent_does_not_know_is_closed_to_it() {
    for it in [
        Match {
            unseen: vec!["paths".into()],
            ..Match::default()
        },
        Match {
            trust_domains: vec![StringMatch::Exact("other".into())],
            ..Match::default()
        },
        Match::default(),
        Match {
            request: Some(a_request()),
            ..Match::default()
        },
        Match {
            unseen: vec!["methods".into()],
            request: Some(a_request()),
            ..Match::default()
        },
    ] {
        let allow = foreign(&a_policy(Action::Allow, it.clone()));
        assert_eq!(allow.not_destination_ips.len(), 2, "an ALLOW matches nothing");
        let deny = foreign(&a_policy(Action::Deny, it));
        assert_eq!(
            deny.not_destination_ports,
            [0],
            "a DENY is not empty, and matches"
        );
        assert!(deny.not_destination_ips.is_empty());
    }
}

fn a_request() -> Arc<RequestMatch> {
    Arc::new(RequestMatch {
        methods: vec![StringMatch::Exact("GET".into())],
        ..RequestMatch::default()
    })
}

#[test]
fn what_a_match_says_of_requests_is_for_waypoints() {
    let check = |unseen: &[&str], at_an_agent: &[&str]| {
        let texts = |all: &[&str]| all.iter().map(|it| (*it).into()).collect();
        let said = Match {
            namespaces: vec![StringMatch::Exact("shop".into())],
            unseen: texts(unseen),
            request: Some(a_request()),
            ..Match::default()
        };
        for action in [Action::Allow, Action::Deny, Action::Audit] {
            let sent = a_policy(action, said.clone());
            let bytes = encode_policy(&sent);
            assert_eq!(policy(&bytes, Sees::Requests).unwrap(), sent);
            let expected = Match {
                unseen: texts(at_an_agent),
                request: None,
                ..said.clone()
            };
            let arrived = policy(&bytes, Sees::Connections).unwrap();
            assert_eq!(arrived, a_policy(action, expected));
        }
    };
    check(&["methods"], &["methods"]);
    // It would be wider than it is.
    check(&[], &[REQUEST]);
}

/// As istiod sends a DENY of paths alone: it leaves out what an agent could not judge, and no waypoint judges it there. So it denies,
/// as istiod says of it.
#[test]
fn a_deny_that_has_nothing_left_to_say_denies_everybody() {
    let rule = wire::Rule {
        clauses: vec![wire::Clause {
            matches: vec![wire::Match::default()],
        }],
    };
    let bytes = prost::Message::encode_to_vec(&wire::Authorization {
        name: "p".into(),
        action: wire::Action::Deny.into(),
        rules: vec![rule],
        ..wire::Authorization::default()
    });
    let read = policy(&bytes, Sees::Connections).unwrap();
    assert_eq!(read.rules, a_policy(Action::Deny, Match::default()).rules);
}

#[test]
fn a_service_may_name_whoever_is_nobody_in_a_mesh() {
    let sent = crate::rpc::workload::Service {
        hostname: "api.example.com".into(),
        subject_alt_names: [
            "api.example.com",
            "spiffe://cluster.local/ns/shop/sa/api",
            "spiffe://",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..crate::rpc::workload::Service::default()
    };
    let read = service(sent).unwrap().subject_alt_names;
    let names: Vec<_> = read.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["spiffe://cluster.local/ns/shop/sa/api"]);
}

#[test]
fn a_request_that_cannot_be_read_is_noted() {
    for value in ["", "{", "{\"methods\":[\"GET\"]}", "{\"later\":[]}"] {
        let it = wire::Match {
            extensions: vec![
                encode::extension(UNSEEN, b"methods".to_vec()),
                encode::extension(REQUEST, value.as_bytes().to_vec()),
            ],
            ..wire::Match::default()
        };
        let rule = wire::Rule {
            clauses: vec![wire::Clause { matches: vec![it] }],
        };
        let bytes = prost::Message::encode_to_vec(&wire::Authorization {
            name: "p".into(),
            rules: vec![rule],
            ..wire::Authorization::default()
        });
        let read = |sees| {
            policy(&bytes, sees)
                .unwrap()
                .rules
                .remove(0)
                .clauses
                .remove(0)
                .matches
                .remove(0)
        };
        let it = read(Sees::Requests);
        assert_eq!(
            (it.request, &*it.unreadable),
            (None, &[REQUEST.into()][..]),
            "{value}"
        );
        assert!(read(Sees::Connections).unreadable.is_empty());
    }
}

#[test]
fn an_audit_refuses_nothing_to_whoever_does_not_know_of_it() {
    for dry_run in [false, true] {
        let mut sent = a_policy(Action::Audit, Match::default());
        sent.dry_run = dry_run;
        let bytes = encode_policy(&sent);
        assert_eq!(policy(&bytes, Sees::Connections).unwrap(), sent);
        let foreign: wire::Authorization = prost::Message::decode(bytes).unwrap();
        assert!(foreign.dry_run && foreign.action == wire::Action::Deny as i32);
    }
    // One that refuses there refuses here.
    let bytes = prost::Message::encode_to_vec(&wire::Authorization {
        name: "p".into(),
        action: wire::Action::Deny as i32,
        extensions: vec![encode::extension(AUDIT, Vec::new())],
        ..wire::Authorization::default()
    });
    let read = policy(&bytes, Sees::Connections).unwrap();
    assert_eq!((read.action, read.dry_run), (Action::Deny, false));
}

fn key(name: &str) -> ServiceKey {
    service_key(name).unwrap()
}

fn routes() -> ServiceRoutes {
    ServiceRoutes {
        service: key("shop/cart.shop.svc.cluster.local"),
        http: BTreeMap::from([(80, HttpRoutes::default())]),
        tls: BTreeMap::new(),
        tcp: BTreeMap::new(),
        traffic: Traffic::default(),
        policies: vec![policy_key("shop/viewer")],
        authentications: vec![policy_key("shop/jwt")],
    }
}

fn authentication() -> RequestAuthentication {
    RequestAuthentication {
        key: policy_key("shop/jwt"),
        rules: Vec::new(),
        unreadable: vec!["jwtRules[0]".into()],
    }
}

#[test]
fn what_waypoints_do_arrives_as_it_was() {
    let name = routes_name(&routes().service);
    assert_eq!(routes_of(&name), Some(routes().service));
    match http(&name, &encode_routes(&routes())) {
        Ok(Http::Routes(arrived)) => assert_eq!(*arrived.values(), routes()),
        other => panic!("{other:?}"),
    }
    let name = authentication_name(&policy_key("shop/jwt"));
    assert_eq!(routes_of(&name), None);
    match http(&name, &encode_authentication(&authentication())) {
        Ok(Http::Authentication(arrived)) => assert_eq!(*arrived, authentication()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_waypoints_do_is_refused_where_it_cannot_be_read() {
    let check = |name: &str, text: &[u8], expect: &str| {
        let error = http(name, text).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    let sent = String::from_utf8(encode_routes(&routes()).to_vec()).unwrap();
    let name = "shop/cart.shop.svc.cluster.local";
    check(
        "shop/pay.shop.svc.cluster.local",
        sent.as_bytes(),
        "it is about shop/cart",
    );
    check("auth/shop/jwt", sent.as_bytes(), "it is about shop/cart");
    check(
        "auth/shop/other",
        &encode_authentication(&authentication()),
        "it is about auth/shop/jwt",
    );
    check(name, b"", "EOF");
    check(name, b"{}", "expected value");
    check(
        name,
        sent.replacen("\"service\"", "\"later\":1,\"service\"", 1)
            .as_bytes(),
        "later",
    );
    check(name, sent.replacen("routes", "tunnels", 1).as_bytes(), "tunnels");
    let deep = format!("{{\"routes\":{}", "[".repeat(100_000));
    check(name, deep.as_bytes(), "");
}

#[test]
fn a_value_that_cannot_be_read_is_noted_and_takes_its_list_along() {
    let bad = wire::Network {
        address: vec![1].into(),
        length: 8,
    };
    let good = wire::Network {
        address: vec![10, 0, 0, 0].into(),
        length: 8,
    };
    let it = wire::Match {
        source_ips: vec![good, bad],
        ..wire::Match::default()
    };
    let rule = wire::Rule {
        clauses: vec![wire::Clause { matches: vec![it] }],
    };
    let policy_bytes = prost::Message::encode_to_vec(&wire::Authorization {
        name: "p".into(),
        rules: vec![rule],
        ..wire::Authorization::default()
    });
    let read = policy(&policy_bytes, Sees::Connections).unwrap();
    let it = &read.rules[0].clauses[0].matches[0];
    assert_eq!((it.source_ips.len(), &*it.unreadable[0]), (0, "ipBlocks"));
}

#[test]
fn mtls_modes_are_recognised_again() {
    let check = |mode, ports: &[(u16, MtlsMode)]| {
        let modes = PortModes {
            mode,
            ports: ports.iter().copied().collect(),
        };
        let key = modes_policy(&modes, &policy_key("shop/pa"), &"shop".into(), &"root".into()).unwrap();
        let sent = encode_modes(key, &modes);
        let arrived = policy(&encode_policy(&sent), Sees::Connections).unwrap();
        assert_eq!(arrived, sent);
        let Converted(pa) = converted(&arrived).unwrap();
        assert_eq!((pa.mode, pa.ports), (Some(mode), modes.ports));
    };
    check(MtlsMode::Strict, &[]);
    check(MtlsMode::Strict, &[(80, MtlsMode::Permissive)]);
    check(
        MtlsMode::Permissive,
        &[(80, MtlsMode::Strict), (81, MtlsMode::Strict)],
    );
    let permissive = PortModes::default();
    assert_eq!(
        modes_policy(&permissive, &policy_key("a/b"), &"a".into(), &"r".into()),
        None
    );
}

#[test]
fn a_policy_that_says_more_than_mtls_stays_a_policy() {
    let strict = encode_modes(
        policy_key("root/istio_converted_static_strict"),
        &PortModes {
            mode: MtlsMode::Strict,
            ports: BTreeMap::new(),
        },
    );
    assert!(converted(&strict).is_some());
    let mut more = strict.clone();
    more.rules[0].clauses[0].matches[0].namespaces = vec![StringMatch::Presence];
    assert_eq!(converted(&more), None);
    let mut somebodys = strict.clone();
    somebodys.key.name = "mine".into();
    assert_eq!(converted(&somebodys), None);
    let mut wider = strict;
    wider.scope = Scope::Namespace;
    assert_eq!(converted(&wider), None);
}

fn strings() -> impl Strategy<Value = Vec<StringMatch>> {
    let name = "[a-z]{1,4}";
    let one = prop_oneof![
        name.prop_map(|it| StringMatch::Exact(it.into())),
        name.prop_map(|it| StringMatch::Prefix(it.into())),
        name.prop_map(|it| StringMatch::Suffix(it.into())),
        Just(StringMatch::Presence),
    ];
    prop::collection::vec(one, 0..3)
}

fn a_match() -> impl Strategy<Value = Match> {
    let nets = prop::collection::vec(
        prop_oneof![
            Just("10.0.0.0/8"),
            Just("0.0.0.0/0"),
            Just("::/0"),
            Just("fd00::/8")
        ],
        0..3,
    )
    .prop_map(|all| all.iter().map(|net| net.parse().unwrap()).collect::<Vec<_>>());
    let ports = || prop::collection::vec(1u16.., 0..3);
    let names = prop::collection::vec("[a-z]{1,4}".prop_map(|it| it.as_str().into()), 0..2);
    (
        strings(),
        strings(),
        strings(),
        strings(),
        nets,
        ports(),
        ports(),
        names,
    )
        .prop_map(
            |(
                namespaces,
                not_principals,
                trust_domains,
                not_trust_domains,
                not_destination_ips,
                a,
                b,
                unseen,
            )| Match {
                namespaces,
                not_principals,
                trust_domains,
                not_trust_domains,
                not_destination_ips,
                destination_ports: a,
                not_destination_ports: b,
                unseen,
                ..Match::default()
            },
        )
}

fn requests() -> impl Strategy<Value = Option<Arc<RequestMatch>>> {
    let said = (strings(), strings(), strings()).prop_map(|(methods, not_hosts, request_principals)| {
        Arc::new(RequestMatch {
            methods,
            not_hosts,
            request_principals,
            ..RequestMatch::default()
        })
    });
    prop::option::of(said)
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![Just(Action::Allow), Just(Action::Deny), Just(Action::Audit)]
}

proptest! {
    #[test]
    fn a_policy_arrives_as_it_was(
        it in a_match(),
        request in requests(),
        action in action(),
        dry_run in any::<bool>(),
    ) {
        let said = Match { request, ..it };
        let sent = Policy { dry_run, ..a_policy(action, said) };
        prop_assert_eq!(policy(&encode_policy(&sent), Sees::Requests).unwrap(), sent);
    }

    #[test]
    fn nothing_that_arrives_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (read(&bytes, &defaults()), policy(&bytes, Sees::Requests), http("a/b", &bytes));
    }
}

/// A client that comes to another replica, or after a restart, is sent what differs from what it has, byte by byte.
#[test]
fn one_value_is_the_same_bytes_each_time() {
    let mut it = sample();
    let (key, ports) = it.services.first_key_value().unwrap();
    let (key, ports) = (key.clone(), ports.clone());
    for number in 0..12 {
        let hostname = format!("s{number}.shop.svc.cluster.local").into();
        it.services.insert(
            ServiceKey {
                hostname,
                ..key.clone()
            },
            ports.clone(),
        );
    }
    let first = encode_workload(&it, &[]);
    for _ in 0..10 {
        assert_eq!(encode_workload(&it, &[]), first);
    }
}
