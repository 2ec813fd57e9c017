//! The metrics: Istio's names and labels for connections, and a few gauges of weft's own.
//!
//! Who calls it: the roles, at the beginning and the end of every connection and for every piece that was copied;
//! `admin` calls [`Metrics::encode`] when Prometheus asks. A connection finds its counters once, when it opens; after
//! that a byte count is two relaxed atomic additions and nothing else.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::DroppedLines;
use crate::mesh::{Flow, Policy, Workload, http::RequestFlow};

mod connections;
mod controller;
mod dns;
mod labels;
mod limits;
mod policies;
mod requests;
#[cfg(test)]
mod tests;

use connections::Connections;
pub use connections::{ByteCounts, OpenConnection};
pub use controller::Standing;
use dns::Dns;
pub use dns::DnsLabels;
pub use limits::Elsewhere;
use limits::Limits;
use policies::DryRuns;
use requests::Requests;

/// What [`Metrics::encode`] writes, for a `Content-Type` header.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Registered>);

#[derive(Debug)]
struct Registered {
    registry: Registry,
    connections: Arc<Connections>,
    requests: Arc<Requests>,
    dns: Dns,
    dry_runs: DryRuns,
    limits: Arc<Limits>,
    controller: Arc<controller::Controller>,
    active_proxies: Gauge,
    pending_proxies: Gauge,
    proxies_started: Counter,
    proxies_stopped: Counter,
    expected_pods: Gauge,
    captured_pods: Gauge,
    mesh_loaded: Gauge<f64, AtomicU64>,
    meshes_rejected: Counter,
    lookups: Family<[(&'static str, &'static str); 1], Counter>,
    exposed: Family<[(&'static str, &'static str); 1], Counter>,
    nri_connected: Gauge,
    nri_sandboxes: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    /// An agent's, all at zero. `tag` is the version in `istio_build`; `dropped` counts the log lines that were lost.
    pub fn new(tag: &str, dropped: DroppedLines) -> Self {
        Self::with(Connections::default(), tag, dropped)
    }

    /// The same of a waypoint, which says so in what it counts of connections.
    pub fn of_waypoint(tag: &str, dropped: DroppedLines) -> Self {
        Self::with(Connections::of_waypoint(), tag, dropped)
    }

    fn with(connections: Connections, tag: &str, dropped: DroppedLines) -> Self {
        let mut registered = Registered {
            registry: Registry::default(),
            connections: Arc::new(connections),
            requests: Arc::default(),
            dns: Dns::default(),
            dry_runs: DryRuns::default(),
            limits: Arc::default(),
            controller: Arc::default(),
            active_proxies: Gauge::default(),
            pending_proxies: Gauge::default(),
            proxies_started: Counter::default(),
            proxies_stopped: Counter::default(),
            expected_pods: Gauge::default(),
            captured_pods: Gauge::default(),
            mesh_loaded: Gauge::default(),
            meshes_rejected: Counter::default(),
            lookups: Family::default(),
            exposed: Family::default(),
            nri_connected: Gauge::default(),
            nri_sandboxes: Family::default(),
        };
        registered.register_istio(tag);
        registered.register_weft(dropped);
        Self(Arc::new(registered))
    }

    /// Counts a connection whose way is clear, and finds the counters that it will use.
    pub fn open(&self, flow: &Flow) -> OpenConnection {
        self.0.connections.open(flow)
    }

    /// Counts a connection that was refused or failed before it was open.
    pub fn refused(&self, flow: &Flow) {
        self.0.connections.refused(flow);
        self.0.limits.refused(flow);
    }

    /// Counts a request of a waypoint that has ended.
    pub fn record_request(&self, flow: &RequestFlow) {
        self.0.requests.record(flow);
    }

    /// Asks `elsewhere` too how often limits were reached. To be called once.
    pub fn count_limits(&self, elsewhere: Elsewhere) {
        let _ = self.0.limits.elsewhere.set(elsewhere);
    }

    /// Says how things stand with the controller. To be called once, where there is one.
    pub fn watch_controller(&self, standing: Standing) {
        let _ = self.0.controller.0.set(standing);
    }

    /// Counts a connection that a dry-run policy matched.
    pub fn dry_run_matched(&self, policy: &Policy) {
        self.0.dry_runs.matched(policy);
    }

    /// Counts a DNS query of a pod.
    pub fn dns_request(&self, labels: &DnsLabels) {
        self.0.dns.request(labels);
    }

    /// Counts one that is passed on to the server that was asked.
    pub fn dns_upstream_request(&self, labels: &DnsLabels) {
        self.0.dns.upstream_request(labels);
    }

    /// Counts one to which that server gave no response.
    pub fn dns_upstream_failure(&self, labels: &DnsLabels) {
        self.0.dns.upstream_failure(labels);
    }

    /// Notes how long that server took for its response.
    pub fn dns_upstream_duration(&self, labels: &DnsLabels, duration: Duration) {
        self.0.dns.upstream_duration(labels, duration);
    }

    /// Says which workloads the mesh has; to be called whenever it changes. The series of the others are dropped some
    /// minutes after they left, when the metrics are next asked for: by then their last values were scraped.
    pub fn retain<'a>(&self, live: impl IntoIterator<Item = &'a Arc<Workload>>, now: Instant) {
        let live = live.into_iter().map(|workload| labels::workload_labels(workload));
        let live = live.collect();
        self.0.connections.retain(&live, now);
        self.0.requests.retain(&live, now);
    }

    /// Sets how many pods have an open listener, and how many wait for one.
    pub fn proxies(&self, active: usize, pending: usize) {
        self.0.active_proxies.set(gauge_value(active));
        self.0.pending_proxies.set(gauge_value(pending));
    }

    /// Counts a pod whose listeners were opened.
    pub fn proxy_started(&self) {
        self.0.proxies_started.inc();
    }

    /// Counts a pod whose listeners were closed.
    pub fn proxy_stopped(&self) {
        self.0.proxies_stopped.inc();
    }

    /// Sets how many pods of this node should be captured, and how many are.
    pub fn pods(&self, expected: usize, captured: usize) {
        self.0.expected_pods.set(gauge_value(expected));
        self.0.captured_pods.set(gauge_value(captured));
    }

    /// Sets when the running mesh was loaded.
    pub fn mesh_loaded(&self, at: SystemTime) {
        let since_epoch = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.mesh_loaded.set(since_epoch.as_secs_f64());
    }

    /// Counts a mesh that was not taken because of an error in it.
    pub fn mesh_rejected(&self) {
        self.0.meshes_rejected.inc();
    }

    /// Counts a look-up of an address that the mesh did not have: `found`, `unknown`, `timed_out` or `too_many`.
    pub fn looked_up(&self, outcome: &'static str) {
        self.0.lookups.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Counts a connection in plaintext that was older than its pod's capture and was ended: `inbound` or `outbound`.
    pub fn exposed(&self, direction: &'static str) {
        self.0.exposed.get_or_create(&[("direction", direction)]).inc();
    }

    /// Sets whether the container runtime tells of pods that start.
    pub fn nri_connected(&self, connected: bool) {
        self.0.nri_connected.set(connected.into());
    }

    /// Counts a pod that the container runtime has waited for: `captured`, `outside` or `late`.
    pub fn nri_sandbox(&self, outcome: &'static str) {
        self.0.nri_sandboxes.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// Every metric, as OpenMetrics text; see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut text, &self.0.registry);
        text
    }
}

impl Registered {
    /// Names that dashboards know.
    fn register_istio(&mut self, tag: &str) {
        let build = Family::<[(&'static str, String); 2], Gauge>::default();
        let labels = [("component", "weft".to_owned()), ("tag", tag.to_owned())];
        build.get_or_create(&labels).set(1);
        let registry = &mut self.registry;
        registry.register("istio_build", "The component and its version", build);
        registry.register_collector(Box::new(self.connections.clone()));
        registry.register_collector(Box::new(self.requests.clone()));
        self.dns.register(registry);
        let manager = registry.sub_registry_with_prefix("workload_manager");
        let gauges = [
            (
                "active_proxy_count",
                "Pods with open listeners",
                &self.active_proxies,
            ),
            (
                "pending_proxy_count",
                "Pods that wait for their listeners",
                &self.pending_proxies,
            ),
        ];
        for (name, help, gauge) in gauges {
            manager.register(name, help, gauge.clone());
        }
        manager.register(
            "proxies_started",
            "Pods whose listeners were opened",
            self.proxies_started.clone(),
        );
        manager.register(
            "proxies_stopped",
            "Pods whose listeners were closed",
            self.proxies_stopped.clone(),
        );
    }

    /// Names of our own.
    fn register_weft(&mut self, dropped: DroppedLines) {
        let weft = self.registry.sub_registry_with_prefix("weft");
        weft.register(
            "expected_pods",
            "Pods of this node that should be captured; alert when captured_pods stays below",
            self.expected_pods.clone(),
        );
        weft.register(
            "captured_pods",
            "Pods of this node that are captured",
            self.captured_pods.clone(),
        );
        weft.register(
            "mesh_loaded_timestamp_seconds",
            "When the running mesh was loaded, in seconds since 1970; 0 before the first",
            self.mesh_loaded.clone(),
        );
        weft.register(
            "mesh_rejected",
            "Meshes that were not taken because of an error in them",
            self.meshes_rejected.clone(),
        );
        self.dry_runs.register(weft);
        weft.register(
            "on_demand_lookups",
            "Addresses of the cluster that were dialled and that the mesh did not have, by how looking them up ended",
            self.lookups.clone(),
        );
        weft.register(
            "exposed_connections",
            "Connections that had gone past the mesh in plaintext, were not allowed to, and were reset when their pod was captured",
            self.exposed.clone(),
        );
        weft.register(
            "nri_connected",
            "Whether the container runtime tells of pods that start (NRI), so that they are captured before their first instruction",
            self.nri_connected.clone(),
        );
        weft.register(
            "nri_sandboxes",
            "Pods that the container runtime has waited for, by what they were by then: captured, outside of the mesh, or late",
            self.nri_sandboxes.clone(),
        );
        weft.register_collector(Box::new(limits::Collected(self.limits.clone())));
        weft.register_collector(Box::new(controller::Collected(self.controller.clone())));
        weft.register_collector(Box::new(DroppedLinesCollector(dropped)));
    }
}

/// The log keeps its own count of dropped lines, so it is read when somebody asks.
#[derive(Debug)]
struct DroppedLinesCollector(DroppedLines);

impl Collector for DroppedLinesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Log lines dropped because whoever reads the log was too slow.";
        let metric = encoder.encode_descriptor("access_log_dropped", help, None, MetricType::Counter)?;
        ConstCounter::new(self.0.count()).encode(metric)
    }
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
