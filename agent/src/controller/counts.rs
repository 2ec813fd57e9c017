//! The controller's metrics, in the text format of Prometheus.

use std::{
    fmt::Write as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use std::collections::BTreeMap;

use crate::feed::{
    server,
    store::{Kind, Store},
};

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Counts {
    signed: AtomicU64,
    denied: Mutex<BTreeMap<&'static str, u64>>,
    compiled: AtomicU64,
    compile_us: AtomicU64,
    diagnostics: AtomicU64,
    leads: AtomicU64,
}

impl Counts {
    /// A certificate was signed.
    pub(super) fn signed(&self) {
        self.signed.fetch_add(1, Relaxed);
    }

    /// A call was refused.
    pub(super) fn denied(&self, reason: &'static str) {
        *self
            .denied
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(reason)
            .or_default() += 1;
    }

    /// A turn of the compiler took so long.
    pub(super) fn compiled(&self, took: Duration) {
        self.compiled.fetch_add(1, Relaxed);
        self.compile_us
            .fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// So many objects have something wrong.
    pub(super) fn diagnostics(&self, count: usize) {
        self.diagnostics.store(count as u64, Relaxed);
    }

    /// Whether this replica writes status and deploys.
    pub(super) fn leads(&self, leads: bool) {
        self.leads.store(leads.into(), Relaxed);
    }

    /// The page.
    pub(super) fn page(&self, feed: &server::Counts, store: &Store) -> String {
        let mut page = String::new();
        for ((name, kind, help), value) in METRICS.into_iter().zip(self.values(feed, store)) {
            let _ = write!(
                page,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        }
        let name = "weft_controller_denied_total";
        let _ = write!(
            page,
            "# HELP {name} Calls that were refused.\n# TYPE {name} counter\n"
        );
        let denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, count) in denied.iter() {
            let _ = writeln!(page, "{name}{{reason=\"{reason}\"}} {count}");
        }
        page
    }

    /// One for each of [`METRICS`].
    fn values(&self, feed: &server::Counts, store: &Store) -> [f64; METRICS.len()] {
        let read = |count: &AtomicU64| count.load(Relaxed) as f64;
        let (addresses, bytes) = store.size(Kind::Address);
        let (policies, _) = store.size(Kind::Authorization);
        let (http, _) = store.size(Kind::Http);
        [
            read(&feed.clients),
            read(&feed.pushes),
            read(&feed.nacks),
            read(&self.signed),
            read(&self.compiled),
            read(&self.compile_us) / 1e6,
            read(&self.diagnostics),
            read(&self.leads),
            addresses as f64,
            bytes as f64,
            policies as f64,
            http as f64,
        ]
    }
}

/// Name, kind and help.
const METRICS: [(&str, &str, &str); 12] = [
    (
        "weft_controller_feed_clients",
        "gauge",
        "Agents and waypoints that are connected.",
    ),
    (
        "weft_controller_pushes_total",
        "counter",
        "Responses that they were sent.",
    ),
    (
        "weft_controller_nacks_total",
        "counter",
        "Responses that they refused.",
    ),
    (
        "weft_controller_certificates_total",
        "counter",
        "Certificates signed.",
    ),
    (
        "weft_controller_compiles_total",
        "counter",
        "Turns of the compiler.",
    ),
    (
        "weft_controller_compile_seconds_total",
        "counter",
        "Time spent compiling.",
    ),
    (
        "weft_controller_diagnostics",
        "gauge",
        "What is wrong with objects.",
    ),
    ("weft_controller_leader", "gauge", "1 where this replica writes."),
    (
        "weft_controller_addresses",
        "gauge",
        "Workloads and services in the mesh.",
    ),
    (
        "weft_controller_addresses_bytes",
        "gauge",
        "Their size on the wire.",
    ),
    ("weft_controller_policies", "gauge", "Policies in the mesh."),
    (
        "weft_controller_http",
        "gauge",
        "Services with routes, and request authentications, in the mesh.",
    ),
];
