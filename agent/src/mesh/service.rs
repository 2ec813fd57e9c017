//! Services: virtual addresses, their ports and the workloads behind them.

use std::{fmt, net::IpAddr, sync::Arc};

use super::{PortMapping, SpiffeId};

/// What names a service in the whole mesh: its namespace and its hostname.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// The ports, where a workload does not map them differently.
    pub ports: Vec<PortMapping>,
    /// Identities that endpoints may have besides their own (`subjectAltNames` of a ServiceEntry).
    pub subject_alt_names: Vec<SpiffeId>,
    /// The waypoint that traffic to this service goes through.
    pub waypoint: Option<GatewayAddress>,
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
