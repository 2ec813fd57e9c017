//! What weft says about itself: the log, the metrics and the status.
//!
//! Everything about a connection derives from its one [`Flow`](crate::mesh::Flow): the roles record it here, once.
//! Nothing here listens on a port; that is `admin`.

pub mod explain;
pub mod log;
pub mod metrics;
#[cfg(test)]
pub(crate) mod sample;
pub mod status;

pub use explain::{ExplainError, Explanation, explain};
pub use log::{DroppedLines, LogFilter, LogFormat, LogGuard};
pub use metrics::{ByteCounts, Metrics, OpenConnection};
pub use status::Status;

pub use crate::net::chain;
