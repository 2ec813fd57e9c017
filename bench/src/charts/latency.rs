//! For each load, how latency is spread: the slowest of a hundred and of a thousand are what users feel.

use anyhow::Result;

use super::{
    Chart,
    axis::{Axis, label},
    canvas::Look,
    lines::{self, Line, figures},
};
use crate::{
    figures::{Curve, Ground, Unit},
    report::Report,
};

/// For each load that times were taken of: how long what share of it took.
pub(super) fn charts(report: &Report) -> Result<Vec<Chart>> {
    let mut loads: Vec<(Ground, &str)> = Vec::new();
    for curve in &report.curves {
        let load = (curve.ground, curve.load.as_str());
        if !loads.contains(&load) {
            loads.push(load);
        }
    }
    loads
        .into_iter()
        .filter_map(|load| chart(report, load).transpose())
        .collect()
}

/// `None` where no time was taken.
fn chart(report: &Report, (ground, load): (Ground, &str)) -> Result<Option<Chart>> {
    let curves = report
        .curves
        .iter()
        .filter(|curve| curve.ground == ground && curve.load == load);
    let lines: Vec<Line> = curves
        .map(|curve| line(report, curve))
        .filter(|line| !line.points.is_empty())
        .collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let y = Axis::log("time", &figures(&lines), |figure| label(Unit::Micros, figure));
    let title = format!("latency, {ground}: {load}");
    Ok(Some(Chart {
        svg: lines::draw(&title, &lines, [&Axis::shares(), &y])?,
        about: "The share of all that took no longer than this; lower is better. Both axes are logarithmic."
            .to_owned(),
        title,
    }))
}

fn line(report: &Report, curve: &Curve) -> Line {
    let points = curve.points.iter().copied();
    Line {
        mode: curve.mode.clone(),
        look: Look::of(report, &curve.mode),
        // The longest of all is chance: the last nine that is shown is the third.
        points: points
            .filter(|(share, micros)| *share < 0.9995 && *micros > 0.0)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_chart_for_each_load_and_ground_has_all_modes() {
        let report = sample::report();
        let charts = charts(&report).unwrap();
        let titles: Vec<_> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles[0], "latency, two nodes: ping-pong 64 B");
        assert_eq!(titles[2], "latency, one node: ping-pong 64 B");
        for mode in report.modes_on(Ground::TwoNodes) {
            assert!(
                charts[0].svg.contains(&format!("\n{}\n", mode.name)),
                "{}",
                mode.name
            );
        }
        for tick in ["50 %", "99.9 %", "100 µs", "1 ms"] {
            assert!(charts[0].svg.contains(&format!("\n{tick}\n")), "{tick}");
        }
    }

    #[test]
    fn times_of_zero_and_the_longest_are_left_out() {
        let report = sample::report();
        let mut curve = report.curves[0].clone();
        curve.points = vec![(0.0, 0.0), (0.5, f64::NAN), (0.99, 9.0), (1.0, 1e9)];
        assert_eq!(line(&report, &curve).points, [(0.99, 9.0)]);
        assert!(charts(&sample::hollow()).unwrap().is_empty());
    }
}
