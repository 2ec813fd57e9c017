//! Services: virtual addresses, their ports and the workloads behind them.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{PortMapping, SpiffeId, Workload};

/// What names a service in the whole mesh: its namespace and its hostname.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceKey {
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// For example `cart.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A service, as in Istio's `istio.workload.Service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and hostname.
    pub key: ServiceKey,
    /// The Kubernetes name.
    pub name: Arc<str>,
    /// The virtual addresses that clients dial; none for a headless service.
    pub vips: Vec<IpAddr>,
    /// Networks every address of which is the service's as well, as far as no smaller network and no address in it is
    /// somebody else's. No name stands for them.
    pub vip_networks: Vec<IpNet>,
    /// The ports, where a workload does not map them differently.
    pub ports: Vec<PortMapping>,
    /// What is spoken on its ports, as far as it says; an L4 agent does not ask.
    pub app_protocols: BTreeMap<u16, AppProtocol>,
    /// Identities that endpoints may have besides their own (`subjectAltNames` of a ServiceEntry).
    pub subject_alt_names: Vec<SpiffeId>,
    /// The waypoint that traffic to this service goes through.
    pub waypoint: Option<GatewayAddress>,
    /// Which endpoint a connection is given.
    pub load_balancing: LoadBalancing,
    /// Of which families its name has addresses.
    pub ip_families: IpFamilies,
}

impl Service {
    /// Whether it has no virtual address, so that clients dial its pods' own addresses, which its name stands for.
    pub fn is_headless(&self) -> bool {
        self.vips.is_empty() && self.vip_networks.is_empty()
    }
}

/// Which endpoint of a service a connection is given, as in Istio's `istio.workload.LoadBalancing`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// What an endpoint should share with whoever dials, the widest scope first. One that has no value for a scope
    /// shares it with those that have none either.
    pub routing_preference: Vec<RoutingScope>,
    /// What the preference means.
    pub mode: BalancingMode,
    /// Which endpoints may be chosen at all.
    pub health: HealthPolicy,
}

impl LoadBalancing {
    /// `PreferClose` and `PreferSameZone`: what comes first in the network, the region, the zone and the subzone.
    pub const CLOSE: [RoutingScope; 4] = [
        RoutingScope::Network,
        RoutingScope::Region,
        RoutingScope::Zone,
        RoutingScope::Subzone,
    ];
    /// `PreferSameNode`: and then on the node.
    pub const SAME_NODE: [RoutingScope; 5] = [
        RoutingScope::Network,
        RoutingScope::Region,
        RoutingScope::Zone,
        RoutingScope::Subzone,
        RoutingScope::Node,
    ];

    /// A nearer endpoint comes before a farther one.
    pub fn failover(scopes: &[RoutingScope]) -> Self {
        Self {
            routing_preference: scopes.to_vec(),
            mode: BalancingMode::Failover,
            health: HealthPolicy::default(),
        }
    }

    /// The scopes that count: none where the mode does not ask for them.
    pub fn scopes(&self) -> &[RoutingScope] {
        match self.mode {
            BalancingMode::Strict | BalancingMode::Failover => &self.routing_preference,
            BalancingMode::Any | BalancingMode::Passthrough => &[],
        }
    }
}

/// What whoever dials and an endpoint may have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingScope {
    /// `Workload::network`.
    Network,
    /// The region of its locality.
    Region,
    /// The zone of its locality.
    Zone,
    /// The subzone of its locality.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
}

impl RoutingScope {
    /// What a workload has for it; empty where that is unknown.
    pub fn of(self, workload: &Workload) -> &Arc<str> {
        match self {
            Self::Network => &workload.network,
            Self::Region => &workload.locality.region,
            Self::Zone => &workload.locality.zone,
            Self::Subzone => &workload.locality.subzone,
            Self::Node => &workload.node,
            Self::Cluster => &workload.cluster,
        }
    }
}

/// What a routing preference means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BalancingMode {
    /// Nothing: any endpoint (Istio's UNSPECIFIED).
    #[default]
    Any,
    /// The endpoints that share the most scopes, from the first on; the others when there is none of those.
    Failover,
    /// Those that share every scope, and no others.
    Strict,
    /// No endpoint: a connection goes to the address that was dialled (a ServiceEntry with `resolution: NONE`).
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HealthPolicy {
    /// Those that are ready.
    #[default]
    OnlyHealthy,
    /// All (`publishNotReadyAddresses`).
    AllowAll,
}

/// What is spoken on a port of a service (`appProtocol`, or the beginning of the port's name).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http11,
    /// HTTP/2 without TLS.
    Http2,
    /// gRPC.
    Grpc,
    /// Anything.
    Tcp,
    /// TLS, HTTPS among it.
    Tls,
}

/// Of which families a service's name has addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpFamilies {
    /// Whichever there are.
    #[default]
    Automatic,
    /// IPv4.
    Ipv4Only,
    /// IPv6.
    Ipv6Only,
    /// Both.
    Dual,
}

impl IpFamilies {
    /// Whether the name may stand for this address.
    pub fn includes(self, address: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4Only => address.is_ipv4(),
            Self::Ipv6Only => address.is_ipv6(),
        }
    }
}

/// Where a waypoint or gateway is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// A service's name, or an address.
    pub destination: GatewayDestination,
    /// The port it speaks HBONE on (15008 unless set otherwise).
    pub hbone_port: u16,
}

/// The two forms of a gateway's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayDestination {
    /// The service in front of the gateway's pods.
    Service(ServiceKey),
    /// A service's virtual address or a pod's own.
    Address(IpAddr),
}
