//! The report as charts: how latency is spread, what each mode is to direct TCP, what it costs, and how it grows. SVG, with no
//! font and no script.

mod axis;
mod bars;
mod canvas;
mod growth;
mod latency;
mod lines;
mod modes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

pub(crate) use self::canvas::escape;
use crate::report::Report;

/// One of them.
pub(crate) struct Chart {
    /// What it shows.
    pub(crate) title: String,
    /// How to read it.
    pub(crate) about: String,
    /// The chart itself, with its title.
    pub(crate) svg: String,
}

/// For each load, how latency is spread.
pub(crate) fn latency(report: &Report) -> Result<Vec<Chart>> {
    latency::charts(report)
}

/// For each ground, what each mode is to direct TCP, and what it costs.
pub(crate) fn modes(report: &Report) -> Result<Vec<Chart>> {
    modes::charts(report)
}

/// For each thing that was measured of a mesh of several sizes, how it grows.
pub(crate) fn growth(report: &Report) -> Result<Vec<Chart>> {
    growth::charts(report)
}

/// Writes each into a file of its own, named by its title. The directory is made when it is missing.
///
/// # Errors
/// When a chart cannot be drawn or a file cannot be written.
pub(crate) fn write_all(report: &Report, dir: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = Vec::new();
    let charts = [modes(report)?, latency(report)?, growth(report)?];
    for chart in charts.iter().flatten() {
        let path = free(dir, &slug(&chart.title), &paths);
        fs::write(&path, &chart.svg).with_context(|| format!("cannot write {}", path.display()))?;
        paths.push(path);
    }
    Ok(paths)
}

/// A name that none of this report has yet.
fn free(dir: &Path, slug: &str, taken: &[PathBuf]) -> PathBuf {
    let numbered = (2..).map(|number: u32| format!("{slug}-{number}.svg"));
    let mut names = [format!("{slug}.svg")]
        .into_iter()
        .chain(numbered)
        .map(|name| dir.join(name));
    names
        .find(|path| !taken.contains(path))
        .unwrap_or_else(|| dir.join("chart.svg"))
}

/// A title as the name of a file.
fn slug(title: &str) -> String {
    let words = title
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn titles_become_names_of_files() {
        assert_eq!(
            slug("latency, two nodes: ping-pong 64 B"),
            "latency-two-nodes-ping-pong-64-b"
        );
        assert_eq!(slug("../µ"), "");
        let dir = Path::new("d");
        let taken = [dir.join("a.svg"), dir.join("a-2.svg")];
        assert_eq!(free(dir, "a", &taken), dir.join("a-3.svg"));
        assert_eq!(free(dir, "b", &taken), dir.join("b.svg"));
    }

    #[test]
    fn every_chart_is_a_file_and_closed() {
        let dir = std::env::temp_dir().join(format!("weft-bench-charts-{}", std::process::id()));
        let paths = write_all(&sample::nasty(), &dir).unwrap();
        let files: Vec<String> = paths
            .iter()
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        let none = write_all(&sample::empty(), &dir).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((files.len(), none.len()), (12, 0));
        assert!(
            paths.contains(&dir.join("latency-two-nodes-ping-pong-64-b-b.svg")),
            "{paths:?}"
        );
        for svg in files {
            let opened = svg.matches("<text").count();
            assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && opened > 3);
            assert_eq!(opened, svg.matches("</text>").count());
            assert!(
                !svg.contains("<b>") && !svg.contains("NaN") && !svg.contains("inf"),
                "{svg}"
            );
        }
    }
}
