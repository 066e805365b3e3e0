//! Output: tables for people, JSON for programs, and the escaping of what tenants wrote.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

use crate::error::CtlError;

/// Longest cell of a table, characters; more is cut.
const CELL_CHARS_MAX: usize = 80;

/// A text without anything that moves a cursor, starts a line or turns the direction of writing.
pub(crate) fn escaped(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Control characters, and format characters that make one text look like another.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A colour of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Plain,
    Green,
    Yellow,
    Red,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Green => "\u{1b}[32m",
            Self::Yellow => "\u{1b}[33m",
            Self::Red => "\u{1b}[31m",
        }
    }
}

/// One cell: anybody's text, and our colour.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    pub(crate) fn coloured(text: impl AsRef<str>, colour: Colour) -> Self {
        let clean = escaped(text.as_ref());
        let mut short: String = clean.chars().take(CELL_CHARS_MAX).collect();
        if clean.chars().count() > CELL_CHARS_MAX {
            short.pop();
            short.push('…');
        }
        Self { text: short, colour }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::coloured(text, Colour::Plain)
    }
}

/// A table with a line of titles.
#[derive(Debug)]
pub(crate) struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The whole table; colours only where they were asked for.
    pub(crate) fn render(&self, colours: bool) -> String {
        let titles: Vec<Cell> = self.titles.iter().map(Cell::from).collect();
        let lines: Vec<&Vec<Cell>> = std::iter::once(&titles).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.titles.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let mut shown = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                let padding = " ".repeat(width.saturating_sub(cell.text.chars().count()) + 2);
                if colours && cell.colour != Colour::Plain {
                    shown.extend([cell.colour.code(), &cell.text, "\u{1b}[0m", &padding]);
                } else {
                    shown.extend([cell.text.as_str(), &padding]);
                }
            }
            text.push_str(shown.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Whether stdout is somebody who likes colours.
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a table.
pub(crate) fn print_table(table: &Table) -> Result<(), CtlError> {
    print(&table.render(colours()))
}

/// Prints one JSON object on one line.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), CtlError> {
    let text = serde_json::to_string(value).map_err(|error| CtlError::Output(error.into()))?;
    print(&format!("{text}\n"))
}

/// Prints text that has been escaped, or is ours.
pub(crate) fn print(text: &str) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CtlError::Output)
}

/// Makes a job's output fit for a terminal: only line ends and tabs are left of its control
/// characters. A character that comes in two pieces is put together.
#[derive(Debug, Default)]
pub(crate) struct Sanitizer {
    rest: Vec<u8>,
}

impl Sanitizer {
    /// The next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> String {
        self.rest.extend_from_slice(piece);
        let keep = incomplete_tail(&self.rest);
        let tail = self.rest.split_off(self.rest.len() - keep);
        let whole = std::mem::replace(&mut self.rest, tail);
        let mut clean = String::new();
        for c in String::from_utf8_lossy(&whole).chars() {
            if is_harmful(c) && !matches!(c, '\n' | '\t') {
                clean.extend(c.escape_default());
            } else {
                clean.push(c);
            }
        }
        clean
    }
}

/// How many bytes at the end begin a character that is not whole yet.
fn incomplete_tail(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => 0,
        Err(error) if error.error_len().is_none() => bytes.len() - error.valid_up_to(),
        // Broken before the end; the end itself may still be cut.
        Err(error) => {
            let from = error.valid_up_to() + error.error_len().unwrap_or(1);
            bytes.get(from..).map_or(0, incomplete_tail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_text_cannot_leave_its_cell() {
        let mut table = Table::new(&["NAME", "REASON"]);
        table.row(vec!["a\u{1b}[2Jb\nc".into(), "\u{202e}x\r".into()]);
        let text = table.render(false);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(!text.chars().any(|c| c != '\n' && is_harmful(c)), "{text}");
        assert!(text.contains("\\u{1b}[2Jb\\nc"), "{text}");
    }

    #[test]
    fn colours_are_there_only_when_asked_for() {
        let mut table = Table::new(&["STATE"]);
        table.row(vec![Cell::coloured("DONE", Colour::Green)]);
        assert!(!table.render(false).contains('\u{1b}'));
        assert!(table.render(true).contains("\u{1b}[32mDONE\u{1b}[0m"));
    }

    #[test]
    fn a_long_cell_is_cut_and_columns_stand_below_each_other() {
        let mut table = Table::new(&["A", "B"]);
        table.row(vec!["x".repeat(500).into(), "end".into()]);
        let text = table.render(false);
        let [titles, row] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!(titles.chars().position(|c| c == 'B'), Some(CELL_CHARS_MAX + 2));
        assert!(row.ends_with("…  end"), "{row}");
    }

    #[test]
    fn output_on_a_terminal_moves_no_cursor_and_keeps_cut_characters_whole() {
        let mut sanitizer = Sanitizer::default();
        assert_eq!(sanitizer.push(b"a\tb\n\x1b[31m\x07"), "a\tb\n\\u{1b}[31m\\u{7}");
        assert_eq!(sanitizer.push(&[0xc3]), "");
        assert_eq!(sanitizer.push(&[0xa4, b'x']), "äx");
        assert_eq!(sanitizer.push(&[0xff, b'y', 0xe2, 0x82]), "\u{fffd}y");
        assert_eq!(sanitizer.push(&[0xac]), "€");
    }
}
