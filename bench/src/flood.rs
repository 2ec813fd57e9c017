//! What a pod waits for while another pod of its node is flooded: the ping-pong of one pair, first in quiet, then during a
//! flood of somebody else. The flood has the same pace in direct TCP and through weft.

use std::{fmt, net::SocketAddrV4, time::Duration};

use anyhow::{Context, Result};
use weft_tests::{Flood, Pod, Server, app};

use crate::{figures::at, ping_pong, stage::Pair};

/// The size of a message, each way.
const MESSAGE: usize = 64;

/// The port of tunnels, where handshakes go to through weft.
const HBONE: u16 = 15008;

/// What comes to the other pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SYNs that nobody follows up.
    Syns,
    /// TLS handshakes that nobody ends.
    Handshakes,
    /// Short connections: streams of one tunnel.
    Streams,
}

impl Kind {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Syns, Self::Handshakes, Self::Streams];

    /// Blows a second: far more than a pod's friends would do, and not so many that the attacker's own work is measured.
    fn pace(self) -> u32 {
        match self {
            Self::Syns => 10_000,
            Self::Handshakes | Self::Streams => 500,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syns => "SYNs",
            Self::Handshakes => "handshakes",
            Self::Streams => "streams",
        })
    }
}

/// The 99th percentile of the round trip during the flood, in microseconds, and how many times that of just before it is.
pub(crate) fn run(pair: &Pair, stranger: &Pod, kind: Kind, duration: Duration) -> Result<[f64; 2]> {
    let flooded = pair.flooded.as_ref().context("the pair has no pod to flood")?;
    let listener = flooded.listen(0).context("listen in the flooded pod")?;
    let port = listener.local_addr()?.port();
    let _server = Server::start(listener, app::echo)?;
    let p99 = || {
        let times = ping_pong::run(pair, MESSAGE, duration)?;
        at(&times, 0.99).context("there is no such percentile")
    };
    let quiet = p99()?;
    let gate = if pair.captured() { HBONE } else { port };
    let to = [SocketAddrV4::new(flooded.v4(), gate)];
    let flood = match kind {
        Kind::Syns => Flood::syns(stranger, &to)?,
        Kind::Handshakes => Flood::handshakes(stranger, to[0].into()),
        Kind::Streams => Flood::connections(&pair.client, flooded.addr(port)),
    };
    let during = flood
        .per_second(kind.pace())
        .during(u64::from(kind.pace() / 5), p99)?;
    Ok([during, during / quiet])
}
