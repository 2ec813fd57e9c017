//! The metrics of DNS: Istio's names and labels.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::labels::UNKNOWN;
use crate::mesh::Workload;

/// More label sets than this share one series of which the source is not known.
const MOST_SERIES: usize = 10_000;
/// Upper bounds of what a server takes for a response, in seconds.
const DURATIONS: [f64; 6] = [0.001, 0.005, 0.01, 0.1, 1.0, 5.0];

/// What a query is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DnsLabels {
    request_query_type: &'static str,
    request_protocol: &'static str,
    source_canonical_service: Arc<str>,
    source_canonical_revision: Arc<str>,
}

impl DnsLabels {
    /// The type of the records, `udp` or `tcp`, and the pod that asks.
    pub fn new(query_type: &'static str, protocol: &'static str, source: Option<&Arc<Workload>>) -> Self {
        let label = |text: Option<&Arc<str>>| match text {
            Some(text) if !text.is_empty() => Arc::clone(text),
            _ => UNKNOWN.into(),
        };
        Self {
            request_query_type: query_type,
            request_protocol: protocol,
            source_canonical_service: label(source.map(|it| &it.canonical_name)),
            source_canonical_revision: label(source.map(|it| &it.canonical_revision)),
        }
    }

    /// What remains when there are too many series to tell the sources apart.
    fn anonymous(&self) -> Self {
        Self::new(self.request_query_type, self.request_protocol, None)
    }
}

/// A histogram of seconds.
type Durations = Family<DnsLabels, Histogram, fn() -> Histogram>;

/// The families. Every label set is one of `requests` before it is one of another.
#[derive(Clone, Debug)]
pub(super) struct Dns {
    requests: Family<DnsLabels, Counter>,
    upstream_requests: Family<DnsLabels, Counter>,
    upstream_failures: Family<DnsLabels, Counter>,
    upstream_durations: Durations,
    series: Arc<AtomicUsize>,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_durations: Family::new_with_constructor(|| Histogram::new(DURATIONS)),
            series: Arc::default(),
        }
    }
}

impl Dns {
    pub(super) fn register(&self, registry: &mut Registry) {
        let counters = [
            (
                "istio_dns_requests",
                "DNS queries of captured pods",
                &self.requests,
            ),
            (
                "istio_dns_upstream_requests",
                "DNS queries that were passed on to the server that was asked",
                &self.upstream_requests,
            ),
            (
                "istio_dns_upstream_failures",
                "DNS queries to which that server gave no response",
                &self.upstream_failures,
            ),
        ];
        for (name, help, family) in counters {
            registry.register(name, help, family.clone());
        }
        registry.register_with_unit(
            "istio_dns_upstream_request_duration",
            "How long that server took for its response",
            Unit::Seconds,
            self.upstream_durations.clone(),
        );
    }

    pub(super) fn request(&self, labels: &DnsLabels) {
        if let Some(counter) = self.requests.get(labels) {
            counter.inc();
        } else if self.series.fetch_add(1, Relaxed) < MOST_SERIES {
            self.requests.get_or_create(labels).inc();
        } else {
            self.requests.get_or_create(&labels.anonymous()).inc();
        }
    }

    pub(super) fn upstream_request(&self, labels: &DnsLabels) {
        self.upstream_requests.get_or_create(&self.kept(labels)).inc();
    }

    pub(super) fn upstream_failure(&self, labels: &DnsLabels) {
        self.upstream_failures.get_or_create(&self.kept(labels)).inc();
    }

    pub(super) fn upstream_duration(&self, labels: &DnsLabels, duration: Duration) {
        let durations = self.upstream_durations.get_or_create(&self.kept(labels));
        durations.observe(duration.as_secs_f64());
    }

    /// The labels under which the query itself was counted.
    fn kept(&self, labels: &DnsLabels) -> DnsLabels {
        match self.requests.get(labels) {
            Some(_) => labels.clone(),
            None => labels.anonymous(),
        }
    }
}
