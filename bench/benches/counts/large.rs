//! The mesh that is asked: 10,000 workloads, 1,000 services and 1,000 policies, the same at each run; and the
//! connections.
//!
//! 50 namespaces of 20 services of 10 pods. 10 policies cover the whole mesh; each namespace but the last has 10 that
//! cover it, and each has 10 that select the pods of its first service. So 30 policies cover a pod of the first service
//! of namespace 0, and 16 of them are DENY: more than people have.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use weft_pure::mesh::{
    Action, Clause, GatewayAddress, GatewayDestination, HBONE_PORT, Inbound, IpFamilies, LoadBalancing,
    Locality, Match, Mesh, MeshParts, MtlsMode, Outbound, PeerAuthentication, PeerAuthentications, Policy,
    PolicyKey, PortMapping, Rule, SameNodes, Scope, Service, ServiceKey, SpiffeId, StringMatch, TrustDomain,
    TunnelProtocol, Workload, WorkloadType,
};

const NAMESPACES: u8 = 50;
const SERVICES: u8 = 20;
const PODS: u8 = 10;
const POLICIES: u8 = 10;
const CLUSTER: &str = "Kubernetes";
/// The namespace without policies of its own, and whose second service is behind a waypoint.
const BARE: u8 = NAMESPACES - 1;

/// A question to `authorize`.
pub(crate) struct Arrival {
    pub(crate) mesh: Mesh,
    pub(crate) workload: Arc<Workload>,
    pub(crate) conn: Inbound,
}

/// A question to `route`.
pub(crate) struct Dial {
    pub(crate) mesh: Mesh,
    pub(crate) conn: Outbound,
    pub(crate) draw: u64,
}

/// A place in the mesh: namespace, service and pod.
#[derive(Clone, Copy)]
struct Place(u8, u8, u8);

impl Place {
    fn namespace(self) -> Arc<str> {
        format!("ns-{:02}", self.0).into()
    }

    fn account(self) -> String {
        format!("svc-{:02}", self.1)
    }

    fn service(self) -> ServiceKey {
        let hostname = format!("{}.{}.svc.cluster.local", self.account(), self.namespace());
        ServiceKey {
            namespace: self.namespace(),
            hostname: hostname.into(),
        }
    }

    fn identity(self) -> SpiffeId {
        SpiffeId::new(&TrustDomain::default(), &self.namespace(), &self.account()).expect("a legal name")
    }

    fn address(self) -> IpAddr {
        [10, self.0, self.1, self.2].into()
    }

    fn vip(self) -> IpAddr {
        [10, 200, self.0, self.1].into()
    }
}

/// The address of the other family.
fn v6(address: IpAddr) -> IpAddr {
    let IpAddr::V4(v4) = address else { return address };
    let [a, b, c, d] = v4.octets().map(u16::from);
    Ipv6Addr::new(0xfd00, 0, 0, 0, a, b, c, d).into()
}

fn everywhere() -> impl Iterator<Item = Place> {
    (0..NAMESPACES).flat_map(|namespace| (0..SERVICES).map(move |service| Place(namespace, service, 0)))
}

fn mesh() -> Mesh {
    Mesh::new(parts())
}

fn parts() -> MeshParts {
    let pods = everywhere()
        .flat_map(|Place(namespace, service, _)| (1..=PODS).map(move |pod| Place(namespace, service, pod)));
    let parts = MeshParts {
        trust_domain: TrustDomain::default(),
        cluster: CLUSTER.into(),
        cluster_domain: "cluster.local".into(),
        root_namespace: "root".into(),
        cluster_cidrs: ["10.0.0.0/8", "fd00::/8"]
            .map(|cidr| cidr.parse().expect("a network"))
            .to_vec(),
        workloads: pods.map(workload).collect(),
        services: everywhere().map(service).collect(),
        policies: policies(),
        peer_authentications: strict_in_even_namespaces(),
        same_nodes: SameNodes::default(),
        http: Default::default(),
    };
    assert_eq!(
        (parts.workloads.len(), parts.services.len(), parts.policies.len()),
        (10_000, 1_000, 1_000)
    );
    parts
}

fn workload(place: Place) -> Workload {
    let name: Arc<str> = format!("{}-7d4b9c-{}", place.account(), place.2).into();
    let selecting = (0..POLICIES)
        .filter(|_| place.1 == 0)
        .map(|policy| selector_key(place.0, policy));
    Workload {
        uid: format!("{CLUSTER}//Pod/{}/{name}", place.namespace()).into(),
        name,
        namespace: place.namespace(),
        identity: place.identity(),
        addresses: vec![place.address(), v6(place.address())],
        node: format!("node-{}", place.2).into(),
        tunnel_protocol: TunnelProtocol::Hbone,
        workload_name: place.account().into(),
        workload_type: WorkloadType::Deployment,
        canonical_name: place.account().into(),
        canonical_revision: "v1".into(),
        cluster: CLUSTER.into(),
        network: "".into(),
        capacity: 1,
        locality: Locality::default(),
        healthy: true,
        host_network: false,
        waypoint: None,
        native_tunnel: false,
        same_node: None,
        policies: selecting.collect(),
        services: [(place.service(), Vec::new())].into(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    }
}

fn service(place: Place) -> Service {
    let waypoint = (place.0 == BARE && place.1 == 1).then(|| GatewayAddress {
        destination: GatewayDestination::Service(Place(BARE, 0, 0).service()),
        hbone_port: HBONE_PORT,
    });
    Service {
        key: place.service(),
        name: place.account().into(),
        vips: vec![place.vip(), v6(place.vip())],
        vip_networks: Vec::new(),
        load_balancing: LoadBalancing::failover(&LoadBalancing::CLOSE),
        app_protocols: Default::default(),
        ip_families: IpFamilies::default(),
        ports: [(80, 8080), (443, 8443), (9090, 9090)]
            .map(|(service_port, target_port)| PortMapping {
                service_port,
                target_port,
            })
            .to_vec(),
        subject_alt_names: Vec::new(),
        waypoint,
    }
}

/// Whoever dials a pod of an even namespace needs mutual TLS, except at the port of its metrics.
fn strict_in_even_namespaces() -> PeerAuthentications {
    let strict = PeerAuthentication {
        mode: Some(MtlsMode::Strict),
        ports: BTreeMap::from([(9090, MtlsMode::Permissive)]),
        ..PeerAuthentication::default()
    };
    let even = (0..NAMESPACES)
        .step_by(2)
        .map(|namespace| (Place(namespace, 0, 0).namespace(), strict.clone()));
    PeerAuthentications {
        namespaces: even.collect(),
        ..PeerAuthentications::default()
    }
}

fn policies() -> Vec<Policy> {
    let of_mesh = (0..POLICIES).map(|number| {
        let mut nets = Match {
            source_ips: vec![format!("172.16.{number}.0/24").parse().expect("a network")],
            ..Match::default()
        };
        nets.destination_ports = vec![22, 2222];
        policy(
            ("root".into(), format!("mesh-{number}")),
            Scope::Mesh,
            Action::Deny,
            nets,
        )
    });
    let of_namespace = (0..NAMESPACES)
        .filter(|namespace| *namespace != BARE)
        .flat_map(|namespace| {
            (0..POLICIES).map(move |number| {
                let key = (Place(namespace, 0, 0).namespace(), format!("namespace-{number}"));
                policy(
                    key,
                    Scope::Namespace,
                    deny_three(number),
                    callers(namespace, number),
                )
            })
        });
    let selecting = (0..NAMESPACES).flat_map(|namespace| {
        (0..POLICIES).map(move |number| {
            let PolicyKey { namespace: of, name } = selector_key(namespace, number);
            policy(
                (of, name.to_string()),
                Scope::Selector,
                deny_three(number),
                callers(namespace, SERVICES / 2 + number),
            )
        })
    });
    of_mesh.chain(of_namespace).chain(selecting).collect()
}

/// The last three of ten deny.
fn deny_three(number: u8) -> Action {
    if number < POLICIES - 3 {
        Action::Allow
    } else {
        Action::Deny
    }
}

fn selector_key(namespace: u8, number: u8) -> PolicyKey {
    PolicyKey {
        namespace: Place(namespace, 0, 0).namespace(),
        name: format!("selector-{number}").into(),
    }
}

/// Four service accounts, of this namespace and of the next three, at two ports. Each number names others.
fn callers(namespace: u8, number: u8) -> Match {
    let principal = |offset| {
        Place((namespace + offset) % NAMESPACES, number, 0)
            .identity()
            .principal()
            .into()
    };
    Match {
        principals: (0..4)
            .map(|offset| StringMatch::Exact(principal(offset)))
            .collect(),
        destination_ports: vec![8080, 8443],
        ..Match::default()
    }
}

fn policy((namespace, name): (Arc<str>, String), scope: Scope, action: Action, match_: Match) -> Policy {
    let clause = Clause {
        matches: vec![match_],
    };
    Policy {
        key: PolicyKey {
            namespace,
            name: name.into(),
        },
        scope,
        action,
        rules: vec![Rule {
            clauses: vec![clause],
        }],
        dry_run: false,
    }
}

/// Lives as long as the benchmark: what it costs to drop a mesh is not asked.
pub(crate) fn kept<T>(question: T) -> &'static T {
    Box::leak(Box::new(question))
}

/// The last pod of a service is dialled at 8080 by `peer`, or at another port in clear.
fn arrival(to: Place, peer: Option<Place>, port: u16) -> &'static Arrival {
    arrival_in(mesh(), to, peer, port)
}

fn arrival_in(mesh: Mesh, to: Place, peer: Option<Place>, port: u16) -> &'static Arrival {
    let workload = mesh.workload_at(to.address()).expect("a pod").clone();
    let conn = Inbound {
        peer: peer.map(Place::identity),
        source_ip: peer.unwrap_or(Place(0, 1, 1)).address(),
        destination: SocketAddr::new(to.address(), port),
    };
    kept(Arrival { mesh, workload, conn })
}

/// One that is allowed, in a mesh that is different.
pub(crate) fn arrival_with(change: impl FnOnce(&mut MeshParts)) -> &'static Arrival {
    let mut parts = parts();
    change(&mut parts);
    arrival_in(
        Mesh::new(parts),
        COVERED,
        Some(Place(3, SERVICES / 2 + 6, 1)),
        8080,
    )
}

/// The pod that 30 policies cover.
const COVERED: Place = Place(0, 0, PODS);

/// Ten DENY policies do not match, and there is nothing else.
pub(crate) fn no_allow_policy() -> &'static Arrival {
    arrival(Place(BARE, 1, PODS), Some(Place(1, 1, 1)), 8080)
}

/// By the last principal of the last ALLOW policy.
pub(crate) fn allowed_by_the_last_of_30() -> &'static Arrival {
    arrival(COVERED, Some(Place(3, SERVICES / 2 + 6, 1)), 8080)
}

/// By the last principal of the last DENY policy.
pub(crate) fn denied_by_the_last_of_16() -> &'static Arrival {
    arrival(COVERED, Some(Place(3, SERVICES / 2 + 9, 1)), 8080)
}

/// Nobody names the peer.
pub(crate) fn not_allowed() -> &'static Arrival {
    arrival(COVERED, Some(Place(20, 1, 1)), 8080)
}

pub(crate) fn plaintext_to_strict() -> &'static Arrival {
    arrival(COVERED, None, 8080)
}

/// Which the policies refuse then.
pub(crate) fn plaintext_to_permissive() -> &'static Arrival {
    arrival(COVERED, None, 9090)
}

/// The last that the pod names.
pub(crate) fn policy_missing() -> &'static Arrival {
    let mut parts = parts();
    let covered = |pod: &&mut Workload| pod.addresses.contains(&COVERED.address());
    let pod = parts.workloads.iter_mut().find(covered).expect("a pod");
    pod.policies.push(selector_key(0, POLICIES));
    arrival_in(Mesh::new(parts), COVERED, Some(Place(3, 10, 1)), 8080)
}

/// A pod dials `to`.
fn dial(to: IpAddr, port: u16) -> &'static Dial {
    let mesh = mesh();
    let source = mesh.workload_at(Place(7, 7, 1).address()).expect("a pod").clone();
    let conn = Outbound {
        source,
        destination: SocketAddr::new(to, port),
    };
    kept(Dial { mesh, conn, draw: 7 })
}

pub(crate) fn to_service() -> &'static Dial {
    dial(Place(3, 4, 0).vip(), 443)
}

pub(crate) fn to_service_over_ipv6() -> &'static Dial {
    dial(v6(Place(3, 4, 0).vip()), 443)
}

pub(crate) fn to_service_behind_waypoint() -> &'static Dial {
    dial(Place(BARE, 1, 0).vip(), 80)
}

pub(crate) fn to_pod() -> &'static Dial {
    dial(Place(3, 4, 5).address(), 8080)
}

pub(crate) fn to_outside() -> &'static Dial {
    dial([93, 184, 216, 34].into(), 443)
}

pub(crate) fn to_unknown_inside() -> &'static Dial {
    dial([10, 250, 0, 1].into(), 80)
}

pub(crate) fn to_no_such_port() -> &'static Dial {
    dial(Place(3, 4, 0).vip(), 81)
}
