//! PING: noticing that the other end is gone when TCP does not. Used by both ends of a tunnel.

use std::{future::pending, time::Duration};

use h2::{Ping, PingPong};
use tokio::time::{sleep, timeout};

use super::Settings;

/// Resolves when the peer has left a PING unanswered for the time it says. While it waits, the connection must be
/// polled by somebody else.
pub(super) async fn silence(pings: Option<PingPong>, settings: &Settings) -> Duration {
    let Some(mut pings) = pings else {
        return pending().await;
    };
    loop {
        sleep(settings.ping_interval).await;
        match timeout(settings.ping_timeout, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection has ended, and says so itself.
            Ok(Err(_)) => return pending().await,
            Err(_) => return settings.ping_timeout,
        }
    }
}
