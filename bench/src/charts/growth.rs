//! For each thing that was measured of a mesh of several sizes, how it grows.

use anyhow::Result;

use super::{
    Chart,
    axis::{self, Axis},
    canvas::Look,
    lines::{self, Line, figures},
};
use crate::{
    figures::Measure,
    report::{Growth, GrowthLine, Report},
};

/// For each thing that was measured of a mesh of several sizes: a line for each mode.
pub(super) fn charts(report: &Report) -> Result<Vec<Chart>> {
    let mut charts = Vec::new();
    for growth in &report.growth {
        let mut measures: Vec<&Measure> = Vec::new();
        for line in &growth.lines {
            if !measures.contains(&&line.measure) {
                measures.push(&line.measure);
            }
        }
        for measure in measures {
            charts.extend(chart(report, growth, measure)?);
        }
    }
    Ok(charts)
}

/// `None` where nothing was measured.
fn chart(report: &Report, growth: &Growth, measure: &Measure) -> Result<Option<Chart>> {
    let lines = growth.lines.iter().filter(|line| line.measure == *measure);
    let lines: Vec<Line> = lines
        .map(|each| line(report, growth, each))
        .filter(|line| !line.points.is_empty())
        .collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let unit = measure.unit;
    let x = Axis::sizes(&growth.of, &growth.sizes);
    let y = Axis::fit(axis::title(unit), &figures(&lines), |figure| {
        axis::label(unit, figure)
    });
    let title = format!("{} by {}", measure.name, growth.of);
    let better = if unit.more_is_better() { "higher" } else { "lower" };
    Ok(Some(Chart {
        svg: lines::draw(&title, &lines, [&x, &y])?,
        about: format!("How it grows with {}; {better} is better.", growth.of),
        title,
    }))
}

fn line(report: &Report, growth: &Growth, line: &GrowthLine) -> Line {
    let points = growth.sizes.iter().zip(&line.figures);
    Line {
        mode: line.mode.clone(),
        look: Look::of(report, &line.mode),
        points: points
            .filter_map(|(size, figure)| Some((*size as f64, (*figure)?)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_chart_for_each_measure_of_each_growth() {
        let charts = charts(&sample::report()).unwrap();
        let titles: Vec<_> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "memory of a proxy by workloads in the mesh",
                "time to the first connection by workloads in the mesh",
                "memory of a proxy by services",
            ]
        );
        for part in ["\nMiB\n", "\n10000\n", "\nenvoy L7\n", "\nweft\n"] {
            assert!(charts[0].svg.contains(part), "{part}");
        }
    }

    #[test]
    fn what_was_not_measured_is_no_point() {
        let report = sample::report();
        let growth = &report.growth[0];
        assert_eq!(line(&report, growth, &growth.lines[0]).points.len(), 3);
        assert_eq!(line(&report, growth, &growth.lines[1]).points.len(), 4);
        assert!(
            charts(&sample::hollow())
                .unwrap()
                .iter()
                .all(|chart| !chart.svg.contains("NaN"))
        );
    }
}
