//! Reports for the tests of everything that shows one.

use std::collections::BTreeMap;

use crate::{
    figures::{BASELINE, Curve, Ground, Measure, SHARES, Series, Unit},
    machine::Machine,
    report::{Growth, GrowthLine, ModeInfo, Report},
};

/// Text that breaks a page unless it is escaped.
pub(crate) const NASTY: &str = "<b>&\"";

/// The modes of two nodes, and how much slower each is.
const MODES: [(&str, f64); 6] = [
    (BASELINE, 1.0),
    ("envoy L4", 4.1),
    ("envoy L7", 9.7),
    ("envoy L7 h1", 8.9),
    ("envoy L7 log", 10.4),
    ("weft", 2.6),
];

/// The modes of one node.
const NEAR: [(&str, f64); 3] = [(BASELINE, 1.0), ("weft tunnel", 2.4), ("weft", 0.9)];

/// What direct TCP has; memory and proxies' time have nothing to compare with.
const MEASURES: [(&str, Unit, f64); 17] = [
    ("ping-pong 64 B, one core, p50", Unit::Micros, 21.1),
    ("ping-pong 64 B, one core, p99", Unit::Micros, 35.9),
    ("ping-pong 64 B, p50", Unit::Micros, 30.4),
    ("ping-pong 64 B, p99", Unit::Micros, 71.3),
    ("ping-pong beside bulk, p50", Unit::Micros, 210.0),
    ("ping-pong beside bulk, p99", Unit::Micros, 2_900.0),
    ("connections, one at a time", Unit::PerSecond, 16_500.0),
    ("HTTP keep-alive, 1 connection", Unit::PerSecond, 21_000.0),
    ("HTTP keep-alive, 64 connections", Unit::PerSecond, 118_000.0),
    ("bulk, 1 stream", Unit::Gbits, 31.2),
    ("bulk, 8 streams", Unit::Gbits, 44.8),
    ("CPU per 100,000 requests, machine", Unit::CpuSeconds, 1.9),
    ("CPU per 100,000 requests, proxies", Unit::CpuSeconds, 1.1),
    ("memory of the proxies, idle", Unit::Mebibytes, 12.0),
    ("memory of the proxies, 64 connections", Unit::Mebibytes, 15.0),
    ("p99 under a flood, to quiet", Unit::Times, 1.2),
    ("sockets left", Unit::Count, 0.0),
];

/// What only a proxy has.
fn of_proxies(name: &str) -> bool {
    name.contains("proxies")
}

fn series(ground: Ground, modes: &[(&str, f64)], (name, unit, base): (&str, Unit, f64)) -> Series {
    let mut series = Series::new(Measure::new(name, unit), ground);
    let modes = modes
        .iter()
        .filter(|(mode, _)| *mode != BASELINE || !of_proxies(name));
    for (mode, factor) in modes {
        let factor = if unit.more_is_better() {
            1.0 / factor
        } else {
            *factor
        };
        // The tail of the slower half is of another size in every round.
        let wobble = match *mode {
            BASELINE => 0.0,
            _ if name.contains("bulk, p99") => 0.3,
            _ => 0.02,
        };
        for round in 0..5 {
            series.add(mode, Some(base * factor * (1.0 + wobble * f64::from(round))));
        }
    }
    series
}

fn curve(load: &str, base: f64, ground: Ground, (mode, factor): (&str, f64)) -> Curve {
    let tail = |share: f64| 1.0 + 0.6 * (1.0 - share.min(0.9999)).recip().log10().powi(2);
    Curve {
        load: load.to_owned(),
        ground,
        mode: mode.to_owned(),
        points: SHARES.map(|share| (share, base * factor * tail(share))).to_vec(),
    }
}

fn growth(of: &str, sizes: &[u64], measures: &[(&str, Unit, f64)]) -> Growth {
    let line = |&(name, unit, each): &(&str, Unit, f64), mode: &str, factor: f64| GrowthLine {
        measure: Measure::new(name, unit),
        mode: mode.to_owned(),
        figures: sizes
            .iter()
            .map(|size| Some(9.0 + each * factor * *size as f64))
            .collect(),
    };
    let mut lines: Vec<_> = measures
        .iter()
        .flat_map(|measure| [line(measure, "envoy L7", 6.0), line(measure, "weft", 1.0)])
        .collect();
    if let Some(last) = lines.first_mut().and_then(|line| line.figures.last_mut()) {
        *last = None;
    }
    Growth {
        of: of.to_owned(),
        sizes: sizes.to_vec(),
        lines,
    }
}

fn mode(name: &str, ground: Ground) -> ModeInfo {
    let about = match name {
        BASELINE => "no mesh: plain TCP between the pods",
        "weft" => "weft's agents, one on each node, mutual TLS between them, access log on",
        "weft tunnel" => "through weft's agent, as if on two nodes",
        _ => "an Envoy beside each app, mutual TLS between them",
    };
    ModeInfo {
        name: name.to_owned(),
        ground,
        about: about.to_owned(),
    }
}

fn machine() -> Machine {
    let versions = [("weft", "0.1.0"), ("envoy", "1.31.2"), ("wrk", "4.1.0")];
    Machine {
        date: "2025-01-31".to_owned(),
        kernel: "6.1.0-18-amd64".to_owned(),
        processor: "AMD EPYC 7B13".to_owned(),
        cores: 8,
        memory_mib: 32_168,
        load_before: 0.1,
        quick: false,
        congestion_control: "cubic".to_owned(),
        optimised: true,
        versions: versions
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .into(),
    }
}

/// A whole run: six modes on two nodes, three on one.
pub(crate) fn report() -> Report {
    let (far, near) = (Ground::TwoNodes, Ground::OneNode);
    let loads = [
        ("ping-pong 64 B", far, 30.0),
        ("ping-pong beside bulk", far, 210.0),
        ("ping-pong 64 B", near, 24.0),
    ];
    let modes_on = |ground| {
        if ground == far {
            MODES.as_slice()
        } else {
            NEAR.as_slice()
        }
    };
    let mut report = empty();
    report.modes = [far, near]
        .into_iter()
        .flat_map(|ground| modes_on(ground).iter().map(move |(name, _)| mode(name, ground)))
        .collect();
    report.series = MEASURES.map(|measure| series(far, &MODES, measure)).to_vec();
    report.series.extend(
        MEASURES[2..10]
            .iter()
            .map(|measure| series(near, &NEAR, *measure)),
    );
    report.curves = loads
        .into_iter()
        .flat_map(|(load, ground, base)| {
            modes_on(ground)
                .iter()
                .map(move |mode| curve(load, base, ground, *mode))
        })
        .collect();
    report.growth = vec![
        growth(
            "workloads in the mesh",
            &[10, 100, 1_000, 10_000],
            &[
                ("memory of a proxy", Unit::Mebibytes, 0.004),
                ("time to the first connection", Unit::Micros, 3.0),
            ],
        ),
        growth(
            "services",
            &[1, 10, 100],
            &[("memory of a proxy", Unit::Mebibytes, 0.02)],
        ),
    ];
    report.failures = vec!["two nodes, envoy L7, bulk, 1 stream, round 3: iperf3 took too long".to_owned()];
    report.skipped = vec!["HTTP/2, because h2load is not installed".to_owned()];
    report
}

/// A run in which nothing came off.
pub(crate) fn empty() -> Report {
    Report {
        machine: machine(),
        command: "weft-bench --rounds 5".to_owned(),
        modes: Vec::new(),
        series: Vec::new(),
        curves: Vec::new(),
        growth: Vec::new(),
        failures: Vec::new(),
        skipped: Vec::new(),
        rounds: 5,
        seconds: 1_834,
    }
}

/// Hostile text wherever there is text.
pub(crate) fn nasty() -> Report {
    let mut report = report();
    let spoil = |text: &mut String| text.push_str(NASTY);
    report.modes.iter_mut().for_each(|mode| spoil(&mut mode.about));
    report
        .series
        .iter_mut()
        .for_each(|series| spoil(&mut series.measure.name));
    report.curves.iter_mut().for_each(|curve| spoil(&mut curve.load));
    for growth in &mut report.growth {
        spoil(&mut growth.of);
        growth
            .lines
            .iter_mut()
            .for_each(|line| spoil(&mut line.measure.name));
    }
    report
        .failures
        .iter_mut()
        .chain(&mut report.skipped)
        .for_each(spoil);
    let machine = &mut report.machine;
    for text in [&mut report.command, &mut machine.processor, &mut machine.kernel] {
        spoil(text);
    }
    machine.versions.insert(NASTY.to_owned(), NASTY.to_owned());
    report
}

/// A measure whose figures are zero, missing, or both.
pub(crate) fn hollow() -> Report {
    let mut report = empty();
    report.modes = MODES.map(|(name, _)| mode(name, Ground::TwoNodes)).to_vec();
    let figures = [
        (BASELINE, vec![Some(0.0), None]),
        ("envoy L4", vec![Some(0.0), Some(0.0)]),
        ("weft", vec![None, None]),
    ];
    let figures: BTreeMap<_, _> = figures.map(|(mode, rounds)| (mode.to_owned(), rounds)).into();
    for unit in [Unit::Micros, Unit::PerSecond, Unit::CpuSeconds, Unit::Mebibytes] {
        report.series.push(Series {
            figures: figures.clone(),
            ..Series::new(Measure::new("nothing", unit), Ground::TwoNodes)
        });
    }
    report.curves.push(Curve {
        points: vec![(0.5, 0.0), (1.0, f64::NAN)],
        ..curve("nothing", 0.0, Ground::TwoNodes, MODES[5])
    });
    report.growth = vec![growth("nothing", &[0], &[("memory", Unit::Mebibytes, 0.0)])];
    report
}
