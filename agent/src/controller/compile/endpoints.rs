//! Endpoints that are addresses: machines outside of the cluster, or pods that are named by their address.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::{
    claims::{Claim, Owner, Rank, Thing},
    drafts::{Draft, Source},
    namespace::Pass,
};
use crate::{
    cluster::objects::Kind,
    mesh::{Locality, PortMapping, ServiceKey, SpiffeId, TunnelProtocol, Workload, WorkloadType},
};

/// An address that an object names as a service's endpoint.
pub(super) struct Outside {
    /// The object.
    pub(super) kind: Kind,
    pub(super) object: Arc<str>,
    pub(super) address: IpAddr,
    pub(super) well: bool,
    pub(super) service_account: Option<String>,
    pub(super) tunnel_protocol: TunnelProtocol,
    pub(super) locality: Locality,
    pub(super) network: Arc<str>,
    pub(super) capacity: u32,
}

impl Outside {
    pub(super) fn new(kind: Kind, object: &str, address: IpAddr) -> Self {
        Self {
            kind,
            object: object.into(),
            address,
            well: true,
            service_account: None,
            tunnel_protocol: TunnelProtocol::None,
            locality: Locality::default(),
            network: Arc::default(),
            capacity: 1,
        }
    }
}

/// Puts an address behind a service. What is known of it in the namespace already is that workload; what another namespace
/// has there keeps its address (`claims`), so that nobody speaks for another's pods.
pub(super) fn outside(pass: &mut Pass<'_>, it: Outside, service: &ServiceKey, ports: Vec<PortMapping>) {
    let at = match pass.drafts.at_address(it.address) {
        Some(at) if !matches!(pass.drafts.all[at].source, Source::Address) && !it.well => return,
        Some(at) => at,
        None => match workload(pass, &it) {
            Some(draft) => pass.drafts.add(draft),
            None => return,
        },
    };
    let services = &mut pass.drafts.all[at].workload.services;
    services.insert(service.clone(), ports);
}

fn workload<'a>(pass: &mut Pass<'a>, it: &Outside) -> Option<Draft<'a>> {
    let settings = pass.cx.settings;
    let (namespace, object, address) = (pass.namespace, &it.object, it.address);
    let account = it.service_account.as_deref().unwrap_or("default");
    let identity = SpiffeId::new(&settings.trust_domain, namespace, account).ok()?;
    let (cluster, group, kind) = (&settings.cluster, it.kind.group(), it.kind.kind());
    let owner = Owner {
        namespace: namespace.clone(),
        kind: it.kind,
        name: object.clone(),
    };
    pass.unit.claims.push(Claim {
        thing: Thing::Address(IpNet::from(address)),
        rank: Rank::Endpoint,
        since: 0,
        owner: owner.clone(),
    });
    let workload = Workload {
        uid: format!("{cluster}/{group}/{kind}/{namespace}/{object}/{address}").into(),
        name: object.clone(),
        namespace: namespace.clone(),
        identity,
        addresses: vec![address],
        node: Arc::default(),
        tunnel_protocol: it.tunnel_protocol,
        workload_name: object.clone(),
        workload_type: WorkloadType::Pod,
        canonical_name: object.clone(),
        canonical_revision: "latest".into(),
        cluster: settings.cluster.clone(),
        network: it.network.clone(),
        locality: it.locality.clone(),
        capacity: it.capacity,
        healthy: it.well,
        host_network: false,
        native_tunnel: it.tunnel_protocol == TunnelProtocol::Hbone,
        waypoint: None,
        same_node: None,
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
    };
    Some(Draft {
        workload,
        owner,
        source: Source::Address,
    })
}
