//! The series of requests through a waypoint, by Istio's names and labels.
//!
//! A request finds its series by references to what is in its record: no label is copied and no set of them is made for it,
//! but for the first of its kind. Labels name routes' results and workloads, never paths or pods, so that clients cannot make
//! series.

use std::{
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter},
};
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use super::{
    connections::{LINGER, MOST_SERIES},
    labels::{AT_WAYPOINT, Ends, UNKNOWN, WorkloadLabels, end, principal, service},
};
use crate::mesh::{
    Party, Security, Service, SpiffeId, Workload,
    http::{Protocol, RequestFlow, ResponseFlag},
};

mod histogram;
#[cfg(test)]
mod tests;

use histogram::Histogram;

/// gRPC's last status (UNAUTHENTICATED): an app may send any number, but only these are labels.
const LAST_GRPC_STATUS: u32 = 16;

/// What tells one series from another.
#[derive(Clone, Copy, PartialEq, Hash)]
struct Key<'a> {
    ends: Ends<'a>,
    result: RequestResult,
}

/// How a request went, as far as labels say it.
#[derive(Clone, Copy, Debug, PartialEq, Hash)]
struct RequestResult {
    protocol: Protocol,
    /// 0 for none.
    status: u16,
    grpc_status: Option<u32>,
    flag: ResponseFlag,
    security: Security,
}

impl RequestResult {
    fn of(flow: &RequestFlow) -> Self {
        Self {
            protocol: flow.protocol,
            status: flow.status.unwrap_or(0),
            grpc_status: flow.grpc_status.map(|status| status.min(LAST_GRPC_STATUS + 1)),
            flag: flow.flag,
            security: flow.security,
        }
    }

    fn encode(self, label: &mut impl FnMut(&str, &str) -> fmt::Result) -> fmt::Result {
        label("request_protocol", self.protocol.label())?;
        label("response_code", &self.status.to_string())?;
        match self.grpc_status {
            None => label("grpc_response_status", "")?,
            Some(status) if status > LAST_GRPC_STATUS => label("grpc_response_status", UNKNOWN)?,
            Some(status) => label("grpc_response_status", &status.to_string())?,
        }
        label("response_flags", self.flag.label())?;
        label("connection_security_policy", self.security.label())
    }
}

impl<'a> Key<'a> {
    fn of(flow: &'a RequestFlow) -> Self {
        let identity = |party: &'a Party| party.identity.as_ref().filter(|_| flow.security.has_identities());
        Self {
            ends: Ends {
                source: end(flow.source.workload.as_deref()),
                source_principal: principal(identity(&flow.source)),
                destination: end(flow.destination.workload.as_deref()),
                destination_principal: principal(identity(&flow.destination)),
                service: service(flow.service.as_deref()),
            },
            result: RequestResult::of(flow),
        }
    }

    fn hash(&self) -> u64 {
        FxBuildHasher.hash_one(self)
    }
}

/// The same, to be kept.
#[derive(Debug)]
struct Labels {
    source: Kept,
    destination: Kept,
    service: Option<Arc<Service>>,
    result: RequestResult,
}

#[derive(Debug, Default)]
struct Kept {
    workload: Option<Arc<Workload>>,
    identity: Option<SpiffeId>,
}

impl Labels {
    fn of(flow: &RequestFlow) -> Self {
        let kept = |party: &Party| Kept {
            workload: party.workload.clone(),
            identity: party.identity.clone().filter(|_| flow.security.has_identities()),
        };
        Self {
            source: kept(&flow.source),
            destination: kept(&flow.destination),
            service: flow.service.clone(),
            result: RequestResult::of(flow),
        }
    }

    /// What remains when there are too many series to tell them apart.
    fn anonymous(flow: &RequestFlow) -> Self {
        let result = RequestResult::of(flow);
        Self {
            source: Kept::default(),
            destination: Kept::default(),
            service: None,
            // An app chooses its status.
            result: RequestResult {
                status: result.status / 100 * 100,
                grpc_status: None,
                ..result
            },
        }
    }

    fn key(&self) -> Key<'_> {
        Key {
            ends: Ends {
                source: end(self.source.workload.as_deref()),
                source_principal: principal(self.source.identity.as_ref()),
                destination: end(self.destination.workload.as_deref()),
                destination_principal: principal(self.destination.identity.as_ref()),
                service: service(self.service.as_deref()),
            },
            result: self.result,
        }
    }

    /// Whether both ends are there, as far as they are known.
    fn are_live(&self, live: &FxHashSet<WorkloadLabels<'_>>) -> bool {
        let ends = [&self.source.workload, &self.destination.workload];
        let mut known = ends.into_iter().flatten();
        known.all(|workload| live.contains(&end(Some(workload))))
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut label = |name: &str, value: &str| (name, value).encode(encoder.encode_label());
        label("reporter", AT_WAYPOINT)?;
        let key = self.key();
        key.ends.encode(&mut label)?;
        key.result.encode(&mut label)
    }
}

/// What is counted under one set of labels.
#[derive(Debug)]
struct Series {
    labels: Labels,
    requests: AtomicU64,
    /// In microseconds.
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

impl Series {
    fn new(labels: Labels) -> Self {
        Self {
            labels,
            requests: AtomicU64::default(),
            duration: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
            request_messages: AtomicU64::default(),
            response_messages: AtomicU64::default(),
        }
    }

    fn record(&self, flow: &RequestFlow) {
        self.requests.fetch_add(1, Relaxed);
        let micros = u64::try_from(flow.duration.as_micros()).unwrap_or(u64::MAX);
        self.duration.observe(micros, micros);
        for (histogram, bytes) in [
            (&self.request_bytes, flow.request_bytes),
            (&self.response_bytes, flow.response_bytes),
        ] {
            histogram.observe(bytes, bytes.saturating_mul(1000));
        }
        if flow.protocol == Protocol::Grpc {
            self.request_messages.fetch_add(flow.request_messages, Relaxed);
            self.response_messages.fetch_add(flow.response_messages, Relaxed);
        }
    }
}

#[derive(Debug)]
struct Entry {
    series: Arc<Series>,
    /// Since when an end of it is gone from the mesh.
    gone_since: Option<Instant>,
}

/// The table of series: by the hash of their keys, since a key of references cannot be kept.
#[derive(Debug, Default)]
pub(super) struct Requests {
    table: RwLock<FxHashMap<u64, Vec<Entry>>>,
    series: AtomicUsize,
}

fn find<'a>(table: &'a FxHashMap<u64, Vec<Entry>>, key: &Key<'_>) -> Option<&'a Arc<Series>> {
    let entries = table.get(&key.hash())?.iter();
    let mut series = entries.map(|entry| &entry.series);
    series.find(|series| series.labels.key() == *key)
}

impl Requests {
    pub(super) fn record(&self, flow: &RequestFlow) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = find(&table, &Key::of(flow)) {
            return series.record(flow);
        }
        drop(table);
        self.new_series(flow).record(flow);
    }

    #[cold]
    fn new_series(&self, flow: &RequestFlow) -> Arc<Series> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let full = self.series.load(Relaxed) >= MOST_SERIES && find(&table, &Key::of(flow)).is_none();
        let labels = if full {
            Labels::anonymous(flow)
        } else {
            Labels::of(flow)
        };
        let key = labels.key();
        if let Some(series) = find(&table, &key) {
            return series.clone();
        }
        let hash = key.hash();
        let series = Arc::new(Series::new(labels));
        self.series.fetch_add(1, Relaxed);
        table.entry(hash).or_default().push(Entry {
            series: series.clone(),
            gone_since: None,
        });
        series
    }

    /// See [`Metrics::retain`](super::Metrics::retain).
    pub(super) fn retain(&self, live: &FxHashSet<WorkloadLabels<'_>>, now: Instant) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for entry in table.values_mut().flatten() {
            if entry.series.labels.are_live(live) {
                entry.gone_since = None;
            } else {
                entry.gone_since.get_or_insert(now);
            }
        }
    }

    /// Drops the series whose workloads are gone for long enough.
    pub(super) fn evict(&self, now: Instant) {
        let lingers = |entry: &Entry| {
            let lingered = |since| now.saturating_duration_since(since) >= LINGER;
            !entry.gone_since.is_some_and(lingered)
        };
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, entries| {
            entries.retain(lingers);
            !entries.is_empty()
        });
        self.series.store(table.values().map(Vec::len).sum(), Relaxed);
    }

    /// All series, taken out of the lock: to write them takes long, and requests must not wait for it.
    fn snapshot(&self) -> Vec<Arc<Series>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let entries = table.values().flatten();
        entries.map(|entry| entry.series.clone()).collect()
    }
}

/// A family of counters: its name, its help, and its value where the series has one.
type CounterFamily = (&'static str, &'static str, fn(&Series) -> Option<&AtomicU64>);

const COUNTERS: [CounterFamily; 3] = [
    ("istio_requests", "Requests.", |series| Some(&series.requests)),
    (
        "istio_request_messages",
        "gRPC messages from client to server.",
        |series| messages(series, &series.request_messages),
    ),
    (
        "istio_response_messages",
        "gRPC messages from server to client.",
        |series| messages(series, &series.response_messages),
    ),
];

fn messages<'a>(series: &Series, counter: &'a AtomicU64) -> Option<&'a AtomicU64> {
    (series.labels.result.protocol == Protocol::Grpc).then_some(counter)
}

/// A family of histograms: its name, its help, the histogram, and how much of its sum makes one.
type HistogramFamily = (&'static str, &'static str, fn(&Series) -> &Histogram, f64);

const HISTOGRAMS: [HistogramFamily; 3] = [
    (
        "istio_request_duration_milliseconds",
        "From a request's head to its response's end, in milliseconds.",
        |series| &series.duration,
        1000.0,
    ),
    (
        "istio_request_bytes",
        "Bytes of requests' bodies.",
        |series| &series.request_bytes,
        1.0,
    ),
    (
        "istio_response_bytes",
        "Bytes of responses' bodies.",
        |series| &series.response_bytes,
        1.0,
    ),
];

impl Collector for Requests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.evict(Instant::now());
        let all = self.snapshot();
        if all.is_empty() {
            // An agent, which sees no requests.
            return Ok(());
        }
        for (name, help, counter) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                if let Some(counter) = counter(series) {
                    let value = ConstCounter::new(counter.load(Relaxed));
                    value.encode(metric.encode_family(&series.labels)?)?;
                }
            }
        }
        for (name, help, histogram, scale) in HISTOGRAMS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for series in &all {
                let (sum, count, buckets) = histogram(series).read();
                let mut metric = metric.encode_family(&series.labels)?;
                // Exact to 2^53, as every number of Prometheus.
                metric.encode_histogram::<NoLabelSet>(sum as f64 / scale, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}
