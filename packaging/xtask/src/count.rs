//! Counting tests from the lines that test programs close with.
//!
//! Input: stdout of `cargo test`, line by line. Every libtest program, and every lane of ours,
//! closes with `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed and were skipped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Passed.
    pub(crate) passed: u64,
    /// Failed.
    pub(crate) failed: u64,
    /// Ignored: not run, and said so.
    pub(crate) skipped: u64,
}

impl Count {
    /// Reads one line; none when it is not a closing line.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        let (_verdict, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let number = |word: &str| {
            numbers.split("; ").find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
            skipped: number("ignored")?,
        })
    }

    /// Something ran and nothing failed.
    pub(crate) const fn is_green(self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_line_is_counted_and_nothing_else_is() {
        let line = "test result: FAILED. 12 passed; 1 failed; 3 ignored; 0 measured; 4 filtered out; finished in 0.01s";
        assert_eq!(Count::of_line(line), Some(Count { passed: 12, failed: 1, skipped: 3 }));
        assert_eq!(Count::of_line("test a::b ... ok"), None);
        assert_eq!(Count::of_line("test result: gone"), None);
    }

    #[test]
    fn no_test_at_all_is_not_green() {
        assert!(!Count::default().is_green());
        assert!(!Count { passed: 9, failed: 1, skipped: 0 }.is_green());
        assert!(Count { passed: 1, failed: 0, skipped: 2 }.is_green());
    }
}
