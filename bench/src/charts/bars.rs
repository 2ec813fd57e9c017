//! Charts of bars: for each measure one bar a mode, from left to right, with its figure behind.

use anyhow::Result;
use plotters::{coord::types::RangedCoordf64, prelude::*, style::text_anchor::HPos};

use super::{
    axis::Axis,
    canvas::{self, Area, GRID, INK, Look, MARK, TEXT},
};

/// Of one bar with what is around it, in pixels.
const BAR: u32 = 18;

/// What else there is in height: labels above and below.
const LABELS: u32 = 2 * 26;

/// Room for the names of modes, and for the figures.
const NAMES: i32 = 120;
const FIGURES: i32 = 136;

/// A measure.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) bars: Vec<Bar>,
}

/// A mode's figure of it.
pub(super) struct Bar {
    pub(super) mode: String,
    pub(super) look: Look,
    pub(super) figure: f64,
    /// The least and the largest of the rounds.
    pub(super) spread: Option<(f64, f64)>,
    /// What is written behind it.
    pub(super) label: String,
}

/// What all bars of a chart stand on.
pub(super) struct Frame {
    pub(super) axis: Axis,
    /// The figure from which they begin.
    pub(super) from: f64,
    /// The figure that they are to be seen against.
    pub(super) mark: f64,
}

type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, RangedCoordf64>>;

/// Draws them.
pub(super) fn draw(title: &str, groups: &[Group], frame: &Frame) -> Result<String> {
    let height = groups.iter().map(rows).sum::<u32>().max(1);
    canvas::svg(title, height * BAR + LABELS, |area| {
        let mut plot = plot(area, frame, height)?;
        let mut row = 0;
        for group in groups {
            draw_group(&mut plot, group, frame, f64::from(row))?;
            row += rows(group);
        }
        Ok(())
    })
}

/// What a group takes in height: its bars, its name above them, and what keeps it apart from the next.
fn rows(group: &Group) -> u32 {
    group.bars.len() as u32 + 2
}

/// The axis, and places for so many rows.
fn plot<'a, 'b>(area: &'a Area<'b>, frame: &Frame, rows: u32) -> Result<Plot<'a, 'b>> {
    let mut plot = ChartBuilder::on(area)
        .margin_left(NAMES)
        .margin_right(FIGURES)
        .set_label_area_size(LabelAreaPosition::Top, LABELS / 2)
        .set_label_area_size(LabelAreaPosition::Bottom, LABELS / 2)
        .build_cartesian_2d(frame.axis.clone(), f64::from(rows)..0.0)?;
    plot.configure_mesh()
        .disable_y_mesh()
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(("sans-serif", TEXT, &INK))
        .draw()?;
    Ok(plot)
}

/// A name, and the bars below.
fn draw_group(plot: &mut Plot<'_, '_>, group: &Group, frame: &Frame, row: f64) -> Result<()> {
    plot.draw_series(placed(group, row).map(|(bar, middle)| body(bar, frame, middle)))?;
    plot.draw_series(placed(group, row).filter_map(|(bar, middle)| whisker(bar, &frame.axis, middle)))?;
    if let Some(mark) = frame.axis.place(frame.mark) {
        let ends = [(mark, row + 1.4), (mark, row + 1.4 + group.bars.len() as f64)];
        plot.draw_series([PathElement::new(ends, MARK.stroke_width(1))])?;
    }
    let texts = texts(group, frame, row).into_iter();
    plot.draw_series(texts.map(|text| {
        EmptyElement::at(text.at) + Text::new(text.text.to_owned(), (text.right, 0), text.style)
    }))?;
    Ok(())
}

/// A group's bars, and how far down their middles are.
fn placed(group: &Group, row: f64) -> impl Iterator<Item = (&Bar, f64)> {
    let middles = (0..).map(move |index| row + 1.9 + f64::from(index));
    group.bars.iter().zip(middles)
}

/// Text so many pixels to the right of a place.
struct Label<'a> {
    at: (f64, f64),
    right: i32,
    text: &'a str,
    style: TextStyle<'static>,
}

fn texts<'a>(group: &'a Group, frame: &Frame, row: f64) -> Vec<Label<'a>> {
    let left = frame.axis.range.start;
    let label = |at, right, text, style| Label {
        at,
        right,
        text,
        style,
    };
    let mut texts = vec![label(
        (left, row + 0.8),
        12 - NAMES,
        group.name.as_str(),
        canvas::bold(HPos::Left),
    )];
    for (bar, middle) in placed(group, row) {
        let [_, outmost] = ends(bar, frame);
        texts.push(label((left, middle), -6, &bar.mode, canvas::plain(HPos::Right)));
        texts.push(label((outmost, middle), 8, &bar.label, canvas::plain(HPos::Left)));
    }
    texts
}

fn body(bar: &Bar, frame: &Frame, middle: f64) -> Rectangle<(f64, f64)> {
    let from = frame.axis.place(frame.from).unwrap_or(0.0);
    let [end, _] = ends(bar, frame);
    Rectangle::new(
        [(from, middle - 0.38), (end, middle + 0.38)],
        bar.look.colour.filled(),
    )
}

/// Where a bar ends, and beyond what its label may stand.
fn ends(bar: &Bar, frame: &Frame) -> [f64; 2] {
    let axis = &frame.axis;
    let from = axis.place(frame.from).unwrap_or(0.0);
    let end = axis.place(bar.figure).unwrap_or(from);
    let most = bar.spread.and_then(|(_, max)| axis.place(max)).unwrap_or(end);
    [end, end.max(most).max(from)]
}

/// From the least round to the largest.
fn whisker(bar: &Bar, axis: &Axis, middle: f64) -> Option<PathElement<(f64, f64)>> {
    let (min, max) = bar.spread?;
    let ends = [(axis.place(min)?, middle), (axis.place(max)?, middle)];
    Some(PathElement::new(ends, INK.stroke_width(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{charts::axis::number, sample};

    fn bar(figure: f64) -> Bar {
        Bar {
            mode: "weft".to_owned(),
            look: Look::of(&sample::report(), "weft"),
            figure,
            spread: Some((figure * 0.9, figure * 1.1)),
            label: format!("{figure} x"),
        }
    }

    fn frame(axis: Axis, from: f64) -> Frame {
        Frame {
            axis,
            from,
            mark: 1.0,
        }
    }

    #[test]
    fn labels_stand_beyond_bar_whisker_and_beginning() {
        let frame = frame(Axis::log("", &[0.1, 10.0], number), 1.0);
        assert_eq!(ends(&bar(0.1), &frame), [-1.0, 0.0]);
        let [end, outmost] = ends(&bar(10.0), &frame);
        assert!((end - 1.0).abs() < 1e-9 && outmost > end);
        assert_eq!(ends(&bar(0.0), &frame), [0.0, 0.0]);
    }

    #[test]
    fn every_bar_has_its_label_and_no_figure_breaks_the_chart() {
        let groups = [1.0, 5.0, 0.0, f64::NAN].map(|figure| Group {
            name: format!("measure {figure}"),
            bars: vec![bar(figure)],
        });
        let frames = [
            frame(Axis::log("", &[1.0, 5.0], number), 1.0),
            frame(Axis::linear("", &[1.0, 5.0], number), 0.0),
        ];
        for frame in frames {
            let svg = draw("t", &groups, &frame).unwrap();
            assert!(
                svg.contains("\n5 x\n") && svg.contains("\n0 x\n") && svg.contains("measure 5"),
                "{svg}"
            );
            assert!(!svg.contains("\"NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn no_bars_are_a_chart_as_well() {
        let frame = frame(Axis::linear("", &[], number), 0.0);
        assert!(draw("t", &[], &frame).unwrap().contains("</svg>"));
    }
}
