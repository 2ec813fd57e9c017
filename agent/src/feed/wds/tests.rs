//! What is sent arrives as it was; what is not known is closed.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    mesh::{
        Action, Clause, GatewayAddress, GatewayDestination, Match, MtlsMode, Policy, PortMapping, PortModes,
        Rule, SameNode, Scope, SpiffeId, StringMatch, TunnelProtocol, Workload, WorkloadType,
    },
    rpc::authorization as wire,
};

fn defaults() -> Defaults {
    Defaults {
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
        services: BTreeMap::from([(key, vec![mapping])]),
        subsets: Vec::new(),
        authentications: Vec::new(),
    }
}

#[test]
fn a_workload_arrives_as_it_was() {
    let more = policy_key("istio-system/istio_converted_static_strict");
    let bytes = encode_workload(&sample(), std::slice::from_ref(&more));
    let Ok(Addressed::Workload(arrived)) = address(&bytes, &defaults()) else {
        panic!("no workload")
    };
    let mut expected = sample();
    expected.policies.push(more);
    assert_eq!(*arrived, expected);
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
        let error = address(&prost::Message::encode_to_vec(&it), &defaults()).unwrap_err();
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
    let read = policy(&policy_bytes).unwrap();
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
        let arrived = policy(&encode_policy(&sent)).unwrap();
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

proptest! {
    #[test]
    fn a_policy_arrives_as_it_was(it in a_match(), deny in any::<bool>()) {
        let sent = a_policy(if deny { Action::Deny } else { Action::Allow }, it);
        prop_assert_eq!(policy(&encode_policy(&sent)).unwrap(), sent);
    }

    #[test]
    fn nothing_that_arrives_is_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (address(&bytes, &defaults()), policy(&bytes));
    }
}
