//! The loads of a run, in the order in which a round plays them, and how long each takes.

use std::{fmt, time::Duration};

use anyhow::Result;

use crate::{
    bulk, connects, cores,
    figures::{Measure, Unit},
    http, ping_pong,
    stage::{Pair, Stage},
};

/// How much is measured.
pub(crate) struct Plan {
    /// Whether this is the short one.
    pub(crate) quick: bool,
    /// Each plays every load once directly and once through weft.
    pub(crate) rounds: usize,
    /// How long one load plays.
    pub(crate) duration: Duration,
    /// Connections made by one round of [`connects`]. A client has about 28,000 ports, and a port rests for a minute
    /// after its connection: the rounds of a minute must need fewer.
    pub(crate) connections: usize,
    /// Whole seconds, which is all that wrk takes.
    pub(crate) http_seconds: u64,
}

impl Plan {
    /// Under 4 minutes.
    pub(crate) fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            duration: Duration::from_millis(1500),
            connections: 6_000,
            http_seconds: 3,
        }
    }

    /// Under a minute.
    pub(crate) fn quick() -> Self {
        Self {
            quick: true,
            rounds: 3,
            duration: Duration::from_millis(500),
            connections: 1_500,
            http_seconds: 1,
        }
    }
}

/// One way to use the network.
pub(crate) enum Load {
    /// One connection, one small message at a time.
    PingPong {
        /// The core to which everything that takes part is pinned.
        core: Option<usize>,
    },
    /// Short connections.
    Connects,
    /// wrk against nginx.
    Http {
        /// Connections kept alive, each with one request at a time.
        connections: u32,
    },
    /// As many bytes as will go.
    Bulk {
        /// Connections at once.
        streams: usize,
    },
}

impl Load {
    /// All of them; what this machine has no program for is left out, loudly.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let core = cores::first()?;
        let mut loads = vec![
            Self::PingPong { core: None },
            Self::PingPong { core: Some(core) },
            Self::Connects,
        ];
        if http::available() {
            loads.extend([1, 64].map(|connections| Self::Http { connections }));
        } else {
            println!("SKIPPED: HTTP, because wrk is not installed (Debian: apt-get install wrk)");
        }
        loads.extend([1, 8].map(|streams| Self::Bulk { streams }));
        Ok(loads)
    }

    /// What one run of it measures.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        let measure = |what: &str, unit| Measure {
            name: format!("{self}{what}"),
            unit,
        };
        match self {
            Self::PingPong { .. } => vec![measure(", p50", Unit::Micros), measure(", p99", Unit::Micros)],
            Self::Connects | Self::Http { .. } => vec![measure("", Unit::PerSecond)],
            Self::Bulk { .. } => vec![measure("", Unit::Gbits)],
        }
    }

    /// Plays it between the pods of a pair: one figure for each of the measures.
    pub(crate) fn run(&self, stage: &Stage, pair: &Pair, plan: &Plan) -> Result<Vec<f64>> {
        match *self {
            Self::PingPong { core: None } => ping_pong::run(pair, plan.duration),
            Self::PingPong { core: Some(core) } => {
                cores::pinned(core, &stage.agents, || ping_pong::run(pair, plan.duration))
            }
            Self::Connects => Ok(vec![connects::run(pair, plan.connections)?]),
            Self::Http { connections } => Ok(vec![http::run(pair, connections, plan.http_seconds)?]),
            Self::Bulk { streams } => Ok(vec![bulk::run(pair, streams, plan.duration)?]),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PingPong { core: None } => write!(f, "ping-pong 64 B"),
            Self::PingPong { core: Some(_) } => write!(f, "ping-pong 64 B on one core"),
            Self::Connects => write!(f, "connect, echo, close; {} at a time", connects::CLIENTS),
            Self::Http { connections: 1 } => write!(f, "HTTP/1.1 kept alive, 1 connection"),
            Self::Http { connections } => write!(f, "HTTP/1.1 kept alive, {connections} connections"),
            Self::Bulk { streams: 1 } => write!(f, "bulk, 1 stream"),
            Self::Bulk { streams } => write!(f, "bulk, {streams} streams"),
        }
    }
}
