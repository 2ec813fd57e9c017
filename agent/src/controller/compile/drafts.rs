//! The workloads of a namespace while they are compiled, found by their labels, names and addresses.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use rustc_hash::FxHashMap;

use super::{claims::Owner, kept_pod::KeptPod};
use crate::{manifests::Labels, mesh::Workload};

/// A workload that is not finished.
pub(super) struct Draft<'a> {
    pub(super) workload: Workload,
    pub(super) owner: Owner,
    pub(super) source: Source<'a>,
}

/// What a workload is made from.
pub(super) enum Source<'a> {
    Pod(&'a KeptPod),
    /// A WorkloadEntry: its labels, and the ports to which it gives names.
    Entry(Labels, BTreeMap<String, u16>),
    /// An address that an EndpointSlice or a ServiceEntry names.
    Address,
}

/// All of a namespace.
#[derive(Default)]
pub(super) struct Drafts<'a> {
    pub(super) all: Vec<Draft<'a>>,
    by_label: FxHashMap<(String, String), Vec<usize>>,
    by_address: FxHashMap<IpAddr, usize>,
    pods_by_name: FxHashMap<Arc<str>, usize>,
}

impl<'a> Draft<'a> {
    fn labels(&self) -> Option<&BTreeMap<String, String>> {
        match &self.source {
            Source::Pod(pod) => Some(&*pod.labels),
            Source::Entry(labels, _) => Some(labels),
            Source::Address => None,
        }
    }

    /// Whether it has all of these labels.
    pub(super) fn has_labels(&self, labels: &Labels) -> bool {
        let own = self.labels();
        let has = |(key, value)| own.and_then(|own| own.get(key)) == Some(value);
        labels.iter().all(has)
    }

    /// The port to which it gives this name.
    pub(super) fn named_port(&self, name: &str) -> Option<u16> {
        match &self.source {
            Source::Pod(pod) => {
                let mut ports = pod.named_ports.iter();
                ports.find(|(its, _)| **its == *name).map(|(_, port)| *port)
            }
            Source::Entry(_, ports) => ports.get(name).copied(),
            Source::Address => None,
        }
    }
}

impl<'a> Drafts<'a> {
    /// Makes those that are there so far to be found. What comes later is found by its address.
    pub(super) fn index(&mut self) {
        for (at, draft) in self.all.iter().enumerate() {
            for (key, value) in draft.labels().into_iter().flatten() {
                let pair = (key.clone(), value.clone());
                self.by_label.entry(pair).or_default().push(at);
            }
            if matches!(draft.source, Source::Pod(_)) {
                self.pods_by_name.insert(draft.workload.name.clone(), at);
            }
            if !draft.workload.host_network {
                for address in &draft.workload.addresses {
                    self.by_address.entry(*address).or_insert(at);
                }
            }
        }
    }

    /// Adds one that has no labels.
    pub(super) fn add(&mut self, draft: Draft<'a>) -> usize {
        let at = self.all.len();
        for address in &draft.workload.addresses {
            self.by_address.entry(*address).or_insert(at);
        }
        self.all.push(draft);
        at
    }

    /// Those that have all of these labels, of which there is one at least.
    pub(super) fn select(&self, labels: &Labels) -> Vec<usize> {
        let of_pair = |(key, value): (&String, &String)| {
            let found = self.by_label.get(&(key.clone(), value.clone()));
            found.map_or(&[][..], Vec::as_slice)
        };
        let fewest = labels.iter().map(of_pair).min_by_key(|found| found.len());
        let has_all = |at: &&usize| self.all[**at].has_labels(labels);
        fewest.into_iter().flatten().filter(has_all).copied().collect()
    }

    /// The one that has this address.
    pub(super) fn at_address(&self, address: IpAddr) -> Option<usize> {
        self.by_address.get(&address).copied()
    }

    /// The pod of this name.
    pub(super) fn pod(&self, name: &str) -> Option<usize> {
        self.pods_by_name.get(name).copied()
    }
}
