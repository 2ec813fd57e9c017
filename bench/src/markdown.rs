//! The report as Markdown, for a page that people read: pasted there, never typed.

use std::fmt;

use crate::{figures::Series, report::Report};

/// Prints the report's table, and below it what the figures depend on.
pub(crate) struct Markdown<'a>(pub(crate) &'a Report);

impl fmt::Display for Markdown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let rounds = report.rounds();
        writeln!(f, "| | direct TCP | weft | ratio (min..max of {rounds} rounds) |")?;
        writeln!(f, "|---|---|---|---|")?;
        for series in &report.series {
            writeln!(f, "{}", row(series))?;
        }
        for (when, [a, b]) in report.memory.rows() {
            writeln!(f, "| memory of agent a, of agent b, {when} | - | {a}, {b} | |")?;
        }
        write!(f, "\n{}; {} s.", report.machine, report.seconds)?;
        for caveat in report.caveats() {
            write!(f, " {caveat}.")?;
        }
        Ok(())
    }
}

fn row(series: &Series) -> String {
    let [direct, weft] = series.medians();
    let name = series.measure.name.trim();
    let ratio = series.ratio().map_or_else(String::new, |ratio| {
        format!("{:.2} ({:.2}..{:.2})", ratio.median, ratio.min, ratio.max)
    });
    let failed = match series.failures {
        0 => String::new(),
        failures => format!(" FAILED in {failures} rounds"),
    };
    format!("| {name} | {direct} | {weft} | {ratio}{failed} |")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Measure, Unit};

    #[test]
    fn a_measure_is_a_row_of_four_cells() {
        let measure = Measure {
            name: "bulk, 1 stream".to_owned(),
            unit: Unit::Gbits,
            compared: true,
        };
        let mut compared = Series::new(measure.clone());
        compared.add((20.0, 5.0));
        assert_eq!(
            row(&compared),
            "| bulk, 1 stream | 20.00 Gbit/s | 5.00 Gbit/s | 0.25 (0.25..0.25) |"
        );
        let mut alone = Series::new(Measure {
            compared: false,
            ..measure
        });
        alone.add((0.0, 5.0));
        alone.failures = 2;
        assert_eq!(
            row(&alone),
            "| bulk, 1 stream | - | 5.00 Gbit/s |  FAILED in 2 rounds |"
        );
    }
}
