//! Replays a connection: the questions of the data path, asked in its order. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{
    End, EndpointStanding, ExplainError, Explanation, Hop, HopKind, Security, Way,
    hop::{address_towards, direct, end, end_at, refused, through},
    judge::{self, judge},
};
use crate::mesh::{
    BalancingMode, Candidate, Inbound, Lookup, Mesh, NextHop, Outbound, Refusal, Service, Standing,
    TunnelProtocol, Wanted, Workload, candidates, choices, is_own_port, resolve, route,
};

/// How many paths to one address are looked at: that many endpoints.
const MOST_PATHS: usize = 256;
/// How many addresses of a hostname are looked at.
const MOST_ADDRESSES: usize = 64;
/// How many ways are listed; the rest are counted.
const MOST_WAYS: usize = 8;
/// The same of endpoints.
const MOST_ENDPOINTS: usize = 16;

/// Explains a connection `from` a workload (`namespace/name`) or an address, `to` an address or hostname and port.
/// `uncaptured` says of a workload of the mesh why it is not captured, where that is known.
///
/// # Errors
/// When there is no such workload or hostname, or the texts are none.
pub fn explain(
    mesh: &Mesh,
    from: &str,
    to: &str,
    uncaptured: impl Fn(&Workload) -> Option<String>,
) -> Result<Explanation, ExplainError> {
    let source = Source::find(mesh, from, uncaptured)?;
    let dialled = dialled(mesh, &source, to)?;
    let service = dialled.iter().find_map(|addr| source.service(mesh, *addr));
    let mut endpoints: Vec<_> = dialled
        .iter()
        .flat_map(|addr| source.endpoints(mesh, *addr))
        .collect();
    let more_endpoints = endpoints.len().saturating_sub(MOST_ENDPOINTS);
    endpoints.truncate(MOST_ENDPOINTS);
    let mut ways = Vec::new();
    for addr in &dialled {
        ways.extend(source.ways(mesh, *addr));
    }
    // Refused ones first: they are what somebody looks for.
    ways.sort_by_key(|way| way.allowed);
    let more_ways = ways.len().saturating_sub(MOST_WAYS);
    Ok(Explanation {
        source: source.end(dialled.first().map(SocketAddr::ip)),
        asked: to.to_owned(),
        service: service.map(|service| service.key.to_string()),
        dialled,
        allowed: ways.iter().all(|way| way.allowed),
        endpoints,
        more_endpoints,
        ways: ways.into_iter().take(MOST_WAYS).collect(),
        more_ways,
    })
}

/// Who dials.
struct Source {
    /// None for an address that the mesh does not know.
    workload: Option<Arc<Workload>>,
    /// The address that was named, or else every one it has.
    addresses: Vec<IpAddr>,
    /// Why its connections are not weft's: they go in plaintext.
    plain: Option<String>,
}

impl Source {
    fn find(
        mesh: &Mesh,
        from: &str,
        uncaptured: impl Fn(&Workload) -> Option<String>,
    ) -> Result<Self, ExplainError> {
        let (workload, addresses) = match from.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                (mesh.workload_at(address).cloned(), vec![address])
            }
            Err(_) => {
                let workload = named(mesh, from)?;
                (Some(workload.clone()), workload.addresses.clone())
            }
        };
        let plain = match &workload {
            Some(it) if it.tunnel_protocol == TunnelProtocol::Hbone && !it.host_network => uncaptured(it)
                .map(|why| {
                    format!("the source is not captured ({why}), so it dials as if it were not in the mesh")
                }),
            _ => Some("the source is not in the mesh".to_owned()),
        };
        Ok(Self {
            workload,
            addresses,
            plain,
        })
    }

    fn end(&self, towards: Option<IpAddr>) -> End {
        let address = towards.and_then(|towards| address_towards(&self.addresses, towards));
        let address = address.or(self.addresses.first().copied());
        End {
            address,
            ..self.workload.as_deref().map(end).unwrap_or_default()
        }
    }

    /// What `route` is asked, where it is.
    fn question(&self, destination: SocketAddr) -> Option<Outbound> {
        let source = self.workload.clone().filter(|_| self.plain.is_none())?;
        Some(Outbound { source, destination })
    }

    fn service(&self, mesh: &Mesh, dialled: SocketAddr) -> Option<Arc<Service>> {
        match self.question(dialled) {
            Some(question) => route(mesh, &question, 0).service,
            None => mesh.service_at(dialled.ip()).cloned(),
        }
    }

    fn endpoints(&self, mesh: &Mesh, dialled: SocketAddr) -> Vec<EndpointStanding> {
        let candidates = self.question(dialled).map(|question| candidates(mesh, &question));
        let standing = |candidate: Candidate| EndpointStanding {
            workload: candidate.workload.namespaced_name(),
            address: candidate.addr,
            chosen: matches!(candidate.standing, Standing::Chosen { .. }),
            standing: candidate.standing.to_string(),
        };
        candidates.into_iter().flatten().map(standing).collect()
    }

    /// Every way that a connection may take: one for each endpoint that may be chosen.
    fn ways(&self, mesh: &Mesh, dialled: SocketAddr) -> Vec<Way> {
        let Some(question) = self.question(dialled) else {
            return self.plain_ways(mesh, dialled);
        };
        let paths = paths(mesh, &question);
        let hops = |path: &[Leg]| path.iter().map(|leg| leg.hop(mesh, self)).collect();
        paths.iter().map(|path| way(hops(path))).collect()
    }

    /// Of a source that weft does not capture: it dials in plaintext, and what leads a service's address to an
    /// endpoint is not weft.
    fn plain_ways(&self, mesh: &Mesh, dialled: SocketAddr) -> Vec<Way> {
        let reason = self.plain.as_deref().unwrap_or_default();
        let balanced = |service: &&Arc<Service>| service.load_balancing.mode != BalancingMode::Passthrough;
        let Some(service) = mesh.service_at(dialled.ip()).filter(balanced) else {
            return vec![way(vec![self.plain_hop(mesh, dialled, reason)])];
        };
        let endpoints = mesh.endpoints(&service.key).iter();
        let addrs = endpoints.filter_map(|endpoint| {
            let port = endpoint.target_port(dialled.port())?;
            let address = address_towards(&endpoint.workload.addresses, dialled.ip())?;
            Some(SocketAddr::new(address, port))
        });
        let reason = format!("{reason}: the cluster's own load balancing chooses the endpoint");
        let mut ways: Vec<_> = addrs
            .take(MOST_PATHS)
            .map(|addr| way(vec![self.plain_hop(mesh, addr, &reason)]))
            .collect();
        if ways.is_empty() {
            let refusal = Refusal::NoHealthyEndpoint(service.key.clone());
            ways.push(way(vec![refused(&refusal)]));
        }
        ways
    }

    fn plain_hop(&self, mesh: &Mesh, addr: SocketAddr, reason: &str) -> Hop {
        let workload = mesh.workload_at(addr.ip());
        let in_mesh = workload.filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone);
        let verdict = in_mesh.map(|workload| {
            if is_own_port(addr.port()) {
                return judge::refused(&Refusal::OwnPort(addr.port()));
            }
            let source_ip = address_towards(&self.addresses, addr.ip()).unwrap_or(addr.ip());
            judge(
                mesh,
                workload,
                &Inbound {
                    peer: None,
                    source_ip,
                    destination: addr,
                },
            )
        });
        Hop {
            to: Some(end_at(workload, addr)),
            kind: HopKind::Direct,
            destination: Some(addr),
            reason: reason.to_owned(),
            security: Security::Plaintext,
            verdict,
            ..Hop::default()
        }
    }
}

/// The workload of this `namespace/name`.
fn named<'a>(mesh: &'a Mesh, from: &str) -> Result<&'a Arc<Workload>, ExplainError> {
    let is_named =
        |workload: &&Arc<Workload>| from.split_once('/') == Some((&*workload.namespace, &*workload.name));
    let workload = mesh.workloads().find(is_named);
    let workload = workload.ok_or_else(|| ExplainError::NoSuchWorkload(from.to_owned()))?;
    if workload.addresses.is_empty() {
        return Err(ExplainError::NoAddress(from.to_owned()));
    }
    Ok(workload)
}

/// What the destination stands for. The port is the app's.
fn dialled(mesh: &Mesh, source: &Source, to: &str) -> Result<Vec<SocketAddr>, ExplainError> {
    if let Ok(addr) = to.parse::<SocketAddr>() {
        return Ok(vec![SocketAddr::new(addr.ip().to_canonical(), addr.port())]);
    }
    let wrong = || ExplainError::NotADestination(to.to_owned());
    let (host, port) = to.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let hostname = host.trim_end_matches('.').to_ascii_lowercase();
    if hostname.is_empty() || hostname.contains([':', '/', ' ']) {
        return Err(wrong());
    }
    let found = addresses_of(mesh, source, &hostname);
    let first = found.iter().find(|found| {
        source
            .addresses
            .iter()
            .any(|own| own.is_ipv4() == found.is_ipv4())
    });
    let first = first
        .or(found.first())
        .copied()
        .ok_or(ExplainError::NoSuchHost(hostname))?;
    // An app takes the first address of its family; without a virtual address, any of the pods'.
    let is_vip = mesh.service_at(first).is_some();
    let taken = found.into_iter().filter(|found| {
        if is_vip {
            *found == first
        } else {
            found.is_ipv4() == first.is_ipv4()
        }
    });
    Ok(taken
        .take(MOST_ADDRESSES)
        .map(|address| SocketAddr::new(address, port))
        .collect())
}

/// As a pod's DNS has it; a source without a namespace is told what a service's whole hostname stands for.
fn addresses_of(mesh: &Mesh, source: &Source, hostname: &str) -> Vec<IpAddr> {
    let lookup = Lookup {
        hostname,
        wanted: Wanted::Both,
        draw: 0,
    };
    let of_workload = |client: &Workload| resolve(mesh, &lookup, client).map(|host| host.addresses);
    match &source.workload {
        Some(client) => of_workload(client),
        None => mesh.workloads().next().and_then(|any| of_workload(any)),
    }
    .unwrap_or_default()
}

/// One step of a path: who dials, and where `route` leads.
#[derive(Clone)]
struct Leg {
    source: Arc<Workload>,
    next: NextHop,
}

/// From a captured workload to the destination, or to where `route` refuses: every path that some draw leads along, in
/// two steps where there is a waypoint.
fn paths(mesh: &Mesh, question: &Outbound) -> Vec<Vec<Leg>> {
    let from_waypoint = |leg: Leg| match &leg.next {
        NextHop::Tunnel(tunnel) if tunnel.via_waypoint => {
            let question = Outbound {
                source: tunnel.workload.clone(),
                destination: question.destination,
            };
            let onward = legs(mesh, &question).into_iter();
            onward.map(|next| vec![leg.clone(), next]).collect()
        }
        _ => vec![vec![leg]],
    };
    legs(mesh, question)
        .into_iter()
        .flat_map(from_waypoint)
        .take(MOST_PATHS)
        .collect()
}

/// Where `route` leads with every draw that it tells apart.
fn legs(mesh: &Mesh, question: &Outbound) -> Vec<Leg> {
    let draws = choices(mesh, question).min(MOST_PATHS as u64);
    let mut legs: Vec<Leg> = Vec::new();
    for draw in 0..draws {
        let next = route(mesh, question, draw).next;
        if !legs.iter().any(|leg| leg.next == next) {
            let source = question.source.clone();
            legs.push(Leg { source, next });
        }
    }
    legs
}

impl Leg {
    fn hop(&self, mesh: &Mesh, first: &Source) -> Hop {
        match &self.next {
            NextHop::Refuse(refusal) => refused(refusal),
            NextHop::Direct { addr, workload } => direct(&self.source, *addr, workload.as_ref()),
            NextHop::Tunnel(tunnel) => {
                let is_first = first
                    .workload
                    .as_ref()
                    .is_some_and(|it| it.uid == self.source.uid);
                let addresses = if is_first {
                    &first.addresses
                } else {
                    &self.source.addresses
                };
                through(mesh, &self.source, addresses, tunnel)
            }
        }
    }
}

fn way(hops: Vec<Hop>) -> Way {
    let passes = |hop: &Hop| {
        hop.kind != HopKind::Refused && hop.verdict.as_ref().is_none_or(|verdict| verdict.allowed)
    };
    Way {
        allowed: hops.iter().all(passes),
        hops,
    }
}
