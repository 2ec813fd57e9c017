//! The report as Markdown, for a page that people read: pasted there, never typed.

use std::fmt;

use crate::{
    figures::{BASELINE, Ground, Series},
    report::Report,
    table::{EXPLAIN, GROUNDS, Rows, growth_rows, shown, times},
};

/// Prints the report's tables, and below them what the figures depend on.
pub(crate) struct Markdown<'a>(pub(crate) &'a Report);

impl fmt::Display for Markdown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        for ground in GROUNDS {
            self.ground(f, ground)?;
        }
        for growth in &report.growth {
            writeln!(f, "By {}:\n\n{}", text(&growth.of), table(&growth_rows(growth)))?;
        }
        list(f, "Caveats", &report.caveats())?;
        list(f, "Failed", &report.failures)?;
        list(f, "Skipped", &report.skipped)?;
        let (machine, command) = (text(&report.machine.to_string()), code(&report.command));
        write!(
            f,
            "{machine}; {} rounds, {} s: {command}",
            report.rounds, report.seconds
        )
    }
}

impl Markdown<'_> {
    fn ground(&self, f: &mut fmt::Formatter<'_>, ground: Ground) -> fmt::Result {
        let modes: Vec<_> = self.0.modes_on(ground).collect();
        let head = modes.iter().map(|mode| mode.name.clone());
        let mut rows: Rows = vec![[ground.to_string()].into_iter().chain(head).collect()];
        for series in self.0.series_on(ground) {
            let cells = modes.iter().map(|mode| cell(series, &mode.name));
            rows.push([series.measure.name.clone()].into_iter().chain(cells).collect());
        }
        if rows.len() < 2 {
            return Ok(());
        }
        writeln!(
            f,
            "{}\n{EXPLAIN}; in parentheses the least and the largest of the rounds.\n",
            table(&rows)
        )?;
        for mode in modes {
            writeln!(f, "- **{}**: {}", text(&mode.name), text(&mode.about))?;
        }
        writeln!(f)
    }
}

/// A mode's median, its ratio where it has one, and the spread of that.
fn cell(series: &Series, mode: &str) -> String {
    let figure = shown(series, mode);
    match series.ratio(mode) {
        Some(ratio) if mode != BASELINE => {
            let [median, min, max] = [ratio.median, ratio.min, ratio.max].map(times);
            let noisy = if ratio.noisy() { "\\~" } else { "" };
            format!("{figure}, **{median}**{noisy} ({min}..{max})")
        }
        _ => figure,
    }
}

/// Rows as a table; all but the first column to the right.
fn table(rows: &Rows) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let rule = format!("|---|{}\n", "---:|".repeat(columns.saturating_sub(1)));
    let mut lines = rows.iter().map(|row| {
        let cells: Vec<_> = row.iter().map(|cell| text(cell)).collect();
        format!("| {} |\n", cells.join(" | "))
    });
    let head = lines.next().unwrap_or_default();
    [head, rule].into_iter().chain(lines).collect()
}

fn list(f: &mut fmt::Formatter<'_>, what: &str, lines: &[String]) -> fmt::Result {
    if lines.is_empty() {
        return Ok(());
    }
    writeln!(f, "{what}:\n")?;
    lines
        .iter()
        .try_for_each(|line| writeln!(f, "- {}", text(line)))?;
    writeln!(f)
}

/// Text that neither ends a cell nor begins a tag.
fn text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('|', "\\|")
        .replace('\n', " ")
}

/// A command as code, whatever quotes are in it.
fn code(command: &str) -> String {
    let fence = if command.contains('`') { "``" } else { "`" };
    let space = if command.contains('`') { " " } else { "" };
    format!("{fence}{space}{command}{space}{fence}").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_cell_has_median_ratio_and_spread() {
        let report = sample::report();
        assert_eq!(cell(&report.series[0], BASELINE), "21.1 µs");
        assert_eq!(cell(&report.series[0], "weft"), "57.1 µs, **2.70** (2.60..2.81)");
        assert_eq!(cell(&report.series[0], "another"), "-");
    }

    #[test]
    fn all_lines_of_a_table_have_as_many_cells() {
        let text = Markdown(&sample::nasty()).to_string();
        for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
            let cells: Vec<_> = table.lines().map(|line| line.matches('|').count()).collect();
            assert!(
                cells.len() > 2 && cells.iter().all(|count| *count == cells[0]),
                "{table}"
            );
        }
        assert!(text.contains("| two nodes | none | envoy L4 |"), "{text}");
    }

    #[test]
    fn what_breaks_a_table_is_escaped() {
        assert_eq!(text("a|b <b>&\n"), "a\\|b &lt;b>&amp; ");
        assert_eq!(
            (code("a").as_str(), code("a `b`").as_str()),
            ("`a`", "`` a `b` ``")
        );
        let page = Markdown(&sample::nasty()).to_string();
        assert!(
            page.replace(&code(&sample::nasty().command), "")
                .contains("&lt;b>"),
            "{page}"
        );
        assert!(
            !page.replace(&code(&sample::nasty().command), "").contains("<b>"),
            "{page}"
        );
    }

    #[test]
    fn everything_a_reader_must_know_is_there() {
        let text = Markdown(&sample::report()).to_string();
        for part in [
            "`weft-bench --rounds 5`",
            "AMD EPYC",
            "- noisy: in 2 of",
            "iperf3 took too long",
            "h2load",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn an_empty_report_is_the_machine_alone() {
        let text = Markdown(&sample::empty()).to_string();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!Markdown(&sample::hollow()).to_string().contains("NaN"));
    }
}
