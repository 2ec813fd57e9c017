//! Who a request is given to: the endpoints of a service as one worker knows them, chosen by `mesh::http::pick`.
//!
//! A cluster is made once for each mesh and asked for each request. Which endpoints there are and how near they are, the mesh
//! says; how much each has to do, this worker counts.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
    time::Instant,
};

use rustc_hash::FxHashMap;

use super::{
    Seen,
    outliers::{self, are_too_many_out, may_leave_out},
    upstream::{Hop, Upstream, Upstreams},
};
use crate::mesh::{
    AppProtocol, NextHop, Outbound, Refusal, ServiceKey,
    http::{HttpEndpoint, Load, TrafficPolicy, http_endpoints, pick},
    route,
};

/// Who a share of the requests goes to.
#[derive(Clone, Copy, Debug)]
pub(super) enum To<'a> {
    /// A port of a service, or the endpoints of a subset.
    Service(&'a ServiceKey, u16, Option<&'a Arc<str>>),
    /// One pod.
    Pod(SocketAddr),
}

/// An endpoint of a cluster.
pub(super) struct Member {
    pub(super) endpoint: HttpEndpoint,
    pub(super) upstream: Arc<Upstream>,
}

/// Endpoints, and how they are chosen and used.
pub(super) struct Cluster {
    seen: Arc<Seen>,
    /// The nearest first.
    groups: Vec<Vec<Member>>,
    pub(super) policy: TrafficPolicy,
    /// What is spoken there, as far as it is said.
    pub(super) protocol: Option<AppProtocol>,
    turn: AtomicU64,
    pub(super) under_way: Arc<UnderWay>,
}

/// What this worker has under way to a service: bounds and budgets hold for each worker.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    requests: AtomicUsize,
    retries: AtomicUsize,
    copies: AtomicUsize,
}

/// Copies for mirrors that may be under way to one service.
const MOST_COPIES: usize = 1024;

/// What is under way.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Request,
    Retry,
    Copy,
}

impl UnderWay {
    fn count(&self, kind: Kind) -> &AtomicUsize {
        match kind {
            Kind::Request => &self.requests,
            Kind::Retry => &self.retries,
            Kind::Copy => &self.copies,
        }
    }
}

/// One of them, until it is dropped.
pub(super) struct Place {
    of: Arc<UnderWay>,
    kind: Kind,
}

impl Place {
    /// None where there are as many as may be.
    fn take(of: &Arc<UnderWay>, kind: Kind, most: usize) -> Option<Self> {
        let before = of.count(kind).fetch_add(1, AcqRel);
        let of = Arc::clone(of);
        let place = Self { of, kind };
        (before < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.count(self.kind).fetch_sub(1, AcqRel);
    }
}

impl Cluster {
    /// The endpoint for a request: of the nearest group that has one that was not tried; with `again`, of those that were tried
    /// where there is no other.
    pub(super) fn pick(&self, draw: u64, tried: &[SocketAddr], again: bool) -> Option<&Member> {
        let turn = self.turn.fetch_add(1, Relaxed);
        let now = self.heeded_at();
        let of = |tried: &[SocketAddr]| {
            let mut groups = self.groups.iter();
            groups.find_map(|group| self.pick_of(group, (turn, draw), tried, now))
        };
        of(tried).or_else(|| of(&[]).filter(|_| again))
    }

    /// The moment for which it is asked who is left out; none where nobody is to be.
    fn heeded_at(&self) -> Option<Instant> {
        let settings = self.policy.outliers.as_ref()?;
        let now = Instant::now();
        let (all, out) = self.left_out(now);
        (out > 0 && !are_too_many_out(all, out, settings)).then_some(now)
    }

    /// How many endpoints there are, and how many of them are left out.
    fn left_out(&self, now: Instant) -> (usize, usize) {
        let all = || self.groups.iter().flatten();
        let out = all().filter(|member| member.upstream.health.is_out(now));
        (all().count(), out.count())
    }

    /// What became of a request to an endpoint: who fails too often is left out for a while.
    pub(super) fn judge(&self, member: &Member, result: outliers::Result) {
        let Some(settings) = &self.policy.outliers else {
            return;
        };
        if !member.upstream.health.count(result, settings) {
            return;
        }
        let now = Instant::now();
        let (all, out) = self.left_out(now);
        if !member.upstream.health.is_out(now) && may_leave_out(all, out, settings) {
            member.upstream.health.leave_out(now, settings);
            let workload = member.endpoint.workload.namespaced_name();
            let endpoint = member.endpoint.addr;
            tracing::info!(%endpoint, workload, "an endpoint fails too often and is left out for a while");
        }
    }

    fn pick_of<'a>(
        &self,
        group: &'a [Member],
        (turn, draw): (u64, u64),
        tried: &[SocketAddr],
        heeded_at: Option<Instant>,
    ) -> Option<&'a Member> {
        if let ([only], [], None) = (group, tried, heeded_at) {
            return (only.endpoint.workload.capacity > 0).then_some(only);
        }
        let loads = group.iter().map(|member| Load {
            capacity: member.endpoint.workload.capacity,
            in_flight: u32::try_from(member.upstream.in_flight()).unwrap_or(u32::MAX),
        });
        let loads: Vec<_> = loads.collect();
        let is_out = |member: &Member| heeded_at.is_some_and(|now| member.upstream.health.is_out(now));
        let is_passed = |member: &Member| tried.contains(&member.endpoint.addr) || is_out(member);
        let passed: Vec<_> = match (tried, heeded_at) {
            ([], None) => Vec::new(),
            _ => group.iter().map(is_passed).collect(),
        };
        group.get(pick(self.policy.balancer, &loads, turn, draw, &passed)?)
    }

    /// A request's place among those that may be under way.
    pub(super) fn begin(&self) -> Option<Place> {
        let most = match self.policy.max_requests {
            0 => usize::MAX,
            most => most as usize,
        };
        Place::take(&self.under_way, Kind::Request, most)
    }

    /// A retry's place, as the budget has it.
    pub(super) fn retry(&self) -> Option<Place> {
        let budget = &self.policy.retry_budget;
        let requests = self.under_way.requests.load(Acquire);
        let of_percent = requests.saturating_mul(budget.percent as usize) / 100;
        let most = of_percent.max(budget.at_least as usize);
        Place::take(&self.under_way, Kind::Retry, most)
    }

    /// The place of a copy for a mirror.
    pub(super) fn copy(&self) -> Option<Place> {
        Place::take(&self.under_way, Kind::Copy, MOST_COPIES)
    }
}

/// The clusters of a worker.
#[derive(Default)]
pub(super) struct Clusters {
    services: Mutex<FxHashMap<ServiceKey, Vec<Named>>>,
    pods: Mutex<FxHashMap<SocketAddr, Arc<Cluster>>>,
}

/// A port of a service, or of a subset of it.
struct Named {
    port: u16,
    subset: Option<Arc<str>>,
    cluster: Arc<Cluster>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Upstreams {
    /// The endpoints that this mesh has.
    ///
    /// # Errors
    /// There is nobody, or no such subset.
    pub(super) fn cluster(&self, seen: &Arc<Seen>, to: To<'_>) -> Result<Arc<Cluster>, Refusal> {
        let found = self.clusters.find(to);
        if let Some(found) = &found
            && Arc::ptr_eq(&found.seen, seen)
        {
            return Ok(Arc::clone(found));
        }
        let made = Arc::new(match to {
            To::Service(service, port, subset) => self.of_service(seen, (service, port, subset), found)?,
            To::Pod(addr) => self.of_pod(seen, addr, found)?,
        });
        self.clusters.keep(to, &made);
        Ok(made)
    }

    fn of_service(
        &self,
        seen: &Arc<Seen>,
        (service, port, subset): (&ServiceKey, u16, Option<&Arc<str>>),
        before: Option<Arc<Cluster>>,
    ) -> Result<Cluster, Refusal> {
        let mesh = &seen.mesh;
        let subset = subset.map(|name| &**name);
        let routes = mesh.usable_routes(service)?;
        let policy = match routes.map(|routes| routes.traffic(port, subset)) {
            Some(Some(policy)) => policy.clone(),
            // A subset that nobody has defined has no endpoints.
            Some(None) => return Err(Refusal::NoHealthyEndpoint(service.clone())),
            None if subset.is_some() => return Err(Refusal::NoHealthyEndpoint(service.clone())),
            None => TrafficPolicy::default(),
        };
        let groups = http_endpoints(mesh, service, port, subset, &seen.own)?;
        let known = mesh.service(service);
        Ok(Cluster {
            seen: Arc::clone(seen),
            groups: groups.into_iter().map(|group| self.members(group)).collect(),
            policy,
            protocol: known.and_then(|service| service.app_protocols.get(&port).copied()),
            turn: AtomicU64::new(
                before
                    .as_ref()
                    .map_or_else(super::draw, |it| it.turn.load(Relaxed)),
            ),
            under_way: before.map_or_else(Arc::default, |before| Arc::clone(&before.under_way)),
        })
    }

    fn of_pod(
        &self,
        seen: &Arc<Seen>,
        addr: SocketAddr,
        before: Option<Arc<Cluster>>,
    ) -> Result<Cluster, Refusal> {
        let question = Outbound {
            source: Arc::clone(&seen.own),
            destination: addr,
        };
        let next = route(&seen.mesh, &question, 0).next;
        let workload = match &next {
            NextHop::Refuse(refusal) => return Err(refusal.clone()),
            NextHop::Direct { workload, .. } => workload.clone(),
            NextHop::Tunnel(tunnel) => Some(Arc::clone(&tunnel.workload)),
        };
        let workload = workload.ok_or(Refusal::UnknownDestination(addr))?;
        let endpoint = HttpEndpoint { workload, addr, next };
        Ok(Cluster {
            seen: Arc::clone(seen),
            groups: vec![self.members(vec![endpoint])],
            policy: TrafficPolicy::default(),
            protocol: None,
            turn: AtomicU64::new(0),
            under_way: before.map_or_else(Arc::default, |before| Arc::clone(&before.under_way)),
        })
    }

    fn members(&self, group: Vec<HttpEndpoint>) -> Vec<Member> {
        let member = |endpoint: HttpEndpoint| {
            Some(Member {
                upstream: self.of(&Hop::of(&endpoint.next)?),
                endpoint,
            })
        };
        group.into_iter().filter_map(member).collect()
    }
}

impl Clusters {
    fn find(&self, to: To<'_>) -> Option<Arc<Cluster>> {
        match to {
            To::Pod(addr) => lock(&self.pods).get(&addr).cloned(),
            To::Service(service, port, subset) => {
                let services = lock(&self.services);
                let mut named = services.get(service)?.iter();
                let fitting = named.find(|it| it.port == port && it.subset.as_ref() == subset)?;
                Some(Arc::clone(&fitting.cluster))
            }
        }
    }

    fn keep(&self, to: To<'_>, cluster: &Arc<Cluster>) {
        match to {
            To::Pod(addr) => drop(lock(&self.pods).insert(addr, Arc::clone(cluster))),
            To::Service(service, port, subset) => {
                let mut services = lock(&self.services);
                let named = services.entry(service.clone()).or_default();
                named.retain(|it| it.port != port || it.subset.as_ref() != subset);
                named.push(Named {
                    port,
                    subset: subset.cloned(),
                    cluster: Arc::clone(cluster),
                });
            }
        }
    }

    /// Drops what is of an earlier mesh, and was not asked for since: endpoints that have left are held by nothing else.
    pub(super) fn forget(&self, seen: Option<&Arc<Seen>>) {
        let is_current = |cluster: &Cluster| seen.is_some_and(|seen| Arc::ptr_eq(&cluster.seen, seen));
        lock(&self.pods).retain(|_, cluster| is_current(cluster));
        lock(&self.services).retain(|_, named| {
            named.retain(|it| is_current(&it.cluster));
            !named.is_empty()
        });
    }
}
