//! What weft says about itself: the log, the metrics and the status.
//!
//! Everything about a connection derives from its one [`Flow`](crate::mesh::Flow): the roles record it here, once.
//! Nothing here listens on a port; that is `admin`.

use std::error::Error;

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

/// An error and its causes in one line, as log lines and a failed [`Flow`](crate::mesh::Flow) have them.
pub fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
