//! Prometheus' text format, read back.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// One line of a scrape.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name, `_total` included.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// Whether every one of these labels has this value.
    pub fn matches(&self, wanted: &[(&str, &str)]) -> bool {
        wanted
            .iter()
            .all(|(name, value)| self.labels.get(*name).is_some_and(|found| found == value))
    }
}

/// One scrape.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Reads a scrape; a line that is neither a comment nor a sample is an error.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples: Result<_> = lines
            .map(|line| parse_line(line).with_context(|| format!("not a sample: {line}")))
            .collect();
        samples.map(Self)
    }

    /// The samples of that name which have all these labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        self.0
            .iter()
            .filter(|sample| sample.name == name && sample.matches(labels))
            .collect()
    }

    /// The sum of those samples; 0 where there is none, as for a counter that never counted.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).iter().map(|sample| sample.value).sum()
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, value) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    // A timestamp may follow the value.
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The labels up to the closing brace, and what follows it.
fn parse_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let (value, after) = unquote(quoted)?;
        labels.insert(name.to_owned(), value);
        rest = after;
    }
}

fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped => value.push(escaped),
            },
            _ => value.push(char),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_reads_back() {
        let text = "# HELP x y\n# TYPE x counter\nx_total{a=\"1\",b=\"q\\\"}\"} 2\n\
            x_total{a=\"2\",b=\"\"} 3 1700000000\nup 1\n# EOF\n";
        let samples = Samples::parse(text).expect("valid");
        assert_eq!(samples.sum("x_total", &[]), 5.0);
        assert_eq!(samples.sum("x_total", &[("b", "q\"}")]), 2.0);
        assert_eq!(samples.sum("up", &[]), 1.0);
        assert_eq!(samples.sum("down", &[]), 0.0);
        assert!(Samples::parse("x{a=1} 2").is_err());
    }
}
