//! The page's tables: the few that most readers want, and all of them.

use super::section;
use crate::{
    charts::escape,
    figures::{BASELINE, Ground, Series, Unit},
    report::{Growth, Report},
    table::{GROUNDS, growth_rows, shown, times},
};

/// What most readers want to know of, and how many measures of each.
const KEY: [(Unit, usize); 5] = [
    (Unit::Micros, 2),
    (Unit::PerSecond, 2),
    (Unit::Gbits, 1),
    (Unit::CpuSeconds, 2),
    (Unit::Mebibytes, 1),
];

/// A card for each of the first measures of each unit, on the first ground that has any.
pub(super) fn key_results(report: &Report) -> String {
    let ground = GROUNDS
        .into_iter()
        .find(|ground| report.series_on(*ground).next().is_some());
    let Some(ground) = ground else {
        return String::new();
    };
    let of = |(unit, count)| {
        report
            .series_on(ground)
            .filter(move |series| series.measure.unit == unit)
            .take(count)
    };
    let cards: String = KEY
        .into_iter()
        .flat_map(of)
        .map(|series| card(report, series))
        .collect();
    if cards.is_empty() {
        return cards;
    }
    let about = format!(
        "<p class=\"dim\">On {ground}. Ratios are to <code>{BASELINE}</code> of the same round.</p>\n"
    );
    section(
        "Key results",
        &format!("{about}<div class=\"cards\">\n{cards}</div>\n"),
    )
}

fn card(report: &Report, series: &Series) -> String {
    let better = if series.measure.unit.more_is_better() {
        "more is better"
    } else {
        "less is better"
    };
    let modes = report
        .modes_on(series.ground)
        .filter(|mode| series.median(&mode.name).is_some());
    let rows: String = modes
        .map(|mode| {
            let (ratio, figure) = (ratio(series, &mode.name), escape(&shown(series, &mode.name)));
            format!(
                "<tr><th scope=\"row\">{}</th><td>{ratio}</td><td>{figure}</td></tr>\n",
                escape(&mode.name)
            )
        })
        .collect();
    format!(
        "<div class=\"card\">\n<table>\n<caption><h3>{}</h3>{better}</caption>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n",
        escape(&series.measure.name)
    )
}

/// A mode's ratio, loud where it is noisy. Nothing where there is none.
fn ratio(series: &Series, mode: &str) -> String {
    let ratio = series.ratio(mode).filter(|_| mode != BASELINE);
    ratio.map_or_else(String::new, |ratio| match ratio.noisy() {
        true => format!(
            "<strong class=\"noisy\" title=\"noisy\">{}x~</strong>",
            times(ratio.median)
        ),
        false => format!("<strong>{}x</strong>", times(ratio.median)),
    })
}

/// A table for each ground and each growth.
pub(super) fn all(report: &Report) -> String {
    let grounds = GROUNDS.map(|ground| of_ground(report, ground)).concat();
    let growths: String = report.growth.iter().map(of_growth).collect();
    let tables = grounds + &growths;
    if tables.is_empty() {
        tables
    } else {
        section("All figures", &tables)
    }
}

fn of_ground(report: &Report, ground: Ground) -> String {
    let names = report.modes_on(ground).map(|mode| mode.name.clone());
    let head: Vec<String> = [String::new()].into_iter().chain(names).collect();
    let row = |series: &Series| {
        let cells: String = report
            .modes_on(ground)
            .map(|mode| cell(series, &mode.name))
            .collect();
        format!("<tr>{}{cells}</tr>\n", name(&series.measure.name))
    };
    let rows: String = report.series_on(ground).map(row).collect();
    let caption = "Medians of all rounds, ratios to none, and in parentheses the least and the largest ratio of a round; ~ noisy.";
    table(&ground.to_string(), caption, &head, &rows)
}

/// A mode's median, ratio and spread.
fn cell(series: &Series, mode: &str) -> String {
    let figure = escape(&shown(series, mode));
    let spread = series.ratio(mode).filter(|_| mode != BASELINE);
    let spread = spread.map_or_else(String::new, |ratio| {
        format!("<small>({}..{})</small>", times(ratio.min), times(ratio.max))
    });
    format!("<td>{figure} {}{spread}</td>", ratio(series, mode))
}

fn of_growth(growth: &Growth) -> String {
    let rows = growth_rows(growth);
    let Some((head, rows)) = rows.split_first() else {
        return String::new();
    };
    let row = |row: &Vec<String>| {
        let cells: String = row
            .iter()
            .skip(1)
            .map(|cell| format!("<td>{}</td>", escape(cell)))
            .collect();
        let first = row.first().map_or_else(String::new, |cell| name(cell));
        format!("<tr>{first}{cells}</tr>\n")
    };
    let rows: String = rows.iter().map(row).collect();
    table(
        &format!("by {}", growth.of),
        "What was measured at each size.",
        head,
        &rows,
    )
}

fn name(text: &str) -> String {
    format!("<th scope=\"row\">{}</th>", escape(text))
}

/// A table that scrolls sideways, by finger or by key. Nothing without rows.
fn table(title: &str, caption: &str, head: &[String], rows: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let title = escape(title);
    let head: String = head
        .iter()
        .map(|cell| format!("<th scope=\"col\">{}</th>", escape(cell)))
        .collect();
    format!(
        "<h3>{title}</h3>\n<p class=\"dim\">{caption}</p>\n<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{title}\">\n\
         <table>\n<caption>{title}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn cells_have_median_ratio_and_spread() {
        let report = sample::report();
        let (p50, beside) = (&report.series[0], &report.series[5]);
        assert_eq!(cell(p50, BASELINE), "<td>21.1 µs </td>");
        assert_eq!(
            cell(p50, "weft"),
            "<td>57.1 µs <strong>2.70x</strong><small>(2.60..2.81)</small></td>"
        );
        assert!(cell(beside, "weft").contains("x~</strong>"));
        assert_eq!(cell(p50, "another"), "<td>- </td>");
    }

    #[test]
    fn key_results_are_the_first_of_each_unit() {
        let report = sample::report();
        let cards = key_results(&report);
        assert_eq!(cards.matches("class=\"card\"").count(), 8);
        assert!(
            cards.contains("one core, p99") && !cards.contains("ping-pong 64 B, p50"),
            "{cards}"
        );
        assert!(cards.contains("On two nodes"));
        let mut near = report.clone();
        near.series.retain(|series| series.ground == Ground::OneNode);
        assert!(key_results(&near).contains("On one node"));
    }

    #[test]
    fn every_figure_has_a_cell() {
        let report = sample::report();
        let tables = all(&report);
        let cells = report
            .series
            .iter()
            .map(|series| report.modes_on(series.ground).count());
        let sizes = report
            .growth
            .iter()
            .map(|growth| growth.lines.len() * (growth.sizes.len() + 1));
        assert_eq!(tables.matches("<td>").count(), cells.chain(sizes).sum::<usize>());
        assert_eq!(tables.matches("<caption>").count(), 4);
        assert_eq!(all(&sample::empty()), "");
    }
}
