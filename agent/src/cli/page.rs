//! What the commands print for people: headings, marked lines, aligned columns. Pure.

use std::fmt::Display;

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// The width of a field's name.
const NAME: usize = 10;

/// How a line is marked.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    Good,
    Waiting,
    Bad,
}

/// The text so far.
pub(super) struct Page {
    pub(super) text: String,
    colour: bool,
}

impl Page {
    pub(super) fn new(colour: bool) -> Self {
        Self {
            text: String::new(),
            colour,
        }
    }

    pub(super) fn heading(&mut self, title: &str, note: &str) {
        let title = self.paint(BOLD, title);
        let gap = if note.is_empty() { "" } else { "  " };
        self.text.push_str(&format!("\n{title}{gap}{note}\n"));
    }

    pub(super) fn line(&mut self, mark: Mark, text: &str) {
        let mark = self.mark(mark);
        self.text.push_str(&format!("{mark} {}\n", printable(text)));
    }

    /// What is to be said of the line above.
    pub(super) fn text(&mut self, text: &str) {
        self.text.push_str(&format!("    {}\n", printable(text)));
    }

    /// A name and its value, below a heading or a line. No value is a dash.
    pub(super) fn field(&mut self, name: &str, value: &str) {
        let value = cell(value.to_owned());
        self.text.push_str(&format!("    {name:<NAME$}  {value}\n"));
    }

    /// Columns as wide as their widest cell; the last is not padded. An empty cell is a dash.
    pub(super) fn table<const N: usize>(&mut self, header: [&str; N], rows: Vec<(Mark, [String; N])>) {
        if rows.is_empty() {
            self.text.push_str("  none\n");
            return;
        }
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(mark, cells)| (mark, cells.map(cell)))
            .collect();
        let mut widths = header.map(|title| title.chars().count());
        for (_, cells) in &rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        self.text.push_str(&format!("  {}\n", row(&header, &widths)));
        for (mark, cells) in &rows {
            let mark = self.mark(*mark);
            self.text.push_str(&format!("{mark} {}\n", row(cells, &widths)));
        }
    }

    fn mark(&self, mark: Mark) -> String {
        match mark {
            Mark::Good => self.paint(GREEN, "✓"),
            Mark::Waiting => self.paint(YELLOW, "…"),
            Mark::Bad => self.paint(RED, "✗"),
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour {
            format!("{colour}{text}{PLAIN}")
        } else {
            text.to_owned()
        }
    }
}

fn row(cells: &[impl Display], widths: &[usize]) -> String {
    let padded = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{:width$}", cell.to_string()));
    padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

fn cell(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        printable(&text)
    }
}

/// What an agent says may hold names from anywhere: none of it may steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

pub(super) fn good_if(good: bool) -> Mark {
    if good { Mark::Good } else { Mark::Bad }
}
