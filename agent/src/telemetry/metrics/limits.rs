//! How often each limit was reached. Every series is there from the start: an alert on one that is missing never fires.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

use crate::mesh::{Flow, Limit, Outcome, Refusal};

/// Counts that somebody else keeps.
pub type Elsewhere = Box<dyn Fn() -> [(Limit, u64); 2] + Send + Sync>;

/// One count for each of [`Limit::ALL`].
#[derive(Default)]
pub(super) struct Limits {
    counts: [AtomicU64; Limit::ALL.len()],
    pub(super) elsewhere: OnceLock<Elsewhere>,
}

impl Limits {
    /// Counts `flow` if it was refused for a limit.
    pub(super) fn refused(&self, flow: &Flow) {
        let Outcome::Refused(Refusal::OverLimit(limit)) = &flow.outcome else {
            return;
        };
        for (count, of) in self.counts.iter().zip(Limit::ALL) {
            if of == *limit {
                count.fetch_add(1, Relaxed);
            }
        }
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

/// What the registry asks.
#[derive(Debug)]
pub(super) struct Collected(pub(super) std::sync::Arc<Limits>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Connections refused, or held up, because a limit was reached.";
        let mut metric = encoder.encode_descriptor("limit_rejections", help, None, MetricType::Counter)?;
        let elsewhere = self.0.elsewhere.get().map(|read| read());
        for (count, limit) in self.0.counts.iter().zip(Limit::ALL) {
            let others = elsewhere.iter().flatten().filter(|(of, _)| *of == limit);
            let sum = count.load(Relaxed) + others.map(|(_, count)| count).sum::<u64>();
            ConstCounter::new(sum).encode(metric.encode_family(&[("limit", limit.label())])?)?;
        }
        Ok(())
    }
}
