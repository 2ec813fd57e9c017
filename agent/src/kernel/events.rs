//! What debug builds of the programs log, as it comes. Release builds log nothing.

use aya_log::EbpfLogger;
use tokio::io::unix::AsyncFd;

/// Hands each logged decision to `tracing` (through the `log` facade), for as long as it is polled.
pub async fn log_decisions(decisions: EbpfLogger<&'static dyn log::Log>) {
    // SAFETY: the logger owns its file and does not close or replace it while `AsyncFd` owns the logger.
    let Ok(mut decisions) = (unsafe { AsyncFd::register(decisions) }) else {
        return;
    };
    while let Ok(mut ready) = decisions.readable_mut().await {
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
