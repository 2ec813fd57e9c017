//! What is measured and what the rounds said: medians, ratios and their spread. Pure.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A spread of the ratio beyond this share of its median makes a measure noisy.
const NOISY: f64 = 0.25;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Time: less is better.
    #[serde(rename = "µs")]
    Micros,
    /// Time: less is better.
    #[serde(rename = "ms")]
    Millis,
    /// A rate: more is better.
    #[serde(rename = "1/s")]
    PerSecond,
    /// A rate: more is better.
    #[serde(rename = "Gbit/s")]
    Gbits,
    /// Time of one core: less is better.
    #[serde(rename = "CPU s")]
    CpuSeconds,
    /// How many times another figure it is: less is better.
    #[serde(rename = "x")]
    Times,
    /// Memory: less is better.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Things, such as sockets: fewer are better.
    #[serde(rename = "count")]
    Count,
}

impl Unit {
    /// A figure as people read it.
    pub(crate) fn show(self, figure: f64) -> String {
        match self {
            Self::Micros if figure >= 10_000.0 => format!("{:.1} ms", figure / 1e3),
            Self::Micros => format!("{figure:.1} µs"),
            Self::Millis => format!("{figure:.0} ms"),
            Self::PerSecond => format!("{figure:.0} /s"),
            Self::Gbits => format!("{figure:.2} Gbit/s"),
            Self::CpuSeconds => format!("{figure:.2} CPU s"),
            Self::Times => format!("{figure:.2} x"),
            Self::Mebibytes => format!("{figure:.1} MiB"),
            Self::Count => format!("{figure:.1}"),
        }
    }

    /// Whether a larger figure is a better one.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::Gbits)
    }
}

/// Where the two pods of a pair are. Ratios are to direct TCP on the same ground.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Ground {
    #[serde(rename = "two nodes")]
    TwoNodes,
    #[serde(rename = "one node")]
    OneNode,
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TwoNodes => "two nodes",
            Self::OneNode => "one node",
        })
    }
}

/// The mode that every other is compared with.
pub(crate) const BASELINE: &str = "none";

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    /// What a person calls it.
    pub(crate) name: String,
    /// What its figures count.
    pub(crate) unit: Unit,
}

impl Measure {
    pub(crate) fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self {
            name: name.into(),
            unit,
        }
    }
}

/// What every round measured, by mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    #[serde(flatten)]
    pub(crate) measure: Measure,
    pub(crate) ground: Ground,
    /// Of each mode, round by round. `None` in a round that failed, and where a mode has no such figure.
    pub(crate) figures: BTreeMap<String, Vec<Option<f64>>>,
}

/// A ratio to direct TCP over all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Ratio {
    /// Whether the rounds agree so little that the median says little.
    pub(crate) fn noisy(&self) -> bool {
        self.max - self.min > NOISY * self.median
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}..{:.2})", self.median, self.min, self.max)
    }
}

impl Series {
    /// No round yet.
    pub(crate) fn new(measure: Measure, ground: Ground) -> Self {
        Self {
            measure,
            ground,
            figures: BTreeMap::new(),
        }
    }

    /// Takes a round's figure of a mode.
    pub(crate) fn add(&mut self, mode: &str, figure: Option<f64>) {
        self.figures.entry(mode.to_owned()).or_default().push(figure);
    }

    /// The median of a mode's rounds. `None` without any.
    pub(crate) fn median(&self, mode: &str) -> Option<f64> {
        let figures: Vec<f64> = self.figures.get(mode)?.iter().flatten().copied().collect();
        median(&figures)
    }

    /// A mode's ratio to direct TCP, of each round for itself: all modes of a round have met the same disturbances. `None`
    /// without rounds in which both have a figure.
    pub(crate) fn ratio(&self, mode: &str) -> Option<Ratio> {
        let (base, figures) = (self.figures.get(BASELINE)?, self.figures.get(mode)?);
        let mut ratios: Vec<f64> = base
            .iter()
            .zip(figures)
            .filter_map(|(base, figure)| Some((*figure)? / (*base)?))
            .filter(|ratio| ratio.is_finite())
            .collect();
        ratios.sort_by(f64::total_cmp);
        Some(Ratio {
            median: quantile(&ratios, 0.5)?,
            min: *ratios.first()?,
            max: *ratios.last()?,
        })
    }

    /// Whether some mode's rounds agree too little.
    pub(crate) fn noisy(&self) -> bool {
        let mut others = self.figures.keys().filter(|mode| *mode != BASELINE);
        others.any(|mode| self.ratio(mode).is_some_and(|ratio| ratio.noisy()))
    }
}

/// How long something took in one mode, from the shortest to the longest: the share of all below, and the time in µs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Curve {
    /// The load, as in the names of measures.
    pub(crate) load: String,
    pub(crate) ground: Ground,
    pub(crate) mode: String,
    /// By share, rising.
    pub(crate) points: Vec<(f64, f64)>,
}

/// The shares of a [`Curve`].
pub(crate) const SHARES: [f64; 13] = [
    0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0,
];

/// The time at one of the [`SHARES`]. `None` where the program that measured does not tell.
pub(crate) fn at(times: &[(f64, f64)], share: f64) -> Option<f64> {
    let found = times.iter().find(|(other, _)| (other - share).abs() < 1e-9);
    found.map(|(_, time)| *time)
}

/// The median of figures in any order.
pub(crate) fn median(figures: &[f64]) -> Option<f64> {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    quantile(&figures, 0.5)
}

/// The value below which this share of the sorted values lies; of an even number, the upper of two medians.
pub(crate) fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let index = (sorted.len() as f64 * share) as usize;
    sorted.get(index).or(sorted.last()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(direct: &[f64], weft: &[f64]) -> Series {
        let mut series = Series::new(Measure::new("x", Unit::Micros), Ground::TwoNodes);
        direct
            .iter()
            .for_each(|figure| series.add(BASELINE, Some(*figure)));
        weft.iter().for_each(|figure| series.add("weft", Some(*figure)));
        series
    }

    #[test]
    fn quantiles_are_of_the_sorted_values() {
        let values: Vec<u32> = (0..100).collect();
        assert_eq!(quantile(&values, 0.5), Some(50));
        assert_eq!(quantile(&values, 0.99), Some(99));
        assert_eq!(quantile(&values, 1.0), Some(99));
        assert_eq!(quantile::<u32>(&[], 0.5), None);
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine was twice as slow in the second round: the ratio does not see it.
        let same = series(&[10.0, 20.0, 10.0], &[40.0, 80.0, 42.0]);
        let ratio = same.ratio("weft").unwrap();
        assert!((ratio.median - 4.0).abs() < 1e-9 && (ratio.max - 4.2).abs() < 1e-9);
        assert!(!ratio.noisy() && !same.noisy());
        assert!(series(&[10.0, 10.0], &[10.0, 40.0]).noisy());
        assert_eq!(series(&[], &[]).ratio("weft"), None);
        assert_eq!(same.ratio("another"), None);
    }

    #[test]
    fn a_round_that_failed_is_left_out_on_both_sides() {
        let mut series = series(&[10.0], &[20.0]);
        series.add(BASELINE, None);
        series.add("weft", Some(1000.0));
        series.add(BASELINE, Some(10.0));
        series.add("weft", Some(30.0));
        let ratio = series.ratio("weft").unwrap();
        assert!((ratio.min - 2.0).abs() < 1e-9 && (ratio.max - 3.0).abs() < 1e-9);
        assert_eq!(series.median("weft"), Some(30.0));
    }
}
