//! Workloads and services (`istio.workload.Address`). Field numbers are those of Istio's `workload.proto` of August 2026.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::discovery::Any;

/// Whatever has an address.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Address {
    #[allow(missing_docs)]
    #[prost(oneof = "AddressType", tags = "1, 2")]
    pub r#type: Option<AddressType>,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum AddressType {
    #[prost(message, tag = "1")]
    Workload(Box<Workload>),
    #[prost(message, tag = "2")]
    Service(Box<Service>),
}

/// A pod, or what acts as one.
#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct Workload {
    #[prost(string, tag = "20")]
    pub uid: String,
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Each 4 or 16 bytes.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub addresses: Vec<Bytes>,
    #[prost(string, tag = "21")]
    pub hostname: String,
    #[prost(string, tag = "4")]
    pub network: String,
    #[prost(enumeration = "TunnelProtocol", tag = "5")]
    pub tunnel_protocol: i32,
    #[prost(string, tag = "6")]
    pub trust_domain: String,
    #[prost(string, tag = "7")]
    pub service_account: String,
    #[prost(message, optional, tag = "8")]
    pub waypoint: Option<GatewayAddress>,
    #[prost(message, optional, tag = "19")]
    pub network_gateway: Option<GatewayAddress>,
    #[prost(string, tag = "9")]
    pub node: String,
    #[prost(string, tag = "10")]
    pub canonical_name: String,
    #[prost(string, tag = "11")]
    pub canonical_revision: String,
    #[prost(enumeration = "WorkloadType", tag = "12")]
    pub workload_type: i32,
    #[prost(string, tag = "13")]
    pub workload_name: String,
    #[prost(bool, tag = "14")]
    pub native_tunnel: bool,
    #[prost(message, optional, tag = "23")]
    pub application_tunnel: Option<ApplicationTunnel>,
    /// By `namespace/hostname`.
    #[prost(btree_map = "string, message", tag = "22")]
    pub services: BTreeMap<String, PortList>,
    /// Each `namespace/name`.
    #[prost(string, repeated, tag = "16")]
    pub authorization_policies: Vec<String>,
    #[prost(enumeration = "WorkloadStatus", tag = "17")]
    pub status: i32,
    #[prost(string, tag = "18")]
    pub cluster_id: String,
    #[prost(message, optional, tag = "24")]
    pub locality: Option<Locality>,
    #[prost(enumeration = "NetworkMode", tag = "25")]
    pub network_mode: i32,
    #[prost(message, repeated, tag = "26")]
    pub extensions: Vec<Extension>,
    #[prost(message, optional, tag = "27")]
    pub capacity: Option<u32>,
}

/// A service.
#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct Service {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(string, tag = "3")]
    pub hostname: String,
    #[prost(message, repeated, tag = "4")]
    pub addresses: Vec<NetworkAddress>,
    #[prost(message, repeated, tag = "5")]
    pub ports: Vec<Port>,
    #[prost(string, repeated, tag = "6")]
    pub subject_alt_names: Vec<String>,
    #[prost(message, optional, tag = "7")]
    pub waypoint: Option<GatewayAddress>,
    #[prost(message, optional, tag = "8")]
    pub load_balancing: Option<LoadBalancing>,
    #[prost(enumeration = "IpFamilies", tag = "9")]
    pub ip_families: i32,
    #[prost(message, repeated, tag = "10")]
    pub extensions: Vec<Extension>,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct LoadBalancing {
    #[prost(enumeration = "RoutingScope", repeated, tag = "1")]
    pub routing_preference: Vec<i32>,
    #[prost(enumeration = "BalancingMode", tag = "2")]
    pub mode: i32,
    #[prost(enumeration = "HealthPolicy", tag = "3")]
    pub health_policy: i32,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct PortList {
    #[prost(message, repeated, tag = "1")]
    pub ports: Vec<Port>,
}

#[allow(missing_docs)]
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Port {
    #[prost(uint32, tag = "1")]
    pub service_port: u32,
    #[prost(uint32, tag = "2")]
    pub target_port: u32,
    /// 0 unknown, 1 HTTP/1.1, 2 HTTP/2, 3 gRPC, 4 TCP, 5 TLS.
    #[prost(int32, tag = "3")]
    pub app_protocol: i32,
}

/// What the workload itself wants in place of the bytes of a tunnel.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ApplicationTunnel {
    /// 0 none, 1 PROXY.
    #[prost(int32, tag = "1")]
    pub protocol: i32,
    #[allow(missing_docs)]
    #[prost(uint32, tag = "2")]
    pub port: u32,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct GatewayAddress {
    #[prost(oneof = "Destination", tags = "1, 2")]
    pub destination: Option<Destination>,
    #[prost(uint32, tag = "3")]
    pub hbone_mtls_port: u32,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Destination {
    #[prost(message, tag = "1")]
    Hostname(NamespacedHostname),
    #[prost(message, tag = "2")]
    Address(NetworkAddress),
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct NamespacedHostname {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub hostname: String,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct NetworkAddress {
    #[prost(string, tag = "1")]
    pub network: String,
    /// 4 or 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub address: Bytes,
    /// Bits of the prefix; all of them where it is not set.
    #[prost(uint32, optional, tag = "3")]
    pub length: Option<u32>,
}

#[allow(missing_docs)]
#[derive(Clone, PartialEq, prost::Message)]
pub struct Locality {
    #[prost(string, tag = "1")]
    pub region: String,
    #[prost(string, tag = "2")]
    pub zone: String,
    #[prost(string, tag = "3")]
    pub subzone: String,
}

/// What only some agents understand.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Extension {
    #[allow(missing_docs)]
    #[prost(string, tag = "1")]
    pub name: String,
    #[allow(missing_docs)]
    #[prost(message, optional, tag = "2")]
    pub config: Option<Any>,
}

macro_rules! enumeration {
    ($name:ident { $($value:ident = $number:literal),* }) => {
        #[allow(missing_docs)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
        #[repr(i32)]
        pub enum $name { $($value = $number),* }
    };
}

enumeration!(TunnelProtocol { None = 0, Hbone = 1, LegacyIstioMtls = 2 });
enumeration!(WorkloadType { Deployment = 0, CronJob = 1, Pod = 2, Job = 3 });
enumeration!(WorkloadStatus { Healthy = 0, Unhealthy = 1 });
enumeration!(NetworkMode { Standard = 0, HostNetwork = 1 });
enumeration!(IpFamilies { Automatic = 0, Ipv4Only = 1, Ipv6Only = 2, Dual = 3 });
enumeration!(RoutingScope { Unspecified = 0, Region = 1, Zone = 2, Subzone = 3, Node = 4, Cluster = 5, Network = 6 });
enumeration!(BalancingMode { Unspecified = 0, Strict = 1, Failover = 2, Passthrough = 3 });
enumeration!(HealthPolicy { OnlyHealthy = 0, AllowAll = 1 });
