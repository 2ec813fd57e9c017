//! The test world: nodes and pods made of network namespaces, cgroups and veth pairs, with real agents between them.
//!
//! The integration tests and `cargo xtask demo` use it. It knows the product only from outside, as a binary with flags,
//! files, ports and log lines: it never links against `weft`. It must run as root, and touches nothing of the machine
//! but what it made itself; every name it makes carries its process, so that [`sweep()`] can clean up after a dead run.
//!
//! Read [`topology`] first (what a world is), then [`host`] (sockets and programs inside it), then [`agent`].

pub mod access;
pub mod agent;
pub mod app;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod crowd;
pub mod curl;
pub mod flood;
pub mod host;
pub mod http;
pub mod kube;
pub mod machine;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod network;
pub mod nginx;
pub mod nri;
pub mod pattern;
pub mod pause;
pub mod pod;
pub mod process;
pub mod program;
pub mod run;
pub mod skip;
pub mod sweep;
pub mod tokens;
pub mod topology;
pub mod wait;

pub use access::AccessLine;
pub use agent::{Agent, AgentOptions};
pub use app::Server;
pub use capture::Capture;
pub use crowd::Crowd;
pub use curl::{Curled, curl};
pub use flood::Flood;
pub use host::Host;
pub use mesh::MeshSpec;
pub use metrics::Samples;
pub use nginx::Nginx;
pub use pod::{Membership, Pod, PodSpec};
pub use skip::skip;
pub use sweep::sweep;
pub use topology::{Node, World, with_world};
pub use wait::{LIMIT, wait_until};
