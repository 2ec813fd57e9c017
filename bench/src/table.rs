//! The report as a table for the terminal.

use std::fmt;

use crate::{
    figures::{BASELINE, Ground, Series},
    report::{Growth, Report},
};

/// Columns of a terminal that a table may take.
const WIDTH: usize = 160;

/// Room for a ratio behind a figure: a blank, the ratio, and the mark of a noisy one.
const RATIO_WIDTH: usize = 7;

/// The lines of a table: the first has the heads of its columns.
pub(crate) type Rows = Vec<Vec<String>>;

/// Both of them, in the order in which they are shown.
pub(crate) const GROUNDS: [Ground; 2] = [Ground::TwoNodes, Ground::OneNode];

/// What all tables of figures say of themselves.
pub(crate) const EXPLAIN: &str = "medians of all rounds; ratios (x) are to `none` of the same round; \
    smaller is better for times, CPU and memory, larger for rates (/s, Gbit/s)";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        for ground in GROUNDS {
            self.ground(f, ground)?;
        }
        for growth in &self.growth {
            writeln!(f, "\nby {}", growth.of)?;
            print(f, growth_rows(growth), 2)?;
        }
        list(f, "FAILED", &self.failures)?;
        list(f, "SKIPPED", &self.skipped)?;
        list(f, "before you believe it", &self.caveats())?;
        write!(f, "\n{} rounds, {} s", self.rounds, self.seconds)
    }
}

impl Report {
    fn ground(&self, f: &mut fmt::Formatter<'_>, ground: Ground) -> fmt::Result {
        let rows = self.rows(ground);
        if rows.len() < 2 {
            return Ok(());
        }
        writeln!(f, "\n{ground}")?;
        print(f, rows, 2)?;
        writeln!(f, "({EXPLAIN}; ~ noisy)")?;
        let modes = self.modes_on(ground);
        let about: Rows = modes
            .map(|mode| vec![format!("  {}", mode.name), format!("  {}", mode.about)])
            .collect();
        let longest = about.iter().map(|row| width(&row[0])).max().unwrap_or(0);
        about
            .iter()
            .try_for_each(|row| writeln!(f, "{}{}", left(&row[0], longest), row[1]))
    }

    fn rows(&self, ground: Ground) -> Rows {
        let head = self.modes_on(ground).map(|mode| match mode.name.as_str() {
            BASELINE => BASELINE.to_owned(),
            other => format!("{other} "),
        });
        let mut rows = vec![[String::new()].into_iter().chain(head).collect()];
        for series in self.series_on(ground) {
            let cells = self.modes_on(ground).map(|mode| cell(series, &mode.name));
            rows.push([series.measure.name.clone()].into_iter().chain(cells).collect());
        }
        rows
    }
}

/// A mode's median, and its ratio where it has one.
fn cell(series: &Series, mode: &str) -> String {
    let figure = shown(series, mode);
    if mode == BASELINE {
        return figure;
    }
    let Some(ratio) = series.ratio(mode) else {
        return format!("{figure}{:RATIO_WIDTH$}", "");
    };
    let noisy = if ratio.noisy() { '~' } else { ' ' };
    format!("{figure} {:>4}x{noisy}", times(ratio.median))
}

/// A mode's median as people read it; `-` where there is none.
pub(crate) fn shown(series: &Series, mode: &str) -> String {
    let median = series.median(mode);
    median.map_or_else(|| "-".to_owned(), |median| series.measure.unit.show(median))
}

/// A ratio in as few digits as say something.
pub(crate) fn times(ratio: f64) -> String {
    match ratio {
        100.0.. => format!("{ratio:.0}"),
        10.0.. => format!("{ratio:.1}"),
        _ => format!("{ratio:.2}"),
    }
}

/// One line for each thing that was measured of a mode, one column for each size.
pub(crate) fn growth_rows(growth: &Growth) -> Rows {
    let sizes = growth.sizes.iter().map(u64::to_string);
    let head = [String::new(), "mode".to_owned()].into_iter().chain(sizes);
    let lines = growth.lines.iter().map(|line| {
        let figures = (0..growth.sizes.len()).map(|index| {
            let figure = line.figures.get(index).copied().flatten();
            figure.map_or_else(|| "-".to_owned(), |figure| line.measure.unit.show(figure))
        });
        [line.measure.name.clone(), line.mode.clone()]
            .into_iter()
            .chain(figures)
            .collect()
    });
    [head.collect()].into_iter().chain(lines).collect()
}

fn list(f: &mut fmt::Formatter<'_>, what: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{what}:")?;
    lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
}

/// Prints rows one below the other. A table too wide for the terminal is printed in parts, each with the first `keep` columns.
fn print(f: &mut fmt::Formatter<'_>, rows: Rows, keep: usize) -> fmt::Result {
    for (index, part) in parts(&rows, keep).iter().enumerate() {
        if index > 0 {
            writeln!(f)?;
        }
        write!(f, "{}", aligned(part))?;
    }
    Ok(())
}

fn parts(rows: &Rows, keep: usize) -> Vec<Rows> {
    let widths: Vec<usize> = widths(rows).iter().map(|width| width + 2).collect();
    let kept: usize = widths.iter().take(keep).sum();
    let (mut parts, mut used): (Vec<Vec<usize>>, usize) = (vec![Vec::new()], kept);
    for (column, width) in widths.iter().enumerate().skip(keep) {
        if used + width > WIDTH && used > kept {
            parts.push(Vec::new());
            used = kept;
        }
        used += width;
        parts.last_mut().into_iter().for_each(|part| part.push(column));
    }
    parts.into_iter().map(|part| pick(rows, keep, &part)).collect()
}

fn pick(rows: &Rows, keep: usize, columns: &[usize]) -> Rows {
    let pick = |row: &Vec<String>| {
        (0..keep)
            .chain(columns.iter().copied())
            .filter_map(|at| row.get(at).cloned())
            .collect()
    };
    rows.iter().map(pick).collect()
}

/// Rows as lines of text: the first column to the left, all others to the right.
pub(crate) fn aligned(rows: &Rows) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<_> = cells
            .map(|(column, (cell, width))| {
                if column == 0 {
                    left(cell, *width)
                } else {
                    right(cell, *width)
                }
            })
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn widths(rows: &Rows) -> Vec<usize> {
    let mut widths = Vec::new();
    for row in rows {
        widths.resize(row.len().max(widths.len()), 0);
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = width(cell).max(*widest);
        }
    }
    widths
}

/// In characters: `µ` is two bytes, and one column.
fn width(text: &str) -> usize {
    text.chars().count()
}

fn left(text: &str, to: usize) -> String {
    format!("{text}{:1$}", "", to.saturating_sub(width(text)))
}

fn right(text: &str, to: usize) -> String {
    format!("{:1$}{text}", "", to.saturating_sub(width(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_mode_has_its_median_and_its_ratio() {
        let report = sample::report();
        let p50 = &report.series[0];
        assert_eq!(cell(p50, BASELINE), "21.1 µs");
        assert_eq!(cell(p50, "envoy L4"), "90.0 µs 4.26x ");
        let beside = report
            .series
            .iter()
            .find(|series| series.measure.name.ends_with("bulk, p99"))
            .unwrap();
        assert!(cell(beside, "weft").ends_with("x~"), "{}", cell(beside, "weft"));
        assert_eq!(cell(p50, "another").trim_end(), "-");
        assert_eq!((times(5.061).as_str(), times(123.4).as_str()), ("5.06", "123"));
    }

    #[test]
    fn ratios_stand_below_each_other_and_the_table_fits() {
        let text = sample::report().to_string();
        assert!(text.lines().all(|line| width(line) <= WIDTH), "{text}");
        let ends = |line: &str| {
            let chars: Vec<char> = line.trim_end_matches('~').chars().collect();
            let is_end = |at: &usize| chars[*at] == 'x' && chars[at - 1].is_ascii_digit();
            (1..chars.len()).filter(is_end).collect::<Vec<_>>()
        };
        let micros = text
            .lines()
            .filter(|line| line.starts_with("ping-pong 64 B, one core"));
        let ends: Vec<_> = micros.map(ends).collect();
        assert_eq!((ends.len(), ends[0].len()), (2, 5), "{text}");
        assert_eq!(ends[0], ends[1], "{text}");
    }

    #[test]
    fn columns_are_counted_in_characters() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        assert_eq!(
            aligned(&vec![row(["a", "1 µs"]), row(["bcd", "10 ms"])]),
            "a     1 µs\nbcd  10 ms\n"
        );
    }

    #[test]
    fn a_table_too_wide_is_printed_in_parts() {
        let mut report = sample::report();
        let weft = report.modes[5].clone();
        for index in 0..9 {
            report.modes.push(crate::report::ModeInfo {
                name: format!("another rival {index}"),
                ..weft.clone()
            });
        }
        let text = report.to_string();
        assert!(text.lines().all(|line| width(line) <= WIDTH), "{text}");
        assert!(text.contains("another rival 8"));
        assert!(text.matches("\nconnections, one at a time").count() > 2, "{text}");
    }

    #[test]
    fn everything_a_reader_must_know_is_there() {
        let text = sample::report().to_string();
        for part in [
            "iperf3 took too long",
            "h2load is not installed",
            "noisy: in 2 of",
            "5 rounds, 1834 s",
            "plain TCP",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(
            text.contains("by workloads in the mesh") && text.contains("10000"),
            "{text}"
        );
    }

    #[test]
    fn an_empty_or_hollow_report_is_shown() {
        let text = sample::empty().to_string();
        assert!(
            text.ends_with("5 rounds, 1834 s") && !text.contains("two nodes"),
            "{text}"
        );
        let text = sample::hollow().to_string();
        assert!(
            text.contains("0.0 µs") && !text.contains("NaN") && !text.contains("inf"),
            "{text}"
        );
    }
}
