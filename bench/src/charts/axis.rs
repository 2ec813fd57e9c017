//! Axes: where on a chart a figure is, and what is written beside the grid's lines. Pure.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::figures::Unit;

/// One of them.
#[derive(Clone)]
pub(super) struct Axis {
    pub(super) title: String,
    /// From end to end, in places.
    pub(super) range: Range<f64>,
    /// Lines of the grid: their place and what is written beside.
    pub(super) ticks: Vec<(f64, String)>,
    scale: Scale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Linear,
    Log,
    /// Of shares: each nine takes as much room as the one before.
    Nines,
    /// Logarithmic, but with room for zero.
    Sizes,
}

impl Scale {
    fn place(self, figure: f64) -> f64 {
        match self {
            Self::Linear => figure,
            Self::Log => figure.log10(),
            Self::Nines => -(1.0 - figure).log10(),
            Self::Sizes => (1.0 + figure).log10(),
        }
    }
}

/// Beyond this many times the least figure, the largest needs a logarithmic axis.
const WIDE: f64 = 20.0;

impl Axis {
    /// A figure's place. `None` for one that the axis does not have, such as zero on a logarithmic one.
    pub(super) fn place(&self, figure: f64) -> Option<f64> {
        Some(self.scale.place(figure)).filter(|place| place.is_finite())
    }

    /// From zero up.
    pub(super) fn linear(title: &str, figures: &[f64], label: impl Fn(f64) -> String) -> Self {
        let max = figures
            .iter()
            .copied()
            .filter(|figure| figure.is_finite())
            .fold(0.0, f64::max);
        let step = step(max / 5.0);
        let steps = ((max / step).ceil() as u32).max(1);
        Self {
            title: title.to_owned(),
            range: 0.0..f64::from(steps) * step,
            ticks: (0..=steps)
                .map(|count| f64::from(count) * step)
                .map(|at| (at, label(at)))
                .collect(),
            scale: Scale::Linear,
        }
    }

    /// From a round figure below all to one above.
    pub(super) fn log(title: &str, figures: &[f64], label: impl Fn(f64) -> String) -> Self {
        let places: Vec<f64> = figures
            .iter()
            .map(|figure| figure.log10())
            .filter(|place| place.is_finite())
            .collect();
        let first = places.iter().copied().reduce(f64::min).unwrap_or(0.0);
        let last = places.iter().copied().reduce(f64::max).unwrap_or(0.0);
        let figures = round_figures(first, last);
        let ticks: Vec<(f64, String)> = figures
            .into_iter()
            .map(|figure| (figure.log10(), label(figure)))
            .collect();
        let ends = ticks.first().zip(ticks.last());
        Self {
            title: title.to_owned(),
            range: ends.map_or(0.0..1.0, |(first, last)| first.0..last.0),
            ticks,
            scale: Scale::Log,
        }
    }

    /// Whichever shows all figures.
    pub(super) fn fit(title: &str, figures: &[f64], label: impl Fn(f64) -> String) -> Self {
        let positive = || figures.iter().copied().filter(|figure| *figure > 0.0);
        let (min, max) = (positive().reduce(f64::min), positive().reduce(f64::max));
        match min.zip(max) {
            Some((min, max)) if max > WIDE * min => Self::log(title, figures, label),
            _ => Self::linear(title, figures, label),
        }
    }

    /// Shares of all that happened, up to the last in a thousand.
    pub(super) fn shares() -> Self {
        let ticks = [(0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %")];
        Self {
            title: "share that took no longer".to_owned(),
            range: 0.0..3.05,
            ticks: ticks
                .map(|(share, label)| (Scale::Nines.place(share), label.to_owned()))
                .to_vec(),
            scale: Scale::Nines,
        }
    }

    /// Sizes of a growth: each has its line.
    pub(super) fn sizes(title: &str, sizes: &[u64]) -> Self {
        let place = |size: u64| Scale::Sizes.place(size as f64);
        let first = sizes.iter().copied().min().map_or(0.0, place);
        let last = sizes.iter().copied().max().map_or(1.0, place);
        Self {
            title: title.to_owned(),
            range: first - 0.1..last + 0.1,
            ticks: sizes
                .iter()
                .map(|size| (place(*size), size.to_string()))
                .collect(),
            scale: Scale::Sizes,
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (place - self.range.start) / (self.range.end - self.range.start);
        first + (f64::from(last - first) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|(place, _)| *place).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        number(*value)
    }

    /// What is written beside a line of the grid.
    fn format_ext(&self, place: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| (tick - place).abs() < 1e-9);
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|times| times * power);
    steps
        .into_iter()
        .find(|step| *step >= least * 0.999)
        .unwrap_or(power)
}

/// From one below all to one above; over many powers of ten, powers only.
fn round_figures(first: f64, last: f64) -> Vec<f64> {
    let times: &[f64] = if last - first > 3.0 {
        &[1.0]
    } else {
        &[1.0, 2.0, 5.0]
    };
    let powers = first.floor() as i32 - 1..=last.ceil() as i32 + 1;
    let figures: Vec<f64> = powers
        .flat_map(|power| times.iter().map(move |times| times * 10f64.powi(power)))
        .collect();
    let below = figures
        .iter()
        .rposition(|figure| figure.log10() < first + 1e-9)
        .unwrap_or(0);
    let above = figures
        .iter()
        .position(|figure| figure.log10() > last - 1e-9 && figure.log10() > first);
    figures
        .into_iter()
        .take(above.map_or(usize::MAX, |above| above.max(below + 1) + 1))
        .skip(below)
        .collect()
}

/// What an axis of a unit is called, unless the unit is written beside each figure.
pub(super) fn title(unit: Unit) -> &'static str {
    match unit {
        Unit::Micros | Unit::Millis => "time",
        Unit::PerSecond => "per second",
        Unit::Gbits => "Gbit/s",
        Unit::CpuSeconds => "CPU s",
        Unit::Times => "times",
        Unit::Mebibytes => "MiB",
        Unit::Count => "count",
    }
}

/// A round figure of a unit, beside a line of the grid.
pub(super) fn label(unit: Unit, figure: f64) -> String {
    match (unit, figure) {
        (Unit::Micros, 1e6..) => format!("{} s", number(figure / 1e6)),
        (Unit::Micros, 1e3..) => format!("{} ms", number(figure / 1e3)),
        (Unit::Micros, _) => format!("{} µs", number(figure)),
        (Unit::Millis, _) => format!("{} ms", number(figure)),
        _ => number(figure),
    }
}

/// Without noughts that say nothing.
pub(super) fn number(figure: f64) -> String {
    let text = format!("{figure:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, label)| label.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_ends_above_all() {
        assert_eq!(
            labels(&Axis::linear("", &[0.3, 0.9], number)),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(labels(&Axis::linear("", &[50.0], number)).last(), Some(&"50"));
        for none in [&[][..], &[0.0], &[f64::NAN]] {
            assert_eq!(Axis::linear("", none, number).range, 0.0..1.0);
        }
    }

    #[test]
    fn a_log_axis_is_between_round_figures() {
        let micros = |figure| label(Unit::Micros, figure);
        assert_eq!(
            labels(&Axis::log("", &[30.0, 900.0], micros)),
            ["20 µs", "50 µs", "100 µs", "200 µs", "500 µs", "1 ms"]
        );
        assert_eq!(labels(&Axis::log("", &[1.0, 9.9], number)), ["1", "2", "5", "10"]);
        assert_eq!(
            labels(&Axis::log("", &[0.9, 1.1e5], number)),
            ["0.1", "1", "10", "100", "1000", "10000", "100000", "1000000"]
        );
        for few in [&[][..], &[0.0], &[1.0], &[1.0, 1.0], &[f64::NAN]] {
            assert_eq!(labels(&Axis::log("", few, number)), ["1", "2"], "{few:?}");
        }
    }

    #[test]
    fn figures_have_places_or_none() {
        let log = Axis::log("", &[1.0, 100.0], number);
        assert_eq!(
            (log.place(100.0), log.place(0.0), log.place(f64::NAN)),
            (Some(2.0), None, None)
        );
        let shares = Axis::shares();
        assert!((shares.place(0.99).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(
            (shares.place(1.0), shares.format_ext(&shares.place(0.9).unwrap())),
            (None, "90 %".to_owned())
        );
        assert_eq!(Axis::sizes("", &[0, 10]).place(0.0), Some(0.0));
    }

    #[test]
    fn an_axis_is_logarithmic_where_it_must_be() {
        assert_eq!(Axis::fit("", &[0.0, 1.0, 19.0], number).scale, Scale::Linear);
        assert_eq!(Axis::fit("", &[1.0, 21.0], number).scale, Scale::Log);
    }
}
