//! One connection of a client, and what the mesh in force says of it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwapOption;

use super::{
    Seen,
    listen::Worker,
    tunnel::{Tunnel, sought},
};
use crate::{
    hbone::Authority,
    mesh::{
        Bound, Demands, Mesh, PolicyKey, Refusal, SpiffeId, Workload, bound,
        http::{RequestAuthentication, Routes},
    },
};

/// A client's connection: a stream of its tunnel.
pub(super) struct Client {
    pub(super) tunnel: Arc<Tunnel>,
    /// Where the client is.
    pub(super) addr: SocketAddr,
    /// What it asked for.
    authority: Authority,
    here: ArcSwapOption<Here>,
}

/// What a mesh says of a client's connection; found once for each mesh.
pub(super) struct Here {
    pub(super) seen: Arc<Seen>,
    /// What was asked for.
    pub(super) bound: Bound,
    /// The client's workload, where the mesh knows one at its address.
    pub(super) source: Option<Arc<Workload>>,
    /// What is done with requests to the service.
    pub(super) routes: Option<Arc<Routes>>,
    /// Whose tokens are believed.
    pub(super) authentications: Vec<Arc<RequestAuthentication>>,
    /// One of those that has not arrived.
    pub(super) missing: Option<PolicyKey>,
    /// The policies that name the service.
    pub(super) policies: Vec<PolicyKey>,
    /// What the client dialled.
    pub(super) dialled: SocketAddr,
}

impl Client {
    pub(super) fn new(tunnel: Arc<Tunnel>, addr: SocketAddr, authority: Authority) -> Self {
        Self {
            tunnel,
            addr,
            authority,
            here: ArcSwapOption::empty(),
        }
    }

    pub(super) fn worker(&self) -> &Arc<Worker> {
        &self.tunnel.worker
    }

    /// Who the client has proved to be.
    pub(super) fn identity(&self) -> &SpiffeId {
        &self.tunnel.session.peer
    }

    /// What the mesh in force says.
    ///
    /// # Errors
    /// When there is none, or what was asked for is not this waypoint's any more.
    pub(super) fn here(&self) -> Result<Arc<Here>, Refusal> {
        let seen = self.worker().shared.seen.load();
        let seen = seen.as_ref().ok_or(Refusal::NoMesh)?;
        if let Some(here) = &*self.here.load()
            && Arc::ptr_eq(&here.seen, seen)
        {
            return Ok(Arc::clone(here));
        }
        let here = Arc::new(self.look(seen)?);
        self.here.store(Some(Arc::clone(&here)));
        Ok(here)
    }

    fn look(&self, seen: &Arc<Seen>) -> Result<Here, Refusal> {
        let mesh = &seen.mesh;
        let bound = bound(mesh, &seen.own, sought(&self.authority))?;
        let Demands {
            routes,
            policies,
            authentications: named,
        } = bound.demands(mesh)?;
        let found = |key: &PolicyKey| mesh.request_authentication(key).cloned();
        Ok(Here {
            seen: Arc::clone(seen),
            source: source(mesh, self.addr, self.identity()),
            authentications: named.iter().filter_map(found).collect(),
            missing: named.iter().find(|key| found(key).is_none()).cloned(),
            policies,
            routes,
            dialled: dialled(&self.authority, &bound),
            bound,
        })
    }
}

/// The address that the client dialled, where it named a service by one that it has.
fn dialled(authority: &Authority, bound: &Bound) -> SocketAddr {
    match (authority, bound) {
        (Authority::Addr(addr), _) => SocketAddr::new(addr.ip().to_canonical(), addr.port()),
        (_, Bound::Workload { addr, .. }) => *addr,
        (_, Bound::Service { service, port }) => {
            let vip = service.vips.first().copied();
            SocketAddr::new(vip.unwrap_or(Ipv4Addr::UNSPECIFIED.into()), *port)
        }
    }
}

/// The workload at the client's address, if it is the one that proved itself: a gateway may speak for others.
fn source(mesh: &Mesh, addr: SocketAddr, identity: &SpiffeId) -> Option<Arc<Workload>> {
    let there = mesh.workload_at(addr.ip())?;
    (there.identity == *identity).then(|| Arc::clone(there))
}
