//! The committed counts: their text, one benchmark a line, and how they compare with others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    str::FromStr,
};

use anyhow::{Context, Result};

/// How far a count may be above the committed one, in percent.
pub(super) const GATE_PERCENT: u64 = 5;

/// Instructions by benchmark.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// What compiled them.
    pub(super) compiler: String,
    /// By name.
    pub(super) counts: BTreeMap<String, u64>,
}

const HEAD: &str =
    "# Instructions a call, counted by `cargo xtask counts`; written by `cargo xtask counts --update`.";
const COMPILER: &str = "# compiler: ";

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}\n{COMPILER}{}", self.compiler)?;
        let mut counts = self.counts.iter();
        counts.try_for_each(|(name, count)| writeln!(f, "{name} {count}"))
    }
}

impl FromStr for Counts {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let compiler = text.lines().find_map(|line| line.strip_prefix(COMPILER));
        let counts = text.lines().zip(1..).filter(|(line, _)| !line.starts_with('#'));
        let count = |(line, number): (&str, usize)| {
            let (name, count) = line.split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?)).filter(|_| number > 0)
        };
        let counts =
            counts.map(|at| count(at).with_context(|| format!("line {}: not a name and a count", at.1)));
        Ok(Self {
            compiler: compiler.unwrap_or("an unknown compiler").to_owned(),
            counts: counts.collect::<Result<_>>()?,
        })
    }
}

/// One benchmark in both.
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    before: Option<u64>,
    now: Option<u64>,
}

/// How a benchmark came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Same,
    Better,
    Worse,
    /// Not in both.
    Unknown,
}

impl Change {
    pub(super) fn fails(self) -> bool {
        matches!(self, Self::Worse | Self::Unknown)
    }

    fn mark(self) -> &'static str {
        match self {
            Self::Same => "",
            Self::Better => "  better",
            Self::Worse => "  WORSE",
            Self::Unknown => "  NOT IN BOTH",
        }
    }
}

impl Row<'_> {
    pub(super) fn change(&self) -> Change {
        let Some((before, now)) = self.before.zip(self.now) else {
            return Change::Unknown;
        };
        let (low, high) = (100 - GATE_PERCENT, 100 + GATE_PERCENT);
        match now * 100 {
            now if now > before * high => Change::Worse,
            now if now < before * low => Change::Better,
            _ => Change::Same,
        }
    }
}

/// Every benchmark that is in either.
pub(super) fn rows<'a>(before: &'a Counts, now: &'a Counts) -> Vec<Row<'a>> {
    let names: BTreeSet<_> = before.counts.keys().chain(now.counts.keys()).collect();
    let row = |name: &'a String| Row {
        name,
        before: before.counts.get(name).copied(),
        now: now.counts.get(name).copied(),
    };
    names.into_iter().map(row).collect()
}

pub(super) fn table(rows: &[Row<'_>]) -> String {
    const HEADING: &str = "instructions";
    let names = rows.iter().map(|row| row.name.len());
    let width = names.chain([HEADING.len()]).max().unwrap_or(0);
    let number = |count: Option<u64>| count.map_or("-".to_owned(), |count| count.to_string());
    let mut table = format!("{HEADING:width$}  before     now  ratio\n");
    for row in rows {
        let ratio = row.before.zip(row.now).map_or("-".to_owned(), |(before, now)| {
            format!("{:.2}", now as f64 / before as f64)
        });
        let (before, now, mark) = (number(row.before), number(row.now), row.change().mark());
        let _ = writeln!(
            table,
            "{:width$}  {before:>6}  {now:>6}  {ratio:>5}{mark}",
            row.name
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        Counts {
            compiler: "rustc 1.95.0".into(),
            counts: counts
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
        }
    }

    #[test]
    fn the_text_is_read_as_it_is_written() {
        let written = counts(&[("authorized::a", 1), ("routed::b", 20)]);
        assert_eq!(written.to_string().parse::<Counts>().unwrap(), written);
        let error = "# compiler: x\na 1\nb\n".parse::<Counts>().unwrap_err();
        assert_eq!(error.to_string(), "line 3: not a name and a count");
    }

    #[test]
    fn five_percent_are_the_gate() {
        let check = |before: u64, now: u64, expect| {
            let (before, now) = (counts(&[("a", before)]), counts(&[("a", now)]));
            assert_eq!(rows(&before, &now)[0].change(), expect);
        };
        check(100, 100, Change::Same);
        check(100, 105, Change::Same);
        check(100, 106, Change::Worse);
        check(100, 95, Change::Same);
        check(100, 94, Change::Better);
        check(1_000, 1_051, Change::Worse);
    }

    #[test]
    fn what_is_not_in_both_fails() {
        let (before, now) = (counts(&[("a", 1), ("b", 1)]), counts(&[("b", 1), ("c", 1)]));
        let rows = rows(&before, &now);
        let fails: Vec<_> = rows.iter().map(|row| row.change().fails()).collect();
        assert_eq!(fails, [true, false, true]);
        assert!(table(&rows).contains("a                  1       -      -  NOT IN BOTH"));
    }
}
