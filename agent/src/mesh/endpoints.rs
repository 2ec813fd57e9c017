//! The endpoints of a service, and which of them are near to whoever dials.
//!
//! Every endpoint is in the area of each of its scopes (its region, in that its zone, ...). Whoever dials walks the same
//! way from area to area, as far as there are any with endpoints, so nothing is compared and nothing is allocated: the
//! cost is that of a few look-ups, however many endpoints there are. Called by `route`, built by `index`.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{BalancingMode, LoadBalancing, PortMapping, RoutingScope, Workload};

/// The most turns that an endpoint has where another has one: capacities beyond are scaled down. It bounds the number of
/// choices of a service.
const MOST_TURNS: u32 = 16;
/// As many as there are kinds of scopes.
const MOST_SCOPES: usize = 6;

/// A workload behind a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service's ports as this workload maps them.
    pub ports: Arc<[PortMapping]>,
}

impl Endpoint {
    /// The workload's port behind a port of the service.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.service_port == service_port)
            .map(|port| port.target_port)
    }
}

/// All endpoints of one service that may be chosen.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    all: Vec<Endpoint>,
    scopes: Vec<RoutingScope>,
    strict: bool,
    everywhere: Area,
}

/// The endpoints that have the same scopes, from the first up to some.
#[derive(Clone, Debug, Default)]
struct Area {
    /// Positions in `Endpoints::all`, each as often as its capacity says: what a draw points at.
    turns: Vec<u32>,
    /// By the value of the next scope.
    within: FxHashMap<Arc<str>, Area>,
}

impl Endpoints {
    pub(super) fn new(all: Vec<Endpoint>, balancing: &LoadBalancing) -> Self {
        let mut scopes: Vec<RoutingScope> = Vec::new();
        for scope in balancing.scopes() {
            if !scopes.contains(scope) {
                scopes.push(*scope);
            }
        }
        let mut endpoints = Self {
            scopes,
            strict: balancing.mode == BalancingMode::Strict,
            everywhere: Area::default(),
            all,
        };
        for (position, endpoint) in (0_u32..).zip(&endpoints.all) {
            let way = endpoints.scopes.iter().map(|scope| scope.of(&endpoint.workload));
            endpoints.everywhere.add(way, position);
        }
        endpoints.everywhere.give_turns(&endpoints.all);
        endpoints
    }

    /// Every one of them.
    pub(super) fn all(&self) -> &[Endpoint] {
        &self.all
    }

    /// Those that a workload may be given: the nearest area's in the order that the draw says, then the rest of the next
    /// area's, and so on. One endpoint may come several times.
    pub(super) fn ordered(&self, source: &Workload, draw: u64) -> impl Iterator<Item = &Endpoint> {
        self.areas(source)
            .flat_map(move |area| area.from(draw))
            .filter_map(|at| self.all.get(at))
    }

    /// Those that a workload may be given, each once: the nearest area's, then what the next one has besides, and so on.
    pub(super) fn groups(&self, source: &Workload) -> Vec<Vec<&Endpoint>> {
        let mut met = vec![false; self.all.len()];
        let mut groups = Vec::new();
        for area in self.areas(source) {
            let positions = area.turns.iter().map(|at| *at as usize);
            let new =
                positions.filter(|at| met.get_mut(*at).is_some_and(|met| !std::mem::replace(met, true)));
            groups.push(new.filter_map(|at| self.all.get(at)).collect());
        }
        groups
    }

    /// How many draws tell: the turns of the nearest area with an endpoint that will do. 0 where there is none.
    pub(super) fn choices(&self, source: &Workload, will_do: impl Fn(&Endpoint) -> bool) -> u64 {
        let any = |area: &&Area| area.from(0).filter_map(|at| self.all.get(at)).any(&will_do);
        self.areas(source)
            .find(any)
            .map_or(0, |area| area.turns.len() as u64)
    }

    /// The service's scopes that a workload shares with another, from the first on: the more, the nearer.
    pub(super) fn shared_scopes(&self, source: &Workload, other: &Workload) -> &[RoutingScope] {
        let shared = self
            .scopes
            .iter()
            .take_while(|scope| scope.of(source) == scope.of(other));
        let (shared, _) = self.scopes.split_at(shared.count());
        shared
    }

    /// The areas that a workload may be given endpoints of, the nearest first.
    fn areas(&self, source: &Workload) -> impl Iterator<Item = &Area> {
        let mut way = [Some(&self.everywhere), None, None, None, None, None, None];
        let mut depth = 0;
        for (scope, next) in self.scopes.iter().zip(1..=MOST_SCOPES) {
            way[next] = way[depth].and_then(|area| area.within.get(scope.of(source)));
            if way[next].is_none() {
                break;
            }
            depth = next;
        }
        let (first, last) = match self.strict {
            true if depth < self.scopes.len() => (1, 0),
            true => (depth, depth),
            false => (0, depth),
        };
        (first..=last).rev().filter_map(move |at| way[at])
    }
}

impl Area {
    fn add<'a>(&mut self, mut way: impl Iterator<Item = &'a Arc<str>>, position: u32) {
        self.turns.push(position);
        if let Some(next) = way.next() {
            self.within.entry(next.clone()).or_default().add(way, position);
        }
    }

    /// In rounds, so that neighbouring draws lead to different endpoints where there are several.
    fn give_turns(&mut self, all: &[Endpoint]) {
        let capacity = |position: &u32| all.get(*position as usize).map_or(0, |it| it.workload.capacity);
        let positions = std::mem::take(&mut self.turns);
        let shares = shares(positions.iter().map(capacity));
        let rounds = shares.iter().copied().max().unwrap_or(0);
        for round in 0..rounds {
            let having = positions.iter().zip(&shares).filter(|(_, share)| **share > round);
            self.turns.extend(having.map(|(position, _)| *position));
        }
        self.within.values_mut().for_each(|area| area.give_turns(all));
    }

    /// The positions from the one that the draw names on, around.
    fn from(&self, draw: u64) -> impl Iterator<Item = usize> {
        let first = draw.checked_rem(self.turns.len() as u64).unwrap_or(0) as usize;
        let (before, from) = self.turns.split_at_checked(first).unwrap_or((&[], &self.turns));
        from.iter().chain(before).map(|position| *position as usize)
    }
}

/// How many turns each capacity gives: as few as keep the proportions, and never more than [`MOST_TURNS`]. None for a
/// capacity of 0, at least one for any other.
fn shares(capacities: impl Iterator<Item = u32> + Clone) -> Vec<u32> {
    let divisor = capacities.clone().fold(0, common_divisor).max(1);
    let most = capacities.clone().max().unwrap_or(0) / divisor;
    let scaled = |capacity: u32| {
        let share = capacity / divisor;
        if most <= MOST_TURNS || share == 0 {
            return share;
        }
        // In 64 bits: both factors fit into 32. At most MOST_TURNS, as `share` is at most `most`.
        (u64::from(share) * u64::from(MOST_TURNS)).div_ceil(u64::from(most)) as u32
    };
    capacities.map(scaled).collect()
}

fn common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests;
