//! Two reports beside each other: what got worse. Ratios are compared, each to direct TCP of its own run, because days and
//! machines differ; growth is left out, because it has no spread to tell a change from chance.

use std::{fmt, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    figures::{BASELINE, Series},
    report::Report,
    table::{Rows, aligned, times},
};

/// A change of less than this share is none.
const CHANGE: f64 = 0.1;

/// What became of the measures that both reports have.
pub(crate) struct Comparison {
    /// The machines of the old one and of the new one.
    machines: [String; 2],
    rows: Vec<Row>,
    /// What only the old one has, and what only the new one has.
    alone: [Vec<String>; 2],
}

/// One measure in one mode.
struct Row {
    name: String,
    mode: String,
    /// As people read them: the old figure and the new one.
    shown: [String; 2],
    /// The new one to the old one. `None` where the old one is zero.
    change: Option<f64>,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Worse,
    Better,
    Same,
}

/// What a mode's rounds said.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Comparison {
    /// Takes the new report's order.
    pub(crate) fn of(old: &Report, new: &Report) -> Self {
        let mut rows = Vec::new();
        for series in &new.series {
            let before = old.series.iter().find(|other| same(series, other));
            rows.extend(
                before
                    .into_iter()
                    .flat_map(|before| self::rows(before, series, new)),
            );
        }
        Self {
            machines: [old, new].map(|report| report.machine.to_string()),
            rows,
            alone: [alone(old, new), alone(new, old)],
        }
    }

    /// How many measures got worse.
    pub(crate) fn worse(&self) -> usize {
        self.count(Verdict::Worse)
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.rows.iter().filter(|row| row.verdict == verdict).count()
    }
}

/// Whether two series are of the same measure.
fn same(one: &Series, other: &Series) -> bool {
    (one.ground, &one.measure) == (other.ground, &other.measure)
}

/// The modes of a report that a series may have figures of: direct TCP is what the others are compared with.
fn modes<'a>(series: &Series, report: &'a Report) -> impl Iterator<Item = &'a str> {
    let modes = report.modes_on(series.ground).map(|mode| mode.name.as_str());
    modes.filter(|mode| *mode != BASELINE)
}

fn rows(old: &Series, new: &Series, report: &Report) -> Vec<Row> {
    modes(new, report)
        .filter_map(|mode| row(old, new, mode))
        .collect()
}

/// `None` where a mode has no figure in one of them.
fn row(old: &Series, new: &Series, mode: &str) -> Option<Row> {
    let ([before, after], shown) = match (ratio(old, mode), ratio(new, mode)) {
        (Some(before), Some(after)) => {
            let pair = [before, after];
            (pair, pair.map(|spread| format!("{}x", times(spread.median))))
        }
        _ => {
            let pair = [absolute(old, mode)?, absolute(new, mode)?];
            (pair, pair.map(|spread| new.measure.unit.show(spread.median)))
        }
    };
    let change = after.median / before.median;
    Some(Row {
        name: format!("{}: {}", new.ground, new.measure.name),
        mode: mode.to_owned(),
        shown,
        change: Some(change).filter(|change| change.is_finite()),
        verdict: verdict(before, after, new.measure.unit.more_is_better()),
    })
}

fn ratio(series: &Series, mode: &str) -> Option<Spread> {
    series.ratio(mode).map(|ratio| Spread {
        median: ratio.median,
        min: ratio.min,
        max: ratio.max,
    })
}

fn absolute(series: &Series, mode: &str) -> Option<Spread> {
    let figures = || series.figures.get(mode).into_iter().flatten().flatten().copied();
    Some(Spread {
        median: series.median(mode)?,
        min: figures().min_by(f64::total_cmp)?,
        max: figures().max_by(f64::total_cmp)?,
    })
}

/// A change counts when it is large, and no round of the one could have been a round of the other.
fn verdict(old: Spread, new: Spread, more_is_better: bool) -> Verdict {
    let rose = new.median > old.median * (1.0 + CHANGE) && new.min > old.max;
    let fell = new.median < old.median * (1.0 - CHANGE) && new.max < old.min;
    match (rose, fell) {
        (false, false) => Verdict::Same,
        (rose, _) if rose == more_is_better => Verdict::Better,
        _ => Verdict::Worse,
    }
}

/// What one report has figures of and the other has not.
fn alone(report: &Report, other: &Report) -> Vec<String> {
    let mut alone = Vec::new();
    for series in &report.series {
        let name = format!("{}: {}", series.ground, series.measure.name);
        let Some(others) = other.series.iter().find(|other| same(series, other)) else {
            alone.push(name);
            continue;
        };
        let lone = |mode: &&str| series.median(mode).is_some() && others.median(mode).is_none();
        alone.extend(
            modes(series, report)
                .filter(lone)
                .map(|mode| format!("{name}, {mode}")),
        );
    }
    alone
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let change = self.change.map_or_else(|| "-".to_owned(), times);
        let flag = match self.verdict {
            Verdict::Worse => "WORSE ",
            Verdict::Better => "better",
            Verdict::Same => "      ",
        };
        let [old, new] = self.shown.clone();
        vec![
            self.name.clone(),
            self.mode.clone(),
            old,
            new,
            change,
            flag.to_owned(),
        ]
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [old, new] = &self.machines;
        writeln!(f, "old: {old}\nnew: {new}\n")?;
        let head = ["", "mode", "old", "new", "new/old", ""]
            .map(str::to_owned)
            .to_vec();
        let rows: Rows = [head]
            .into_iter()
            .chain(self.rows.iter().map(Row::cells))
            .collect();
        if !self.rows.is_empty() {
            writeln!(f, "{}(x: to `{BASELINE}` of the same run)\n", aligned(&rows))?;
        }
        for (whose, alone) in ["old", "new"].into_iter().zip(&self.alone) {
            alone
                .iter()
                .try_for_each(|what| writeln!(f, "only in the {whose} one: {what}"))?;
        }
        let [worse, better, same] = [Verdict::Worse, Verdict::Better, Verdict::Same].map(|it| self.count(it));
        write!(f, "{worse} worse, {better} better, {same} the same")
    }
}

/// A report that was kept as JSON.
///
/// # Errors
/// When the file cannot be read, or is none of this version.
pub(crate) fn read(path: &Path) -> Result<Report> {
    let file = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read the report {file}"))?;
    serde_json::from_str(&text).with_context(|| {
        format!(
            "{file} is not a report that this version of weft-bench understands, perhaps of an older format: \
             run the benchmark again to make a new one, or compare with the version that wrote it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        figures::{Ground, Measure, Unit},
        sample,
    };

    fn spread(median: f64, by: f64) -> Spread {
        Spread {
            median,
            min: median - by,
            max: median + by,
        }
    }

    #[test]
    fn a_change_counts_when_it_is_large_and_beyond_the_spread() {
        for (old, new, more_is_better, expected) in [
            (spread(10.0, 0.1), spread(12.0, 0.1), false, Verdict::Worse),
            (spread(10.0, 0.1), spread(12.0, 0.1), true, Verdict::Better),
            (spread(10.0, 0.1), spread(8.0, 0.1), false, Verdict::Better),
            (spread(10.0, 0.1), spread(8.0, 0.1), true, Verdict::Worse),
            (spread(10.0, 0.1), spread(10.9, 0.1), false, Verdict::Same),
            (spread(10.0, 1.0), spread(12.0, 1.0), false, Verdict::Same),
            (spread(0.0, 0.0), spread(5.0, 1.0), false, Verdict::Worse),
            (spread(0.0, 0.0), spread(0.0, 0.0), false, Verdict::Same),
        ] {
            assert_eq!(
                verdict(old, new, more_is_better),
                expected,
                "{} {}",
                old.median,
                new.median
            );
        }
    }

    #[test]
    fn a_slower_machine_is_no_change_and_a_slower_mode_is() {
        let old = sample::report();
        let mut new = old.clone();
        let slower = |series: &mut Series, modes: &[&str], factor: f64| {
            let figures = series
                .figures
                .iter_mut()
                .filter(|(mode, _)| modes.contains(&mode.as_str()));
            figures
                .flat_map(|(_, figures)| figures)
                .flatten()
                .for_each(|figure| *figure *= factor);
        };
        slower(&mut new.series[0], &[BASELINE, "weft", "envoy L4"], 2.0);
        slower(&mut new.series[6], &["weft"], 0.5);
        slower(&mut new.series[13], &["weft"], 0.5);
        let comparison = Comparison::of(&old, &new);
        let text = comparison.to_string();
        let line = |name: &str, mode: &str| {
            text.lines()
                .find(|line| line.contains(name) && line.contains(mode))
                .unwrap()
        };
        assert!(!line("one core, p50", "weft").contains("WORSE"), "{text}");
        assert!(line("one core, p50", "weft").contains("2.70x"), "{text}");
        assert!(line("one core, p50", "envoy L7 h1").ends_with("better"), "{text}");
        assert!(
            line("two nodes: connections", "weft").ends_with("WORSE"),
            "{text}"
        );
        assert!(line("proxies, idle", "weft").ends_with("better"), "{text}");
        assert!(line("proxies, idle", "weft").contains("MiB"), "{text}");
        assert_eq!(comparison.worse(), 1, "{text}");
        assert!(
            text.lines().last().unwrap().starts_with("1 worse, 4 better, "),
            "{text}"
        );
    }

    #[test]
    fn what_only_one_has_is_listed() {
        let old = sample::report();
        let mut new = old.clone();
        new.series.remove(0);
        new.series[0].figures.remove("weft");
        new.series
            .push(Series::new(Measure::new("novel", Unit::Count), Ground::OneNode));
        let text = Comparison::of(&old, &new).to_string();
        for line in [
            "only in the old one: two nodes: ping-pong 64 B, one core, p50\n",
            "only in the old one: two nodes: ping-pong 64 B, one core, p99, weft\n",
            "only in the new one: one node: novel\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn nothing_to_compare_is_no_error() {
        let text = Comparison::of(&sample::empty(), &sample::empty()).to_string();
        assert!(text.ends_with("0 worse, 0 better, 0 the same"), "{text}");
        let text = Comparison::of(&sample::hollow(), &sample::hollow()).to_string();
        assert!(!text.contains("NaN") && text.contains("0 worse"), "{text}");
    }

    #[test]
    fn a_report_is_read_back_and_another_file_is_named() {
        let dir = std::env::temp_dir().join(format!("weft-bench-compare-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (good, bad) = (dir.join("good.json"), dir.join("old.json"));
        fs::write(&good, serde_json::to_string(&sample::report()).unwrap()).unwrap();
        fs::write(&bad, r#"{"machine": {}, "series": []}"#).unwrap();
        let text = read(&good).unwrap().to_string();
        let said = [bad, dir.join("none.json")].map(|path| format!("{:#}", read(&path).unwrap_err()));
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(text, sample::report().to_string());
        assert!(
            said[0].contains("old.json") && said[0].contains("run the benchmark again"),
            "{said:?}"
        );
        assert!(said[1].contains("none.json"), "{said:?}");
    }
}
