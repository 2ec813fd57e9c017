//! The series of connections: one table from a label set to its counters, which every connection asks once.
//!
//! Byte directions are Istio's: received is client to server and sent is server to client, whichever side reports.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::labels::{AT_WAYPOINT, Labels, NO_FLAGS, WorkloadLabels};
use crate::mesh::{Direction, FailureKind, Flow, Outcome};
use crate::net::copy::Count;

/// More label sets than this share one series of which only the direction is known.
pub(super) const MOST_SERIES: usize = 10_000;
/// How long the series of a workload that left stay, so that every Prometheus has scraped their last values.
pub(super) const LINGER: Duration = Duration::from_secs(180);

/// The counters of one label set.
#[derive(Debug)]
struct Series {
    labels: Labels,
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    bytes: ByteCounts,
}

impl Series {
    fn new(labels: Labels) -> Self {
        let zero = AtomicU64::default;
        Self {
            labels,
            opened: zero(),
            closed: zero(),
            failed: zero(),
            bytes: ByteCounts::default(),
        }
    }
}

/// Bytes carried each way.
#[derive(Debug, Default)]
pub struct ByteCounts {
    request: AtomicU64,
    response: AtomicU64,
}

impl ByteCounts {
    /// Client to server, in bytes.
    pub fn request(&self) -> u64 {
        self.request.load(Relaxed)
    }

    /// Server to client, in bytes.
    pub fn response(&self) -> u64 {
        self.response.load(Relaxed)
    }
}

/// The table of series.
#[derive(Debug, Default)]
pub(super) struct Connections {
    table: RwLock<FxHashMap<Labels, Entry>>,
    open_outbound: AtomicU64,
    open_inbound: AtomicU64,
    revoked_outbound: AtomicU64,
    revoked_inbound: AtomicU64,
    /// Whether this is a waypoint: a connection of its comes from one agent and goes to another.
    at_waypoint: bool,
}

#[derive(Debug)]
struct Entry {
    /// Open connections hold it as well: a series that somebody else holds is never dropped.
    series: Arc<Series>,
    /// Since when an end of it is gone from the mesh.
    gone_since: Option<Instant>,
}

impl Connections {
    /// A waypoint's.
    pub(super) fn of_waypoint() -> Self {
        Self {
            at_waypoint: true,
            ..Self::default()
        }
    }

    /// Istio's `reporter`: whose agent counts, the source's or the destination's, or the waypoint.
    fn reporter(&self, direction: Direction) -> &'static str {
        match direction {
            _ if self.at_waypoint => AT_WAYPOINT,
            Direction::Outbound => "source",
            Direction::Inbound => "destination",
        }
    }

    /// The directions that there are: connections come to a waypoint.
    fn directions(&self) -> &'static [Direction] {
        match self.at_waypoint {
            true => &[Direction::Inbound],
            false => &[Direction::Outbound, Direction::Inbound],
        }
    }

    pub(super) fn open(self: &Arc<Self>, flow: &Flow) -> OpenConnection {
        let series = self.series(Labels::of(flow, self.reporter(flow.direction)));
        series.opened.fetch_add(1, Relaxed);
        self.open_now(flow.direction).fetch_add(1, Relaxed);
        OpenConnection {
            connections: self.clone(),
            closes: series.clone(),
            series,
            bytes: Arc::default(),
        }
    }

    pub(super) fn refused(&self, flow: &Flow) {
        let labels = Labels::of(flow, self.reporter(flow.direction)).with_flags(flow.response_flags());
        self.series(labels).failed.fetch_add(1, Relaxed);
        self.count_revoked(flow);
    }

    /// Counts a connection that a revocation list has refused or ended.
    fn count_revoked(&self, flow: &Flow) {
        if matches!(flow.outcome, Outcome::Failed(FailureKind::Revoked, _)) {
            self.revoked(flow.direction).fetch_add(1, Relaxed);
        }
    }

    fn revoked(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Outbound => &self.revoked_outbound,
            Direction::Inbound => &self.revoked_inbound,
        }
    }

    /// See [`Metrics::retain`](super::Metrics::retain).
    pub(super) fn retain(&self, live: &FxHashSet<WorkloadLabels<'_>>, now: Instant) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for (labels, entry) in table.iter_mut() {
            if labels.both_ends(|end| live.contains(end)) {
                entry.gone_since = None;
            } else {
                entry.gone_since.get_or_insert(now);
            }
        }
    }

    /// Drops the series whose workloads are gone for long enough and that no open connection uses.
    pub(super) fn evict(&self, now: Instant) {
        let evicted = |entry: &Entry| {
            let lingered = |since| now.saturating_duration_since(since) >= LINGER;
            entry.gone_since.is_some_and(lingered) && Arc::strong_count(&entry.series) == 1
        };
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, entry| !evicted(entry));
    }

    fn series(&self, labels: Labels) -> Arc<Series> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = table.get(&labels) {
            return entry.series.clone();
        }
        drop(table);
        self.new_series(labels)
    }

    #[cold]
    fn new_series(&self, labels: Labels) -> Arc<Series> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let full = table.len() >= MOST_SERIES && !table.contains_key(&labels);
        let labels = if full { labels.anonymous() } else { labels };
        let series = |labels: &Labels| Arc::new(Series::new(labels.clone()));
        let entry = table.entry(labels).or_insert_with_key(|labels| Entry {
            series: series(labels),
            gone_since: None,
        });
        entry.series.clone()
    }

    fn open_now(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Outbound => &self.open_outbound,
            Direction::Inbound => &self.open_inbound,
        }
    }

    /// All series, taken out of the lock: to write them takes long, and connections must not wait for it.
    fn snapshot(&self) -> Vec<Arc<Series>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.values().map(|entry| entry.series.clone()).collect()
    }
}

/// One open connection's counters. Dropped without [`close`](Self::close), it counts as closed all the same.
#[derive(Debug)]
pub struct OpenConnection {
    connections: Arc<Connections>,
    series: Arc<Series>,
    /// Where its end is counted: another series when something was wrong with it.
    closes: Arc<Series>,
    bytes: Arc<ByteCounts>,
}

impl Count for OpenConnection {
    fn up(&self, bytes: u64) {
        self.request(bytes);
    }

    fn down(&self, bytes: u64) {
        self.response(bytes);
    }
}

impl OpenConnection {
    /// Counts bytes that went from client to server.
    #[inline]
    pub fn request(&self, bytes: u64) {
        self.bytes.request.fetch_add(bytes, Relaxed);
        self.series.bytes.request.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes that went from server to client.
    #[inline]
    pub fn response(&self, bytes: u64) {
        self.bytes.response.fetch_add(bytes, Relaxed);
        self.series.bytes.response.fetch_add(bytes, Relaxed);
    }

    /// Bytes so far from client to server.
    pub fn request_total(&self) -> u64 {
        self.bytes.request()
    }

    /// Bytes so far from server to client.
    pub fn response_total(&self) -> u64 {
        self.bytes.response()
    }

    /// This connection's byte counts, for whoever lists open connections.
    pub fn byte_counts(&self) -> Arc<ByteCounts> {
        self.bytes.clone()
    }

    /// Counts the end of the connection, with the `response_flags` of `flow`.
    pub fn close(mut self, flow: &Flow) {
        if flow.response_flags() != NO_FLAGS {
            let labels = self.series.labels.clone().with_flags(flow.response_flags());
            self.closes = self.connections.series(labels);
            self.connections.count_revoked(flow);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.closes.closed.fetch_add(1, Relaxed);
        self.connections
            .open_now(self.series.labels.direction())
            .fetch_sub(1, Relaxed);
    }
}

/// A family of counters: its name, its help, and its value where the series has one.
type CounterFamily = (&'static str, &'static str, fn(&Series) -> Option<u64>);

const FAMILIES: [CounterFamily; 5] = [
    ("istio_tcp_connections_opened", "Connections opened.", |series| {
        carried(series, &series.opened)
    }),
    ("istio_tcp_connections_closed", "Connections closed.", |series| {
        carried(series, &series.closed)
    }),
    (
        "istio_tcp_connections_failed",
        "Connections refused or failed before they were open.",
        |series| Some(series.failed.load(Relaxed)).filter(|failed| *failed > 0),
    ),
    (
        "istio_tcp_received_bytes",
        "Bytes from client to server.",
        |series| carried(series, &series.bytes.request),
    ),
    ("istio_tcp_sent_bytes", "Bytes from server to client.", |series| {
        carried(series, &series.bytes.response)
    }),
];

/// A series that only counts failures has no other counters; one that only counts bad ends has that one.
fn carried(series: &Series, counter: &AtomicU64) -> Option<u64> {
    let value = counter.load(Relaxed);
    let shown = value > 0 || series.labels.response_flags() == NO_FLAGS && series.opened.load(Relaxed) > 0;
    shown.then_some(value)
}

impl Collector for Connections {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.evict(Instant::now());
        let all = self.snapshot();
        for (name, help, value) in FAMILIES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                if let Some(value) = value(series) {
                    ConstCounter::new(value).encode(metric.encode_family(&series.labels)?)?;
                }
            }
        }
        self.encode_revoked(&mut encoder)?;
        self.encode_open(encoder)
    }
}

impl Connections {
    fn encode_revoked(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = (
            "istio_crl_policy_rejections",
            "Connections refused or closed because a certificate of theirs is on a revocation list.",
        );
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for &direction in self.directions() {
            let labels = [("reporter", self.reporter(direction))];
            ConstCounter::new(self.revoked(direction).load(Relaxed))
                .encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn encode_open(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("istio_tcp_sockets_open", "Connections open now.");
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for &direction in self.directions() {
            let labels = [("reporter", self.reporter(direction))];
            ConstGauge::new(self.open_now(direction).load(Relaxed)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
