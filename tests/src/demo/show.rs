//! How the demo is shown: lines as it goes, a table at the end; or one JSON object a case.

use std::io::{self, Write};

use serde_json::json;

use super::{Happened, Row};

/// Whether to colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For a terminal.
    Coloured,
    /// For everything else.
    Plain,
}

const GREEN: &str = "\u{1b}[32m";
const RED: &str = "\u{1b}[31m";
const DIM: &str = "\u{1b}[2m";
const RESET: &str = "\u{1b}[0m";

pub(super) struct Show<'a> {
    json: bool,
    style: Style,
    out: &'a mut dyn Write,
}

impl<'a> Show<'a> {
    pub(super) fn new(json: bool, style: Style, out: &'a mut dyn Write) -> Self {
        Self { json, style, out }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        match self.style {
            Style::Coloured => format!("{colour}{text}{RESET}"),
            Style::Plain => text.to_owned(),
        }
    }

    /// For a person only.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        if !self.json {
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, title: &str) -> io::Result<()> {
        self.line(&format!("\n{title} ..."))
    }

    pub(super) fn row(&mut self, row: &Row) -> io::Result<()> {
        if self.json {
            let (outcome, code) = words(&row.happened);
            let object = json!({
                "case": row.case,
                "outcome": if row.good { outcome } else { "failed" },
                "code": code,
                "ms": u64::try_from(row.ms).unwrap_or(u64::MAX),
            });
            return writeln!(self.out, "{object}");
        }
        let text = match &row.happened {
            Happened::Ran(output) => {
                for line in output.lines() {
                    writeln!(self.out, "  | {}", clean(line))?;
                }
                "it ran".to_owned()
            }
            Happened::Refused { text, .. } => format!("refused: {}", clean(text)),
            Happened::Clean => "nothing is left".to_owned(),
            Happened::Failed(text) => format!("failed: {text}"),
        };
        let text = self.paint(if row.good { GREEN } else { RED }, &text);
        writeln!(self.out, "  {text}")
    }

    pub(super) fn summary(&mut self, rows: &[Row]) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let width = rows.iter().map(|row| row.title.len()).max().unwrap_or(0);
        let head = format!("{:width$}  {:8}  {:24}  {:>6}", "case", "outcome", "code", "ms");
        writeln!(self.out, "\n{}", self.paint(DIM, &head))?;
        for row in rows {
            let (outcome, code) = words(&row.happened);
            let outcome = if row.good { outcome } else { "FAILED" };
            let painted = self.paint(if row.good { GREEN } else { RED }, &format!("{outcome:8}"));
            writeln!(self.out, "{:width$}  {painted}  {code:24}  {:>6}", row.title, row.ms)?;
        }
        let good = rows.iter().filter(|row| row.good).count();
        writeln!(self.out, "\n{good} of {} cases are as they must be", rows.len())
    }
}

fn words(happened: &Happened) -> (&'static str, &'static str) {
    match happened {
        Happened::Refused { code, .. } => ("refused", code.as_str()),
        Happened::Ran(_) | Happened::Clean => ("ran", ""),
        Happened::Failed(_) => ("failed", ""),
    }
}

/// A tenant's text for a person's terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// To stderr, where it does not disturb `--json`.
pub fn complain(text: &str) {
    let written = writeln!(io::stderr().lock(), "{text}");
    drop(written);
}
