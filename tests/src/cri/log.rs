//! The CRI's log format: `TIME STREAM TAG TEXT`, one line each, as kubelet reads it.
//!
//! `TIME` is RFC 3339 with nanoseconds, `STREAM` is `stdout` or `stderr`, `TAG` is `F` for a full line
//! and `P` for a part of one that goes on in the next entry of that stream.

use std::fs;
use std::path::Path;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::Failure;
use crate::failure::During as _;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line ends here.
    pub full: bool,
    /// Without the line's end.
    pub text: String,
}

impl Entry {
    /// Reads one line; anything but the format is an error.
    pub fn parse(line: &str) -> Result<Self, Failure> {
        let wrong = || Failure::new(format!("not a line of a CRI log: {line:?}"));
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().ok_or_else(wrong);
        OffsetDateTime::parse(word()?, &Rfc3339).during("time of a log line")?;
        let stream = word()?.to_owned();
        let full = match word()? {
            "F" => true,
            "P" => false,
            _ => return Err(wrong()),
        };
        if !matches!(stream.as_str(), "stdout" | "stderr") {
            return Err(wrong());
        }
        Ok(Self { stream, full, text: word()?.to_owned() })
    }

    /// `stdout F hello`, with long text shortened to its length.
    pub fn brief(&self) -> String {
        const SHOWN_MAX: usize = 100;
        let tag = if self.full { "F" } else { "P" };
        let text = if self.text.len() > SHOWN_MAX {
            format!("({} bytes)", self.text.len())
        } else {
            self.text.clone()
        };
        format!("{} {tag} {text}", self.stream)
    }
}

/// Every entry of a file; a file that is not there yet has none, a last line without its end is left out.
pub fn read(path: &Path) -> Result<Vec<Entry>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::from(error).during(&path.display().to_string())),
    };
    let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
    whole.lines().map(Entry::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_anything_else_is_not() {
        let entry = Entry::parse("2026-11-24T19:08:17.96382064Z stderr P two words").unwrap();
        assert_eq!(entry.brief(), "stderr P two words");
        let empty = Entry::parse("2026-11-24T19:08:17Z stdout F ").unwrap();
        assert_eq!((empty.full, empty.text.as_str()), (true, ""));
        for line in ["", "hello", "yesterday stdout F x", "2026-11-24T19:08:17Z out F x"] {
            assert!(Entry::parse(line).is_err(), "{line:?}");
        }
        assert!(Entry::parse("2026-11-24T19:08:17Z stdout X x").is_err());
    }
}
