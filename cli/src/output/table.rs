//! Aligned columns with a heading, colour only where the caller says so.

use std::fmt::Write as _;

use super::safe;

/// Two spaces stand between columns.
const GAP: usize = 2;

/// What a cell says about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
    Faint,
}

impl Tone {
    /// The terminal's escape sequence. Only here does an escape character enter the output.
    fn escape(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("\x1b[32m"),
            Self::Warning => Some("\x1b[33m"),
            Self::Bad => Some("\x1b[31m"),
            Self::Faint => Some("\x1b[2m"),
        }
    }
}

/// One cell: harmless text, a tone, and the side on which it stands.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
    right: bool,
}

impl Cell {
    /// Text as it is.
    pub(crate) fn text(text: impl AsRef<str>) -> Self {
        Self { text: safe(text.as_ref()), tone: Tone::Plain, right: false }
    }

    /// A number: stands to the right.
    pub(crate) fn number(text: impl AsRef<str>) -> Self {
        Self { text: safe(text.as_ref()), tone: Tone::Plain, right: true }
    }

    /// What is not known or does not apply: a faint dash.
    pub(crate) fn none() -> Self {
        Self { text: "-".to_owned(), tone: Tone::Faint, right: false }
    }

    /// Says that it is well (green).
    pub(crate) fn good(mut self) -> Self {
        self.tone = Tone::Good;
        self
    }

    /// Says that it may need a look (yellow).
    pub(crate) fn warning(mut self) -> Self {
        self.tone = Tone::Warning;
        self
    }

    /// Says that it is not well (red).
    pub(crate) fn bad(mut self) -> Self {
        self.tone = Tone::Bad;
        self
    }

    /// Says that it matters less.
    pub(crate) fn faint(mut self) -> Self {
        self.tone = Tone::Faint;
        self
    }
}

/// Rows under a heading.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// A table with this heading and no rows.
    pub(crate) fn new<const N: usize>(heading: [&'static str; N]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. A row shorter than the heading is filled with dashes, a longer one is cut.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        let mut row: Vec<Cell> = cells.into_iter().collect();
        row.resize_with(self.heading.len(), Cell::none);
        self.rows.push(row);
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Prints the table to standard output, coloured where that is a terminal.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        super::print(&self.render(super::colour()))
    }

    /// The table as text. Every line ends without trailing spaces.
    pub(crate) fn render(&self, colour: bool) -> String {
        let widths: Vec<usize> = self
            .heading
            .iter()
            .enumerate()
            .map(|(column, title)| {
                let widest = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(&cell.text)).max();
                widest.unwrap_or(0).max(width(title))
            })
            .collect();
        let mut out = String::new();
        // A title stands on the side of its column's numbers.
        let heading: Vec<Cell> = self
            .heading
            .iter()
            .enumerate()
            .map(|(column, title)| Cell {
                text: (*title).to_owned(),
                tone: Tone::Plain,
                right: self.rows.iter().any(|row| row.get(column).is_some_and(|cell| cell.right)),
            })
            .collect();
        line(&mut out, &heading, &widths, colour);
        for row in &self.rows {
            line(&mut out, row, &widths, colour);
        }
        out
    }
}

/// Writes one line of cells.
fn line(out: &mut String, cells: &[Cell], widths: &[usize], colour: bool) {
    // Spaces are written only before a text that follows, so that no line ends in them.
    let mut owed = 0;
    for (cell, &column) in cells.iter().zip(widths) {
        let padding = column.saturating_sub(width(&cell.text));
        let (before, after) = if cell.right { (padding, 0) } else { (0, padding) };
        owed += before;
        if !cell.text.is_empty() {
            out.extend(std::iter::repeat_n(' ', owed));
            owed = 0;
            match cell.tone.escape().filter(|_| colour) {
                Some(escape) => {
                    let _infallible = write!(out, "{escape}{}\x1b[0m", cell.text);
                }
                None => out.push_str(&cell.text),
            }
        }
        owed += after + GAP;
    }
    out.push('\n');
}

/// Columns that a text takes. Names are ASCII; anything else is counted a column a character.
fn width(text: &str) -> usize {
    text.chars().count()
}
