//! The bytes of the protocol, against an encoding that is written here by hand from the numbers of its definitions (Istio's
//! `workload.proto`, `authorization.proto` and `ca.proto`, Envoy's `discovery.proto`): what both of our own ends have wrong in the
//! same way, no round trip shows.

use std::{collections::HashMap, fmt::Debug};

use bytes::Bytes;
use prost::Message;

use super::super::{Addressed, Defaults, Sees, address};
use crate::rpc::{authorization::*, ca, discovery as ads, workload as wl};

/// A message in the making: its fields, in the order of their numbers.
#[derive(Clone, Default)]
struct Hand(Vec<u8>);

impl Hand {
    /// A number, a bool or an enum's value.
    fn number(mut self, field: u64, value: u64) -> Self {
        varint(&mut self.0, field << 3);
        varint(&mut self.0, value);
        self
    }

    /// A string, bytes or a message.
    fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        varint(&mut self.0, field << 3 | 2);
        varint(&mut self.0, value.len() as u64);
        self.0.extend(value);
        self
    }
}

impl AsRef<[u8]> for Hand {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn hand() -> Hand {
    Hand::default()
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Raw {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of any message, by their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Raw)> {
    fn read(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = bytes.split_first().expect("a varint");
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = read(&mut bytes);
        let value = match key & 7 {
            0 => Raw::Number(read(&mut bytes)),
            2 => {
                let length = read(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Raw::Bytes(value.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields.sort();
    fields
}

/// A message is written as by hand, and what is written by hand is read as the message.
fn check<M: Message + Default + Debug + PartialEq>(ours: &M, by_hand: &Hand) {
    assert_eq!(fields(&ours.encode_to_vec()), fields(&by_hand.0), "{ours:?}");
    assert_eq!(M::decode(&*by_hand.0).as_ref(), Ok(ours));
}

fn text(value: &str) -> String {
    value.to_owned()
}

fn gateways() -> [(wl::GatewayAddress, Hand); 2] {
    let hostname = wl::NamespacedHostname {
        namespace: text("istio-system"),
        hostname: text("gate.example"),
    };
    let address = wl::NetworkAddress {
        network: text("net-b"),
        address: Bytes::from_static(&[10, 0, 0, 9]),
        length: Some(24),
    };
    let by_name = wl::GatewayAddress {
        destination: Some(wl::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    };
    let by_address = wl::GatewayAddress {
        destination: Some(wl::Destination::Address(address)),
        hbone_mtls_port: 15443,
    };
    let name = hand().bytes(1, "istio-system").bytes(2, "gate.example");
    let place = hand().bytes(1, "net-b").bytes(2, [10, 0, 0, 9]).number(3, 24);
    [
        (by_name, hand().bytes(1, name).number(3, 15008)),
        (by_address, hand().bytes(2, place).number(3, 15443)),
    ]
}

fn extension() -> (wl::Extension, Hand) {
    let any = ads::Any {
        type_url: text("type.googleapis.com/x"),
        value: Bytes::from_static(&[1, 2]),
    };
    let it = wl::Extension {
        name: text("ours"),
        config: Some(any),
    };
    let any = hand().bytes(1, "type.googleapis.com/x").bytes(2, [1, 2]);
    (it, hand().bytes(1, "ours").bytes(2, any))
}

fn port() -> (wl::Port, Hand) {
    let port = wl::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 3,
    };
    (port, hand().number(1, 80).number(2, 8080).number(3, 3))
}

#[test]
fn a_workload_has_the_numbers_of_its_definition() {
    let [(waypoint, waypoint_hand), (gateway, gateway_hand)] = gateways();
    let (extension, extension_hand) = extension();
    let (port, port_hand) = port();
    let workload = wl::Workload {
        uid: text("cluster//Pod/shop/cart-1"),
        name: text("cart-1"),
        namespace: text("shop"),
        addresses: vec![
            Bytes::from_static(&[10, 1, 2, 3]),
            Bytes::from_static(&[0xfd; 16]),
        ],
        hostname: text("cart-1.example"),
        network: text("net-a"),
        tunnel_protocol: wl::TunnelProtocol::Hbone.into(),
        trust_domain: text("td.example"),
        service_account: text("cart"),
        waypoint: Some(waypoint),
        network_gateway: Some(gateway),
        node: text("node-a"),
        canonical_name: text("cart-app"),
        canonical_revision: text("v7"),
        workload_type: wl::WorkloadType::Job.into(),
        workload_name: text("cart-job"),
        native_tunnel: true,
        application_tunnel: Some(wl::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        }),
        services: std::collections::BTreeMap::from([(
            text("shop/cart.example"),
            wl::PortList { ports: vec![port] },
        )]),
        authorization_policies: vec![text("shop/one"), text("shop/two")],
        status: wl::WorkloadStatus::Unhealthy.into(),
        cluster_id: text("cluster"),
        locality: Some(wl::Locality {
            region: text("r"),
            zone: text("z"),
            subzone: text("s"),
        }),
        network_mode: wl::NetworkMode::HostNetwork.into(),
        extensions: vec![extension],
        capacity: Some(300),
    };
    let entry = hand()
        .bytes(1, "shop/cart.example")
        .bytes(2, hand().bytes(1, port_hand));
    let by_hand = hand()
        .bytes(1, "cart-1")
        .bytes(2, "shop")
        .bytes(3, [10, 1, 2, 3])
        .bytes(3, [0xfd; 16])
        .bytes(4, "net-a")
        .number(5, 1)
        .bytes(6, "td.example")
        .bytes(7, "cart")
        .bytes(8, waypoint_hand)
        .bytes(9, "node-a")
        .bytes(10, "cart-app")
        .bytes(11, "v7")
        .number(12, 3)
        .bytes(13, "cart-job")
        .number(14, 1)
        .bytes(16, "shop/one")
        .bytes(16, "shop/two")
        .number(17, 1)
        .bytes(18, "cluster")
        .bytes(19, gateway_hand)
        .bytes(20, "cluster//Pod/shop/cart-1")
        .bytes(21, "cart-1.example")
        .bytes(22, entry)
        .bytes(23, hand().number(1, 1).number(2, 15088))
        .bytes(24, hand().bytes(1, "r").bytes(2, "z").bytes(3, "s"))
        .number(25, 1)
        .bytes(26, extension_hand)
        .bytes(27, hand().number(1, 300));
    check(&workload, &by_hand);
    let address = wl::Address {
        r#type: Some(wl::AddressType::Workload(Box::new(workload))),
    };
    check(&address, &hand().bytes(1, by_hand));
}

#[test]
fn a_service_has_the_numbers_of_its_definition() {
    let [_, (waypoint, waypoint_hand)] = gateways();
    let (extension, extension_hand) = extension();
    let (port, port_hand) = port();
    let service = wl::Service {
        name: text("cart"),
        namespace: text("shop"),
        hostname: text("cart.example"),
        // A length of nothing and of 0 are not the same.
        addresses: [None, Some(0)]
            .map(|length| wl::NetworkAddress {
                network: text("net-a"),
                address: Bytes::from_static(&[10, 96, 0, 1]),
                length,
            })
            .to_vec(),
        ports: vec![port],
        subject_alt_names: vec![text("spiffe://a"), text("spiffe://b")],
        waypoint: Some(waypoint),
        load_balancing: Some(wl::LoadBalancing {
            routing_preference: vec![
                wl::RoutingScope::Region.into(),
                wl::RoutingScope::Zone.into(),
                wl::RoutingScope::Subzone.into(),
                wl::RoutingScope::Node.into(),
                wl::RoutingScope::Cluster.into(),
                wl::RoutingScope::Network.into(),
            ],
            mode: wl::BalancingMode::Failover.into(),
            health_policy: wl::HealthPolicy::AllowAll.into(),
        }),
        ip_families: wl::IpFamilies::Dual.into(),
        extensions: vec![extension],
    };
    let place = hand().bytes(1, "net-a").bytes(2, [10, 96, 0, 1]);
    let by_hand = hand()
        .bytes(1, "cart")
        .bytes(2, "shop")
        .bytes(3, "cart.example")
        .bytes(4, &place)
        .bytes(4, place.clone().number(3, 0))
        .bytes(5, port_hand)
        .bytes(6, "spiffe://a")
        .bytes(6, "spiffe://b")
        .bytes(7, waypoint_hand)
        // Numbers that are repeated are packed.
        .bytes(8, hand().bytes(1, [1, 2, 3, 4, 5, 6]).number(2, 2).number(3, 1))
        .number(9, 3)
        .bytes(10, extension_hand);
    check(&service, &by_hand);
    let address = |service: wl::Service| wl::Address {
        r#type: Some(wl::AddressType::Service(Box::new(service))),
    };
    check(&address(service.clone()), &hand().bytes(2, &by_hand));
    // What newer servers say besides (canonical, ingress_use_waypoint, weighted_waypoints, visibility) is passed over.
    let newer = by_hand
        .number(11, 1)
        .number(12, 1)
        .bytes(13, hand().number(2, 5))
        .number(14, 1);
    let read = wl::Address::decode(&*hand().bytes(2, newer).0);
    assert_eq!(read, Ok(address(service)));
}

#[test]
fn enumerations_have_the_numbers_of_their_definitions() {
    use wl::*;
    assert_eq!(
        [
            TunnelProtocol::None,
            TunnelProtocol::Hbone,
            TunnelProtocol::LegacyIstioMtls
        ]
        .map(|it| it as i32),
        [0, 1, 2]
    );
    assert_eq!(
        [
            WorkloadType::Deployment,
            WorkloadType::CronJob,
            WorkloadType::Pod,
            WorkloadType::Job
        ]
        .map(|it| it as i32),
        [0, 1, 2, 3]
    );
    assert_eq!(
        [
            IpFamilies::Automatic,
            IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only,
            IpFamilies::Dual
        ]
        .map(|it| it as i32),
        [0, 1, 2, 3]
    );
    assert_eq!(
        [
            BalancingMode::Unspecified,
            BalancingMode::Strict,
            BalancingMode::Failover,
            BalancingMode::Passthrough
        ]
        .map(|it| it as i32),
        [0, 1, 2, 3]
    );
    assert_eq!(
        [
            WorkloadStatus::Healthy as i32,
            NetworkMode::Standard as i32,
            HealthPolicy::OnlyHealthy as i32
        ],
        [0; 3]
    );
    assert_eq!(
        [Scope::Global, Scope::Namespace, Scope::WorkloadSelector].map(|it| it as i32),
        [0, 1, 2]
    );
    assert_eq!([Action::Allow, Action::Deny].map(|it| it as i32), [0, 1]);
}

#[test]
fn a_policy_has_the_numbers_of_its_definition() {
    let name = |kind: MatchType| StringMatch {
        match_type: Some(kind),
    };
    let network = |last: u8| Network {
        address: Bytes::copy_from_slice(&[10, 0, 0, last]),
        length: 24,
    };
    let account = |name: &str| ServiceAccountMatch {
        namespace: text("shop"),
        service_account: text(name),
    };
    let (extension, extension_hand) = extension();
    let it = Match {
        namespaces: vec![name(MatchType::Exact(text("a")))],
        not_namespaces: vec![name(MatchType::Prefix(text("b")))],
        principals: vec![name(MatchType::Suffix(text("c")))],
        not_principals: vec![name(MatchType::Presence(()))],
        source_ips: vec![network(1)],
        not_source_ips: vec![network(2)],
        destination_ips: vec![network(3)],
        not_destination_ips: vec![network(4)],
        destination_ports: vec![80, 443],
        not_destination_ports: vec![22],
        service_accounts: vec![account("yes")],
        not_service_accounts: vec![account("no")],
        extensions: vec![extension.clone()],
    };
    let network = |last: u8| hand().bytes(1, [10, 0, 0, last]).number(2, 24);
    let account = |name: &str| hand().bytes(1, "shop").bytes(2, name);
    let by_hand = hand()
        .bytes(1, hand().bytes(1, "a"))
        .bytes(2, hand().bytes(2, "b"))
        .bytes(3, hand().bytes(3, "c"))
        .bytes(4, hand().bytes(4, ""))
        .bytes(5, network(1))
        .bytes(6, network(2))
        .bytes(7, network(3))
        .bytes(8, network(4))
        // 443 is two bytes of a varint.
        .bytes(9, [80, 0xbb, 0x03])
        .bytes(10, [22])
        .bytes(11, account("yes"))
        .bytes(12, account("no"))
        .bytes(13, &extension_hand);
    check(&it, &by_hand);
    let policy = Authorization {
        name: text("viewer"),
        namespace: text("shop"),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules: vec![Rule {
            clauses: vec![Clause { matches: vec![it] }],
        }],
        dry_run: true,
        extensions: vec![extension],
    };
    let rule = hand().bytes(1, hand().bytes(2, by_hand));
    let by_hand = hand()
        .bytes(1, "viewer")
        .bytes(2, "shop")
        .number(3, 2)
        .number(4, 1)
        .bytes(5, rule)
        .number(6, 1)
        .bytes(7, extension_hand);
    check(&policy, &by_hand);
}

#[test]
fn discovery_has_the_numbers_of_its_definition() {
    let metadata = prost_types::Struct {
        fields: [(
            text("K"),
            prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue(text("v"))),
            },
        )]
        .into(),
    };
    let request = ads::DeltaDiscoveryRequest {
        node: Some(ads::Node {
            id: text("ztunnel~10.0.0.1~a.b~b.svc.cluster.local"),
            cluster: text("Kubernetes"),
            metadata: Some(metadata),
        }),
        type_url: text(ads::ADDRESS_TYPE),
        resource_names_subscribe: vec![text("*")],
        resource_names_unsubscribe: vec![text("gone")],
        initial_resource_versions: HashMap::from([(text("known"), text("17"))]),
        response_nonce: text("n1"),
        error_detail: Some(ads::Status {
            code: 3,
            message: text("no"),
        }),
    };
    let metadata = hand().bytes(1, hand().bytes(1, "K").bytes(2, hand().bytes(3, "v")));
    let node = hand()
        .bytes(1, "ztunnel~10.0.0.1~a.b~b.svc.cluster.local")
        .bytes(2, "Kubernetes")
        .bytes(3, metadata);
    let by_hand = hand()
        .bytes(1, node)
        .bytes(2, "type.googleapis.com/istio.workload.Address")
        .bytes(3, "*")
        .bytes(4, "gone")
        .bytes(5, hand().bytes(1, "known").bytes(2, "17"))
        .bytes(6, "n1")
        .bytes(7, hand().number(1, 3).bytes(2, "no"));
    check(&request, &by_hand);
    let response = ads::DeltaDiscoveryResponse {
        system_version_info: text("17"),
        resources: vec![ads::Resource {
            version: text("3"),
            resource: Some(ads::Any {
                type_url: text(ads::AUTHORIZATION_TYPE),
                value: Bytes::from_static(&[8, 1]),
            }),
            name: text("shop/viewer"),
            aliases: vec![text("net-a/10.0.0.1")],
        }],
        type_url: text(ads::AUTHORIZATION_TYPE),
        nonce: text("n2"),
        removed_resources: vec![text("shop/old")],
        control_plane: Some(ads::ControlPlane {
            identifier: text("weft"),
        }),
    };
    let kind = "type.googleapis.com/istio.security.Authorization";
    let resource = hand()
        .bytes(1, "3")
        .bytes(2, hand().bytes(1, kind).bytes(2, [8, 1]))
        .bytes(3, "shop/viewer")
        .bytes(4, "net-a/10.0.0.1");
    let by_hand = hand()
        .bytes(1, "17")
        .bytes(2, resource)
        .bytes(4, kind)
        .bytes(5, "n2")
        .bytes(6, "shop/old")
        .bytes(7, hand().bytes(1, "weft"));
    check(&response, &by_hand);
    assert_eq!(
        ads::DELTA_PATH,
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    );
}

#[test]
fn a_certificate_request_has_the_numbers_of_its_definition() {
    let metadata = prost_types::Struct {
        fields: [(
            text(ca::IMPERSONATED),
            prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue(text(
                    "spiffe://td/ns/a/sa/b",
                ))),
            },
        )]
        .into(),
    };
    let request = ca::CertificateRequest {
        csr: text("pem"),
        validity_duration: 86_400,
        metadata: Some(metadata),
    };
    let value = hand().bytes(3, "spiffe://td/ns/a/sa/b");
    let entry = hand().bytes(1, "ImpersonatedIdentity").bytes(2, value);
    let by_hand = hand()
        .bytes(1, "pem")
        .number(3, 86_400)
        .bytes(4, hand().bytes(1, entry));
    check(&request, &by_hand);
    let response = ca::CertificateResponse {
        cert_chain: vec![text("leaf"), text("root")],
    };
    check(&response, &hand().bytes(1, "leaf").bytes(1, "root"));
}

/// What another server of the protocol says of a pod and its service.
#[test]
fn what_is_written_by_hand_means_what_it_says() {
    let workload = hand()
        .bytes(1, "cart-1")
        .bytes(2, "shop")
        .bytes(3, [10, 1, 2, 3])
        .number(5, 1)
        .bytes(7, "cart")
        .bytes(9, "node-a")
        .bytes(16, "shop/viewer")
        .number(17, 1)
        .bytes(20, "cluster//Pod/shop/cart-1");
    let defaults = Defaults {
        sees: Sees::Connections,
        trust_domain: crate::mesh::TrustDomain::default(),
        cluster: "Kubernetes".into(),
    };
    let bytes = hand().bytes(1, workload);
    let read = address(&bytes.0, &defaults, &mut crate::mesh::Interned::default());
    let Addressed::Workload(workload) = read.expect("a workload") else {
        panic!("no workload");
    };
    assert_eq!(
        workload.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(
        workload.addresses,
        ["10.1.2.3".parse::<std::net::IpAddr>().expect("an address")]
    );
    assert_eq!(workload.tunnel_protocol, crate::mesh::TunnelProtocol::Hbone);
    assert!(!workload.healthy && &*workload.node == "node-a");
    assert_eq!(&*workload.policies[0].name, "viewer");
}
