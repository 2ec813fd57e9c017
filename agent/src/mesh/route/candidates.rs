//! The endpoints that one connection may be carried to: those that will do, in their order; and for people, the others as
//! well, with what keeps each from being chosen.

use std::{fmt, net::SocketAddr, sync::Arc};

use super::{address_like, to_pod, waypoint_tunnel};
use crate::mesh::{
    BalancingMode, Endpoint, HealthPolicy, Mesh, NextHop, Refusal, RoutingScope, Service, Workload,
    endpoints::Endpoints, http::HttpEndpoint,
};

/// The endpoints of a service that a draw chooses from.
pub(super) struct Candidates<'a> {
    /// The service that was dialled, or the waypoint's.
    pub(super) service: &'a Service,
    pub(super) endpoints: Option<&'a Endpoints>,
    pub(super) source: &'a Workload,
    /// What the app dialled.
    pub(super) dialled: SocketAddr,
    /// The service's port that is meant.
    pub(super) port: u16,
    /// Where the service is a waypoint's, who is bound to it.
    pub(super) waypoint_of: Option<Bound<'a>>,
}

/// Who is bound to a waypoint.
#[derive(Clone, Copy)]
pub(super) enum Bound<'a> {
    Service(&'a Service),
    Workload(&'a Workload),
}

impl Bound<'_> {
    pub(super) fn unavailable(self) -> Refusal {
        Refusal::WaypointUnavailable(match self {
            Self::Service(service) => service.key.to_string(),
            Self::Workload(workload) => workload.namespaced_name(),
        })
    }
}

/// A pod, and where it is reached: an address of its own, and the port.
type Reached<'a> = (&'a Arc<Workload>, SocketAddr);

impl<'a> Candidates<'a> {
    pub(super) fn count(&self) -> u64 {
        let will_do = |endpoint: &Endpoint| self.reach(endpoint).is_ok();
        self.endpoints
            .map_or(0, |endpoints| endpoints.choices(self.source, will_do))
    }

    /// The best first; the draw turns those around that are equally near.
    pub(super) fn ordered(&self, draw: u64) -> impl Iterator<Item = Reached<'a>> {
        let endpoints = self.endpoints.into_iter();
        let ordered = endpoints.flat_map(move |endpoints| endpoints.ordered(self.source, draw));
        ordered.filter_map(|endpoint| self.reach(endpoint).ok())
    }

    /// Where an endpoint is reached that has the port, and an address that the client can reach. A waypoint need not list
    /// its HBONE port.
    fn reach<'e>(&self, endpoint: &'e Endpoint) -> Result<Reached<'e>, Standing> {
        let unlisted = self.waypoint_of.map(|_| self.port);
        let port = endpoint
            .target_port(self.port)
            .or(unlisted)
            .ok_or(Standing::NoPort)?;
        let address = address_like(&endpoint.workload, self.dialled.ip(), self.source);
        let address = address.ok_or(Standing::NoAddress)?;
        Ok((&endpoint.workload, SocketAddr::new(address, port)))
    }

    pub(super) fn lead_to(&self, (pod, addr): Reached<'_>) -> Result<NextHop, Refusal> {
        let names = &self.service.subject_alt_names;
        match self.waypoint_of {
            Some(_) => Ok(NextHop::Tunnel(waypoint_tunnel(pod, addr, names, self.dialled))),
            None => to_pod(self.source, pod, addr, names),
        }
    }

    /// The nearest first, each once, as far as they can be led to.
    pub(super) fn groups(&self) -> impl Iterator<Item = Vec<HttpEndpoint>> {
        let groups = self
            .endpoints
            .into_iter()
            .flat_map(|endpoints| endpoints.groups(self.source));
        groups.map(|group| {
            let reached = group.into_iter().filter_map(|endpoint| self.reach(endpoint).ok());
            reached
                .filter_map(|(workload, addr)| {
                    Some(HttpEndpoint {
                        workload: workload.clone(),
                        addr: if self.waypoint_of.is_some() {
                            self.dialled
                        } else {
                            addr
                        },
                        next: self.lead_to((workload, addr)).ok()?,
                    })
                })
                .collect()
        })
    }

    /// Why nothing can be chosen.
    pub(super) fn none(&self) -> Refusal {
        if let Some(bound) = self.waypoint_of {
            return bound.unavailable();
        }
        let key = self.service.key.clone();
        let all = self.endpoints.map_or(&[][..], Endpoints::all);
        let would_do = |endpoint: &Endpoint| endpoint.workload.capacity > 0 && self.reach(endpoint).is_ok();
        match self.service.load_balancing.mode {
            BalancingMode::Strict if all.iter().any(would_do) => Refusal::NoEndpointInScope(key),
            _ => Refusal::NoHealthyEndpoint(key),
        }
    }

    /// Every workload behind the service: those that are chosen, then the others, the nearest first.
    pub(super) fn explain(&self, mesh: &Mesh) -> Vec<Candidate> {
        let turns = self.count();
        let met: Vec<_> = (0..turns).filter_map(|draw| self.ordered(draw).next()).collect();
        let allowed: Vec<_> = self.ordered(0).collect();
        let backs = |workload: &&Arc<Workload>| workload.services.contains_key(&self.service.key);
        let mut candidates: Vec<_> = mesh
            .workloads()
            .filter(backs)
            .map(|workload| self.candidate(workload, &met, &allowed))
            .collect();
        let order = |it: &Candidate| {
            let nearness = std::cmp::Reverse(it.shared_scopes.len());
            (it.standing.rank(), nearness, it.workload.uid.clone())
        };
        candidates.sort_by_cached_key(order);
        candidates
    }

    fn candidate(&self, workload: &Arc<Workload>, met: &[Reached<'_>], allowed: &[Reached<'_>]) -> Candidate {
        let is = |(pod, _): &&Reached<'_>| pod.uid == workload.uid;
        let all = self.endpoints.map_or(&[][..], Endpoints::all);
        let endpoint = all.iter().find(|it| it.workload.uid == workload.uid);
        let reached = endpoint.map(|endpoint| self.reach(endpoint));
        let turns = met.iter().filter(is).count() as u64;
        let only_healthy = self.service.load_balancing.health == HealthPolicy::OnlyHealthy;
        let standing = match &reached {
            None if !workload.healthy && only_healthy => Standing::NotHealthy,
            None => Standing::NoAddress,
            Some(Err(why)) => *why,
            Some(Ok(_)) if turns > 0 => Standing::Chosen {
                turns,
                of: met.len() as u64,
            },
            Some(Ok(_)) if workload.capacity == 0 => Standing::NoCapacity,
            Some(Ok(_)) if allowed.iter().any(|it| is(&it)) => Standing::Farther,
            Some(Ok(_)) => Standing::OutOfScope,
        };
        let shared = self
            .endpoints
            .map_or(&[][..], |it| it.shared_scopes(self.source, workload));
        Candidate {
            workload: workload.clone(),
            addr: reached.and_then(Result::ok).map(|(_, addr)| addr),
            shared_scopes: shared.to_vec(),
            standing,
        }
    }
}

/// A workload behind the service that was dialled, or behind its waypoint's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own address and port that the connection would lead to; none where it has none that will do.
    pub addr: Option<SocketAddr>,
    /// What it shares with whoever dials, of what the service's load balancing asks for: the more, the nearer.
    pub shared_scopes: Vec<RoutingScope>,
    /// Whether it is chosen.
    pub standing: Standing,
}

/// Whether an endpoint is chosen, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// One of those that are: so many draws of all lead to it.
    Chosen {
        /// Draws that lead to it.
        turns: u64,
        /// Draws that there are.
        of: u64,
    },
    /// Only when none of the nearer ones can be reached.
    Farther,
    /// Too far: the load balancing is STRICT.
    OutOfScope,
    /// Its capacity is 0.
    NoCapacity,
    /// It does not have the port.
    NoPort,
    /// It has no address, or none of a family that the client has as well.
    NoAddress,
    /// It is not ready.
    NotHealthy,
}

impl Standing {
    fn rank(self) -> u8 {
        match self {
            Self::Chosen { .. } => 0,
            Self::Farther => 1,
            Self::OutOfScope => 2,
            Self::NoCapacity | Self::NoPort | Self::NoAddress | Self::NotHealthy => 3,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chosen { turns: 1, of: 1 } => "chosen",
            Self::Chosen { turns, of } => return write!(f, "chosen, {turns} of {of}"),
            Self::Farther => "farther: chosen when no nearer one can be reached",
            Self::OutOfScope => "too far: the service's load balancing is STRICT",
            Self::NoCapacity => "its capacity is 0",
            Self::NoPort => "it does not have the port",
            Self::NoAddress => "it has no address that the client can reach",
            Self::NotHealthy => "it is not healthy",
        })
    }
}
