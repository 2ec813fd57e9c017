//! One table of routes: the first entry whose whole test holds.
//!
//! Entries are found by host, then by path; what is found is looked at in the table's order, and no further than an earlier
//! one that holds. So a thousand routes for other hosts and paths cost nothing.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    super::{HostMatch, RouteTable, request::Asked, test::Test, text::BadExpression},
    Prepared, RoutesError,
    paths::Paths,
};

/// A [`RouteTable`], indexed.
#[derive(Debug)]
pub(super) struct Table {
    hosts: Hosts,
    /// Of the entries with the same hosts.
    paths: Vec<Paths>,
    /// By position, what must hold besides.
    tests: Vec<Test>,
    rules: Vec<Prepared>,
}

impl Table {
    pub(super) fn new(table: &RouteTable) -> Result<Self, RoutesError> {
        let (mut hosts, mut paths, mut tests) = (Hosts::default(), Vec::<Paths>::new(), Vec::new());
        let mut numbers: FxHashMap<&[HostMatch], usize> = FxHashMap::default();
        for (position, entry) in table.entries.iter().enumerate() {
            let rule = table.rules.get(entry.rule);
            let rule = rule.ok_or(RoutesError::NoSuchRule(entry.rule))?;
            let bad = |bad: BadExpression| RoutesError::of(rule, bad);
            let number = *numbers.entry(&entry.test.hosts).or_insert(paths.len());
            if number == paths.len() {
                hosts.add(&entry.test.hosts, number);
                paths.push(Paths::default());
            }
            if let Some(paths) = paths.get_mut(number) {
                paths.add(entry.test.path.as_ref(), position).map_err(bad)?;
            }
            tests.push(Test::new(&entry.test).map_err(bad)?);
        }
        paths.iter_mut().for_each(Paths::finish);
        let prepared = |rule| Prepared::new(rule).map_err(|bad| RoutesError::of(rule, bad));
        Ok(Self {
            hosts,
            paths,
            tests,
            rules: table.rules.iter().map(prepared).collect::<Result<_, _>>()?,
        })
    }

    /// The position of the entry that decides.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<usize> {
        let mut first = First {
            tests: &self.tests,
            asked,
            position: self.tests.len(),
        };
        for number in self.hosts.of(&asked.host) {
            if let Some(paths) = self.paths.get(*number) {
                paths.offer(&mut first);
            }
        }
        (first.position < self.tests.len()).then_some(first.position)
    }

    pub(super) fn prepared(&self, rule: usize) -> Option<&Prepared> {
        self.rules.get(rule)
    }
}

/// The first position found so far.
pub(super) struct First<'a, 'r> {
    tests: &'a [Test],
    pub(super) asked: &'a Asked<'r>,
    position: usize,
}

impl First<'_, '_> {
    /// Positions, in their order, of entries whose host and path are right.
    pub(super) fn offer(&mut self, positions: &[usize]) {
        for position in positions {
            if !self.is_before(*position) {
                return;
            }
            if self
                .tests
                .get(*position)
                .is_some_and(|test| test.holds(self.asked))
            {
                self.position = *position;
            }
        }
    }

    /// Whether it is worth being asked.
    pub(super) fn is_before(&self, position: usize) -> bool {
        position < self.position
    }
}

/// Which numbers a host has.
#[derive(Debug, Default)]
struct Hosts {
    exact: FxHashMap<Arc<str>, Vec<usize>>,
    under: FxHashMap<Arc<str>, Vec<usize>>,
    longest_under: usize,
    any: Vec<usize>,
}

impl Hosts {
    fn add(&mut self, hosts: &[HostMatch], number: usize) {
        if hosts.is_empty() {
            self.any.push(number);
        }
        for host in hosts {
            let numbers = match host {
                HostMatch::Any => &mut self.any,
                HostMatch::Exact(name) => self.exact.entry(name.clone()).or_default(),
                HostMatch::Under(end) => {
                    self.longest_under = self.longest_under.max(end.len());
                    self.under.entry(end.clone()).or_default()
                }
            };
            numbers.push(number);
        }
    }

    fn of(&self, host: &str) -> impl Iterator<Item = &usize> {
        let exact = self.exact.get(host).into_iter().flatten();
        exact.chain(self.around(host)).chain(&self.any)
    }

    fn around(&self, host: &str) -> impl Iterator<Item = &usize> {
        // A client may send a long one, of which no beginning has to be looked up.
        let beginnings = host.len().saturating_sub(self.longest_under).max(1);
        let labels = host.match_indices('.').filter(move |(at, _)| *at >= beginnings);
        let numbers = labels.filter_map(|(at, _)| self.under.get(host.get(at..)?));
        numbers.flatten()
    }
}
