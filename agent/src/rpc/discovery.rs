//! The delta form of the aggregated discovery service (`envoy.service.discovery.v3`), and what it carries.
//!
//! Source: the xDS protocol, "Incremental xDS". Field numbers are those of Envoy's `discovery.proto`.

use std::collections::HashMap;

use bytes::Bytes;

/// The method's path.
pub const DELTA_PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Workloads and services (`istio.workload.Address`).
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// L4 policies (`istio.security.Authorization`).
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// What waypoints do with requests (`feed::wds::http`): ours, no server but ours has any.
pub const HTTP_TYPE: &str = "type.googleapis.com/weft.mesh.Http";

/// Who asks.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Node {
    /// Unique: `ztunnel~<address>~<pod>.<namespace>~<namespace>.svc.cluster.local` where the server is istiod.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The cluster's name.
    #[prost(string, tag = "2")]
    pub cluster: String,
    /// Whatever the server wants to know besides.
    #[prost(message, optional, tag = "3")]
    pub metadata: Option<prost_types::Struct>,
}

/// A subscription, or the answer to a response: an ACK, or a NACK where `error_detail` is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryRequest {
    /// Only in the first request of a stream.
    #[prost(message, optional, tag = "1")]
    pub node: Option<Node>,
    /// Which kind of resource it is about.
    #[prost(string, tag = "2")]
    pub type_url: String,
    /// Names to add to the subscription; `*` is every resource.
    #[prost(string, repeated, tag = "3")]
    pub resource_names_subscribe: Vec<String>,
    /// Names to take from it.
    #[prost(string, repeated, tag = "4")]
    pub resource_names_unsubscribe: Vec<String>,
    /// What the client has already, by name: only in the first request of a type.
    #[prost(map = "string, string", tag = "5")]
    pub initial_resource_versions: HashMap<String, String>,
    /// The response that this answers; empty in a subscription.
    #[prost(string, tag = "6")]
    pub response_nonce: String,
    /// Why the response was refused.
    #[prost(message, optional, tag = "7")]
    pub error_detail: Option<Status>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// A gRPC status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// What changed, or at first everything.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeltaDiscoveryResponse {
    /// For people.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// New and changed.
    #[prost(message, repeated, tag = "2")]
    pub resources: Vec<Resource>,
    /// Which kind of resource it is about.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// Names the response, for the answer to it.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Gone.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
    /// Who answers.
    #[prost(message, optional, tag = "7")]
    pub control_plane: Option<ControlPlane>,
}

/// Who answers, as it calls itself.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ControlPlane {
    /// Any text: istiod's is JSON, weft's own is [`CONTROL_PLANE`].
    #[prost(string, tag = "1")]
    pub identifier: String,
}

/// weft's controller.
pub const CONTROL_PLANE: &str = "weft";

/// One resource.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// Changes with its content.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The resource itself.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Any>,
    /// Unique among the resources of its type.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Other names that it can be asked for by.
    #[prost(string, repeated, tag = "4")]
    pub aliases: Vec<String>,
}

/// `google.protobuf.Any`, whose value is shared and not copied.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Any {
    /// The value's type.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}
