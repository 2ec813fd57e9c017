//! Flows for the tests of this layer: a curl pod that asks a web pod of another node.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method};

use crate::mesh::{
    Direction, Flow, Party, PolicyKey, Security, Service, ServiceKey, SpiffeId, Workload,
    http::{Protocol, RequestFlow, RuleName, TraceId},
};

pub(crate) fn identity(service_account: &str) -> SpiffeId {
    let uri = format!("spiffe://cluster.local/ns/demo/sa/{service_account}");
    uri.parse().expect("an identity")
}

/// A pod `name` of the workload, service account and canonical service `app`.
pub(crate) fn workload(name: &str, app: &str) -> Arc<Workload> {
    Arc::new(Workload {
        uid: format!("Kubernetes//Pod/demo/{name}").into(),
        name: name.into(),
        namespace: "demo".into(),
        identity: identity(app),
        addresses: Vec::new(),
        node: "a".into(),
        tunnel_protocol: Default::default(),
        workload_name: app.into(),
        workload_type: Default::default(),
        canonical_name: app.into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        network: Default::default(),
        locality: Default::default(),
        capacity: 1,
        healthy: true,
        native_tunnel: false,
        same_node: None,
        host_network: false,
        waypoint: None,
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    })
}

pub(crate) fn policy(name: &str) -> PolicyKey {
    PolicyKey {
        namespace: "demo".into(),
        name: name.into(),
    }
}

fn service() -> Arc<Service> {
    Arc::new(Service {
        key: ServiceKey {
            namespace: "demo".into(),
            hostname: "web.demo.svc.cluster.local".into(),
        },
        name: "web".into(),
        vips: Vec::new(),
        vip_networks: Vec::new(),
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        load_balancing: Default::default(),
        app_protocols: Default::default(),
        ip_families: Default::default(),
    })
}

fn party(addr: [u8; 4], port: u16, pod: &str, app: &str) -> Party {
    Party {
        addr: Some(SocketAddr::from((addr, port))),
        workload: Some(workload(pod, app)),
        identity: Some(identity(app)),
    }
}

fn flow(direction: Direction) -> Flow {
    let source = party([10, 244, 1, 2], 41000, "curl-7f9c", "curl");
    let destination = party([10, 244, 2, 2], 8080, "web-5d4c", "web");
    let mut flow = Flow::new(direction, source, destination);
    flow.security = Security::MutualTls;
    (flow.request_bytes, flow.response_bytes) = (84, 358);
    flow.duration = Duration::from_micros(15_900);
    flow
}

/// Complete, by service address, through a tunnel.
pub(crate) fn outbound() -> Flow {
    let mut flow = flow(Direction::Outbound);
    flow.service = Some(service());
    flow.gateway = Some(SocketAddr::from(([10, 244, 2, 2], 15008)));
    flow
}

/// The same connection at its other end, where a policy allowed it.
pub(crate) fn inbound() -> Flow {
    let mut flow = flow(Direction::Inbound);
    flow.policy = Some(policy("allow-curl"));
    flow
}

/// The same pods, a request through a waypoint: a GET that the second attempt answered.
pub(crate) fn request() -> RequestFlow {
    let Flow {
        source, destination, ..
    } = outbound();
    let mut flow = RequestFlow::new(source, Protocol::Http2, Method::GET);
    flow.destination = destination;
    flow.service = Some(service());
    flow.security = Security::MutualTls;
    flow.route = Some(RuleName("HTTPRoute demo/web rule 0".into()));
    flow.authority = "web:80".into();
    flow.path = "/cart".into();
    flow.status = Some(200);
    (flow.request_bytes, flow.response_bytes) = (0, 358);
    flow.duration = Duration::from_micros(15_900);
    flow.upstream = Some(SocketAddr::from(([10, 244, 2, 2], 15008)));
    flow.attempts = 2;
    flow.trace_id = Some(TraceId([0xab; 16]));
    flow.request_id = Some(HeaderValue::from_static("r-1"));
    flow.policy = Some(policy("allow-curl"));
    flow
}

/// A gRPC call of the same pods.
pub(crate) fn call() -> RequestFlow {
    let mut flow = request();
    flow.protocol = Protocol::Grpc;
    flow.method = Method::POST;
    flow.path = "/shop.Cart/Watch".into();
    flow.grpc_status = Some(0);
    (flow.request_messages, flow.response_messages) = (1, 30);
    flow
}
