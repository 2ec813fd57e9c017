//! NRI's messages, as far as they are read here. Field numbers are those of `nri.pkg.api.v1alpha1` in containerd/nri, and of
//! ttrpc's own envelope (`ttrpc.proto`) for [`Request`] and [`Response`]. What is not named is skipped.

use std::collections::HashMap;

use bytes::Bytes;

/// The service that a runtime calls.
pub(super) const PLUGIN: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that it offers.
pub(super) const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

/// `UNIMPLEMENTED` (google.rpc.Code).
pub(super) const UNIMPLEMENTED: i32 = 12;
/// `INVALID_ARGUMENT`.
pub(super) const INVALID: i32 = 3;

/// One call (ttrpc).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) method: String,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) payload: Bytes,
    /// How long the caller waits for the answer, in nanoseconds; 0 says nothing.
    #[prost(int64, tag = "4")]
    pub(super) timeout_nano: i64,
}

/// Its answer (ttrpc).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Response {
    #[prost(message, optional, tag = "1")]
    pub(super) status: Option<Status>,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) payload: Bytes,
}

/// Why there is none (google.rpc.Status).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Status {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RegisterPluginRequest {
    #[prost(string, tag = "1")]
    pub(super) plugin_name: String,
    #[prost(string, tag = "2")]
    pub(super) plugin_idx: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConfigureRequest {
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConfigureResponse {
    /// A bit for each event that is wanted: `1 << (event - 1)`.
    #[prost(int32, tag = "2")]
    pub(super) events: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SynchronizeRequest {
    /// [`PodSandbox`]es, each still as it came: two bytes of a message may be a whole one, which is a hundred times as much
    /// in memory.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(super) pods: Vec<Bytes>,
    /// Whether another one of these follows.
    #[prost(bool, tag = "3")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SynchronizeResponse {
    /// What the request says, by one that can put the parts together.
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StateChangeEvent {
    #[prost(enumeration = "Event", tag = "1")]
    pub(super) event: i32,
    #[prost(message, optional, tag = "2")]
    pub(super) pod: Option<PodSandbox>,
}

/// The events that are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Event {
    Unknown = 0,
    RunPodSandbox = 1,
    StopPodSandbox = 2,
    RemovePodSandbox = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(in crate::node::pods) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) uid: String,
    #[prost(string, tag = "4")]
    pub(super) namespace: String,
    #[prost(map = "string, string", tag = "5")]
    pub(super) labels: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")]
    pub(super) annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub(super) linux: Option<LinuxPodSandbox>,
    /// Empty where the runtime is older than the field.
    #[prost(string, repeated, tag = "10")]
    pub(super) ips: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LinuxPodSandbox {
    #[prost(message, repeated, tag = "5")]
    pub(super) namespaces: Vec<LinuxNamespace>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct LinuxNamespace {
    /// `network`, `pid`...; one that is not among them is shared with the node.
    #[prost(string, tag = "1")]
    pub(super) r#type: String,
    #[prost(string, tag = "2")]
    pub(super) path: String,
}
