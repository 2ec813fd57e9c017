//! The loads of a run, in the order in which a round plays them, and how long each takes.

use std::{fmt, time::Duration};

use anyhow::Result;

use crate::{
    beside, bulk, connects, cores,
    figures::{Ground, Measure, Unit, at},
    fixed_rate, flood, http,
    mode::{Mode, Way},
    ping_pong,
    processes::Cpu,
    stage::{Pair, Stage},
};

/// How much is measured.
pub(crate) struct Plan {
    /// Whether this is the short one.
    pub(crate) quick: bool,
    /// Each plays every load once in each mode.
    pub(crate) rounds: usize,
    /// How long one ping-pong plays.
    pub(crate) duration: Duration,
    /// Connections made by one round of [`connects`]. A client has about 28,000 ports, and a port rests for a minute
    /// after its connection: the rounds of a minute must need fewer.
    pub(crate) connections: usize,
    /// How long wrk, h2load, oha and iperf3 play: whole seconds, which is all that they take.
    pub(crate) seconds: u64,
}

impl Plan {
    pub(crate) fn full() -> Self {
        Self {
            quick: false,
            rounds: 5,
            duration: Duration::from_millis(1000),
            connections: 4_000,
            seconds: 2,
        }
    }

    /// Under 3 minutes.
    pub(crate) fn quick() -> Self {
        Self {
            quick: true,
            rounds: 3,
            duration: Duration::from_millis(300),
            connections: 4_000,
            seconds: 1,
        }
    }
}

/// One way to use the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// One connection, one message at a time.
    PingPong {
        /// The size of a message.
        bytes: usize,
        /// The core to which everything that takes part is pinned.
        core: Option<usize>,
        /// Whether a bulk stream goes on between the same pods.
        beside_bulk: bool,
    },
    /// Ping-pong while another pod is flooded.
    Flooded(flood::Kind),
    /// Short connections.
    Connects,
    /// wrk against nginx: connections with one request at a time.
    Http {
        connections: u32,
        /// Or one connection for each request.
        kept_alive: bool,
    },
    /// h2load against nginx: connections with many requests at a time.
    Http2 { connections: u32 },
    /// oha against nginx, a thousand requests a second.
    FixedRate {
        connections: u32,
        /// Or HTTP/1.1.
        http2: bool,
    },
    /// iperf3: as many bytes as will go.
    Bulk {
        /// Connections at once.
        streams: usize,
    },
}

/// What came of a load.
pub(crate) struct Outcome {
    /// One for each of its measures.
    pub(crate) figures: Vec<Option<f64>>,
    /// For a load that is about time: by share.
    pub(crate) times: Option<Vec<(f64, f64)>>,
}

impl From<Vec<Option<f64>>> for Outcome {
    fn from(figures: Vec<Option<f64>>) -> Self {
        Self { figures, times: None }
    }
}

/// The size of the small message.
const SMALL: usize = 64;
/// What latencies are told of.
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

impl Load {
    /// All of a ground; what this machine has no program for is left out, and told.
    pub(crate) fn all(ground: Ground, quick: bool, skipped: &mut Vec<String>) -> Result<Vec<Self>> {
        let core = Some(cores::first()?);
        let mut loads = match (ground, quick) {
            (Ground::TwoNodes, true) => quick_loads(core),
            (Ground::TwoNodes, false) => [quick_loads(core), more_loads(core)].concat(),
            (Ground::OneNode, _) => near_loads(core, quick),
        };
        loads.sort_by_key(Self::order);
        for (program, package) in [
            ("wrk", "wrk"),
            ("iperf3", "iperf3"),
            ("h2load", "nghttp2-client"),
            ("oha", "cargo install oha"),
        ] {
            if loads.iter().any(|load| load.program() == Some(program)) && !http::available(program) {
                skipped.push(format!(
                    "{ground}: what is measured by {program}, which is not installed ({package})"
                ));
                loads.retain(|load| load.program() != Some(program));
            }
        }
        Ok(loads)
    }

    fn order(&self) -> u8 {
        match self {
            Self::PingPong { .. } => 0,
            Self::Flooded(_) => 1,
            Self::FixedRate { .. } => 2,
            Self::Http { .. } => 3,
            Self::Http2 { .. } => 4,
            Self::Connects => 5,
            Self::Bulk { .. } => 6,
        }
    }

    fn program(&self) -> Option<&'static str> {
        match self {
            Self::Http { .. } => Some("wrk"),
            Self::Http2 { .. } => Some("h2load"),
            Self::FixedRate { .. } => Some("oha"),
            Self::Bulk { .. } => Some("iperf3"),
            Self::PingPong { .. } | Self::Flooded(_) | Self::Connects => None,
        }
    }

    /// Whether a mode can carry it, and it says something of that mode.
    pub(crate) fn fits(&self, mode: &Mode) -> bool {
        match self {
            Self::Http { .. } | Self::Http2 { .. } | Self::FixedRate { .. } => true,
            Self::Flooded(_) => matches!(mode.way, Way::Direct | Way::Weft { .. }),
            Self::PingPong { .. } | Self::Connects | Self::Bulk { .. } => !mode.http_only(),
        }
    }

    /// What one run of it measures.
    pub(crate) fn measures(&self) -> Vec<Measure> {
        let measure = |what: &str, unit| Measure::new(format!("{self}{what}"), unit);
        let percentiles = |few: bool| {
            let told = PERCENTILES
                .iter()
                .filter(move |(name, _)| !few || matches!(*name, "p50" | "p99"));
            told.map(|(name, _)| measure(&format!(", {name}"), Unit::Micros))
        };
        let cpu = |per: &str| {
            [
                "whole machine",
                "proxies",
                "client's side",
                "server's side",
                "waypoint",
            ]
            .map(|whose| measure(&format!(", CPU per {per}, {whose}"), Unit::CpuSeconds))
        };
        match self {
            Self::PingPong { beside_bulk, .. } => {
                let stream = beside_bulk.then(|| measure(", that stream", Unit::Gbits));
                percentiles(false).chain(stream).collect()
            }
            Self::FixedRate { .. } => percentiles(false).collect(),
            Self::Flooded(_) => vec![
                measure(", p99", Unit::Micros),
                measure(", p99 to quiet", Unit::Times),
            ],
            Self::Connects => [vec![measure("", Unit::PerSecond)], cpu("100,000").into()].concat(),
            Self::Http { .. } => {
                let of_wrk = vec![measure("", Unit::PerSecond), measure(", p99", Unit::Micros)];
                [of_wrk, cpu("100,000").into()].concat()
            }
            Self::Http2 { .. } => [vec![measure("", Unit::PerSecond)], cpu("100,000").into()].concat(),
            Self::Bulk { .. } => [vec![measure("", Unit::Gbits)], cpu("GB").into()].concat(),
        }
    }

    /// Plays it between the pods of a pair.
    pub(crate) fn run(&self, stage: &Stage, pair: &Pair, plan: &Plan) -> Result<Outcome> {
        match *self {
            Self::PingPong {
                bytes,
                core,
                beside_bulk,
            } => {
                let play = || ping_pong(pair, bytes, plan.duration, beside_bulk);
                match core {
                    Some(core) => cores::pinned(core, &pair.carriers(), play),
                    None => play(),
                }
            }
            Self::FixedRate { connections, http2 } => {
                let times = fixed_rate::run(pair, connections, http2, plan.seconds)?;
                Ok(of_times(times, None))
            }
            Self::Flooded(kind) => {
                let figures = flood::run(pair, &stage.stranger, kind, plan.duration)?;
                Ok(figures.map(Some).to_vec().into())
            }
            Self::Connects => counted(pair, || {
                let per_second = connects::run(pair, plan.connections)?;
                Ok((vec![Some(per_second)], 1e5 / plan.connections as f64))
            }),
            Self::Http {
                connections,
                kept_alive,
            } => counted(pair, || {
                let requests = http::wrk(pair, connections, kept_alive, plan.seconds)?;
                Ok((
                    vec![Some(requests.per_second), requests.p99],
                    per_100_000(&requests),
                ))
            }),
            Self::Http2 { connections } => counted(pair, || {
                let requests = http::h2load(pair, connections, plan.seconds)?;
                Ok((vec![Some(requests.per_second)], per_100_000(&requests)))
            }),
            Self::Bulk { streams } => counted(pair, || {
                let received = bulk::run(pair, streams, plan.seconds)?;
                Ok((vec![Some(received.gbits_per_second)], 1.0 / received.gigabytes))
            }),
        }
    }
}

fn per_100_000(requests: &http::Requests) -> f64 {
    1e5 / requests.total.max(1) as f64
}

/// Does `work`, and adds the processor time that it took to its figures. `work` also answers for which part of that time
/// one is to be told.
fn counted(pair: &Pair, work: impl FnOnce() -> Result<(Vec<Option<f64>>, f64)>) -> Result<Outcome> {
    let carriers = pair.carriers();
    let before = Cpu::used(&carriers)?;
    let (mut figures, share) = work()?;
    figures.extend(Cpu::used(&carriers)?.since(before, share));
    Ok(figures.into())
}

fn ping_pong(pair: &Pair, bytes: usize, duration: Duration, beside_bulk: bool) -> Result<Outcome> {
    if !beside_bulk {
        return Ok(of_times(ping_pong::run(pair, bytes, duration)?, None));
    }
    let (times, gbits) = beside::bulk(pair, || ping_pong::run(pair, bytes, duration))?;
    Ok(of_times(times, Some(gbits)))
}

fn of_times(times: Vec<(f64, f64)>, more: Option<f64>) -> Outcome {
    let mut figures: Vec<_> = PERCENTILES.iter().map(|(_, share)| at(&times, *share)).collect();
    figures.extend(more.map(Some));
    Outcome {
        figures,
        times: Some(times),
    }
}

const fn small(core: Option<usize>, beside_bulk: bool) -> Load {
    Load::PingPong {
        bytes: SMALL,
        core,
        beside_bulk,
    }
}

const fn kept_alive(connections: u32) -> Load {
    Load::Http {
        connections,
        kept_alive: true,
    }
}

/// What decides: every run has it.
fn quick_loads(core: Option<usize>) -> Vec<Load> {
    vec![
        small(core, false),
        small(core, true),
        fixed_rate(16, false),
        kept_alive(64),
        Load::Http {
            connections: 64,
            kept_alive: false,
        },
        Load::Connects,
        Load::Bulk { streams: 1 },
        Load::Bulk { streams: 8 },
    ]
}

/// The rest.
fn more_loads(core: Option<usize>) -> Vec<Load> {
    let sized = |bytes| Load::PingPong {
        bytes,
        core,
        beside_bulk: false,
    };
    let mut loads = vec![small(None, false), small(None, true)];
    loads.extend([1, 1024, 16 * 1024].map(sized));
    loads.extend(flood::Kind::ALL.map(Load::Flooded));
    loads.extend([fixed_rate(1, false), fixed_rate(64, false), fixed_rate(16, true)]);
    loads.extend([kept_alive(1), Load::Http2 { connections: 8 }]);
    loads
}

fn fixed_rate(connections: u32, http2: bool) -> Load {
    Load::FixedRate { connections, http2 }
}

/// On one node.
fn near_loads(core: Option<usize>, quick: bool) -> Vec<Load> {
    let mut loads = vec![
        small(core, false),
        kept_alive(64),
        Load::Connects,
        Load::Bulk { streams: 1 },
    ];
    if !quick {
        loads.extend([
            small(core, true),
            fixed_rate(16, false),
            Load::Bulk { streams: 8 },
        ]);
    }
    loads
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let several = |count: u32| if count == 1 { "" } else { "s" };
        match self {
            Self::PingPong {
                bytes,
                core,
                beside_bulk,
            } => {
                let size = if *bytes < 1024 {
                    format!("{bytes} B")
                } else {
                    format!("{} KiB", bytes / 1024)
                };
                let pinned = if core.is_some() { " on one core" } else { "" };
                let beside = if *beside_bulk { " beside bulk" } else { "" };
                write!(f, "ping-pong {size}{pinned}{beside}")
            }
            Self::Flooded(kind) => write!(f, "ping-pong, {kind} flood others"),
            Self::Connects => write!(f, "connect, echo, close; {} at a time", connects::CLIENTS),
            Self::Http {
                connections,
                kept_alive: true,
            } => {
                write!(
                    f,
                    "HTTP/1.1 kept alive, {connections} connection{}",
                    several(*connections)
                )
            }
            Self::Http { connections, .. } => {
                write!(f, "HTTP/1.1, a connection a request, {connections} at a time")
            }
            Self::Http2 { connections } => {
                write!(f, "HTTP/2, {connections} connections of {connections} requests")
            }
            Self::FixedRate { connections, http2 } => {
                let version = if *http2 { "HTTP/2" } else { "HTTP" };
                let rate = fixed_rate::RATE;
                write!(
                    f,
                    "{version} 1 KB, {rate} requests/s, {connections} connection{}",
                    several(*connections)
                )
            }
            Self::Bulk { streams: 1 } => write!(f, "bulk, 1 stream"),
            Self::Bulk { streams } => write!(f, "bulk, {streams} streams"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_measures_differ() {
        for ground in [Ground::TwoNodes, Ground::OneNode] {
            let loads = Load::all(ground, false, &mut Vec::new()).unwrap();
            let measures: Vec<_> = loads.iter().flat_map(Load::measures).collect();
            for measure in &measures {
                let same = measures.iter().filter(|other| other.name == measure.name);
                assert_eq!(same.count(), 1, "{}", measure.name);
            }
        }
    }

    #[test]
    fn a_proxy_of_requests_is_asked_for_nothing_but_requests() {
        let modes = Mode::all(false, Some(std::path::Path::new("envoy")), &[]);
        let http = modes.iter().find(|mode| mode.http_only()).unwrap();
        assert!(!Load::Connects.fits(http) && !Load::Bulk { streams: 1 }.fits(http));
        assert!(kept_alive(1).fits(http));
        let envoy = modes.iter().find(|mode| mode.name == "envoy L4").unwrap();
        assert!(Load::Connects.fits(envoy) && !Load::Flooded(flood::Kind::Syns).fits(envoy));
    }
}
