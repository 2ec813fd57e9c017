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
        let mut one = |name: &str, kind: &str, help: &str, value: String| {
            let _ = write!(
                page,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
            );
        };
        let read = |count: &AtomicU64| count.load(Relaxed).to_string();
        one(
            "weft_controller_feed_clients",
            "gauge",
            "Agents that are connected.",
            read(&feed.clients),
        );
        one(
            "weft_controller_pushes_total",
            "counter",
            "Responses that agents were sent.",
            read(&feed.pushes),
        );
        one(
            "weft_controller_nacks_total",
            "counter",
            "Responses that agents refused.",
            read(&feed.nacks),
        );
        one(
            "weft_controller_certificates_total",
            "counter",
            "Certificates that were signed.",
            read(&self.signed),
        );
        one(
            "weft_controller_compiles_total",
            "counter",
            "Turns of the compiler.",
            read(&self.compiled),
        );
        let seconds = self.compile_us.load(Relaxed) as f64 / 1e6;
        one(
            "weft_controller_compile_seconds_total",
            "counter",
            "Time spent compiling.",
            seconds.to_string(),
        );
        one(
            "weft_controller_diagnostics",
            "gauge",
            "Things that are wrong with objects.",
            read(&self.diagnostics),
        );
        one(
            "weft_controller_leader",
            "gauge",
            "1 where this replica writes status.",
            read(&self.leads),
        );
        let (addresses, bytes) = store.size(Kind::Address);
        one(
            "weft_controller_addresses",
            "gauge",
            "Workloads and services in the mesh.",
            addresses.to_string(),
        );
        one(
            "weft_controller_addresses_bytes",
            "gauge",
            "Their size on the wire.",
            bytes.to_string(),
        );
        one(
            "weft_controller_policies",
            "gauge",
            "Policies in the mesh.",
            store.size(Kind::Authorization).0.to_string(),
        );
        let denied = self.denied.lock().unwrap_or_else(PoisonError::into_inner);
        page.push_str("# HELP weft_controller_denied_total Calls that were refused.\n# TYPE weft_controller_denied_total counter\n");
        for (reason, count) in denied.iter() {
            let _ = writeln!(
                page,
                "weft_controller_denied_total{{reason=\"{reason}\"}} {count}"
            );
        }
        page
    }
}
