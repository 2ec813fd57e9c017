//! gRPC between agents and the controller: the messages, and the TLS connection that both of its services share.
//!
//! Messages are written by hand, with the field numbers of Envoy's and Istio's APIs (`envoy.service.discovery.v3`,
//! `istio.workload`, `istio.security`, `istio.v1.auth`) and only the fields that are used: what else arrives is skipped, as
//! protobuf has it. So agents also run under another server of the same protocol, and other agents under ours. What the messages mean is
//! `feed`'s and `svid`'s to say.

pub mod authorization;
pub mod ca;
mod channel;
pub mod discovery;
mod server;
pub mod workload;

pub use channel::{CertFiles, Channel, ChannelError, Credentials, ReadRoots, Roots, connect};
pub use server::{Answer, Certified, Clients, Handler, Peer, ServeError, ServerTls, serve};
