//! Tunnels that nobody needs: the other end is gone, which a PING notices when TCP does not, or there is no stream. Used by
//! both ends.

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

/// Resolves when a tunnel has had no stream for that long. `look` says whether it has none now, and how many it ever had.
///
/// Looked at four times in that span rather than woken by each stream: it costs the data path nothing.
pub(super) async fn idle(span: Duration, look: impl Fn() -> (bool, usize)) {
    let (mut idle_looks, mut ever) = (0, look().1);
    while idle_looks < 4 {
        sleep(span / 4).await;
        let (idle, now) = look();
        idle_looks = if idle && now == ever { idle_looks + 1 } else { 0 };
        ever = now;
    }
}
