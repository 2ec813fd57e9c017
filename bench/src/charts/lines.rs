//! Charts of lines: one for each mode, with a legend above.

use anyhow::Result;
use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    axis::Axis,
    canvas::{self, Area, GRID, INK, Look, TEXT, WIDTH},
};

/// Of the part with the axes, in pixels.
const HEIGHT: u32 = 340;

/// Of one line of the legend, in pixels.
const LEGEND: u32 = 22;

/// What a letter takes, about: there is no font to ask.
const LETTER: i32 = 7;

/// A mode's figures, in the order in which they are joined.
pub(super) struct Line {
    pub(super) mode: String,
    pub(super) look: Look,
    pub(super) points: Vec<(f64, f64)>,
}

/// Draws them; points that an axis does not have are left out.
pub(super) fn draw(title: &str, lines: &[Line], [x, y]: [&Axis; 2]) -> Result<String> {
    let places = legend(lines);
    let rows = places.last().map_or(0, |place| place.1 / LEGEND as i32 + 1) as u32;
    canvas::svg(title, HEIGHT + rows * LEGEND, |area| {
        let (head, body) = area.split_vertically(rows * LEGEND);
        for (line, at) in lines.iter().zip(places) {
            entry(&head, line, at)?;
        }
        plot(&body, lines, [x, y])
    })
}

/// Where each line's entry of the legend is.
fn legend(lines: &[Line]) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (12, 0);
    let mut places = Vec::new();
    for line in lines {
        let width = 48 + LETTER * line.mode.chars().count() as i32;
        if x > 12 && x + width > WIDTH as i32 {
            (x, y) = (12, y + LEGEND as i32);
        }
        places.push((x, y));
        x += width;
    }
    places
}

fn entry(area: &Area<'_>, line: &Line, (x, y): (i32, i32)) -> Result<()> {
    let middle = y + LEGEND as i32 / 2;
    area.draw(&PathElement::new(
        [(x, middle), (x + 24, middle)],
        line.look.colour.stroke_width(2),
    ))?;
    area.draw(&(EmptyElement::at((x + 12, middle)) + line.look.mark()))?;
    area.draw(&Text::new(
        line.mode.clone(),
        (x + 30, middle),
        canvas::plain(HPos::Left),
    ))?;
    Ok(())
}

fn plot(area: &Area<'_>, lines: &[Line], [x, y]: [&Axis; 2]) -> Result<()> {
    let mut chart = ChartBuilder::on(area)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(48)
        .y_label_area_size(76)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", TEXT, &INK))
        .x_desc(x.title.clone())
        .y_desc(y.title.clone())
        .draw()?;
    for line in lines {
        let places = line
            .points
            .iter()
            .filter_map(|point| x.place(point.0).zip(y.place(point.1)));
        let places: Vec<_> = places.collect();
        let style = line.look.colour.stroke_width(2);
        chart.draw_series([PathElement::new(places.clone(), style)])?;
        let marks = places
            .into_iter()
            .map(|place| EmptyElement::at(place) + line.look.mark());
        chart.draw_series(marks)?;
    }
    Ok(())
}

/// All that must be on the axis beside them.
pub(super) fn figures(lines: &[Line]) -> Vec<f64> {
    lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{charts::axis::number, sample};

    fn lines(count: usize) -> Vec<Line> {
        let report = sample::report();
        let line = |index| Line {
            mode: format!("mode number {index}"),
            look: Look::of(&report, "weft"),
            points: vec![(1.0, 10.0), (2.0, 20.0), (3.0, 0.0)],
        };
        (0..count).map(line).collect()
    }

    #[test]
    fn the_legend_goes_on_in_the_next_line() {
        let places = legend(&lines(7));
        assert!(
            places.iter().all(|place| place.0 < WIDTH as i32 - 100),
            "{places:?}"
        );
        assert_eq!((places[0], places[6].1), ((12, 0), LEGEND as i32));
    }

    #[test]
    fn a_line_leaves_out_what_its_axis_has_not() {
        let (x, y) = (
            Axis::linear("x", &[3.0], number),
            Axis::log("y", &[10.0, 20.0], number),
        );
        let svg = draw("t", &lines(1), [&x, &y]).unwrap();
        assert!(
            svg.contains("mode number 0") && !svg.contains("NaN") && !svg.contains("inf"),
            "{svg}"
        );
        let path = |svg: &str| {
            svg.lines()
                .filter(|line| line.contains("polyline"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert!(
            path(&svg).iter().all(|line| line.matches(',').count() == 2),
            "{svg}"
        );
    }

    #[test]
    fn no_lines_are_a_chart_as_well() {
        let axis = Axis::linear("x", &[], number);
        assert!(draw("t", &[], [&axis, &axis]).unwrap().contains("</svg>"));
    }
}
