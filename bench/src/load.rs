//! The loads of a run, in the order in which a round plays them, and how long each takes.

use std::{fmt, time::Duration};

use anyhow::Result;

use crate::{
    beside, bulk, connects, cores,
    cpu::Cpu,
    figures::{Measure, Unit},
    flood, http, ping_pong,
    stage::{Pair, Stage},
};

/// How much is measured.
pub(crate) struct Plan {
    /// Whether this is the short one.
    pub(crate) quick: bool,
    /// Each plays every load once directly and once through weft.
    pub(crate) rounds: usize,
    /// How long one ping-pong plays.
    pub(crate) duration: Duration,
    /// Connections made by one round of [`connects`]. A client has about 28,000 ports, and a port rests for a minute
    /// after its connection: the rounds of a minute must need fewer.
    pub(crate) connections: usize,
    /// How long wrk and iperf3 play: whole seconds, which is all that they take.
    pub(crate) seconds: u64,
}

impl Plan {
    /// Under 5 minutes.
    pub(crate) fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            duration: Duration::from_millis(1500),
            connections: 6_000,
            seconds: 3,
        }
    }

    /// Under a minute.
    pub(crate) fn quick() -> Self {
        Self {
            quick: true,
            rounds: 3,
            duration: Duration::from_millis(400),
            connections: 1_500,
            seconds: 1,
        }
    }
}

/// One way to use the network.
pub(crate) enum Load {
    /// One connection, one small message at a time.
    PingPong {
        /// The core to which everything that takes part is pinned.
        core: Option<usize>,
        /// Whether a bulk stream goes on between the same pods.
        beside_bulk: bool,
    },
    /// Ping-pong while another pod is flooded.
    Flooded(flood::Kind),
    /// Short connections.
    Connects,
    /// wrk against nginx.
    Http {
        /// Connections kept alive, each with one request at a time.
        connections: u32,
    },
    /// iperf3: as many bytes as will go.
    Bulk {
        /// Connections at once.
        streams: usize,
    },
    /// Another load, between two pods of one node.
    OneNode(Box<Load>),
}

/// Connections of wrk in the load that processor time is counted over.
const BUSY: u32 = 64;

impl Load {
    /// All of them; what this machine has no program for is left out, loudly.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let pinned = Some(cores::first()?);
        let ping_pong = |core, beside_bulk| Self::PingPong { core, beside_bulk };
        let mut loads = vec![
            ping_pong(pinned, false),
            ping_pong(None, false),
            ping_pong(pinned, true),
            ping_pong(None, true),
            Self::Connects,
        ];
        let mut near = vec![ping_pong(pinned, false), Self::Connects];
        loads.extend(flood::Kind::ALL.map(Self::Flooded));
        if http::available() {
            loads.extend([1, BUSY].map(|connections| Self::Http { connections }));
            near.push(Self::Http { connections: BUSY });
        } else {
            println!("SKIPPED: HTTP, because wrk is not installed (Debian: apt-get install wrk)");
        }
        if bulk::available() {
            loads.extend([1, 8].map(|streams| Self::Bulk { streams }));
            near.push(Self::Bulk { streams: 1 });
        } else {
            println!("SKIPPED: bulk, because iperf3 is not installed (Debian: apt-get install iperf3)");
        }
        loads.extend(near.into_iter().map(|load| Self::OneNode(Box::new(load))));
        Ok(loads)
    }

    /// The pairs that it is played between: the one outside of the mesh, and the one inside.
    pub(crate) fn pairs<'a>(&self, stage: &'a Stage) -> [&'a Pair; 2] {
        match self {
            Self::OneNode(_) => [&stage.near_direct, &stage.near_weft],
            _ => [&stage.direct, &stage.weft],
        }
    }

    /// What one run of it measures.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        let measure = |what: &str, unit| Measure {
            name: format!("{self}{what}"),
            unit,
            compared: true,
        };
        match self {
            Self::PingPong { beside_bulk, .. } => {
                let mut measures = vec![measure(", p50", Unit::Micros), measure(", p99", Unit::Micros)];
                measures.extend(beside_bulk.then(|| measure(", that stream", Unit::Gbits)));
                measures
            }
            Self::Http { connections: BUSY } => {
                let mut measures = vec![measure("", Unit::PerSecond)];
                measures.extend(
                    [
                        ("whole machine", true),
                        ("agent a (outbound)", false),
                        ("agent b (inbound)", false),
                    ]
                    .map(|(whose, compared)| Measure {
                        name: format!("  CPU per 100,000 requests, {whose}"),
                        unit: Unit::CpuSeconds,
                        compared,
                    }),
                );
                measures
            }
            Self::Flooded(_) => vec![
                measure(", p99", Unit::Micros),
                Measure {
                    compared: false,
                    ..measure(", p99 to quiet", Unit::Times)
                },
            ],
            Self::Connects | Self::Http { .. } => vec![measure("", Unit::PerSecond)],
            Self::Bulk { .. } => vec![measure("", Unit::Gbits)],
            Self::OneNode(load) => {
                let inside = |measure: Measure| Measure {
                    name: match measure.name.strip_prefix("  CPU per 100,000 requests") {
                        Some(whose) => format!("  one node: CPU per 100,000{whose}"),
                        None => format!("one node: {}", measure.name),
                    },
                    ..measure
                };
                load.measures().into_iter().map(inside).collect()
            }
        }
    }

    /// Plays it between the pods of a pair: one figure for each of the measures.
    pub(crate) fn run(&self, stage: &Stage, pair: &Pair, plan: &Plan) -> Result<Vec<f64>> {
        match *self {
            Self::OneNode(ref load) => load.run(stage, pair, plan),
            Self::PingPong { core, beside_bulk } => {
                let play = || ping_pong(pair, plan.duration, beside_bulk);
                match core {
                    Some(core) => cores::pinned(core, &stage.agents, play),
                    None => play(),
                }
            }
            Self::Flooded(kind) => flood::run(pair, &stage.stranger, kind, plan.duration),
            Self::Connects => Ok(vec![connects::run(pair, plan.connections)?]),
            Self::Http { connections: BUSY } => busy_http(stage, pair, plan.seconds),
            Self::Http { connections } => Ok(vec![http::run(pair, connections, plan.seconds)?.per_second]),
            Self::Bulk { streams } => Ok(vec![bulk::run(pair, streams, plan.seconds)?]),
        }
    }
}

fn ping_pong(pair: &Pair, duration: Duration, beside_bulk: bool) -> Result<Vec<f64>> {
    if !beside_bulk {
        return ping_pong::run(pair, duration);
    }
    let (mut figures, gbits) = beside::bulk(pair, || ping_pong::run(pair, duration))?;
    figures.push(gbits);
    Ok(figures)
}

fn busy_http(stage: &Stage, pair: &Pair, seconds: u64) -> Result<Vec<f64>> {
    let before = Cpu::used(stage)?;
    let requests = http::run(pair, BUSY, seconds)?;
    let used = Cpu::used(stage)?.per_100_000(before, requests.total);
    Ok([&[requests.per_second], used.as_slice()].concat())
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PingPong { core, beside_bulk } => {
                let pinned = if core.is_some() { " on one core" } else { "" };
                let beside = if *beside_bulk { " beside bulk" } else { "" };
                write!(f, "ping-pong 64 B{pinned}{beside}")
            }
            Self::Flooded(kind) => write!(f, "ping-pong, {kind} flood others"),
            Self::Connects => write!(f, "connect, echo, close; {} at a time", connects::CLIENTS),
            Self::Http { connections: 1 } => write!(f, "HTTP/1.1 kept alive, 1 connection"),
            Self::Http { connections } => write!(f, "HTTP/1.1 kept alive, {connections} connections"),
            Self::Bulk { streams: 1 } => write!(f, "bulk, 1 stream"),
            Self::Bulk { streams } => write!(f, "bulk, {streams} streams"),
            Self::OneNode(load) => write!(f, "one node: {load}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::WIDTH;

    #[test]
    fn names_of_measures_fit_and_differ() {
        let measures: Vec<_> = Load::all().unwrap().iter().flat_map(Load::measures).collect();
        for measure in &measures {
            assert!(measure.name.len() <= WIDTH, "{}", measure.name);
            let same = measures.iter().filter(|other| other.name == measure.name);
            assert_eq!(same.count(), 1, "{}", measure.name);
        }
    }
}
