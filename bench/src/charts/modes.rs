//! For each ground, what each mode is to direct TCP, and what it costs.

use anyhow::Result;

use super::{
    Chart,
    axis::{Axis, number},
    bars::{self, Bar, Frame, Group},
    canvas::Look,
};
use crate::{
    figures::{BASELINE, Ground, Series, Unit},
    report::Report,
    table::{GROUNDS, times},
};

/// What some measures have in common, and how their bars are drawn.
struct Kind {
    name: &'static str,
    units: &'static [Unit],
    scale: Scale,
    about: &'static str,
}

enum Scale {
    /// To direct TCP.
    Ratio,
    /// To direct TCP, where more than a few times is usual.
    LogRatio,
    Absolute,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "latency to none",
        units: &[Unit::Micros, Unit::Millis],
        scale: Scale::LogRatio,
        about: "How many times as long as with none; shorter is better. The axis is logarithmic, the thin line the spread of the rounds.",
    },
    Kind {
        name: "throughput to none",
        units: &[Unit::PerSecond, Unit::Gbits],
        scale: Scale::Ratio,
        about: "What is left of the rate with none, which is the grey line at 1; longer is better. The thin line is the spread of the rounds.",
    },
    Kind {
        name: "processor time",
        units: &[Unit::CpuSeconds],
        scale: Scale::Absolute,
        about: "Seconds of one core; shorter is better.",
    },
    Kind {
        name: "memory",
        units: &[Unit::Mebibytes],
        scale: Scale::Absolute,
        about: "MiB; shorter is better.",
    },
];

/// For each ground and kind of measure: a bar for each mode.
pub(super) fn charts(report: &Report) -> Result<Vec<Chart>> {
    let grounds = GROUNDS
        .into_iter()
        .flat_map(|ground| KINDS.iter().map(move |kind| (ground, kind)));
    grounds
        .filter_map(|(ground, kind)| chart(report, ground, kind).transpose())
        .collect()
}

/// `None` without measures of the kind.
fn chart(report: &Report, ground: Ground, kind: &Kind) -> Result<Option<Chart>> {
    let series = report
        .series_on(ground)
        .filter(|series| kind.units.contains(&series.measure.unit));
    let groups: Vec<Group> = series
        .map(|series| group(report, series, kind))
        .filter(|group| !group.bars.is_empty())
        .collect();
    if groups.is_empty() {
        return Ok(None);
    }
    let title = format!("{}, {ground}", kind.name);
    Ok(Some(Chart {
        svg: bars::draw(&title, &groups, &frame(&groups, kind))?,
        about: kind.about.to_owned(),
        title,
    }))
}

/// The axis on which all of them are.
fn frame(groups: &[Group], kind: &Kind) -> Frame {
    let bars = groups.iter().flat_map(|group| &group.bars);
    let spreads = bars.clone().filter_map(|bar| bar.spread);
    let ends = spreads.flat_map(|(min, max)| [min, max]);
    let mut figures: Vec<f64> = bars.map(|bar| bar.figure).chain(ends).collect();
    let (from, mark) = match kind.scale {
        Scale::LogRatio => (1.0, 1.0),
        Scale::Ratio => (0.0, 1.0),
        Scale::Absolute => (0.0, 0.0),
    };
    figures.push(mark);
    let axis = match kind.scale {
        Scale::LogRatio => Axis::log("", &figures, number),
        Scale::Ratio | Scale::Absolute => Axis::linear("", &figures, number),
    };
    Frame { axis, from, mark }
}

fn group(report: &Report, series: &Series, kind: &Kind) -> Group {
    let modes = report.modes_on(series.ground).map(|mode| mode.name.as_str());
    Group {
        name: series.measure.name.clone(),
        bars: modes.filter_map(|mode| bar(report, series, mode, kind)).collect(),
    }
}

/// `None` where a mode has no such figure; direct TCP has no ratio to itself.
fn bar(report: &Report, series: &Series, mode: &str, kind: &Kind) -> Option<Bar> {
    let median = series.median(mode)?;
    let shown = series.measure.unit.show(median);
    let (figure, spread, label) = match kind.scale {
        Scale::Absolute => (median, None, shown),
        Scale::Ratio | Scale::LogRatio if mode == BASELINE => return None,
        Scale::Ratio | Scale::LogRatio => {
            let ratio = series.ratio(mode)?;
            (
                ratio.median,
                Some((ratio.min, ratio.max)),
                format!("{}x ({shown})", times(ratio.median)),
            )
        }
    };
    Some(Bar {
        mode: mode.to_owned(),
        look: Look::of(report, mode),
        figure,
        spread,
        label,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn bars_are_of_ratios_or_of_what_was_measured() {
        let report = sample::report();
        let [latency, throughput, processor, memory] = &KINDS;
        let bars = |series: &Series, kind| group(&report, series, kind).bars;
        let p50 = bars(&report.series[0], latency);
        let modes: Vec<_> = p50.iter().map(|bar| bar.mode.as_str()).collect();
        assert_eq!(
            modes,
            ["envoy L4", "envoy L7", "envoy L7 h1", "envoy L7 log", "weft"]
        );
        assert_eq!(p50[4].label, "2.70x (57.1 µs)");
        assert!(
            bars(&report.series[6], throughput)
                .iter()
                .all(|bar| bar.figure < 1.0)
        );
        assert_eq!(bars(&report.series[11], processor)[0].label, "1.90 CPU s");
        assert_eq!(bars(&report.series[13], memory).len(), 5);
    }

    #[test]
    fn a_chart_has_all_measures_of_its_kind_and_all_modes() {
        let report = sample::report();
        let charts = charts(&report).unwrap();
        let titles: Vec<_> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(
            titles[..2],
            ["latency to none, two nodes", "throughput to none, two nodes"]
        );
        assert_eq!(charts.len(), 6, "{titles:?}");
        assert_eq!(charts[0].svg.matches("\nenvoy L7 h1\n").count(), 6);
        assert!(charts[1].svg.contains("\nbulk, 8 streams\n"));
    }

    #[test]
    fn zeros_are_shown_and_nothing_is_left_out() {
        let charts = charts(&sample::hollow()).unwrap();
        let titles: Vec<_> = charts.iter().map(|chart| chart.title.as_str()).collect();
        assert_eq!(titles, ["processor time, two nodes", "memory, two nodes"]);
        assert!(
            charts
                .iter()
                .all(|chart| !chart.svg.contains("NaN") && chart.svg.contains("envoy L4"))
        );
    }
}
