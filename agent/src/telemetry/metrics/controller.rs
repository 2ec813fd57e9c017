//! Whether the controller is there, and since when it is not: the mesh in force is as old as that.

use std::{
    fmt,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

/// How things stand with the controller: whether it is there, and when it was heard of last, or was lost.
pub type Standing = Box<dyn Fn() -> (bool, Option<SystemTime>) + Send + Sync>;

/// Asked at each scrape. Nothing is said where there is no controller, as with a mesh file.
#[derive(Default)]
pub(super) struct Controller(pub(super) OnceLock<Standing>);

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

/// What the registry asks.
#[derive(Debug)]
pub(super) struct Collected(pub(super) std::sync::Arc<Controller>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(standing) = self.0.0.get() else {
            return Ok(());
        };
        let (connected, heard) = standing();
        let help = "Whether there is a stream from the controller; without one the last mesh stays in force.";
        let metric = encoder.encode_descriptor("controller_connected", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(connected)).encode(metric)?;
        let since = heard.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let help = "When the controller was heard of last, or was lost.";
        let metric = encoder.encode_descriptor(
            "controller_heard_timestamp_seconds",
            help,
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(since.unwrap_or_default().as_secs_f64()).encode(metric)
    }
}
