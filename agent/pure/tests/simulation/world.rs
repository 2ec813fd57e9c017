//! The world that is simulated: plain lists, and what may happen to them. Few names and addresses, so that they meet
//! again: an address goes from a pod to another, a policy is named before it is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weft_pure::mesh::{
    Action, BalancingMode, Clause, GatewayAddress, GatewayDestination, HBONE_PORT, HealthPolicy, IpFamilies,
    LoadBalancing, Locality, Match, MeshParts, MtlsMode, PeerAuthentication, PeerAuthentications, Policy,
    PolicyKey, PortMapping, RoutingScope, Rule, SameNode, SameNodes, Scope, Service, ServiceAccountMatch,
    ServiceKey, SpiffeId, TrustDomain, TunnelProtocol, Workload, WorkloadType,
};

use crate::{
    draw::Draw,
    requests::{self, patterns},
};

pub(crate) const NAMESPACES: [&str; 3] = ["demo", "other", "root"];
pub(crate) const ACCOUNTS: [&str; 3] = ["a", "b", "c"];
pub(crate) const PORTS: [u16; 6] = [80, 81, 443, 8080, HBONE_PORT, 15001];
/// Pods', in the order in which they come; the last is also in a service's network.
pub(crate) const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "fd00::1",
    "fd00::2",
    "192.168.77.2",
    "10.2.0.3",
];
pub(crate) const VIPS: [&str; 5] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "fd00:1::1", "198.51.100.7"];
const NETWORKS: [&str; 4] = ["10.2.0.0/24", "10.2.0.0/30", "192.0.2.0/24", "fd00:2::/64"];
/// What nobody has, and what only a network has.
pub(crate) const STRANGERS: [&str; 6] = [
    "10.0.9.9",
    "8.8.8.8",
    "fd00::9",
    "2606:2800::1",
    "10.2.0.9",
    "192.0.2.1",
];
const POLICIES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const PLACES: [&str; 3] = ["", "x", "y"];
/// Whose pods are enrolled.
pub(crate) const NODE: &str = "node-1";
const NODES: [&str; 2] = [NODE, "node-2"];
const MOST_WORKLOADS: usize = 14;
const MOST_SERVICES: usize = 6;
const MOST_POLICIES: usize = 10;

/// What a feed would bring.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) parts: MeshParts,
    /// The network namespaces of this node's pods, by uid. A pod that is made anew gets another.
    pub(crate) netns: BTreeMap<Arc<str>, usize>,
    serial: usize,
}

impl World {
    pub(crate) fn new(draw: &mut Draw) -> Self {
        let parts = MeshParts {
            trust_domain: TrustDomain::default(),
            cluster: "Kubernetes".into(),
            cluster_domain: "cluster.local".into(),
            root_namespace: "root".into(),
            cluster_cidrs: ["10.0.0.0/8", "fd00::/8"]
                .map(|cidr| cidr.parse().expect("a network"))
                .into(),
            workloads: Vec::new(),
            services: Vec::new(),
            policies: Vec::new(),
            peer_authentications: PeerAuthentications::default(),
            same_nodes: SameNodes::default(),
            http: Default::default(),
        };
        let mut world = Self {
            parts,
            netns: BTreeMap::new(),
            serial: 0,
        };
        for _ in 0..MOST_WORKLOADS {
            world.change(draw);
        }
        world
    }

    /// One thing happens; what it was.
    pub(crate) fn change(&mut self, draw: &mut Draw) -> &'static str {
        let what = *draw.pick(&CHANGES);
        (what.1)(self, draw);
        what.0
    }

    fn workload(&mut self, draw: &mut Draw) -> Option<&mut Workload> {
        let count = self.parts.workloads.len();
        (count > 0).then(|| &mut self.parts.workloads[draw.of(0..count)])
    }

    pub(crate) fn service(&mut self, draw: &mut Draw) -> Option<&mut Service> {
        let count = self.parts.services.len();
        (count > 0).then(|| &mut self.parts.services[draw.of(0..count)])
    }
}

type Change = (&'static str, fn(&mut World, &mut Draw));

/// What may happen, the usual several times.
const CHANGES: [Change; 17] = [
    ("a workload comes", add_workload),
    ("a workload comes", add_workload),
    ("a workload goes", remove_workload),
    ("a workload is made anew", renew_workload),
    ("a workload moves", move_workload),
    ("a workload's health changes", change_health),
    ("a workload's services change", change_backing),
    ("a workload names policies", name_policies),
    ("a workload joins or leaves the mesh", change_protocol),
    ("a waypoint is bound", bind_waypoint),
    ("a service comes", add_service),
    ("a service goes", remove_service),
    ("a service changes", change_service),
    ("a policy comes", add_policy),
    ("a policy goes", remove_policy),
    ("a peer authentication changes", change_mtls),
    ("a service's routes change", requests::change_routes),
];

fn add_workload(world: &mut World, draw: &mut Draw) {
    if world.parts.workloads.len() >= MOST_WORKLOADS {
        return remove_workload(world, draw);
    }
    // Sometimes one that is there already: the first keeps its place.
    let number = draw.of(0..MOST_WORKLOADS + 4);
    let workload = workload(draw, number);
    world.serial += 1;
    world.netns.entry(workload.uid.clone()).or_insert(world.serial);
    let at = draw.of(0..world.parts.workloads.len() + 1);
    world.parts.workloads.insert(at, workload);
}

fn workload(draw: &mut Draw, number: usize) -> Workload {
    let name: Arc<str> = format!("pod-{number}").into();
    let namespace = *draw.pick(&NAMESPACES);
    Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}").into(),
        name: name.clone(),
        namespace: namespace.into(),
        identity: identity(namespace, draw.pick::<&str>(&ACCOUNTS)),
        addresses: addresses(draw),
        node: (*draw.pick(&NODES)).into(),
        tunnel_protocol: protocol(draw),
        workload_name: name.clone(),
        workload_type: WorkloadType::Pod,
        canonical_name: name,
        canonical_revision: "latest".into(),
        cluster: "Kubernetes".into(),
        network: (*draw.pick(&PLACES)).into(),
        capacity: *draw.pick(&[0, 1, 1, 1, 2, 100]),
        locality: locality(draw),
        healthy: draw.percent(80),
        host_network: draw.percent(5),
        waypoint: None,
        native_tunnel: false,
        same_node: *draw.pick(&[None, None, None, Some(SameNode::Tunnel), Some(SameNode::Kernel)]),
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    }
}

pub(crate) fn identity(namespace: &str, account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), namespace, account).expect("a legal name")
}

/// Mostly one. Somebody else may have it: addresses are used again before everybody knows.
fn addresses(draw: &mut Draw) -> Vec<IpAddr> {
    let count = *draw.pick(&[0, 1, 1, 1, 1, 2, 2]);
    (0..count)
        .map(|_| draw.pick(&ADDRESSES).parse().expect("an address"))
        .collect()
}

fn protocol(draw: &mut Draw) -> TunnelProtocol {
    if draw.percent(80) {
        TunnelProtocol::Hbone
    } else {
        TunnelProtocol::None
    }
}

fn locality(draw: &mut Draw) -> Locality {
    let mut place = || (*draw.pick(&PLACES)).into();
    Locality {
        region: place(),
        zone: place(),
        subzone: place(),
    }
}

fn remove_workload(world: &mut World, draw: &mut Draw) {
    let count = world.parts.workloads.len();
    if count > 0 {
        let gone = world.parts.workloads.remove(draw.of(0..count));
        world.netns.remove(&gone.uid);
    }
}

/// The same uid with another namespace of the network: a pod of a StatefulSet, or a sandbox that was restarted.
fn renew_workload(world: &mut World, draw: &mut Draw) {
    let (serial, addresses) = (world.serial + 1, addresses(draw));
    if let Some(workload) = world.workload(draw) {
        workload.addresses = addresses;
        let uid = workload.uid.clone();
        world.netns.insert(uid, serial);
        world.serial = serial;
    }
}

fn move_workload(world: &mut World, draw: &mut Draw) {
    let (node, place) = (*draw.pick(&NODES), locality(draw));
    if let Some(workload) = world.workload(draw) {
        workload.node = node.into();
        workload.locality = place;
    }
}

fn change_health(world: &mut World, draw: &mut Draw) {
    if let Some(workload) = world.workload(draw) {
        workload.healthy = !workload.healthy;
    }
}

fn change_protocol(world: &mut World, draw: &mut Draw) {
    let protocol = protocol(draw);
    if let Some(workload) = world.workload(draw) {
        workload.tunnel_protocol = protocol;
    }
}

/// Also of services that are not there (yet).
fn change_backing(world: &mut World, draw: &mut Draw) {
    let keys: Vec<_> = (0..draw.of(0..4)).map(|_| service_key(draw)).collect();
    let backed = keys.into_iter().map(|key| (key, ports(draw))).collect();
    if let Some(workload) = world.workload(draw) {
        workload.services = backed;
    }
}

fn name_policies(world: &mut World, draw: &mut Draw) {
    let namespace = *draw.pick(&NAMESPACES);
    let named: BTreeSet<_> = (0..draw.of(0..3)).map(|_| policy_key(draw, namespace)).collect();
    if let Some(workload) = world.workload(draw) {
        workload.policies = named.into_iter().collect();
    }
}

fn service_key(draw: &mut Draw) -> ServiceKey {
    let (namespace, name) = (*draw.pick(&NAMESPACES), draw.of(0..3));
    ServiceKey {
        namespace: namespace.into(),
        hostname: format!("svc-{name}.{namespace}.svc.cluster.local").into(),
    }
}

fn ports(draw: &mut Draw) -> Vec<PortMapping> {
    let targets = [0, 80, 8080, 8080, 9090, HBONE_PORT];
    let count = draw.of(0..3);
    let ports = (0..count).map(|at| PortMapping {
        service_port: PORTS[at],
        target_port: *draw.pick(&targets),
    });
    ports.collect()
}

fn add_service(world: &mut World, draw: &mut Draw) {
    if world.parts.services.len() >= MOST_SERVICES {
        return remove_service(world, draw);
    }
    let key = service_key(draw);
    let mut service = Service {
        name: key.hostname.split('.').next().unwrap_or_default().into(),
        key,
        vips: Vec::new(),
        vip_networks: Vec::new(),
        load_balancing: LoadBalancing::default(),
        app_protocols: Default::default(),
        ip_families: IpFamilies::default(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
    };
    vary(&mut service, draw);
    let at = draw.of(0..world.parts.services.len() + 1);
    world.parts.services.insert(at, service);
}

fn vary(service: &mut Service, draw: &mut Draw) {
    let vips = draw.some(80, &VIPS).into_iter();
    service.vips = vips.map(|vip| vip.parse().expect("an address")).collect();
    let networks = draw.some(20, &NETWORKS).into_iter();
    service.vip_networks = networks
        .map(|network| network.parse().expect("a network"))
        .collect();
    service.ports = ports(draw);
    service.load_balancing = load_balancing(draw);
    service.subject_alt_names = draw
        .some(15, &ACCOUNTS)
        .into_iter()
        .map(|account| identity("other", account))
        .collect();
}

fn load_balancing(draw: &mut Draw) -> LoadBalancing {
    use RoutingScope::{Cluster, Network, Node, Region, Subzone, Zone};
    let modes = [
        BalancingMode::Any,
        BalancingMode::Any,
        BalancingMode::Failover,
        BalancingMode::Strict,
        BalancingMode::Passthrough,
    ];
    let scopes = [Network, Region, Zone, Subzone, Node, Cluster];
    LoadBalancing {
        routing_preference: (0..draw.of(0..4)).map(|_| *draw.pick(&scopes)).collect(),
        mode: *draw.pick(&modes),
        health: *draw.pick(&[
            HealthPolicy::OnlyHealthy,
            HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll,
        ]),
    }
}

fn remove_service(world: &mut World, draw: &mut Draw) {
    let count = world.parts.services.len();
    if count > 0 {
        world.parts.services.remove(draw.of(0..count));
    }
}

fn change_service(world: &mut World, draw: &mut Draw) {
    let seed = draw.any();
    if let Some(service) = world.service(draw) {
        vary(service, &mut Draw::new(seed));
    }
}

/// Of a service or of a workload: a service by name or by address, or a pod's address; or none any more.
fn bind_waypoint(world: &mut World, draw: &mut Draw) {
    let address = *draw.pick(&[ADDRESSES.as_slice(), VIPS.as_slice()].concat());
    let destination = if draw.percent(50) {
        GatewayDestination::Service(service_key(draw))
    } else {
        GatewayDestination::Address(address.parse().expect("an address"))
    };
    let gateway = GatewayAddress {
        destination,
        hbone_port: *draw.pick(&[HBONE_PORT, HBONE_PORT, 80]),
    };
    let gateway = draw.percent(70).then_some(gateway);
    let of_service = draw.percent(50);
    if let Some(service) = world.service(draw).filter(|_| of_service) {
        service.waypoint = gateway;
    } else if let Some(workload) = world.workload(draw) {
        workload.waypoint = gateway;
    }
}

pub(crate) fn policy_key(draw: &mut Draw, namespace: &str) -> PolicyKey {
    PolicyKey {
        namespace: namespace.into(),
        name: (*draw.pick(&POLICIES)).into(),
    }
}

fn add_policy(world: &mut World, draw: &mut Draw) {
    if world.parts.policies.len() >= MOST_POLICIES {
        return remove_policy(world, draw);
    }
    let namespace = *draw.pick(&NAMESPACES);
    let scopes = [
        Scope::Namespace,
        Scope::Selector,
        if namespace == "root" {
            Scope::Mesh
        } else {
            Scope::Selector
        },
    ];
    let policy = Policy {
        key: policy_key(draw, namespace),
        scope: *draw.pick(&scopes),
        action: *draw.pick(&[Action::Allow, Action::Deny]),
        rules: (0..draw.of(0..3)).map(|_| rule(draw)).collect(),
        dry_run: draw.percent(10),
    };
    let at = draw.of(0..world.parts.policies.len() + 1);
    world.parts.policies.insert(at, policy);
}

fn remove_policy(world: &mut World, draw: &mut Draw) {
    let count = world.parts.policies.len();
    if count > 0 {
        world.parts.policies.remove(draw.of(0..count));
    }
}

fn rule(draw: &mut Draw) -> Rule {
    let clauses = (0..draw.of(0..3)).map(|_| Clause {
        matches: (0..draw.of(0..3)).map(|_| match_(draw)).collect(),
    });
    Rule {
        clauses: clauses.collect(),
    }
}

/// How likely a field is said, in percent: few are, or nothing would ever match.
const SAID: u64 = 12;

fn match_(draw: &mut Draw) -> Match {
    let nets = [
        "10.0.0.0/8",
        "10.0.0.1/32",
        "10.0.0.2/31",
        "fd00::/8",
        "0.0.0.0/0",
        "::ffff:10.0.0.0/126",
    ];
    let nets = nets.map(|net| net.parse().expect("a network"));
    let account = |(namespace, name): (&str, &str)| ServiceAccountMatch {
        namespace: namespace.into(),
        name: name.into(),
    };
    let accounts = [("demo", "a"), ("demo", "b"), ("other", "a"), ("root", "c")].map(account);
    let namespaces = patterns(&["demo", "other", "de", "er", ""]);
    let principals = patterns(&[
        "cluster.local/ns/demo/sa/a",
        "cluster.local/ns/demo/",
        "/sa/b",
        "cluster.local/ns/other/sa/a",
    ]);
    let trust_domains = patterns(&["cluster.local", "else"]);
    let unseen = draw.some(SAID, &["paths".into()]);
    let judged = !unseen.is_empty() && draw.percent(80);
    Match {
        namespaces: draw.some(SAID, &namespaces),
        not_namespaces: draw.some(SAID, &namespaces),
        principals: draw.some(SAID, &principals),
        not_principals: draw.some(SAID, &principals),
        source_ips: draw.some(SAID, &nets),
        not_source_ips: draw.some(SAID, &nets),
        destination_ips: draw.some(SAID, &nets),
        not_destination_ips: draw.some(SAID, &nets),
        destination_ports: draw.some(SAID, &PORTS),
        not_destination_ports: draw.some(SAID, &PORTS),
        service_accounts: draw.some(SAID, &accounts),
        not_service_accounts: draw.some(SAID, &accounts),
        trust_domains: draw.some(SAID, &trust_domains),
        not_trust_domains: draw.some(SAID, &trust_domains),
        unseen,
        request: judged.then(|| requests::match_(draw).into()),
        unreadable: draw.some(SAID / 2, &["ipBlocks".into()]),
    }
}

/// Of the mesh, of a namespace or of a workload that may not be there.
fn change_mtls(world: &mut World, draw: &mut Draw) {
    let mode = |draw: &mut Draw| *draw.pick(&[None, Some(MtlsMode::Strict), Some(MtlsMode::Permissive)]);
    let ports = PORTS
        .iter()
        .filter_map(|port| Some((*port, mode(draw)?)))
        .take(2)
        .collect();
    let said = PeerAuthentication {
        mode: mode(draw),
        ports,
        ..PeerAuthentication::default()
    };
    let uids: Vec<_> = world.netns.keys().cloned().collect();
    let of = &mut world.parts.peer_authentications;
    match draw.of(0..4) {
        0 => of.mesh = said,
        1 => drop(of.namespaces.insert((*draw.pick(&NAMESPACES)).into(), said)),
        2 if !uids.is_empty() => drop(of.workloads.insert(draw.pick(&uids).clone(), said)),
        _ => *of = PeerAuthentications::default(),
    }
}
