//! The endpoints that a waypoint sends requests to, and how each is reached: `route` for whoever chooses by request rather
//! than by connection.

use std::{net::SocketAddr, sync::Arc};

use crate::mesh::{Mesh, NextHop, Refusal, ServiceKey, Workload, route};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpEndpoint {
    /// The pod; or that of another waypoint, which the service is bound to.
    pub workload: Arc<Workload>,
    /// Its address and port behind the service's port; through another waypoint the service's own.
    pub addr: SocketAddr,
    /// How it is reached: never a refusal.
    pub next: NextHop,
}

/// Who can answer requests to a service's port, or to a subset: those that are ready, can take something and can be reached,
/// the nearest group first, as the service's load balancing has it. No group is empty.
///
/// `source` is the waypoint's own workload. The service's own waypoint is not gone through again, another one is.
///
/// # Errors
/// There is nobody.
pub fn http_endpoints(
    mesh: &Mesh,
    service: &ServiceKey,
    port: u16,
    subset: Option<&str>,
    source: &Workload,
) -> Result<Vec<Vec<HttpEndpoint>>, Refusal> {
    route::groups(mesh, service, port, subset, source)
}

#[cfg(test)]
mod tests;
