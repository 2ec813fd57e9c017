//! What is measured and what the rounds said: medians, ratios and their spread. Pure.

use std::fmt;

use serde::Serialize;

/// A spread of the ratio beyond this share of its median makes a measure noisy.
const NOISY: f64 = 0.25;

/// As wide as the longest name of a measure.
pub(crate) const WIDTH: usize = 52;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    /// Time: less is better.
    #[serde(rename = "µs")]
    Micros,
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
}

impl Unit {
    /// A figure as people read it.
    pub(crate) fn show(self, figure: f64) -> String {
        match self {
            Self::Micros => format!("{figure:.1} µs"),
            Self::PerSecond => format!("{figure:.0} /s"),
            Self::Gbits => format!("{figure:.2} Gbit/s"),
            Self::CpuSeconds => format!("{figure:.2} CPU s"),
            Self::Times => format!("{figure:.2} x"),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measure {
    /// What a person calls it.
    pub(crate) name: String,
    /// What its figures count.
    pub(crate) unit: Unit,
    /// Whether direct TCP has it too.
    #[serde(skip)]
    pub(crate) compared: bool,
}

/// What every round measured.
#[derive(Debug, Serialize)]
pub(crate) struct Series {
    #[serde(flatten)]
    pub(crate) measure: Measure,
    /// Round by round.
    pub(crate) direct: Vec<f64>,
    /// In the same rounds.
    pub(crate) weft: Vec<f64>,
    /// Rounds that failed.
    pub(crate) failures: usize,
}

/// A ratio of weft to direct TCP over all rounds.
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
        write!(f, "{:.2}x ({:.2}..{:.2})", self.median, self.min, self.max)
    }
}

impl Series {
    /// No round yet.
    pub(crate) fn new(measure: Measure) -> Self {
        Self {
            measure,
            direct: Vec::new(),
            weft: Vec::new(),
            failures: 0,
        }
    }

    /// Takes a round's figures, and tells them.
    pub(crate) fn add(&mut self, (direct, weft): (f64, f64)) -> String {
        self.weft.push(weft);
        if self.measure.compared {
            self.direct.push(direct);
        }
        let (unit, compared) = (self.measure.unit, self.measure.compared);
        let told = |text: String| if compared { text } else { String::new() };
        format!(
            "{:<WIDTH$} {:>15} {:>15}  {:>6}",
            self.measure.name,
            told(unit.show(direct)),
            unit.show(weft),
            told(format!("{:.2}x", weft / direct))
        )
    }

    /// The median of the rounds, as people read it, of direct TCP and of weft.
    pub(crate) fn medians(&self) -> [String; 2] {
        [&self.direct, &self.weft].map(|figures| {
            median(figures).map_or_else(|| "-".to_owned(), |median| self.measure.unit.show(median))
        })
    }

    /// The ratio, of each round for itself: a round's two halves have met the same disturbances. `None` without rounds.
    pub(crate) fn ratio(&self) -> Option<Ratio> {
        let mut ratios: Vec<_> = self
            .direct
            .iter()
            .zip(&self.weft)
            .map(|(direct, weft)| weft / direct)
            .collect();
        ratios.sort_by(f64::total_cmp);
        Some(Ratio {
            median: quantile(&ratios, 0.5)?,
            min: *ratios.first()?,
            max: *ratios.last()?,
        })
    }
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
        let measure = Measure {
            name: "x".into(),
            unit: Unit::Micros,
            compared: true,
        };
        Series {
            direct: direct.to_vec(),
            weft: weft.to_vec(),
            ..Series::new(measure)
        }
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
        let ratio = series(&[10.0, 20.0, 10.0], &[40.0, 80.0, 42.0]).ratio().unwrap();
        assert!((ratio.median - 4.0).abs() < 1e-9 && (ratio.max - 4.2).abs() < 1e-9);
        assert!(!ratio.noisy());
        assert!(series(&[10.0, 10.0], &[10.0, 40.0]).ratio().unwrap().noisy());
        assert_eq!(series(&[], &[]).ratio(), None);
    }
}
