//! The report as a page of its own: one file, without scripts, fonts or pictures from elsewhere.

mod tables;

use std::time::Duration;

use anyhow::Result;

use crate::{
    charts::{self, Chart, escape},
    figures::Ground,
    report::{ModeInfo, Report},
    table::{EXPLAIN, GROUNDS},
};

const STYLE: &str = include_str!("html/style.css");

/// The whole page.
pub(crate) fn page(report: &Report) -> Result<String> {
    let sections = [
        caveats(report),
        tables::key_results(report),
        charts("What each mode costs", &charts::modes(report)?),
        charts("How latency is spread", &charts::latency(report)?),
        charts("How it grows", &charts::growth(report)?),
        tables::all(report),
        modes(report),
        list("Failed", &report.failures),
        list("Skipped", &report.skipped),
        run(report),
    ];
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>weft-bench, {date}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>weft-bench: what a mesh costs</h1>\n{summary}</header>\n<main>\n{main}</main>\n</body>\n</html>\n",
        date = escape(&report.machine.date),
        summary = summary(report),
        main = sections.concat(),
    ))
}

/// What was compared, where, when and how often.
fn summary(report: &Report) -> String {
    let grounds: Vec<_> = GROUNDS
        .into_iter()
        .filter_map(|ground| compared(report, ground))
        .collect();
    let compared = match grounds.is_empty() {
        true => "nothing".to_owned(),
        false => grounds.join("; "),
    };
    let took = humantime::format_duration(Duration::from_secs(report.seconds));
    format!(
        "<p>Compared: {compared}. Each load was played in {rounds} rounds, one mode after the other; all of it took {took}. \
         Figures are {explain}.</p>\n<p class=\"dim\">{machine}</p>\n",
        rounds = report.rounds,
        explain = EXPLAIN.replace("`none`", "<code>none</code>"),
        machine = escape(&report.machine.to_string()),
    )
}

/// The modes of a ground. `None` without any.
fn compared(report: &Report, ground: Ground) -> Option<String> {
    let names: Vec<_> = report
        .modes_on(ground)
        .map(|mode| format!("<b>{}</b>", escape(&mode.name)))
        .collect();
    let measures = report.series_on(ground).count();
    (!names.is_empty()).then(|| format!("on {ground} {} in {measures} measures", names.join(", ")))
}

/// First of all: what a reader must know before believing anything.
fn caveats(report: &Report) -> String {
    let caveats = report.caveats();
    if caveats.is_empty() {
        return String::new();
    }
    format!(
        "<section class=\"caveats\">\n<h3>Before you believe it</h3>\n{}</section>\n",
        items(&caveats)
    )
}

fn list(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    section(title, &items(lines))
}

fn items(lines: &[String]) -> String {
    let items: String = lines
        .iter()
        .map(|line| format!("<li>{}</li>\n", escape(line)))
        .collect();
    format!("<ul>\n{items}</ul>\n")
}

fn section(title: &str, body: &str) -> String {
    format!("<section>\n<h2>{title}</h2>\n{body}</section>\n")
}

fn charts(title: &str, charts: &[Chart]) -> String {
    if charts.is_empty() {
        return String::new();
    }
    let figures = charts.iter().map(|chart| {
        let about = escape(&chart.about);
        format!(
            "<figure>\n{}<figcaption>{about}</figcaption>\n</figure>\n",
            chart.svg
        )
    });
    section(
        title,
        &format!("<div class=\"charts\">\n{}</div>\n", figures.collect::<String>()),
    )
}

/// What each mode is.
fn modes(report: &Report) -> String {
    let of = |ground| {
        let modes: String = report.modes_on(ground).map(mode).collect();
        match modes.is_empty() {
            true => modes,
            false => format!("<h3>On {ground}</h3>\n<dl>\n{modes}</dl>\n"),
        }
    };
    let grounds = GROUNDS.map(of).concat();
    if grounds.is_empty() {
        grounds
    } else {
        section("The modes", &grounds)
    }
}

fn mode(mode: &ModeInfo) -> String {
    format!(
        "<dt>{}</dt><dd>{}</dd>\n",
        escape(&mode.name),
        escape(&mode.about)
    )
}

/// How to do it again.
fn run(report: &Report) -> String {
    let versions = report.machine.versions.iter();
    let versions: String = versions
        .map(|(name, version)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(version)))
        .collect();
    let command = escape(&report.command);
    let body = format!(
        "<p>The command:</p>\n<pre><code>{command}</code></pre>\n<p>What took part:</p>\n<dl>\n{versions}</dl>\n"
    );
    section("The run", &body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn a_page_has_everything() {
        let report = sample::report();
        let page = page(&report).unwrap();
        for part in [
            "Before you believe it",
            "Key results",
            "AMD EPYC 7B13",
            "2025-01-31",
            "30m 34s",
            "weft-bench --rounds 5",
            "1.31.2",
            "iperf3 took too long",
            "h2load is not installed",
            "2.70x",
            "(2.60..2.81)",
            "plain TCP between the pods",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<svg role=\"img\" aria-label=").count(), 12);
        assert!(report.modes.iter().all(|mode| page.contains(&mode.name)));
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let page = page(&sample::report()).unwrap();
        for part in ["<script", "src=", "href=", "url(", "@import"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn text_is_no_markup() {
        let page = page(&sample::nasty()).unwrap();
        assert!(!page.contains(sample::NASTY));
        assert!(page.contains("round 3: iperf3 took too long&lt;b&gt;&amp;&quot;"));
        assert!(page.contains("<dt>&lt;b&gt;&amp;&quot;</dt><dd>&lt;b&gt;&amp;&quot;</dd>"));
        // The bold names of modes in the summary are the page's own.
        assert_eq!(page.matches("<b>").count(), sample::nasty().modes.len());
    }

    #[test]
    fn every_tag_is_closed() {
        for report in [
            sample::report(),
            sample::nasty(),
            sample::empty(),
            sample::hollow(),
        ] {
            let page = page(&report).unwrap();
            for tag in [
                "section", "table", "tr", "td", "th", "figure", "svg", "div", "dl", "ul", "li", "main",
                "caption",
            ] {
                let opened =
                    page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
                assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
            }
        }
    }

    #[test]
    fn an_empty_or_hollow_report_has_a_page() {
        let page = [sample::empty(), sample::hollow()].map(|report| page(&report).unwrap());
        assert!(
            page[0].contains("Compared: nothing") && !page[0].contains("<table") && !page[0].contains("<svg")
        );
        assert!(page[1].contains("0.0 µs") && !page[1].contains("NaN"));
    }
}
