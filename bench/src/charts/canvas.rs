//! What all charts are drawn on: white ground, a title, text without font files, and one colour for each mode.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        TextStyle,
        text_anchor::{HPos, Pos, VPos},
    },
};

use crate::report::Report;

/// All charts are as wide, so that text has one size on a page.
pub(super) const WIDTH: u32 = 620;

/// What plotters takes for text of 13 pixels.
pub(super) const TEXT: i32 = 16;

/// Room for the title.
const TITLE: u32 = 34;

/// Of text, of a line to compare with, and of the grid.
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(super) const MARK: RGBColor = RGBColor(0x77, 0x77, 0x77);
pub(super) const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// Okabe and Ito's colours, which colour-blind people tell apart; the first is for direct TCP.
const PALETTE: [RGBColor; 8] = [
    RGBColor(0x6b, 0x6b, 0x6b),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0x8a, 0x7a, 0x00),
];

/// A dot, a triangle, a diamond, a square, and a triangle on its head.
const MARKS: [&[(i32, i32)]; 5] = [
    &[
        (-2, -4),
        (2, -4),
        (4, -2),
        (4, 2),
        (2, 4),
        (-2, 4),
        (-4, 2),
        (-4, -2),
    ],
    &[(0, -5), (5, 4), (-5, 4)],
    &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, 5), (5, -4), (-5, -4)],
];

/// A part of a chart, in pixels.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How a mode looks in every chart: a colour, and a mark for those who see none.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) colour: RGBColor,
    mark: usize,
}

impl Look {
    /// Of the modes in the report's order: a mode of both grounds has one look.
    pub(super) fn of(report: &Report, mode: &str) -> Self {
        let mut names: Vec<&str> = Vec::new();
        let others = report
            .growth
            .iter()
            .flat_map(|growth| &growth.lines)
            .map(|line| &line.mode);
        for name in report.modes.iter().map(|mode| &mode.name).chain(others) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let index = names.iter().position(|name| *name == mode).unwrap_or(names.len());
        Self {
            colour: PALETTE.get(index % PALETTE.len()).copied().unwrap_or(INK),
            mark: index,
        }
    }

    /// The mark around a place, in pixels from there.
    pub(super) fn mark(self) -> Polygon<(i32, i32)> {
        let corners = MARKS.get(self.mark % MARKS.len()).copied().unwrap_or_default();
        Polygon::new(corners.to_vec(), self.colour.filled())
    }
}

/// Draws a chart below its title, `height` pixels high without that.
pub(super) fn svg(title: &str, height: u32, draw: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height + TITLE)).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(TITLE);
        head.draw(&Text::new(title.to_owned(), (12, 18), bold(HPos::Left)))?;
        draw(&body)?;
        root.present()?;
    }
    Ok(labelled(&svg, title))
}

/// The chart with a name for those who hear it.
fn labelled(svg: &str, title: &str) -> String {
    let title = escape(title);
    let label = format!("<svg role=\"img\" aria-label=\"{title}\" ");
    let svg = svg.replacen("<svg ", &label, 1);
    svg.replacen(">\n", &format!(">\n<title>{title}</title>\n"), 1)
}

/// Text whose middle is at its place's height, and which `side` of it is at the place.
pub(super) fn plain(side: HPos) -> TextStyle<'static> {
    let font = ("sans-serif", TEXT).into_font();
    font.color(&INK).pos(Pos::new(side, VPos::Center))
}

/// The same for heads.
pub(super) fn bold(side: HPos) -> TextStyle<'static> {
    let font = ("sans-serif", TEXT + 1).into_font().style(FontStyle::Bold);
    font.color(&INK).pos(Pos::new(side, VPos::Center))
}

/// Text that is no markup, neither between tags nor in an attribute.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has none of these, not even escaped.
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn markup_is_escaped() {
        assert_eq!(escape("<b>&\"'\u{1b}µ"), "&lt;b&gt;&amp;&quot;&#39; µ");
    }

    #[test]
    fn a_chart_has_a_name_and_is_closed() {
        let svg = svg("a <b>", 10, |_| Ok(())).unwrap();
        assert!(
            svg.starts_with("<svg role=\"img\" aria-label=\"a &lt;b&gt;\" "),
            "{svg}"
        );
        assert!(
            svg.contains("<title>a &lt;b&gt;</title>") && svg.trim_end().ends_with("</svg>"),
            "{svg}"
        );
    }

    #[test]
    fn a_mode_looks_the_same_everywhere_and_like_no_other() {
        let report = sample::report();
        let modes: Vec<_> = report
            .modes
            .iter()
            .take(6)
            .map(|mode| Look::of(&report, &mode.name))
            .collect();
        for (index, one) in modes.iter().enumerate() {
            assert!(
                modes
                    .iter()
                    .skip(index + 1)
                    .all(|other| other.colour != one.colour)
            );
        }
        assert_eq!(Look::of(&report, "none").mark, 0);
        assert_eq!(Look::of(&report, "weft tunnel").mark, 6);
        assert_eq!(Look::of(&report, "weft").mark, 5);
    }
}
