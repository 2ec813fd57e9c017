//! `Mesh`: the whole mesh as one value that never changes, with an index for every question that a connection asks.
//!
//! Not here: reading it from anywhere (`feed`), and the answers themselves (`route`, `authorize`). A change of the
//! mesh is a new `Mesh`.

use std::{borrow::Cow, hash::Hash, mem, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    BalancingMode, Endpoint, GatewayAddress, GatewayDestination, HealthPolicy, LoadBalancing, MtlsMode,
    MtlsSetting, PeerAuthentications, Policy, PolicyKey, PortMapping, PortModes, Refusal, SameNode,
    SameNodes, Service, ServiceKey, TrustDomain, TunnelProtocol, Workload,
    authorize::{Cover, Covered, OfServices, Policies},
    endpoints::Endpoints,
    http,
    names::Names,
    vips::Vips,
};

mod canonical;

use canonical::{canonical_net, canonical_policy, canonical_service, canonical_workload};

/// What a mesh is made of: the plain lists that a feed brings.
#[derive(Clone, Debug)]
pub struct MeshParts {
    /// The trust domain of every identity in the mesh.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// What Kubernetes' hostnames end in, in lower case.
    pub cluster_domain: Arc<str>,
    /// The namespace whose policies cover the whole mesh.
    pub root_namespace: Arc<str>,
    /// Where pods and services have their addresses: an unknown address in here is refused, not passed through.
    pub cluster_cidrs: Vec<IpNet>,
    /// Every workload. Where two have the same uid or address, the first keeps it.
    pub workloads: Vec<Workload>,
    /// Every service. Where two have the same key or address, the first keeps it.
    pub services: Vec<Service>,
    /// Every L4 policy. Where two have the same key, the first keeps it.
    pub policies: Vec<Policy>,
    /// mTLS modes.
    pub peer_authentications: PeerAuthentications,
    /// How connections inside a node go.
    pub same_nodes: SameNodes,
    /// What waypoints do; others have none.
    pub http: http::Parts,
}

/// The mesh, indexed. Every address in it is canonical: a v4-mapped IPv6 address is an IPv4 address.
#[derive(Clone, Debug)]
pub struct Mesh {
    trust_domain: TrustDomain,
    cluster: Arc<str>,
    cluster_domain: Arc<str>,
    root_namespace: Arc<str>,
    cluster_cidrs: Vec<IpNet>,
    workloads: Covered,
    workloads_by_address: FxHashMap<IpAddr, Arc<Workload>>,
    services: FxHashMap<ServiceKey, Arc<Service>>,
    vips: Vips,
    names: Names,
    endpoints: FxHashMap<ServiceKey, Endpoints>,
    subsets: FxHashMap<ServiceKey, FxHashMap<Arc<str>, Endpoints>>,
    headless: FxHashMap<Arc<str>, Vec<(u16, Arc<Service>)>>,
    policies: Policies,
    peer_authentications: PeerAuthentications,
    same_nodes: SameNodes,
    http: http::Index,
    of_services: OfServices,
}

impl Mesh {
    /// Indexes the parts.
    pub fn new(parts: MeshParts) -> Self {
        Self::sharing(parts, Vec::new(), Vec::new())
    }

    /// Indexes the parts and these values, which the mesh then has in common with whoever else holds them.
    pub fn sharing(mut parts: MeshParts, workloads: Vec<Arc<Workload>>, services: Vec<Arc<Service>>) -> Self {
        let workloads = unique(
            mem::take(&mut parts.workloads),
            workloads,
            canonical_workload,
            |it| it.uid.clone(),
        );
        let services = unique(
            mem::take(&mut parts.services),
            services,
            canonical_service,
            |it| it.key.clone(),
        );
        let policies = mem::take(&mut parts.policies).into_iter().map(canonical_policy);
        let policies = unique(
            policies.collect(),
            Vec::new(),
            |_| {},
            |policy| policy.key.clone(),
        );
        let policies = Policies::new(&policies);
        let services_by_key = index(services.iter().map(|service| (service.key.clone(), service)));
        let vips = Vips::new(&services);
        let gateways = gateways(&workloads, &services, &vips);
        let workloads_by_address = index(addresses(&workloads));
        let choosable: Vec<_> = workloads
            .iter()
            .filter(|workload| keeps_addresses(workload, &workloads_by_address))
            .cloned()
            .collect();
        let endpoints = endpoints(&choosable, &services_by_key, &gateways);
        let http = http::Index::new(parts.http);
        Self {
            trust_domain: parts.trust_domain,
            cluster: parts.cluster,
            cluster_domain: parts.cluster_domain,
            root_namespace: parts.root_namespace,
            cluster_cidrs: parts.cluster_cidrs.into_iter().map(canonical_net).collect(),
            workloads_by_address,
            vips,
            names: Names::new(&services),
            subsets: subsets(&endpoints, &services_by_key),
            endpoints,
            headless: headless(&workloads, &services_by_key),
            workloads: Covered::new(&workloads, &policies),
            services: services_by_key,
            peer_authentications: parts.peer_authentications,
            same_nodes: parts.same_nodes,
            of_services: OfServices::new(http.policies(), &policies),
            http,
            policies,
        }
    }

    /// The trust domain of every identity in the mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &Arc<str> {
        &self.cluster
    }

    /// What Kubernetes' hostnames end in, for example `cluster.local`.
    pub fn cluster_domain(&self) -> &str {
        &self.cluster_domain
    }

    /// The namespace whose policies cover the whole mesh.
    pub fn root_namespace(&self) -> &Arc<str> {
        &self.root_namespace
    }

    /// Whether an address is one that the cluster gives to pods or services.
    pub fn is_cluster_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.cluster_cidrs.iter().any(|cidr| cidr.contains(&address))
    }

    /// The workload of this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.workload(uid)
    }

    /// The workload that has this address. A hostNetwork workload is never found: its address is its node's.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(&address.to_canonical())
    }

    /// The service of this namespace and hostname.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service that has this virtual address, or the smallest network around it. A workload's own address is in no
    /// service's network.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        let address = address.to_canonical();
        let around = || {
            self.vips
                .around(address)
                .filter(|_| self.workload_at(address).is_none())
        };
        self.vips.at(address).or_else(around)
    }

    /// The workloads behind a service that may be chosen: ready where the service asks for it, and with an address.
    pub fn endpoints(&self, key: &ServiceKey) -> &[Endpoint] {
        self.endpoints.get(key).map_or(&[], Endpoints::all)
    }

    /// The same, and which of them is near to whom.
    pub(super) fn balanced(&self, key: &ServiceKey) -> Option<&Endpoints> {
        self.endpoints.get(key)
    }

    /// Those that are of a subset.
    pub(super) fn subset(&self, key: &ServiceKey, subset: &str) -> Option<&Endpoints> {
        self.subsets.get(key)?.get(subset)
    }

    /// The services without a virtual address that lead to a port of a workload's own addresses.
    pub(super) fn headless_at(&self, workload: &Workload, port: u16) -> impl Iterator<Item = &Arc<Service>> {
        let ports = self.headless.get(&workload.uid).into_iter().flatten();
        ports
            .filter(move |(leads_to, _)| *leads_to == port)
            .map(|(_, service)| service)
    }

    /// What a waypoint does with what is sent to a service, if anything.
    ///
    /// # Errors
    /// Where that arrived and cannot be read. Then everything is refused.
    pub fn http_routes(
        &self,
        service: &ServiceKey,
    ) -> Result<Option<&Arc<http::Routes>>, http::UnreadableRoutes> {
        self.http.routes(service)
    }

    /// The same for whoever answers a request.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn usable_routes(&self, service: &ServiceKey) -> Result<Option<&Arc<http::Routes>>, Refusal> {
        let unreadable = |_| Refusal::RoutesUnreadable(service.clone());
        self.http.routes(service).map_err(unreadable)
    }

    /// Whose tokens are believed, by the name that services and workloads give.
    pub fn request_authentication(&self, key: &PolicyKey) -> Option<&Arc<http::RequestAuthentication>> {
        self.http.authentication(key)
    }

    /// All of them, in no order.
    pub fn request_authentications(&self) -> impl Iterator<Item = &Arc<http::RequestAuthentication>> {
        self.http.authentications()
    }

    /// Every workload, in no order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.workloads()
    }

    /// Every service, in no order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Every policy, in no order.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.all()
    }

    /// The policy of this name, whatever its scope.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The policies that cover a workload: the mesh's, its namespace's, and those that it names. One that it names
    /// and that is not there is not in here; `authorize` refuses for it.
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.of(workload)
    }

    /// The same, as `authorize` asks them.
    pub(super) fn cover(&self, workload: &Workload) -> Cow<'_, Arc<Cover>> {
        self.workloads.cover(&self.policies, workload)
    }

    /// What covers a service, as `authorize_service` asks it.
    pub(super) fn cover_of(&self, policies: &[PolicyKey]) -> Cow<'_, Arc<Cover>> {
        self.of_services.cover(&self.policies, policies)
    }

    /// Whether a port of a workload takes plaintext.
    pub fn mtls_mode(&self, workload: &Workload, port: u16) -> MtlsMode {
        self.peer_authentications.mode(workload, port)
    }

    /// Which peer authentication decides [`mtls_mode`](Self::mtls_mode); none where nothing is said.
    pub fn mtls_setting(&self, workload: &Workload, port: u16) -> Option<MtlsSetting> {
        self.peer_authentications.setting(workload, port)
    }

    /// The mTLS modes of all ports of a workload, in the form in which the kernel's maps hold them.
    pub fn strict_ports(&self, workload: &Workload) -> PortModes {
        self.peer_authentications.port_modes(workload)
    }

    /// How a workload's connections with pods of its own node go.
    pub fn same_node(&self, workload: &Workload) -> SameNode {
        self.same_nodes.of(workload)
    }

    /// The services by hostname.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// The service in front of a waypoint, where the mesh gives it as one.
    pub(super) fn gateway_service(&self, gateway: &GatewayAddress) -> Option<&Arc<Service>> {
        match &gateway.destination {
            GatewayDestination::Service(key) => self.service(key),
            GatewayDestination::Address(address) => self.service_at(*address),
        }
    }
}

/// The values to share, without those whose key an earlier one has: nothing may lead to a value that is not there.
fn unique<K: Eq + Hash, V>(
    own: Vec<V>,
    shared: Vec<Arc<V>>,
    canonical: fn(&mut Arc<V>),
    key: fn(&V) -> K,
) -> Vec<Arc<V>> {
    let mut keys = FxHashSet::default();
    let all = own.into_iter().map(Arc::new).chain(shared);
    let mut kept: Vec<_> = all.filter(|value| keys.insert(key(value))).collect();
    kept.iter_mut().for_each(canonical);
    kept
}

/// A map of shared values; the first of two values with the same key stays.
fn index<'a, K, V>(entries: impl Iterator<Item = (K, &'a Arc<V>)>) -> FxHashMap<K, Arc<V>>
where
    K: Eq + Hash,
    V: 'a,
{
    let mut map = FxHashMap::default();
    for (key, value) in entries {
        map.entry(key).or_insert_with(|| value.clone());
    }
    map
}

fn addresses(workloads: &[Arc<Workload>]) -> impl Iterator<Item = (IpAddr, &Arc<Workload>)> {
    let pods = workloads.iter().filter(|workload| !workload.host_network);
    pods.flat_map(|workload| workload.addresses.iter().map(move |address| (*address, workload)))
}

/// Whether no other workload has one of its addresses. Pods' addresses are used again before everybody knows that they are
/// free, and what is meant for one pod, perhaps in clear, must not reach another. A machine outside of the cluster may be
/// known by several names.
fn keeps_addresses(workload: &Workload, by_address: &FxHashMap<IpAddr, Arc<Workload>>) -> bool {
    let outside = |it: &Workload| it.node.is_empty() && it.tunnel_protocol == TunnelProtocol::None;
    let keeps = |address| {
        by_address
            .get(address)
            .is_none_or(|there| there.uid == workload.uid || (outside(there) && outside(workload)))
    };
    workload.addresses.iter().all(keeps)
}

fn endpoints(
    workloads: &[Arc<Workload>],
    services: &FxHashMap<ServiceKey, Arc<Service>>,
    gateways: &FxHashSet<ServiceKey>,
) -> FxHashMap<ServiceKey, Endpoints> {
    let mut endpoints: FxHashMap<&ServiceKey, Vec<Endpoint>> = FxHashMap::default();
    for (workload, service, mapped) in backed(workloads, services) {
        let may_be_chosen = workload.healthy || service.load_balancing.health == HealthPolicy::AllowAll;
        if may_be_chosen && !workload.addresses.is_empty() {
            let all = endpoints.entry(&service.key).or_default();
            let ports = endpoint_ports(service, mapped);
            // Most map them as the one before.
            let alike = all.last().filter(|last| *last.ports == *ports);
            let ports = alike.map_or_else(|| ports.into(), |last| last.ports.clone());
            let workload = workload.clone();
            all.push(Endpoint { workload, ports });
        }
    }
    endpoints.values_mut().for_each(Vec::shrink_to_fit);
    let close = LoadBalancing::failover(&LoadBalancing::CLOSE);
    let balanced = endpoints.into_iter().map(|(key, all)| {
        let own = &services[key].load_balancing;
        // A waypoint's pods are chosen by locality, unless it says otherwise (as in Istio).
        let balancing = if own.mode == BalancingMode::Any && gateways.contains(key) {
            &close
        } else {
            own
        };
        (key.clone(), Endpoints::new(all, balancing))
    });
    balanced.collect()
}

/// The endpoints of subsets, where workloads name any.
fn subsets(
    endpoints: &FxHashMap<ServiceKey, Endpoints>,
    services: &FxHashMap<ServiceKey, Arc<Service>>,
) -> FxHashMap<ServiceKey, FxHashMap<Arc<str>, Endpoints>> {
    let mut subsets: FxHashMap<ServiceKey, FxHashMap<Arc<str>, Endpoints>> = FxHashMap::default();
    for (key, all) in endpoints {
        let mut by_name: FxHashMap<&Arc<str>, Vec<Endpoint>> = FxHashMap::default();
        for endpoint in all.all() {
            let of_service = endpoint
                .workload
                .subsets
                .iter()
                .filter(|(service, _)| service == key);
            for (_, subset) in of_service {
                let of_subset = by_name.entry(subset).or_default();
                // Once, however often it says so.
                if of_subset
                    .last()
                    .is_none_or(|last| last.workload.uid != endpoint.workload.uid)
                {
                    of_subset.push(endpoint.clone());
                }
            }
        }
        if let Some(service) = services.get(key).filter(|_| !by_name.is_empty()) {
            let balanced = by_name.into_iter();
            let balanced =
                balanced.map(|(name, all)| (name.clone(), Endpoints::new(all, &service.load_balancing)));
            subsets.insert(key.clone(), balanced.collect());
        }
    }
    subsets
}

/// Every workload with every service that it backs, as far as the mesh has it, and the ports that it maps.
fn backed<'a>(
    workloads: &'a [Arc<Workload>],
    services: &'a FxHashMap<ServiceKey, Arc<Service>>,
) -> impl Iterator<Item = (&'a Arc<Workload>, &'a Arc<Service>, &'a [PortMapping])> {
    workloads.iter().flat_map(move |workload| {
        let known = |(key, mapped)| Some((services.get(key)?, mapped));
        let backed = workload.services.iter().filter_map(known);
        backed.map(move |(service, mapped): (_, &'a Vec<PortMapping>)| (workload, service, mapped.as_slice()))
    })
}

/// By the workload's uid, the ports that services without a virtual address lead to.
fn headless(
    workloads: &[Arc<Workload>],
    services: &FxHashMap<ServiceKey, Arc<Service>>,
) -> FxHashMap<Arc<str>, Vec<(u16, Arc<Service>)>> {
    let mut headless: FxHashMap<Arc<str>, Vec<(u16, Arc<Service>)>> = FxHashMap::default();
    for (workload, service, mapped) in
        backed(workloads, services).filter(|(_, service, _)| service.is_headless())
    {
        let ports = endpoint_ports(service, mapped);
        let leads = ports.iter().map(|port| (port.target_port, service.clone()));
        headless.entry(workload.uid.clone()).or_default().extend(leads);
    }
    headless
}

/// The services in front of waypoints.
fn gateways(workloads: &[Arc<Workload>], services: &[Arc<Service>], vips: &Vips) -> FxHashSet<ServiceKey> {
    let of_workloads = workloads.iter().filter_map(|workload| workload.waypoint.as_ref());
    let of_services = services.iter().filter_map(|service| service.waypoint.as_ref());
    let key = |gateway: &GatewayAddress| match &gateway.destination {
        GatewayDestination::Service(key) => Some(key.clone()),
        GatewayDestination::Address(address) => vips.at(*address).map(|service| service.key.clone()),
    };
    of_workloads.chain(of_services).filter_map(key).collect()
}

/// The service's ports, each where the workload maps it to, or else where the service says. A target port of 0 is a
/// port with a name that this workload does not have.
fn endpoint_ports(service: &Service, mapped: &[PortMapping]) -> Vec<PortMapping> {
    let of_workload = |port: &PortMapping| {
        mapped
            .iter()
            .find(|mapped| mapped.service_port == port.service_port)
            .copied()
            .unwrap_or(*port)
    };
    service
        .ports
        .iter()
        .map(of_workload)
        .filter(|port| port.target_port != 0)
        .collect()
}

#[cfg(test)]
mod tests;
