//! Where `weft agent` and `weft waypoint` answer for themselves.

use std::net::SocketAddr;

use clap::Args;

use crate::{admin::AdminAddrs, node::default_ports};

/// The flags.
#[derive(Debug, Args)]
pub struct PortArgs {
    /// Where people ask: status, log level, shutdown; keep it on loopback
    #[arg(long, value_name = "ADDR", default_value_t = default_ports().admin)]
    pub admin_address: SocketAddr,
    /// Where Prometheus scrapes /metrics
    #[arg(long, value_name = "ADDR", default_value_t = default_ports().metrics)]
    pub metrics_address: SocketAddr,
    /// Where the kubelet asks for /healthz/ready
    #[arg(long, value_name = "ADDR", default_value_t = default_ports().ready)]
    pub ready_address: SocketAddr,
}

impl PortArgs {
    pub(super) fn addrs(&self) -> AdminAddrs {
        AdminAddrs {
            admin: self.admin_address,
            metrics: self.metrics_address,
            ready: self.ready_address,
        }
    }
}
